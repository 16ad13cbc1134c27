"""RLAIF: another model judges the student's own answers (Bai et al. 2022, Lee et al. 2024).

As direct alignment: the best against the worst goes into DPO, and no reward model in between.
"""

from __future__ import annotations

from macpo_data.generation import judge as judges
from macpo_data.methods import moaa
from macpo_data.methods.method import Method
from macpo_data.methods.steps import CHOOSING, TEACHING, weak_start
from macpo_data.plan import Step
from macpo_data.recipe.recipe import Recipe


def plan(recipe: Recipe) -> list[Step]:
    """The labelling teacher, then the student alone."""
    return [*weak_start(recipe), *moaa.preferring(recipe, judges.policies(recipe.judge))]


build = moaa.preferences  # as in MoAA's second stage


METHOD = Method(
    "rlaif",
    "by a student whose answers a judge compares (RLAIF)",
    plan,
    build,
    compares=True,
    needs=("judge",),
    unread=(*CHOOSING, *TEACHING),
)
