"""Requests to sample sets and score sets, in resumable shards. Runs in the process of one base."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import polars as pl

from macpo_data.engines import Engine, Request, Score, ScoreRequest, Voice, open_engine
from macpo_data.models import Base
from macpo_data.recipe import Engine as Settings
from macpo_data.recipe import Sampling, digest
from macpo_data.schema import SAMPLES, SCORES, Table
from macpo_data.store import Shards
from macpo_data.worker import Report

# The columns of a shard: a sample set's, or a score set's keyed by row.
_SHARD: Table = {**SAMPLES, "index": pl.UInt32(), **SCORES}
Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One sample set (with `sampling`) or score set of one voice, as its process gets it."""

    shards: Shards
    voice: Voice
    rows: pl.DataFrame  # prompt_id, prompt; for scores also response, finish_reason
    seed: int = 0
    sampling: Sampling | None = None
    labels: dict[str, Any] = field(default_factory=dict)  # constant columns: agent, policy, draw


class Place(NamedTuple):
    """A row that is to be made: where it goes, and what it is made from."""

    task: Task
    shard: int
    row: Row


def run_tasks(report: Report, settings: Settings, base: Base, tasks: list[Task]) -> dict[str, Any]:
    """Make what is missing of all tasks of one base; shards are written as they complete.

    Returns:
        What the manifests say of the circumstances.
    """
    engine = open_engine(settings, base)
    _collect(report, "samples", _places([t for t in tasks if t.sampling]), partial(_write, engine))
    _collect(
        report, "responses", _places([t for t in tasks if not t.sampling]), partial(_score, engine)
    )
    return {
        **engine.facts(),
        "scored_under": [None if t.sampling else engine.scored_under(t.voice) for t in tasks],
        **versions(),
    }


def _places(tasks: list[Task]) -> list[Place]:
    """The rows that are still to be made."""
    return [
        Place(task, shard, row)
        for task in tasks
        for shard in task.shards.missing()
        for row in task.rows[list(task.shards.spans[shard])].iter_rows(named=True)
    ]


def _write(engine: Engine, places: list[Place]) -> Iterator[tuple[int, Row]]:
    """Ask for a response per place."""
    requests = [
        Request(
            task.voice,
            row["prompt"],
            task.sampling,
            int(digest([task.seed, row["prompt_id"]]), 16),
            f"{id(task)}-{shard}",
        )
        for task, shard, row in places
        if task.sampling
    ]
    for i, completion in engine.generate(requests):
        yield (
            i,
            {
                **places[i].task.labels,
                "prompt_id": places[i].row["prompt_id"],
                "response": completion.text,
                "finish_reason": completion.finish_reason,
                "repetition": repetition(completion.text or ""),
            },
        )


def _score(engine: Engine, places: list[Place]) -> Iterator[tuple[int, Row]]:
    """Ask for the log-likelihood of each place's response."""
    requests = [
        ScoreRequest(
            task.voice,
            row["prompt"],
            row["response"],
            row["finish_reason"] == "stop",
            f"{id(task)}-{shard}",
        )
        for task, shard, row in places
    ]
    for i, score in engine.score(requests):
        values = asdict(score) if score else dict.fromkeys(f.name for f in fields(Score))
        yield i, {"index": places[i].row["index"], **values}


def _collect(
    report: Report,
    unit: str,
    places: list[Place],
    make: Callable[[list[Place]], Iterator[tuple[int, Row]]],
) -> None:
    """Write each shard as soon as its last row is there, rows in the order of the task."""
    sizes = Counter((id(task), shard) for task, shard, _ in places)
    waiting: dict[tuple[int, int], dict[int, Row]] = {}
    if places:
        report(0, len(places), unit)
    for done, (i, row) in enumerate(make(places), start=1):
        task, shard, _ = places[i]
        key = (id(task), shard)
        rows = waiting.setdefault(key, {})
        rows[i] = row
        if len(rows) == sizes[key]:
            ordered = [rows[k] for k in sorted(rows)]
            schema = {name: _SHARD[name] for name in ordered[0]}
            task.shards.write(shard, pl.DataFrame(ordered, schema=schema))
            del waiting[key]
        report(done, len(places), unit)


def repetition(text: str) -> float:
    """Share of a text's 3-word runs that occurred before in it; 0 where it has none."""
    words = text.split()
    runs = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


@cache
def versions() -> dict[str, Any]:
    """The versions of what makes results, and the hardware's name."""
    found = {}
    for package in ("macpo", "torch", "transformers", "peft", "trl", "polars"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"versions": found, "python": platform.python_version()}
