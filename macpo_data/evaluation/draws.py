"""Several sampled answers per prompt: how they were sampled, and their mean per prompt.

Prompts are independent of each other, answers to one prompt are not: a mean and its interval are
taken over prompts, each with the mean over its answers.
"""

from __future__ import annotations

import polars as pl

from macpo_data.recipe.generation import Sampling

KEY = ("prompt_id", "agent", "behavior", "round", "against")


def by_prompt(rows: pl.DataFrame, *columns: str) -> pl.DataFrame:
    """The mean over a policy's answers to each prompt, those without a value left out.

    Args:
        rows: RESPONSES or JUDGEMENTS, of any policies.
        columns: of numbers.

    Returns:
        One row per prompt and policy (and baseline): these, and the means; null without a value.
    """
    key = [name for name in KEY if name in rows.columns]
    return rows.group_by(key, maintain_order=True).agg(pl.col(columns).mean())


def described(sampling: Sampling) -> str:
    """How answers were sampled, in words: greedy answers, or 4 answers at temperature 0.7."""
    if sampling.temperature == 0:
        return "greedy answers"
    count = "one answer" if sampling.n == 1 else f"{sampling.n} answers"
    words = [f"{count} at temperature {sampling.temperature:g}"]
    words += [f"top_p {sampling.top_p:g}"] if sampling.top_p < 1 else []
    words += [f"top_k {sampling.top_k}"] if sampling.top_k else []
    return ", ".join(words)
