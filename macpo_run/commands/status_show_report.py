"""`macpo status`, `show` and `report`: commands that only read a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from macpo_run.commands.print_steps import next_command, print_plan, print_signs, signs_of, title
from macpo_run.commands.run_options import RUNS, RunOptions, open_run
from macpo_run.terminal.lines import say, say_aside, say_next, say_sign

if TYPE_CHECKING:
    from rich.console import RenderableType

    from macpo_data.report.collect import Source
    from macpo_run.rounds import Run


def status(options: RunOptions) -> None:
    """The steps, all signs of failure, what the probe advises, and the next command."""
    from macpo_data.evaluation import probe
    from macpo_data.evaluation.advice import advise
    from macpo_data.evaluation.headline import all_signs
    from macpo_data.evaluation.results import latest
    from macpo_run.terminal.headline import print_advice

    with open_run(options) as run:
        _say_where_nothing_is(run, options)
        print_plan(run, run.plan.steps)
        readings = probe.readings(run.plan, run.store)
        for line in all_signs(run.plan, run.store, readings, latest(run.plan, run.store)):
            say_sign(line)
        best = probe.best_round(run.recipe, readings)
        if best and max(reading.policy.round or 0 for reading in readings) > 0:
            say(probe.best_line(best, run.options))
        elif advice := advise(run.plan, readings):
            print_advice(advice)
        say_next(next_command(run, run.states()))


def _say_where_nothing_is(run: Run, options: RunOptions) -> None:
    """Say that a folder of runs that was named has no such run: it may be a slip."""
    if options.runs != RUNS and (where := run.store.beside()):
        say_aside(f"nothing is made yet{where}")


def status_as_json(options: RunOptions) -> None:
    """The steps as a list, for programs."""
    with open_run(options) as run:
        states = run.states()
        rows = [
            {
                "kind": step.kind,
                "round": step.round,
                "learner": step.learner,
                "behavior": step.behavior,
                "state": states[step],
                "fingerprint": run.plan.fingerprint(step),
                "path": str(run.path(step)),
                "waiting_for": run.waits_for(step, states),
                "signs": signs_of(run, step) if states[step] == "done" else [],
            }
            for step in run.plan.steps
        ]
        say(json.dumps(rows, indent=1))


def watch(options: RunOptions) -> None:
    """The steps and what is being made, again and again until Ctrl-C."""
    from macpo_run import live_status
    from macpo_run.sweep.time_left import in_words, seconds_left, task_of

    with open_run(options) as run:

        def look(size: live_status.Size | None) -> RenderableType:
            states, notes = run.states(), live_status.making(run.store.root / live_status.NOTES)
            todo = [
                task_of(run.recipe, run.plan.name(step), step)
                for step, state in states.items()
                if state != "done"
            ]
            left = in_words(*seconds_left(todo, run.store.root))
            after = next_command(run, states)
            return live_status.view(title(run), states, notes, after, left, size)

        live_status.watch(look)


def show(
    options: RunOptions,
    round_: int,
    learner: str | None,
    *,
    count: int,
    where: str | None,
    sort: str | None,
    sample: bool,
) -> None:
    """Print pairs of a round: of its student where nobody is named.

    Raises:
        MacpoError: the round has no dataset yet.
    """
    from macpo_run.terminal.pairs import matching, print_pairs

    with open_run(options) as run:
        step = run.dataset_step(round_, learner)
        name = run.plan.name(step)
        pairs = run.store.read(name, "pairs.parquet")
        print_pairs(
            matching(pairs, where, sort),
            run.store.manifest(name),
            count,
            of=None if where is None else len(pairs),
            draw=sample,
            spread=not sort,
        )
        print_signs(run, [step])
        say(f"{run.path(step) / 'pairs.parquet'}")


def report(recipes: Sequence[str], runs: Path, sets: list[str] | None, to: Path | None) -> Path:
    """Write one page of one or several runs, and return where it is.

    Args:
        recipes: as a person names them; none for the default one.
        runs: the folder of all runs.
        sets: `a.b=c`, laid over each recipe.
        to: the page's file; by default in the run's folder, or above those of several.
    """
    from macpo_data.report.collect import collect
    from macpo_data.report.page import page
    from macpo_data.store.store import atomic, check_output

    opened = [open_run(RunOptions(name, runs, sets)) for name in recipes or (None,)]
    roots = {run.store.root for run in opened}
    path = to or (roots.pop() if len(roots) == 1 else runs) / "report.html"
    check_output(path)
    text = page(collect([source(run) for run in opened]))
    with atomic(path) as temporary:
        temporary.write_text(text, "utf-8")
    say(f"wrote    {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return path


def source(run: Run) -> Source:
    """A run as the report page reads it."""
    from macpo_data.report.collect import Source

    return Source(run.label, run.plan, run.store, run.options)
