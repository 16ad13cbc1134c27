"""Runs one gen step: builds the method's dataset, and stores it with its signs of failure."""

from __future__ import annotations

from typing import Any

import polars as pl

from macpo_data.errors import DataError
from macpo_data.generation.context import RoundData
from macpo_data.methods import ceiling
from macpo_data.methods.registry import method
from macpo_data.plan import Policy, Step
from macpo_data.signs.dataset import of_dataset
from macpo_data.signs.rules import Signs
from macpo_data.store.store import inputs, write_parquet
from macpo_run.session import Session
from macpo_run.step_facts import signs_of, step_facts


def write(run: Session, step: Step, redo: bool) -> None:
    """Build the dataset of a gen step as the method says, write it, seal it.

    Raises:
        DataError: no pair is left.
    """
    name, context = run.plan.name(step), run.context(redo)
    context.prompts("d1")
    if step.round == 0 and run.recipe.eval.ceiling:
        ceiling.require(context)
    made_from = inputs(run.plan, run.store, step)
    data = method(run.recipe, step).build(step, context)
    if data.pairs.is_empty():
        raise DataError(
            f"{step}: no pair is left, dropped by reason: "
            f"{summary(data)['dropped_by_reason']}; loosen the filters under `select`, or set "
            "select.on_filter=count"
        )
    folder = run.store.clear(name)
    write_parquet(folder / "pairs.parquet", data.pairs)
    write_parquet(folder / "candidates.parquet", data.candidates)
    write_parquet(folder / "dropped.parquet", data.dropped)
    if data.turns is not None:
        write_parquet(folder / "turns.parquet", data.turns)
    facts = step_facts(run.plan, step, made_from | context.used)
    if data.judged is not None:
        write_parquet(folder / "judgements.parquet", data.judged.judgements)
        facts["judged"] = data.judged.report
    # The pairs' scores are the learner's; who ranked candidates besides has none in them.
    learner = str(Policy(step.learner, "positive", step.round - 1))
    scored_under = {k: v for k, v in context.scored_under.items() if k == learner}
    facts |= {"summary": summary(data), "scored_under": scored_under}
    before, first = _signs(run, step, step.round - 1), _signs(run, step, 1)
    facts["signs"] = of_dataset(data.pairs, data.candidates, before, first)
    facts["seconds"] = context.seconds
    run.store.finish(name, facts)


def _signs(run: Session, step: Step, round_: int) -> Signs:
    """Those of the same learner's dataset in an earlier round that contrasts, if it has one."""
    earlier = run.plan.earlier(step, round_) if round_ > 0 else None
    return signs_of(run.plan, run.store, earlier)


def summary(data: RoundData) -> dict[str, Any]:
    """Counts and means that say at a glance what a dataset is."""
    pairs = data.pairs

    def counts(frame: pl.DataFrame, column: str) -> dict[str, int]:
        return dict(frame[column].drop_nulls().value_counts().sort(column).iter_rows())

    def mean(expression: pl.Expr) -> float | None:
        value = pairs.select(expression.mean()).item()
        return None if value is None else round(float(value), 4)

    return {
        "pairs": len(pairs),
        "prompts": pl.concat(
            frame["prompt_id"] for frame in (pairs, data.candidates, data.dropped)
        ).n_unique(),
        "candidates": len(data.candidates),
        "caught_by_reason": counts(data.candidates, "reason"),
        "dropped_by_reason": counts(data.dropped, "reason"),
        "chosen_by_agent": counts(pairs, "chosen_agent"),
        "chosen_chars": mean(pl.col("chosen").str.len_chars()),
        "rejected_chars": mean(pl.col("rejected").str.len_chars()),
        "chosen_perplexity": mean(pl.col("chosen_perplexity")),
        "rejected_perplexity": mean(pl.col("rejected_perplexity")),
    }
