"""Signs of failure in one learner's dataset of one round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from macpo_data import text
from macpo_data.signs.rules import Sign, Signs, beside

LOOP = 0.5  # share of repeated 3-word runs above which an answer is a loop; as select has it
SHORT = 4  # an answer of fewer words is very short


def of_dataset(
    pairs: pl.DataFrame,
    candidates: pl.DataFrame,
    before: Mapping[str, Sign],
    first: Mapping[str, Sign],
) -> Signs:
    """Signs in one learner's dataset of one round.

    Args:
        pairs: PAIRS.
        candidates: CANDIDATES.
        before: those of its dataset of the round before; empty where there is none.
        first: those of its first round of contrasts; likewise.
    """
    chosen_nats, rejected_nats = (
        pl.col(f"{side}_sum_logprob") + pl.col(f"{side}_eot_logprob")
        for side in ("chosen", "rejected")
    )
    one, other = pl.col("words").list.first(), pl.col("other_words").list.first()
    each = pl.col("rejected_perplexity").log() - pl.col("chosen_perplexity").log()
    gap = each.median()
    # Found once: as parts of one expression they would be found again for each use.
    split = pairs.with_columns(words=text.words("chosen"), other_words=text.words("rejected"))
    values: dict[str, Any] = split.select(
        perplexity=pl.col("chosen_perplexity").median(),
        gap=gap,
        apart=each.abs().median(),
        reversed=gap.clip(upper_bound=0.0),
        overlap=text.overlap("words", "other_words").mean(),
        ranked=(chosen_nats > rejected_nats).mean(),
        first_word=(one == other).mean(),
        chosen_chars=pl.col("chosen").str.len_chars().mean(),
        rejected_chars=pl.col("rejected").str.len_chars().mean(),
        chosen_short=(pl.col("words").list.len() < SHORT).mean(),
        chosen_cut=(pl.col("chosen_finish_reason") == "length").mean(),
    ).row(0, named=True)
    texts = text.sample(pairs.select("prompt_id", response="chosen"))
    values |= distinct(texts) | {"self_bleu": text.self_bleu(texts)}
    values["loops"] = (candidates["repetition"] > LOOP).mean()
    values["cut"] = (candidates["finish_reason"] == "length").mean()
    if candidates["agent"].n_unique() > 1:
        shares = pairs["chosen_agent"].value_counts(normalize=True)["proportion"]
        values["one_sided"] = shares.max()
    return beside(values, before, first)


def short(column: str) -> pl.Expr:
    """Whether a text has fewer than SHORT words."""
    return text.words(column).list.len() < SHORT


def distinct(texts: pl.Series) -> dict[str, float | None]:
    """The shares of distinct runs of 1, 2 and 3 words."""
    return {f"distinct_{n}": text.distinct(texts, n) for n in (1, 2, 3)}
