"""What the judge of `benchmarks.judge` learns, what measures it, what is left to experiments."""

from pathlib import Path

import polars as pl
import pytest

from benchmarks import judge
from benchmarks.models import DATA

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data")


@pytest.mark.parametrize("held", ["calibration", "test"])
def test_no_prompt_is_learned_that_is_wanted_elsewhere(tmp_path: Path, held: str) -> None:
    """By what the user says last, in one spelling."""
    learned, held_out = judge.split(held)
    prompts = {asked for pairs in learned.values() for asked in pairs["asked"]}
    assert len(prompts) > 7000
    for pairs in held_out.values():
        assert len(pairs) > 100 and not prompts & set(pairs["asked"])
    judge.write_parts(tmp_path)
    for part in ("d1", "d2", "test"):
        left = pl.read_parquet(tmp_path / f"{part}.parquet")
        assert len(left) > 700 and not prompts & {judge.last_turn(p) for p in left["prompt"]}


def test_right_and_ties() -> None:
    assert judge.right(judge.apart([[2.0, 1.0, 0.5], [1.0, 1.0, 2.0]])).tolist() == [1.0, 0.5, 0.0]
