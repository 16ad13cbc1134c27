"""The ceiling: the student fine-tuned on the human's good answers to D2 (Burns et al. 2023).

It is what the weak labels stand in for, so that it bounds what there is to recover. No method
learns from it: it is a step beside those of any method, made where `eval.ceiling` asks for it.
"""

from __future__ import annotations

from macpo_data.errors import DataError
from macpo_data.generation.context import Context, RoundData
from macpo_data.methods.method import Method
from macpo_data.methods.steps import EXCLUDE_READS, SFT_READS, own_training
from macpo_data.plan import Policy, Step
from macpo_data.recipe.recipe import Recipe

NAME = "ceiling"


def plan(recipe: Recipe) -> list[Step]:
    """One dataset and one training from the bare base, with the settings of the student's SFT.

    Without the confidence loss, which is for labels that may be wrong.
    """
    (student,) = recipe.students
    reads = EXCLUDE_READS if recipe.select.excludes else ()
    sft, base = (*SFT_READS, *own_training(recipe, student), "sft"), (Policy(student),)
    return [
        Step("gen", 0, 2, student, "ceiling", reads=reads, method=NAME),
        Step("train", 0, 2, student, "ceiling", "sft_chosen", base, sft, NAME),
    ]


def build(step: Step, ctx: Context) -> RoundData:
    """The human's good answers to D2, none of them swapped."""
    require(ctx)
    return ctx.human_answers("d2")


def require(ctx: Context) -> None:
    """See that D2 has what the ceiling learns, before anything else is made.

    Raises:
        DataError: a prompt has no good answer.
    """
    answers = ctx.prompts("d2")["chosen"]
    if missing := answers.null_count():
        raise DataError(
            f"eval.ceiling needs data.d2 with chosen answers, and {missing} of {len(answers)} "
            "prompts have none; name other data, or set eval.ceiling=false"
        )


METHOD = Method(
    "ceiling",
    "by people: their good answers, for the ceiling",
    plan,
    build,
    in_recipes=False,
)
