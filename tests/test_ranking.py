"""Rankings from verdicts, each expected value counted by hand in the docstring."""

from __future__ import annotations

import random
from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macpo_data.generation import ranking

ANSWERS = pl.DataFrame({"prompt_id": ["p"] * 3 + ["q"] * 2, "index": [0, 1, 2, 3, 4]})


def judged(*rows: tuple[int, int, str | None, str | None]) -> pl.DataFrame:
    schema = {"a": pl.Int64, "b": pl.Int64, "first": pl.String, "second": pl.String}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    return frame.with_columns(shown=pl.lit(True), win=pl.lit(None, pl.Float64))


def test_who_meets() -> None:
    every = ranking.meetings(ANSWERS, "all")
    assert every.select("a", "b").rows() == [(0, 1), (0, 2), (1, 2), (3, 4)]
    assert ranking.meetings(ANSWERS, "first_vs_rest").select("a", "b").rows() == [
        (0, 1), (0, 2), (3, 4)
    ]  # fmt: skip


def test_scores() -> None:
    """0 beats 1 in both orders (2 of 2); 0 and 2 win one order each (1 of 2 for both); 1 against
    2 is a tie once and unreadable once (.5 of 2 for both). Mean over two meetings: 0 has
    (1 + .5) / 2, 1 has (0 + .25) / 2, 2 has (.5 + .25) / 2. When both orders have to agree, only
    0's win over 1 stays."""
    scored = judged((0, 1, "a", "a"), (0, 2, "a", "b"), (1, 2, "tie", None))
    assert ranking.scores(ANSWERS, scored, "each").to_list() == [0.75, 0.125, 0.375, None, None]
    assert ranking.scores(ANSWERS, scored, "agree").to_list() == [0.5, 0.0, 0.0, None, None]


def test_an_unseen_pair_counts_by_its_win() -> None:
    scored = judged((3, 4, None, None)).with_columns(shown=pl.lit(False), win=pl.lit(0.5))
    assert ranking.scores(ANSWERS, scored, "each").to_list()[3:] == [0.5, 0.5]


def test_ranks_and_ties() -> None:
    """Equal scores stand as they are, or as chance has it, the same chance every time."""
    score = pl.Series([0.5, 1.0, 0.5, None, None], dtype=pl.Float64)
    assert ranking.ranks(ANSWERS, score, None).to_list() == [2, 1, 3, 1, 2]
    drawn = [ranking.ranks(ANSWERS, score, seed).to_list() for seed in range(20)]
    assert {tuple(r[:3]) for r in drawn} == {(2, 1, 3), (3, 1, 2)}
    assert drawn == [ranking.ranks(ANSWERS, score, seed).to_list() for seed in range(20)]


def test_swiss_takes_the_next_by_score() -> None:
    """After 0-1 and 2-3 were won by 0 and 2, these two meet, and 1 meets 3."""
    four = pl.DataFrame({"prompt_id": ["p"] * 4, "index": [0, 1, 2, 3]})
    met = pl.DataFrame({"prompt_id": ["p"] * 2, "a": [0, 2], "b": [1, 3]})
    score = pl.Series([1.0, 0.0, 1.0, 0.0])
    after = ranking.swiss_meetings(four.with_columns(score=score), met)
    assert after.select("a", "b").rows() == [(0, 2), (1, 3)]


@given(n=st.integers(1, 9), order=st.randoms(use_true_random=False))
def test_swiss_finds_the_best_in_few_meetings(n: int, order: object) -> None:
    """With a judge who knows a strict order, the best of n is first, for at most
    ceil(log2 n) * n / 2 meetings, and nobody meets twice."""
    assert isinstance(order, random.Random)
    strength = order.sample(range(n), n)
    answers = pl.DataFrame({"prompt_id": ["p"] * n, "index": list(range(n))})
    met = ranking.meetings(answers, "all").clear()
    met = met.join(judged().drop("a", "b"), how="cross")
    for _ in range(ranking.swiss_rounds(n)):
        score = ranking.scores(answers, met, "each")
        new = ranking.swiss_meetings(answers.with_columns(score=score), met)
        verdicts = [
            "a" if strength[a] > strength[b] else "b" for a, b in new.select("a", "b").rows()
        ]
        verdict = pl.Series(verdicts, dtype=pl.String)
        new = new.with_columns(
            first=verdict, second=verdict, shown=pl.lit(True), win=pl.lit(None, pl.Float64)
        )
        met = pl.concat([met, new])
    assert met.select("a", "b").is_unique().all()
    assert len(met) <= ranking.swiss_rounds(n) * n // 2
    if n > 1:  # a bye is nobody's twice, so nobody stays unjudged
        games = Counter([*met["a"], *met["b"]])
        assert set(games) == set(range(n))
    if n & (n - 1) == 0:  # as in a knock-out; with a bye the best may share the first place
        ranks = ranking.ranks(answers, ranking.scores(answers, met, "each"), None).to_list()
        assert ranks.index(1) == strength.index(n - 1)


@pytest.mark.parametrize(("n", "rounds"), [(0, 0), (1, 0), (2, 1), (4, 2), (5, 3)])
def test_swiss_rounds(n: int, rounds: int) -> None:
    assert ranking.swiss_rounds(n) == rounds
