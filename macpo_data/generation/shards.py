"""Generates sample sets and score sets in resumable shards, in the process of one base model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any, NamedTuple

import polars as pl

from macpo_data.engines.choose import open_engine
from macpo_data.engines.protocol import Engine, Request, Score, ScoreRequest, Voice
from macpo_data.models.base import Base
from macpo_data.models.worker import Report
from macpo_data.recipe.engine import Engine as Settings
from macpo_data.recipe.generation import Sampling
from macpo_data.recipe.section import digest
from macpo_data.schema import SAMPLES, SCORES, Table
from macpo_data.store.store import Shards
from macpo_data.text import repetition
from macpo_data.versions import versions

# The columns of a shard: a sample set's, or a score set's keyed by row.
_BILLED: Table = {"prompt_tokens": pl.Int64(), "completion_tokens": pl.Int64()}
_SHARD: Table = {**SAMPLES, **_BILLED, "index": pl.UInt32(), **SCORES}
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
        What the manifests say of the circumstances; under `own`, what each task's alone says.
    """
    engine = open_engine(settings, base)
    writing = _places([t for t in tasks if t.sampling])
    scoring = _places([t for t in tasks if not t.sampling])
    rows = Counter[str]()
    for task in tasks:
        rows[repr(task.voice.endpoint)] += len(task.rows)
    _collect(report, engine, "samples", writing, partial(_write, rows))
    _collect(report, engine, "responses", scoring, _score)
    own = [
        _usage(t) if t.sampling else {"scored_under": engine.scored_under(t.voice)} for t in tasks
    ]
    return {**engine.facts(), "own": own, **versions()}


def _places(tasks: list[Task]) -> list[Place]:
    """The rows that are still to be made."""
    return [
        Place(task, shard, row)
        for task in tasks
        for shard, rows in _open_rows(task)
        for row in rows.iter_rows(named=True)
    ]


def _open_rows(task: Task) -> Iterator[tuple[int, pl.DataFrame]]:
    """The shards that are still to be made; of an endpoint's, the rows that failed before."""
    for shard, span in enumerate(task.shards.spans):
        rows = task.rows[list(span)]
        if not task.shards.has(shard):
            yield shard, rows
        elif task.voice.endpoint:
            failed = pl.read_parquet(task.shards.files[shard]).filter(finish_reason="failed")
            yield shard, rows.filter(pl.col("prompt_id").is_in(failed["prompt_id"].implode()))


def _write(rows: Counter[str], engine: Engine, places: list[Place]) -> Iterator[tuple[int, Row]]:
    """Ask for a response per place. `rows` are those of each endpoint, in earlier runs too."""
    requests = [
        Request(
            task.voice,
            row["prompt"],
            task.sampling,
            int(digest([task.seed, row["prompt_id"]]), 16),
            f"{id(task)}-{shard}",
            rows[repr(task.voice.endpoint)],
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
                **(dict(zip(_BILLED, completion.billed, strict=True)) if completion.billed else {}),
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
    engine: Engine,
    unit: str,
    places: list[Place],
    make: Callable[[Engine, list[Place]], Iterator[tuple[int, Row]]],
) -> None:
    """Write each shard as soon as its last row is there, rows in the order of the task."""
    sizes = Counter((id(task), shard) for task, shard, _ in places)
    waiting: dict[tuple[int, int], dict[int, Row]] = {}
    if places:
        report(0, len(places), unit)
    try:
        for done, (i, row) in enumerate(make(engine, places), start=1):
            task, shard, _ = places[i]
            key = (id(task), shard)
            rows = waiting.setdefault(key, {})
            rows[i] = row
            if len(rows) == sizes[key]:
                _write_shard(task, shard, rows)
                del waiting[key]
            report(done, len(places), unit + engine.note())
    except BaseException:
        # What endpoints answered was paid for: it stays, and only the rest is asked again.
        for rows in waiting.values():
            task, shard, _ = places[next(iter(rows))]
            if task.voice.endpoint:
                _write_shard(task, shard, rows)
        raise


def _write_shard(task: Task, shard: int, rows: dict[int, Row]) -> None:
    """Rows by their place; with an endpoint also what an earlier run had, and what is missing."""
    ordered = [rows[k] for k in sorted(rows)]
    frame = pl.DataFrame(ordered, schema={name: _SHARD[name] for name in ordered[0]})
    if task.voice.endpoint:
        if task.shards.has(shard):
            before = pl.read_parquet(task.shards.files[shard])
            both = pl.concat([before, frame], how="diagonal").group_by("prompt_id")
            # The last attempt counts, but all were paid.
            frame = both.agg(pl.exclude(*_BILLED).last(), pl.col("^.*_tokens$").sum())
        whole = task.rows[list(task.shards.spans[shard])].select("prompt_id")
        frame = whole.join(frame, on="prompt_id", how="left", maintain_order="left")
        frame = frame.with_columns(
            pl.col("finish_reason").fill_null("failed"),
            *(pl.lit(value, _SHARD[name]).alias(name) for name, value in task.labels.items()),
        )
    task.shards.write(shard, frame)


def _usage(task: Task) -> dict[str, Any]:
    """Tokens and money of a sample set that an endpoint wrote, in however many runs."""
    endpoint = task.voice.endpoint
    frame = pl.concat(pl.read_parquet(f) for f in task.shards.files)
    if endpoint is None or "prompt_tokens" not in frame.columns:
        return {}
    tokens = {name: int(frame[name].sum()) for name in _BILLED}
    cost = endpoint.cost(*tokens.values())
    failed = int((frame["finish_reason"] == "failed").sum())
    return {"usage": {**tokens, "failed": failed, **({} if cost is None else {"cost": cost})}}


def perplexity() -> pl.Expr:
    """Of a response with its end, as SCORES say, from SCORES and finish_reason."""
    ended = (pl.col("finish_reason") == "stop").cast(pl.Int64)
    tokens = pl.when(pl.col("num_tokens") > 0).then(pl.col("num_tokens") + ended)
    logprob = pl.col("sum_logprob") + pl.when(ended == 1).then("eot_logprob").otherwise(0.0)
    value = (-logprob / tokens).exp()
    return pl.when(value.is_finite()).then(value)
