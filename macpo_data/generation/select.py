"""Selection of the chosen answer. Pure polars; each dropped row keeps the reason."""

from __future__ import annotations

import random
import re

import polars as pl

from macpo_data.recipe.generation import Select
from macpo_data.recipe.section import digest
from macpo_data.schema import CANDIDATES, DROPPED, PAIRS, SAMPLES, SCORES, check

# Reasons of prompts that nobody may learn.
BARRED = ("prompt_in_test", "in_test_set", "overlaps_test_set", "near_duplicate")
# No setting keeps these: there is nothing to train on, or nothing to compare.
UNUSABLE = ("prompt_too_long", "failed", "empty", "no_score", *BARRED)


def by_perplexity(
    candidates: pl.DataFrame, rejected: pl.DataFrame, settings: Select, ranks: str = "perplexity"
) -> pl.DataFrame:
    """Choose each prompt's candidates of lowest perplexity (MACPO, student turn).

    With other orders those of the highest, or those next to the prompt's median. Of what all
    prompts chose, `pool` keeps only the best share, in the same order. Ties go to the candidate
    that stands first: the order of the agents in the recipe, then of the draws. A candidate that
    the token limit cut has no end, so that its perplexity is of another kind: where a filter lets
    it through at all, it ranks after every finished one.

    Args:
        candidates: SAMPLES with SCORES under the learner.
        rejected: SAMPLES, one per prompt; a candidate equal to it is caught by a filter.
        settings: filters, threshold and how many to keep per prompt.
        ranks: the column with the perplexities that rank. Filters and threshold, as all that is
            kept with a candidate, stay with the learner's, in `perplexity`.

    Returns:
        CANDIDATES in the same order.
    """
    high = pl.lit(None, pl.String)
    if settings.max_perplexity is not None:
        high = pl.when(pl.col("perplexity") > settings.max_perplexity).then(
            pl.lit("perplexity_too_high")
        )
    unread = pl.any_horizontal(pl.col("perplexity", ranks).is_null())
    unscored = pl.when(unread).then(pl.lit("no_score"))
    # Where several are kept, the same text twice would be the same pair twice.
    again = ~pl.struct("prompt_id", "response").is_first_distinct() & (settings.keep > 1)
    twin = pl.when(again & pl.col("response").is_not_null()).then(pl.lit("duplicate_answer"))
    reason = pl.coalesce(_reason(settings), twin, unscored, high)
    frame = _with_rejected(candidates, rejected).with_columns(reason=reason)
    # The threshold belongs to the selection, so it drops whatever `on_filter` says.
    usable = _usable(settings) & (pl.col("reason").ne_missing("perplexity_too_high"))
    score = pl.when(usable).then(ranks)
    away = {"highest": -score, "middle": (score - score.median().over("prompt_id")).abs()}
    first = away.get(settings.order, score)
    ranked = _select(frame, _finished_first(first).over("prompt_id"), settings.keep)
    return _best_share(ranked, frame[ranks], settings) if settings.pool else ranked


def geometric_means(scored: pl.DataFrame) -> pl.DataFrame:
    """The geometric mean of an answer's perplexities; null where one of them is.

    Args:
        scored: `at`, which answer it is, and its `perplexity` under somebody.

    Returns:
        (at, mean), a row for each answer.
    """
    mean = pl.col("perplexity").log().mean().exp()
    complete = pl.col("perplexity").null_count() == 0
    return scored.group_by("at", maintain_order=True).agg(mean=pl.when(complete).then(mean))


def _best_share(ranked: pl.DataFrame, perplexity: pl.Series, settings: Select) -> pl.DataFrame:
    """Of what was selected, all prompts together, keep the share that stands first in the order."""
    ranked = ranked.with_columns(_ranks=perplexity)
    selected = pl.when("selected").then("_ranks")
    away = {"highest": -selected, "middle": (selected - selected.median()).abs()}
    place = _finished_first(away.get(settings.order, selected))
    out = pl.col("selected") & (place > (settings.pool or 1.0) * pl.col("selected").sum())
    kept = ranked.with_columns(
        reason=pl.when(out).then(pl.lit("outside_pool")).otherwise("reason"),
        rank=pl.when(~out).then("rank"),
        selected=pl.col("selected") & ~out,
    )
    return kept.drop("_ranks")


