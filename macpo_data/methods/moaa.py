"""MoAA: a mixture of agents writes the SFT data, a judge the DPO pairs (Wang et al., ICML 2025).

Round 0 fine-tunes the student on what the mixture wrote to D1. From round 1 on the student answers
D2 several times, and learns the best of its answers against the worst, as the judge ranks them.
"""

from __future__ import annotations

import polars as pl

from macpo_data.generation import judge as judges
from macpo_data.generation import mixture as mixtures
from macpo_data.generation import ranking, select
from macpo_data.generation.context import Context, RoundData
from macpo_data.methods.method import Method
from macpo_data.methods.steps import (
    CHOOSING,
    EXCLUDE_READS,
    FILTER_READS,
    SAMPLING_READS,
    SFT_READS,
    TEACHING,
    own_training,
    prefer,
)
from macpo_data.plan import Policy, Step
from macpo_data.recipe.recipe import Recipe
from macpo_data.schema import CANDIDATES, SCORES, check


def plan(recipe: Recipe) -> list[Step]:
    """The student alone learns, once in each round."""
    (student,) = recipe.students
    judge_policies = judges.policies(recipe.judge)
    writers = mixtures.policies(recipe.mixture)
    filters = (*FILTER_READS, *EXCLUDE_READS) if recipe.select.excludes else FILTER_READS
    reads: tuple[str, ...] = ("seed", "engine", "mixture", *filters)
    if recipe.mixture and recipe.mixture.keep == "best":
        writers, reads = (*writers, *judge_policies), (*reads, "judge")
    start = Policy(student)
    steps = [
        Step("gen", 0, 0, student, policies=writers, reads=reads),
        Step(
            "train",
            0,
            0,
            student,
            objective="sft_chosen",
            policies=(start,),
            reads=(*SFT_READS, *own_training(recipe, student), "sft"),
        ),
    ]
    return steps + preferring(recipe, judge_policies)


def preferring(recipe: Recipe, judge_policies: tuple[Policy, ...]) -> list[Step]:
    """From round 1 on: the student's own answers, ranked by the judge; then DPO."""
    (student,) = recipe.students
    filters = (*FILTER_READS, *EXCLUDE_READS) if recipe.select.excludes else FILTER_READS
    reads = ("seed", "engine", *SAMPLING_READS, "sampling.n", "judge", *filters)
    steps = []
    for t in range(1, recipe.rounds + 1):
        before = Policy(student, "positive", t - 1)
        steps += prefer(recipe, student, t, 0, (before, *judge_policies), reads)
    return steps


def build(step: Step, ctx: Context) -> RoundData:
    """Write the student's dataset of one round."""
    return _fine_tuning(ctx) if step.round == 0 else preferences(step, ctx)


def _fine_tuning(ctx: Context) -> RoundData:
    """Stage 1: what the mixture answers to each turn of each conversation."""
    mixture, settings = ctx.recipe.mixture, ctx.recipe.select
    assert mixture is not None
    barred = ctx.barred("d1")
    prompts = ctx.prompts("d1").join(barred, on="prompt_id", how="anti", maintain_order="left")
    turns, answers = mixtures.write(ctx, mixture, prompts)
    held_out = ctx.barred("d1", turns)
    used = answers.filter(pl.col("layer") == mixtures.taken(mixture))
    used = used.join(held_out, on="prompt_id", how="anti", maintain_order="left")
    candidates = select.competing(used, settings)
    orders: dict[str, ranking.Order] = {"best": "judge", "random": "random"}
    order = orders.get(mixture.keep, "first")
    ranked, judged = judges.rank(ctx, order, turns, candidates)
    candidates = select.top(ranked, len(mixture.layers[0]) if mixture.keep == "all" else 1)
    pairs, dropped = select.targets(turns, candidates)
    candidates = check(candidates, CANDIDATES, "candidates")
    left_out = select.left_out(pl.concat([barred, held_out]))
    return RoundData(pairs, candidates, pl.concat([dropped, left_out]), judged, turns)


def preferences(step: Step, ctx: Context) -> RoundData:
    """Stage 2: the best of the student's own answers against the worst."""
    student = step.policies[0]
    samples = ctx.generate([student], "d2", n=ctx.recipe.sampling.n)
    candidates = select.exclude(select.competing(samples, ctx.recipe.select), ctx.barred("d2"))
    ranked, judged = judges.rank(ctx, "judge", ctx.prompts("d2"), candidates)
    ranked = select.best_and_worst(ranked)
    # Perplexities of what is learned, which training then need not compute again.
    ends = ranked.filter(pl.col("selected") | pl.col("rejected")).drop(SCORES)
    scored = ctx.score(ends, under=student)
    key = ["prompt_id", "agent", "draw"]
    candidates = ranked.drop(SCORES).join(
        scored.select(*key, *SCORES), on=key, how="left", maintain_order="left"
    )
    pairs, dropped = select.pair(ctx.prompts("d2"), candidates, scored.filter("rejected"))
    return RoundData(pairs, check(candidates, CANDIDATES, "candidates"), dropped, judged)


METHOD = Method(
    "moaa",
    "by a mixture of agents, which writes the fine-tuning data of round 0, and a judge who "
    "compares the student's own answers from round 1 on (MoAA)",
    plan,
    build,
    teachers=False,
    compares=True,
    needs=("mixture", "judge"),
    unread=(*CHOOSING, *TEACHING[:-1], "confidence", "data.label_noise", "stop"),
)
