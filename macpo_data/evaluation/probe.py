"""The probe: human preference pairs held out from training and test, and metrics on them.

They are D1's, with the recipe's noise like any others, so that they cost no label that a run does
not have anyway. What stops a run, names its best round or advises comes from here alone: no gold
score, no test prompt and no human answer of D2.

A policy ranks a pair by the log-likelihood per token that it adds to its negative twin's: right
where it adds more to the chosen answer. What both find probable, such as short answers, cancels
out, as in DPO's implicit reward. By perplexity alone the embedded world's policies rank little
better than chance, whatever they know. Only where there is no twin, perplexity decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import fmean, median

import polars as pl

from macpo_data.errors import DataError, StoreError
from macpo_data.generation import judge
from macpo_data.generation.run_context import RunContext
from macpo_data.plan import FORMAT, Plan, Policy
from macpo_data.recipe.evaluation import TRAINED, Judge, RewardModel
from macpo_data.recipe.recipe import Recipe
from macpo_data.recipe.section import digest
from macpo_data.schema import PROBE_SCORES, PROBED, Table, check
from macpo_data.store.store import Store, write_parquet

FILE = "probed.parquet"
# These read no text: the one is the world's gold, the other the policy's own opinion of itself.
BLIND = ("gold", "likelihood")


@dataclass(frozen=True)
class Reading:
    """What the probe says of one policy."""

    policy: Policy
    perplexity: float  # median over the chosen answers
    accuracy: float  # share of the pairs that it ranks right
    score: float | None  # mean, of the policy's own answers; None where nobody judges
    ranked: dict[str, bool]  # by prompt_id: whether the policy ranks the pair right


@dataclass(frozen=True)
class Best:
    """The round to keep."""

    round: int
    by: str  # why: in words
    crossed: int | None  # the first round whose perplexity passed the line


def measure(ctx: RunContext, policies: Sequence[Policy]) -> None:
    """Let policies read the probe, each once; the student's also answer it, if one can judge.

    What is damaged, or of an adapter that was made anew, is moved aside and made again.

    Args:
        ctx: of the run.
        policies: trained ones.
    """
    pairs: pl.DataFrame | None = None
    for policy in policies:
        for name, make in _wanted(ctx.plan, ctx.store, policy):
            if _table(ctx.plan, ctx.store, policy, name) is not None:
                continue
            pairs = ctx.human_pairs("probe", "probe").pairs if pairs is None else pairs
            if pairs.is_empty():
                return
            ctx.used.clear()  # what this table alone is made from
            table = make(ctx, policy, pairs)
            with ctx.store.lock(name):
                if _table(ctx.plan, ctx.store, policy, name) is not None:
                    continue  # another process made it in the meantime
                write_parquet(ctx.store.begin(name) / FILE, table)
                facts = {"kind": "probe", "format": FORMAT, "policy": str(policy)}
                facts["adapter"] = _adapter(ctx.plan, ctx.store, policy)
                ctx.store.finish(name, facts | {"inputs": ctx.used})


def _wanted(
    plan: Plan, store: Store, policy: Policy
) -> list[tuple[str, Callable[[RunContext, Policy, pl.DataFrame], pl.DataFrame]]]:
    """The results that a policy should have, and what makes each."""
    scores = score_name(plan, store, policy)
    return [(result_name(plan, policy), _read), *([(scores, _score)] if scores else [])]


def names(plan: Plan, store: Store, policy: Policy) -> list[str]:
    """The folders of all that the probe says of a policy."""
    return [name for name, _ in _wanted(plan, store, policy)]


def _adapter(plan: Plan, store: Store, policy: Policy) -> str | None:
    """The hash of a policy's adapter as it is on disk now."""
    maker = plan.maker(policy)
    return store.content(plan.name(maker)) if maker else None


def _table(plan: Plan, store: Store, policy: Policy, name: str) -> pl.DataFrame | None:
    """A finished table; None where it is not there, damaged, or of another adapter."""
    form: Table = PROBED if name == result_name(plan, policy) else PROBE_SCORES
    try:
        manifest = store.manifest(name)
        if manifest is None or manifest.get("adapter") != _adapter(plan, store, policy):
            return None
        return check(store.read(name, FILE), form, name)
    except (StoreError, DataError):
        return None


