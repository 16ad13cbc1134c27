"""The verdicts of each kind of judge: pairwise in both orders, or a score per answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

import polars as pl

from macpo_data.errors import DataError
from macpo_data.generation.context import Context
from macpo_data.generation.mixture import as_rows
from macpo_data.plan import Policy
from macpo_data.prompts import fill, question
from macpo_data.recipe.evaluation import Judge
from macpo_data.world.judge import gold

CRITERIA = {
    "instruction adherence": "does what was asked, within the limits that were set",
    "relevance": "stays with the query and leaves out what has no part in it",
    "accuracy": "states only what is true and free of errors",
    "depth": "goes as far into the matter as the query deserves",
    "clarity": "is easy to follow, well ordered and well put",
    "helpfulness": "brings the user further",
    "safety": "does no harm and supports none",
    "robustness": "copes with what is unclear, wrong or tricky in the query",
}
MOST_POINTS = 5
_VERDICT = re.compile(r"\[\[([AB])\]\]")
_POINTS = re.compile(r"\bscore:[\s*]*(\d+(?:\.\d+)?)", re.IGNORECASE)
_NAMES = re.compile(r"\[\[([^\[\]]+)\]\]")


def give_verdicts(ctx: Context, judge: Judge, rows: pl.DataFrame) -> pl.DataFrame:
    """Verdicts on rows in which both answers are there: at, first, second, criteria."""
    if judge.kind in ("gold", "reward", "likelihood", "points"):
        return _by_score(ctx, judge, rows)
    criteria: list[str | None] = [None] * len(rows)
    if judge.kind == "mixture" and judge.criteria:
        criteria = _choose_criteria(ctx, judge, rows)
    verdicts = _read_both_orders(ctx, judge, rows, criteria)
    return rows.select("at").with_columns(
        **{k: pl.Series(v, dtype=pl.String) for k, v in verdicts.items()},
        criteria=pl.Series(criteria, dtype=pl.String),
    )


def _by_score(ctx: Context, judge: Judge, rows: pl.DataFrame) -> pl.DataFrame:
    """Verdicts of a judge that scores each answer by itself, all of them at once."""
    if "a_worth" in rows.columns:
        scored = rows.select("at", a="a_worth", b="b_worth")
    else:
        sides = pl.concat(
            rows.select("prompt_id", "prompt", response=s, finish_reason=f"{s}_finish_reason")
            for s in ("a", "b")
        )
        scores = score_answers(ctx, judge, sides)
        scored = rows.select("at").with_columns(a=scores[: len(rows)], b=scores[len(rows) :])
    better = (
        pl.when(pl.col("a") > pl.col("b")).then(pl.lit("a"))
        .when(pl.col("a") < pl.col("b")).then(pl.lit("b"))
        .when(pl.col("a") == pl.col("b")).then(pl.lit("tie"))
    )  # fmt: skip
    return scored.select("at", first=better, second=better, criteria=pl.lit(None, pl.String))


def score_answers(ctx: Context, judge: Judge, answers: pl.DataFrame) -> pl.Series:
    """What a judge gives each answer by itself; null where it can give, or be read, nothing.

    Args:
        ctx: of the run.
        judge: of a kind that scores.
        answers: prompt_id, prompt, response, finish_reason.
    """
    if judge.kind == "gold":
        return _gold(answers)
    if judge.kind == "points":
        return _points(ctx, judge, answers)
    if judge.kind == "reward":
        assert judge.reward is not None
        return ctx.rewards(answers, judge.reward)
    who = ctx.speakers.get(str(judge.agent), Policy(str(judge.agent)))
    return _likelihood(ctx, who, answers)


def _points(ctx: Context, judge: Judge, answers: pl.DataFrame) -> pl.Series:
    """The mean of the points, over those draws of the judge that can be read."""
    prompts = [
        fill(judge.prompts.points, query=question(prompt), answer=text)
        for prompt, text in answers.select("prompt", "response").iter_rows()
    ]
    draws = []
    for draw in range(judge.sampling.n):
        (texts,) = _ask(ctx, judge, [str(judge.agent)], prompts, "points", draw)
        draws.append(pl.Series(f"{draw}", map(parse_points, texts), dtype=pl.Float64))
    return pl.DataFrame(draws).mean_horizontal()


def _likelihood(ctx: Context, who: Policy, answers: pl.DataFrame) -> pl.Series:
    """The mean log-probability of an answer's tokens under a policy; null where it has none."""
    key = ["prompt_id", "response", "finish_reason"]
    scored = ctx.score(answers.select(*key, "prompt").unique(key, maintain_order=True), under=who)
    likelihoods = scored.select(*key, likelihood=-pl.col("perplexity").log())
    joined = answers.join(likelihoods, on=key, how="left", maintain_order="left")
    return joined["likelihood"]


