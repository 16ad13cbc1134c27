"""Advice after round 0 on what to run next, based on the probe alone.

Whoever ranks a human pair right (`probe` says how) knows something about it. Human labels are wrong
at times as well, in these recipes up to half of them. So they are one more voter beside the agents,
and how often each is right is estimated from how all of them agree (`stats.voters`). On the
embedded world this comes within a few points of the true accuracies, from fifty pairs a third of
which are swapped, where agreement with the labels alone tells hardly anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING

from macpo_data.evaluation.probe import Reading, of_agent
from macpo_data.plan import Plan, Policy

if TYPE_CHECKING:
    from macpo_data.stats import Estimate, Values

CHANCE = 0.5
SOLVED = 0.95  # of the pairs ranked right: what is left are mostly pairs that nobody could
RESAMPLES = 500  # for the interval of the lead


class Next(StrEnum):
    """What to run after round 0."""

    MUTUAL = "mutual positives"
    OWN = "own positives"
    LABELS = "more or cleaner labels"
    STOP = "stop"


WHY = {
    Next.MUTUAL: "The teachers rank pairs right that the student ranks wrong, so that they have "
    "something to teach it: go on with their answers (positives=mutual).",
    Next.OWN: "The student ranks the pairs at least as well as its teachers together, who then "
    "have little to teach it: let it learn from its own answers (--set positives=own).",
    Next.LABELS: "Neither the student nor its teachers together rank the pairs better than chance: "
    "give the teachers more pairs (data.d1.count) or cleaner ones, before more rounds.",
    Next.STOP: "Student and teachers rank nearly all pairs right: rounds can hardly add what the "
    "probe could show; keep round 0, or take harder prompts.",
}
# The same for whoever does not know what the rounds do.
IN_SHORT = {
    Next.MUTUAL: "go on: the teachers know what the student does not know yet",
    Next.OWN: "the student already tells good answers from bad ones as well as its teachers: let "
    "it learn from its own answers (--set positives=own)",
    Next.LABELS: "nobody here tells good answers from bad ones better than chance: more human "
    "answers (data.d1.count), or more careful ones, will help more than more rounds",
    Next.STOP: "student and teachers tell good answers from bad ones nearly always: keep round 0, "
    "or take harder prompts",
}
HUMAN = "the human labels"


@dataclass(frozen=True)
class Advice:
    """What is worth running, and the numbers behind it."""

    next: Next
    accuracy: dict[str, float]  # by agent, and of the human labels: estimated, of the pairs
    together: float  # of the teachers' vote, each weighed by its accuracy
    lead: Estimate  # of that vote over the student; bootstrap interval over the pairs
    some_right: float | None  # some teacher right where the student is wrong; None: it never is
    agreement: float | None  # share of the pairs that two teachers rank alike; None: one teacher
    pairs: int  # of the probe

    @property
    def is_clear(self) -> bool:
        """Whether the lead's interval lies on one side of 0."""
        return self.lead.low > 0 or self.lead.high < 0

    @property
    def text(self) -> str:
        """One paragraph for a person."""
        if self.is_clear or self.next in (Next.LABELS, Next.STOP):
            return WHY[self.next]
        return (
            f"{WHY[self.next]} This is a lean and no more: {self.pairs} pairs cannot tell for sure "
            "who ranks better (data.probe.count)."
        )


def advise(plan: Plan, readings: Sequence[Reading]) -> Advice | None:
    """What the probe says after round 0; None where it was not read by all who are to speak.

    Args:
        plan: of the run.
        readings: readings of the probe, of any rounds.
    """
    recipe = plan.recipe
    agents = [*recipe.teachers, recipe.students[0]]
    first = {a: r for a in agents for r in of_agent(readings, a) if r.policy.round == 0}
    # Where there are no twins, or nobody is taught by others, there is nothing to advise.
    taught = _is_taught_by_others(plan)
    if not taught or not recipe.teachers or len(first) < len(agents):
        return None
    pairs = [i for i in first[agents[0]].ranked if all(i in r.ranked for r in first.values())]
    if not pairs:
        return None
    import numpy as np  # takes a moment, for which `status` need not wait where nothing is advised

    from macpo_data import stats

    ranked = [[float(first[agent].ranked[i]) for i in pairs] for agent in agents]
    votes = np.array([*ranked, [1.0] * len(pairs)])  # the labels vote for themselves
    draws = np.random.default_rng(0).integers(len(pairs), size=(RESAMPLES, len(pairs)))
    accuracy, truth, together, lead = _lead(votes)
    low, high = np.quantile(_lead(votes[:, draws].swapaxes(0, 1))[3], [0.025, 0.975])
    teachers, wrong = votes[:-2], np.abs(truth - votes[-2])  # probability that the student is wrong
    some = (teachers == truth.round()).any(axis=0)
    alike = [float((a == b).mean()) for a, b in combinations(teachers, 2)]
    labelled = teachers.mean(), votes[-2].mean()
    return Advice(
        _next(max(labelled), float(together), float(accuracy[-2]), float(lead)),
        dict(zip([*agents, HUMAN], map(float, accuracy), strict=True)),
        float(together),
        stats.Estimate(float(lead), float(low), float(high)),
        float((some * wrong).sum() / wrong.sum()) if wrong.sum() >= 0.5 else None,
        fmean(alike) if alike else None,
        len(pairs),
    )


def _is_taught_by_others(plan: Plan) -> bool:
    """Whether the student has a twin of its own and learns what its teachers write."""
    (student,), teachers = plan.recipe.students, plan.recipe.teachers
    reads = [
        policy.agent
        for step in plan.steps
        if step.kind == "gen" and step.round == 1 and step.learner == student
        for policy in step.policies
    ]
    twins = [step.makes for step in plan.steps]
    return Policy(student, "negative", 0) in twins and any(agent in teachers for agent in reads)


def _lead(votes: Values) -> tuple[Values, Values, Values, Values]:
    """(..., V) accuracies, (..., N) truth, and of the teachers' vote accuracy and lead, (...).

    Args:
        votes: (..., V, N): those of the teachers, then the student's, then the labels.
    """
    import numpy as np

    from macpo_data import stats

    accuracy, truth = stats.voters(votes)
    # Who is wrong more often than not is not heard, rather than taken for its opposite.
    weights = np.log(accuracy / (1 - accuracy)).clip(0)[..., :-2, None]
    balance = ((2 * votes[..., :-2, :] - 1) * weights).sum(axis=-2)
    vote = (np.sign(balance) + 1) / 2  # a tie is half a pair
    student = votes[..., -2, :]
    right = [(each * truth + (1 - each) * (1 - truth)).mean(axis=-1) for each in (vote, student)]
    return accuracy, truth, right[0], right[0] - right[1]


def _next(labelled: float, together: float, student: float, lead: float) -> Next:
    """The rule; `labelled` is how often the best of them agrees with the labels."""
    if student >= SOLVED and together >= SOLVED:
        return Next.STOP
    if labelled <= CHANCE:
        return Next.LABELS
    return Next.MUTUAL if lead > 0 else Next.OWN
