"""Selection on hand-made candidates, and its properties on random ones."""

from __future__ import annotations

import math
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macpo_data.generation import select
from macpo_data.generation.shards import perplexity
from macpo_data.recipe.generation import Select
from macpo_data.schema import MESSAGES, PROMPTS, SAMPLES, SCORES
from macpo_data.text import repetition

KEEP_ALL = Select(on_filter="count")


def samples(rows: list[dict[str, Any]], scored: bool = True) -> pl.DataFrame:
    default = {
        "agent": "t",
        "policy": "p",
        "draw": 0,
        "finish_reason": "stop",
        "repetition": 0.0,
        "sum_logprob": -1.0,
        "num_tokens": 1,
        "eot_logprob": 0.0,
    }
    table = {**SAMPLES, **SCORES}
    filled = [{"perplexity": None, **default, **row} for row in rows]
    frame = pl.DataFrame(filled, schema=table)
    return frame if scored else frame.select(SAMPLES.keys())


def rejected(*ids: str, text: str = "bad") -> pl.DataFrame:
    return samples([{"prompt_id": i, "response": text, "agent": "s"} for i in ids])


def prompts(*ids: str) -> pl.DataFrame:
    message = [{"role": "user", "content": "q"}]
    rows = {"prompt_id": list(ids), "prompt": pl.Series([message] * len(ids), dtype=MESSAGES)}
    nulls = {name: pl.lit(None, pl.String) for name in ("chosen", "rejected", "right")}
    return pl.DataFrame(rows).with_columns(**nulls).select(PROMPTS.keys())


def test_lowest_perplexity_wins_and_ties_go_to_the_first() -> None:
    frame = samples(
        [
            {"prompt_id": "a", "agent": "t1", "response": "x", "perplexity": 4.0},
            {"prompt_id": "a", "agent": "t2", "response": "y", "perplexity": 2.0},
            {"prompt_id": "a", "agent": "t3", "response": "z", "perplexity": 2.0},
            {"prompt_id": "b", "agent": "t1", "response": "u", "perplexity": 9.0},
        ]
    )
    chosen = select.by_perplexity(frame, rejected("a", "b"), KEEP_ALL)
    assert chosen["rank"].to_list() == [3, 1, 2, 1]
    assert chosen["selected"].to_list() == [False, True, False, True]


def test_each_filter_names_its_reason() -> None:
    """One candidate per filter; the last passes. Thresholds are written in the settings."""
    cases: list[tuple[str | None, dict[str, Any]]] = [
        ("prompt_too_long", {"response": None, "finish_reason": "prompt_too_long"}),
        ("failed", {"response": None, "finish_reason": "failed"}),
        ("empty", {"response": ""}),
        ("too_short", {"response": "ab"}),
        ("too_long", {"response": "a" * 21}),
        ("truncated", {"response": "abcde", "finish_reason": "length"}),
        ("repetition", {"response": "abcde", "repetition": 0.6}),
        ("same_as_rejected", {"response": "the bad one"}),
        ("no_score", {"response": "abcde", "perplexity": None}),
        ("perplexity_too_high", {"response": "abcde", "perplexity": 31.0}),
        (None, {"response": "abcde", "perplexity": 30.0}),
    ]
    frame = samples(
        [{"prompt_id": str(i), "perplexity": 1.0, **row} for i, (_, row) in enumerate(cases)]
    )
    others = rejected(*(str(i) for i in range(len(cases))), text="the bad one")
    strict = Select(min_chars=3, max_chars=20, max_repetition=0.5, max_perplexity=30.0)
    got = select.by_perplexity(frame, others, strict)
    assert got["reason"].to_list() == [reason for reason, _ in cases]
    assert got["selected"].to_list() == [False] * 10 + [True]

    lenient = strict.model_copy(update={"on_filter": "count"})
    counted = select.by_perplexity(frame, others, lenient)
    assert counted["reason"].to_list() == got["reason"].to_list()
    # Nothing to train on, nothing to compare, or over the stated threshold: never chosen.
    assert counted["selected"].to_list() == [False] * 3 + [True] * 5 + [False, False, True]


def test_first_needs_no_score() -> None:
    frame = samples(
        [
            {"prompt_id": "a", "response": "", "agent": "t1"},
            {"prompt_id": "a", "response": "second", "agent": "t2"},
        ],
        scored=False,
    )
    got = select.first(frame, rejected("a"), Select())
    assert got["selected"].to_list() == [False, True]


def test_no_setting_keeps_a_test_prompt() -> None:
    frame = select.competing(samples([{"prompt_id": "a", "response": "x"}]), KEEP_ALL)
    for reason in ("in_test_set", "overlaps_test_set", "near_duplicate"):
        barred = pl.DataFrame({"prompt_id": ["a"], "reason": [reason]})
        assert not select.usable(select.exclude(frame, barred), KEEP_ALL).any()


