"""`macpo eval` (all three forms): evaluate policies, export answers, read filled sheets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from macpo_run.commands.run_options import RunOptions, open_run, say_who_is_not_asked
from macpo_run.terminal.lines import say, say_next

if TYPE_CHECKING:
    from macpo_data.plan import Policy
    from macpo_run.rounds import Run


def measure(
    options: RunOptions, round_: str, agents: list[str], against: str | None, *, redo: bool
) -> None:
    """Measure policies on the held-out prompts.

    Args:
        options: which run.
        round_: a number, all, or base.
        agents: whose policies; none for all.
        against: compare with this policy, or with the human's chosen answers.
        redo: make anew what is damaged or made from what changed.
    """
    from macpo_data.evaluation.gap import lines
    from macpo_data.evaluation.results import latest
    from macpo_data.signs.rules import flags
    from macpo_run.terminal.scores import print_evaluation

    with open_run(options) as run, run.store.in_use():
        say_who_is_not_asked(run.recipe)
        evaluation = run.evaluate(_policies(run, round_, agents), against, redo)
        print_evaluation(evaluation)
        if newest := latest(run.plan, run.store):
            for line in lines(run.plan, newest.responses):
                say(line)
        for line in flags(run.store.manifest(f"eval/{evaluation.paths[0].name}") or {}):
            say(f"! {line}")
        say_next(f"macpo report{run.options}")


def export(
    options: RunOptions,
    form: str,
    round_: str,
    agents: list[str],
    against: str | None,
    prompts: Path | None,
    to: Path | None,
    *,
    redo: bool,
) -> None:
    """Write one policy's answers for another evaluator, or a blind sheet for people."""
    from macpo_run import exporting

    with open_run(options) as run, run.store.in_use():
        say_who_is_not_asked(run.recipe)
        policies = _policies(run, round_, agents)
        for line in exporting.export(run, form, policies, against, prompts, to, redo):
            say(line)


def import_sheets(options: RunOptions, sheets: list[Path], key: Path | None, *, redo: bool) -> None:
    """Read filled sheets, and print what people found and how far they agree."""
    from macpo_data.evaluation.sheets import read_sheets
    from macpo_run.terminal.scores import print_agreement, print_evaluation

    with open_run(options) as run, run.store.in_use():
        key = key or sheets[0].with_suffix(".key.json")
        evaluation = read_sheets(run.context(redo), sheets, key)
        print_evaluation(evaluation)
        print_agreement(run.store.manifest(f"eval/{evaluation.paths[0].name}") or {})


def _policies(run: Run, round_: str, agents: list[str]) -> list[Policy]:
    from macpo_data.evaluation.policies import choose

    return choose(run.plan, run.store, round_, agents)
