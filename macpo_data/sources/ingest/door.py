"""Reads a dataset of any form as judged rows, and keeps the account of what became of them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from macpo_data.errors import DataError
from macpo_data.recipe.data import Columns
from macpo_data.schema import MESSAGES, WHOLE, Message, message_lists
from macpo_data.sources.ingest import canonical, marks
from macpo_data.sources.ingest.canonical import ODD, WORDS, Reason, Refusal, Row
from macpo_data.sources.ingest.detect import Form, Layout, detect
from macpo_data.sources.ingest.hints import Option
from macpo_data.sources.ingest.json_text import Record
from macpo_data.sources.ingest.readers import read
from macpo_data.sources.ingest.splits import Dataset, Source, open_split

ODD_SHARE = (
    0.1  # of rows of another form than the others, beyond which a file is refused; one is none
)
# Keys of messages that are read, or for which a row is refused.
READ_KEYS = frozenset(
    {"role", "content", *(key for keys in canonical.KEYS.values() for key in keys)}
)


@dataclass(frozen=True, slots=True)
class Judged:
    """A record, and what became of it."""

    number: int  # of the record, from 0
    record: Record
    row: Row | None  # None where the record could not become one
    reason: Reason | None  # why it is of no use; None where it is of use


@dataclass
class Refused:
    """How many rows were refused for one reason."""

    words: str
    count: int = 0
    first: int = 0  # the first such row


@dataclass
class Account:
    """What became of a dataset's rows. Counts grow as rows are read."""

    form: Form
    rows: int = 0
    used: int = 0
    refused: dict[Reason, Refused] = field(default_factory=dict)
    unread_columns: Counter[str] = field(default_factory=Counter)
    unread_keys: Counter[str] = field(default_factory=Counter)  # of messages
    mentions: int = 0  # rows amid whose text a mark of a template stands
    notes: list[str] = field(default_factory=list)
    untrained: str | None = None  # why the chat template of a tokenizer lets none be trained

    def refuse(self, reason: Reason, number: int, words: str) -> None:
        """Count a row that is refused."""
        entry = self.refused.setdefault(reason, Refused(words, 0, number))
        entry.count += 1

    def lines(self) -> list[str]:
        """The account for a person, a line for each thing."""
        lines = [f"read {self.rows:,} rows of {self.form}; used {self.used:,}"]
        for reason, entry in sorted(self.refused.items()):
            lines.append(
                f"left out {entry.count} rows: {reason} ({entry.words}; the first is row "
                f"{entry.first})"
            )
        if self.unread_columns:
            lines.append(f"columns that nobody reads: {', '.join(self.unread_columns)}")
        if self.unread_keys:
            keys = ", ".join(self.unread_keys)
            lines.append(f"keys of messages that only a chat template may read: {keys}")
        if self.mentions:
            lines.append(f"{self.mentions} rows mention a chat template's mark, which stays text")
        return lines + self.notes

    def facts(self) -> dict[str, Any]:
        """The account for a manifest."""
        return {
            "form": self.form.name.lower(),
            "rows_read": self.rows,
            "left_out": {str(reason): each.count for reason, each in sorted(self.refused.items())},
            "unread_columns": sorted(self.unread_columns),
            "unread_keys": sorted(self.unread_keys),
        }

    def why_nothing(self) -> str:
        """Why no row is of use, in one line."""
        if not self.refused:
            return "it holds no answers" if self.form is Form.PROMPTS else "no row fits"
        reason = max(self.refused, key=lambda each: self.refused[each].count)
        entry = self.refused[reason]
        counts = ", ".join(f"{each.count} {name}" for name, each in sorted(self.refused.items()))
        line = f"row {entry.first}: {entry.words} ({counts})"
        if reason is Reason.RENDERED:
            line += "; --set chat_template=none takes it as it is, or take the marks out"
        return line


