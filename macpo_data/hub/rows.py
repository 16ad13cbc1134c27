"""A dataset's pairs as rows with all metadata, from which every published format is made."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from macpo_data.plan import Plan, Step
from macpo_data.schema import Message, prompt_id
from macpo_data.store.store import Store

Turn = tuple[str, str | None]  # prompt_id, and an answer to it; None for any


def published(pairs: pl.DataFrame, step: Step, writers: pl.DataFrame) -> pl.DataFrame:
    """PAIRS as PUBLISHED: each side with its writer's models.

    Args:
        pairs: some of a dataset's.
        step: the gen step that made it.
        writers: every policy, as `provenance.writers` gives them.
    """
    for side in ("chosen", "rejected"):
        origin = writers.rename({c: f"{side}_{c}" for c in writers.columns})
        pairs = pairs.join(origin, on=f"{side}_policy", how="left", maintain_order="left")
    return pairs.with_columns(
        round=pl.lit(step.round, pl.Int64),
        learner=pl.lit(step.learner),
        chosen_text="chosen",
        rejected_text="rejected",
        chosen=pl.concat_list(_answer("chosen")),
        rejected=pl.concat_list(_answer("rejected")),
    )


def completions(rows: pl.DataFrame) -> pl.DataFrame:
    """PUBLISHED as PUBLISHED_SFT: the chosen side is the completion."""
    sides = {c: f"completion{c[6:]}" for c in rows.columns if c.startswith("chosen")}
    return rows.rename(sides)


def whole(pairs: pl.DataFrame, inner: pl.Series, left_out: set[Turn]) -> pl.Series:
    """Row for row whether it is the last turn of a conversation of which every turn may be learned.

    Args:
        pairs: prompt and chosen.
        inner: conversations on which another row goes on, as `gone_on_from` gives them.
        left_out: turns that may not be learned.
    """
    fit = [not _holds(prompt, left_out) for prompt in pairs["prompt"].to_list()]
    messages = pl.col("prompt").list.concat(pl.concat_list(_answer("chosen")))
    ends = pairs.select(~_key(messages).is_in(inner.implode())).to_series()
    return ends & pl.Series(fit, dtype=pl.Boolean)


def left_out(dropped: pl.DataFrame) -> set[Turn]:
    """Turns that may not be learned: with this answer, or where there is none, with any."""
    kept_once = pl.col("reason") == "duplicate_answer"
    return set(dropped.filter(~kept_once).select("prompt_id", "response").iter_rows())


def gone_on_from(path: Path) -> pl.Series:
    """The conversations on which another row's prompt goes on, as hashes: 8 bytes a row."""
    before = pl.col("prompt").list.head(pl.col("prompt").list.len() - 1)
    longer = pl.scan_parquet(path).filter(pl.col("prompt").list.len() > 1)
    return longer.select(_key(before)).unique().collect().to_series()


def asked(plan: Plan, store: Store, name: str) -> pl.DataFrame:
    """(prompt_id, prompt) of everything that a dataset's candidates answer."""
    if "turns.parquet" in store.verify(name, "pairs.parquet")["files"]:
        return store.read(name, "turns.parquet")
    columns = ["prompt_id", "prompt"]
    paired = pl.read_parquet(store.path(name) / "pairs.parquet", columns=columns)
    others = store.read(plan.prompts_name, "d2.parquet").select(columns)
    return pl.concat([paired, others]).unique("prompt_id")


def _holds(prompt: list[Message], turns: set[Turn]) -> bool:
    """Whether an answer inside a conversation is one of those."""
    own = [
        (prompt_id(prompt[:n]), message["content"])
        for n, message in enumerate(prompt)
        if message["role"] == "assistant"
    ]
    return any((key, answer) in turns or (key, None) in turns for key, answer in own)


def _key(messages: pl.Expr) -> pl.Expr:
    turn = pl.element().struct
    each = messages.list.eval(pl.concat_str(turn.field("role"), pl.lit(" "), turn.field("content")))
    return each.list.join("\x1e").hash()


def _answer(side: str) -> pl.Expr:
    return pl.struct(role=pl.lit("assistant"), content=pl.col(side))
