"""Training budget of an agent: pairs, optimizer steps, and words generated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass

import polars as pl

from macpo_data.plan import Plan, Policy, Step
from macpo_data.store.store import Store

TEXTS = ("samples/", "answers/")  # results that hold what models wrote
WORD = r"\S+"


@dataclass(frozen=True)
class Budget:
    """Of one policy, or the means over several seeds; None where it is not known."""

    pairs: float | None  # that it learned from in rounds 1 and later: round 0 is a start
    steps: float | None  # of the optimizer, likewise; the fake engine takes none
    words: float | None  # that models wrote for it


def ancestors(plan: Plan, policies: Iterable[Policy]) -> set[Step]:
    """The steps without which some policies could not be made."""
    todo = [step for policy in policies if (step := plan.maker(policy))]
    needed = set[Step]()
    while todo:
        if (step := todo.pop()) not in needed:
            needed.add(step)
            todo += plan.parents(step)
    return needed


def lineage(plan: Plan, policy: Policy) -> Iterator[Step]:
    """The trainings that made a policy, the last one first."""
    while step := plan.maker(policy):
        yield step
        policy = step.policies[0]


def spent(plan: Plan, store: Store, policy: Policy, words: Callable[[str], int | None]) -> Budget:
    """What the training of a policy took, as manifests tell.

    Args:
        plan: of the run.
        store: of the run, which holds the policy and all that it was made from.
        policy: that was trained.
        words: how many a result of models' texts holds: `words_in` of the store, or a cache of it.
    """
    manifests = {step: store.manifest(plan.name(step)) or {} for step in ancestors(plan, [policy])}
    trained = [step for step in lineage(plan, policy) if step.round > 0]
    read = {name for step in manifests if step.kind == "gen" for name in manifests[step]["inputs"]}
    return Budget(
        sum(manifests[plan.dataset(step)]["summary"]["pairs"] for step in trained),
        sum(len(manifests[step]["history"]) for step in trained),
        _sum(words(name) for name in sorted(read) if name.startswith(TEXTS)),
    )


def words_in(store: Store, name: str) -> int | None:
    """The words of a set of samples or answers; None where it is not on this machine.

    Words, since tokens are recorded for endpoints alone.
    """
    if not store.is_done(name):
        return None
    count = pl.col("response").str.count_matches(WORD).sum()
    shards = pl.scan_parquet(store.path(name) / "shards" / "*.parquet")
    return int(shards.select(count).collect().item())


def mean(budgets: Sequence[Budget]) -> Budget | None:
    """The means over seeds, each None where one is not known; None of no seed."""
    if not budgets:
        return None
    sums = (_sum(values) for values in zip(*map(astuple, budgets), strict=True))
    return Budget(*(None if total is None else total / len(budgets) for total in sums))


def _sum(values: Iterable[float | None]) -> float | None:
    numbers = list(values)
    return None if None in numbers else sum(value for value in numbers if value is not None)
