"""PKU-SafeRLHF: two responses and which is better or safer, unless they are named already."""

from __future__ import annotations

import polars as pl

from macpo_data.errors import DataError
from macpo_data.recipe.data import Columns, FileData, More, PKUData
from macpo_data.sources.rows import need, rows


def read(raw: pl.DataFrame, settings: FileData | More, path: str) -> pl.DataFrame:
    """The rows; one without a verdict of 0 or 1 has the reason no_preference."""
    assert isinstance(settings, PKUData)
    if "response_0" not in raw.columns:
        return rows(raw, Columns(), path)
    preferred = f"{settings.preference}_response_id"
    need(raw, ["prompt", preferred], path)
    need(raw, ["response_0", "response_1"], path, text=True)
    if raw.schema[preferred].is_nested():
        raise DataError(
            f"{path}: column {preferred} is {raw.schema[preferred]}, no 0 or 1; check the file"
        )
    first, second = pl.col("response_0"), pl.col("response_1")
    picked = pl.col(preferred).cast(pl.Int64, strict=False)
    raw = raw.with_columns(
        chosen=pl.when(picked == 0).then(first).when(picked == 1).then(second),
        rejected=pl.when(picked == 0).then(second).when(picked == 1).then(first),
    )
    undecided = ~picked.is_in([0, 1]).fill_null(False)
    reason = pl.when(raw.select(undecided).to_series()).then(pl.lit("no_preference"))
    return rows(raw, Columns(), path).with_columns(reason=pl.coalesce(reason, "reason"))
