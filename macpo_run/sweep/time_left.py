"""Estimate of a sweep's remaining time, from the timings of earlier steps."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from macpo_data.plan import Step
from macpo_data.recipe.recipe import Recipe
from macpo_data.store.manifests import MANIFEST

Key = tuple[Any, ...]  # what makes two steps take about as long


@dataclass(frozen=True)
class Task:
    """Something that is made once, whichever variants name it."""

    name: str  # of its result
    key: Key
    size: int  # prompts that it goes through


def in_words(seconds: float, untimed: int) -> str:
    """The time left as a person wants to read it."""
    if untimed and not seconds:
        return "time left unknown, nothing like it was timed yet"
    minutes = seconds / 60
    about = f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min"
    about = f"{seconds:.0f} s" if minutes < 2 else about
    return f"about {about} left" + (
        f", without {untimed} of a kind that was never timed" if untimed else ""
    )


def task_of(recipe: Recipe, name: str, step: Step) -> Task:
    """A step of a recipe, by the name of its result."""
    values, method = recipe.model_dump(mode="json"), step.method or recipe.method
    key = key_of(values, step.kind, step.learner, step.round, step.objective, method)
    return Task(name, key, size_of(values, "d1", "d2"))


def key_of(
    recipe: dict[str, Any], kind: str, learner: str, round_: int = 0, objective: str | None = None,
    method: str | None = None,
) -> Key:  # fmt: skip
    """What takes about as long: a kind of step, method, objective and base; fake or not."""
    base, fake = recipe["agents"][learner]["base"], recipe["engine"]["name"] == "fake"
    return method if kind == "gen" else None, kind, objective, round_ == 0, base, fake


def size_of(recipe: dict[str, Any], *parts: str) -> int:
    """Prompts that are asked for in some parts of the data; 1 where all are taken."""
    data = recipe["data"]
    counts = [data[part]["count"] or data["limit"] for part in parts]
    return 1 if None in counts else sum(min(count, data["limit"] or count) for count in counts)


def about(timed: list[tuple[int, float]], size: int) -> float:
    """Seconds for so many prompts, by what took (prompts, seconds): those of the nearest size."""
    nearest = min((each for each, _ in timed), key=lambda each: abs(math.log(each / size)))
    return median(seconds for each, seconds in timed if each == nearest) * size / nearest


def timed(roots: Iterable[Path]) -> dict[Key, list[tuple[int, float]]]:
    """Prompts and seconds of what was made, as manifests of several run folders tell."""
    timings: dict[Key, list[tuple[int, float]]] = {}
    patterns = ("data/round-*", "adapters/*", "eval/*")
    paths = (path for r in roots for p in patterns for path in r.glob(f"{p}/{MANIFEST}"))
    for path in paths:
        try:
            manifest = json.loads(path.read_text("utf-8"))
            recipe, seconds = manifest["recipe"], manifest["seconds"]
            if manifest["kind"] == "eval":
                agents = recipe["agents"].items()
                student = next(name for name, agent in agents if agent["role"] == "student")
                key, size = key_of(recipe, "eval", student), size_of(recipe, "test")
                seconds /= len(manifest["samples"]) * manifest["sampling"]["n"]
            else:
                kind, learner, round_ = (manifest[name] for name in ("kind", "learner", "round"))
                objective, method = manifest.get("objective"), manifest["method"]
                key = key_of(recipe, kind, learner, round_, objective, method)
                size = size_of(recipe, "d1", "d2")
        except (OSError, ValueError, KeyError, TypeError):  # an older one, which says less
            continue
        for each in (key, key[1:]):
            timings.setdefault(each, []).append((size, seconds))
    return timings
