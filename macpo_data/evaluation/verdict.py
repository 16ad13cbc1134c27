"""Whether a run improved its student, in plain words, with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from macpo_data import stats
from macpo_data.evaluation import draws
from macpo_data.evaluation.measures import BY_PROMPT, MEASURES

Rows = list[dict[str, Any]]
State = Literal["better", "worse", "same", "unknown"]
TRAINED_FOR = {
    "positive": "",
    "negative": ", trained to answer badly",
    "ceiling": ", trained on good answers",
}
NOT_SCORED = "Nobody has scored the student's answers yet."
TO_EVALUATE = "macpo eval lets it answer the held-out prompts and scores what it writes."
TO_SCORE = (
    "Name who is to score them in the recipe, a reward model (eval.reward) or a judge (eval.judge "
    "with eval.against), and say macpo eval."
)


@dataclass(frozen=True)
class Verdict:
    """Whether the student got better."""

    state: State
    title: str  # one sentence
    text: str  # the numbers behind it


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
    return _difference(responses, measure, (agent, before), (agent, after))


def _difference(
    responses: pl.DataFrame, measure: str, one: tuple[str, int], other: tuple[str, int]
) -> stats.Estimate | None:
    """By how much a positive policy scores higher than another one, each an agent and a round."""
    scores = draws.by_prompt(responses.filter(behavior="positive"), measure)
    low, high = (scores.filter(agent=agent, round=round_) for agent, round_ in (one, other))
    both = low.join(high, on="prompt_id", suffix="_high")
    differences = (both[f"{measure}_high"] - both[measure]).drop_nulls().to_numpy()
    return stats.mean(differences) if len(differences) else None


def of_agent(agent: str, scores: Rows) -> Rows:
    """Scores of an agent's positive policies, by round; not its bare base."""
    mine = [s for s in scores if (s["agent"], s["behavior"]) == (agent, "positive")]
    return sorted((s for s in mine if s["round"] is not None), key=lambda s: int(s["round"]))


def measure_of(student: str, scores: Rows) -> str | None:
    """The measure that tells whether a student got better; None where there is none."""
    measured = {s["measure"] for s in of_agent(student, scores)}
    return next((m for m in MEASURES if m in measured), None)


def name_baseline(policy: str, student: str) -> str:
    """With whom the student is compared, as a person would call it."""
    if policy == "chosen":
        return "the human answers"
    if policy.endswith("-base"):
        agent, when = policy.removesuffix("-base"), "before any training"
    else:
        agent, behavior, round_ = policy.rsplit("-", 2)
        when = f"of round {round_}{TRAINED_FOR[behavior]}"
    return f"{'itself' if agent == student else agent} {when}"


def verdict(
    student: str, teachers: Sequence[str], scores: Rows, responses: pl.DataFrame
) -> Verdict:
    """Whether the student got better, and whether it is above its teachers.

    Args:
        student: whose rounds are looked at.
        teachers: with whom it is compared where they were scored.
        scores: rows of EVALUATION.
        responses: RESPONSES, of which the scores are the means.
    """
    measure = measure_of(student, scores)
    if measure is None:
        return Verdict("unknown", NOT_SCORED, TO_EVALUATE if responses.is_empty() else TO_SCORE)
    mine = [s for s in of_agent(student, scores) if s["measure"] == measure]
    if measure not in BY_PROMPT:
        return _against(list({s["against"]: s for s in mine}.values()), student)
    first, last = mine[0], mine[-1]
    beside = _beside_teachers(last, teachers, scores, responses) + _beside_peak(mine, responses)
    top = " of 1" if measure == "gold" else ""
    prompts = f"{last['prompts']:,} held-out prompts"
    moved = None
    if first is not last:
        moved = change(responses, student, measure, first["round"], last["round"])
    if moved is None:
        return Verdict(
            "unknown",
            f"The student scores {last['mean']:.2f}{top} after round {last['round']}{beside}.",
            f"One round is no trend. {prompts}, {_interval(last['low'], last['high'])}.",
        )
    state = _state(moved.low, moved.high, 0.0)
    before, after = _apart(first["mean"], last["mean"])
    title = {
        "better": f"The student got better: from {before} to {after}{top}{beside}.",
        "worse": f"The student got worse: from {before} to {after}{top}{beside}.",
        "same": f"The student did not clearly change: {before}{top} in round {first['round']}, "
        f"{after} in round {last['round']}{beside}.",
        "unknown": f"One prompt cannot tell whether the student changed: from {before} to {after}"
        f"{top}.",
    }[state]
    return Verdict(
        state,
        title,
        f"On {prompts} its mean score changed by {moved.mean:+.2f} from round {first['round']} to "
        f"round {last['round']}; with other prompts of this kind {_likely(moved.low, moved.high)}.",
    )


