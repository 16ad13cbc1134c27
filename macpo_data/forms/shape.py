"""What the columns of a preference dataset hold, from its schema alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import polars as pl

from macpo_data.recipe.data import Columns

Kind = Literal["text", "messages", "message", "other", "missing"]


@dataclass(frozen=True)
class Shape:
    """The columns as a trainer sees them."""

    columns: Columns  # which of them hold what
    kinds: dict[str, Kind]  # of every column that is there
    full: bool  # whether both sides hold the prompt as well

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
    def apart(self) -> bool:
        """Whether there is a prompt of its own, as text or as messages."""
        return self.prompt in ("text", "messages")

    @property
    def explicit(self) -> bool:
        """Whether the prompt is apart, and the answers alone are of the same kind."""
        return self.apart and self.sides == self.prompt and not self.full

    @property
    def implicit(self) -> bool:
        """Whether the prompt stands inside both sides alone."""
        return self.prompt == "missing" and (self.full or self.sides == "text")

    @property
    def conversations(self) -> bool:
        """Of data for fine-tuning: whole conversations, and no completion apart."""
        return "completion" not in self.kinds


def shape_of(table: pl.DataFrame, columns: Columns) -> Shape:
    """Look at the columns of a dataset."""
    bare = Shape(columns, kinds(table), full=False)
    return Shape(columns, bare.kinds, bare.sides == "messages" and _is_full(table, columns))


def kinds(table: pl.DataFrame) -> dict[str, Kind]:
    """What each column holds."""

    def kind(dtype: pl.DataType) -> Kind:
        inner = dtype.inner if isinstance(dtype, pl.List) else dtype
        is_message = isinstance(inner, pl.Struct) and {"role", "content"} <= {
            field.name for field in inner.fields
        }
        if is_message:
            return "messages" if isinstance(dtype, pl.List) else "message"
        return "text" if dtype == pl.String else "other"

    return {name: kind(dtype) for name, dtype in table.schema.items()}


def fine_tuning(table: pl.DataFrame, columns: Columns) -> pl.DataFrame | None:
    """A dataset without sides as prompt and chosen, which is what it teaches; None for pairs."""
    if {columns.chosen, columns.rejected} & set(table.columns):
        return None
    if {columns.prompt, "completion"} <= set(table.columns):
        return table.select(columns.prompt, pl.col("completion").alias("chosen"))
    if kinds(table).get("messages") == "messages":
        turns = pl.col("messages").list
        return table.select(
            turns.head(turns.len() - 1).alias(columns.prompt), turns.tail(1).alias("chosen")
        )
    return None


def _is_full(table: pl.DataFrame, columns: Columns) -> bool:
    """Whether both sides hold the prompt: more than one turn, the first one not the assistant's."""
    if table.is_empty():
        return False
    sides = [pl.col(name) for name in (columns.chosen, columns.rejected) if name]
    whole = pl.all_horizontal(
        (side.list.len() > 1) & (side.list.first().struct.field("role") != "assistant")
        for side in sides
    )
    share = table.select(whole.fill_null(False).mean()).item()
    return bool(share and share > 0.5)
