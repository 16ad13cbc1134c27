"""Scores of a dataset's answers under a fixed reference policy, cached across rounds."""

from __future__ import annotations

import json

import polars as pl

from macpo_data.generation.run_context import RunContext
from macpo_data.plan import Policy
from macpo_data.recipe.section import digest
from macpo_data.schema import SCORES
from macpo_data.store.store import write_parquet

_KEY = ["prompt_id", "response", "finish_reason"]


def score_pairs(ctx: RunContext, reference: Policy, pairs: pl.DataFrame) -> pl.DataFrame:
    """Put the reference's scores in the place of the learner's.

    Args:
        ctx: of the run.
        reference: a trained policy.
        pairs: PAIRS.

    Returns:
        PAIRS, and a column `scored_under`: what these scores depend on, as JSON.
    """
    texts = pl.concat(
        pairs.select(
            "prompt_id", "prompt", response=side, finish_reason=f"{side}_finish_reason"
        ).drop_nulls("response")
        for side in ("chosen", "rejected")
    ).unique(_KEY, maintain_order=True)
    maker = ctx.plan.maker(reference)
    adapter = maker and ctx.store.content(ctx.plan.name(maker))
    voice = [ctx.plan.policy_fingerprint(reference), adapter, ctx.recipe.read("engine")]
    path = ctx.store.path(f"reference/{reference}-{digest(voice)}.parquet")
    stored = pl.read_parquet(path) if path.is_file() else None
    new = (
        texts if stored is None else texts.join(stored, on=_KEY, how="anti", maintain_order="left")
    )
    if len(new):
        scored = ctx.score(new, under=reference)
        scored_under = json.dumps(ctx.scored_under[str(reference)], sort_keys=True)
        fresh = scored.select(*_KEY, *SCORES, scored_under=pl.lit(scored_under))
        if stored is not None and set(stored["scored_under"]) != {scored_under}:
            stored = None  # of other numbers or another template: scored anew below
        stored = fresh if stored is None else pl.concat([stored, fresh])
        write_parquet(path, stored)
        if len(texts.join(stored, on=_KEY, how="anti")):
            return score_pairs(ctx, reference, pairs)
    assert stored is not None
    for side in ("chosen", "rejected"):
        names = {"response": side, "finish_reason": f"{side}_finish_reason"}
        scores = stored.drop("scored_under").rename(names | {n: f"{side}_{n}" for n in SCORES})
        key = ["prompt_id", *names.values()]
        pairs = pairs.drop(f"{side}_{name}" for name in SCORES).join(
            scores, on=key, how="left", maintain_order="left"
        )
    return pairs.with_columns(scored_under=pl.lit(stored["scored_under"][0]))
