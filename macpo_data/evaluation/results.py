"""Evaluations on disk: written, found again, and merged so that the newest result counts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from macpo_data.errors import DataError, StoreError
from macpo_data.evaluation import signs
from macpo_data.evaluation.measures import BY_PROMPT, WHO, means
from macpo_data.evaluation.policies import every_policy, trained
from macpo_data.generation.run_context import RunContext
from macpo_data.plan import FORMAT, Plan, Policy
from macpo_data.recipe.generation import Sampling
from macpo_data.recipe.section import digest
from macpo_data.schema import EVALUATION, JUDGEMENTS, RESPONSES, check
from macpo_data.store.locks import is_read_only, unless_read_only
from macpo_data.store.manifests import MANIFEST
from macpo_data.store.store import Manifest, Store, write_parquet

FILES = {"responses": RESPONSES, "judgements": JUDGEMENTS, "table": EVALUATION}
REQUESTS = "evaluations.txt"
"""In a run's folder: a line per request with its time and the evaluation's name, the newest last.
An evaluation that is asked for again is not made again, so that its manifest cannot tell."""


Judges = Mapping[str, tuple[str, str]]  # measure: who judges by it, and what that depends on


@dataclass(frozen=True)
class Evaluation:
    """Tables of one evaluation, or of several laid over each other."""

    table: pl.DataFrame  # EVALUATION
    responses: pl.DataFrame  # RESPONSES
    judgements: pl.DataFrame  # JUDGEMENTS
    paths: list[Path]  # folders of the tables
    sampling: Sampling  # how the policies answered


def write(
    ctx: RunContext,
    policies: Sequence[Policy],
    by: Judges,
    responses: pl.DataFrame,
    judgements: pl.DataFrame,
    habits: dict[str, Any] | None,
) -> Evaluation:
    """Sum up and store an evaluation, unless it is there.

    Args:
        ctx: of the run.
        policies: whose samples these are.
        by: for each measure who judged, and what the judgement depends on.
        responses: RESPONSES.
        judgements: JUDGEMENTS.
        habits: what is known of the judge.
    """
    samples = {str(p): ctx.plan.sample_name(p, "test", "0") for p in policies}
    sampling = ctx.plan.sampling("test").identity()
    name = f"eval/{digest([FORMAT, list(samples.values()), sampling, by])}"
    with ctx.store.lock(name):
        if not _is_whole(ctx, name):
            table = means(responses, judgements, {m: who for m, (who, _) in by.items()})
            frames = (responses, judgements, table)
            try:
                folder = ctx.store.begin(name)
            except OSError as error:
                if not is_read_only(error, ctx.store.root):
                    raise
                ctx.store.say(f"{ctx.store.root} is read-only: this evaluation is not kept")
                path = ctx.store.path(name)
                return Evaluation(table, responses, judgements, [path], ctx.plan.sampling("test"))
            for file, frame in zip(FILES, frames, strict=True):
                write_parquet(folder / f"{file}.parquet", frame)
            facts = {"kind": "eval", "format": FORMAT, "samples": samples, "by": by}
            facts["sampling"] = sampling
            facts["signs"] = signs.of_evaluation(responses, ctx.recipe.teachers, judgements)
            facts |= {"method": ctx.recipe.method, "recipe": ctx.recipe.model_dump(mode="json")}
            facts |= {"judge": habits, "inputs": ctx.used, "seconds": ctx.seconds}
            ctx.store.finish(name, facts)
    _note_request(ctx.store, name)
    return _read(ctx.store, name)


def _note_request(store: Store, name: str) -> None:
    """Keep in mind that this evaluation was asked for last."""
    if _requests(store)[-1:] == [name]:
        return
    line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {name}\n"
    # One write at the file's end: several processes may evaluate in one run folder.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    with unless_read_only(store.root):
        file = os.open(store.path(REQUESTS), flags, 0o644)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)


def _requests(store: Store) -> list[str]:
    """The names of the evaluations that were asked for, the newest last."""
    path = store.path(REQUESTS)
    lines = path.read_text("utf-8", "replace").splitlines() if path.is_file() else []
    return [line.rpartition(" ")[2] for line in lines]


@dataclass(frozen=True)
class _Stored:
    """An evaluation with who judged in it."""

    evaluation: Evaluation
    by: Judges

    def seal(self, measure: str) -> str | None:
        """What the judgement by a measure depends on; None where it was not measured."""
        return self.by[measure][1] if measure in self.by else None


def latest(plan: Plan, store: Store) -> Evaluation | None:
    """What is known of this recipe's policies: its evaluations, the newest on top.

    The newest is the one asked for last, and before all that were ever asked for, the one made
    last. Evaluations of samples that changed since are left out. Of each measure only what the
    same judge as the newest said stands together.
    """
    stored = list(_newest_first(plan, store))
    if not stored:
        return None
    table = pl.concat(
        each.evaluation.table.with_columns(
            judge=pl.col("measure").replace_strict({m: each.seal(m) for m in each.by})
        )
        for each in stored
    )
    newest = table.unique(["measure", "against"], keep="first", maintain_order=True)
    same = ["measure", "against", "judge"]
    table = table.join(newest.select(same), on=same, how="semi", nulls_equal=True).drop("judge")
    table = table.unique([*WHO, "measure", "against"], keep="first", maintain_order=True)
    return Evaluation(
        table,
        _responses(stored, newest),
        _judgements(stored, newest),
        [path for each in stored for path in each.evaluation.paths],
        plan.sampling("test"),
    )


def _newest_first(plan: Plan, store: Store) -> Iterator[_Stored]:
    """The plan's whole evaluations."""
    turn = {name: n for n, name in enumerate(_requests(store))}
    dated: list[tuple[int, str, str, _Stored]] = []
    for path in store.root.glob(f"eval/*/{MANIFEST}"):
        name = f"eval/{path.parent.name}"
        if fresh := _fresh(plan, store, name):
            stored, created = fresh
            # Requests were not noted from the beginning: what has none is older than what has one.
            dated.append((turn.get(name, -1), created, name, stored))
    for *_, stored in sorted(dated, key=lambda each: each[:3], reverse=True):
        yield stored


