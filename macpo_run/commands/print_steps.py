"""What several commands print about a run's steps: the plan, the results, the next command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from macpo_run.terminal.lines import say, say_next

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from macpo_data.plan import Step
    from macpo_data.store.store import State
    from macpo_run.rounds import Outcome, Run


def finish(run: Run, outcome: Outcome) -> None:
    """Say what was written and what comes next.

    Raises:
        typer.Exit: all of it waits.
    """
    print_outcome(outcome)
    print_signs(run, [step for step, _ in outcome.wrote])
    say_next(next_command(run, run.states()))
    if outcome.waiting and not (outcome.wrote or outcome.kept):
        raise typer.Exit(1)


def print_outcome(outcome: Outcome) -> None:
    """What was written, what was there already, and what waits for what."""
    for step, path in outcome.wrote:
        say(f"wrote    {step}: {path}")
    for step, path in outcome.kept:
        say(f"kept     {step}: {path}")
    for step, reasons in outcome.waiting.items():
        say(f"waiting  {step}: {', '.join(reasons)}")


def print_signs(run: Run, steps: Sequence[Step]) -> None:
    """The signs of failure of finished steps."""
    for step in steps:
        for line in signs_of(run, step):
            say(f"! {step}: {line}")


def signs_of(run: Run, step: Step) -> list[str]:
    """The signs of failure of a finished step, a line each."""
    from macpo_data.signs.rules import flags

    return flags(run.store.manifest(run.plan.name(step)) or {})


def print_plan(run: Run, steps: Sequence[Step]) -> None:
    """Some steps of a run, with their states."""
    from macpo_run.terminal.steps import StepRow, print_steps

    states = run.states()
    rows = [StepRow(s, states[s], run.plan.name(s), run.waits_for(s, states)) for s in steps]
    print_steps(rows, title(run))


def title(run: Run) -> str:
    """A run in one line: its folder, its method, its rounds."""
    from macpo_data.methods.registry import name_of

    return f"{run.store.root}: {name_of(run.recipe)}, rounds 0..{run.plan.last_round}"


def print_costs_to_come(run: Run, steps: Sequence[Step]) -> None:
    """What the gen steps that are not done will ask of their models."""
    from macpo_data.generation.cost import count, measure
    from macpo_data.methods.registry import method
    from macpo_run.terminal.steps import print_costs

    states = run.states()
    todo = [step for step in steps if step.kind == "gen" and states[step] != "done"]
    if todo:
        sizes = measure(run.plan, run.store)
        rules = {step: method(run.recipe, step).build for step in todo}
        costs = count(run.plan, run.store, sizes, rules)
        print_costs(list(zip(todo, costs, strict=True)), run.recipe, sizes.note)


def next_command(run: Run, states: Mapping[Step, State]) -> str:
    """The command that goes on from here."""
    from macpo_data.evaluation.results import unmeasured

    last = run.ended_after()
    for step in run.plan.steps:
        if last is not None and step.round > last:
            break
        if states[step] == "ready":
            return f"macpo {step.kind} --round {step.round}{run.options}"
        if states[step] == "stale":
            which = f"--round {step.round} --learner {step.learner} --redo"
            return f"macpo {step.kind} {which}{run.options}"
    return f"macpo {'eval' if unmeasured(run.plan, run.store) else 'report'}{run.options}"
