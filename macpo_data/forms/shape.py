"""What a preference dataset holds, and where, as a trainer sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from macpo_data.recipe.data import Columns
from macpo_data.sources.ingest import canonical, marks
from macpo_data.sources.ingest import messages as reading
from macpo_data.sources.ingest.canonical import WORDS, Message, Reason, Refusal, Row
from macpo_data.sources.ingest.detect import Form, Layout
from macpo_data.sources.ingest.door import Rows
from macpo_data.sources.ingest.json_text import Record
from macpo_data.sources.ingest.readers import read

# A tagged column holds one or more {from, value}; spelt messages are other: no trainer reads them.
Kind = Literal["text", "messages", "message", "tagged", "other", "missing"]


@dataclass(frozen=True)
class Shape:
    """The columns as a trainer sees them. What is told of rows holds of all in the sample."""

    columns: Columns  # which of them hold what
    kinds: dict[str, Kind]  # of every column that is there
    form: Form = Form.EXPLICIT
    in_prompt: bool = False  # the column of prompts says all of the prompt
    in_sides: bool = False  # both sides say all of the prompt, and then the answer
    alone: bool = False  # both sides say the answer alone
    beyond: frozenset[Reason] = frozenset()  # what some row holds beside text
    parts: bool = False  # contents are lists of parts
    rendered: bool = False  # the text has a template's marks already
    one_each: bool = False  # each side is one message, and no list
    # Columns that hold a part of the prompt as well: system, history or input -> its name.
    beside: Mapping[str, str] = field(default_factory=dict)

    def _kind(self, column: str | None) -> Kind:
        return self.kinds.get(column or "", "missing")

    @property
    def prompt(self) -> Kind:
        """What the column of prompts holds."""
        return self._kind(self.columns.prompt)

    @property
    def chosen(self) -> Kind:
        """What the column of chosen answers holds."""
        return self._kind(self.columns.chosen)

    @property
    def rejected(self) -> Kind:
        """What the column of rejected answers holds."""
        return self._kind(self.columns.rejected)

    @property
    def sides(self) -> Kind:
        """What chosen and rejected both hold; other where they are unlike."""
        return self.chosen if self.chosen == self.rejected else "other"

    @property
    def usual(self) -> bool:
        """Whether the columns have the names that most trainers know."""
        names = (self.columns.prompt, self.columns.chosen, self.columns.rejected)
        return names == ("prompt", "chosen", "rejected")

    def keys(self, before: str, after: str = "", between: str = ": ") -> str:
        """Settings that name both columns of answers, where those have names of their own.

        >>> from macpo_data.recipe.data import Columns
        >>> Shape(Columns(chosen="better", rejected="worse"), {}).keys("field_")
        ', field_chosen: better, field_rejected: worse'
        """
        columns = {"chosen": self.columns.chosen, "rejected": self.columns.rejected}
        if all(side == column for side, column in columns.items()):
            return ""
        return "".join(
            f", {before}{side}{after}{between}{column}" for side, column in columns.items()
        )

    @property
    def apart(self) -> bool:
        """Whether all of the prompt stands in a column of its own, as text or as messages."""
        return self.in_prompt and self.prompt in ("text", "messages")

    @property
    def explicit(self) -> bool:
        """Whether the prompt is apart, and the answers alone are of the same kind."""
        return self.apart and self.alone and self.sides == self.prompt

    @property
    def texts(self) -> bool:
        """Whether prompt and answers are text, each in a column of its own."""
        return self.explicit and self.sides == "text"

    @property
    def full(self) -> bool:
        """Whether both sides are whole conversations, as messages."""
        return self.in_sides and self.sides == "messages"

    @property
    def implicit(self) -> bool:
        """Whether the prompt stands inside both sides alone."""
        return self.prompt == "missing" and (self.full or self.sides == "text")

    @property
    def conversations(self) -> bool:
        """Of data for fine-tuning: whole conversations, and no completion apart."""
        return self.prompt == "missing" and self.chosen == "messages"

    def loses(self, *says: Reason, beside: bool = False) -> str | None:
        """What the rows hold that a trainer loses; None where it loses nothing.

        Args:
            says: what it can say beside text.
            beside: whether it reads the columns that hold a part of the prompt as well.
        """
        if self.beside and not beside:
            return f"it does not read the column {', '.join(self.beside.values())}"
        if lost := next((each for each in Reason if each in self.beyond - {*says}), None):
            return WORDS[lost]
        return "contents are lists of parts" if self.parts else None


def shape_of(rows: Rows) -> Shape:
    """Look at the columns of a dataset, and at its first records."""
    layout, columns = rows.layout, rows.layout.columns
    kinds = {name: _KINDS.get(kind, "other") for name, kind in layout.kinds.items()}
    usable = list(_usable(rows.sample, layout))
    named = [layout.prompt, layout.chosen, layout.rejected]

    parts = {"system": layout.system, "history": layout.history, "input": layout.input}

    def everywhere(says: Callable[[Record, Row], bool]) -> bool:
        return bool(usable) and all(says(record, row) for record, row in usable)

    return Shape(
        columns,
        kinds,
        layout.form,
        in_prompt=everywhere(lambda r, row: _said(r, layout, layout.prompt) == row.prompt),
        in_sides=everywhere(lambda r, row: _sides_are(r, row, layout, row.prompt)),
        alone=everywhere(lambda r, row: _sides_are(r, row, layout, [])),
        beyond=frozenset(each for _, row in usable for each in row.holds),
        parts=any(_is_in_parts(r.get(name or "")) for r, _ in usable for name in named),
        rendered=2 * sum(marks.rendered(row) is not None for _, row in usable) > len(usable),
        beside={
            what: name
            for what, name in parts.items()
            if name and any(record.get(name) for record, _ in usable)
        },
        one_each=everywhere(
            lambda r, _: all(isinstance(r.get(name or ""), dict) for name in named[1:])
        ),
    )


_KINDS: dict[str, Kind] = {
    reading.Kind.TEXT: "text",
    reading.Kind.MESSAGES: "messages",
    reading.Kind.MESSAGE: "message",
    reading.Kind.TAGGED: "tagged",
}


def _usable(records: list[Record], layout: Layout) -> Iterator[tuple[Record, Row]]:
    """The records that are rows of use, whoever reads them."""
    for record in records:
        try:
            row = read(record, layout)
        except Refusal:
            continue
        if canonical.fault(row) is None:
            yield record, row


def _sides_are(record: Record, row: Row, layout: Layout, lead: list[Message]) -> bool:
    """Whether the columns of both sides say some turns, and then the answer."""
    sides = ((layout.chosen, row.chosen), (layout.rejected, row.rejected))
    return all(
        _said(record, layout, name) == [*lead, *side] for name, side in sides if side is not None
    )


def _said(record: Record, layout: Layout, name: str | None) -> list[Message] | None:
    """What one column says; None where it says nothing that can be read."""
    role = "user" if name == layout.prompt else "assistant"
    try:
        return reading.messages(
            record.get(name or ""), name or "", layout.kind(name), role, strip=layout.strip
        )
    except Refusal:
        return None


def _is_in_parts(value: Any) -> bool:
    turns = value if isinstance(value, list) else [value]
    return any(isinstance(turn, dict) and isinstance(turn.get("content"), list) for turn in turns)
