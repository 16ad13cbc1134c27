"""The files of a published round, the same for a folder and for a Hub repository.

`render_step` writes what belongs to one learner of one round, under names that carry a hash of
their content. `assemble` adds what speaks of all rounds: the card, LLaMA-Factory's
dataset_info.json, and macpo/index.json, from which the next push learns what is there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from macpo_data.errors import StoreError, of_run
from macpo_data.forms import registry
from macpo_data.hub.card import card, measures, statistics
from macpo_data.hub.index import (
    CANDIDATES_SUFFIX,
    INDEX,
    Config,
    Entry,
    Index,
    config_name,
    owned,
)
from macpo_data.hub.provenance import has_rejected, pins, starts, voice, write_recipe, writers
from macpo_data.hub.rows import Turn, asked, completions, gone_on_from, left_out, published, whole
from macpo_data.hub.shards import Shards, batches
from macpo_data.plan import Plan, Step
from macpo_data.recipe.section import digest
from macpo_data.schema import CANDIDATES, PAIRS, PUBLISHED_CANDIDATES, check
from macpo_data.sources.places import all_paths
from macpo_data.store.manifests import MANIFEST, DatasetManifest
from macpo_data.store.store import Store, sha256

# Raise it when the same round would be rendered otherwise.
RENDER_FORMAT = 2

Rows = Callable[[pl.DataFrame], pl.DataFrame]  # from some of PAIRS


def identity(plan: Plan, store: Store, step: Step, candidates: bool, licence: str | None) -> str:
    """Name what a rendering of a step would contain, without rendering it.

    Raises:
        StoreError: the step's dataset is not finished.
    """
    content = store.content(plan.name(step))
    if content is None:
        raise StoreError(f"{step} is not finished; run `{of_run(f'gen --round {step.round}')}`")
    recipe = plan.recipe.identity()
    return digest([RENDER_FORMAT, plan.name(step), content, recipe, candidates, licence])


def render_step(
    plan: Plan,
    store: Store,
    step: Step,
    to: Path,
    *,
    repo: str | None = None,
    candidates: bool = False,
    licence: str | None = None,
) -> Entry:
    """Write all files of one learner's dataset of one round under `to`.

    Args:
        plan: of the recipe.
        store: where the step's finished dataset is.
        step: a gen step.
        to: an empty folder.
        repo: the dataset's id on the Hub, for the place of its adapters.
        candidates: whether to add all candidates with their scores.
        licence: of the source, if it is known.

    Raises:
        StoreError: the dataset is not finished, or damaged.
    """
    name, source = config_name(step.round, step.learner), plan.name(step)
    kept = ["pairs.parquet", *(["candidates.parquet", "dropped.parquet"] if candidates else [])]
    manifest = store.verify(source, *kept)
    preferences = has_rejected(plan, step)
    configs, measured = _write_forms(plan, store, step, to, preferences)
    dataset = store.typed(source, DatasetManifest)
    if candidates and dataset and dataset.summary.candidates:
        config = f"{name}{CANDIDATES_SUFFIX}"
        configs[config] = _write_candidates(plan, store, source, to, config)

    # What `macpo pull` puts back into a store, as it is there.
    own = to / "macpo" / name
    (own / source).mkdir(parents=True)
    for file in (MANIFEST, *kept):
        shutil.copyfile(store.path(source) / file, own / source / file)
    first, pinned = starts(plan, store, step, repo), pins(plan.recipe, store)
    (own / "adapters.json").write_bytes(_json(first))
    (own / "lock.json").write_bytes(_json(pinned))
    write_recipe(plan.recipe, own)

    facts: Any = measured | {
        "manifest": {k: v for k, v in manifest.items() if k not in ("recipe", "inputs", "created")},
        "name": source,
        "agents": [voice(plan, store, policy) for policy in step.policies],
        "learner_base": plan.recipe.agents[step.learner].base,
        "starts": first,
        "data": plan.recipe.read("data"),
        "sources": all_paths(plan.recipe.data),
        "pins": pinned["data"],
        "dpo": plan.recipe.read("dpo"),
        "preferences": preferences,
        "licence": licence,
    }
    paths = {str(p.relative_to(to)): p for p in sorted(to.rglob("*")) if p.is_file()}
    return {
        "round": step.round,
        "learner": step.learner,
        "main": step.learner == plan.recipe.students[0],
        "tag": f"round-{step.round}",
        "identity": identity(plan, store, step, candidates, licence),
        "files": {path: sha256(p) for path, p in paths.items() if path.startswith(owned(name))},
        "configs": configs,
        "facts": facts,
    }


def _write_forms(
    plan: Plan, store: Store, step: Step, to: Path, preferences: bool
) -> tuple[dict[str, Config], dict[str, Any]]:
    """Write a dataset's rows in every form that trainers want; what the card says of them."""
    name, source = config_name(step.round, step.learner), plan.name(step)
    path = store.path(source) / "pairs.parquet"
    make: Rows = partial(published, step=step, writers=writers(plan, store))
    if not preferences:
        make = _as_turns(make, gone_on_from(path), left_out(store.read(source, "dropped.parquet")))
    forms = registry.forms(preferences)
    shards = [Shards(to, f"{name}{form.suffix}", form.table) for form in forms]
    measured: list[pl.DataFrame] = []
    sample: dict[str, Any] = {}
    for pairs in batches(path):
        pairs = check(pairs, PAIRS, source)
        measured.append(measures(pairs))
        sample = sample or pairs.row(0, named=True)
        rows = make(pairs)
        for form, files in zip(forms, shards, strict=True):
            files.write(form.rows(rows))
    configs = {files.name: files.close() for files in shards}
    return configs, statistics(pl.concat(measured), sample)


def _as_turns(make: Rows, inner: pl.Series, out: set[Turn]) -> Rows:
    """Rows for fine-tuning, with `whole` for the form of conversations."""
    return lambda pairs: completions(make(pairs)).with_columns(whole=whole(pairs, inner, out))


def _write_candidates(plan: Plan, store: Store, source: str, to: Path, config: str) -> Config:
    """Write every candidate with its prompt."""
    shards = Shards(to, config, PUBLISHED_CANDIDATES)
    prompts = asked(plan, store, source)
    for batch in batches(store.path(source) / "candidates.parquet"):
        rows = check(batch, CANDIDATES, source)
        shards.write(rows.join(prompts, on="prompt_id", how="left", maintain_order="left"))
    return shards.close()


def assemble(index: Index, repo: str | None, suffix: str = "") -> dict[str, bytes]:
    """The files that speak of all rounds: card, index, and what trainers want there.

    Args:
        index: all that the repository holds.
        repo: its id on the Hub; None for a folder that is not meant for it.
        suffix: of the default configuration; `_full` on the branch for open-instruct.
    """
    tree = {
        name: {config: facts["files"] for config, facts in entry["configs"].items()}
        for name, entry in index.items()
    }
    return {
        "README.md": card(index, repo, suffix).encode(),
        **registry.files(tree, repo),
        INDEX: _json({name: index[name] for name in sorted(index)}, sort_keys=False),
    }


def _json(value: Any, sort_keys: bool = True) -> bytes:
    text = json.dumps(value, indent=1, sort_keys=sort_keys, ensure_ascii=False)
    return (text + "\n").encode()
