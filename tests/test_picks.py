"""The picks benchmark: who would be picked, by hand."""

import polars as pl

from benchmarks import picks


def test_what_each_ranking_picks() -> None:
    """One prompt, an answer of each of two teachers; the first one is right.

    Peers: the first answer has -2 under b, the second -1 under a. The panel adds the student's:
    -2 - 1 = -3 and -1 - 3 = -4. Peers' contrast: 2 under b, 1 under a; with the student's: 2 - 1
    and 1 - 3.
    """
    candidates = pl.DataFrame(
        {"prompt_id": ["p", "p"], "agent": ["a", "b"], "gold": [1.0, 0.25], "third": ["0", "0"]}
    )
    likely = {"a": [-9.0, -1.0], "b": [-2.0, -9.0], "student": [-1.0, -3.0]}
    contrast = {"a": [9.0, 1.0], "b": [2.0, 9.0], "student": [0.0, 1.0]}
    gold = picks.by_ranking(
        candidates,
        "student",
        {agent: pl.Series(values) for agent, values in likely.items()},
        {agent: pl.Series(values) for agent, values in contrast.items()},
    )
    assert {name: by_third["all"] for name, by_third in gold.items()} == {
        "learner": 1.0,
        "peers": 0.25,
        "panel": 1.0,
        "learner's contrast": 0.25,
        "peers' contrast": 1.0,
        "learner and peers' contrast": 1.0,
        "the best": 1.0,
        "all candidates": 0.625,
    }


def test_an_answer_without_a_score_is_not_picked() -> None:
    """And of equal ones the first is."""
    rows = [("p", 0.5, "0"), ("p", 1.0, "0"), ("q", 0.25, "0"), ("q", 0.75, "0")]
    candidates = pl.DataFrame(rows, schema=["prompt_id", "gold", "third"], orient="row")
    ranking = pl.lit(pl.Series([-1.0, None, -2.0, -2.0]))
    assert picks.picked(candidates, ranking)["all"] == (0.5 + 0.25) / 2
