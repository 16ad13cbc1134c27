"""Finds results that no recipe of a run uses any more, for `macpo clean`."""

from __future__ import annotations

import shutil

from macpo_data.errors import StoreError
from macpo_data.evaluation import probe
from macpo_data.evaluation.policies import every_policy
from macpo_data.evaluation.results import is_of
from macpo_data.methods.registry import make_plan
from macpo_data.plan import Policy, round_of
from macpo_data.store.manifests import MANIFEST
from macpo_data.store.store import Manifest, Store
from macpo_run.rounds import Run


def unreachable(runs: list[Run]) -> list[str]:
    """Results in a run's folder that none of these recipes reaches, begun ones included."""
    store = runs[0].store
    rounds = [round_ for name in store.names() if (round_ := round_of(name)) is not None]
    reached = set()
    for run in runs:
        # The last round is no identity: rounds beyond today's were made by this recipe too.
        last = max([run.recipe.rounds, *rounds])
        plan = make_plan(run.recipe.model_copy(update={"rounds": last}))
        reached |= {plan.name(step) for step in plan.steps} | {plan.prompts_name, plan.reward_name}
        policies = dict.fromkeys([*every_policy(plan), *map(Policy, plan.recipe.agents)])
        probed = {name for policy in policies for name in probe.names(plan, store, policy)}
        for name in store.names():
            if name.startswith("eval/"):
                is_own = is_of(plan, _manifest(store, name))
            else:
                is_own = name in probed or any(
                    plan.is_sample_of(name, policy) or plan.is_asked_of(name, policy)
                    for policy in policies
                )
            reached |= {name} if is_own else set()
    # What the rewards of an evaluation are made from has no name that the plan could tell.
    reached |= {n for name in reached for n in (_manifest(store, name) or {}).get("inputs", {})}
    return [name for name in store.names() if name not in reached]


def _manifest(store: Store, name: str) -> Manifest | None:
    """A result's manifest, unless it is damaged or not there."""
    try:
        return store.manifest(name)
    except StoreError:
        return None


def remove(store: Store, name: str) -> None:
    """Delete a result. Its manifest goes first, so that a kill leaves nothing that looks done."""
    path = store.path(name)
    with store.lock(name):
        if path.is_symlink():  # what lies behind it was put elsewhere by a person
            return path.unlink()
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path)
