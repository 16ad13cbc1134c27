"""Answers of one model under a good or a bad prompt frame, as in RLCD."""

from __future__ import annotations

from typing import Literal

import polars as pl

from macpo_data.generation.context import Context
from macpo_data.generation.mixture import as_rows, tell
from macpo_data.plan import Policy
from macpo_data.prompts import fill


def write(
    ctx: Context, policy: Policy, side: Literal["positive", "negative"], draw: int = 0
) -> pl.DataFrame:
    """What a policy answers to D2 under the recipe's positive or negative frame.

    Returns:
        SAMPLES, one per prompt of D2; they answer the prompt as it stands, without the frame.
    """
    frame, prompts = ctx.recipe.framing, ctx.prompts("d2")
    text = fill(getattr(frame, side))
    framed = as_rows([tell(prompt, text, frame.insert) for prompt in prompts["prompt"].to_list()])
    (answers,) = ctx.ask([(policy, framed)], ctx.recipe.sampling, f"framed-{side}", draw)
    return answers.with_columns(prompts["prompt_id"])
