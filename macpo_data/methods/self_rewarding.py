"""Self-rewarding: the student judges its own answers, and is the judge it has become (Yuan 2024).

The best of n against the worst. With judge.kind points the student gives each answer points, as in
the paper, by a prompt of ours; with llm it compares pairs. With likelihood the best is the one that
it finds likeliest, which needs no instructions: that is no judgement but sharpening (Huang et al.,
ICLR 2025), and is called so wherever it is shown.
"""

from __future__ import annotations

from collections.abc import Iterator

from macpo_data.generation.context import Context, RoundData
from macpo_data.methods import moaa
from macpo_data.methods.method import Method
from macpo_data.methods.steps import CHOOSING, TEACHING, weak_start
from macpo_data.plan import Step
from macpo_data.recipe.draft import Draft
from macpo_data.recipe.recipe import Recipe


def plan(recipe: Recipe) -> list[Step]:
    """The labelling teacher, then the student alone."""
    return [*weak_start(recipe), *moaa.preferring(recipe, ())]


def build(step: Step, ctx: Context) -> RoundData:
    """As in MoAA's second stage, with the student of the round before as the judge."""
    ctx.speakers[step.learner] = step.policies[0]
    return moaa.preferences(step, ctx)


def rules(draft: Draft) -> Iterator[str]:
    """Nobody but the student judges."""
    if len(draft.students) != 1:
        return
    (student,) = draft.students
    if draft.read("judge", "agent", student) != student:
        yield f"judge.agent: in method self_rewarding the student judges: {student}"
    kinds = ("points", "llm", "likelihood")
    if draft.read("judge", "kind", "llm") not in kinds:
        yield f"judge.kind: in method self_rewarding the student judges: one of {', '.join(kinds)}"


METHOD = Method(
    "self_rewarding",
    "by a student that judges its own answers (self-rewarding)",
    plan,
    build,
    compares=True,
    needs=("judge",),
    unread=(*CHOOSING, *TEACHING),
    rules=rules,
)
