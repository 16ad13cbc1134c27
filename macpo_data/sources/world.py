"""The embedded world's task pool as a source: no file, all follows from the seed."""

from __future__ import annotations

from typing import cast

import polars as pl

from macpo_data import schema
from macpo_data.schema import PROMPTS, Message
from macpo_data.sources.ingest.canonical import as_json
from macpo_data.world.grammar import examples

PLACE = "the embedded world"


def generate(seed: int) -> pl.DataFrame:
    """Every prompt of the task pool with a good and a bad answer, in an order drawn by the seed.

    As `registry.read` gives rows: (row, prompt, chosen, rejected, right, reason, prompt_id, text).
    """
    every = [
        {
            "row": row,
            **vars(example),
            "prompt_id": schema.prompt_id(cast(list[Message], example.prompt)),
            "text": as_json(vars(example)),
        }
        for row, example in enumerate(examples("task", seed=seed))
    ]
    form = {"row": pl.Int64(), **PROMPTS, "reason": pl.String(), "text": pl.String()}
    return pl.DataFrame(every, schema=form)
