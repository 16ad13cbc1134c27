"""What the round that the probe keeps is worth: `python -m benchmarks.kept long`, after its sweep.

A row of Markdown for each variant and seed: the round whose gold is the highest, the last one, and
the one that `macpo` would keep, which is chosen without gold. --recipe, --run and --seeds are those
of `macpo sweep`. What of the sweep is not made yet is made first. --plot FILE.svg draws the signs
over the rounds by which it is chosen: means over seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from macpo_data.evaluation import probe
from macpo_data.recipe.recipe import Recipe
from macpo_run.sweep.plot import COLOURS, DIM, INK, PAPER, VEGA_LITE, axes, with_style
from macpo_run.sweep.standings import MADE
from macpo_run.sweep.study import load_study, parse_seeds, variants
from macpo_run.sweep.sweep import Sweep
from macpo_run.terminal.lines import say_aside
from macpo_run.terminal.progress import progress

SIGNS = {  # columns, and what they are
    "perplexity": "perplexity of the probe, times round 0's",
    "ranked": "pairs of the probe ranked right",
}


def main() -> None:
    """Read a study that is finished, or finish it, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("--recipe")
    parser.add_argument("--run")
    parser.add_argument("--seeds", type=parse_seeds)
    parser.add_argument("--plot", type=Path)
    asked = {key: value for key, value in vars(parser.parse_args()).items() if value is not None}
    name, file = asked.pop("study"), asked.pop("plot", None)
    study = load_study(name, asked)
    sweep = Sweep(study, variants(study), Path("runs"), progress, say_aside, name)
    gold = student_gold(sweep.make().results)
    print("| variant | seed | best round | last minus best | kept | kept minus best |")
    print("| --- | --- | --- | --- | --- | --- |")
    signs: list[dict[str, Any]] = []
    for variant, run in zip(sweep.variants, sweep.runs, strict=True):
        rounds = gold.filter(variant=variant.name, seed=variant.recipe.seed)
        readings = probe.readings(run.plan, run.store)
        signs += [{"variant": variant.name, **sign} for sign in signs_of(readings, run.recipe)]
        kept = probe.best_round(run.recipe, readings)
        if rounds.is_empty() or kept is None:
            print(f"| {variant.name} | {variant.recipe.seed} | failed | | | |")
        else:
            print(row(variant.name, variant.recipe.seed, rounds, kept.round))
    if file:
        file.write_text(plot(signs, sweep.variants[0].recipe.stop_above), "utf-8")


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


def signs_of(readings: Sequence[probe.Reading], recipe: Recipe) -> list[dict[str, Any]]:
    """By round: the student's perplexity of the probe, and the share of its pairs ranked right."""
    rounds = probe.of_agent(readings, recipe.students[0])
    return [
        {
            "round": each.policy.round,
            "perplexity": each.perplexity / rounds[0].perplexity,
            "ranked": each.accuracy,
        }
        for each in rounds
    ]


def plot(signs: list[dict[str, Any]], line: float) -> str:
    """An SVG of both signs side by side, with a line where the perplexity is too high."""
    import vl_convert

    names = list(dict.fromkeys(sign["variant"] for sign in signs))
    means = pl.DataFrame(signs).group_by("variant", "round").mean().sort("variant", "round")
    x = {"field": "round", "type": "quantitative", "axis": {"grid": False, "format": "d"}}
    colour = {
        "field": "variant", "type": "nominal", "title": None,
        "scale": {"domain": names, "range": list(COLOURS[: len(names)])},
        "legend": {"orient": "bottom", "labelColor": INK, "labelLimit": 0, "labelFontSize": 12,
                   "columnPadding": 30},
    }  # fmt: skip
    panels: list[dict[str, Any]] = []
    for sign, title in SIGNS.items():
        scale = {"zero": False}
        y = {"field": sign, "type": "quantitative", "title": title, "scale": scale}
        mark = {"type": "line", "strokeWidth": 2, "point": {"filled": True, "size": 40}}
        lines = {"mark": mark, "encoding": {"x": x, "y": y, "color": colour}}
        panels.append({"width": 300, "height": 260, "layer": [lines]})
    too_high = {"type": "rule", "strokeDash": [4, 4], "color": DIM}
    panels[0]["layer"].append({"mark": too_high, "encoding": {"y": {"datum": line}}})
    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "background": PAPER,
        "data": {"values": means.to_dicts()},
        "hconcat": panels,
        "config": axes(),
    }
    return with_style(str(vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE)))


if __name__ == "__main__":
    main()
