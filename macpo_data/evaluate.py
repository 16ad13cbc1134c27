"""Scores of held-out prompts per policy and round, by the source's own gold judge."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from macpo_data import world
from macpo_data.context import Context
from macpo_data.errors import StoreError
from macpo_data.plan import Plan, Policy
from macpo_data.recipe import digest
from macpo_data.store import write_parquet


def gold_table(ctx: Context, last: int) -> tuple[pl.DataFrame, Path]:
    """Sample every trained policy up to a round on the test prompts and let the gold judge score.

    Returns:
        One row per policy (agent, behavior, round, mean, stderr, chars, responses), and the path
        of the table; beside it lie the responses with their scores.
    """
    policies = [
        policy
        for step in ctx.plan.steps
        if (policy := step.makes) and step.round <= last and ctx.store.is_done(ctx.plan.name(step))
    ]
    name = gold_name(ctx.plan, policies)
    scored = _score(ctx, policies)
    with ctx.store.lock(name):
        if not _is_fresh(ctx, name):
            ctx.store.aside(name)
            folder = ctx.store.clear(name)
            write_parquet(folder / "responses.parquet", scored)
            write_parquet(folder / "table.parquet", _means(scored))
            facts = {"kind": "eval", "policies": [str(p) for p in policies], "inputs": ctx.used}
            ctx.store.finish(name, facts)
    return ctx.store.read(name, "table.parquet"), ctx.store.path(name) / "table.parquet"


def _is_fresh(ctx: Context, name: str) -> bool:
    """Whether the table is there, whole, and made from these samples."""
    try:
        return ctx.store.is_done(name) and ctx.store.verify(name)["inputs"] == ctx.used
    except StoreError:
        return False


def gold_name(plan: Plan, policies: list[Policy]) -> str:
    """The folder of the scores of these policies inside the run."""
    return f"eval/{digest([plan.sample_fingerprint(policy, 'test', '0') for policy in policies])}"


def _score(ctx: Context, policies: list[Policy]) -> pl.DataFrame:
    prompts = ctx.prompts("test")
    asked = dict(zip(prompts["prompt_id"], prompts["prompt"].to_list(), strict=True))
    samples = ctx.generate(policies, "test")
    rows = [
        world.gold(asked[prompt_id], response or "").score
        for prompt_id, response in samples.select("prompt_id", "response").iter_rows()
    ]
    names = {ctx.plan.policy_fingerprint(p): p for p in policies}
    return samples.with_columns(
        gold=pl.Series(rows, dtype=pl.Float64),
        behavior=pl.Series([names[f].behavior for f in samples["policy"]]),
        round=pl.Series([names[f].round for f in samples["policy"]]),
    )


def _means(scored: pl.DataFrame) -> pl.DataFrame:
    return scored.group_by("agent", "behavior", "round", maintain_order=True).agg(
        mean=pl.col("gold").mean(),
        stderr=pl.col("gold").std() / pl.len().sqrt(),
        chars=pl.col("response").str.len_chars().mean(),
        responses=pl.len(),
    )
