"""The metrics of an evaluation, in order of importance, and their means."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from macpo_data import stats
from macpo_data.evaluation import draws
from macpo_data.evaluation.policies import is_of_policy
from macpo_data.plan import Policy
from macpo_data.schema import EVALUATION

MEASURES = ("gold", "reward", "win_lc", "win")
"""In the order in which they count: the first that is there tells whether a policy got better."""

PER_ANSWER = {"gold": "responses", "reward": "responses", "win": "judgements"}
"""In the same order, those of which each answer has a score of its own, and in which table.
A length-controlled win rate is fitted over all answers together."""

BY_PROMPT = ("gold", "reward")  # without a baseline

WHO = ["agent", "behavior", "round"]


def means(responses: pl.DataFrame, judgements: pl.DataFrame, by: dict[str, str]) -> pl.DataFrame:
    """The mean of each measure for each policy with its interval over prompts.

    Args:
        responses: RESPONSES.
        judgements: JUDGEMENTS against one baseline.
        by: who judges by each measure.

    Returns:
        EVALUATION, one row per policy and measure.
    """
    rows: list[dict[str, Any]] = []
    for (agent, behavior, round_), own in responses.group_by(WHO, maintain_order=True):
        policy = Policy(str(agent), behavior, round_)
        facts = {"agent": agent, "behavior": behavior, "round": round_, **lengths(own)}
        scored = draws.by_prompt(own, *BY_PROMPT)
        for measure in BY_PROMPT:
            values = scored[measure].drop_nulls().to_numpy()
            if len(values):
                rows.append(facts | _row(measure, by, stats.mean(values), len(values)))
        rows += [facts | row for row in _win_rates(judgements.filter(is_of_policy(policy)), by)]
    return pl.DataFrame(rows, schema=EVALUATION)


def lengths(answers: pl.DataFrame) -> dict[str, float]:
    """Of RESPONSES: their mean length in characters, and the share that the token limit cut.

    >>> lengths(pl.DataFrame({"response": ["ab", "abcd"], "finish_reason": ["stop", "length"]}))
    {'chars': 3.0, 'truncated': 0.5}
    """
    chars, cut = answers.select(
        pl.col("response").fill_null("").str.len_chars().mean(),
        (pl.col("finish_reason") == "length").mean(),
    ).row(0)
    return {"chars": chars, "truncated": cut}


def _win_rates(judgements: pl.DataFrame, by: dict[str, str]) -> list[dict[str, Any]]:
    """How often one policy wins, as it is and as if all answers were equally long."""
    compared = draws.by_prompt(judgements.drop_nulls("win"), "win", "longer")
    if compared.is_empty():
        return []
    wins, against = compared["win"].to_numpy(), compared["against"][0]
    controlled = stats.length_controlled(wins, compared["longer"].to_numpy())
    return [
        _row("win", by, stats.mean(wins), len(wins), against),
        _row("win_lc", by, controlled, len(wins), against),
    ]


def _row(
    measure: str,
    by: dict[str, str],
    estimate: stats.Estimate,
    prompts: int,
    against: str | None = None,
) -> dict[str, Any]:
    """The columns of EVALUATION that a measure fills."""
    values = {k: None if math.isnan(v) else v for k, v in estimate._asdict().items()}
    return {"measure": measure, "by": by[measure], "against": against, "prompts": prompts, **values}
