"""UltraFeedback with its best and a worse answer, as in ultrafeedback_binarized."""

from __future__ import annotations

import polars as pl

from macpo_data.recipe.data import Columns, FileData, More
from macpo_data.sources.rows import rows


def read(raw: pl.DataFrame, settings: FileData | More, path: str) -> pl.DataFrame:
    """The rows: its columns are called as the usual ones are."""
    return rows(raw, Columns(), path)
