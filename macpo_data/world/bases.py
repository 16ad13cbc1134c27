"""The tiny base models of the embedded world: how each is made, and where it is stored."""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

VERSION = 3
"""Raise it whenever a change in this folder or in pretraining makes other bases or scores."""


@dataclass(frozen=True)
class BaseSpec:
    """A base model to pretrain: its size, and how many prompts it reads in which batches."""

    layers: int
    width: int
    heads: int
    mlp: int
    seed: int
    prompts: int
    lr: float
    batch: int
    skips: int | None = None  # the third of the topics that it never reads
    shuffles: int | None = None  # the third that it reads with the facts of any topic


BASES: dict[str, BaseSpec] = {
    "weak-a": BaseSpec(2, 192, heads=6, mlp=576, seed=1, prompts=2600, lr=2e-3, batch=8, skips=0),
    "weak-b": BaseSpec(2, 192, heads=6, mlp=576, seed=2, prompts=2600, lr=2e-3, batch=8, skips=1),
    "weak-c": BaseSpec(2, 192, heads=6, mlp=576, seed=5, prompts=2600, lr=2e-3, batch=8, skips=2),
    "strong": BaseSpec(2, 448, heads=7, mlp=1344, seed=3, prompts=2600, lr=1.1e-3, batch=6),
    "strong-gap": BaseSpec(
        2, 448, heads=7, mlp=1344, seed=3, prompts=3200, lr=1.1e-3, batch=6, shuffles=0
    ),
    "tiny": BaseSpec(1, 32, heads=1, mlp=64, seed=4, prompts=32, lr=2e-3, batch=8),
}
"""The bases of the embedded world. Each weak one reads two thirds of the topics, the strong one
all. `strong-gap` reads all words of the third that weak-a skips, but not which facts belong to its
topics: a word that was never read could not be learned later, since an adapter leaves its embedding
random. `tiny` learns nothing and is there to test the machinery."""

SEEDS_APART = 1_000_000
"""Between a base's pretrainings, so that none has the seed of another base."""


def base_spec(name: str) -> BaseSpec:
    """What a base is made from: one of BASES, or with a number, `weak-a/1`, one pretrained anew.

    That has another seed, and so other initial weights, and other prompts and answers of the
    pretraining pool. Sizes, topics, the pools and the tokenizer are the same.

    Raises:
        KeyError: no such base.
    """
    if not (named := re.fullmatch(r"([^/]+)(?:/([1-9][0-9]{0,3}))?", name)):
        raise KeyError(name)
    spec = BASES[named[1]]
    return replace(spec, seed=spec.seed + SEEDS_APART * int(named[2] or 0))


def cache_dir() -> Path:
    """Where bases that are made here are kept: MACPO_CACHE, else ~/.cache/macpo."""
    return Path(os.environ.get("MACPO_CACHE") or Path.home() / ".cache" / "macpo")


def base_path(name: str) -> Path:
    """Folder of a base in the cache (MACPO_CACHE, else ~/.cache/macpo), whether or not it exists.

    The folder's name carries a hash of the world's version and the base's spec.

    Raises:
        KeyError: no such base.
    """
    identity = json.dumps([VERSION, asdict(base_spec(name))], sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    return cache_dir() / "world" / f"{name.replace('/', '-')}-{digest}"


def is_ready(name: str) -> bool:
    """Whether the base is pretrained: its manifest is written last."""
    return (base_path(name) / "manifest.json").is_file()