class Rows:
    """The judged rows of one split, to be read once; the account is whole when they are."""

    def __init__(
        self, source: Source, layout: Layout, sample: list[Record], takes: frozenset[Reason]
    ) -> None:
        """Of a source whose form is known from a sample, its first records."""
        self.source, self.layout, self.sample = source, layout, sample
        self.account = Account(layout.form)
        self.takes = takes
        self.tokens: tuple[str, ...] = ()  # special ones of a tokenizer: marks in text, too
        self._template = ""  # by which the last rendered row was rendered
        self.also_read: frozenset[str] = frozenset()  # columns that whoever asked reads as well

    def __iter__(self) -> Iterator[Judged]:
        """Each record, judged.

        Raises:
            DataError: too many are of another form than the file's others.
        """
        read_columns = self.layout.read | self.also_read
        numbers = itertools.count()
        for batch in self.source.batches:
            for record in batch:
                for name, value in record.items():
                    if name not in read_columns and value not in (None, "", [], {}):
                        self.account.unread_columns[name] += 1
                yield self._judge(next(numbers), record)
        self.account.notes += self.source.notes
        self._refuse_odd()

    def without(self, each: Judged, sides: Collection[str]) -> Judged:
        """The same, or refused where one of its sides is missing that whoever asked needs."""
        row = each.row
        if each.reason is None and row and any(getattr(row, side) is None for side in sides):
            self.account.used -= 1
            self.account.refuse(Reason.NO_ANSWER, each.number, WORDS[Reason.NO_ANSWER])
            return replace(each, reason=Reason.NO_ANSWER)
        return each

    def _judge(self, number: int, record: Record) -> Judged:
        self.account.rows += 1
        row: Row | None = None
        try:
            row = read(record, self.layout)
            reason = self._reason(row)
            words = WORDS[reason] if reason else ""
            if reason is Reason.RENDERED:
                words = f"text is rendered already: it holds the marks of {self._template}"
            if reason is Reason.MEDIA and row.media:
                words = (
                    f"the column {next(iter(row.media))} is not read, and text alone would lose it"
                )
        except Refusal as refusal:
            reason, words = refusal.reason, refusal.detail
        if reason is None:
            self.account.used += 1
        else:
            self.account.refuse(reason, number, words)
        return Judged(number, record, row, reason)

    def _reason(self, row: Row) -> Reason | None:
        if reason := canonical.fault(row):
            return reason
        if self.layout.strip:
            if name := marks.rendered(row, self.tokens):
                self._template = name
                return Reason.RENDERED
            self.account.mentions += marks.mentions(row)
        self.account.unread_columns.update(row.unread)
        holds = row.holds
        beyond = holds - self.takes
        if beyond:
            return next(reason for reason in Reason if reason in beyond)
        if not holds and canonical.text(row.chosen) == canonical.text(row.rejected) is not None:
            return Reason.SAME_SIDES  # in all that is read of them
        for message in row.messages:
            if len(message) > 2:
                self.account.unread_keys.update(message.keys() - READ_KEYS)
        return None

    def _refuse_odd(self) -> None:
        account = self.account
        odd = {reason: account.refused[reason] for reason in ODD if reason in account.refused}
        count = sum(each.count for each in odd.values())
        if count and (count > max(1, ODD_SHARE * account.rows) or 2 * count >= account.rows):
            most = max(odd.values(), key=lambda each: each.count)
            raise DataError(
                f"{self.source.name}: {count} of {account.rows} rows do not fit the form "
                f"({account.form}): {most.words}, first at row {most.first}; mend or leave out "
                "these rows, or bring each form as a file of its own"
            )


def open_rows(
    of: Dataset | Source,
    columns: Columns,
    *,
    takes: Collection[Reason] = (),
    rendered: bool = False,
    form: Form | None = None,
    option: Option = Option.COMMAND,
) -> Rows:
    """Open the one split that is meant, and find its form.

    Args:
        of: a dataset, or records that are open already.
        columns: what a person named; the other columns are detected.
        takes: what its reader can say beside plain text; a row that holds other things of
            BEYOND_TEXT is refused.
        rendered: take text as it is, template marks and white space with it.
        form: where it is known.
        option: how a person names columns, for hints.

    Raises:
        DataError: it cannot be read, or holds neither preferences nor prompts.
        HubError: the Hub refuses.
    """
    source = open_split(of) if isinstance(of, Dataset) else of
    sample = source.peek()
    layout = detect(sample, columns, source.name, rendered=rendered, form=form, option=option)
    return Rows(source, replace(layout, strip=not rendered), sample, frozenset(takes))


def frame(judged: Iterable[Judged], *more: str) -> pl.DataFrame:
    """Judged rows as text: (row, prompt, chosen, rejected, whole, reason, prompt_id), one for each.

    Args:
        judged: rows; one that is more than text is in `whole` as well.
        more: columns of the records to add as they are.
    """
    columns: dict[str, list[Any]] = {name: [] for name in (*_FRAME, *more)}
    for each in judged:
        row = each.row
        prompt = [_plain(m) for m in row.prompt] if row else None
        columns["row"].append(each.number)
        columns["prompt"].append(prompt)
        columns["chosen"].append(canonical.text(row.chosen) if row else None)
        columns["rejected"].append(canonical.text(row.rejected) if row else None)
        columns[WHOLE].append(row.whole if row and each.reason is None else None)
        columns["reason"].append(each.reason and str(each.reason))
        columns["prompt_id"].append(row.prompt_id if row and each.reason is None else None)
        for name in more:
            columns[name].append(each.record.get(name))
    prompts = message_lists("prompt", columns["prompt"])
    return pl.DataFrame(columns | {"prompt": prompts}, schema_overrides=_FRAME, strict=False)


_FRAME: dict[str, Any] = {
    "row": pl.Int64, "prompt": MESSAGES, "chosen": pl.String, "rejected": pl.String,
    WHOLE: pl.String, "reason": pl.String, "prompt_id": pl.String,
}  # fmt: skip


def _plain(message: canonical.Message) -> Message:
    content = message["content"]
    return {
        "role": message["role"],
        "content": content if isinstance(content, str) else canonical.as_json(content),
    }
