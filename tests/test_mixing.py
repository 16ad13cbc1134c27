"""The benchmark of mixing: its choices by hand, and its way from a recipe to the tables."""

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from benchmarks import mixing, premises
from macpo_data.stats import Estimate


def answers(*rows: tuple[str, str, float]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["prompt_id", "response", "gold"], orient="row")


def test_majority() -> None:
    """The same text has chrF 100, one without a letter in common 0; another prompt has no say."""
    frame = answers(
        ("p", "zzzz", 1.0),
        ("q", "zzzz", 0.5),
        ("p", "good day", 0.0),
        ("p", "good day", 0.0),
    )
    likeness = mixing.likeness(frame)
    assert likeness.to_list() == [0.0, None, pytest.approx(50.0), pytest.approx(50.0)]
    majority = mixing.pick(frame.with_columns(likeness=likeness), "likeness")
    assert dict(majority.select("prompt_id", "response").iter_rows()) == {
        "p": "good day",
        "q": "zzzz",  # alone, it is all there is
    }


def test_the_highest_is_picked_and_of_equals_the_first() -> None:
    frame = answers(("p", "low", 0.1), ("p", "high", 0.9), ("q", "first", 0.5), ("q", "next", 0.5))
    assert mixing.pick(frame, "gold")["response"].sort().to_list() == ["first", "high"]


def test_two_who_agree_have_two_votes() -> None:
    reasons = pl.DataFrame({"reason": [None, "duplicate_answer", "truncated", "error"]})
    assert mixing.written(reasons)["reason"].to_list() == [None, "duplicate_answer"]


def test_differences_are_paired() -> None:
    """Each is better by .25, in whatever order they stand, so that the interval has no width."""
    one = answers(("p", "", 0.5), ("q", "", 1.0), ("r", "", 0.3))
    other = answers(("q", "", 0.75), ("p", "", 0.25))
    assert mixing.difference(one, other) == pytest.approx((0.25, 0.25, 0.25))


def test_cells_and_means_of_differences() -> None:
    """t of two seeds is 12.71: .2 and .4 are .3, and 12.71 times .1 to each side."""
    rows = [
        {"seed": seed, "gain": Estimate(mean, -0.1, 1.0)} for seed, mean in (("0", 0.2), ("1", 0.4))
    ]
    assert premises.table(rows)[2:] == [
        "| 0 | +.20 (-.10 to +1.00) |",
        "| 1 | +.40 (-.10 to +1.00) |",
        "| mean | +.30 (-.97 to +1.57) |",
    ]


def run(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.mixing", "moaa_quickstart", *options]
    return subprocess.run(
        [*command, "--runs", str(tmp_path)], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_from_recipe_to_tables(tmp_path: Path) -> None:
    """Without a model, whose answers gold finds all alike, so that another judge decides."""
    few = [f"--set=data.{part}.count=8" for part in ("d1", "d2", "test")]
    judge = "--set=judge={kind: likelihood, agent: student}"
    printed = []
    for _ in range(2):
        finished = run(tmp_path, "--seeds", "0", "1", "--set=engine.name=fake", judge, *few)
        assert finished.returncode == 0, finished.stderr
        times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/a*/*/manifest.json")}
        # Of two seeds: two students; answers of three proposers to first and to second turns.
        assert sum(path.parts[-3] == "adapters" for path in times) == 4
        assert sum("layer0" in path.parts[-2] for path in times) == 2 * 3 * 2
        printed.append((finished.stdout, times))
    assert printed[0] == printed[1]  # the second time nothing is made anew
    lines = printed[0][0].splitlines()
    assert sum(line.startswith("| mean |") for line in lines) == 6


def test_other_methods_are_refused(tmp_path: Path) -> None:
    for option in ("--set=mixture.keep=random", "--set=mixture.layers=[[weak_a],[weak_b]]"):
        refused = run(tmp_path, option)
        assert refused.returncode == 1
        assert refused.stderr.startswith("error: this measures one layer of proposers; set")
