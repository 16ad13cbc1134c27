"""Opens a run from the options of a command line."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from macpo_data.errors import lead_to_run
from macpo_run.terminal.lines import say_aside

if TYPE_CHECKING:
    from macpo_data.recipe.recipe import Recipe
    from macpo_data.sources.ingest.splits import Dataset
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


@dataclass(frozen=True)
class DatasetOptions:
    """A preference dataset, as a person names it on a command line."""

    place: str  # a folder, a file, or org/name on the Hub
    config: str | None = None
    revision: str | None = None
    split: str | None = None
    columns: str | None = None  # `--columns`, as prompt=question,chosen=best

    def __str__(self) -> str:
        """The options as they were given, so that a command to come can be copied whole.

        >>> str(DatasetOptions("my pairs.csv", columns="prompt=q"))
        "'my pairs.csv' --columns prompt=q"
        """
        named = {"--config": self.config, "--revision": self.revision, "--split": self.split,
                 "--columns": self.columns}  # fmt: skip
        words = [word for name, value in named.items() if value for word in (name, value)]
        return shlex.join([self.place, *words])

    def dataset(self) -> Dataset:
        """Where it is."""
        from macpo_data.sources.ingest.splits import Dataset

        return Dataset(self.place, self.config, self.revision, self.split)

    def settings(self, sets: list[str] | None) -> list[str]:
        """The settings of a training on it: its columns are laid over the others.

        Raises:
            MacpoError: the columns cannot be understood.
        """
        from macpo_data.sources.ingest.hints import as_settings

        return [*(sets or []), *as_settings(self.columns)]


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

    lead_to_run(str(options), options.sets or ())
    recipe = load_recipe(options.recipe, options.sets, say=say_aside)
    label = Path(options.recipe).stem if options.recipe else None
    return Run(
        recipe, options.runs, progress, say_aside, label=label, options=str(options)
    )  # fmt: skip


def open_to_make(options: RunOptions) -> Run:
    """`open_run` for a command that makes steps: it warns of a recipe that is no paper's."""
    run = open_run(options)
    warn_of_departures(run.recipe)
    say_who_is_not_asked(run.recipe)
    return run


def say_who_is_not_asked(recipe: Recipe) -> None:
    """Say whose endpoints the fake engine answers for, as for everybody."""
    names = [name for name, agent in recipe.agents.items() if agent.endpoint]
    if names and recipe.engine.name == "fake":
        say_aside(
            f"engine.name fake answers for {', '.join(names)} as well: their endpoints are not "
            "asked"
        )


def warn_of_departures(recipe: Recipe, whose: str = "") -> None:
    """Say which settings of a recipe are not those of its method's paper."""
    from macpo_data.loading.conflicts import departures

    if settings := departures(recipe):
        say_aside(
            f"warning: {whose}method {recipe.method} is not its paper's: {', '.join(settings)}; "
            "set its values, or call it a variant"
        )
