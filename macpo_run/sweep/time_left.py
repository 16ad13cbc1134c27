"""Estimate of a sweep's remaining time, from the timings of earlier steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, FiniteFloat

from macpo_data.outside import parse_json, read_bytes
from macpo_data.plan import Step
from macpo_data.recipe.recipe import Recipe
from macpo_data.store.manifests import MANIFEST
from macpo_run.terminal.text import duration

Key = tuple[Any, ...]  # what makes two steps take about as long


@dataclass(frozen=True)
class Task:
    """Something that is made once, whichever variants name it."""

    name: str  # of its result
    key: Key
    size: int  # prompts that it goes through


class TimedPart(BaseModel):
    """How many prompts of a part of the data were asked for."""

    count: Annotated[int, Field(ge=1)] | None = None


class TimedData(BaseModel):
    """The same of all parts."""

    limit: Annotated[int, Field(ge=1)] | None = None
    d1: TimedPart = TimedPart()
    d2: TimedPart = TimedPart()
    test: TimedPart = TimedPart()


class TimedAgent(BaseModel):
    """A participant."""

    role: str
    base: str


class TimedEngine(BaseModel):
    """What ran the models."""

    name: str


class TimedRecipe(BaseModel):
    """What of a recipe tells how long its steps take."""

    agents: dict[str, TimedAgent]
    data: TimedData
    engine: TimedEngine


class TimedSampling(BaseModel):
    """How many answers each policy gave to a prompt."""

    n: Annotated[int, Field(ge=1)] = 1


class Timed(BaseModel):
    """What a manifest says of the time that its result took."""

    kind: Literal["gen", "train", "eval"]
    seconds: Annotated[FiniteFloat, Field(ge=0)]
    recipe: TimedRecipe
    method: str = ""
    learner: str = ""
    round: int = 0
    objective: str | None = None
    samples: dict[str, str] = {}
    sampling: TimedSampling = TimedSampling()


def in_words(seconds: float, untimed: int) -> str:
    """The time left as a person wants to read it."""
    if untimed and seconds < 60:  # the little that is known would mislead
        return "time left unknown, nothing like it was timed yet"
    return f"about {duration(seconds)} left" + (
        f", without {untimed} of a kind that was never timed" if untimed else ""
    )


def seconds_left(todo: Sequence[Task], root: Path) -> tuple[float, int]:
    """What tasks take by what was timed before: (seconds, tasks of kinds that never were).

    Args:
        todo: what is still to be made.
        root: the run's folder, whose timings count before those of other runs beside it.
    """
    known = [seconds for seconds in seconds_of(todo, root) if seconds is not None]
    return sum(known), len(todo) - len(known)


def seconds_of(todo: Sequence[Task], root: Path) -> list[float | None]:
    """What each task takes by what was timed before; None for a kind that never was."""
    rates = timed([root])
    if not rates.keys() >= {task.key for task in todo}:
        rates = timed(p for p in root.parent.glob("*") if p != root) | rates
    # What no run of this method tells, one of another method may.
    timings = [(rates.get(task.key) or rates.get(task.key[1:]), task.size) for task in todo]
    # Nor does a count tell about all that there are (size 1), or the reverse.
    alike = [([t for t in ts or () if (t[0] > 1) == (size > 1)], size) for ts, size in timings]
    return [about(timed, size) if timed else None for timed, size in alike]


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
    patterns = ("data/round-*", "adapters/*", "checkpoints/*", "eval/*")
    paths = (path for r in roots for p in patterns for path in r.glob(f"{p}/{MANIFEST}"))
    for path in paths:
        try:
            step = Timed.model_validate(parse_json(read_bytes(path)))
        except (OSError, ValueError):  # an older one, which says less; or a damaged one
            continue
        recipe, seconds = step.recipe.model_dump(), step.seconds
        roles = {agent.role: name for name, agent in step.recipe.agents.items()}
        learner = roles.get("student", "") if step.kind == "eval" else step.learner
        if learner not in step.recipe.agents:
            continue
        if step.kind == "eval":
            key, size = key_of(recipe, "eval", learner), size_of(recipe, "test")
            seconds /= max(len(step.samples), 1) * step.sampling.n
        else:
            key = key_of(recipe, step.kind, learner, step.round, step.objective, step.method)
            size = size_of(recipe, "d1", "d2")
        for each in (key, key[1:]):
            timings.setdefault(each, []).append((size, seconds))
    return timings