def readings(plan: Plan, store: Store) -> list[Reading]:
    """What is known of the positive policies, in the order in which they are trained."""
    trained = [policy for step in plan.steps if (policy := step.makes)]
    readings = []
    for policy in (p for p in trained if p.behavior == "positive"):
        probed = _table(plan, store, policy, result_name(plan, policy))
        if probed is None:
            continue
        twin = Policy(policy.agent, "negative", 0)
        beside = _table(plan, store, twin, result_name(plan, twin)) if twin in trained else None
        name = score_name(plan, store, policy)
        scores = _table(plan, store, policy, name) if name else None
        reading = _reading(policy, probed, beside, scores)
        readings += [reading] if reading else []
    return readings


def _reading(
    policy: Policy,
    probed: pl.DataFrame,
    twin: pl.DataFrame | None = None,
    scores: pl.DataFrame | None = None,
) -> Reading | None:
    """What a policy's tables say; None where nothing of the probe fits it."""
    sides = ["chosen_perplexity", "rejected_perplexity"]
    added = {side: -pl.col(side).log() for side in sides}
    if twin is not None:
        probed = probed.join(twin, on="prompt_id", suffix="_twin", maintain_order="left")
        added = {side: value + pl.col(f"{side}_twin").log() for side, value in added.items()}
    chosen, rejected = (added[side] for side in sides)
    both = probed.select("prompt_id", *sides, right=chosen > rejected).drop_nulls()
    if both.is_empty():
        return None
    score = [] if scores is None else scores["score"].drop_nulls().to_list()
    return Reading(
        policy,
        median(both["chosen_perplexity"]),
        fmean(both["right"]),
        fmean(score) if score else None,
        dict(zip(both["prompt_id"], both["right"], strict=True)),
    )


def line(recipe: Recipe, readings: Sequence[Reading]) -> float | None:
    """The perplexity above which the student's rounds count as spoilt; None without round 0."""
    first = [r for r in of_agent(readings, recipe.students[0]) if r.policy.round == 0]
    return first[0].perplexity * recipe.stop_above if first else None


def of_agent(readings: Sequence[Reading], agent: str) -> list[Reading]:
    """Those of an agent, by round."""
    own = (r for r in readings if r.policy.agent == agent)
    return sorted(own, key=lambda r: r.policy.round or 0)


def best_round(recipe: Recipe, readings: Sequence[Reading]) -> Best | None:
    """The round to keep: before the perplexity first passes its line, the one that scores best.

    Without a reward model or a judge, the last of those.
    """
    rounds, top = of_agent(readings, recipe.students[0]), line(recipe, readings)
    if top is None:
        return None
    sound = list(takewhile(lambda r: r.perplexity <= top, rounds))
    crossed = rounds[len(sound)].policy.round if len(sound) < len(rounds) else None
    scored = [(r.score, r.policy.round or 0) for r in sound if r.score is not None]
    if len(scored) == len(sound):
        # Of equal ones the earlier: less was done to it.
        score, best = max(scored, key=lambda each: (each[0], -each[1]))
        return Best(best, f"its answers to the probe score best, {score:.3f}", crossed)
    last = sound[-1].policy.round or 0
    why = "the last one" if crossed is None else f"the last one before round {crossed}"
    return Best(last, f"{why} whose probe perplexity stays below {top:.2f}", crossed)


def warning(recipe: Recipe, readings: Sequence[Reading]) -> str | None:
    """What to say once the student finds the probe too odd.

    On the embedded world's calibration seeds a run that collapsed passed the line two rounds before
    its gold score fell. Runs that hold drift past it as well, later: the round to keep costs them
    little, so it is said of both.
    """
    best, top = best_round(recipe, readings), line(recipe, readings)
    if best is None or best.crossed is None:
        return None
    bounded = recipe.dpo.loss in ("hinge", "ipo") and recipe.dpo.reference == "initial"
    mends = [] if bounded else ["dpo.loss=hinge with dpo.reference=initial"]
    return (
        f"from round {best.crossed} on the student's perplexity of the probe is above {top:.2f} "
        f"({recipe.stop_above} times round 0's): keep round {best.round}; for more rounds try "
        f"{' or '.join([*mends, 'a lower dpo.learning_rate'])}"
    )


