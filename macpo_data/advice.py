"""What is worth running next, said after round 0, from the probe alone.

Whoever ranks a human pair right (`probe` says how) knows something about it. Held against each
other, the rankings of teachers and student tell whether they have anything to teach each other,
before more rounds are paid for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from statistics import mean
from typing import TYPE_CHECKING

from macpo_data.probe import Reading, of_agent
from macpo_data.recipe import Recipe

if TYPE_CHECKING:
    from macpo_data.stats import Estimate

CHANCE = 0.5
SOLVED = 0.95  # of the pairs ranked right: what is left are mostly pairs that nobody could


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


@dataclass(frozen=True)
class Advice:
    """What is worth running, and the numbers behind it."""

    next: Next
    accuracy: dict[str, Estimate]  # by agent: share of the pairs ranked right
    together: Estimate  # by the majority of the teachers; a tie is half a pair
    lead: Estimate  # of the teachers together over the student, pair by pair
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
            f"{WHY[self.next]} This is a lean and no more: {self.pairs} pairs cannot tell who "
            "ranks better (data.probe.count)."
        )


def advise(recipe: Recipe, known: Sequence[Reading]) -> Advice | None:
    """What the probe says after round 0; None where it was not read by all who are to speak.

    Args:
        recipe: of the run.
        known: readings of the probe, of any rounds.
    """
    import numpy as np  # takes a moment, which `status` need not wait for

    from macpo_data import stats

    agents = [*recipe.teachers, recipe.students[0]]
    first = {a: r for a in agents for r in of_agent(known, a) if r.policy.round == 0}
    if not recipe.teachers or len(first) < len(agents):
        return None
    pairs = [i for i in first[agents[0]].ranked if all(i in r.ranked for r in first.values())]
    if not pairs:
        return None
    right = {a: [float(r.ranked[i]) for i in pairs] for a, r in first.items()}
    teachers, student = [right[name] for name in recipe.teachers], right[recipe.students[0]]
    together = [_majority(votes) for votes in zip(*teachers, strict=True)]
    wrong = [at for at, own in enumerate(student) if not own]
    alike = [mean(x == y for x, y in zip(a, b, strict=True)) for a, b in combinations(teachers, 2)]

    def estimate(values: Sequence[float]) -> Estimate:
        return stats.mean(np.asarray(values, dtype=np.float64))

    committee, own = estimate(together), estimate(student)
    lead = estimate([t - s for t, s in zip(together, student, strict=True)])
    some = mean(any(t[at] for t in teachers) for at in wrong) if wrong else None
    return Advice(
        _next(committee, own, lead),
        {name: estimate(values) for name, values in right.items()},
        committee,
        lead,
        some,
        mean(alike) if alike else None,
        len(pairs),
    )


def _majority(votes: Sequence[float]) -> float:
    share = mean(votes)
    return 0.5 if share == 0.5 else float(share > 0.5)


def _next(together: Estimate, student: Estimate, lead: Estimate) -> Next:
    if student.mean >= SOLVED and together.mean >= SOLVED:
        return Next.STOP
    # By the estimates, not their intervals: a third of noisy pairs hides much of what is known.
    if together.mean <= CHANCE and student.mean <= CHANCE:
        return Next.LABELS
    return Next.MUTUAL if lead.mean > 0 else Next.OWN
