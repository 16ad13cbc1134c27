"""SPIN: the student's own last answers are the rejected ones (Chen et al., ICML 2024).

The chosen ones are what it was fine-tuned on: here the weak labels, as noisy as in round 0. The
paper's opponent is the policy before, and so is its reference; its loss is the logistic one on
pairs alone: dpo.reference=previous, dpo.gamma=0, dpo.loss=sigmoid. `rules.departures` names what
is otherwise. From its second iteration on the paper also trains on the pairs of the one before:
spin.earlier_pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from macpo_data.generation import select
from macpo_data.generation.context import Context, RoundData
from macpo_data.methods.method import Method
from macpo_data.methods.steps import (
    CHOOSING,
    TEACHING,
    WRITING_READS,
    labels,
    prefer,
    switched_on,
    weak_start,
)
from macpo_data.plan import Policy, Step
from macpo_data.recipe.recipe import Recipe


def plan(recipe: Recipe) -> list[Step]:
    """The labelling teacher, then the student alone."""
    (student,), noise = recipe.students, switched_on(recipe, "data.label_noise")
    writers = labels(recipe) if noise else labels(recipe)[:1]
    steps = weak_start(recipe)
    for t in range(1, recipe.rounds + 1):
        opponents, reads = [Policy(student, "positive", t - 1)], (*WRITING_READS, *noise)
        if recipe.spin.earlier_pairs and t > 1:
            opponents, reads = [*opponents, Policy(student, "positive", t - 2)], (*reads, "spin")
        steps += prefer(recipe, student, t, 0, (*writers, *opponents), reads)
    return steps


def build(step: Step, ctx: Context) -> RoundData:
    """The weak label against the student's own answer, the newest opponent's pairs first."""
    writers = [policy for policy in step.policies if policy.agent != step.learner]
    opponents = _opponents(step)
    wrote = [ctx.chosen_labels(writers), *(ctx.generate([each], "d2") for each in opponents)]
    candidates, *rejected = ctx.score_together(wrote, under=opponents[0])
    settings = ctx.recipe.select
    return _together(
        [ctx.pair(select.first(candidates, each, settings), each) for each in rejected]
    )


def _opponents(step: Step) -> list[Policy]:
    """The learner as it is and, where the recipe wants its pairs too, as it was a round before."""
    return [policy for policy in step.policies if policy.agent == step.learner]


def _together(parts: Sequence[RoundData]) -> RoundData:
    """The pairs of all opponents. A label is one candidate, selected if any opponent left it."""
    newest, *_ = parts
    if len(parts) == 1:
        return newest
    order = newest.candidates.select("prompt_id")
    candidates = pl.concat(part.candidates for part in parts)
    candidates = candidates.sort("selected", descending=True, maintain_order=True)
    candidates = candidates.unique("prompt_id", keep="first", maintain_order=True)
    pairs = pl.concat(part.pairs for part in parts)
    return RoundData(
        order.join(pairs, on="prompt_id", maintain_order="left_right"),
        order.join(candidates, on="prompt_id", maintain_order="left"),
        pl.concat(part.dropped for part in parts).unique(maintain_order=True),
    )


METHOD = Method(
    "spin",
    "by a weak teacher, whose answers stand against the student's own (SPIN)",
    plan,
    build,
    own=("spin.earlier_pairs",),
    unread=(*CHOOSING, *TEACHING),
    paper={
        "dpo.reference": "previous",
        "dpo.gamma": 0.0,
        "dpo.loss": "sigmoid",
        "dpo.label_smoothing": 0.0,
    },
)
