"""Performance gap recovered: how far a student gets from its weak teachers to its ceiling.

The performance gap recovered of Burns et al. (2023, https://arxiv.org/abs/2312.09390): 0 for a
student no better than its teachers, 1 for one as good as if it had learned from good answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from macpo_data import stats
from macpo_data.errors import of_run
from macpo_data.evaluation import draws
from macpo_data.evaluation.measures import BY_PROMPT
from macpo_data.plan import Plan, Policy

FORMULA = "(student - floor) / (ceiling - floor)"


@dataclass(frozen=True)
class Gap:
    """What was measured of a student, its teachers and its ceiling."""

    measure: str
    students: list[Policy]  # its positive policies, by round
    floor: Policy  # the best teacher as trained in round 0
    labeller: Policy  # the teacher whose answers the student started from, as trained in round 0
    ceiling: Policy
    scores: pl.DataFrame  # a row per prompt, a column per policy

    def mean(self, policy: Policy) -> float:
        """The mean score of a policy."""
        return float(self.scores[str(policy)].to_numpy().mean())

    def sides(self, student: Policy) -> stats.Sides:
        """The scores of a student's policy, the floor and the ceiling, prompt by prompt."""
        student_, floor, ceiling = (
            self.scores[str(policy)].to_numpy() for policy in (student, self.floor, self.ceiling)
        )
        return stats.Sides(student_, floor, ceiling)

    def above(self, other: Gap) -> Gap:
        """The same gap above the floor of another one, by the prompts that both have."""
        floor = str(other.floor)
        own = self.scores.drop(floor, strict=False)
        scores = own.join(other.scores.select("prompt_id", floor), on="prompt_id")
        return replace(self, floor=other.floor, scores=scores)

    def recovered(self, student: Policy) -> stats.Recovered:
        """How much of the gap a student's policy recovered."""
        return stats.gap_recovered([self.sides(student)])


def ends(plan: Plan) -> tuple[list[Policy], Policy | None]:
    """The teachers of round 0, one of whom is the floor, and the ceiling, where it is planned."""
    policies = [policy for step in plan.steps if step.round == 0 and (policy := step.makes)]
    teachers = [p for p in policies if p.agent in plan.recipe.teachers and p.behavior == "positive"]
    return teachers, next((policy for policy in policies if policy.behavior == "ceiling"), None)


def measured(plan: Plan, responses: pl.DataFrame) -> list[Gap]:
    """The gap by each measure of single answers, where all that it is made of was measured.

    Args:
        plan: of the run.
        responses: RESPONSES, of any policies.
    """
    return [gap for measure in BY_PROMPT if (gap := _by(measure, plan, responses))]


def _by(measure: str, plan: Plan, responses: pl.DataFrame) -> Gap | None:
    teachers, ceiling = ends(plan)
    if ceiling is None or not teachers:
        return None
    means = draws.by_prompt(responses, measure).drop_nulls([measure, "round"])
    who = means.select("agent", "behavior", "round").unique(maintain_order=True)
    names = {policy: str(policy) for policy in (Policy(*row) for row in who.iter_rows())}
    students = [p for p in names if p.agent == ceiling.agent and p.behavior == "positive"]
    wanted = [*students, *teachers, ceiling]
    if not students or not names.keys() >= {*wanted}:
        return None
    name = pl.format("{}-{}-{}", "agent", "behavior", "round")
    scores = means.with_columns(policy=name).pivot("policy", index="prompt_id", values=measure)
    scores = scores.select("prompt_id", *(names[policy] for policy in wanted)).drop_nulls()
    if scores.is_empty():
        return None
    labeller = Policy(plan.recipe.labeller or plan.recipe.teachers[0], "positive", 0)
    floor = max(teachers, key=lambda policy: float(scores[str(policy)].to_numpy().mean()))
    by_round = sorted(students, key=lambda policy: policy.round or 0)
    return Gap(measure, by_round, floor, labeller, ceiling, scores)


def lines(plan: Plan, responses: pl.DataFrame) -> list[str]:
    """A sentence for each measure; where there should be one and is none, why."""
    teachers, ceiling = ends(plan)
    if ceiling is None:
        return []
    if not teachers:
        return [
            f"Gap recovered: method {plan.recipe.method} trains no teacher, so it has no floor."
        ]
    return [sentence(gap) for gap in measured(plan, responses)] or [
        "Gap recovered: not known yet; it takes gold or rewards of the student, all teachers of "
        f"round 0 and {ceiling}: {of_run('eval --round all')}"
    ]


def sentence(gap: Gap) -> str:
    """The gap recovered in each round, and between what."""
    floor = f"{gap.floor} {gap.mean(gap.floor):.3f}"
    beside = "it labels" if gap.labeller == gap.floor else ""
    beside = beside or f"{gap.labeller}, who labels, {gap.mean(gap.labeller):.3f}"
    recovered = {policy: gap.recovered(policy) for policy in gap.students}
    between = f"floor {floor} ({beside}), ceiling {gap.ceiling} {gap.mean(gap.ceiling):.3f}"
    first = next(iter(recovered.values()))
    if first.share is None:
        return (
            f"Gap recovered by {gap.measure}: not defined, ceiling - floor is not clearly above 0 "
            f"({_shown(first.gap)}); {between}."
        )
    rounds = [f"round {p.round} {_shown(r.share)}" for p, r in recovered.items() if r.share]
    return f"Gap recovered by {gap.measure}: {', '.join(rounds)}; {between}."


def in_words(gap: Gap) -> str:
    """What the last round recovered, for whoever does not know the formula."""
    last = gap.students[-1]
    share = gap.recovered(last).share
    low = f"its best teacher of round 0 ({gap.floor.agent}, {gap.mean(gap.floor):.2f})"
    high = f"the same student trained on good answers ({gap.mean(gap.ceiling):.2f})"
    if share is None:
        return (
            "How much of what it could learn the student learned cannot be said: "
            f"{high} is not clearly better than {low}."
        )
    part, least, most = (f"{100 * max(value, 0):.0f} %" for value in share)
    closed = f"{part} (95 % interval: {least} to {most})"
    if share.mean <= 0:
        closed = f"nothing (95 % interval: up to {most})" if share.high > 0 else "nothing"
    closed = f"By round {last.round} the student closed {closed}"
    return f"{closed} of the distance between {low} and {high}."


def facts(gap: Gap) -> dict[str, Any]:
    """The same as values that JSON knows, for the report."""
    recovered = [(policy, gap.recovered(policy)) for policy in gap.students]
    sides = {"floor": gap.floor, "labeller": gap.labeller, "ceiling": gap.ceiling}
    levels = {side: {"policy": str(p), "mean": gap.mean(p)} for side, p in sides.items()}
    return {
        "measure": gap.measure,
        **levels,
        "gap": _values(recovered[0][1].gap),
        "rounds": [{"round": p.round, **_values(r.share)} for p, r in recovered],
        "text": sentence(gap),
    }


def pooled(gaps: Sequence[Gap]) -> stats.Recovered | None:
    """The gap that the last policies of several seeds recovered together; None of no seed."""
    return stats.gap_recovered([gap.sides(gap.students[-1]) for gap in gaps]) if gaps else None


def _values(estimate: stats.Estimate | None) -> dict[str, float | None]:
    """Without numbers that JSON does not know."""
    values = estimate._asdict() if estimate else dict.fromkeys(stats.Estimate._fields)
    return {name: None if value != value else value for name, value in values.items()}


def _shown(estimate: stats.Estimate) -> str:
    if estimate.low != estimate.low:
        return f"{estimate.mean:.3f} [none]"
    return f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
