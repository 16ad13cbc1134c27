"""What the data say by themselves that an answer is worth, from 0 to 1."""

from __future__ import annotations

from collections.abc import Iterable

from macpo_data.generation import answers
from macpo_data.recipe.recipe import Recipe
from macpo_data.recipe.section import digest
from macpo_data.world import judge
from macpo_data.world.bases import VERSION

Prompt = list[dict[str, str]]  # messages, as frames hold them


def worth(prompt: Prompt, right: str | None, written: str) -> float:
    """By the right answer where there is one, else by the embedded world's judge."""
    if right is None:
        return judge.gold(prompt, written).score
    return float(answers.is_right(right, written))


def worths(rows: Iterable[tuple[Prompt, str | None, str | None]]) -> list[float | None]:
    """The worth of each (prompt, right, response); none of what was not written."""
    return [None if text is None else worth(prompt, right, text) for prompt, right, text in rows]


def judge_of(recipe: Recipe) -> tuple[str, str] | None:
    """Who tells it, as people call it, and what that depends on; None where nobody can."""
    if recipe.eval.by == "answer":
        return answers.RIGHT_ANSWERS, digest([answers.VERSION])
    return ("world", digest(VERSION)) if recipe.data.source == "world" else None
