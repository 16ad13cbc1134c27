"""Delta learning: a weak model's answers against a weaker one's (arXiv 2507.06187).

From the paper: both write to the same prompts, who wrote says which answer is the better one, and a
stronger model learns the pairs by DPO, once. So nobody judges an answer, and the chosen one need
not be as good as the student's own: what it learns is the difference.

Ours, so that it can be compared with the other methods: the student is the one of round 0, who was
fine-tuned on the labelling teacher's answers; the writers are teachers as fine-tuned in round 0,
and a person says which is the better one (`delta`); `select` filters the chosen answers; the loss
is the recipe's, which is DPO's own only where `dpo.loss` is sigmoid and `dpo.gamma` 0.
"""

from __future__ import annotations

from collections.abc import Iterator

from macpo_data.generation import select
from macpo_data.generation.context import Context, RoundData
from macpo_data.methods.method import Method
from macpo_data.methods.steps import (
    CHOOSING,
    TEACHING,
    WRITING_READS,
    initialise,
    labels,
    prefer,
    weak_start,
)
from macpo_data.plan import Policy, Step
from macpo_data.recipe.draft import Draft
from macpo_data.recipe.recipe import Recipe


def plan(recipe: Recipe) -> list[Step]:
    """Round 0 of the two writers, the labelling teacher and the student; then the pairs."""
    (student,), (label, _), pair = recipe.students, labels(recipe), recipe.delta
    assert pair is not None
    steps = []
    for teacher in recipe.teachers:
        if teacher in (pair.chosen, pair.rejected) and teacher != label.agent:
            steps += initialise(recipe, teacher, 0, ())[:2]  # it writes no rejected label
    steps += weak_start(recipe)
    if recipe.rounds:
        names = (pair.chosen, pair.rejected, student)
        policies = tuple(Policy(name, "positive", 0) for name in names)
        steps += prefer(recipe, student, 1, 0, policies, WRITING_READS)
    return steps


def build(step: Step, ctx: Context) -> RoundData:
    """Nobody judges: the writer says which answer is the better one."""
    *writers, student = step.policies
    wrote = [ctx.generate([writer], "d2") for writer in writers]
    candidates, rejected = ctx.score_together(wrote, under=student)
    return ctx.pair(select.first(candidates, rejected, ctx.recipe.select), rejected)


def rules(draft: Draft) -> Iterator[str]:
    """Why two teachers who write the pairs would not be known."""
    if draft.values.get("delta") is None:
        yield "delta: missing; method delta needs it: {chosen: TEACHER, rejected: TEACHER}"
        return
    sides = {side: draft.read("delta", side) for side in ("chosen", "rejected")}
    if sides["chosen"] is not None and sides["chosen"] == sides["rejected"]:
        yield f"delta: chosen and rejected are both {sides['chosen']}; name two teachers"
        return
    for side, name in sides.items():
        if name is not None and name not in draft.teachers:
            yield draft.no_teacher(f"delta.{side}", name)


METHOD = Method(
    "delta",
    "by two weak teachers, the better one's answers against the other's (delta learning)",
    plan,
    build,
    own=("delta",),
    unread=(*CHOOSING, *TEACHING, "stop"),
    rules=rules,
)
