"""Whether a run made its student better."""

from __future__ import annotations

from typing import Any

import polars as pl

from macpo_data import stats

Rows = list[dict[str, Any]]
MEASURES = ("gold", "reward", "win_lc", "win")  # the first there is tells whether it got better
BY_PROMPT = ("gold", "reward")


def change(
    responses: pl.DataFrame, agent: str, measure: str, before: int, after: int
) -> stats.Estimate | None:
    """How the score of an agent's positive policy changed between two rounds, prompt by prompt.

    Args:
        responses: RESPONSES.
        agent: whose policies.
        measure: a column of scores.
        before: the earlier round.
        after: the later one.

    Returns:
        The mean change with its interval over prompts; None where no prompt has both scores.
    """
    mine = responses.filter(pl.col("agent") == agent, pl.col("behavior") == "positive")
    one, other = (mine.filter(pl.col("round") == r) for r in (before, after))
    both = one.join(other, on="prompt_id", suffix="_after")
    changed = (both[f"{measure}_after"] - both[measure]).drop_nulls().to_numpy()
    return stats.mean(changed) if len(changed) else None


def verdict(student: str, scores: Rows, responses: pl.DataFrame) -> dict[str, str]:
    """Whether the student got better.

    Returns:
        state (better, worse, same, unknown), a headline (title), and a sentence (text).
    """
    mine = _of(student, scores)
    measure = next((m for m in MEASURES if any(s["measure"] == m for s in mine)), None)
    if measure is None:
        text = "macpo eval scores the answers to the held-out prompts."
        return {"state": "unknown", "title": "Not evaluated yet", "text": text}
    mine = [s for s in mine if s["measure"] == measure]
    (first, *_, last) = (mine[0], *mine)
    rounds = first["round"], last["round"]
    moved = None
    if measure in BY_PROMPT and first is not last:
        moved = change(responses, student, measure, *rounds)
    if moved is None:
        return _alone(last, measure)
    state = _state(moved.low, moved.high, 0.0)
    said = {"better": "got better", "worse": "got worse"}.get(state, "did not clearly change")
    return {
        "state": state,
        "title": f"The student {said}: {measure} {first['mean']:.3f} to {last['mean']:.3f}",
        "text": f"From round {rounds[0]} to round {rounds[1]} its mean score on the held-out "
        f"prompts changed by {moved.mean:+.3f} (95 % interval {moved.low:+.3f} to "
        f"{moved.high:+.3f}, {last['responses']:,} prompts).",
    }


def _of(agent: str, scores: Rows) -> Rows:
    """Scores of an agent's positive policies, by round; not its bare base."""
    mine = [s for s in scores if (s["agent"], s["behavior"]) == (agent, "positive")]
    return sorted((s for s in mine if s["round"] is not None), key=lambda s: int(s["round"]))


def _state(low: float | None, high: float | None, level: float) -> str:
    if low is None or high is None or low != low:
        return "unknown"
    return "better" if low > level else "worse" if high < level else "same"


def _alone(last: dict[str, Any], measure: str) -> dict[str, str]:
    """What one score says: a win rate against its baseline, or one round's mean."""
    low, high = last["low"], last["high"]
    interval = "" if low is None else f"95 % interval {low:.3f} to {high:.3f}, "
    interval = f"{interval}{last['responses']:,} held-out prompts."
    if last["against"] is None:
        title = f"The student's {measure} in round {last['round']}: {last['mean']:.3f}"
        return {"state": "unknown", "title": title, "text": f"One round is no trend: {interval}"}
    state = _state(low, high, 0.5)
    said = {"better": "beats", "worse": "loses to"}.get(state, "is level with")
    kind = "Length-controlled win rate" if measure == "win_lc" else "Win rate"
    return {
        "state": state,
        "title": f"The student {said} {last['against']}: {last['mean']:.0%}",
        "text": f"{kind} of round {last['round']}: {interval}",
    }