def _beside_teachers(
    last: dict[str, Any], teachers: Sequence[str], scores: Rows, responses: pl.DataFrame
) -> str:
    """Where the student stands beside the best teacher of any round; empty without teachers."""
    measure, student = last["measure"], (last["agent"], last["round"])
    theirs = [s for t in teachers for s in of_agent(t, scores) if s["measure"] == measure]
    if not theirs:
        return ""
    best = max(theirs, key=lambda s: float(s["mean"]))
    lead = _difference(responses, measure, (best["agent"], best["round"]), student)
    if lead is None:
        return ""
    where = {
        "better": "above",
        "worse": "below",
        "same": "not clearly above or below",
        "unknown": "beside",
    }
    state = _state(lead.low, lead.high, 0.0)
    name = f"{best['agent']} in round {best['round']}: {best['mean']:.2f}"
    return f", {where[state]} its best teacher ({name})"


def _beside_peak(mine: Rows, responses: pl.DataFrame) -> str:
    """Which earlier round was clearly better than the last one; empty where none was."""
    last, peak = mine[-1], max(mine, key=lambda s: float(s["mean"]))
    agent, measure = last["agent"], last["measure"]
    lead = _difference(responses, measure, (agent, last["round"]), (agent, peak["round"]))
    if peak["round"] == mine[0]["round"] or lead is None or not lead.low > 0:
        return ""
    return f"; the student was better in round {peak['round']} ({peak['mean']:.2f})"


def _apart(before: float, after: float) -> tuple[str, str]:
    """Two scores with as many digits as it takes to tell them apart: two or three."""
    short = f"{before:.2f}", f"{after:.2f}"
    alike = short[0] == short[1] and before != after
    return (f"{before:.3f}", f"{after:.3f}") if alike else short


def _state(low: float | None, high: float | None, level: float) -> State:
    if low is None or high is None or low != low:
        return "unknown"
    return "better" if low > level else "worse" if high < level else "same"


def _interval(low: float | None, high: float | None) -> str:
    if low is None or high is None or low != low:
        return "one prompt has no interval"
    return f"95 % interval {low:.2f} to {high:.2f}"


def _likely(low: float, high: float) -> str:
    if low != low:
        return "anything may come out: one prompt has no interval"
    # Adding 0.0 turns a -0.00 into a +0.00.
    return (
        f"most likely by {round(low, 2) + 0.0:+.2f} to {round(high, 2) + 0.0:+.2f} (95 % interval)"
    )


def _against(scores: Rows, student: str) -> Verdict:
    """What the last win rate against each baseline says."""
    states = [_state(s["low"], s["high"], 0.5) for s in scores]
    verbs = {"better": "beats", "worse": "loses to"}
    names = [name_baseline(s["against"], student) for s in scores]
    compared = ", ".join(
        f"{verbs.get(state, 'is level with')} {name} (it wins {100 * s['mean']:.0f} %)"
        for s, state, name in zip(scores, states, names, strict=True)
    )
    alike = ", as if all answers were equally long" if scores[0]["measure"] == "win_lc" else ""
    text = " ".join(
        f"In round {s['round']} against {name}: {s['prompts']:,} held-out prompts, "
        f"{_interval(s['low'], s['high'])}{alike}; 0.5 is level."
        for s, name in zip(scores, names, strict=True)
    )
    state = states[0] if len(set(states)) == 1 else "unknown"
    return Verdict(state, f"The student {compared}.", text)
