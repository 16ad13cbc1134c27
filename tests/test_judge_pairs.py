"""What the judge of `benchmarks.judge` learns, what measures it, what is left to experiments."""

from pathlib import Path
from random import Random

import polars as pl
import pytest

from benchmarks import judge
from benchmarks.loops import WORDS, loop
from benchmarks.models import DATA
from macpo_data.text import repetition


@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data")
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


@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data")
def test_loops_are_made_from_good_answers() -> None:
    """Each is as long as its other side, has words of that answer alone, and says more twice."""
    pairs = judge.read("hh_harmless_d1").unique("asked", maintain_order=True).head(200)
    looping = judge.looping(pairs)
    assert 80 < len(looping) < 200
    answers = {row["asked"]: row["chosen"] for row in pairs.to_dicts()}
    more = []
    for row in looping.to_dicts():
        good, bad = row["chosen"].split(), row["rejected"].split()
        whole = answers[row["asked"]].split()
        assert whole[: len(good)] == good and len(good) == len(bad) >= WORDS
        assert set(bad) <= set(whole)
        more.append(repetition(row["rejected"]) - repetition(row["chosen"]))
    assert sum(more) / len(more) > 0.3


def test_a_short_answer_makes_no_loop() -> None:
    assert loop("I would rather not say that.", Random(0)) is None