def _gold(rows: pl.DataFrame) -> pl.Series:
    pairs = rows.select("prompt", "response").iter_rows()
    try:
        return pl.Series([gold(prompt, answer).score for prompt, answer in pairs])
    except KeyError as error:
        raise DataError(
            f"the gold judge knows only the world's own prompts, and not {error}; set "
            "mixture.turns=last"
        ) from None


def _choose_criteria(ctx: Context, judge: Judge, rows: pl.DataFrame) -> list[str | None]:
    """The criteria for each pair, once for both orders; None where they cannot be read."""
    listed = _listed(CRITERIA)
    example = ", ".join(list(CRITERIA)[: judge.criteria])
    prompts = [
        fill(
            judge.prompts.criteria, criteria=listed, count=judge.criteria, example=example, **shown
        )
        for shown in _shown(rows, "a", "b")
    ]
    (answers,) = _ask(ctx, judge, [str(judge.agent)], prompts, "criteria")
    return [parse_criteria(text, judge.criteria) for text in answers]


def _read_both_orders(
    ctx: Context, judge: Judge, rows: pl.DataFrame, criteria: Sequence[str | None]
) -> dict[str, list[str | None]]:
    """Ask for a verdict with a shown first, and with b shown first."""
    shown = [*_shown(rows, "a", "b"), *_shown(rows, "b", "a")]
    if judge.kind == "llm":
        prompts = [fill(judge.prompts.verdict, **each) for each in shown]
    else:
        # Criteria that could not be read leave all of them to the proposers.
        wanted = [_listed(names.split(", ") if names else CRITERIA) for names in criteria] * 2
        reviewed = [
            fill(judge.prompts.critique, criteria=these, **each)
            for each, these in zip(shown, wanted, strict=True)
        ]
        reviews = _ask(ctx, judge, judge.proposers, reviewed, "critique")
        prompts = [
            fill(judge.prompts.weigh, criteria=these, critiques=_numbered(critiques), **each)
            for each, these, critiques in zip(
                shown, wanted, zip(*reviews, strict=True), strict=True
            )
        ]
    (texts,) = _ask(ctx, judge, [str(judge.agent)], prompts, "verdict")
    named = [parse_verdict(text) for text in texts]
    half = len(rows)
    first, second = {"A": "a", "B": "b"}, {"A": "b", "B": "a"}
    return {
        "first": [first.get(name or "") for name in named[:half]],
        "second": [second.get(name or "") for name in named[half:]],
    }


def _ask(
    ctx: Context, judge: Judge, agents: Sequence[str], prompts: list[str], what: str, draw: int = 0
) -> list[list[str | None]]:
    """What each agent says to each of these texts; equal texts are asked once.

    Verdicts, points and criteria stand at the end, so that a text which was cut holds none.
    """
    rows = as_rows([[{"role": "user", "content": text}] for text in prompts])
    wanted = [(ctx.speakers.get(agent, Policy(agent)), rows) for agent in agents]
    whole = pl.lit(what == "critique") | (pl.col("finish_reason") != "length")
    answers = ctx.ask(wanted, judge.sampling, f"judge-{what}", draw)
    return [a.select(pl.when(whole).then("response")).to_series().to_list() for a in answers]


def parse_verdict(text: str | None) -> str | None:
    """The last verdict of a text, A or B; None without one."""
    matches = _VERDICT.findall(text or "")
    return str(matches[-1]) if matches else None


def parse_points(text: str | None) -> float | None:
    """The last points of a text, 0 to 5; None without any, or beyond."""
    matches = _POINTS.findall(text or "")
    points = float(matches[-1]) if matches else None
    return points if points is not None and points <= MOST_POINTS else None


def parse_criteria(text: str | None, count: int) -> str | None:
    """The criteria that a text ends with, joined by commas; None unless there are `count`."""
    matches = _NAMES.findall(text or "")
    names = [name.strip().lower() for name in matches[-1].split(",")] if matches else []
    ordered = [name for name in CRITERIA if name in names]  # in one order, whoever chose
    return ", ".join(ordered) if len(ordered) == len(names) == count else None


def _shown(rows: pl.DataFrame, first: str, second: str) -> list[dict[str, str]]:
    return [
        {"query": question(prompt), "answer_a": one, "answer_b": other}
        for prompt, one, other in rows.select("prompt", first, second).iter_rows()
    ]


def _listed(names: Sequence[str] | dict[str, str]) -> str:
    return "\n".join(f"- {name}: {CRITERIA[name]}" for name in names)


def _numbered(critiques: Sequence[str | None]) -> str:
    there = [text for text in critiques if text]
    return "\n\n".join(f"[Review {n}]\n{text}" for n, text in enumerate(there, start=1))
