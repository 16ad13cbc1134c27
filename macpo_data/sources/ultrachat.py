"""UltraChat: whole conversations, of which the last answer is the chosen one; none is rejected."""

from __future__ import annotations

import polars as pl

from macpo_data.recipe.data import Columns, FileData, More
from macpo_data.sources.rows import messages, need, rows


def read(raw: pl.DataFrame, settings: FileData | More, path: str) -> pl.DataFrame:
    """The rows: the conversation without its last answer, which is what a human would prefer."""
    need(raw, ["messages"], path)
    turns = messages(raw, "messages", "user", path)
    ends = pl.col("messages").list.last().struct
    answered = pl.col("messages").list.len() - (ends.field("role") == "assistant").cast(pl.UInt32)
    raw = pl.DataFrame({"messages": turns}).select(
        prompt=pl.col("messages").list.head(answered),
        chosen=pl.when(ends.field("role") == "assistant").then(ends.field("content")),
    )
    return rows(raw, Columns(rejected=None), path)
