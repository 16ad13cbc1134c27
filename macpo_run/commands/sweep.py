"""`macpo sweep`: runs all variants and seeds of a study in one run folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import typer

from macpo_run.commands.before import stop_unless_ready
from macpo_run.commands.print_steps import hardware_of
from macpo_run.commands.run_options import say_who_is_not_asked, warn_of_departures
from macpo_run.terminal.lines import say, say_aside


def sweep(
    study: str | None,
    changes: dict[str, Any],
    runs: Path,
    sets: list[str] | None,
    *,
    dry_run: bool,
    on: str | None = None,
) -> None:
    """Make and compare the variants of a study, or say what would be made.

    Args:
        study: a shipped study's name, or a file; None for none.
        changes: fields of the study that the command line lays over it.
        runs: the folder of all runs.
        sets: `a.b=c`, laid over every variant's recipe.
        dry_run: nothing is made.
        on: the hardware of the plan, as `--on` names it; None for this machine.

    Raises:
        typer.Exit: a variant failed.
    """
    from macpo_run.sweep.study import load_study, variants
    from macpo_run.sweep.sweep import Sweep, write
    from macpo_run.terminal.outlook import print_whole
    from macpo_run.terminal.progress import progress
    from macpo_run.terminal.sweeps import print_standings, print_sweep

    loaded = load_study(study, changes)
    name = Path(study).stem if study else None
    shown = partial(progress, leave=False)
    family = Sweep(loaded, variants(loaded, sets), runs, shown, say_aside, name)
    for one, other in family.twins():
        say_aside(f"{one} and {other} come out the same: nothing that they differ in is read")
    for variant, recipe in {v.name: v.recipe for v in family.variants}.items():
        warn_of_departures(recipe, f"{variant}: ")
    say_who_is_not_asked(family.home.recipe)
    if dry_run:
        machine = hardware_of(on)
        print_sweep(family.outline())
        print_whole(*family.outlook(machine))
        return
    stop_unless_ready(family.needs())
    with family.home.store.in_use():
        standings = family.make()
        print_standings(standings)
        for path in write(standings, family.folder, name or family.home.recipe.run):
            say(f"wrote    {path}")
    if any(each.problem for each in standings.measured):
        raise typer.Exit(1)
