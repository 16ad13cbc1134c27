"""The embedded world's task pool as a source: no file, all follows from the seed."""

from __future__ import annotations

import polars as pl

from macpo_data.schema import PROMPTS
from macpo_data.world.grammar import examples

PLACE = "the embedded world"


def generate(seed: int) -> pl.DataFrame:
    """Every prompt of the task pool with a good and a bad answer, in an order drawn by the seed."""
    every = [vars(example) for example in examples("task", seed=seed)]
    form = {name: kind for name, kind in PROMPTS.items() if name != "prompt_id"}
    return pl.DataFrame(every, schema={**form, "reason": pl.String()})
