"""What no recipe of a run reaches any more, for `macpo clean`."""

from __future__ import annotations

import re
import shutil

from macpo_data.errors import StoreError
from macpo_data.evaluation import probe
from macpo_data.evaluation.policies import every_policy
from macpo_data.evaluation.results import is_of
from macpo_data.methods import make_plan
from macpo_data.plan import Policy
from macpo_data.store.manifests import MANIFEST
from macpo_data.store.store import Manifest, Store
from macpo_run.rounds import Run

_ROUND = re.compile(r"(?:^data/round|-positive)-(\d+)-")


def unreachable(runs: list[Run]) -> list[str]:
    """Results in a run's folder that none of these recipes reaches, begun ones included."""
    store = runs[0].store
    made = [int(found[1]) for name in store.names() if (found := _ROUND.search(name))]
    reached = set()
    for run in runs:
        # The last round is no identity: rounds beyond today's were made by this recipe too.
        last = max([run.recipe.rounds, *made])
        plan = make_plan(run.recipe.model_copy(update={"rounds": last}))
        reached |= {plan.name(step) for step in plan.steps} | {plan.prompts_name, plan.reward_name}
        policies = dict.fromkeys([*every_policy(plan), *map(Policy, plan.recipe.agents)])
        for name in store.names():
            kind, _, rest = name.partition("/")
            if kind == "eval" and is_of(plan, _manifest(store, name)):
                reached.add(name)
            for policy in policies:
                found = re.fullmatch(rf"{re.escape(str(policy))}-(.+)-([0-9a-f]{{8}})", rest)
                if kind == "samples" and found:
                    part, _, draw = found[1].partition("-")
                    if plan.sample_name(policy, part, draw) == name:
                        reached.add(name)
                if kind == "probe" and name in probe.names(plan, store, policy):
                    reached.add(name)
                scored = kind in ("scores", "answers") and found
                if scored and scored[1].endswith(plan.policy_fingerprint(policy)):
                    reached.add(name)
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
