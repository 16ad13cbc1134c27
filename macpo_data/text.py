"""Text metrics: repetition, word overlap, distinct n-grams, self-BLEU."""

from __future__ import annotations

from typing import Any

import polars as pl

# Of answers to many prompts, those to the first by id are looked at. An id is a hash, so that they
# are a random sample, and of the same prompts in every round. Self-BLEU is quadratic in them.
TEXTS = 64
WORDS = 50  # of each: distinct-n falls as texts get longer, whatever they say


def words(column: str) -> pl.Expr:
    """The words of a text, in lower case, without punctuation."""
    return pl.col(column).str.to_lowercase().str.extract_all(r"\w+")


def overlap(one: str, other: str) -> pl.Expr:
    """The share of words that two lists have in common, of all their words (Jaccard's index)."""
    both = pl.col(one).list.set_intersection(other).list.len()
    shared = both / pl.col(one).list.set_union(other).list.len()
    return shared.fill_nan(None)


def sample(answers: pl.DataFrame) -> pl.Series:
    """The first WORDS words of TEXTS answers, one for a prompt.

    Args:
        answers: prompt_id, response.
    """
    first = answers.drop_nulls("response").unique("prompt_id", keep="first").sort("prompt_id")
    return first.head(TEXTS).select(words("response").list.head(WORDS)).to_series()


def distinct(texts: pl.Series, n: int) -> float | None:
    """Share of the n-grams of texts that differ (Li et al. 2016); None where there are none."""
    frame = texts.alias("word").to_frame().with_row_index("text").explode("word").drop_nulls()
    run = [pl.col("word").shift(-k).over("text").alias(str(k)) for k in range(n)]
    ngrams = frame.select(pl.struct(run).filter(run[-1].is_not_null())).to_series()
    return ngrams.n_unique() / len(ngrams) if len(ngrams) else None


def self_bleu(texts: pl.Series) -> float | None:
    """Mean BLEU (0..100) of each text against all others (Zhu et al. 2018); None of fewer than two.

    A text of fewer than four words is held against the shorter n-grams that it has.
    """
    from sacrebleu.metrics.bleu import BLEU  # a moment, and only where a dataset is written

    lines = [" ".join(text) for text in texts if len(text)]
    if len(lines) < 2:
        return None
    bleu = BLEU(effective_order=True, tokenize="none")
    scores = (
        bleu.sentence_score(line, lines[:at] + lines[at + 1 :]).score
        for at, line in enumerate(lines)
    )
    return sum(scores) / len(lines)


def repetition(text: str) -> float:
    """Share of a text's 3-word runs that occurred before in it; 0 where it has none."""
    words = text.split()
    runs = len(words) - 2
    return 1 - len(set(zip(words, words[1:], words[2:], strict=False))) / runs if runs > 0 else 0.0


def json_number(value: Any) -> Any:
    """A number to five digits, null where it is not finite; anything else as it is."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.5g}") if abs(value) < float("inf") else None
