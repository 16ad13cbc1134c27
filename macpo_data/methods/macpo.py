"""MACPO: weak teachers and a strong student teach each other (Lyu et al., ICLR 2025).

Each learns from unfamiliar positives, written by the other side, against familiar negatives,
written by its own negative twin. In the paper the student learns those that it finds least
perplexing; those that other teachers find so (`select.under: peers`) are an idea of ours.
"""

from __future__ import annotations

import polars as pl

from macpo_data.generation import framing, ranking, select
from macpo_data.generation import judge as judges
from macpo_data.generation import mixture as mixtures
from macpo_data.generation.context import Context, Judged, RoundData
from macpo_data.methods.method import Method
from macpo_data.methods.steps import (
    WRITING_READS,
    initialise,
    labels,
    prefer,
    retrain,
    switched_on,
)
from macpo_data.plan import Policy, Step
from macpo_data.recipe import Recipe
from macpo_data.schema import SAMPLES

CHOOSING_READS = ("sampling.n", "select.keep", "select.max_perplexity")


def plan(recipe: Recipe) -> list[Step]:
    """Round 0: teachers, then the student. Round t: the student, then the teachers."""
    (student,) = recipe.students
    teachers, writers = recipe.teachers, labels(recipe)
    steps = []
    for teacher in teachers:
        steps += initialise(recipe, teacher, turn=0, writers=())
    steps += initialise(recipe, student, turn=1, writers=writers)

    own = recipe.positives == "own"
    for t in range(1, recipe.rounds + 1):
        taught = 0 if recipe.frozen_teachers else t - 1
        heard = [Policy(student, "positive", t - 1)] if own else []
        heard = heard or [Policy(k, "positive", taught) for k in teachers]
        steps += _contrast(recipe, student, t, 0, tuple(heard))
        alternating = recipe.schedule == "alternating"
        for teacher in () if recipe.frozen_teachers else teachers:
            seen = Policy(student, "positive", t if alternating else t - 1)
            seen = Policy(teacher, "positive", t - 1) if own else seen
            steps += _contrast(recipe, teacher, t, 1 if alternating else 0, (seen,))
    return steps


def _contrast(
    recipe: Recipe, agent: str, t: int, turn: int, positives: tuple[Policy, ...]
) -> list[Step]:
    """DPO + gamma * SFT on others' positives against the agent's own negatives."""
    before = Policy(agent, "positive", t - 1)
    policies = (*positives, *_negative_writer(recipe, agent, t), before)
    reads = (*WRITING_READS, "negatives", *switched_on(recipe, "negatives_by"))
    if recipe.negatives_by == "framing":
        reads = (*reads, "framing")
    if agent in recipe.students:
        choosing = switched_on(recipe, "select.under", "select.order", "select.pool")
        choosing = (*CHOOSING_READS, *_by_reads(recipe), *_mixture_reads(recipe), *choosing)
        reads = (*reads, *choosing)
    # The twin of round 0 is that of the policy which round 1 begins with.
    twin = [retrain(agent, t, turn)] if recipe.negatives == "retrained" and t > 1 else []
    return [*twin, *prefer(recipe, agent, t, turn, policies, reads)]


def _negative_writer(recipe: Recipe, agent: str, t: int) -> tuple[Policy, ...]:
    """Who writes an agent's rejected answers; nobody where the chosen ones are spoilt."""
    newest = t if recipe.negatives == "retrained" and t > 1 else 0
    by = {
        "fine_tuning": (Policy(agent, "negative", newest),),
        "base": (Policy(agent),),
        "framing": (Policy(agent, "positive", 0),),
    }
    return by.get(recipe.negatives_by, ())


def _by_reads(recipe: Recipe) -> tuple[str, ...]:
    """What decides besides, where it is not the perplexity that chooses."""
    if recipe.select.by == "perplexity":
        return ()
    if recipe.select.by == "random":
        return ("select.by",)
    asked = (f"agents.{policy.agent}" for policy in judges.policies(recipe.judge))
    return ("select.by", "judge", *asked)


def _mixture_reads(recipe: Recipe) -> tuple[str, ...]:
    """A mixture is one more teacher, who never learns."""
    members = (f"agents.{policy.agent}" for policy in mixtures.policies(recipe.mixture))
    return ("mixture", *members) if recipe.mixture else ()


