"""RLCD: one model's answers under a good frame against those under a bad one (Yang et al. 2024).

The student itself writes both sides; it learns them without the frames. RLCD itself goes on from
these pairs to a preference model, and by PPO against that; here the pairs go into DPO, so that both
are left out.
"""

from __future__ import annotations

from macpo_data.generation import framing, select
from macpo_data.generation.context import Context, RoundData
from macpo_data.methods.method import Method
from macpo_data.methods.steps import CHOOSING, TEACHING, WRITING_READS, prefer, weak_start
from macpo_data.plan import Policy, Step
from macpo_data.recipe.recipe import Recipe


def plan(recipe: Recipe) -> list[Step]:
    """The labelling teacher, then the student alone."""
    (student,) = recipe.students
    steps = weak_start(recipe)
    for t in range(1, recipe.rounds + 1):
        before = Policy(student, "positive", t - 1)
        steps += prefer(recipe, student, t, 0, (before,), (*WRITING_READS, "framing"))
    return steps


def build(step: Step, ctx: Context) -> RoundData:
    """Nobody judges: the frame says which answer is the better one."""
    (student,) = step.policies
    frames = [framing.write(ctx, student, side) for side in ("positive", "negative")]
    candidates, rejected = ctx.score_together(frames, under=student)
    return ctx.pair(select.first(candidates, rejected, ctx.recipe.select), rejected)


METHOD = Method(
    "rlcd",
    "by a student that is told to answer well and badly: RLCD's pairs, without its reward model "
    "and PPO",
    plan,
    build,
    unread=(*CHOOSING, *TEACHING),
)
