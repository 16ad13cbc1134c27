"""Any preference dataset, its columns named by the recipe or by the usual names."""

from __future__ import annotations

import polars as pl

from macpo_data.recipe.data import Columns, FileData, More, PairsData
from macpo_data.sources.hh_rlhf import dialogue
from macpo_data.sources.rows import rows
from macpo_data.sources.usable import with_reasons


def read(raw: pl.DataFrame, settings: FileData | More, path: str) -> pl.DataFrame:
    """The rows, by `data.columns`; a second dataset has the usual names."""
    columns = settings.columns if isinstance(settings, PairsData) else Columns()
    return rows(raw, columns, path)


def preference_rows(raw: pl.DataFrame, columns: Columns, path: str) -> pl.DataFrame:
    """Any preference dataset in the one form, row for row: PROMPTS and why a row is of no use.

    Understands what `read` does, and besides each answer as one message (sharegpt), and HH's
    "Human: ... Assistant: ..." text.

    Raises:
        DataError: it lacks a column.
    """
    sides = [name for name in (columns.chosen, columns.rejected) if name]
    for name in sides:
        if isinstance(raw.schema.get(name), pl.Struct):
            raw = raw.with_columns(pl.concat_list(name))
    if columns.prompt not in raw.columns and all(raw.schema.get(n) == pl.String for n in sides):
        heads = raw.select(pl.col(sides).str.contains(r"^\s*Human:").all())
        if all(heads.row(0)):
            raw = raw.with_columns(dialogue(pl.col(name)).alias(name) for name in sides)
    return with_reasons(rows(raw, columns, path), None)
