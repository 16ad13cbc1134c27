"""A method is a module with three functions.

plan(recipe) -> list[Step]              pure: learners, turns, inputs, objectives
build(step, ctx) -> RoundData           reads like the paper's algorithm
asks(step, recipe, sizes) -> list[Ask]  what `build` will ask for, for the plan of costs
"""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

from macpo_data.generation.context import Context, RoundData
from macpo_data.generation.cost import Ask, Sizes
from macpo_data.methods import ceiling
from macpo_data.plan import Plan, Step
from macpo_data.recipe import Recipe

SHARPENING = "sharpening (own likelihood)"


def called(method: str, judge: str | None) -> str:
    """What a method with a judge of some kind is called where people read it.

    Its key, except that self-rewarding by the student's own likelihood, without a judgement in
    words, is known as sharpening (Huang et al., ICLR 2025).
    """
    return SHARPENING if (method, judge) == ("self_rewarding", "likelihood") else method


def name_of(recipe: Recipe) -> str:
    """What a recipe's method is called where people read it."""
    return called(recipe.method, recipe.judge.kind if recipe.judge else None)


class Method(Protocol):
    """What a method's module offers."""

    def plan(self, recipe: Recipe) -> list[Step]:
        """All steps up to the recipe's last round, parents first."""

    def build(self, step: Step, ctx: Context) -> RoundData:
        """Write the dataset of one gen step."""

    def asks(self, step: Step, recipe: Recipe, sizes: Sizes) -> list[Ask]:
        """What `build` asks of the models, if nothing of it is there yet."""


def method(recipe: Recipe, step: Step | None = None) -> Method:
    """The method that a recipe names, or whose rule a step follows."""
    name = (step and step.method) or recipe.method
    return cast(Method, import_module(f"macpo_data.methods.{name}"))


def make_plan(recipe: Recipe) -> Plan:
    """The plan of a recipe: its method's steps, and at the end of round 0 the ceiling's."""
    steps = method(recipe).plan(recipe)
    if recipe.eval.ceiling:
        later = [step for step in steps if step.round]
        steps = [*(step for step in steps if not step.round), *ceiling.plan(recipe), *later]
    return Plan(recipe, steps)
