"""Provenance of a dataset: its authors, the start of a training on it, and its recipe."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from macpo_data import prompts
from macpo_data.errors import StoreError, of_run
from macpo_data.hub.index import adapters_repo
from macpo_data.plan import Plan, Policy, Step
from macpo_data.recipe.agents import Agent, read_template
from macpo_data.recipe.recipe import Recipe, text_files
from macpo_data.recipe.section import written
from macpo_data.store.manifests import AdapterManifest
from macpo_data.store.pins import Lock
from macpo_data.store.store import Store


def has_rejected(plan: Plan, step: Step) -> bool:
    """Whether anybody learns from a dataset's rejected answers; else it is for fine-tuning."""
    return any(train.objective != "sft_chosen" for train in _trainings(plan, step))


def _trainings(plan: Plan, step: Step) -> list[Step]:
    # A retrained twin learns from the dataset of round 0 in a later one, and is no part of this.
    own = (s for s in plan.steps if s.makes and s.dataset_round is None)
    return [s for s in own if plan.dataset(s) == step]


def voice(plan: Plan, store: Store, policy: Policy) -> dict[str, Any]:
    """An agent as it spoke: base, adapter, template."""
    agent = plan.recipe.agents[policy.agent]
    maker = plan.maker(policy)
    manifest = store.typed(plan.name(maker), AdapterManifest) if maker else None
    if maker and manifest is None and store.path(plan.name(maker)).is_dir():
        raise StoreError(
            f"{store.path(plan.name(maker))} has no manifest.json any more; move the folder away "
            "to say that the adapter is not here, or make it again with "
            f"{of_run(f'train --round {maker.round} --redo')}"
        )
    return {
        "policy": str(policy),
        "role": agent.role,
        "fingerprint": plan.policy_fingerprint(policy),
        "base": agent.base if maker or not agent.endpoint else agent.endpoint.model,
        "base_revision": Lock(store.root).pins()["models"].get(_pin(agent)),
        "adapter": maker and plan.name(maker),
        "adapter_sha256": manifest and manifest.adapter_sha256,
        "chat_template": agent.chat_template,
        "template_sha256": manifest and manifest.template_sha256,
    }


def writers(plan: Plan, store: Store) -> pl.DataFrame:
    """Every policy of the plan by its fingerprint, for the provenance columns."""
    policies = [policy for step in plan.steps if (policy := step.makes)]
    policies += [Policy(agent) for agent in plan.recipe.agents]
    kept = {
        "fingerprint": "policy",
        "base": "model",
        "base_revision": "model_revision",
        "adapter_sha256": "adapter_sha256",
    }
    voices = [voice(plan, store, policy) for policy in dict.fromkeys(policies)]
    rows = pl.DataFrame(voices, schema=dict.fromkeys(kept, pl.String))
    return rows.rename(kept).unique("policy", keep="last", maintain_order=True)


def starts(plan: Plan, store: Store, step: Step, repo: str | None) -> list[dict[str, Any]]:
    """Where each training on this dataset starts, and against what: what a stranger has to fetch.

    A start on the bare base needs no adapter. The place of an adapter follows from its name, so
    that it is the same whether its adapters were pushed already or not.
    """
    base = plan.recipe.agents[step.learner].base
    listed: list[dict[str, Any]] = []
    for train in _trainings(plan, step):
        voices = [voice(plan, store, policy) for policy in train.policies]
        held_to = None if plan.recipe.dpo.reference == "base" else voices[-1]["adapter"]
        listed += [
            {
                "trains": str(train.makes),
                "objective": train.objective,
                "needs": needs,
                "start": voice["adapter"] or base,
                "reference": (held_to or base) if train.objective == "dpo" else None,
                "base": base,
                "base_revision": voice["base_revision"],
                "adapter_sha256": voice["adapter_sha256"],
                "repo": adapters_repo(repo) if voice["adapter"] and repo else None,
                "revision": Path(voice["adapter"]).name if voice["adapter"] else None,
            }
            # The second one is needed as the reference alone.
            for needs, voice in zip(("start", "reference"), voices, strict=False)
        ]
    return listed


def pins(recipe: Recipe, store: Store) -> dict[str, dict[str, str | None]]:
    """The part of lock.json that this recipe reads."""
    pins = Lock(store.root).pins()
    models = {_pin(agent) for agent in recipe.agents.values()}
    return {
        "models": {k: v for k, v in pins["models"].items() if k in models},
        "data": dict(pins["data"]),
    }


def _pin(agent: Agent) -> str:
    return f"{written(agent.base)}@{agent.revision}"


def write_recipe(recipe: Recipe, to: Path) -> None:
    """The recipe as it was used, with the templates that it keeps in files of their own."""
    values = recipe.model_dump(mode="json")
    for section, key in text_files(values):
        text = read_template(section[key]) if key == "chat_template" else prompts.read(section[key])
        kind = "template-{}.jinja" if key == "chat_template" else "prompt-{}.txt"
        name = kind.format(hashlib.sha256(text.encode()).hexdigest()[:12])
        (to / name).write_text(text, "utf-8")
        section[key] = name
    (to / "recipe.yaml").write_text(
        yaml.safe_dump(values, sort_keys=False, allow_unicode=True), "utf-8"
    )
