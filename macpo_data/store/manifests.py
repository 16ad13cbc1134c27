"""Manifests: the fields of each kind of result, and how an untrusted one is read.

A manifest may come from somebody else, or from an older or newer macpo. So its size and its nesting
are bounded before anything is made of it, what is read of it here has to have its type, and keys
that are not known here are kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from macpo_data.errors import StoreError
from macpo_data.outside import JSON_BYTES, parse_json

MANIFEST = "manifest.json"
MAX_BYTES = JSON_BYTES


class AnyManifest(BaseModel):
    """What every manifest says."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    files: dict[str, str]  # of the folder, by path: sha256
    content: str  # sha256 over `files`
    seal: str  # sha256 over all the rest of the manifest
    created: str = ""  # UTC
    name: str | None = None  # of the result inside its run; older ones do not say
    fingerprint: str | None = None  # of the step that made it, if one did
    inputs: dict[str, str] = {}  # content of each result that it was made from, by name


class PromptsManifest(AnyManifest):
    """Of the prompts that a run reads from its source."""

    kind: Literal["prompts"] = "prompts"
    rows: dict[str, int] = {}  # by part
    unusable: dict[str, int] = {}  # by reason
    pins: dict[str, str | None] = {}  # of each dataset: a commit, or a file's sha256


class Summary(BaseModel):
    """A dataset in numbers."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    pairs: int = 0
    prompts: int = 0
    candidates: int = 0
    dropped_by_reason: dict[str, int] = {}
    caught_by_reason: dict[str, int] = {}
    chosen_by_agent: dict[str, int] = {}


class DatasetManifest(AnyManifest):
    """Of a round's dataset for one learner."""

    kind: Literal["gen"] = "gen"
    method: str = ""
    round: int = 0
    learner: str = ""
    summary: Summary
    reads: dict[str, Any] = {}  # what of the recipe decided it, by dotted path
    scored_under: dict[str, Any] = {}  # what the pairs' scores depend on, by policy
    signs: dict[str, Any] = {}


class AdapterManifest(AnyManifest):
    """Of a trained policy: an adapter, or a checkpoint of all weights."""

    kind: Literal["train"] = "train"
    method: str = ""
    round: int = 0
    learner: str = ""
    objective: str | None = None
    base: str = ""
    base_revision: str | None = None
    start: str | None = None  # the adapter that it started from; None for the base
    reference: str | None = None  # dpo: the adapter or base that it was held to
    adapter_sha256: str  # of its weights, be they an adapter's or all
    template_sha256: str | None = None  # of the chat template; the fake engine has none
    signs: dict[str, Any] = {}


class SamplesManifest(AnyManifest):
    """Of what a policy wrote: to a part of the data, or to prompts made for it."""

    kind: Literal["samples"] = "samples"
    policy: str = ""
    adapter: str | None = None


class ScoresManifest(AnyManifest):
    """Of likelihoods under a policy."""

    kind: Literal["scores"] = "scores"
    policy: str = ""
    adapter: str | None = None
    scored_under: dict[str, Any] | None = None  # what they depend on


class RewardsManifest(AnyManifest):
    """Of a reward model's scores."""

    kind: Literal["rewards"] = "rewards"
    rows: int = 0


class RewardModelManifest(AnyManifest):
    """Of the run's own reward model."""

    kind: Literal["reward"] = "reward"
    base: str = ""
    base_revision: str | None = None


class EvaluationManifest(AnyManifest):
    """Of an evaluation."""

    kind: Literal["eval"] = "eval"
    samples: dict[str, str] = {}  # sample set of each policy
    sampling: dict[str, Any] = {}
    signs: dict[str, Any] = {}


class ProbeManifest(AnyManifest):
    """Of a policy's reading of the probe."""

    kind: Literal["probe"] = "probe"
    policy: str = ""
    adapter: str | None = None  # its content, not its name


_KINDS: dict[str, type[AnyManifest]] = {
    "adapters": AdapterManifest,
    "checkpoints": AdapterManifest,
    "samples": SamplesManifest,
    "answers": SamplesManifest,
    "scores": ScoresManifest,
    "rewards": RewardsManifest,
    "reward": RewardModelManifest,
    "eval": EvaluationManifest,
    "probe": ProbeManifest,
}


def kind_of(name: str) -> type[AnyManifest]:
    """The kind of manifest that a result of this name has."""
    folder, _, own = name.partition("/")
    if folder == "data":
        return PromptsManifest if own.startswith("prompts-") else DatasetManifest
    return _KINDS.get(folder, AnyManifest)


def read_manifest(content: bytes, name: str, path: Path) -> tuple[dict[str, Any], AnyManifest]:
    """A manifest as it stands there, and the model of what is read of it.

    Args:
        content: the file.
        name: of the result that it should belong to.
        path: of the file, for errors.

    Raises:
        StoreError: it was edited, is no manifest, or another result's.
    """
    try:
        facts = parse_json(content, MAX_BYTES)
        intact = bool(facts["seal"] == seal(facts))
        manifest = kind_of(name).model_validate(facts) if intact else None
    except (ValueError, KeyError, TypeError):  # pydantic's own error is a ValueError
        manifest = None
    if manifest is None:
        raise StoreError(f"{path} was edited or cut short; --redo makes the result anew")
    own = manifest.fingerprint is None or name.endswith(f"-{manifest.fingerprint}")
    if manifest.name not in (None, name) or not own:
        other = manifest.name or manifest.fingerprint
        raise StoreError(f"{path} is that of another result, {other}; --redo makes this one anew")
    return facts, manifest


def seal(manifest: Mapping[str, Any]) -> str:
    """The sha256 over a manifest without its seal, 64 hex digits."""
    body = {k: v for k, v in manifest.items() if k != "seal"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