def _responses(stored: Sequence[_Stored], newest: pl.DataFrame) -> pl.DataFrame:
    """Each answer once, with the scores that the newest judge of each measure gave it."""
    alone = newest.filter(pl.col("against").is_null())
    judges = dict(alone.select("measure", "judge").iter_rows())
    responses = pl.concat(
        each.evaluation.responses.with_columns(
            pl.lit(None, pl.Float64).alias(measure)
            for measure in BY_PROMPT
            if measure in each.by and each.seal(measure) != judges.get(measure)
        )
        for each in stored
    )
    scored = responses.group_by(["prompt_id", *WHO, "draw"], maintain_order=True)
    return scored.agg(pl.all().drop_nulls().first()).select(*RESPONSES)


def _judgements(stored: Sequence[_Stored], newest: pl.DataFrame) -> pl.DataFrame:
    """Each comparison once, by the newest judge against each baseline."""
    wins = newest.filter(measure="win").select("against", "judge")
    judgements = pl.concat(
        each.evaluation.judgements.with_columns(judge=pl.lit(each.seal("win") or "")).join(
            wins, on=["against", "judge"], how="semi", maintain_order="left"
        )
        for each in stored
    ).drop("judge")
    key = ["prompt_id", *WHO, "draw", "against"]
    return judgements.unique(key, keep="first", maintain_order=True)


def unmeasured(plan: Plan, store: Store) -> Policy | None:
    """The student's newest policy, if it is in no undamaged evaluation."""
    measured: set[str] = set()
    for path in store.root.glob(f"eval/*/{MANIFEST}"):
        try:
            manifest = store.manifest(f"eval/{path.parent.name}")
        except StoreError:
            continue
        if is_of(plan, manifest):
            measured |= (manifest or {})["samples"].keys()
    own = [
        policy
        for policy in trained(plan, store)
        if policy.agent in plan.recipe.students and policy.behavior == "positive"
    ]
    newest = max(own, key=lambda policy: policy.round or 0, default=None)
    return newest if str(newest) not in measured else None


def is_of(plan: Plan, manifest: Manifest | None) -> bool:
    """Whether an evaluation is one of this plan's policies as they are."""
    by_name = {str(policy): policy for policy in every_policy(plan)}
    facts = manifest or {}
    samples: dict[str, str] = facts.get("samples", {})
    alike = facts.get("sampling") == plan.sampling("test").identity()
    return (
        alike
        and bool(samples)
        and all(
            policy in by_name and plan.sample_name(by_name[policy], "test", "0") == sample
            for policy, sample in samples.items()
        )
    )


def _fresh(plan: Plan, store: Store, name: str) -> tuple[_Stored, str] | None:
    """An evaluation and when it was made, unless damaged, another recipe's, or out of date."""
    try:
        manifest = store.manifest(name)
        if manifest is None or not is_of(plan, manifest):
            return None
        same = all(store.content(n) in (c, None) for n, c in manifest["inputs"].items())
        # An earlier version may have had other columns.
        if not same or "by" not in manifest:
            return None
        return _Stored(_read(store, name), manifest["by"]), str(manifest["created"])
    except (DataError, StoreError):
        return None


def _is_whole(ctx: RunContext, name: str) -> bool:
    """Whether the tables are there, undamaged, and made from these samples."""
    try:
        _read(ctx.store, name)
        return bool(ctx.store.verify(name)["inputs"] == ctx.used)
    except (DataError, StoreError):
        return False


def _read(store: Store, name: str) -> Evaluation:
    frames = {n: check(store.read(name, f"{n}.parquet"), t, name) for n, t in FILES.items()}
    sampling = Sampling(**(store.manifest(name) or {})["sampling"])
    return Evaluation(**frames, paths=[store.path(name)], sampling=sampling)
