"""Human answers as preference pairs, and label noise that swaps a share of them."""

from __future__ import annotations

import polars as pl

from macpo_data.recipe.section import digest
from macpo_data.schema import PAIRS

LABELS = "labels"  # for whom noise is drawn, where it is in the student's weak labels


def answers(prompts: pl.DataFrame, *sides: str) -> pl.DataFrame:
    """What people answered as PAIRS; a side that is not asked for is empty.

    Args:
        prompts: PROMPTS.
        sides: chosen, rejected.
    """
    human = {"agent": "human", "policy": "human", "finish_reason": "stop"}
    written = {f"{side}_{n}": pl.lit(v) for side in sides for n, v in human.items()}
    pairs = prompts.select("prompt_id", "prompt", *sides).with_columns(**written)
    missing = {n: pl.lit(None, t) for n, t in PAIRS.items() if n not in pairs.columns}
    return pairs.with_columns(**missing)


def drawn(prompt_ids: pl.Series, share: float, whose: str, seed: int) -> pl.Series:
    """Which prompts' sides are swapped: a share, drawn for each of whom it is for."""
    numbers = [int(digest([seed, "noise", whose, i]), 16) for i in prompt_ids]
    return pl.Series([n < share * 16**8 for n in numbers], dtype=pl.Boolean)


def swapped(pairs: pl.DataFrame, share: float, whose: str, seed: int) -> pl.DataFrame:
    """Swap the sides of a share of PAIRS, drawn for `whose`."""
    flip = drawn(pairs["prompt_id"], share, whose, seed)
    other = {"chosen": "rejected", "rejected": "chosen"}
    sides = {
        name: pl.when(flip).then(name.replace(side, other[side])).otherwise(name)
        for side in other
        for name in pairs.columns
        if name.startswith(side)
    }
    return pairs.with_columns(**sides)
