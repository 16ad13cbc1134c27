"""Generates sample sets and score sets in resumable shards, in the process of one base model."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, NamedTuple, Self

import polars as pl

from macpo_data.engines.choose import open_engine
from macpo_data.engines.protocol import Engine, Request, Score, ScoreRequest, Voice
from macpo_data.models.base import Base
from macpo_data.models.worker import Report
from macpo_data.recipe.engine import Engine as Settings
from macpo_data.recipe.generation import Sampling
from macpo_data.recipe.section import digest_each
from macpo_data.schema import SAMPLES, SCORES, Message, Table
from macpo_data.store.store import Shards
from macpo_data.text import repetition
from macpo_data.versions import versions

# The columns of a shard: a sample set's, or a score set's keyed by row.
_BILLED: Table = {"prompt_tokens": pl.Int64(), "completion_tokens": pl.Int64()}
_SHARD: Table = {**SAMPLES, **_BILLED, "index": pl.UInt32(), **SCORES}
Row = dict[str, Any]
_VALUES = tuple(each.name for each in fields(Score))
TELL = 0.001  # seconds between two reports: a fast engine makes many rows in that time
WINDOW = 1 << 16  # rows that an engine gets at once, so that memory does not grow with the prompts


@dataclass(frozen=True)
class Task:
    """One sample set (with `sampling`) or score set of one voice, as its process gets it."""

    shards: Shards
    voice: Voice
    rows: pl.DataFrame  # prompt_id, prompt; for scores also response, finish_reason
    seed: int = 0
    sampling: Sampling | None = None
    labels: dict[str, Any] = field(default_factory=dict)  # constant columns: agent, policy, draw


class Part(NamedTuple):
    """A shard that is to be made: where it goes, and what its rows are made from."""

    task: Task
    shard: int
    rows: pl.DataFrame
    prompts: list[list[Message]]  # of the rows


def run_tasks(
    report: Report,
    settings: Settings,
    base: Base,
    tasks: list[Task],
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Make what is missing of all tasks of one base; shards are written as they complete.

    `say` prints what a person should know at once, such as who asks to wait for long.

    Returns:
        What the manifests say of the circumstances; under `own`, what each task's alone says.
    """
    engine = open_engine(settings, base)
    writing = _Missing([t for t in tasks if t.sampling])
    scoring = _Missing([t for t in tasks if not t.sampling])
    rows = Counter[str]()
    for task in tasks:
        rows[repr(task.voice.endpoint)] += len(task.rows)
    _collect(report, say, engine, "samples", writing, partial(_write, rows))
    _collect(report, say, engine, "responses", scoring, _score)
    own = [
        _usage(t) if t.sampling else {"scored_under": engine.scored_under(t.voice)} for t in tasks
    ]
    return {**engine.facts(), "own": own, **versions()}


class _Missing:
    """The rows that are still to be made of some tasks."""

    def __init__(self, tasks: list[Task]) -> None:
        """Rows stay in their frames until they are asked for."""
        self._shards = [(task, *each) for task in tasks for each in _open_rows(task)]
        self.count = sum(len(rows) for _, _, rows in self._shards)
        # Servers are asked side by side, all of them from the first row on.
        self._most = self.count if any(task.voice.endpoint for task in tasks) else WINDOW

    def windows(self) -> Iterator[list[Part]]:
        """Whole shards, as many as are in memory at once."""
        window: list[Part] = []
        copies: dict[str, list[Message]] = {}  # many rows ask the same: one copy is enough
        size = 0
        for task, shard, rows in self._shards:
            if window and size + len(rows) > self._most:
                yield window
                window, copies, size = [], {}, 0
            window.append(Part(task, shard, rows, _prompts(rows, copies)))
            size += len(rows)
        if window:
            yield window


def _prompts(rows: pl.DataFrame, copies: dict[str, list[Message]]) -> list[list[Message]]:
    """The prompts of rows, one copy of each."""
    prompts: list[list[Message]] = rows["prompt"].to_list()
    for at, name in enumerate(rows["prompt_id"].to_list()):
        copy = copies.setdefault(name, prompts[at])
        if copy == prompts[at]:
            prompts[at] = copy
    return prompts


def _open_rows(task: Task) -> Iterator[tuple[int, pl.DataFrame]]:
    """The shards that are still to be made; of an endpoint's, the rows that failed before."""
    for shard, span in enumerate(task.shards.spans):
        rows = task.rows[span.start : span.stop]
        if not task.shards.has(shard):
            yield shard, rows
        elif task.voice.endpoint:
            failed = pl.read_parquet(task.shards.files[shard]).filter(finish_reason="failed")
            yield shard, rows.filter(pl.col("prompt_id").is_in(failed["prompt_id"].implode()))


def _write(rows: Counter[str], engine: Engine, parts: list[Part]) -> Iterator[tuple[int, Row]]:
    """Ask for a response per row. `rows` are those of each endpoint, in earlier runs too."""
    requests: list[Request] = []
    for task, shard, asked, prompts in parts:
        assert task.sampling is not None
        group, of = f"{id(task)}-{shard}", rows[repr(task.voice.endpoint)]
        requests += [
            Request(task.voice, prompt, task.sampling, int(seed, 16), group, of)
            for prompt, seed in zip(
                prompts, digest_each(task.seed, asked["prompt_id"]), strict=True
            )
        ]
    ids = [name for part in parts for name in part.rows["prompt_id"]]
    for i, completion in engine.generate(requests):
        row = {
            "prompt_id": ids[i],
            "response": completion.text,
            "finish_reason": completion.finish_reason,
            "repetition": repetition(completion.text or ""),
        }
        if completion.billed:
            row |= dict(zip(_BILLED, completion.billed, strict=True))
        yield i, row


