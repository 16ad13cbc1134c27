"""What a method consists of: a name, a rule that plans its steps, one that builds datasets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from macpo_data.generation.context import Context, RoundData
from macpo_data.plan import Step
from macpo_data.recipe.draft import Draft
from macpo_data.recipe.recipe import Recipe


@dataclass(frozen=True)
class Method:
    """One way to make rounds. A file of this folder that has one as METHOD adds it.

    Paths are dotted, as `select.keep`.

    Example:
        METHOD = Method("mine", "by a student that reads its own answers backwards", plan, build)
    """

    name: str  # as `method` in a recipe has it
    by: str  # who makes its datasets and how, as the card goes on after "made round by round"
    plan: Callable[[Recipe], list[Step]]  # all steps up to the recipe's last round, parents first
    build: Callable[[Step, Context], RoundData]  # writes the dataset of one gen step
    in_recipes: bool = True  # whether a recipe may name it; else only steps beside others have it
    teachers: bool = True  # whether it needs any
    compares: bool = False  # whether it needs several answers of the student to a prompt
    needs: tuple[str, ...] = ()  # sections of the recipe without which it cannot be
    own: tuple[str, ...] = ()  # paths that no other method reads
    unread: tuple[str, ...] = ()  # paths that change nothing, and so are refused
    # What its paper trains with, where ours has it as a setting that may be another.
    paper: Mapping[str, Any] = field(default_factory=dict)
    rules: Callable[[Draft], Iterable[str]] = lambda draft: ()  # what else is wrong with a recipe
