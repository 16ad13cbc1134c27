"""The source formats by the name that a recipe has for them.

A new one is a file beside this with its `read`, a line here, and its section of the recipe.
"""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from macpo_data.recipe.data import FileData, More
from macpo_data.sources import hh_rlhf, pairs, pku_saferlhf, ultrachat, ultrafeedback

# From a dataset as it is, its settings and its path for errors, to the form of `rows`.
Reader = Callable[[pl.DataFrame, FileData | More, str], pl.DataFrame]

READERS: dict[str, Reader] = {
    "hh_rlhf": hh_rlhf.read,
    "pku_saferlhf": pku_saferlhf.read,
    "ultrafeedback": ultrafeedback.read,
    "ultrachat": ultrachat.read,
    "pairs": pairs.read,
}


def read(raw: pl.DataFrame, settings: FileData | More, path: str) -> pl.DataFrame:
    """A dataset in its own form as prompt, chosen, rejected and reason.

    Raises:
        DataError: it has not the form that `settings.source` says.
    """
    name: str = getattr(settings, "source", "pairs")
    return READERS[name](raw, settings, path)
