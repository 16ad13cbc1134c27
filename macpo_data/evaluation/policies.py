"""Which policies of a run are evaluated, selected by the names that people use."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from macpo_data.errors import MacpoError, as_set, did_you_mean, of_run
from macpo_data.plan import Plan, Policy
from macpo_data.store.store import Store, states

CHOSEN = "chosen"  # as a baseline: the human's better answer


def every_policy(plan: Plan) -> list[Policy]:
    """The bare bases of those who are trained, and all that the plan trains."""
    trained = [policy for step in plan.steps if (policy := step.makes)]
    return [*(Policy(agent) for agent in dict.fromkeys(p.agent for p in trained)), *trained]


def trained(plan: Plan, store: Store, last: int | None = None) -> list[Policy]:
    """The policies that are there, up to a round."""
    return [
        policy
        for step in plan.steps
        if (policy := step.makes)
        and (last is None or step.round <= last)
        and store.is_done(plan.name(step))
    ]


def find_policy(plan: Plan, name: str) -> Policy:
    """The policy that a person names, such as student-positive-0 or student-base.

    Raises:
        MacpoError: there is none of that name.
    """
    for policy in every_policy(plan):
        if str(policy) == name:
            return policy
    meant = did_you_mean(name, map(str, every_policy(plan)))
    raise MacpoError(
        f"no policy {name!r}{meant}: name an agent and its round, such as "
        f"{plan.recipe.students[0]}-positive-0, or {plan.recipe.students[0]}-base for its bare base"
    )


def choose(
    plan: Plan, store: Store, round_: str = "all", agents: Sequence[str] = ()
) -> list[Policy]:
    """The policies that a person asks for.

    Args:
        plan: of the run.
        store: of the run.
        round_: a number, `all` that are trained, or `base` for bare bases.
        agents: names; none means all that are trained.

    Raises:
        MacpoError: there is no such round or agent, or it is not trained yet.
    """
    planned = every_policy(plan)
    names = list(dict.fromkeys(policy.agent for policy in planned))
    if wrong := [name for name in agents if name not in names]:
        meant = did_you_mean(wrong[0], names)
        raise MacpoError(f"no agent {wrong[0]!r} that is trained{meant}: choose {', '.join(names)}")
    if round_ not in ("all", "base") and not round_.isdecimal():
        raise MacpoError(f"--round {round_}: write a number, all, or base")
    if round_ == "base":
        policies = [policy for policy in planned if policy.round is None]
    else:
        policies = [p for p in trained(plan, store) if round_ in ("all", str(p.round))]
    policies = [policy for policy in policies if not agents or policy.agent in agents]
    if not policies:
        raise MacpoError(
            f"nothing to evaluate: no such policy is trained yet (round {round_})"
            f"{store.beside()}{as_set()}; `{of_run('status')}` says what is there"
        )
    warn_of_stale(plan, store, policies)
    return policies


def warn_of_stale(plan: Plan, store: Store, policies: Sequence[Policy]) -> None:
    """Say which policies were made from what changed since."""
    state_of = states(plan, store)
    makers = {policy: plan.maker(policy) for policy in policies}
    if stale := [
        str(policy) for policy, step in makers.items() if step and state_of[step] == "stale"
    ]:
        store.say(
            f"warning: {', '.join(stale)} was made from what changed since; "
            f"`{of_run('status')}` says what makes it anew"
        )


def is_of_policy(policy: Policy) -> pl.Expr:
    """Whether a row with agent, behavior and round is of a policy."""
    round_ = pl.lit(policy.round, pl.Int64)
    named = (pl.col("agent") == policy.agent) & (pl.col("behavior") == policy.behavior)
    return named & pl.col("round").eq_missing(round_)
