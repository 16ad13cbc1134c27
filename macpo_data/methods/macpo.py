"""MACPO: weak teachers and a strong student teach each other (Lyu et al., ICLR 2025).

Each learns from unfamiliar positives, written by the other side, against familiar negatives,
written by its own negative twin. In the paper the student learns those that it finds least
perplexing; those that other teachers find so (`select.under: peers`) are an idea of ours.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from macpo_data.generation import framing, ranking, select
from macpo_data.generation import judge as judges
from macpo_data.generation import mixture as mixtures
from macpo_data.generation.context import Context, Judged, RoundData
from macpo_data.methods.method import Method
from macpo_data.methods.steps import (
    RANKING,
    WRITING_READS,
    initialise,
    labels,
    prefer,
    retrain,
    switched_on,
)
from macpo_data.plan import Policy, Step
from macpo_data.recipe.draft import Draft
from macpo_data.recipe.recipe import Recipe
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
        authors = [Policy(student, "positive", t - 1)] if own else []
        authors = authors or [Policy(k, "positive", taught) for k in teachers]
        steps += _contrast(recipe, student, t, 0, tuple(authors))
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
    by = {"framing": ("framing",), "temperature": ("negatives_temperature",)}
    reads = (*reads, *by.get(recipe.negatives_by, ()))
    if agent in recipe.students:
        choosing = switched_on(recipe, "select.under", "select.order", "select.pool")
        choosing = (*CHOOSING_READS, *_by_reads(recipe), *_mixture_reads(recipe), *choosing)
        reads = (*reads, *choosing)
    # The twin of round 0 is that of the policy which round 1 begins with.
    twin = [retrain(recipe, agent, t, turn)] if recipe.negatives == "retrained" and t > 1 else []
    return [*twin, *prefer(recipe, agent, t, turn, policies, reads)]


def _negative_writer(recipe: Recipe, agent: str, t: int) -> tuple[Policy, ...]:
    """Who writes an agent's rejected answers; nobody where the chosen ones are spoilt."""
    newest = t if recipe.negatives == "retrained" and t > 1 else 0
    by = {
        "fine_tuning": (Policy(agent, "negative", newest),),
        "base": (Policy(agent),),
        "framing": (Policy(agent, "positive", 0),),
        "temperature": (Policy(agent, "positive", 0),),
    }
    return by.get(recipe.negatives_by, ())


def _by_reads(recipe: Recipe) -> tuple[str, ...]:
    """What decides besides, where it is not the perplexity that chooses."""
    if recipe.select.by == "perplexity":
        return ()
    if recipe.select.by == "random":
        return ("select.by",)
    agents = (f"agents.{policy.agent}" for policy in judges.policies(recipe.judge))
    return ("select.by", "judge", *agents)


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
    recipe = ctx.recipe
    draw = step.round if recipe.negatives == "every_round" else 0
    if recipe.negatives_by == "framing":
        return framing.write(ctx, writer, "negative", draw)
    if recipe.negatives_by == "temperature":
        whole = {"temperature": recipe.negatives_temperature, "top_p": 1.0, "top_k": 0}
        sampling = recipe.sampling.model_copy(update=whole)
        (answers,) = ctx.ask([(writer, ctx.prompts("d2"))], sampling, "hot", draw)
        return answers
    return ctx.generate([writer], "d2", draw=f"r{draw}-" if draw else "")


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


def rules(draft: Draft) -> Iterator[str]:
    """Settings that fit each other nowhere, or that nothing reads."""
    yield from _who_teaches(draft)
    yield from _what_ranks(draft)
    yield from _who_writes_negatives(draft)


def _who_teaches(draft: Draft) -> Iterator[str]:
    for name in draft.in_mixture:
        if name in (*draft.teachers, *draft.students):
            yield (
                f"mixture.layers: {name} is trained in method macpo; name an agent of another role"
            )
    keep, n = draft.read("select", "keep", 1), draft.read("sampling", "n", 1)
    writers = 1 if draft.values.get("positives") == "own" else len(draft.teachers)
    are_counts = isinstance(keep, int) and isinstance(n, int)
    if are_counts and draft.teachers and not draft.in_mixture and keep > n * writers:
        yield f"select.keep: {keep} of only {n * writers} candidates per prompt"


def _what_ranks(draft: Draft) -> Iterator[str]:
    if draft.read("select", "under") == "peers":
        why = ""
        if draft.values.get("positives") == "own":
            why = "peers rank what teachers write, and with positives=own the student learns none"
        elif len(draft.teachers) == 1:
            why = f"peers are other teachers, and {draft.teachers[0]} has none"
        if why:
            yield f"select.under: {why}; set select.under=learner"
    by_other = draft.read("select", "by", "perplexity") != "perplexity"
    if by_other or draft.read("select", "order", "lowest") == "random":
        for path in RANKING:
            if (by_other or path != "select.order") and draft.changed(path):
                yield f"{path}: only read where perplexity ranks"


def _who_writes_negatives(draft: Draft) -> Iterator[str]:
    writers = draft.values.get("negatives_by")
    if writers != "temperature" and draft.changed("negatives_temperature"):
        yield "negatives_temperature: only read where negatives_by is temperature"
    if draft.values.get("negatives") == "retrained" and draft.changed("negatives_by"):
        yield (
            f"negatives: retrained trains the negative twin anew, and negatives_by {writers} "
            "has none; set negatives_by=fine_tuning"
        )
    if writers in ("corruption", "mismatch"):
        for path in filter(draft.changed, ("negatives", "select.keep")):
            yield f"{path}: negatives_by {writers} makes one of each chosen answer"


METHOD = Method(
    "macpo",
    "by weak teachers and a strong student that teach each other (MACPO)",
    plan,
    build,
    paper={"select.under": "learner"},
    rules=rules,
)
