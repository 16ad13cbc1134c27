"""How good the policies are: their answers to the held-out prompts, scored and summed up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from macpo_data import world
from macpo_data.context import Context
from macpo_data.errors import MacpoError, StoreError
from macpo_data.plan import FORMAT, Plan, Policy
from macpo_data.recipe import digest
from macpo_data.schema import EVALUATION, JUDGEMENTS, RESPONSES, check, empty
from macpo_data.store import Manifest, Store, write_parquet

if TYPE_CHECKING:
    from macpo_data.stats import Estimate

WHO = ["agent", "behavior", "round"]
FILES = {"responses": RESPONSES, "judgements": JUDGEMENTS, "table": EVALUATION}


@dataclass(frozen=True)
class Evaluation:
    """Tables of one evaluation, or of several laid over each other."""

    table: pl.DataFrame  # EVALUATION
    responses: pl.DataFrame  # RESPONSES
    judgements: pl.DataFrame  # JUDGEMENTS
    paths: list[Path]  # folders of the tables


def evaluate(ctx: Context, policies: Sequence[Policy]) -> Evaluation:
    """Sample policies on the test prompts, and score what they wrote.

    Raises:
        MacpoError: there is no policy, or anything that a person can mend.
    """
    if not policies:
        raise MacpoError("nothing to evaluate: no policy is trained yet; run `macpo run --round 0`")
    samples = {p: ctx.plan.sample_name(p, "test", "0") for p in dict.fromkeys(policies)}
    name = f"eval/{digest([FORMAT, list(samples.values())])}"
    responses = _responses(ctx, list(samples))
    judgements = empty(JUDGEMENTS)
    with ctx.store.lock(name):
        if not _is_whole(ctx, name):
            ctx.store.aside(name)
            folder = ctx.store.clear(name)
            table = _table(responses, judgements)
            for file, frame in zip(FILES, (responses, judgements, table), strict=True):
                write_parquet(folder / f"{file}.parquet", frame)
            facts = {
                "kind": "eval",
                "format": FORMAT,
                "samples": {str(policy): sample for policy, sample in samples.items()},
                "inputs": ctx.used,
            }
            ctx.store.finish(name, facts)
    return _read(ctx.store, name)


def latest(plan: Plan, store: Store) -> Evaluation | None:
    """What is known of this recipe's policies: its evaluations, the newest on top.

    Evaluations of samples that changed since are left out. Of each measure only rows by the same
    judge as the newest stand together.
    """
    found = []
    for path in sorted(store.root.glob("eval/*/manifest.json")):
        name = str(path.parent.relative_to(store.root))
        manifest = _fresh(plan, store, name)
        if manifest is not None:
            found.append((manifest["created"], path.stat().st_mtime_ns, name))
    if not found:
        return None
    read = [_read(store, name) for *_, name in sorted(found, reverse=True)]
    table, responses, judgements = (
        pl.concat([getattr(each, file) for each in read]) for file in ("table", *list(FILES)[:2])
    )
    newest = table.unique(["measure", "against"], keep="first", maintain_order=True)
    table = table.join(
        newest.select("measure", "against", "by"),
        on=["measure", "against", "by"],
        how="semi",
        nulls_equal=True,
    )
    table = table.unique([*WHO, "measure", "against"], keep="first", maintain_order=True)
    scored = responses.group_by(["prompt_id", *WHO], maintain_order=True)
    responses = scored.agg(pl.all().drop_nulls().first()).select(*RESPONSES)
    key = ["prompt_id", *WHO, "against"]
    judgements = judgements.unique(key, keep="first", maintain_order=True)
    return Evaluation(table, responses, judgements, [path for each in read for path in each.paths])


def is_of(plan: Plan, manifest: Manifest | None) -> bool:
    """Whether an evaluation is one of this plan's policies as they are."""
    known = {str(policy): policy for policy in every_policy(plan)}
    samples: dict[str, str] = (manifest or {}).get("samples", {})
    return bool(samples) and all(
        policy in known and plan.sample_name(known[policy], "test", "0") == sample
        for policy, sample in samples.items()
    )


