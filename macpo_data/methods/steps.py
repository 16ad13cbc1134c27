"""The steps that methods share, and the recipe fields that decide each.

What MACPO is compared with starts where MACPO does: from a student who was fine-tuned on the
labelling teacher's answers. Those steps are MACPO's own, made once for all of them.
"""

from __future__ import annotations

from macpo_data.plan import Policy, Step
from macpo_data.recipe.recipe import Recipe

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
EXCLUDE_READS = tuple(
    f"select.{key}" for key in ("test_sets", "ngram", "ngram_share", "near_duplicates")
)
# What only a method reads whose student chooses among what several wrote.
RANKING = ("select.under", "select.order", "select.pool", "select.max_perplexity")
CHOOSING = ("select.by", *RANKING, "select.keep")
TEACHING = (
    *("positives", "negatives", "negatives_by", "negatives_temperature"),
    *("frozen_teachers", "schedule", "mixture"),
)
WRITING_READS = ("seed", "engine", *SAMPLING_READS, *FILTER_READS)


def own_training(recipe: Recipe, agent: str) -> tuple[str, ...]:
    """What an agent says itself of how it is trained, for its train steps to read."""
    own = f"agents.{agent}.finetuning"
    return f"agents.{agent}.lr_scale", *([own] if recipe.agents[agent].finetuning else [])


def initialise(recipe: Recipe, agent: str, turn: int, writers: tuple[Policy, ...]) -> list[Step]:
    """SFT on chosen makes the positive policy; SFT on rejected goes on from it to the negative.

    Without writers the answers are the human's.
    """
    positive, mine = Policy(agent, "positive", 0), own_training(recipe, agent)
    own = recipe.agents[agent].noise is not None
    noise = f"agents.{agent}.noise" if own else "data.noise"
    reads = ["seed", noise, *(EXCLUDE_READS if recipe.select.excludes else [])]
    reads = [*WRITING_READS, *switched_on(recipe, "data.label_noise")] if writers else reads
    sure = switched_on(recipe, "confidence") if writers else ()
    sft, negative = (*SFT_READS, *mine, "sft", *sure), (*SFT_READS, *mine, "negative")
    base = (Policy(agent),)
    return [
        Step("gen", 0, turn, agent, policies=writers, reads=tuple(reads), method="macpo"),
        Step("train", 0, turn, agent, "positive", "sft_chosen", base, sft, "macpo"),
        Step("train", 0, turn, agent, "negative", "sft_rejected", (positive,), negative, "macpo"),
    ]


def labels(recipe: Recipe) -> tuple[Policy, ...]:
    """Who writes the chosen and the rejected answers that the student starts from."""
    labeller = recipe.labeller or recipe.teachers[0]
    return Policy(labeller, "positive", 0), Policy(labeller, "negative", 0)


def weak_start(recipe: Recipe) -> list[Step]:
    """Round 0 of whoever trains the student alone: the labelling teacher, then the student."""
    (student,), writers = recipe.students, labels(recipe)
    teacher = initialise(recipe, writers[0].agent, 0, ())
    return [*teacher, *initialise(recipe, student, 1, writers)[:2]]


def prefer(
    recipe: Recipe,
    agent: str,
    t: int,
    turn: int,
    policies: tuple[Policy, ...],
    reads: tuple[str, ...],
) -> list[Step]:
    """DPO + gamma * SFT on pairs that are made from what these policies write."""
    start = [Policy(agent, "positive", t - 1)]
    if recipe.dpo.reference == "initial" and t > 1:
        start.append(Policy(agent, "positive", 0))
    dpo = (*DPO_READS, *own_training(recipe, agent))
    return [
        Step("gen", t, turn, agent, policies=policies, reads=reads),
        Step("train", t, turn, agent, "positive", "dpo", tuple(start), dpo),
    ]


def retrain(recipe: Recipe, agent: str, t: int, turn: int) -> Step:
    """SFT on the rejected answers of round 0 makes a twin of the newest positive policy."""
    reads = (*SFT_READS, *own_training(recipe, agent), "negative")
    before = (Policy(agent, "positive", t - 1),)
    return Step("train", t, turn, agent, "negative", "sft_rejected", before, reads, dataset_round=0)


def switched_on(recipe: Recipe, *paths: str) -> tuple[str, ...]:
    """Those of the fields that are not at their default: older results keep their names."""
    default = {"data.label_noise": 0.0, "confidence": None, "negatives_by": "fine_tuning"}
    default |= {"select.under": "learner", "select.order": "lowest", "select.pool": None}
    return tuple(path for path in paths if recipe.read(path) != default[path])
