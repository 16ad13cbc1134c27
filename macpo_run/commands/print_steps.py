"""What several commands print about a run's steps: the plan, the results, the next command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from macpo_run.terminal.lines import say, say_next, say_sign

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from macpo_data.plan import Step
    from macpo_data.planning.hardware import Hardware
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
            say_sign(f"{step}: {line}")


def signs_of(run: Run, step: Step) -> list[str]:
    """The signs of failure of a finished step, a line each."""
    from macpo_data.signs.rules import flags

    return flags(run.store.manifest(run.plan.name(step)) or {})


def print_plan(run: Run, steps: Sequence[Step]) -> None:
    """Some steps of a run, with their states."""
    from macpo_run.terminal.steps import StepRow, print_steps

    states, rows = run.states(), []
    for step in steps:
        waits_for = run.waits_for(step, states)
        rows.append(StepRow(step, states[step], run.plan.name(step), waits_for))
    print_steps(rows, title(run))


def print_dry_run(run: Run, steps: Sequence[Step], on: str | None, redo: bool = False) -> None:
    """What some steps take: memory, disk, work, hours, and what they ask of models.

    Args:
        run: whose steps they are.
        steps: which of them.
        on: the hardware, as `--on` names it; None for this machine.
        redo: those that are done are made anew.
    """
    from macpo_data.generation.cost import measure
    from macpo_data.planning.outlook import outlook
    from macpo_run.terminal.outlook import print_outlook
    from macpo_run.terminal.steps import print_costs

    machine = hardware_of(on)
    sizes = measure(run.plan, run.store)
    states = dict(run.states())
    redone = {
        step
        for step in steps
        if redo and states[step] in ("done", "stale") and not run.waits_for(step, states)
    }
    states |= dict.fromkeys(redone, "ready")
    plan = outlook(run.plan, run.store, states, steps, sizes, machine)
    costs = [(step, each.asks) for step, each in plan.estimates.items() if each.asks]
    if costs:
        print_costs(costs, run.recipe, sizes.note)
        say("")
    print_outlook(plan, title(run), redone)


def print_reward_plan(run: Run, on: str | None) -> None:
    """What the training of a run's own reward model takes."""
    from macpo_data.generation.cost import measure
    from macpo_data.planning.outlook import REWARD, outlook
    from macpo_run.terminal.outlook import print_outlook

    machine, sizes = hardware_of(on), measure(run.plan, run.store)
    plan = outlook(run.plan, run.store, {REWARD: "ready"}, [REWARD], sizes, machine)
    print_outlook(plan, title(run))


def hardware_of(on: str | None) -> Hardware:
    """The hardware that `--on` names, else that of this machine.

    Raises:
        MacpoError: the table has no such hardware.
    """
    from macpo_data.planning import hardware

    return hardware.here() if on is None else hardware.named(on)


def title(run: Run) -> str:
    """A run in one line: its folder, its method, its rounds."""
    from macpo_data.methods.registry import name_of

    return f"{run.store.root}: {name_of(run.recipe)}, rounds 0..{run.plan.last_round}"


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
