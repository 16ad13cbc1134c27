"""`macpo check`, `diff` and `doctor`: datasets, two versions of a round, the environment."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from macpo_data.errors import MacpoError
from macpo_run.terminal.lines import say


@dataclass(frozen=True)
class Dataset:
    """A preference dataset, as a person names it."""

    place: str  # a folder, a file, or org/name on the Hub
    config: str | None = None
    revision: str | None = None
    split: str = "train"


def check(
    dataset: Dataset,
    trainer: str | None,
    tests: Sequence[str],
    tokenizer: str | None,
    max_length: int,
    sets: list[str] | None,
) -> None:
    """Look at a dataset as each trainer would.

    Args:
        dataset: which one.
        trainer: the one that must be able to read it; None for any.
        tests: test sets whose prompts must not be in it.
        tokenizer: a model whose tokenizer counts the lengths.
        max_length: tokens of prompt and answer.
        sets: settings of the training, as `a.b=c`.

    Raises:
        typer.Exit: something is wrong with it.
        MacpoError: it cannot be read, or a test set has no prompts.
    """
    from macpo_data.forms import check as checks
    from macpo_data.loading.load import load_settings
    from macpo_data.models.base import Base, load_chat
    from macpo_data.sources import overlap
    from macpo_data.sources.tables import read_table
    from macpo_run.terminal.findings import print_check

    settings = load_settings(sets)
    columns = settings.columns
    table = read_table(dataset.place, dataset.config, dataset.revision, dataset.split)
    kept_out = []
    for path in tests:
        prompts = overlap.texts(read_table(path, split=None))
        if prompts is None:
            raise MacpoError(f"{path} has no column of prompts; name another test set")
        kept_out.append(prompts)
    chat = load_chat(Base(tokenizer, None), settings.chat_template) if tokenizer else None
    findings = checks.findings(
        table, columns, dataset.place, chat=chat, max_length=max_length, tests=kept_out
    )
    readings = checks.readings(table, columns)
    fit = checks.verdict(findings, readings, trainer)
    title = f"{dataset.place} {dataset.config or ''}: {len(table):,} rows"
    print_check(title, findings, readings)
    if not fit:
        raise typer.Exit(1)


def diff(a: str, b: str, config: str | None, count: int, runs: Path) -> None:
    """Compare two versions of a round: recipe, prompts, what was chosen, distributions."""
    from macpo_data.report.compare import compare, load_version
    from macpo_run.terminal.pairs import print_comparison

    print_comparison(compare(load_version(a, config, runs), load_version(b, config, runs)), count)


def doctor(recipe: str | None, runs: Path, sets: list[str] | None, *, as_json: bool) -> None:
    """Say what is installed and reachable, whether it fits together, and what mends it.

    Raises:
        typer.Exit: there is a problem.
    """
    from macpo_data.loading.load import load_recipe
    from macpo_run.doctor import examine
    from macpo_run.terminal.findings import print_health

    findings = list(examine(lambda: load_recipe(recipe, sets), runs))
    if as_json:
        say(json.dumps([vars(finding) for finding in findings], indent=1))
    else:
        print_health(findings)
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)
