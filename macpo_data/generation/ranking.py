"""From verdicts on pairs to a ranking of each prompt's answers. Pure polars and small loops.

`answers` are frames of prompt_id and index, a number that is each answer's own; they stand by
prompt, in the order of their draws.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import chain
from typing import Literal

import polars as pl

from macpo_data.recipe.section import digest

Pairs = Literal["all", "swiss", "first_vs_rest"]
Order = Literal["judge", "random", "first"]


def meetings(answers: pl.DataFrame, pairs: Pairs) -> pl.DataFrame:
    """Which answers of a prompt meet, where that is known beforehand: (prompt_id, a, b), a < b."""
    others = answers.rename({"index": "b"})
    met = answers.rename({"index": "a"}).join(others, on="prompt_id", maintain_order="left_right")
    met = met.filter(pl.col("a") < pl.col("b"))
    if pairs == "first_vs_rest":
        met = met.filter(pl.col("a") == pl.col("a").min().over("prompt_id"))
    return met


def swiss_rounds(n: int) -> int:
    """How often each of n answers plays: as often as a knock-out would take."""
    return math.ceil(math.log2(n)) if n > 1 else 0


def swiss_meetings(scored: pl.DataFrame, met: pl.DataFrame) -> pl.DataFrame:
    """The next round of a Swiss tournament: each meets the nearest by score whom it did not meet.

    Args:
        scored: prompt_id, index, score (null before the first round).
        met: (prompt_id, a, b) of the rounds before.

    Returns:
        (prompt_id, a, b); with an odd number, the lowest of those who always played rests.
    """
    pairs = set(met.select("a", "b").iter_rows())
    played = Counter(chain.from_iterable(pairs))
    order = scored.sort("score", descending=True, nulls_last=True, maintain_order=True)
    rows = []
    for (prompt_id,), group in order.group_by("prompt_id", maintain_order=True):
        free = group["index"].to_list()
        if len(free) % 2:
            free.remove(max(reversed(free), key=played.__getitem__))
        free.sort(key=lambda one: one in played)  # nobody stays unjudged
        while free:
            one = free.pop(0)
            other = next((x for x in free if (min(one, x), max(one, x)) not in pairs), None)
            if other is not None:
                free.remove(other)
                rows.append((prompt_id, min(one, other), max(one, other)))
    return pl.DataFrame(rows, schema=met.select("prompt_id", "a", "b").schema, orient="row")


def scores(
    answers: pl.DataFrame, judged: pl.DataFrame, merge: Literal["each", "agree"]
) -> pl.Series:
    """Each answer's mean share of wins over its meetings; null where it met none.

    Args:
        answers: prompt_id, index.
        judged: a, b, and first, second, shown, win as `judge.compare` gives them.
        merge: each: a win for each verdict, so a disagreement is half each, and an unreadable one
            is no win for either. agree: only what both orders say is a win.
    """
    both = {}
    for side in ("a", "b"):
        won = [
            pl.when(pl.col(v) == side).then(1.0).when(pl.col(v) == "tie").then(0.5).otherwise(0.0)
            for v in ("first", "second")
        ]
        agreed = pl.when(pl.col("first") == pl.col("second")).then(won[0]).otherwise(0.0)
        unseen = pl.col("win") if side == "a" else 1 - pl.col("win")
        share = agreed if merge == "agree" else pl.mean_horizontal(won)
        both[side] = pl.when("shown").then(share).otherwise(unseen.fill_null(0.0))
    games = pl.concat([judged.select(index=side, won=won) for side, won in both.items()])
    means = games.group_by("index").agg(score=pl.col("won").mean())
    return answers.join(means, on="index", how="left", maintain_order="left")["score"]


def ranks(answers: pl.DataFrame, score: pl.Series, seed: int | None) -> pl.Series:
    """1 for the best answer of a prompt; equal scores by chance, without a seed as they stand."""
    frame = answers.with_columns(score=score, tie=pl.int_range(pl.len()))
    if seed is not None:
        places = answers.select("prompt_id", pl.int_range(pl.len()).over("prompt_id"))
        draws = [digest([seed, "ties", *place]) for place in places.iter_rows()]
        frame = frame.with_columns(tie=pl.Series(draws, dtype=pl.String))
    order = frame.with_row_index("at").sort(
        "prompt_id", "score", "tie", descending=[False, True, False], nulls_last=True
    )
    ranked = order.with_columns(rank=pl.int_range(1, pl.len() + 1).over("prompt_id"))
    return ranked.sort("at")["rank"].cast(pl.Int64)
