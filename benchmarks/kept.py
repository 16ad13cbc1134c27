"""What the round that the probe keeps is worth: `python -m benchmarks.kept long`, after its sweep.

A row of Markdown for each variant and seed: the round whose gold is the highest, the last one, and
the one that `macpo` would keep, which is chosen without gold. --recipe, --run and --seeds are those
of `macpo sweep`. What of the sweep is not made yet is made first.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl

from macpo_data.evaluation import probe
from macpo_run.sweep.standings import MADE
from macpo_run.sweep.study import load_study, parse_seeds, variants
from macpo_run.sweep.sweep import Sweep
from macpo_run.terminal.lines import say_aside
from macpo_run.terminal.progress import progress


def main() -> None:
    """Read a study that is finished, or finish it, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("--recipe")
    parser.add_argument("--run")
    parser.add_argument("--seeds", type=parse_seeds)
    asked = {key: value for key, value in vars(parser.parse_args()).items() if value is not None}
    name = asked.pop("study")
    study = load_study(name, asked)
    sweep = Sweep(study, variants(study), Path("runs"), progress, say_aside, name)
    gold = student_gold(sweep.make().results)
    print("| variant | seed | best round | last minus best | kept | kept minus best |")
    print("| --- | --- | --- | --- | --- | --- |")
    for variant, run in zip(sweep.variants, sweep.runs, strict=True):
        rounds = gold.filter(variant=variant.name, seed=variant.recipe.seed)
        kept = probe.best_round(run.plan.recipe, probe.readings(run.plan, run.store))
        if rounds.is_empty() or kept is None:
            print(f"| {variant.name} | {variant.recipe.seed} | failed | | | |")
        else:
            print(row(variant.name, variant.recipe.seed, rounds, kept.round))


def student_gold(results: pl.DataFrame) -> pl.DataFrame:
    """The student's gold by round, without its bare base, its twin and its ceiling.

    >>> facts = {"agent": "student", "measure": "gold", "mean": 0.9}
    >>> policies = [("positive", None), ("ceiling", 0), ("positive", 1), ("positive", 0)]
    >>> rows = [facts | {"behavior": behavior, "round": number} for behavior, number in policies]
    >>> student_gold(pl.DataFrame(rows))["round"].to_list()
    [0, 1]
    """
    return results.filter(MADE, agent="student", measure="gold").sort("round")


def row(variant: str, seed: int, gold: pl.DataFrame, kept: int) -> str:
    """A line of the table.

    >>> row("MACPO", 7, pl.DataFrame({"round": [0, 1, 2], "mean": [0.5, 0.9, 0.8]}), 2)
    '| MACPO | 7 | 1: .900 | -.100 | 2 | -.100 |'
    """
    by_round = dict(gold.select("round", "mean").iter_rows())
    best = max(by_round, key=lambda number: by_round[number])
    behind = [f"{by_round[number] - by_round[best]:+.3f}" for number in (max(by_round), kept)]
    last, kept_behind = (text.replace("0.", ".") for text in behind)
    top = f"{by_round[best]:.3f}".removeprefix("0")
    return f"| {variant} | {seed} | {best}: {top} | {last} | {kept} | {kept_behind} |"


if __name__ == "__main__":
    main()
