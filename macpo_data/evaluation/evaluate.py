"""How good the policies are: their answers to the held-out prompts, scored and summed up."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from macpo_data.errors import DataError, MacpoError, StoreError
from macpo_data.evaluation import draws, signs
from macpo_data.generation import judge
from macpo_data.generation import reward_model as reward
from macpo_data.generation.context import Context
from macpo_data.plan import FORMAT, Plan, Policy
from macpo_data.recipe import Judge, Recipe, RewardModel, Sampling, digest
from macpo_data.schema import EVALUATION, JUDGEMENTS, RESPONSES, check, empty
from macpo_data.store.store import MANIFEST, Manifest, Store, states, write_parquet
from macpo_data.world.bases import VERSION
from macpo_data.world.judge import gold

if TYPE_CHECKING:
    from macpo_data.stats import Estimate

CHOSEN = "chosen"  # as a baseline: the human's better answer
WHO = ["agent", "behavior", "round"]
FILES = {"responses": RESPONSES, "judgements": JUDGEMENTS, "table": EVALUATION}


@dataclass(frozen=True)
class Evaluation:
    """Tables of one evaluation, or of several laid over each other."""

    table: pl.DataFrame  # EVALUATION
    responses: pl.DataFrame  # RESPONSES
    judgements: pl.DataFrame  # JUDGEMENTS
    paths: list[Path]  # folders of the tables
    sampling: Sampling  # how the policies answered


def evaluate(ctx: Context, policies: Sequence[Policy], against: str | None = None) -> Evaluation:
    """Sample policies on the test prompts, and score what they wrote as the recipe's `eval` says.

    Args:
        ctx: of the run.
        policies: whom to measure.
        against: baseline of pairwise judgements: a policy's name, or chosen for the human's
            answers; None as the recipe says.

    Raises:
        MacpoError: there is no policy, no judge for a baseline, or anything else to mend.
    """
    if not policies:
        raise MacpoError("nothing to evaluate: no policy is trained yet; run `macpo run --round 0`")
    baseline = _baseline(ctx, against or ctx.recipe.eval.against)
    wanted = list(dict.fromkeys([*policies, *([baseline] if isinstance(baseline, Policy) else [])]))
    by = _judges(ctx, baseline)
    responses = _scored(ctx, answers_of(ctx, wanted))
    judgements, habits = empty(JUDGEMENTS), None
    if baseline is not None:
        judgements, habits = _judge(ctx, responses, baseline)
    return write(ctx, wanted, by, responses, judgements, habits)


def write(
    ctx: Context,
    policies: Sequence[Policy],
    by: dict[str, tuple[str, str]],
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
            ctx.store.aside(name)
            folder = ctx.store.clear(name)
            table = _table(responses, judgements, {m: who for m, (who, _) in by.items()})
            for file, frame in zip(FILES, (responses, judgements, table), strict=True):
                write_parquet(folder / f"{file}.parquet", frame)
            facts = {"kind": "eval", "format": FORMAT, "samples": samples, "by": by}
            facts["sampling"] = sampling
            facts["signs"] = signs.of_evaluation(responses, ctx.recipe.teachers, judgements)
            facts |= {"method": ctx.recipe.method, "recipe": ctx.recipe.model_dump(mode="json")}
            facts |= {"judge": habits, "inputs": ctx.used, "seconds": ctx.seconds}
            ctx.store.finish(name, facts)
        os.utime(ctx.store.path(name) / MANIFEST)  # the one asked for last is the newest
    return _read(ctx.store, name)


def find_policy(plan: Plan, name: str) -> Policy:
    """The policy that a person names, such as student-positive-0 or student-base.

    Raises:
        MacpoError: there is none of that name.
    """
    for policy in every_policy(plan):
        if str(policy) == name:
            return policy
    raise MacpoError(
        f"no policy {name!r}: name an agent and its round, such as {plan.recipe.students[0]}-"
        f"positive-0, or {plan.recipe.students[0]}-base for its bare base"
    )


def choose(
    plan: Plan, store: Store, round_: str = "all", agents: Sequence[str] = ()
) -> list[Policy]:
    """The policies that a person asks for.

    Args:
        plan: of the run.
        store: of the run.
        round_: a number, `all` that are trained, or `base` for bare bases.
        agents: names; none means all that are trained.

    Raises:
        MacpoError: there is no such round or agent, or it is not trained yet.
    """
    known = every_policy(plan)
    names = list(dict.fromkeys(policy.agent for policy in known))
    if wrong := [name for name in agents if name not in names]:
        raise MacpoError(f"no agent {wrong[0]!r} that is trained: choose {', '.join(names)}")
    if round_ not in ("all", "base") and not round_.isdecimal():
        raise MacpoError(f"--round {round_}: write a number, all, or base")
    if round_ == "base":
        found = [policy for policy in known if policy.round is None]
    else:
        found = [p for p in trained(plan, store) if round_ in ("all", str(p.round))]
    found = [policy for policy in found if not agents or policy.agent in agents]
    if not found:
        raise MacpoError(
            f"nothing to evaluate: no such policy is trained yet (round {round_}); `macpo status`"
        )
    _warn_of_stale(plan, store, found)
    return found


def _warn_of_stale(plan: Plan, store: Store, policies: Sequence[Policy]) -> None:
    known = states(plan, store)
    makers = {policy: plan.maker(policy) for policy in policies}
    if stale := [str(policy) for policy, step in makers.items() if step and known[step] == "stale"]:
        store.say(
            f"warning: {', '.join(stale)} was made from what changed since; `macpo status` says "
            "what makes it anew"
        )


def latest(plan: Plan, store: Store) -> Evaluation | None:
    """What is known of this recipe's policies: its evaluations, the newest on top.

    Evaluations of samples that changed since are left out. Of each measure only what the same
    judge as the newest said stands together.
    """
    found = []
    for path in sorted(store.root.glob("eval/*/manifest.json")):
        name = str(path.parent.relative_to(store.root))
        if fresh := _fresh(plan, store, name):
            found.append((path.stat().st_mtime_ns, *fresh))
    if not found:
        return None
    found.sort(key=lambda each: each[0], reverse=True)
    tables = [
        each.table.with_columns(
            judge=pl.col("measure").replace_strict({m: seal for m, (_, seal) in by.items()})
        )
        for _, each, by in found
    ]
    table = pl.concat(tables)
    newest = table.unique(["measure", "against"], keep="first", maintain_order=True)
    same = ["measure", "against", "judge"]
    table = table.join(newest.select(same), on=same, how="semi", nulls_equal=True).drop("judge")
    table = table.unique([*WHO, "measure", "against"], keep="first", maintain_order=True)
    judges = {row[0]: row[-1] for row in newest.select(same).iter_rows() if row[1] is None}
    responses = pl.concat(
        each.responses.with_columns(
            pl.lit(None, pl.Float64).alias(measure)
            for measure in ("gold", "reward")
            if measure in by and by[measure][1] != judges.get(measure)
        )
        for _, each, by in found
    )
    scored = responses.group_by(["prompt_id", *WHO, "draw"], maintain_order=True)
    responses = scored.agg(pl.all().drop_nulls().first()).select(*RESPONSES)
    wins = newest.filter(measure="win").select("against", "judge")
    judgements = pl.concat(
        each.judgements.with_columns(judge=pl.lit(by.get("win", ("", ""))[1])).join(
            wins, on=["against", "judge"], how="semi", maintain_order="left"
        )
        for _, each, by in found
    ).drop("judge")
    key = ["prompt_id", *WHO, "draw", "against"]
    judgements = judgements.unique(key, keep="first", maintain_order=True)
    paths = [path for _, each, _ in found for path in each.paths]
    return Evaluation(table, responses, judgements, paths, plan.sampling("test"))


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
    known = {str(policy): policy for policy in every_policy(plan)}
    facts = manifest or {}
    samples: dict[str, str] = facts.get("samples", {})
    alike = facts.get("sampling") == plan.sampling("test").identity()
    return (
        alike
        and bool(samples)
        and all(
            policy in known and plan.sample_name(known[policy], "test", "0") == sample
            for policy, sample in samples.items()
        )
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


def _fresh(plan: Plan, store: Store, name: str) -> tuple[Evaluation, dict[str, Any]] | None:
    """An evaluation and who judged, unless damaged, another recipe's, or something changed."""
    try:
        manifest = store.manifest(name)
        if manifest is None or not is_of(plan, manifest):
            return None
        same = all(store.content(n) in (c, None) for n, c in manifest["inputs"].items())
        # An earlier version may have had other columns.
        return (_read(store, name), manifest["by"]) if same and "by" in manifest else None
    except (DataError, StoreError):
        return None


