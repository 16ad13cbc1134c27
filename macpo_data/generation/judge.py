"""LLM-as-a-judge and other judges: pairwise verdicts in both orders, and their reliability.

A judge that reads (one model, or a mixture of several) is asked twice, once with each answer shown
first; one that scores each answer by itself (a reward model, the world's gold judge, an agent that
gives points) needs no order.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from macpo_data.errors import ModelError
from macpo_data.generation import ranking, select
from macpo_data.generation.context import Context, Judged
from macpo_data.generation.verdicts import give_verdicts, score_answers
from macpo_data.plan import Policy
from macpo_data.recipe.evaluation import Judge
from macpo_data.schema import MEETINGS
from macpo_data.schema import check as schema_check

MINIMUM = 20  # verdicts, below which nothing is said about a judge's habits


def compare(ctx: Context, judge: Judge, rows: pl.DataFrame) -> pl.DataFrame:
    """Compare pairs of answers.

    An answer that was not written loses without being shown, and equal answers are a tie.

    Args:
        ctx: of the run.
        judge: as the recipe describes it.
        rows: prompt_id, prompt, a, b; a prompt may occur in several rows. A reward model reads
            a_finish_reason and b_finish_reason, which are stop where they are left out. A judge
            that scores is not asked again where a_worth and b_worth have its scores.

    Returns:
        Row for row: first, the verdict where a was shown first, and second, where b was (a, b,
        tie; null where it could not be read), criteria (those of a mixture, null where they could
        not be read), shown (whether the judge saw them), and win (1 a wins, 0 b wins, 0.5 a tie or
        one verdict each; null where no verdict could be read, or neither answer is there).

    Raises:
        MacpoError: the judge cannot be asked.
    """
    finish = [f"{side}_finish_reason" for side in ("a", "b")]
    ended = {name: pl.lit("stop") for name in finish if name not in rows.columns}
    worth = [name for name in ("a_worth", "b_worth") if name in rows.columns]
    rows = rows.with_columns(**ended).select("prompt_id", "prompt", "a", "b", *finish, *worth)
    rows = rows.with_row_index("at")
    there = {side: pl.col(side).fill_null("") != "" for side in ("a", "b")}
    unlike = pl.col("a") != pl.col("b")
    shown = rows.filter(there["a"] & there["b"] & unlike)
    judged = give_verdicts(ctx, judge, shown)
    with_verdicts = rows.join(judged, on="at", how="left", maintain_order="left")
    value = {"a": 1.0, "tie": 0.5, "b": 0.0}
    verdicts = [
        pl.col(order).replace_strict(value, default=None, return_dtype=pl.Float64)
        for order in ("first", "second")
    ]
    mute = pl.when(there["a"] != there["b"]).then(there["a"].cast(pl.Float64))
    alike = pl.when(there["a"] & there["b"] & ~unlike).then(0.5)
    win = pl.coalesce(mute, alike, pl.mean_horizontal(verdicts))
    was_shown = there["a"] & there["b"] & unlike
    return with_verdicts.select("first", "second", "criteria", shown=was_shown, win=win)


def rank(
    ctx: Context, order: ranking.Order, prompts: pl.DataFrame, candidates: pl.DataFrame
) -> tuple[pl.DataFrame, Judged | None]:
    """Rank each prompt's usable candidates; with order `judge`, let the recipe's judge decide.

    Args:
        ctx: of the run.
        order: judge, random (seeded), or first: as they stand.
        prompts: prompt_id, prompt.
        candidates: CANDIDATES without ranks.

    Returns:
        CANDIDATES with ranks and a column `score` (mean share of wins; null if not judged), and
        what the judge said.

    Raises:
        ModelError: the judge goes by position, or says nothing.
    """
    settings, judge, seed = ctx.recipe.select, ctx.recipe.judge, ctx.recipe.seed
    frame = candidates.with_row_index("index").with_columns(score=pl.lit(None, pl.Float64))
    usable = frame.filter(select.usable(candidates, settings))
    answers = usable.select("prompt_id", "index")
    judged = None
    if order == "judge":
        assert judge is not None
        seen = usable.join(prompts, on="prompt_id", maintain_order="left")
        unread = 0
        if judge.kind == "gold":
            seen = seen.with_columns(worth=score_answers(ctx, judge, seen))
            if ctx.recipe.engine.name == "fake" and seen["worth"].n_unique() == 1:
                # What the fake engine writes is worth nothing, and there would be no pair to see.
                seen = seen.with_columns(worth=pl.col("response").hash().cast(pl.Float64))
        if judge.kind in ("reward", "points"):
            # What the model cannot read, or gives no points that can be read, is out, not beaten.
            seen = seen.with_columns(worth=score_answers(ctx, judge, seen))
            mute = seen["worth"].is_null()
            unread = int(mute.sum()) if judge.kind == "points" else 0
            out = pl.col("index").is_in(seen.filter(mute)["index"].implode())
            frame = frame.with_columns(
                reason=pl.when(out).then(pl.lit("no_score")).otherwise("reason")
            )
            usable, seen = usable.filter(~out), seen.filter(~mute)
            answers = usable.select("prompt_id", "index")
        verdicts = _tournament(ctx, judge, answers, seen)
        score = ranking.scores(answers, verdicts, judge.merge)
        usable = usable.with_columns(score=score)
        facts = report(verdicts) | {"win_matrix": _win_matrix(usable, verdicts)}
        facts["unparseable"] += unread
        check(facts, judge)
        judged = Judged(_meetings(usable, verdicts), facts)
    by_chance = order == "random" or (
        order == "judge" and judge is not None and judge.ties == "random"
    )
    ranks = ranking.ranks(answers, usable["score"], seed if by_chance else None)
    ranked = usable.select("index", "score", rank=ranks)
    frame = frame.drop("score", "rank").join(ranked, on="index", how="left", maintain_order="left")
    return frame.drop("index"), judged


def _tournament(
    ctx: Context, judge: Judge, answers: pl.DataFrame, seen: pl.DataFrame
) -> pl.DataFrame:
    """All meetings with their verdicts: prompt_id, a, b, and what `compare` returns."""
    if judge.pairs != "swiss":
        return _meet(ctx, judge, ranking.meetings(answers, judge.pairs), seen)
    most = answers.group_by("prompt_id").len()["len"].max() or 0
    met = _meet(ctx, judge, ranking.meetings(answers, "all").clear(), seen)
    for _ in range(ranking.swiss_rounds(int(str(most)))):
        score = ranking.scores(answers, met, judge.merge)
        following = ranking.swiss_meetings(answers.with_columns(score=score), met)
        met = pl.concat([met, _meet(ctx, judge, following, seen)])
    return met


def _meet(ctx: Context, judge: Judge, meetings: pl.DataFrame, seen: pl.DataFrame) -> pl.DataFrame:
    rows = meetings
    for side in ("a", "b"):
        names = {f"{side}_text": "response", f"{side}_finish_reason": "finish_reason"}
        names |= {f"{side}_worth": "worth"} if "worth" in seen.columns else {}
        answers = seen.select(pl.col("index").alias(side), **names)
        rows = rows.join(answers, on=side, how="left", maintain_order="left")
    prompts = seen.select("prompt_id", "prompt").unique("prompt_id")
    rows = rows.join(prompts, on="prompt_id", how="left", maintain_order="left")
    shown = rows.drop("a", "b").rename({"a_text": "a", "b_text": "b"})
    return pl.concat([meetings, compare(ctx, judge, shown)], how="horizontal")


def _meetings(usable: pl.DataFrame, verdicts: pl.DataFrame) -> pl.DataFrame:
    """Verdicts with the names of who met, as MEETINGS."""
    for side in ("a", "b"):
        who = usable.select(
            pl.col("index").alias(side),
            pl.col("agent").alias(f"{side}_agent"),
            pl.col("draw").alias(f"{side}_draw"),
        )
        verdicts = verdicts.join(who, on=side, how="left", maintain_order="left")
    return schema_check(verdicts, MEETINGS, "judgements")


def _win_matrix(usable: pl.DataFrame, verdicts: pl.DataFrame) -> dict[str, dict[str, float]]:
    """How often each won against each, over all prompts: by agent and draw."""
    name = pl.format("{}-{}", "agent", "draw")
    names = dict(usable.select("index", name).iter_rows())
    named = verdicts.select(
        a=pl.col("a").replace_strict(names, return_dtype=pl.String),
        b=pl.col("b").replace_strict(names, return_dtype=pl.String),
        win="win",
    )
    both = pl.concat([named, named.select(a="b", b="a", win=1 - pl.col("win"))])
    means = both.group_by("a", "b").agg(pl.col("win").mean().round(4)).drop_nulls().sort("a", "b")
    matrix: dict[str, dict[str, float]] = {}
    for one, other, win in means.iter_rows():
        matrix.setdefault(one, {})[other] = win
    return matrix


def report(verdicts: pl.DataFrame) -> dict[str, Any]:
    """What a judge's verdicts say of it, for manifests: counts and shares, null where none.

    Args:
        verdicts: what `compare` returned.
    """
    both = pl.concat(
        [
            verdicts.select(verdict="first", shown_first=pl.lit("a")),
            verdicts.select(verdict="second", shown_first=pl.lit("b")),
        ]
    )
    read = both.drop_nulls("verdict")
    decided = read.filter(pl.col("verdict") != "tie")
    twice = verdicts.drop_nulls(["first", "second"])
    return {
        "comparisons": len(verdicts),
        "verdicts": len(read),
        "ties": len(read) - len(decided),
        "unparseable": 2 * int(verdicts["shown"].sum()) - len(read),
        "shown_first_wins": _share(decided, pl.col("verdict") == pl.col("shown_first")),
        "orders_agree": _share(twice, pl.col("first") == pl.col("second")),
        "win": _share(verdicts.drop_nulls("win"), pl.col("win")),
        "criteria": dict(
            verdicts["criteria"].drop_nulls().str.split(", ").explode().drop_nulls()
            .value_counts().sort(["count", "criteria"], descending=[True, False]).iter_rows()
        ),
    }  # fmt: skip


def check(facts: dict[str, Any], judge: Judge) -> None:
    """Refuse a judge that goes by position, or says nothing.

    Args:
        facts: what `report` returned.
        judge: as the recipe describes it.

    Raises:
        ModelError: one position wins more often than `judge.max_position_bias`, no verdict could
            be read, or every one is a tie.
    """
    total = facts["verdicts"] + facts["unparseable"]
    if total < MINIMUM:
        return
    reads = judge.kind in ("llm", "mixture", "points")
    who = judge.agent if reads else judge.kind
    other = "judge.agent" if reads else "judge.kind"
    if facts["verdicts"] == 0:
        raise ModelError(
            f"judge {who}: none of {total} verdicts could be read; look at its answers under "
            "runs/<run>/answers, then change judge.agent, judge.prompts or judge.sampling"
        )
    if facts["ties"] == facts["verdicts"]:
        raise ModelError(f"judge {who} never varies: all {total} verdicts are ties; change {other}")
    first = facts["shown_first_wins"]
    if max(first, 1 - first) > judge.max_position_bias:
        position = "first" if first > 0.5 else "second"
        raise ModelError(
            f"judge {who} prefers the answer shown {position} in {max(first, 1 - first):.0%} of "
            f"{facts['verdicts']} verdicts; change judge.agent, or allow it with "
            "judge.max_position_bias"
        )


def policies(judge: Judge | None) -> tuple[Policy, ...]:
    """The policies of a judge: its proposers, then the one that decides."""
    names = [] if judge is None else [*judge.proposers, *([judge.agent] if judge.agent else [])]
    return tuple(Policy(name) for name in dict.fromkeys(names))


def _share(rows: pl.DataFrame, what: pl.Expr) -> float | None:
    value = rows.select(what.cast(pl.Float64).mean()).item() if len(rows) else None
    return None if value is None else round(float(value), 4)
