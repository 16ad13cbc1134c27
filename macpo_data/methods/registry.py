"""All methods by name, and the plan that a recipe's method makes."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

import macpo_data.methods as folder
from macpo_data.methods import ceiling
from macpo_data.methods.method import Method
from macpo_data.plan import Plan, Step
from macpo_data.recipe.evaluation import TRAINED
from macpo_data.recipe.recipe import Recipe

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


@cache
def methods() -> dict[str, Method]:
    """All methods by name: those of the files of this folder."""
    files = [module.name for module in iter_modules(folder.__path__) if module.name != "registry"]
    modules = [import_module(f"{folder.__name__}.{name}") for name in files]
    defined = [module.METHOD for module in modules if hasattr(module, "METHOD")]
    return {method.name: method for method in defined}


def names() -> list[str]:
    """The methods that a recipe may name."""
    return sorted(method.name for method in methods().values() if method.in_recipes)


def method(recipe: Recipe, step: Step | None = None) -> Method:
    """The method that a recipe names, or whose rule a step follows."""
    return methods()[(step and step.method) or recipe.method]


def reads_own_reward(recipe: Recipe) -> bool:
    """Whether anything is judged or measured by the reward model that the run itself trains."""
    judges = [recipe.judge, recipe.eval.judge]
    models = [recipe.eval.reward, *(judge.reward for judge in judges if judge)]
    return any(model is not None and model.model == TRAINED for model in models)


def make_plan(recipe: Recipe) -> Plan:
    """The plan of a recipe: its method's steps, and in round 0 those that stand beside them.

    First its own reward model where one is asked for, at the end of the round the ceiling.
    """
    steps = method(recipe).plan(recipe)
    if reads_own_reward(recipe):
        (student,) = recipe.students
        steps = [Step("train", 0, 0, student, "reward", "reward"), *steps]
    if recipe.eval.ceiling:
        later = [step for step in steps if step.round]
        steps = [*(step for step in steps if not step.round), *ceiling.plan(recipe), *later]
    return Plan(recipe, steps)
