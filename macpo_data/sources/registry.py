"""The sources by the name that a recipe has for them: which columns of each hold what.

A new one is a line here and its section of the recipe; its rows come through `ingest`.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import cast

import polars as pl

from macpo_data.errors import DataError
from macpo_data.recipe.data import Columns, FileData, More, PairsData, PKUData, ReleaseData
from macpo_data.schema import Part
from macpo_data.sources import macpo_release
from macpo_data.sources.ingest import canonical
from macpo_data.sources.ingest.detect import Form
from macpo_data.sources.ingest.door import Account, Judged, Rows, frame, open_rows
from macpo_data.sources.ingest.files import read_file
from macpo_data.sources.ingest.hints import Option
from macpo_data.sources.ingest.splits import Dataset, Source, open_split

COLUMNS = ("row", "prompt", "chosen", "rejected", "right", "reason", "prompt_id", "text")
Accounts = dict[str, Account]  # by place
BATCH = 5_000  # rows that are in memory as objects at once
TEXT_CHARS = 300  # of a row put aside
_PKU = {"first": "response_0", "second": "response_1"}


def read(
    dataset: Dataset,
    settings: FileData | ReleaseData | More,
    split_column: str | None = None,
    accounts: Accounts | None = None,
) -> pl.DataFrame:
    """A dataset as (row, prompt, chosen, rejected, right, reason, prompt_id, text).

    Args:
        dataset: which.
        settings: of the source.
        split_column: of a file with a column `split`: the rows of this one alone.
        accounts: gets the one of this dataset, by its place.

    Raises:
        DataError: it has not the form that `settings.source` says, or cannot be read.
    """
    as_released = isinstance(settings, ReleaseData)
    source = _released(dataset) if as_released else open_split(dataset)
    first = source.peek()
    names = {name for record in first for name in record}
    source_name: str = getattr(settings, "source", "pairs")
    form = Form.HH if source_name == "hh_rlhf" and "prompt" not in names else None
    columns = _columns(settings, names)
    rows = open_rows(source, columns, rendered=as_released, form=form, option=Option.RECIPE)
    right = settings.right if isinstance(settings, PairsData) else None
    if right and first and right not in names:
        have = ", ".join(sorted(names))
        raise DataError(f"{source.name}: data.right is {right}, and the columns are {have}")
    rows.also_read = frozenset([right] if right else [])
    mine = (each for each in rows
            if split_column is None or each.record.get("split") == split_column)  # fmt: skip
    frames = [_frame([], rows, right)]
    while batch := list(itertools.islice(mine, BATCH)):
        frames.append(_frame(batch, rows, right))
    if accounts is not None:
        accounts[source.name] = rows.account
    return pl.concat(frames)


def has_splits(path: str) -> bool:
    """Whether a file has a column `split` of text, which says of each row where it belongs.

    Raises:
        DataError: it cannot be read.
    """
    batch = next(read_file(path), [])
    values = [record["split"] for record in batch if record.get("split") is not None]
    return bool(values) and all(isinstance(value, str) for value in values)


def _released(dataset: Dataset) -> Source:
    """A part of MACPO's release, which its split names."""
    part = cast(Part, dataset.split)
    return Source(f"{dataset.place}, {part}", macpo_release.read_part(dataset.place, part))


def _columns(settings: FileData | ReleaseData | More, names: Collection[str]) -> Columns:
    """Which columns of a source hold what; those that are not named are found."""
    match getattr(settings, "source", "pairs"):
        case "pairs" if isinstance(settings, PairsData):
            return settings.columns
        case "ultrachat":  # whole conversations, of which the last answer is taken off
            return Columns(chosen="messages", rejected=None)
        case "pku_saferlhf" if isinstance(settings, PKUData) and "response_0" in names:
            return Columns(**_PKU, label=f"{settings.preference}_response_id")
        case _:
            return Columns()


def _frame(batch: list[Judged], rows: Rows, right: str | None) -> pl.DataFrame:
    texts = [_text(each, rows)[:TEXT_CHARS] for each in batch]
    values = [each.record.get(right) if right else None for each in batch]
    answers = [None if value is None else str(value) for value in values]
    more = {"text": pl.Series(texts, dtype=pl.String), "right": pl.Series(answers, dtype=pl.String)}
    return frame(batch).with_columns(**more).select(COLUMNS)


def _text(each: Judged, rows: Rows) -> str:
    """A row for a person who wonders why it was put aside."""
    if each.row is not None:
        return each.row.as_json()
    sides = {name: getattr(rows.layout, name) for name in ("prompt", "chosen", "rejected")}
    return canonical.as_json({name: each.record.get(column) for name, column in sides.items()})
