"""SPIN: the student's own last answers are the rejected ones (Chen et al., ICML 2024).

The chosen ones are what it was fine-tuned on, here the weak labels. The paper's opponent is the
policy before, and so is its reference: set dpo.reference=previous and dpo.gamma=0 for its loss.
"""

from __future__ import annotations

from macpo_data import select
from macpo_data.context import Context, RoundData
from macpo_data.cost import Ask, Sizes, scoring, writing
from macpo_data.methods.steps import WRITING_READS, labels, prefer, weak_start
from macpo_data.plan import Policy, Step
from macpo_data.recipe import Recipe


def plan(recipe: Recipe) -> list[Step]:
    """The labelling teacher, then the student alone."""
    (student,), (label, _) = recipe.students, labels(recipe)
    steps = weak_start(recipe)
    for t in range(1, recipe.rounds + 1):
        before = Policy(student, "positive", t - 1)
        steps += prefer(recipe, student, t, 0, (label, before), WRITING_READS)
    return steps


def build(step: Step, ctx: Context) -> RoundData:
    """The weak label against the student's own answer."""
    label, student = step.policies
    frames = [ctx.generate([policy], "d2") for policy in (label, student)]
    candidates, rejected = ctx.score_together(frames, under=student)
    return ctx.pair(select.first(candidates, rejected, ctx.recipe.select), rejected)


def asks(step: Step, recipe: Recipe, sizes: Sizes) -> list[Ask]:
    """The student writes once to D2, and reads both answers."""
    d2, student = sizes.prompts["d2"], step.learner
    wrote = writing("write d2", [student], d2, 1, sizes.prompt, recipe.sampling, sizes)
    return [*wrote, scoring(student, d2, 2, recipe, sizes)]
