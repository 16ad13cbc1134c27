"""Naive weak-to-strong fine-tuning: the student imitates a weak teacher.

Every round is one more fine-tuning on the same labels. With a section `confidence` in the recipe
the student also learns from its own confident predictions (Burns et al. 2023).
"""

from __future__ import annotations

from dataclasses import replace

from macpo_data.methods import macpo
from macpo_data.methods.method import Method
from macpo_data.methods.steps import CHOOSING, TEACHING, initialise, labels, weak_start
from macpo_data.plan import Policy, Step
from macpo_data.recipe.recipe import Recipe


def plan(recipe: Recipe) -> list[Step]:
    """The labelling teacher, then the student alone."""
    (student,) = recipe.students
    steps = weak_start(recipe)
    gen, train, _ = initialise(recipe, student, 1, labels(recipe))
    for t in range(1, recipe.rounds + 1):
        before = Policy(student, "positive", t - 1)
        steps += [
            replace(gen, round=t, turn=0, method="weak_labels"),
            replace(train, round=t, turn=0, policies=(before,), method="weak_labels"),
        ]
    return steps


build = macpo.weak_labels  # those of round 0, once more


METHOD = Method(
    "weak_labels",
    "by a weak teacher, whose answers the student imitates",
    plan,
    build,
    unread=(*CHOOSING, *TEACHING, "stop"),
)