def test_who_was_never_judged_is_not_rejected() -> None:
    """Of three the last has no score; with one judged answer there is nothing to compare."""
    rows = [{"prompt_id": p, "response": r, "draw": r} for p in "ab" for r in "xyz"]
    frame = samples([{**row, "draw": n} for n, row in enumerate(rows)])
    ranked = select.competing(frame, Select()).with_columns(
        rank=pl.Series([1, 2, 3] * 2), score=pl.Series([1.0, 0.5, None, 1.0, None, None])
    )
    ends = select.best_and_worst(ranked)
    assert ends["rejected"].to_list() == [False, True, False, False, False, False]
    assert ends["selected"].to_list() == [True, False, False, False, False, False]
    assert set(ends["reason"][3:]) == {"only_answer"}


def test_pair_keeps_order_and_says_what_fell_out() -> None:
    frame = samples(
        [
            {"prompt_id": "b", "response": "B", "perplexity": 2.0},
            {"prompt_id": "a", "response": "A", "perplexity": 3.0},
            {"prompt_id": "c", "response": "", "perplexity": None},
            {"prompt_id": "d", "response": "D", "perplexity": 1.0},
        ]
    )
    other = pl.concat([rejected("a", "b", "c"), rejected("d", text="")])
    ranked = select.by_perplexity(frame, other, Select())
    pairs, dropped = select.pair(prompts("a", "b", "c", "d"), ranked, other)
    assert pairs.select("prompt_id", "chosen", "rejected").rows() == [
        ("a", "A", "bad"),
        ("b", "B", "bad"),
    ]
    assert pairs["chosen_perplexity"].to_list() == [3.0, 2.0]
    assert dropped.select("prompt_id", "reason").rows() == [("c", "empty"), ("d", "rejected_empty")]


def test_repetition_by_hand() -> None:
    """`a b a b a` has runs aba, bab, aba: one of three occurred before."""
    assert repetition("a b a b a") == 1 - 2 / 3
    assert repetition("a b") == 0.0


perplexities = st.one_of(st.none(), st.floats(min_value=1.0, max_value=1e6))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), perplexities, st.sampled_from(["", "x", "bad", "yy"]))),
    st.integers(1, 3),
    st.sampled_from(["drop", "count"]),
)
def test_selection_properties(
    rows: list[tuple[int, float | None, str]], keep: int, on_filter: Any
) -> None:
    """No prompt gets more than `keep`; nothing chosen is worse than a usable one left behind."""
    ids = [str(i) for i in range(6)]
    frame = samples([{"prompt_id": str(p), "perplexity": x, "response": r} for p, x, r in rows])
    got = select.by_perplexity(
        frame, rejected(*ids), Select(keep=keep, min_chars=2, on_filter=on_filter)
    )
    assert (
        got.select("prompt_id", "response").rows() == frame.select("prompt_id", "response").rows()
    )
    for (_,), group in got.group_by(["prompt_id"]):
        picked = group.filter("selected")
        assert len(picked) == min(keep, group["rank"].count())
        left = group.filter(~pl.col("selected") & pl.col("rank").is_not_null())
        worst = max(picked["perplexity"].to_list(), default=-math.inf)
        assert all(worst <= x for x in left["perplexity"].to_list())
        if on_filter == "drop":
            assert picked["reason"].is_null().all()
    pairs, dropped = select.pair(prompts(*ids), got, rejected(*ids))
    assert len(pairs) == got["selected"].sum()
    assert len(dropped) == got.filter(pl.col("rank").is_null()).height


def test_perplexity_counts_the_end_of_the_turn() -> None:
    """exp of minus the mean over tokens, the end among them where there is one; by hand."""
    rows = {
        "finish_reason": ["stop", "length", "stop", "stop"],
        "sum_logprob": [-3.0, -3.0, 0.0, -1e9],
        "num_tokens": [2, 2, 0, 1],
        "eot_logprob": [-1.5, 0.0, -1.0, 0.0],
    }
    values = pl.DataFrame(rows).select(p=perplexity())["p"].to_list()
    assert values[0] == pytest.approx(math.exp(4.5 / 3))
    assert values[1] == pytest.approx(math.exp(3.0 / 2))
    assert values[2:] == [None, None]  # no tokens; no finite number


def test_a_cut_answer_is_never_chosen_while_a_finished_one_is_there() -> None:
    frame = samples(
        [
            {"prompt_id": "a", "response": "cut", "perplexity": 1.1, "finish_reason": "length"},
            {"prompt_id": "a", "response": "odd", "perplexity": 9.0},
            {"prompt_id": "b", "response": "worse", "perplexity": 3.0, "finish_reason": "length"},
            {"prompt_id": "b", "response": "cut", "perplexity": 2.0, "finish_reason": "length"},
        ]
    )
    for strict in (Select(truncated=False), Select(on_filter="count")):
        ranked = select.by_perplexity(frame, rejected("a", "b"), strict)
        assert ranked["rank"].to_list() == [2, 1, 2, 1]
        first = select.first(frame, rejected("a", "b"), strict)
        assert first["rank"].to_list() == [2, 1, 1, 2]
    highest = select.by_perplexity(frame, rejected("a"), Select(truncated=False, order="highest"))
    assert highest.filter("selected")["response"].to_list() == ["odd", "worse"]
    pool = select.by_perplexity(frame, rejected("a"), Select(truncated=False, pool=0.5))
    assert pool.filter("selected")["response"].to_list() == ["odd"]
    dropped = select.by_perplexity(frame, rejected("a", "b"), Select())
    assert dropped.filter("selected")["response"].to_list() == ["odd"]
