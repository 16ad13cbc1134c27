"""`macpo gen`, `train` (all three forms) and `run`: commands that run steps."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from macpo_data.errors import MacpoError
from macpo_run.commands.before import needs_of, stop_unless_ready
from macpo_run.commands.following import follow
from macpo_run.commands.print_steps import (
    finish,
    next_command,
    print_dry_run,
    print_outcome,
    print_reward_plan,
    print_signs,
)
from macpo_run.commands.run_options import DatasetOptions, RunOptions, open_run, open_to_make
from macpo_run.terminal.lines import program, say, say_aside, say_next, say_sign
from macpo_train.ranks import is_first

if TYPE_CHECKING:
    from macpo_run.rounds import Outcome, Run


def make_round(
    kind: Literal["gen", "train"],
    options: RunOptions,
    round_: int,
    learner: str | None,
    *,
    dry_run: bool,
    redo: bool,
    on: str | None = None,
) -> None:
    """Make every dataset, or train every learner, of a round whose inputs exist; or plan it."""
    with open_to_make(options) as run:
        steps = run.select(kind, round_, learner)
        if dry_run:
            print_dry_run(run, steps, on, redo)
        else:
            stop_unless_ready(needs_of(run, steps, redo))
            with run.store.in_use():
                finish(run, run.make(kind, round_, learner, redo))


def train_reward(options: RunOptions, *, dry_run: bool, redo: bool, on: str | None = None) -> None:
    """Train a run's own reward model on D1's human pairs, or say whether it would be trained."""
    from macpo_data.planning.outlook import REWARD
    from macpo_data.recipe.evaluation import TRAINED
    from macpo_run import policies
    from macpo_run.preflight.needs import needs
    from macpo_run.terminal.scores import print_reward_model

    with open_run(options) as run:
        name = run.plan.reward_name
        if dry_run:
            kept = not redo and run.store.is_done(name)
            say(f"{'done already' if kept else 'would train'}: {run.store.path(name)}")
            if not kept:
                print_reward_plan(run, on)
            return
        if redo or not run.store.is_done(name):
            stop_unless_ready(needs(run.plan, run.store, [REWARD]))
        with run.store.in_use():
            folder = policies.train_reward(run, redo)
        print_reward_model(run.store.manifest(name) or {})
        say(f"{folder}")
        measured = run.recipe.eval.reward and run.recipe.eval.reward.model == TRAINED
        setting = "" if measured else " --set eval.reward=trained"
        say_next(f"macpo eval{setting}{run.options}")


@dataclass(frozen=True)
class DatasetTraining:
    """A training on any one preference dataset, without recipe and run."""

    dataset: DatasetOptions
    base: str  # the model: Hub id or folder
    out: Path  # folder of the new adapter
    init: str | None = None  # adapter to go on from
    reference: str | None = None  # adapter to hold it to
    sets: list[str] | None = None


def train_dataset(training: DatasetTraining) -> None:
    """Train on any one preference dataset.

    Raises:
        MacpoError: the folder of the new adapter is a link that leads nowhere, or what else a
            person can mend.
    """
    if training.out.is_symlink() and not training.out.exists():
        raise MacpoError(f"{training.out} is a link that leads nowhere; choose another --out")
    from macpo_run.standalone import train_on
    from macpo_run.terminal.progress import progress

    train_on(
        training.dataset.dataset(),
        training.base,
        training.out,
        init=training.init,
        reference=training.reference,
        sets=training.dataset.settings(training.sets),
        progress=progress,
        say=say_aside,
        look=stop_unless_ready,
    )
    if not is_first():
        return
    say(f"wrote    {training.out}")
    _print_learned(training.out)
    say_next(f"macpo ask {shlex.quote(str(training.out))} 'a question of yours'")


def _print_learned(out: Path) -> None:
    """How far a training came, and a sign where it hardly moved the policy."""
    from macpo_data.outside import parse_object, read_bytes
    from macpo_data.signs.training import hardly_moved
    from macpo_data.store.manifests import MANIFEST

    manifest = parse_object(read_bytes(out / MANIFEST))
    history: list[dict[str, float]] = manifest["history"]
    if not history:  # the fake engine trains nothing
        return
    ends = ((name, history[0][name], history[-1][name]) for name in ("loss", "margin")
            if name in history[0])  # fmt: skip
    curves = ", ".join(f"{name} {first:.3f} to {last:.3f}" for name, first, last in ends)
    say(f"learned  {len(history)} steps: {curves}")
    if hardly_moved(history):
        dpo = manifest["settings"]["dpo"]
        say_sign(
            f"the policy hardly moved in {len(history)} steps: raise dpo.learning_rate "
            f"({dpo['learning_rate']:g} now; tiny bases of the world bear 1e-3) or dpo.epochs"
        )


def run_rounds(
    options: RunOptions,
    round_: int | None,
    until: int | None,
    *,
    dry_run: bool,
    on: str | None = None,
) -> None:
    """Finish a round, or all rounds up to one; show the summary of the run.

    Raises:
        typer.Exit: something still waits.
    """
    with open_to_make(options) as run:
        last = run.plan.last_round if until is None else until
        rounds = [round_] if round_ is not None else list(range(last + 1))
        # A last round that the recipe does not have is refused before anything is made.
        run.select(None, rounds[-1] if rounds else last)
        steps = [step for each in rounds for step in run.select(None, each)]
        if dry_run:
            print_dry_run(run, steps, on)
            return
        evaluates = run.recipe.data.source == "world"
        stop_unless_ready(needs_of(run, steps, evaluates=evaluates))
        with run.store.in_use():
            follow(run, steps)
            reached, outcome = _make_rounds(run, rounds)
            print_outcome(outcome)
            if outcome.waiting:
                print_signs(run, [step for step, _ in outcome.wrote])
                say_next(next_command(run, run.states()))
                raise typer.Exit(1)
            _print_results(run, reached)
            say_next(next_command(run, run.states()))


def _make_rounds(run: Run, rounds: Sequence[int]) -> tuple[int, Outcome]:
    """Make rounds until one waits or the run ends by itself: (the last one, what it did).

    What all rounds before the last one did is printed.
    """
    for each in rounds:
        outcome = run.finish_round(each)
        reason = None if outcome.waiting else run.ended(each)
        if outcome.waiting or reason or each == rounds[-1]:
            break
        print_outcome(outcome)
    if reason:
        run.say(reason)
    return each, outcome


def _print_results(run: Run, last: int) -> None:
    """Print the summary of the run."""
    from macpo_data.evaluation.headline import examples, headline
    from macpo_data.evaluation.policies import trained
    from macpo_data.evaluation.results import latest
    from macpo_run.terminal.headline import print_headline

    if run.recipe.data.source == "world":
        run.evaluate(trained(run.plan, run.store, last))
    evaluation = latest(run.plan, run.store)
    answers = examples(run.plan, run.store, evaluation) if evaluation else []
    facts = headline(run.plan, run.store, evaluation)
    print_headline(facts, answers, f"{program()} status{run.options}")
