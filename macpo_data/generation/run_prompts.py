"""The data splits of a run (d1, d2, test, probe), drawn once; prompts barred from training."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from macpo_data.errors import DataError
from macpo_data.plan import FORMAT, Plan
from macpo_data.recipe.generation import Select
from macpo_data.schema import UNUSABLE, check
from macpo_data.sources import overlap
from macpo_data.sources.files import is_local
from macpo_data.sources.ingest.splits import Dataset, every_split
from macpo_data.sources.parts import read_parts
from macpo_data.sources.registry import Accounts
from macpo_data.store.pins import Lock
from macpo_data.store.store import Store, write_parquet


def draw(plan: Plan, store: Store, pins: Mapping[str, str | None]) -> None:
    """Draw all parts from their source, unless the run has them.

    Raises:
        DataError: the source cannot be read or holds too few usable rows.
    """
    name, recipe = plan.prompts_name, plan.recipe
    with store.lock(name):
        if store.is_done(name):
            return
        accounts: Accounts = {}
        frames, unusable = read_parts(recipe.data, recipe.seed, dict(pins), accounts)
        folder = store.clear(name)
        for part, frame in frames.items():
            write_parquet(folder / f"{part}.parquet", frame)
        write_parquet(folder / "unusable.parquet", check(unusable, UNUSABLE, "unusable rows"))
        reasons = dict(unusable["reason"].value_counts().sort("reason").iter_rows())
        facts = {"kind": "prompts", "format": FORMAT, "data": recipe.read("data")}
        rows = {part: len(frame) for part, frame in frames.items()}
        facts |= {"pins": dict(pins), "rows": rows, "unusable": reasons}
        # What of the sources nobody reads, and how many of their rows were of use as text.
        read = {"sources": {place: each.facts() for place, each in accounts.items()}}
        store.finish(name, {**facts, **(read if accounts else {})})


def tests(lock: Lock, settings: Select) -> list[pl.Series]:
    """The texts of the test sets that no prompt may occur in.

    Raises:
        DataError: one cannot be read, or has no column of prompts.
    """
    texts = []
    for path, pin in lock.datasets(settings.test_sets).items():
        records = every_split(Dataset(path, revision=None if is_local(path) else pin))
        if (prompts := overlap.texts(records)) is None:
            raise DataError(
                f"select.test_sets: {path} has no column of prompts "
                f"({', '.join(overlap.PROMPTS)}); name another file"
            )
        texts.append(prompts)
    return texts


def barred_turns(
    turns: pl.DataFrame, test: pl.DataFrame, tests: list[pl.Series], settings: Select
) -> pl.DataFrame:
    """The same of turns inside conversations: one may be a test prompt, or be in a test set.

    Turns of one conversation are alike by nature, so that likeness is no reason.
    """
    in_test = turns.join(test, on="prompt_id", how="semi")
    held_out = in_test.select("prompt_id", reason=pl.lit("prompt_in_test"))
    alike = settings.model_copy(update={"near_duplicates": None})
    others = overlap.excluded(turns, tests, alike)
    rest = others.join(held_out, on="prompt_id", how="anti", maintain_order="left")
    return held_out.vstack(rest)


def by_length(rows: pl.DataFrame, *then: str) -> pl.DataFrame:
    """Prompts of like lengths together, so that batches pad little.

    Bytes of a message list are a cheap stand-in for its tokens.
    """
    size = pl.element().struct.field("content").str.len_bytes()
    return rows.sort(pl.col("prompt").list.eval(size).list.sum(), *then)