def best_line(best: Best, options: str) -> str:
    """The round to keep, and the command that publishes it.

    Args:
        best: as the probe says.
        options: the options that name the recipe.
    """
    command = f"macpo push --round {best.round} --to DIR{options}"
    return f"best round: {best.round} ({best.by}); to publish it: {command}"


def _yardstick(plan: Plan, store: Store) -> Judge | RewardModel | None:
    """Who scores answers to the probe: the recipe's judge or reward model, if it has one to ask."""
    recipe = plan.recipe
    for candidate in (recipe.judge, recipe.eval.reward, recipe.eval.judge):
        model = candidate.reward if isinstance(candidate, Judge) else candidate
        untrained = model is not None and model.model == TRAINED
        if untrained and not store.is_done(plan.reward_name):
            continue
        if candidate is not None and not (isinstance(candidate, Judge) and candidate.kind in BLIND):
            return candidate
    return None


def result_name(plan: Plan, policy: Policy) -> str:
    """The folder of what a policy makes of the probe, inside the run."""
    reads = [plan.recipe.data.noise, plan.recipe.seed, plan.engine_identity(policy)]
    made_from = [plan.policy_fingerprint(policy), plan.prompts_fingerprint]
    return f"probe/{policy}-{digest(['probe', FORMAT, reads, made_from])}"


def score_name(plan: Plan, store: Store, policy: Policy) -> str | None:
    """The folder of the scores of its own answers to the probe; None where nothing scores them.

    The best round is one of the student's, so nobody else answers.
    """
    recipe, yardstick = plan.recipe, _yardstick(plan, store)
    is_scored = policy.agent in recipe.students and policy.behavior == "positive"
    if yardstick is None or not is_scored:
        return None
    compares = yardstick if isinstance(yardstick, Judge) else None
    model = yardstick.reward if isinstance(yardstick, Judge) else yardstick
    voices = [plan.policy_fingerprint(each) for each in judge.policies(compares)]
    own = [plan.reward_name] if model is not None and model.model == TRAINED else []
    sampling = plan.sampling("probe").model_dump(exclude={"n"})
    made_from = [result_name(plan, policy), yardstick.identity(), voices, own, sampling]
    return f"probe/{policy}-answers-{digest(['probe answers', FORMAT, made_from])}"


def _read(ctx: RunContext, policy: Policy, pairs: pl.DataFrame) -> pl.DataFrame:
    """PROBED of one policy."""
    finished = pl.lit("stop")
    sides = [
        pairs.select("prompt_id", "prompt", response=side, finish_reason=finished)
        for side in ("chosen", "rejected")
    ]
    chosen, rejected = ctx.score_together(sides, under=policy)
    columns = {"chosen_perplexity": chosen["perplexity"]}
    columns |= {"rejected_perplexity": rejected["perplexity"]}
    return check(pairs.select("prompt_id", **columns), PROBED, f"the probe under {policy}")


def _score(ctx: RunContext, policy: Policy, pairs: pl.DataFrame) -> pl.DataFrame:
    """PROBE_SCORES of one policy: rewards of its answers, or wins against its first round's."""
    yardstick = _yardstick(ctx.plan, ctx.store)
    prompts = pairs.select("prompt_id", "prompt")

    def answers(of: Policy) -> pl.DataFrame:
        written = ctx.generate([of], "probe").select("prompt_id", "response", "finish_reason")
        return prompts.join(written, on="prompt_id", how="left", maintain_order="left")

    own = answers(policy)
    if isinstance(yardstick, Judge):
        first = answers(Policy(policy.agent, "positive", 0))
        beside = own.rename({"response": "a", "finish_reason": "a_finish_reason"}).with_columns(
            b=first["response"], b_finish_reason=first["finish_reason"]
        )
        scores = judge.compare(ctx, yardstick, beside)["win"]
    else:
        assert yardstick is not None
        scores = ctx.rewards(own, yardstick)
    return check(prompts.with_columns(score=scores), PROBE_SCORES, f"answers of {policy}")
