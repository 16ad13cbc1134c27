"""Which rows are usable; each unusable one gets the first reason that applies."""

from __future__ import annotations

import polars as pl

from macpo_data import schema
from macpo_data.schema import Part

TEXT_CHARS = 300  # of a row put aside


def with_reasons(rows: pl.DataFrame, max_chars: int | None) -> pl.DataFrame:
    """Give each row its prompt_id and, if it cannot be used, the first reason that applies.

    Args:
        rows: (prompt, chosen, rejected, reason), the reason as far as the source knows one.
        max_chars: of a prompt, all its turns together; None for any number.
    """
    turn = pl.element().struct
    contents = pl.col("prompt").list.eval(turn.field("content"))
    letters = {"system": "s", "user": "u", "assistant": "a"}
    roles = pl.col("prompt").list.eval(turn.field("role").replace_strict(letters, default="?"))
    chars = contents.list.eval(pl.element().str.len_chars()).list.sum()
    empty_turn = contents.list.eval(pl.element() == "").list.any()
    reasons = {
        "prompt_differs": pl.col("reason") == "prompt_differs",
        "empty_prompt": (pl.col("prompt").list.len().fill_null(0) == 0) | empty_turn,
        "no_preference": pl.col("reason") == "no_preference",
        "empty_chosen": pl.col("chosen") == "",
        "empty_rejected": pl.col("rejected") == "",
        "same_sides": pl.col("chosen") == pl.col("rejected"),
        "not_alternating": (pl.col("reason") == "not_alternating")
        | ~roles.list.join("").str.contains(r"^s?(ua)*u$"),
        "too_long": chars > pl.lit(max_chars, dtype=pl.Int64),
    }
    first = [pl.when(holds).then(pl.lit(reason)) for reason, holds in reasons.items()]
    return _without_duplicates(rows.with_columns(reason=pl.coalesce(first)))


def _without_duplicates(rows: pl.DataFrame) -> pl.DataFrame:
    """Give each usable row its prompt_id, and a reason to one whose prompt came before."""
    # Twins among the usable only: a broken row must not cost a whole one its place.
    ids = [
        None if reason else schema.prompt_id(prompt)
        for prompt, reason in zip(rows["prompt"].to_list(), rows["reason"], strict=True)
    ]
    rows = rows.with_columns(prompt_id=pl.Series(ids, dtype=pl.String))
    twin = pl.col("prompt_id").is_not_null() & ~pl.col("prompt_id").is_first_distinct()
    return rows.with_columns(
        reason=pl.when(twin).then(pl.lit("duplicate_prompt")).otherwise("reason")
    )


def usable(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows without a reason."""
    return rows.filter(pl.col("reason").is_null())


def put_aside(rows: pl.DataFrame, part: Part) -> pl.DataFrame:
    """The rows with a reason, as UNUSABLE under the part that looked at them."""
    row = pl.struct("prompt", "chosen", "rejected").struct.json_encode().str.head(TEXT_CHARS)
    return rows.drop_nulls("reason").select(pl.lit(part).alias("part"), "row", "reason", text=row)
