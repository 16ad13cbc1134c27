"""Which rows are usable; each unusable one gets the first reason that applies."""

from __future__ import annotations

import polars as pl

from macpo_data.schema import Part
from macpo_data.sources.ingest.detect import FORMS_WITH_SIDES, Form, Layout
from macpo_data.sources.ingest.door import Rows
from macpo_data.sources.ingest.hints import Option, naming


def other_kind(layout: Layout, objective: str) -> str | None:
    """Why an objective wants data of another kind; None where these will do."""
    if objective != "dpo" or layout.form in FORMS_WITH_SIDES:
        return None
    also = "; --set objective=sft trains on its answers" if layout.chosen else ""
    if named := answers_named(layout):
        also = f"; {named}"
    return f"is {layout.form}; DPO wants a chosen and a rejected answer{also}"


def answers_named(layout: Layout) -> str | None:
    """What to say where prompts stand alone, but beside columns that may hold their answers."""
    if layout.form is not Form.PROMPTS or len(layout.kinds) < 3:
        return None
    return f"where its answers have columns, {naming(layout.kinds, Option.COMMAND)}"


def why_none(rows: Rows) -> str | None:
    """Why no row can be trained on, once all were read; None where one can."""
    if rows.account.used:
        return None
    return f"no usable row among {rows.account.rows}: {rows.account.why_nothing()}"


def with_reasons(rows: pl.DataFrame, max_chars: int | None) -> pl.DataFrame:
    """Give a reason to each row whose prompt is too long, or came before.

    Args:
        rows: (prompt, prompt_id, reason), the reason as far as one is known.
        max_chars: of a prompt, all its turns together; None for any number.
    """
    chars = pl.col("prompt").list.eval(pl.element().struct.field("content").str.len_chars())
    long = pl.col("reason").is_null() & (chars.list.sum() > pl.lit(max_chars, dtype=pl.Int64))
    reason = pl.when(long).then(pl.lit("too_long")).otherwise("reason")
    # Twins among the usable only: a broken row must not cost a whole one its place.
    rows = rows.with_columns(reason=reason)
    rows = rows.with_columns(prompt_id=pl.when(pl.col("reason").is_null()).then("prompt_id"))
    twin = pl.col("prompt_id").is_not_null() & ~pl.col("prompt_id").is_first_distinct()
    return rows.with_columns(
        reason=pl.when(twin).then(pl.lit("duplicate_prompt")).otherwise("reason")
    )


def usable(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows without a reason."""
    return rows.filter(pl.col("reason").is_null())


def put_aside(rows: pl.DataFrame, part: Part) -> pl.DataFrame:
    """The rows with a reason, as UNUSABLE under the part that looked at them."""
    return rows.drop_nulls("reason").select(pl.lit(part).alias("part"), "row", "reason", "text")