def _is_whole(ctx: Context, name: str) -> bool:
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


def _baseline(ctx: Context, name: str | None) -> Policy | str | None:
    """Whom the policies are compared with.

    Raises:
        MacpoError: there is no such policy, or it is not trained yet, or nobody to judge.
    """
    if name is None:
        return None
    if _judge_of(ctx.recipe) is None:
        raise MacpoError(
            f"--against {name} needs a judge: set eval.judge.kind (gold, llm or mixture) and its "
            "agent in the recipe"
        )
    return find_baseline(ctx, name)


def find_baseline(ctx: Context, name: str) -> Policy | str:
    """The policy that a person names, or chosen.

    Raises:
        MacpoError: there is none of that name, or the source has no human answers.
    """
    if name == CHOSEN:
        human = ctx.prompts("test")[CHOSEN]
        if missing := human.null_count():
            if missing == len(human):
                raise DataError(
                    "the test prompts have no human answers; compare with a policy, such as "
                    f"--against {ctx.recipe.students[0]}-base"
                )
            ctx.store.say(
                f"{missing} of {len(human)} test prompts have no human answer: not compared"
            )
        return CHOSEN
    policy = find_policy(ctx.plan, name)
    _warn_of_stale(ctx.plan, ctx.store, [policy])
    return policy


