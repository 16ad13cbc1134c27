"""Whether a run made its student better."""

from __future__ import annotations

from typing import Any

import polars as pl

from macpo_data import draws, stats

Rows = list[dict[str, Any]]
MEASURES = ("gold", "reward", "win_lc", "win")  # the first there is tells whether it got better
BY_PROMPT = ("gold", "reward")


def change(
    responses: pl.DataFrame, agent: str, measure: str, before: int, after: int
) -> stats.Estimate | None:
    """How the score of an agent's positive policy changed between two rounds, prompt by prompt.

    Args:
        responses: RESPONSES, or JUDGEMENTS against one baseline.
        agent: whose policies.
        measure: a column of scores.
        before: the earlier round.
        after: the later one.

    Returns:
        The mean change with its interval over prompts; None where no prompt has both scores.
    """
    mine = responses.filter(pl.col("agent") == agent, pl.col("behavior") == "positive")
    mine = draws.by_prompt(mine, measure)
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
    if measure not in BY_PROMPT:
        return _against(list({s["against"]: s for s in mine}.values()), measure)
    first, last = mine[0], mine[-1]
    rounds = first["round"], last["round"]
    moved = None if first is last else change(responses, student, measure, *rounds)
    if moved is None:
        interval = _interval(last["low"], last["high"])
        title = f"The student's {measure} in round {last['round']}: {last['mean']:.3f}"
        text = f"One round is no trend: {interval}, {last['prompts']:,} held-out prompts."
        return {"state": "unknown", "title": title, "text": text}
    state = _state(moved.low, moved.high, 0.0)
    said = {"better": "got better", "worse": "got worse"}.get(state, "did not clearly change")
    return {
        "state": state,
        "title": f"The student {said}: {measure} {first['mean']:.3f} to {last['mean']:.3f}",
        "text": f"From round {rounds[0]} to round {rounds[1]} its mean score on the held-out "
        f"prompts changed by {moved.mean:+.3f} ({_interval(moved.low, moved.high, '+')}, "
        f"{last['prompts']:,} prompts).",
    }


def _of(agent: str, scores: Rows) -> Rows:
    """Scores of an agent's positive policies, by round; not its bare base."""
    mine = [s for s in scores if (s["agent"], s["behavior"]) == (agent, "positive")]
    return sorted((s for s in mine if s["round"] is not None), key=lambda s: int(s["round"]))


def _state(low: float | None, high: float | None, level: float) -> str:
    if low is None or high is None or low != low:
        return "unknown"
    return "better" if low > level else "worse" if high < level else "same"


def _interval(low: float | None, high: float | None, sign: str = "-") -> str:
    if low is None or high is None or low != low:
        return "one prompt has no interval"
    return f"95 % interval {low:{sign}.3f} to {high:{sign}.3f}"


def _against(scores: Rows, measure: str) -> dict[str, str]:
    """What the last win rate against each baseline says."""
    states = [_state(s["low"], s["high"], 0.5) for s in scores]
    said = {"better": "beats", "worse": "loses to"}
    kind = "Length-controlled win rate" if measure == "win_lc" else "Win rate"
    title = ", ".join(
        f"{said.get(state, 'is level with')} {s['against']}: {s['mean']:.0%}"
        for s, state in zip(scores, states, strict=True)
    )
    text = " ".join(
        f"{kind} of round {s['round']} against {s['against']}: {_interval(s['low'], s['high'])}, "
        f"{s['prompts']:,} held-out prompts."
        for s in scores
    )
    state = states[0] if len(set(states)) == 1 else "unknown"
    return {"state": state, "title": f"The student {title}", "text": text}