def every_policy(plan: Plan) -> list[Policy]:
    """The bare bases of those who are trained, and all that the plan trains."""
    trained = [policy for step in plan.steps if (policy := step.makes)]
    return [*(Policy(agent) for agent in dict.fromkeys(p.agent for p in trained)), *trained]


def trained(plan: Plan, store: Store, last: int | None = None) -> list[Policy]:
    """The policies that are there, up to a round."""
    return [
        policy
        for step in plan.steps
        if (policy := step.makes)
        and (last is None or step.round <= last)
        and store.is_done(plan.name(step))
    ]


def _fresh(plan: Plan, store: Store, name: str) -> Manifest | None:
    """An evaluation's manifest, unless it is damaged, another recipe's, or something changed."""
    try:
        manifest = store.manifest(name)
        if manifest is None or not is_of(plan, manifest):
            return None
        same = all(store.content(n) in (c, None) for n, c in manifest["inputs"].items())
        return store.verify(name) if same else None
    except StoreError:
        return None


def _is_whole(ctx: Context, name: str) -> bool:
    """Whether the tables are there, undamaged, and made from these samples."""
    try:
        return ctx.store.is_done(name) and ctx.store.verify(name)["inputs"] == ctx.used
    except StoreError:
        return False


def _read(store: Store, name: str) -> Evaluation:
    frames = {n: check(store.read(name, f"{n}.parquet"), t, name) for n, t in FILES.items()}
    return Evaluation(**frames, paths=[store.path(name)])


def _responses(ctx: Context, policies: list[Policy]) -> pl.DataFrame:
    """What the policies wrote, with the scores of each answer by itself."""
    samples = ctx.generate(policies, "test")
    spoken = pl.DataFrame(
        [(p.agent, ctx.plan.policy_fingerprint(p), p.behavior, p.round) for p in policies],
        schema=["agent", "policy", "behavior", "round"],
        orient="row",
        schema_overrides={"round": pl.Int64},
    )
    rows = samples.join(spoken, on=["agent", "policy"], maintain_order="left")
    scores = {"gold": _gold(ctx, rows), "reward": pl.Series([None] * len(rows), dtype=pl.Float64)}
    return check(rows.with_columns(**scores), RESPONSES, "evaluated responses")


def _gold(ctx: Context, rows: pl.DataFrame) -> pl.Series:
    """The source's own judge, where it has one."""
    if ctx.recipe.data.source != "world":
        return pl.Series([None] * len(rows), dtype=pl.Float64)
    prompts = ctx.prompts("test")
    asked = dict(zip(prompts["prompt_id"], prompts["prompt"].to_list(), strict=True))
    answers = rows.select("prompt_id", "response").iter_rows()
    return pl.Series(
        [world.gold(asked[i], text or "").score for i, text in answers], dtype=pl.Float64
    )


def _table(responses: pl.DataFrame, judgements: pl.DataFrame) -> pl.DataFrame:
    """One row per policy and measure."""
    from macpo_data import stats  # numpy takes a moment, which `status` need not wait for

    rows: list[dict[str, Any]] = []
    for who, own in responses.group_by(WHO, maintain_order=True):
        facts = {
            **dict(zip(WHO, who, strict=True)),
            "chars": own["response"].fill_null("").str.len_chars().mean(),
            "truncated": (own["finish_reason"] == "length").mean(),
        }
        for measure, by in (("gold", "world"), ("reward", None)):
            values = own[measure].drop_nulls()
            if len(values):
                rows.append(_row(facts, measure, None, by, stats.mean(values.to_numpy()), values))
    return pl.DataFrame(rows, schema=EVALUATION)


def _row(
    facts: dict[str, Any],
    measure: str,
    against: str | None,
    by: str | None,
    found: Estimate,
    values: pl.Series,
) -> dict[str, Any]:
    said = {"measure": measure, "against": against, "by": by, "responses": len(values)}
    return {**facts, **said, **found._asdict()}
