"""Opens a run from the options of a command line."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from macpo_run.terminal.lines import say_aside

if TYPE_CHECKING:
    from macpo_data.recipe.recipe import Recipe
    from macpo_run.rounds import Run

RUNS = Path("runs")  # where runs are unless --runs names another folder


@dataclass(frozen=True)
class RunOptions:
    """Which run a command is about, as a person named it."""

    recipe: str | None  # a shipped recipe's name, or a file; None: ./macpo.yaml or quickstart
    runs: Path = RUNS
    sets: list[str] | None = None  # `a.b=c`, laid over the recipe

    def __str__(self) -> str:
        """The options as they were given, so that a command to come can be copied whole.

        >>> str(RunOptions("mine.yaml", sets=["seed=1"]))
        ' --recipe mine.yaml --set seed=1'
        """
        return spelt([self.recipe] if self.recipe else [], self.runs, self.sets)


def spelt(recipes: list[str], runs: Path, sets: list[str] | None) -> str:
    """Options as a person would type them after a command; a blank before them if there are any."""
    words = [word for recipe in recipes for word in ("--recipe", recipe)]
    words += [] if runs == RUNS else ["--runs", str(runs)]
    words += [word for setting in sets or [] for word in ("--set", setting)]
    return " " + shlex.join(words) if words else ""


def open_run(options: RunOptions) -> Run:
    """The run, whose recipe is valid; nothing of it is read yet.

    Raises:
        MacpoError: there is no such recipe, or it has mistakes.
    """
    from macpo_data.loading.load import load_recipe
    from macpo_run.rounds import Run
    from macpo_run.terminal.progress import progress

    recipe = load_recipe(options.recipe, options.sets)
    label = Path(options.recipe).stem if options.recipe else None
    return Run(
        recipe, options.runs, progress, say_aside, label=label, options=str(options)
    )  # fmt: skip


def open_to_make(options: RunOptions) -> Run:
    """`open_run` for a command that makes steps: it warns of a recipe that is no paper's."""
    run = open_run(options)
    warn_of_departures(run.recipe)
    return run


def warn_of_departures(recipe: Recipe, whose: str = "") -> None:
    """Say which settings of a recipe are not those of its method's paper."""
    from macpo_data.loading.conflicts import departures

    if settings := departures(recipe):
        say_aside(
            f"warning: {whose}method {recipe.method} is not its paper's: {', '.join(settings)}; "
            "set its values, or call it a variant"
        )