def build(step: Step, ctx: Context) -> RoundData:
    """Write the pairs of one learner in one round."""
    if step.round == 0:
        return weak_labels(step, ctx) if step.policies else ctx.human_pairs("d1", step.learner)
    *written, learner = step.policies
    twin = _negative_writer(ctx.recipe, step.learner, step.round)
    candidates = _positives(step, ctx, written[: len(written) - len(twin)])
    if twin:
        rejected = _negatives(step, ctx, twin[0])
        candidates, rejected = ctx.score_together([candidates, rejected], under=learner)
        candidates, judged = _choose(step, ctx, candidates, rejected)
        return ctx.pair(candidates, rejected, judged)

    # What is made of the chosen answer can only be made when that is chosen.
    scored = ctx.score(candidates, under=learner)
    candidates, judged = _choose(step, ctx, scored, scored.clear())
    spoil = {"corruption": select.corrupted, "mismatch": select.mismatched}
    candidates = select.exclude(candidates, ctx.barred("d2"))
    rejected = spoil[ctx.recipe.negatives_by](candidates, ctx.recipe.seed)
    return ctx.pair(candidates, ctx.score(rejected, under=learner), judged)


def _positives(step: Step, ctx: Context, others: list[Policy]) -> pl.DataFrame:
    """The student hears n answers of every teacher; a teacher the student's one, as all do."""
    is_student = step.learner in ctx.recipe.students
    candidates = ctx.generate(others, "d2", n=ctx.recipe.sampling.n if is_student else 1)
    if is_student and ctx.recipe.mixture:
        taught = mixtures.teach(ctx, ctx.recipe.mixture, ctx.prompts("d2"))
        candidates = pl.concat([candidates, taught])
    return candidates


def _negatives(step: Step, ctx: Context, writer: Policy) -> pl.DataFrame:
    """What the negative twin writes, or its stand-in."""
    anew = ctx.recipe.negatives == "every_round"
    if ctx.recipe.negatives_by == "framing":
        return framing.write(ctx, writer, "negative", draw=step.round if anew else 0)
    return ctx.generate([writer], "d2", draw=f"r{step.round}-" if anew else "")


def _choose(
    step: Step, ctx: Context, candidates: pl.DataFrame, rejected: pl.DataFrame
) -> tuple[pl.DataFrame, Judged | None]:
    """The student takes what is least perplexing: to itself, or to the writer's peers.

    A teacher takes the student's answer. That is one writer's one answer, so that there is nothing
    for peers to rank.
    """
    settings = ctx.recipe.select
    if step.learner not in ctx.recipe.students:
        return select.first(candidates, rejected, settings), None
    by = "random" if settings.order == "random" else settings.by
    if by == "perplexity" and settings.under == "peers":
        teachers = [policy for policy in step.policies if policy.agent in ctx.recipe.teachers]
        candidates = candidates.with_columns(peers=_under_peers(ctx, candidates, teachers))
        return select.by_perplexity(candidates, rejected, settings, ranks="peers"), None
    if by == "perplexity":
        return select.by_perplexity(candidates, rejected, settings), None
    competing = select.competing(candidates, settings, rejected)
    competing = select.exclude(competing, ctx.barred("d2"))
    order: ranking.Order = "random" if by == "random" else "judge"
    ranked, judged = judges.rank(ctx, order, ctx.prompts("d2"), competing)
    return select.top(ranked, settings.keep).drop("score"), judged


def _under_peers(ctx: Context, candidates: pl.DataFrame, teachers: list[Policy]) -> pl.Series:
    """Each candidate's perplexity under the teachers who did not write it: their geometric mean.

    The student finds perplexing what it does not know, but some other teacher may know it. The
    writer is left out, for it finds its own errors likely. So each writer is ranked by others than
    the next one is: with unlike tokenizers their perplexities are of unlike scale.
    """
    rows = candidates.select(SAMPLES.keys()).with_row_index("at")
    scored = [
        ctx.score(rows.filter(pl.col("agent") != teacher.agent), under=teacher)
        for teacher in teachers
    ]
    means = select.geometric_means(pl.concat(scored))
    return rows.join(means, on="at", how="left", maintain_order="left")["mean"]


def weak_labels(step: Step, ctx: Context) -> RoundData:
    """The student learns from what the labelling teacher wrote, good and bad."""
    both = ctx.generate(step.policies, "d2")  # the good one's answer, then the bad one's
    rejected = both.gather_every(2, offset=1)
    candidates = select.first(both.gather_every(2), rejected, ctx.recipe.select)
    return ctx.weak_labels(ctx.pair(candidates, rejected))


METHOD = Method(
    "macpo",
    "by weak teachers and a strong student that teach each other (MACPO)",
    plan,
    build,
)
