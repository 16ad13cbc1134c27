"""What `run` says while it works: after each step, what is left of the whole."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from macpo_run.terminal.lines import say_aside

if TYPE_CHECKING:
    from macpo_data.plan import Step
    from macpo_run.rounds import Run

OVERHEAD = 6.0  # seconds of a step beside its models' work: a process starts, a model loads
TRUST = 60.0  # planned seconds that have to be over until the measured pace counts half


def follow(run: Run, steps: Sequence[Step]) -> None:
    """Say what there is to make, and after each step what is left of the whole, on stderr.

    Time is told by earlier timings of the same kind of step. Where there are none, by the plan, at
    the pace that the steps of this command have shown so far.
    """
    from macpo_run.commands.print_steps import title
    from macpo_run.sweep.time_left import in_words, seconds_of, task_of

    states = run.states()
    todo = {step: task_of(run.recipe, run.plan.name(step), step) for step in steps
            if states[step] != "done"}  # fmt: skip
    count = len(todo)
    if not count:
        return
    planned = _planned(run, list(todo))
    begun, spent, of_plan = time.monotonic(), 0.0, 0.0

    def left() -> str:
        timed = dict(zip(todo, seconds_of(list(todo.values()), run.store.root), strict=True))
        pace = (spent + TRUST) / (of_plan + TRUST)
        guessed = {step: planned[step] * pace for step in todo
                   if timed[step] is None and step in planned}  # fmt: skip
        known = [seconds for seconds in timed.values() if seconds is not None]
        unknown = len(todo) - len(known) - len(guessed)
        words = in_words(sum(known) + sum(guessed.values()), unknown)
        return f"{words}, by the plan" if guessed and not of_plan else words

    steps_to_make = f"{count} {'step' if count == 1 else 'steps'} to make"
    say_aside(f"{title(run)}: {steps_to_make}; {left()}")

    def tell(step: Step) -> None:
        nonlocal begun, spent, of_plan
        now = time.monotonic()
        if step in planned:
            spent, of_plan = spent + now - begun, of_plan + planned[step]
        begun = now
        todo.pop(step, None)
        say_aside(f"[{count - len(todo)}/{count}] {step}; {left() if todo else 'all made'}")

    run.on_step = tell


def _planned(run: Run, steps: Sequence[Step]) -> dict[Step, float]:
    """Seconds of each step by the plan, of which a fake engine and an unknown card have none."""
    from macpo_data.generation.cost import measure
    from macpo_data.planning import hardware
    from macpo_data.planning.outlook import outlook

    if run.recipe.engine.name == "fake":
        return {}
    sizes = measure(run.plan, run.store)
    rows = outlook(run.plan, run.store, run.states(), steps, sizes, hardware.here()).rows
    return {row.step: OVERHEAD + row.work.seconds for row in rows if row.work.seconds is not None}
