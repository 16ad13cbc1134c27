"""MACPO: weak teachers and a strong student teach each other (Lyu et al., ICLR 2025).

Each learns from unfamiliar positives, written by the other side, against familiar negatives,
written by its own negative twin.
"""

from __future__ import annotations

import polars as pl

from macpo_data import judge as judges
from macpo_data import mixture as mixtures
from macpo_data import ranking, select
from macpo_data.context import Context, RoundData
from macpo_data.cost import Ask, Sizes, judging, mixing, scoring, writing
from macpo_data.plan import Policy, Step
from macpo_data.recipe import Recipe

SFT_READS = ("seed", "lora", "train")
DPO_READS = (*SFT_READS, "dpo")
SAMPLING_READS = tuple(
    f"sampling.{key}" for key in ("temperature", "top_p", "top_k", "max_new_tokens")
)
FILTER_READS = (
    "select.on_filter",
    *(f"select.{key}" for key in ("min_chars", "max_chars", "max_repetition", "truncated")),
    "select.same_as_rejected",
)
WRITING_READS = ("seed", "engine", *SAMPLING_READS, *FILTER_READS)
CHOOSING_READS = ("sampling.n", "select.keep", "select.max_perplexity")


def plan(recipe: Recipe) -> list[Step]:
    """Round 0: teachers, then the student. Round t: the student, then the teachers."""
    (student,) = recipe.students
    teachers = recipe.teachers
    steps = []
    for teacher in teachers:
        steps += _initialise(recipe, teacher, turn=0, writers=())
    labeller = recipe.labeller or teachers[0]
    writers = (Policy(labeller, "positive", 0), Policy(labeller, "negative", 0))
    steps += _initialise(recipe, student, turn=1, writers=writers)

    for t in range(1, recipe.rounds + 1):
        steps += _contrast(
            recipe, student, t, 0, tuple(Policy(k, "positive", t - 1) for k in teachers)
        )
        alternating = recipe.schedule == "alternating"
        seen = Policy(student, "positive", t if alternating else t - 1)
        for teacher in teachers:
            steps += _contrast(recipe, teacher, t, 1 if alternating else 0, (seen,))
    return steps


def _initialise(recipe: Recipe, agent: str, turn: int, writers: tuple[Policy, ...]) -> list[Step]:
    """SFT on chosen makes the positive policy; SFT on rejected goes on from it to the negative."""
    positive = Policy(agent, "positive", 0)
    reads = (*SFT_READS, f"agents.{agent}.lr_scale")
    human_reads = ("seed", "data.noise", *(("select",) if recipe.select.excludes else ()))
    data_reads = WRITING_READS if writers else human_reads
    return [
        Step("gen", 0, turn, agent, policies=writers, reads=data_reads),
        Step("train", 0, turn, agent, "positive", "sft_chosen", (Policy(agent),), (*reads, "sft")),
        Step(
            "train", 0, turn, agent, "negative", "sft_rejected", (positive,), (*reads, "negative")
        ),
    ]


def _contrast(
    recipe: Recipe, agent: str, t: int, turn: int, positives: tuple[Policy, ...]
) -> list[Step]:
    """DPO + gamma * SFT on others' positives against the agent's own negatives."""
    before = Policy(agent, "positive", t - 1)
    policies = (*positives, Policy(agent, "negative", 0), before)
    choosing = (
        (*CHOOSING_READS, *_by_reads(recipe), *_mixture_reads(recipe))
        if agent in recipe.students
        else ()
    )
    dpo_reads: tuple[str, ...] = (*DPO_READS, f"agents.{agent}.lr_scale")
    data_reads = (*WRITING_READS, "negatives", *choosing)
    return [
        Step("gen", t, turn, agent, policies=policies, reads=data_reads),
        Step("train", t, turn, agent, "positive", "dpo", (before,), dpo_reads),
    ]


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
        return _labels(step, ctx)
    *positives, negative, learner = step.policies
    is_student = step.learner in ctx.recipe.students
    fresh = f"r{step.round}-" if ctx.recipe.negatives == "every_round" else ""

    # The student hears n answers of every teacher; a teacher hears the student's one answer, the
    # same text for all teachers.
    candidates = ctx.generate(positives, "d2", n=ctx.recipe.sampling.n if is_student else 1)
    if is_student and ctx.recipe.mixture:
        taught = mixtures.teach(ctx, ctx.recipe.mixture, ctx.prompts("d2"))
        candidates = pl.concat([candidates, taught])
    rejected = ctx.generate([negative], "d2", draw=fresh)
    candidates, rejected = ctx.score_together([candidates, rejected], under=learner)

    by = ctx.recipe.select.by
    if is_student and by != "perplexity":
        competing = select.competing(candidates, ctx.recipe.select, rejected)
        competing = select.exclude(competing, ctx.barred("d2"))
        order: ranking.Order = "random" if by == "random" else "judge"
        ranked, judged = judges.rank(ctx, order, ctx.prompts("d2"), competing)
        chosen = select.top(ranked, ctx.recipe.select.keep).drop("score")
        return ctx.pair(chosen, rejected, judged)
    choose = select.lowest_perplexity if is_student else select.first
    return ctx.pair(choose(candidates, rejected, ctx.recipe.select), rejected)


def asks(step: Step, recipe: Recipe, sizes: Sizes) -> list[Ask]:
    """Everybody who writes writes to D2; from round 1 on, the learner reads all of it."""
    *writers, learner = step.policies if step.round else (*step.policies, None)
    n = recipe.sampling.n if step.round and step.learner in recipe.students else 1
    d2, found = sizes.prompts["d2"], []
    for policy in filter(None, writers):
        calls = n if policy.behavior == "positive" else 1
        found += writing(
            f"write d2, {policy.behavior}", [policy.agent], d2, calls, sizes.prompt,
            recipe.sampling, sizes,
        )  # fmt: skip
    is_student = bool(step.round) and step.learner in recipe.students
    answers, more = sum(ask.calls for ask in found), 0
    if is_student and recipe.mixture:
        found += mixing(recipe.mixture, d2, 1, sizes)
        more = len(recipe.mixture.layers[mixtures.taken(recipe.mixture)])
    if is_student and recipe.select.by in ("judge", "reward"):
        found += judging(recipe, sizes, "d2", n * len(recipe.teachers) + more)
    return [*found, scoring(learner.agent, d2, answers + more, recipe, sizes)] if learner else found


def _labels(step: Step, ctx: Context) -> RoundData:
    """Round 0: a teacher learns from the human's answers, the student from the labeller's."""
    if not step.policies:
        return ctx.human_pairs("d1", noise_for=step.learner)
    positive, negative = step.policies
    rejected = ctx.generate([negative], "d2")
    candidates = select.first(ctx.generate([positive], "d2"), rejected, ctx.recipe.select)
    return ctx.pair(candidates, rejected)