def _score(engine: Engine, parts: list[Part]) -> Iterator[tuple[int, Row]]:
    """Ask for the log-likelihood of each row's response."""
    requests: list[ScoreRequest] = []
    for task, shard, rows, prompts in parts:
        group = f"{id(task)}-{shard}"
        finished = rows["finish_reason"] == "stop"
        requests += [
            ScoreRequest(task.voice, prompt, response, is_finished, group)
            for prompt, response, is_finished in zip(
                prompts, rows["response"], finished, strict=True
            )
        ]
    indices = [index for part in parts for index in part.rows["index"]]
    for i, score in engine.score(requests):
        values = dict.fromkeys(_VALUES) if score is None else vars(score)
        yield i, {"index": indices[i], **values}


def _collect(
    report: Report,
    say: Callable[[str], None],
    engine: Engine,
    unit: str,
    missing: _Missing,
    make: Callable[[Engine, list[Part]], Iterator[tuple[int, Row]]],
) -> None:
    """Write each shard as soon as its last row is there, rows in the order of the task."""
    done = 0
    due = 0.0
    engine.listen(lambda: report(done, missing.count, unit + engine.note()), say)
    if missing.count:
        report(0, missing.count, unit)

    def tell(rows: int) -> None:
        nonlocal done, due
        done += rows
        if (now := time.monotonic()) >= due or done == missing.count:
            due = now + TELL
            report(done, missing.count, unit + engine.note())

    with _Writer() as writer:
        for parts in missing.windows():
            _collect_window(engine, parts, make, writer, tell)


class _Writer:
    """Writes shards beside the work on the next ones: a disk takes its time to keep a file."""

    def __init__(self) -> None:
        """Nothing is written yet."""
        self._pool = ThreadPoolExecutor(4)
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        """At the end all are written, also after an error."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Raise what a write raised, unless something else was raised before."""
        self._pool.shutdown()
        if kind is None:
            self._settle(0)

    def write(self, task: Task, shard: int, frame: pl.DataFrame) -> None:
        """Write a shard soon.

        Raises:
            OSError: of one before.
        """
        self._pending.append(self._pool.submit(task.shards.write, shard, frame))
        self._settle(8)

    def _settle(self, most: int) -> None:
        while self._pending and (len(self._pending) > most or self._pending[0].done()):
            self._pending.popleft().result()


def _collect_window(
    engine: Engine,
    parts: list[Part],
    make: Callable[[Engine, list[Part]], Iterator[tuple[int, Row]]],
    writer: _Writer,
    tell: Callable[[int], None],
) -> None:
    """`_collect` of whole shards; `tell` hears of each row that is done."""
    part_of = [n for n, part in enumerate(parts) for _ in part.prompts]
    waiting: dict[int, dict[int, Row]] = {}
    try:
        for i, row in make(engine, parts):
            n = part_of[i]
            rows = waiting.setdefault(n, {})
            rows[i] = row
            if len(rows) == len(parts[n].prompts):
                _write_shard(writer, parts[n], rows)
                del waiting[n]
            tell(1)
    except BaseException:
        # What endpoints answered was paid for: it stays, and only the rest is asked again.
        for n, rows in waiting.items():
            if parts[n].task.voice.endpoint:
                _write_shard(writer, parts[n], rows)
        raise


def _write_shard(writer: _Writer, part: Part, rows: dict[int, Row]) -> None:
    """Rows by their place; with an endpoint also what an earlier run had, and what is missing."""
    task, shard = part.task, part.shard
    ordered = [rows[k] for k in sorted(rows)]
    frame = pl.DataFrame(ordered, schema={name: _SHARD[name] for name in ordered[0]})
    labels = [pl.lit(value, _SHARD[name]).alias(name) for name, value in task.labels.items()]
    frame = frame.select(*labels, pl.all())
    if task.voice.endpoint:
        if task.shards.has(shard):
            before = pl.read_parquet(task.shards.files[shard])
            both = pl.concat([before, frame], how="diagonal").group_by("prompt_id")
            # The last attempt counts, but all were paid.
            frame = both.agg(pl.exclude(*_BILLED).last(), pl.col("^.*_tokens$").sum())
        whole = task.rows[list(task.shards.spans[shard])].select("prompt_id")
        frame = whole.join(frame, on="prompt_id", how="left", maintain_order="left")
        frame = frame.with_columns(pl.col("finish_reason").fill_null("failed"), *labels)
    writer.write(task, shard, frame)


def _usage(task: Task) -> dict[str, Any]:
    """Tokens and money of a sample set that an endpoint wrote, in however many runs."""
    endpoint = task.voice.endpoint
    if endpoint is None:
        return {}
    frame = pl.concat(pl.read_parquet(f) for f in task.shards.files)
    if "prompt_tokens" not in frame.columns:
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
