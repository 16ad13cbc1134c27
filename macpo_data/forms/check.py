"""Checks a preference dataset: which trainers can read it, and what is wrong with its rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from macpo_data.errors import DataError, did_you_mean
from macpo_data.forms.registry import OWN, trainers
from macpo_data.forms.row_findings import (
    SIDES,
    Alike,
    Finding,
    Lengths,
    Level,
    Repeats,
    Tally,
    as_frame,
    doubled,
    leaked,
    tokens,
)
from macpo_data.forms.shape import shape_of
from macpo_data.schema import SCORES
from macpo_data.sources import overlap
from macpo_data.sources.ingest.canonical import BEYOND_TEXT, Reason
from macpo_data.sources.ingest.detect import FORMS_WITH_SIDES, Form
from macpo_data.sources.ingest.door import Judged, Rows
from macpo_data.sources.ingest.json_text import Record
from macpo_data.sources.usable import answers_named, why_none

BATCH = 5_000  # rows that are looked at together
_UNKNOWN = (False, "how it reads data for fine-tuning is not known here")
_NO_ANSWERS = (False, f"{Form.PROMPTS}")
# What is lost where text alone is trained, and what some trainers want just so.
_WARNINGS = BEYOND_TEXT | {Reason.RENDERED}


@dataclass(frozen=True)
class Reading:
    """What a trainer makes of the columns."""

    trainer: str
    reads: bool
    how: str


def readings(rows: Rows) -> list[Reading]:
    """How each trainer reads these columns, with the settings that it would need.

    Args:
        rows: of the dataset, whose account is whole.
    """
    shape, form = shape_of(rows), rows.layout.form
    read = []
    for trainer in trainers():
        use = trainer.fine_tuning if form is Form.FINE_TUNING else trainer.pairs
        answer = use.reads(shape) if use else _UNKNOWN
        if form is Form.PROMPTS:
            answer = _NO_ANSWERS
        elif trainer is OWN and (reason := why_none(rows) or rows.account.untrained):
            answer = (False, reason)
        read.append(Reading(trainer.name, *answer))
    return read


def findings(
    rows: Rows,
    *,
    tests: Sequence[pl.Series] = (),
    chat: Any = None,
    max_length: int = 1024,
) -> list[Finding]:
    """What is wrong, or worth knowing, about the rows of pairs, or of data for fine-tuning.

    Args:
        rows: of the dataset, which this reads to their end, a batch at a time.
        tests: texts of test sets that no prompt may occur in.
        chat: a macpo_data.models.chat.Chat, to count tokens; None counts none.
        max_length: tokens of prompt and answer together.

    Raises:
        DataError: it cannot be read to its end, or is of several forms.
    """
    if chat is not None:
        added = chat.tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special}
        rows.tokens = tuple(sorted(special | set(chat.tokenizer.all_special_tokens)))
    has_pairs = rows.layout.form in FORMS_WITH_SIDES
    wanted = () if rows.layout.form is Form.PROMPTS else SIDES if has_pairs else SIDES[:1]
    columns, tally, repeats, lengths = _Columns(rows), Tally(), Repeats(), Lengths()
    alike = Alike()
    rows.also_read = columns.also_read
    kept_out = overlap.Tests.of(tests)
    verdicts: set[str | None] = set()
    judged = columns.watch(rows.without(each, wanted) for each in rows)
    while batch := list(itertools.islice(judged, BATCH)):
        good = as_frame(batch)
        if not wanted or good.is_empty():
            continue
        repeats.look(good)
        alike.look(good, tally)
        doubled(good, tally)
        leaked(good, kept_out, tally)
        lengths.look(good)
        if chat is not None:
            verdicts.update(tokens(good, chat, max_length, tally))
    repeats.tell(tally, pairs=has_pairs)
    if verdicts and None not in verdicts:
        rows.account.untrained = next(iter(verdicts))
    rule = chat.thought_rule if chat is not None else None
    listed = [
        *([Finding("note", rule, rows.account.used)] if rule else []),
        *_refused(rows), *columns.tally.findings, *tally.findings, *lengths.findings(),
        *_unread(rows),
    ]  # fmt: skip
    return [each for each in listed if each.count]


def _refused(rows: Rows) -> Iterator[Finding]:
    """The rows that are of no use, by reason."""
    for reason, entry in rows.account.refused.items():
        level: Level = "warning" if reason in _WARNINGS else "error"
        yield Finding(level, entry.words, entry.count, entry.first)
    if rows.layout.form is Form.PROMPTS:
        mend = f"; {named}" if (named := answers_named(rows.layout)) else ""
        yield Finding("error", f"there are no answers{mend}", rows.account.used, 0)


def _unread(rows: Rows) -> Iterator[Finding]:
    """What no reader looks at, and what is odd about the files."""
    account = rows.account
    for name, count in account.unread_columns.items():
        yield Finding("note", f"column {name}: nobody reads it", count)
    for name, count in account.unread_keys.items():
        yield Finding("note", f"key {name} of messages: only a chat template may read it", count)
    for note in account.notes:
        yield Finding("note", note, account.rows)
    yield Finding("note", "the text mentions a chat template's mark", account.mentions)


class _Columns:
    """Looks at the columns as they are, while rows pass."""

    def __init__(self, rows: Rows) -> None:
        layout = rows.layout
        self.names = [n for n in (layout.prompt, layout.chosen, layout.rejected) if n]
        sides = {"chosen": layout.chosen, "rejected": layout.rejected}
        # What macpo's datasets say of an answer stands beside it, in columns named after its own.
        self.ends = {side: f"{column}_finish_reason" for side, column in sides.items() if column}
        scores = {f"{column}_{name}" for column in sides.values() if column for name in SCORES}
        self.also_read = frozenset({*self.ends.values(), *scores} & layout.kinds.keys())
        self.tally = Tally()

    def watch(self, judged: Iterable[Judged]) -> Iterator[Judged]:
        """The same rows."""
        for each in judged:
            for what in self._seen(each.record):
                self.tally.add("warning", what, [each.number])
            yield each

    def _seen(self, record: Record) -> Iterator[str]:
        for name in self.names:
            if any(text != text.strip() for text in _texts(record.get(name))):
                # axolotl finds contents by their text, and loses such.
                yield f"white space around a text in {name}"
        for side, name in self.ends.items():
            if record.get(name) == "length":
                learns = "it does not teach to stop" if side == "chosen" else "so it never stops"
                yield f"{side} was cut by the token limit: {learns}"


def _texts(value: Any) -> list[str]:
    """The texts of a value: itself, or the contents of its messages."""
    messages = value if isinstance(value, list) else [value]
    contents = [each.get("content") if isinstance(each, dict) else each for each in messages]
    return [content for content in contents if isinstance(content, str)]


def verdict(findings: list[Finding], read: list[Reading], wanted: str | None) -> bool:
    """Whether the dataset is fit: no error in its rows, and the trainer that counts can read it.

    Raises:
        DataError: there is no such trainer.
    """
    names = [reading.trainer for reading in read]
    if wanted is not None and wanted not in names:
        raise DataError(
            f"no trainer {wanted!r}{did_you_mean(wanted, names)}; choose {', '.join(names)}"
        )
    fit = next((r.reads for r in read if r.trainer == wanted), any(r.reads for r in read))
    return fit and not any(each.level == "error" for each in findings)
