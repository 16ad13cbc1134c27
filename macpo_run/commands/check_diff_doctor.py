"""`macpo check`, `diff` and `doctor`: datasets, two versions of a round, the environment."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import typer

from macpo_data.errors import MacpoError, lead_to_run
from macpo_run.commands.run_options import DatasetOptions, spelt
from macpo_run.terminal.lines import say, say_aside


def check(
    options: DatasetOptions,
    trainer: str | None,
    tests: Sequence[str],
    tokenizer: str | None,
    max_length: int,
    sets: list[str] | None,
) -> None:
    """Look at a dataset as each trainer would.

    Args:
        options: which dataset.
        trainer: the one that must be able to read it; None for any.
        tests: test sets whose prompts must not be in it.
        tokenizer: a model whose tokenizer counts the lengths.
        max_length: tokens of prompt and answer.
        sets: settings of the training, as `a.b=c`.

    Raises:
        typer.Exit: something is wrong with it.
        MacpoError: it cannot be read, or a test set has no prompts.
    """
    from macpo_data.forms import convert as conversion
    from macpo_data.loading.load import load_settings
    from macpo_data.recipe.agents import takes_text_as_it_is
    from macpo_run import checking
    from macpo_run.terminal.findings import print_check

    settings, dataset = load_settings(options.settings(sets)), options.dataset()
    look = checking.check(dataset, settings, trainer, tests, tokenizer, max_length)
    rows, findings, readings = look.rows, look.findings, look.readings
    account, template = rows.account, settings.chat_template
    title = f"{dataset.place} {dataset.config or ''}: {account.rows:,} rows of {account.form}"
    print_check(title, findings, readings)
    others = [each.trainer for each in readings if not each.reads]
    if wanted := [name for name in conversion.writable(rows, others) if trainer in (None, name)]:
        name = wanted[0] if len(wanted) == 1 else "TRAINER"
        more = f" --set chat_template={template}" if takes_text_as_it_is(template) else ""
        say(f"for {', '.join(wanted)}: macpo convert {options} --for {name} --to DIR{more}")
    if not look.fit:
        raise typer.Exit(1)


def diff(a: str, b: str, config: str | None, count: int, runs: Path) -> None:
    """Compare two versions of a round: recipe, prompts, what was chosen, distributions.

    Raises:
        MacpoError: a version is not there, or neither has a configuration of which one is named.
    """
    from macpo_data.report.compare import compare, has_configs, load_version
    from macpo_run.terminal.pairs import print_comparison

    if config and not (has_configs(a) or has_configs(b)):
        raise MacpoError("--config: not read of a file or a result of a run; leave it out")
    print_comparison(compare(load_version(a, config, runs), load_version(b, config, runs)), count)


def doctor(recipe: str | None, runs: Path, sets: list[str] | None, *, as_json: bool) -> None:
    """Say what is installed and reachable, whether it fits together, and what mends it.

    Raises:
        typer.Exit: there is a problem.
    """
    from macpo_data.loading.load import load_recipe
    from macpo_run.doctor import examine
    from macpo_run.terminal.findings import print_health

    lead_to_run(spelt([recipe] if recipe else [], runs, sets), sets or ())
    findings = list(examine(lambda: load_recipe(recipe, sets, say=say_aside), runs))
    if as_json:
        say(json.dumps([vars(finding) for finding in findings], indent=1))
    else:
        print_health(findings)
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)