def _judge_of(recipe: Recipe) -> Judge | None:
    """Who compares answers: the evaluation's own judge, that of the data, or the world's."""
    gold = Judge(kind="gold") if recipe.data.source == "world" else None
    return recipe.eval.judge or recipe.judge or gold


def _judges(ctx: Context, baseline: Policy | str | None) -> dict[str, tuple[str, str]]:
    """Who judges by each measure: as people call them, and what their judgement depends on."""
    found = {"gold": ("world", digest(VERSION))} if ctx.recipe.data.source == "world" else {}
    model, compares = ctx.recipe.eval.reward, _judge_of(ctx.recipe)
    if model is not None:
        found["reward"] = (model.model, _scorer(ctx, model))
    if baseline is not None and compares is not None:
        voices = [ctx.plan.policy_fingerprint(policy) for policy in judge.policies(compares)]
        said, name = [compares.identity(), voices, str(baseline)], compares.agent
        if compares.kind == "reward" and compares.reward is not None:
            said, name = [*said, _scorer(ctx, compares.reward)], compares.reward.model
        who = f"{compares.kind} judge" + (f" {name}" if name else "")
        found["win"] = found["win_lc"] = (who, digest(said))
    return found


def _scorer(ctx: Context, model: RewardModel) -> str:
    """What the scores of a reward model depend on; of one trained here, also its content."""
    scorer, made_from = reward.find_scorer(ctx.plan, ctx.store, ctx.lock, model)
    return "-".join([scorer.fingerprint, *made_from.values()])


