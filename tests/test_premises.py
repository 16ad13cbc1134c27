"""The premises benchmark: its shares by hand, and its way from a recipe to a table."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from benchmarks import premises
from macpo_data.plan import Policy


def answers(*gold: float) -> pl.DataFrame:
    """One answer to each of the prompts p0, p1, ..., about topics of thirds 0, 1, 0, 1, ..."""
    rows = [(f"p{i}", str(i % 2), score) for i, score in enumerate(gold)]
    return pl.DataFrame(rows, schema=["prompt_id", "third", "gold"], orient="row")


def test_scores_by_third() -> None:
    """Thirds 0: .2 and .6; 1: 1 and 0; nothing was asked about the last one."""
    scores = premises.by_third(answers(0.2, 1.0, 0.6, 0.0))
    expected = {"all": 0.45, "0": 0.4, "1": 0.5, "2": None}
    assert scores == {name: v if v is None else pytest.approx(v) for name, v in expected.items()}


def test_where_a_teacher_could_help() -> None:
    """The student is wrong on p0, p2 and p3; of those the best of two teachers is right on p3."""
    best = premises.best_of(pl.concat([answers(0.5, 0.0, 0.8, 0.9), answers(0.6, 0.0, 0.1, 0.2)]))
    assert best.sort("prompt_id")["gold"].to_list() == [0.6, 0.0, 0.8, 0.9]
    assert premises.helped(answers(0.0, 1.0, 0.5, 0.89), best) == pytest.approx(1 / 3)
    assert premises.helped(answers(1.0, 1.0, 1.0, 1.0), best) is None


def test_what_is_picked_where_something_is_right() -> None:
    """p0: the right one of two; p1: the wrong one of two; p2: nothing is right, nothing counts."""
    rows = [
        ("p0", 1.0, True), ("p0", 0.0, False),
        ("p1", 0.95, False), ("p1", 0.3, True),
        ("p2", 0.5, True), ("p2", 0.2, False),
    ]  # fmt: skip
    candidates = pl.DataFrame(rows, schema=["prompt_id", "gold", "selected"], orient="row")
    assert premises.picked(candidates) == 1 / 2


def test_table() -> None:
    rows: list[dict[str, Any]] = [
        {"seed": "0", "student": {"all": 0.5, "0": 1.0, "1": 0.0, "2": None}, "ranked": 0.25},
        {"seed": "1", "student": {"all": 0.7, "0": 0.5, "1": 0.2, "2": None}, "ranked": None},
    ]
    assert premises.table(rows) == [
        "| seed | student | ranked |",
        "| --- | --- | --- |",
        "| 0 | .50 (1.00 .00 -) | .25 |",
        "| 1 | .70 (.50 .20 -) | - |",
        "| mean | .60 (.75 .10 -) | .25 |",
    ]
    assert len(premises.table(rows[:1])) == 3


@pytest.mark.slow
def test_from_recipe_to_table(tmp_path: Path) -> None:
    """Without a model; a second time nothing is made anew."""
    few = [f"--set=data.{part}.count=8" for part in ("d1", "d2", "test")]
    command = [sys.executable, "-m", "benchmarks.premises", "quickstart", "--seeds", "0", "1"]
    command += ["--runs", str(tmp_path), "--set=engine.name=fake", *few]
    printed = []
    for _ in range(2):
        finished = subprocess.run(command, capture_output=True, text=True, check=True)
        printed.append(finished.stdout)
        times = {
            path: path.stat().st_mtime_ns for path in tmp_path.glob("*/adapters/*/manifest.json")
        }
        assert len(times) == 18  # of two seeds: four agents and their twins, and the ceiling
        printed.append(str(times))
    assert printed[:2] == printed[2:]
    assert printed[0].count("\n") == 5  # two lines of head, two seeds, their mean


@pytest.mark.slow
def test_rewards_where_nobody_knows_what_is_right(tmp_path: Path) -> None:
    """Of three bare bases, three policies, the ceiling, the oracle; the gap last."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{part} {n}"}],
            "chosen": "Yes.",
            "rejected": "No.",
        }
        for part in ("d1", "d2", "test")
        for n in range(8)
    ]
    sets = ["--set=engine.name=fake", "--set=eval.reward=org/scorer"]
    for agent in ("teacher_1", "teacher_2", "student"):  # which needs no package
        sets.append(f"--set=agents.{agent}.base=world:tiny")
    for n, part in enumerate(("d1", "d2", "test")):
        pl.DataFrame(rows[8 * n : 8 * n + 8]).write_parquet(tmp_path / f"{part}.parquet")
        sets.append(f"--set=data.{part}={{path: {tmp_path / part}.parquet}}")
    command = [sys.executable, "-m", "benchmarks.premises", "smollm2_harmless"]
    finished = subprocess.run(
        [*command, "--runs", str(tmp_path), *sets], capture_output=True, text=True, check=True
    )
    head, _, values = (line.strip("| ").split(" | ") for line in finished.stdout.splitlines())
    assert head[1:4] == ["teacher_1-base", "teacher_2-base", "student-base"]
    assert head[6:] == [
        "student-positive-0", "student-ceiling-0", "oracle", "ceiling minus the best teacher",
    ]  # fmt: skip
    means = dict(zip(head[1:], (float(value.split()[0]) for value in values[1:]), strict=True))
    best = max(means["teacher_1-positive-0"], means["teacher_2-positive-0"])
    assert means["oracle"] >= best
    gap = means["student-ceiling-0"] - best
    assert means["ceiling minus the best teacher"] == pytest.approx(gap, abs=0.015)  # two digits


def test_rewards_of_one_policy() -> None:
    """In the prompts' order, the bare base apart from what was trained."""
    rows = [
        ("p0", "s", "positive", None, 0.1), ("p0", "s", "positive", 0, 0.2),
        ("p1", "s", "positive", None, 0.3), ("p1", "s", "positive", 0, 0.4),
        ("p1", "t", "positive", 0, 0.5),
    ]  # fmt: skip
    columns = ["prompt_id", "agent", "behavior", "round", "reward"]
    both = pl.DataFrame(rows, schema=columns, orient="row")
    assert premises.rewards_of(both, Policy("s")).tolist() == [0.1, 0.3]
    assert premises.rewards_of(both, Policy("s", "positive", 0)).tolist() == [0.2, 0.4]


def test_other_methods_are_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.premises", "quickstart", "--runs", str(tmp_path)]
    refused = subprocess.run(
        [*command, "--set=method=weak_labels"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1 and refused.stderr.startswith("error: premises are those of")
