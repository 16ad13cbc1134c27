"""The fields that every step's manifest holds, and those read from earlier manifests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from macpo_data.plan import FORMAT, Plan, Step
from macpo_data.signs.rules import Signs
from macpo_data.store.store import Store
from macpo_data.versions import versions


def step_facts(plan: Plan, step: Step, made_from: Mapping[str, str]) -> dict[str, Any]:
    """What every step's manifest says."""
    recipe = plan.recipe
    return {
        "kind": step.kind,
        "format": FORMAT,
        "method": step.method or recipe.method,
        "round": step.round,
        "learner": step.learner,
        "behavior": step.behavior,
        "fingerprint": plan.fingerprint(step),
        "reads": {path: recipe.read(path) for path in step.reads},
        "inputs": dict(made_from),
        "recipe": recipe.model_dump(mode="json"),
        **versions(),
    }


def signs_of(plan: Plan, store: Store, step: Step | None) -> Signs:
    """Those that a finished step's manifest holds."""
    manifest = step and store.manifest(plan.name(step))
    kept: Signs = (manifest or {}).get("signs", {})
    return kept
