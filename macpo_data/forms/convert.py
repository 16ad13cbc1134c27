"""Writes a dataset in the form that a trainer wants: a row whole, or left out with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from macpo_data.errors import DataError, did_you_mean
from macpo_data.forms.registry import targets
from macpo_data.forms.trainer import Trainer, Use
from macpo_data.sources.ingest.canonical import Reason, Refusal, Row, as_json
from macpo_data.sources.ingest.detect import FORMS_WITH_SIDES, Form
from macpo_data.sources.ingest.door import Account, Rows


@dataclass
class Conversion:
    """What became of a dataset's rows in another form."""

    account: Account
    trainer: str
    lost_keys: Counter[str] = field(default_factory=Counter)  # of messages, by name
    # Who takes text that is rendered already, where some is.
    take_text: list[str] = field(default_factory=list)
    more_to_learn: int = 0  # rows whose prompt has answers that the trainer may learn as well

    def lines(self) -> list[str]:
        """The account for a person, a line for each thing."""
        lines = replace(self.account, unread_columns=Counter(), unread_keys=Counter()).lines()
        for column, count in self.account.unread_columns.items():
            lines.append(f"lost: column {column} ({count:,} rows)")
        for key, count in self.lost_keys.items():
            lines.append(f"lost: key {key} of messages, which {self.trainer} does not read "
                         f"({count:,} messages)")  # fmt: skip
        if self.take_text:
            names = ", ".join(self.take_text)
            lines.append(f"--set chat_template=none writes rendered text as it is, for {names}")
        if self.more_to_learn:
            lines.append(
                f"{self.more_to_learn:,} rows have earlier answers in the prompt, and this form "
                f"does not say where the last one begins: {self.trainer} may learn all of them"
            )
        return lines


def target(name: str) -> Trainer:
    """The trainer of this name.

    Raises:
        DataError: there is none; with the nearest name.
    """
    known = targets()
    if name in known:
        return known[name]
    raise DataError(f"no trainer {name!r}{did_you_mean(name, known)}; choose {', '.join(known)}")


def use_for(rows: Rows, trainer: Trainer) -> Use:
    """How the trainer uses data of the kind that the rows are.

    Raises:
        DataError: they have no answers, or nobody looked how it reads data for fine-tuning.
    """
    form = rows.layout.form
    if form is Form.PROMPTS:
        raise DataError(f"{rows.source.name}: {form}; there is nothing that a trainer learns from")
    if form in FORMS_WITH_SIDES:
        return trainer.pairs
    if trainer.fine_tuning is None:
        others = [each.name for each in targets().values() if each.fine_tuning]
        raise DataError(
            f"{rows.source.name} is {form}, and how {trainer.name} reads such is not known here; "
            f"choose {', '.join(others)}"
        )
    return trainer.fine_tuning


def as_text(rows: Rows, trainer: Trainer) -> Use:
    """How the trainer uses text that is rendered already, of the kind that the rows are.

    Raises:
        DataError: as `use_for`; or it renders every text by a template, or they are no text.
    """
    use = use_for(rows, trainer)
    if use.as_text is None:
        others = takers_of_text(rows)
        words = f"; choose {', '.join(others)}" if others else ""
        raise DataError(f"{trainer.name} takes no text that is rendered already{words}")
    form, snippet = use.as_text.form, use.as_text.snippet
    return replace(use, converted=form, snippet=snippet, takes=frozenset(), beside=None)


def takers_of_text(rows: Rows) -> list[str]:
    """The trainers that take text as it is, of data of this kind."""
    pairs = rows.layout.form in FORMS_WITH_SIDES
    uses = {each.name: each.pairs if pairs else each.fine_tuning for each in targets().values()}
    return [name for name, use in uses.items() if use and use.as_text]


def writable(rows: Rows, names: Sequence[str]) -> list[str]:
    """Those of these trainers for which some of the rows, once read, may be written."""
    account, known = rows.account, targets()
    if not account.used or account.form is Form.PROMPTS:
        return []
    pairs = account.form in FORMS_WITH_SIDES
    takers = names if rows.layout.strip else takers_of_text(rows)
    return [name for name in names if name in takers and (pairs or known[name].fine_tuning)]


def write(rows: Rows, trainer: Trainer, to: Path, use: Use | None = None) -> Conversion:
    """Write the rows as JSON lines, one after another.

    Args:
        rows: of any form, which this reads to their end.
        trainer: whose form is written.
        to: the file.
        use: how the trainer uses them; None for `use_for`.

    Raises:
        DataError: it cannot be read to its end, or no row can be written.
    """
    use = use or use_for(rows, trainer)
    rows.takes = use.takes
    form = use.converted or use.form
    sides = ("chosen", "rejected") if rows.layout.form in FORMS_WITH_SIDES else ("chosen",)
    account = rows.account
    done = Conversion(account, trainer.name)
    with to.open("w", encoding="utf-8", newline="\n") as file:
        for judged in rows:
            each = rows.without(judged, sides)
            if each.row is None or each.reason is not None:
                continue
            if role := _unknown_role(each.row, use):
                words = f"a message of the role {role}, which {trainer.name} does not have there"
                account.used -= 1
                account.refuse(Reason.OTHER_ROLE, each.number, words)
                continue
            try:
                record = form.record(each.row)
            except Refusal as refusal:
                account.used -= 1
                account.refuse(refusal.reason, each.number, refusal.detail)
                continue
            file.write(f"{as_json(record)}\n")
            done.lost_keys.update(_lost(each.row, use))
            if form.joins:
                done.more_to_learn += any(m["role"] == "assistant" for m in each.row.prompt)
    if Reason.RENDERED in account.refused:
        done.take_text = takers_of_text(rows)
    if not account.used:
        who = f"; for {', '.join(done.take_text)}" if done.take_text else ""
        raise DataError(
            f"{rows.source.name}: no row can be written for {trainer.name}: "
            f"{account.why_nothing()}{who}"
        )
    return done


def _unknown_role(row: Row, use: Use) -> str | None:
    """A role for which the trainer has no word, where it stands."""
    asked = [m["role"] for m in row.prompt if m["role"] not in use.roles]
    answered = [m["role"] for side in row.sides for m in side]
    return next(iter([*asked, *(role for role in answered if role not in use.answer_roles)]), None)


def _lost(row: Row, use: Use) -> list[str]:
    """The keys of messages that the trainer does not read, once for each message."""
    if use.keys is None:
        return []
    lost = [key for message in row.messages if len(message) > 2
            for key in message.keys() - use.keys - {"role", "content"}]  # fmt: skip
    return lost if use.calls_whole else [*lost, *_lost_of_calls(row)]


def _lost_of_calls(row: Row) -> Iterator[str]:
    """What a call says beside its name and arguments, once for each."""
    listed = [message.get("tool_calls") for message in row.messages]
    whole = [call for each in listed if isinstance(each, list) for call in each]
    for call in whole:
        if isinstance(call, dict) and "function" in call:
            yield from (f"tool_calls.{key}" for key in call.keys() - {"type", "function"})
