"""What a method is: a name, a rule that plans its steps, and one that builds their datasets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from macpo_data.generation.context import Context, RoundData
from macpo_data.plan import Step
from macpo_data.recipe import Recipe


@dataclass(frozen=True)
class Method:
    """One way to make rounds. A file of this folder that has one as METHOD adds it.

    Example:
        METHOD = Method("mine", "by a student that reads its own answers backwards", plan, build)
    """

    name: str  # as `method` in a recipe has it
    by: str  # who makes its datasets and how, as the card goes on after "made round by round"
    plan: Callable[[Recipe], list[Step]]  # all steps up to the recipe's last round, parents first
    build: Callable[[Step, Context], RoundData]  # writes the dataset of one gen step