def _judge(
    ctx: Context, responses: pl.DataFrame, baseline: Policy | str
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Every answer (a) against the baseline's to the same prompt (b), and what the judge is like.

    Raises:
        ModelError: the judge goes by position, or says nothing.
    """
    compares = _judge_of(ctx.recipe)
    assert compares is not None
    rows = beside(ctx, responses, baseline)
    verdicts = judge.compare(ctx, compares, rows)
    habits = judge.report(verdicts)
    if compares.kind != "gold":
        judge.check(habits, compares)
    rows = rows.with_columns(verdicts["first", "second", "win"])
    return check(rows, JUDGEMENTS, "judgements"), habits


def beside(ctx: Context, responses: pl.DataFrame, baseline: Policy | str) -> pl.DataFrame:
    """Answers (a) beside the baseline's to the same prompt (b), draw by draw, its own left out.

    Adds prompt, against, b_finish_reason, and longer, the characters by which a is the longer one.
    Prompts without a human answer are left out where that is the baseline.
    """
    prompts = ctx.prompts("test").select("prompt_id", "prompt", b=CHOSEN)
    if isinstance(baseline, Policy):
        key = ["prompt_id", "draw"]
        theirs = answers_of(ctx, [baseline], responses["draw"].n_unique())
        theirs = theirs.select(*key, b="response", b_finish_reason="finish_reason")
        prompts = prompts.drop("b").join(theirs, on="prompt_id", how="left")
        responses = responses.filter(~_is(baseline))
    else:
        key = ["prompt_id"]
        prompts = prompts.drop_nulls("b").with_columns(b_finish_reason=pl.lit("stop"))
    rows = responses.rename({"response": "a", "finish_reason": "a_finish_reason"})
    rows = rows.join(prompts, on=key, maintain_order="left")
    a, b = (pl.col(side).fill_null("").str.len_chars().cast(pl.Int64) for side in ("a", "b"))
    return rows.with_columns(against=pl.lit(str(baseline)), longer=a - b)


def _is(policy: Policy) -> pl.Expr:
    """Whether a row is of a policy."""
    round_ = pl.lit(policy.round, pl.Int64)
    named = (pl.col("agent") == policy.agent) & (pl.col("behavior") == policy.behavior)
    return named & pl.col("round").eq_missing(round_)


def answers_of(ctx: Context, policies: Sequence[Policy], n: int | None = None) -> pl.DataFrame:
    """What the policies wrote to the test prompts, as RESPONSES without scores.

    `n` answers to each prompt; None for as many as the recipe's evaluation takes.
    """
    samples = ctx.generate(policies, "test", n or ctx.plan.sampling("test").n)
    spoken = pl.DataFrame(
        [(p.agent, ctx.plan.policy_fingerprint(p), p.behavior, p.round) for p in policies],
        schema=["agent", "policy", "behavior", "round"],
        orient="row",
        schema_overrides={"round": pl.Int64},
    )
    rows = samples.join(spoken, on=["agent", "policy"], maintain_order="left")
    nothing = pl.lit(None, pl.Float64)
    return check(rows.with_columns(gold=nothing, reward=nothing), RESPONSES, "answers")


def _scored(ctx: Context, rows: pl.DataFrame) -> pl.DataFrame:
    """Answers with what is said of each by itself."""
    prompts = ctx.prompts("test").select("prompt_id", "prompt")
    asked = rows.join(prompts, on="prompt_id", how="left", maintain_order="left")
    if ctx.recipe.data.source == "world":
        pairs = asked.select("prompt", "response").iter_rows()
        # What was not written has no score, here as by a reward model.
        scores = [None if text is None else gold(turns, text).score for turns, text in pairs]
        rows = rows.with_columns(gold=pl.Series(scores, dtype=pl.Float64))
    if ctx.recipe.eval.reward is not None:
        rows = rows.with_columns(reward=ctx.rewards(asked, ctx.recipe.eval.reward))
    return rows


def _table(responses: pl.DataFrame, judgements: pl.DataFrame, by: dict[str, str]) -> pl.DataFrame:
    """One row per policy and measure."""
    from macpo_data import stats

    rows: list[dict[str, Any]] = []
    for (agent, behavior, round_), own in responses.group_by(WHO, maintain_order=True):
        policy = Policy(str(agent), behavior, round_)
        facts = {
            "agent": agent,
            "behavior": behavior,
            "round": round_,
            "chars": own["response"].fill_null("").str.len_chars().mean(),
            "truncated": (own["finish_reason"] == "length").mean(),
        }
        scored = draws.by_prompt(own, "gold", "reward")
        for measure in ("gold", "reward"):
            values = scored[measure].drop_nulls().to_numpy()
            if len(values):
                rows.append(facts | _measured(measure, by, stats.mean(values), len(values)))
        compared = judgements.drop_nulls("win").filter(_is(policy))
        compared = draws.by_prompt(compared, "win", "longer")
        if len(compared):
            wins = compared["win"].to_numpy()
            longer = compared["longer"].to_numpy()
            against = compared["against"][0]
            for measure, found in (
                ("win", stats.mean(wins)),
                ("win_lc", stats.length_controlled(wins, longer)),
            ):
                rows.append(facts | _measured(measure, by, found, len(wins), against))
    return pl.DataFrame(rows, schema=EVALUATION)


def _measured(
    measure: str, by: dict[str, str], found: Estimate, count: int, against: str | None = None
) -> dict[str, Any]:
    said = {"measure": measure, "by": by[measure], "against": against, "prompts": count}
    values = {k: None if math.isnan(v) else v for k, v in found._asdict().items()}
    return {**said, **values}