def first(candidates: pl.DataFrame, rejected: pl.DataFrame, settings: Select) -> pl.DataFrame:
    """Choose each prompt's first usable candidate, whatever its perplexity.

    Args and result as in `by_perplexity`; scores may be missing.
    """
    scores = {n: pl.lit(None, t) for n, t in SCORES.items() if n not in candidates.columns}
    frame = _with_rejected(candidates.with_columns(**scores), rejected)
    frame = frame.with_columns(reason=_reason(settings))
    position = pl.when(_usable(settings)).then(pl.int_range(pl.len()))
    return _select(frame, _finished_first(position).over("prompt_id"), 1)


def competing(
    candidates: pl.DataFrame, settings: Select, rejected: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Say which candidates a filter catches; nobody is ranked yet.

    A text that an earlier candidate of the prompt has already is no candidate of its own.

    Args:
        candidates: SAMPLES, with or without SCORES.
        settings: filters.
        rejected: SAMPLES, one per prompt; a candidate equal to it is caught by a filter.

    Returns:
        CANDIDATES in the same order; those with a reason are out, unless it is only counted.
    """
    scores = {n: pl.lit(None, t) for n, t in SCORES.items() if n not in candidates.columns}
    nothing = candidates.clear() if rejected is None else rejected
    frame = _with_rejected(candidates.with_columns(**scores), nothing)
    again = ~pl.struct("prompt_id", "response").is_first_distinct()
    twin = pl.when(again & pl.col("response").is_not_null()).then(pl.lit("duplicate_answer"))
    frame = frame.with_columns(reason=pl.coalesce(_reason(settings), twin))
    return _select(frame, pl.lit(None, pl.Int64), 0)


def usable(candidates: pl.DataFrame, settings: Select) -> pl.Series:
    """Which CANDIDATES may be ranked."""
    return candidates.select(_usable(settings).alias("usable")).to_series()


def top(ranked: pl.DataFrame, keep: int) -> pl.DataFrame:
    """Select the first `keep` of each prompt by rank."""
    return ranked.with_columns(selected=(pl.col("rank") <= keep).fill_null(False))


def best_and_worst(ranked: pl.DataFrame) -> pl.DataFrame:
    """Select each prompt's first by rank, and mark its last as rejected (MoAA, stage 2).

    Prompts with one judged answer, or whose first and last have equal scores, teach nothing: their
    candidates lose their rank and get the reason. An answer without a score is never rejected.

    Args:
        ranked: CANDIDATES with ranks and a column `score`, null where there is none.

    Returns:
        The same with a column `rejected`.
    """
    ranked_at = pl.col("rank").is_not_null()
    judged = ranked_at & pl.col("score").is_not_null()
    alone = ranked_at & (judged.sum().over("prompt_id") < 2)
    level = ranked_at & (pl.col("score").max() == pl.col("score").min()).over("prompt_id")
    why = pl.when(alone).then(pl.lit("only_answer")).when(level).then(pl.lit("judged_equal"))
    frame = ranked.with_columns(reason=pl.coalesce(why, "reason"))
    frame = frame.with_columns(rank=pl.when(~(alone | level)).then("rank"))
    worst = pl.when(pl.col("score").is_not_null()).then("rank").max().over("prompt_id")
    last = pl.col("rank") == worst
    return top(frame, 1).with_columns(rejected=last.fill_null(False))


def corrupted(candidates: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Make each prompt's rejected answer from the chosen one: its words in another order.

    The white space between them stays. What cannot change, such as a single word, becomes empty,
    and so no pair.

    Args:
        candidates: CANDIDATES, of which the best selected one of each prompt is spoilt.
        seed: of the order.

    Returns:
        SAMPLES, one per prompt.
    """

    def spoil(prompt: str, text: str) -> str:
        words, gaps = text.split(), re.split(r"\S+", text)
        order, rng = list(words), random.Random(digest([seed, "corruption", prompt]))
        while order == words and len({*words}) > 1:
            rng.shuffle(order)
        return "".join(gap + word for gap, word in zip(gaps, [*order, ""], strict=True))

    chosen = _best(candidates)
    spoilt = [spoil(*row) for row in chosen["prompt_id", "response"].iter_rows()]
    return _spoilt(chosen, spoilt, "corruption")


def mismatched(candidates: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Give each prompt the answer that was chosen for another one, as its rejected answer.

    Args and result as in `corrupted`.
    """
    chosen = _best(candidates)
    order = sorted(range(len(chosen)), key=lambda i: digest([seed, chosen["prompt_id"][i]]))
    after = dict(zip(order, order[1:] + order[:1], strict=True))
    texts = chosen["response"].to_list()
    return _spoilt(chosen, [texts[after[i]] for i in range(len(chosen))], "mismatch")


def _best(candidates: pl.DataFrame) -> pl.DataFrame:
    chosen = candidates.filter("selected").sort("rank", maintain_order=True)
    return chosen.unique("prompt_id", keep="first", maintain_order=True).sort("prompt_id")


def _spoilt(chosen: pl.DataFrame, texts: list[str], by: str) -> pl.DataFrame:
    """Nobody wrote these, so that no model is named for them; the same text again is no answer."""
    pairs = zip(chosen["response"], texts, strict=True)
    unlike = pl.Series(["" if text == of else text for of, text in pairs], dtype=pl.String)
    nobody = {"agent": pl.lit(by), "policy": pl.lit(by), "finish_reason": pl.lit("stop")}
    frame = chosen.with_columns(response=unlike, repetition=pl.lit(None, pl.Float64), **nobody)
    return check(frame, SAMPLES, "spoilt answers")


def left_out(barred: pl.DataFrame) -> pl.DataFrame:
    """Prompts that nobody was asked, as DROPPED."""
    return check(
        barred.with_columns(agent=pl.lit(None, pl.String), response=pl.lit(None, pl.String)),
        DROPPED,
        "dropped rows",
    )


def exclude(candidates: pl.DataFrame, barred: pl.DataFrame) -> pl.DataFrame:
    """Take all candidates of some prompts out, whatever the filters said.

    Args:
        candidates: CANDIDATES.
        barred: (prompt_id, reason).
    """
    why = barred.select("prompt_id", _barred="reason")
    frame = candidates.join(why, on="prompt_id", how="left", maintain_order="left")
    out = pl.col("_barred").is_not_null()
    frame = frame.with_columns(
        reason=pl.coalesce("_barred", "reason"),
        rank=pl.when(~out).then("rank"),
        selected=pl.col("selected") & ~out,
    )
    return check(frame, CANDIDATES, "candidates")


def pair(
    prompts: pl.DataFrame, candidates: pl.DataFrame, rejected: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Join what was selected with the rejected response of its prompt.

    Args:
        prompts: PROMPTS; their order is that of the pairs.
        candidates: CANDIDATES.
        rejected: SAMPLES, one per prompt, with or without SCORES.

    Returns:
        PAIRS, and DROPPED: candidates that a filter took out, and prompts without a rejected side.
    """
    scores = {n: pl.lit(None, t) for n, t in SCORES.items() if n not in rejected.columns}
    rejected = rejected.with_columns(**scores)
    mute = pl.col("response").is_null() | (pl.col("response") == "")
    joined = prompts.select("prompt_id", "prompt")
    for side in (_chosen(candidates), _side(rejected.filter(~mute), "rejected")):
        joined = joined.join(side, on="prompt_id", how="inner", maintain_order="left_right")
    caught = candidates.filter(pl.col("reason").is_not_null() & pl.col("rank").is_null())
    silent = rejected.filter(mute).with_columns(
        reason=pl.concat_str(
            pl.lit("rejected_"),
            pl.when(pl.col("response").is_null()).then("finish_reason").otherwise(pl.lit("empty")),
        )
    )
    dropped = pl.concat([frame.select(DROPPED.keys()) for frame in (caught, silent)])
    return check(joined, PAIRS, "pairs"), check(dropped, DROPPED, "dropped rows")


def targets(prompts: pl.DataFrame, candidates: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What was selected with its prompt, for fine-tuning: PAIRS without a rejected side.

    Args and result as in `pair`.
    """
    joined = prompts.select("prompt_id", "prompt").join(
        _chosen(candidates), on="prompt_id", how="inner", maintain_order="left_right"
    )
    nothing = {n: pl.lit(None, t) for n, t in PAIRS.items() if n.startswith("rejected")}
    caught = candidates.filter(pl.col("reason").is_not_null() & pl.col("rank").is_null())
    pairs = check(joined.with_columns(**nothing), PAIRS, "targets")
    return pairs, check(caught.select(DROPPED.keys()), DROPPED, "dropped rows")


def _chosen(candidates: pl.DataFrame) -> pl.DataFrame:
    return _side(candidates.filter("selected").sort("rank", maintain_order=True), "chosen")


def _side(frame: pl.DataFrame, side: str) -> pl.DataFrame:
    return frame.select(
        "prompt_id",
        pl.col("response").alias(side),
        *(pl.col(c).alias(f"{side}_{c}") for c in ("agent", "policy", "finish_reason", *SCORES)),
    )


def _with_rejected(candidates: pl.DataFrame, rejected: pl.DataFrame) -> pl.DataFrame:
    other = rejected.select("prompt_id", pl.col("response").alias("_rejected"))
    return candidates.join(other, on="prompt_id", how="left", maintain_order="left")


def _reason(settings: Select) -> pl.Expr:
    """The first filter that catches a response, or null."""
    length = pl.col("response").str.len_chars()
    caught = [
        (length == 0, "empty"),
        (length < settings.min_chars, "too_short"),
    ]
    if settings.max_chars is not None:
        caught.append((length > settings.max_chars, "too_long"))
    if settings.truncated:
        caught.append((pl.col("finish_reason") == "length", "truncated"))
    if settings.max_repetition is not None:
        caught.append((pl.col("repetition") > settings.max_repetition, "repetition"))
    if settings.same_as_rejected:
        caught.append((pl.col("response") == pl.col("_rejected"), "same_as_rejected"))
    unwritten = pl.when(pl.col("response").is_null()).then("finish_reason")
    filters = (pl.when(condition).then(pl.lit(reason)) for condition, reason in caught)
    return pl.coalesce(unwritten, *filters)


def _usable(settings: Select) -> pl.Expr:
    if settings.on_filter == "count":
        return ~pl.col("reason").is_in(UNUSABLE).fill_null(False)
    return pl.col("reason").is_null()


def _finished_first(value: pl.Expr) -> pl.Expr:
    """Ranks from 1 by a value, lowest first; all that the token limit cut come last."""
    cut = pl.col("finish_reason") == "length"
    finished = pl.when(~cut).then(value)
    behind = pl.when(cut).then(value).rank("ordinal") + finished.count()
    return pl.coalesce(finished.rank("ordinal"), behind)


def _select(frame: pl.DataFrame, rank: pl.Expr, keep: int) -> pl.DataFrame:
    frame = frame.with_columns(rank=rank.cast(pl.Int64))
    frame = frame.with_columns(selected=(pl.col("rank") <= keep).fill_null(False))
    return check(frame, CANDIDATES, "candidates")
