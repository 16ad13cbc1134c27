"""Finds results that no recipe of a run uses any more, and what kills left, for `macpo clean`."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from macpo_data.errors import StoreError
from macpo_data.evaluation import probe
from macpo_data.evaluation.policies import every_policy
from macpo_data.evaluation.results import is_of
from macpo_data.methods.registry import make_plan
from macpo_data.plan import CHECKPOINTS, Policy, round_of
from macpo_data.recipe.recipe import MAX_ROUNDS
from macpo_data.store.manifests import MANIFEST
from macpo_data.store.store import Manifest, Store
from macpo_run.live_status import NOTES, is_alive
from macpo_run.rounds import Run


def unreachable(runs: Sequence[Run]) -> list[str]:
    """Results in a run's folder that none of these recipes reaches, begun ones included."""
    used = reached(runs)
    return [name for name in runs[0].store.names() if name not in used]


def reached(runs: Sequence[Run]) -> set[str]:
    """Results in a run's folder that one of these recipes reaches."""
    names = {name for run in runs for name in _reached_by(run)}
    # What the rewards of an evaluation are made from has no name that the plan could tell.
    inputs = ((_manifest(runs[0].store, name) or {}).get("inputs", {}) for name in names)
    return names.union(*inputs)


def _reached_by(run: Run) -> set[str]:
    store = run.store
    existing = store.names()
    # The last round is no identity: rounds beyond today's were made by this recipe too.
    rounds = [r for name in existing if (r := round_of(name)) is not None and r <= MAX_ROUNDS]
    last = max([run.recipe.rounds, *rounds])
    plan = make_plan(run.recipe.model_copy(update={"rounds": last}))
    names = {plan.name(step) for step in plan.steps} | {plan.prompts_name, plan.reward_name}
    policies = dict.fromkeys([*every_policy(plan), *map(Policy, plan.recipe.agents)])
    probed = {name for policy in policies for name in probe.names(plan, store, policy)}
    for name in existing:
        if name.startswith("eval/"):
            is_own = is_of(plan, _manifest(store, name))
        else:
            is_own = name in probed or any(
                plan.is_sample_of(name, policy) or plan.is_asked_of(name, policy)
                for policy in policies
            )
        names |= {name} if is_own else set()
    return names


def _manifest(store: Store, name: str) -> Manifest | None:
    """A result's manifest, unless it is damaged or not there."""
    try:
        return store.manifest(name)
    except StoreError:
        return None


def with_ceiling(run: Run) -> list[Run]:
    """The run with `eval.ceiling` on, where it is off: its evaluations hold the ceiling's scores.

    Turned off, the same recipe reaches neither them nor the ceiling itself.
    """
    if run.recipe.eval.ceiling or len(run.recipe.students) != 1:
        return []
    measured = run.recipe.eval.model_copy(update={"ceiling": True})
    return [run.beside(run.recipe.model_copy(update={"eval": measured}))]


def old_checkpoints(runs: Sequence[Run]) -> list[str]:
    """Checkpoints of earlier rounds whose weights no step to come of these recipes needs.

    Kept are each agent's newest policy, and all that the rest of the recipe, or one round more,
    writes with, goes on from or is held to.
    """
    store = runs[0].store
    reached: set[str] = set()
    needed: set[str] = set()
    for run in runs:
        done, more = _policies(run)
        reached |= done
        needed |= more
    return sorted(name for name in reached - needed if any(store.path(name).glob("*.safetensors")))


def _policies(run: Run) -> tuple[set[str], set[str]]:
    """The finished checkpoints of a recipe, and what is still needed."""
    recipe = run.recipe
    plan = make_plan(recipe.model_copy(update={"rounds": recipe.rounds + 1}))
    makers = {plan.name(step): step for step in plan.steps if step.makes}
    done = {name for name in makers if run.store.is_done(name)}
    todo = [step for step in plan.steps if not run.store.is_done(plan.name(step))]
    needed = {plan.name(m) for step in todo for p in step.policies if (m := plan.maker(p))}
    newest = {(makers[n].learner, makers[n].behavior): n for n in makers if n in done}
    checkpoints = {name for name in done if name.startswith(f"{CHECKPOINTS}/")}
    return checkpoints, needed | set(newest.values())


def remove(store: Store, name: str) -> None:
    """Delete a result. Its manifest goes first, so that a kill leaves nothing that looks done."""
    path = store.path(name)
    with store.lock(name):
        if path.is_symlink():  # what lies behind it was put elsewhere by a person
            return path.unlink()
        (path / MANIFEST).unlink(missing_ok=True)
        if path.exists():
            shutil.rmtree(path)


def left_by_kills(store: Store) -> Iterator[Path]:
    """Files that a process of this machine was writing when it was killed, and its notes."""
    here = re.escape(socket.gethostname())
    forms = {"**/.*.tmp": r"\..+\.(\d+)\.tmp", f"{NOTES}/*.json": rf"{here}-(\d+)\.json"}
    for pattern, form in forms.items():
        for path in sorted(store.root.glob(pattern)):
            pid = re.fullmatch(form, path.name)
            if pid and path.is_file() and not is_alive(int(pid[1]), path.stat().st_mtime):
                yield path
