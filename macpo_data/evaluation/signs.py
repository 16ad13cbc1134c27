"""Signs of failure in the policies' answers to held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import polars as pl

from macpo_data import text
from macpo_data.evaluation import draws
from macpo_data.signs.dataset import LOOP, distinct, short
from macpo_data.signs.rules import Sign, Signs, as_sign, beside

if TYPE_CHECKING:
    from macpo_data.stats import Estimate


def of_evaluation(
    responses: pl.DataFrame, teachers: Sequence[str], judgements: pl.DataFrame
) -> dict[str, Signs]:
    """Signs in what the positive policies answered to the held-out prompts.

    Args:
        responses: RESPONSES.
        teachers: the agents of whom one at least should get better in each round.
        judgements: JUDGEMENTS; against each baseline by itself.

    Returns:
        Signs by policy; those of all teachers as `teachers-ROUND`.
    """
    by_policy: dict[str, Signs] = {}
    mine = responses.filter(behavior="positive").drop_nulls("round")
    for (agent,), own in mine.group_by("agent", maintain_order=True):
        rounds = sorted(own["round"].unique())
        by_round = {r: beside(_answers(own.filter(round=r)), {}, {}) for r in rounds}
        for before, after in pairwise(rounds):
            values = {n: s["value"] for n, s in by_round[after].items()}
            by_round[after] = beside(values, by_round[before], by_round[rounds[0]])
        by_policy |= {f"{agent}-positive-{r}": s for r, s in by_round.items()}
    # The measure that stands first tells whether the teachers stand still.
    measured = [("gold", responses), ("reward", responses)]
    measured += [("win", own) for _, own in judgements.group_by("against", maintain_order=True)]
    gains: dict[int, dict[str, Estimate]] = {}
    for measure, scores in measured:
        mine = scores.filter(behavior="positive").drop_nulls(["round", measure])
        for (agent,), own in mine.group_by("agent", maintain_order=True):
            for round_, moved in _moves(own, str(agent), measure).items():
                fall = _fall(
                    draws.by_prompt(own.filter(round=round_), measure)[measure],
                    min(moved, key=lambda m: m.high),
                )
                signs = by_policy.setdefault(f"{agent}-positive-{round_}", {})
                if measure not in signs or fall["crossed"]:  # of several baselines
                    signs[measure] = fall
                if agent in teachers:
                    gains.setdefault(round_, {}).setdefault(str(agent), moved[0])
    for round_, gained in gains.items():
        if len(gained) == len(teachers):
            best = max(gained.values(), key=lambda gain: gain.low)
            clear = best.mean - best.low
            plateau = as_sign(best.mean, None, clear, best.low <= 0)
            by_policy[f"teachers-{round_}"] = {"plateau": plateau}
    return by_policy


def _moves(scores: pl.DataFrame, agent: str, measure: str) -> dict[int, list[Estimate]]:
    """By round, how an agent's scores changed since the round before, and since the first one."""
    from macpo_data.evaluation.verdict import (
        change,  # brings numpy, which `status` need not wait for
    )

    rounds = sorted(scores["round"].unique())
    moves: dict[int, list[Estimate]] = {}
    for before, after in pairwise(rounds):
        since = dict.fromkeys((before, rounds[0]))
        moved = [change(scores, agent, measure, earlier, after) for earlier in since]
        # One prompt has no interval: nan.
        if estimates := [m for m in moved if m and not math.isnan(m.low)]:
            moves[after] = estimates
    return moves


def _answers(answers: pl.DataFrame) -> dict[str, Any]:
    written = answers.with_columns(pl.col("response").fill_null(""))
    texts = text.sample(answers)
    return {
        "chars": written["response"].str.len_chars().mean(),
        "short": written.select(short("response").mean()).item(),
        "cut": (answers["finish_reason"] == "length").mean(),
        "loops": written["response"].map_elements(text.repetition, pl.Float64).gt(LOOP).mean(),
        "self_bleu": text.self_bleu(texts),
        **distinct(texts),
    }


def _fall(scores: pl.Series, moved: Estimate) -> Sign:
    """The mean score and its change: crossed where the whole interval of the change is below 0."""
    mean = float(scores.drop_nulls().to_numpy().mean())
    return as_sign(mean, mean - moved.mean, mean - moved.high, moved.high < 0)
