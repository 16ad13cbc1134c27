"""Evaluation of policies: generates answers to held-out prompts, scores and summarises them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from macpo_data.errors import DataError, MacpoError, of_run
from macpo_data.evaluation.policies import CHOSEN, find_policy, is_of_policy, warn_of_stale
from macpo_data.evaluation.results import Evaluation, Judges, write
from macpo_data.generation import answers, gold, judge
from macpo_data.generation import reward_model as reward
from macpo_data.generation.run_context import RunContext
from macpo_data.plan import Policy
from macpo_data.recipe.evaluation import Judge, RewardModel
from macpo_data.recipe.recipe import Recipe
from macpo_data.recipe.section import digest
from macpo_data.schema import JUDGEMENTS, RESPONSES, check, empty


def evaluate(ctx: RunContext, policies: Sequence[Policy], against: str | None = None) -> Evaluation:
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
        raise MacpoError(
            f"nothing to evaluate: no policy is trained yet; run `{of_run('run --round 0')}`"
        )
    if ctx.recipe.eval.by == "answer":
        answers.check(ctx.prompts("test")["right"])
    baseline = _baseline(ctx, against or ctx.recipe.eval.against)
    wanted = list(dict.fromkeys([*policies, *([baseline] if isinstance(baseline, Policy) else [])]))
    by = _judges(ctx, baseline)
    responses = _scored(ctx, answers_of(ctx, wanted))
    judgements, habits = empty(JUDGEMENTS), None
    if baseline is not None:
        judgements, habits = _judge(ctx, responses, baseline)
    return write(ctx, wanted, by, responses, judgements, habits)


def _baseline(ctx: RunContext, name: str | None) -> Policy | str | None:
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


def find_baseline(ctx: RunContext, name: str) -> Policy | str:
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
    warn_of_stale(ctx.plan, ctx.store, [policy])
    return policy


def _judge_of(recipe: Recipe) -> Judge | None:
    """Who compares answers: the evaluation's own judge, that of the data, or the world's."""
    of_world = Judge(kind="gold") if recipe.data.source == "world" else None
    return recipe.eval.judge or recipe.judge or of_world


def _judges(ctx: RunContext, baseline: Policy | str | None) -> Judges:
    """Who judges by each measure: as people call them, and what their judgement depends on."""
    judges: dict[str, tuple[str, str]] = {}
    if tells := gold.judge_of(ctx.recipe):
        judges["gold"] = tells
    model, compares = ctx.recipe.eval.reward, _judge_of(ctx.recipe)
    if model is not None:
        judges["reward"] = (model.model, _scorer(ctx, model))
    if baseline is not None and compares is not None:
        voices = [ctx.plan.policy_fingerprint(policy) for policy in judge.policies(compares)]
        facts, name = [compares.identity(), voices, str(baseline)], compares.agent
        if compares.kind == "reward" and compares.reward is not None:
            facts, name = [*facts, _scorer(ctx, compares.reward)], compares.reward.model
        who = f"{compares.kind} judge" + (f" {name}" if name else "")
        judges["win"] = judges["win_lc"] = (who, digest(facts))
    return judges


def _scorer(ctx: RunContext, model: RewardModel) -> str:
    """What the scores of a reward model depend on; of one trained here, also its content."""
    scorer, made_from = reward.find_scorer(ctx.plan, ctx.store, ctx.lock, model)
    return "-".join([scorer.fingerprint, *made_from.values()])


def _judge(
    ctx: RunContext, responses: pl.DataFrame, baseline: Policy | str
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


def beside(ctx: RunContext, responses: pl.DataFrame, baseline: Policy | str) -> pl.DataFrame:
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
        responses = responses.filter(~is_of_policy(baseline))
    else:
        key = ["prompt_id"]
        prompts = prompts.drop_nulls("b").with_columns(b_finish_reason=pl.lit("stop"))
    rows = responses.rename({"response": "a", "finish_reason": "a_finish_reason"})
    rows = rows.join(prompts, on=key, maintain_order="left")
    a, b = (pl.col(side).fill_null("").str.len_chars().cast(pl.Int64) for side in ("a", "b"))
    return rows.with_columns(against=pl.lit(str(baseline)), longer=a - b)


def answers_of(ctx: RunContext, policies: Sequence[Policy], n: int | None = None) -> pl.DataFrame:
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


def _scored(ctx: RunContext, rows: pl.DataFrame) -> pl.DataFrame:
    """Answers with what is said of each by itself."""
    prompts = ctx.prompts("test").select("prompt_id", "prompt", "right")
    with_prompts = rows.join(prompts, on="prompt_id", how="left", maintain_order="left")
    if ctx.recipe.has_gold:
        by_answer = pl.col("right") if ctx.recipe.eval.by == "answer" else pl.lit(None, pl.String)
        each = with_prompts.select("prompt", by_answer.alias("right"), "response").iter_rows()
        # What was not written has no score, here as by a reward model.
        rows = rows.with_columns(gold=pl.Series(gold.worths(each), dtype=pl.Float64))
    if ctx.recipe.eval.reward is not None:
        rows = rows.with_columns(reward=ctx.rewards(with_prompts, ctx.recipe.eval.reward))
    return rows
