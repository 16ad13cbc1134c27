"""Looks at a person's own preference data, to write the section of a recipe that reads them."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from macpo_data.errors import DataError
from macpo_data.recipe.data import Columns
from macpo_data.sources import registry
from macpo_data.sources.files import is_local, is_plain_file
from macpo_data.sources.ingest.detect import FORMS_WITH_SIDES, Form, detect
from macpo_data.sources.ingest.door import Account, Rows, open_rows
from macpo_data.sources.ingest.splits import TRAIN, Dataset, files_by_split, split_names
from macpo_data.sources.usable import answers_named

LEAST = 6  # prompts: one for the test, and for D1 and D2 more than one each
TEST_SHARE, TEST_MOST = 0.1, 1000  # of the prompts, where no split is the test
_HELD_OUT = ("test", "validation", "valid", "val", "dev", "eval", "evaluation")
_WANTED = {
    Form.PROMPTS: "bring a chosen and a rejected answer to each prompt; prompts alone can be "
    "data.d2.path of a recipe whose data.d1.path has pairs",
    Form.FINE_TUNING: "bring a rejected answer beside each of its answers, or train on it with "
    "`macpo train --dataset ... --set objective=sft`",
}


@dataclass(frozen=True)
class OwnData:
    """What a recipe says of a person's data."""

    section: dict[str, Any]  # `data`, without what is at its default
    account: Account  # of the rows that D1 and D2 are drawn from
    prompts: int  # different ones in these


def look_at(dataset: Dataset, columns: Columns, folder: Path) -> OwnData:
    """Read a dataset once, and say how a recipe draws its three parts from it.

    Args:
        dataset: which; of a folder or a Hub dataset, the split that D1 and D2 are drawn from.
        columns: what a person named.
        folder: in which the recipe will lie, where its paths start.

    Raises:
        DataError: it cannot be read, holds no pairs, or too few.
        HubError: the Hub refuses.
    """
    names = split_names(dataset)
    train = names[0] if names else None
    seen, rows = _prompts(replace(dataset, split=train), columns)
    if not names and len(seen) > 1:  # a column says the split of each row
        names = sorted(map(str, seen))
        train = TRAIN if TRAIN in names else names[0]
    held_out = _held_out(train, names)
    ids = seen[train] if train in seen else next(iter(seen.values()), set())
    test = seen.get(held_out, set()) if held_out else set()
    if held_out and not is_plain_file(dataset.place):
        test = next(iter(_prompts(replace(dataset, split=held_out), columns)[0].values()), set())
    if held_out:
        sizes = {"test": min(len(test), TEST_MOST)}
        left = len(ids - test)
    else:
        sizes = {"test": min(max(1, int(len(ids) * TEST_SHARE)), TEST_MOST)}
        left = len(ids) - sizes["test"]
    if left < LEAST - 1 or not sizes["test"]:
        raise DataError(
            f"{dataset.place}: {len(ids):,} prompts with a usable pair"
            + (f" and {len(test):,} in the split {held_out}" if held_out else "")
            + f", and three parts want {LEAST} or more: " + _why(rows.account)
        )  # fmt: skip
    sizes |= {"d1": left // 2, "d2": left - left // 2}
    place = _place(dataset, train, held_out, folder)
    names_of_columns = _columns(columns, rows)
    section = {"source": "pairs", **place.pop("data")}
    section |= {"columns": names_of_columns} if names_of_columns else {}
    section |= {
        part: {**place.get(part, {}), "count": sizes[part]} for part in ("d1", "d2", "test")
    }
    return OwnData(section, rows.account, len(ids))


def run_name(place: str) -> str:
    """A folder under runs/ that is called after a dataset.

    >>> run_name("../data/My pairs.jsonl.gz"), run_name("org/name")
    ('My-pairs', 'name')
    """
    stem = Path(place.rstrip("/")).name.split(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:64] or "own"


def _prompts(dataset: Dataset, columns: Columns) -> tuple[dict[str | None, set[str]], Rows]:
    """The different prompts with a usable pair, by the split that their rows say."""
    by_split: dict[str | None, set[str]] = defaultdict(set)
    has_splits = is_plain_file(dataset.place) and registry.has_splits(dataset.place)
    rows = open_rows(dataset, columns)
    form = rows.layout.form
    if form not in FORMS_WITH_SIDES:
        mend = answers_named(rows.layout) or _WANTED.get(form, "bring pairs")
        raise DataError(f"{dataset.place} is {form}; {mend}")
    rows.also_read = frozenset({"split"} if has_splits else ())
    for each in rows:
        usable = rows.without(each, ("chosen", "rejected"))
        if usable.reason is None and usable.row is not None:
            split = each.record.get("split") if has_splits else dataset.split
            by_split[split].add(usable.row.prompt_id)
    return dict(by_split), rows


def _held_out(train: str | None, names: Sequence[str]) -> str | None:
    """The split that is the test of another one, where there is one: test_prefs of train_prefs."""
    stem = train or TRAIN
    likely = [stem.replace(TRAIN, word) for word in _HELD_OUT] + list(_HELD_OUT)
    return next((name for name in likely if name in names and name != train), None)


def _place(
    dataset: Dataset, train: str | None, held_out: str | None, folder: Path
) -> dict[str, dict[str, Any]]:
    """Where the parts are read from: keys of `data`, and of each part."""
    place = Path(dataset.place).expanduser()
    splits = {"d1": {"split": train}, "d2": {"split": train}, "test": {"split": held_out}}
    if not is_local(dataset.place):
        if held_out is None:
            splits["test"] = {"split": train}
        keys = {"path": dataset.place, "config": dataset.config}
        return {"data": {k: v for k, v in keys.items() if v}, **splits}
    if not place.is_dir():
        data = {"data": {"path": _from(folder, dataset.place)}}
        return {**data, **splits} if held_out else data
    files = files_by_split(place, dataset.config)
    listed = {
        name: [_from(folder, str(p)) for p in files[name]] for name in (train, held_out) if name
    }
    paths = {name: each[0] if len(each) == 1 else each for name, each in listed.items()}
    test = {"test": {"path": paths[held_out]}} if held_out else {}
    return {"data": {"path": paths[train or TRAIN]}, **test}


def _from(folder: Path, path: str) -> str:
    """A path as the recipe writes it: one that is not absolute starts at the recipe's folder."""
    if Path(path).is_absolute() or path.startswith("~"):
        return path
    return Path(os.path.relpath(path, folder)).as_posix()


def _columns(columns: Columns, rows: Rows) -> dict[str, str | None]:
    """The columns to name: all that were found, where naming them reads the same.

    Some forms are known by their columns together, and read otherwise where these are named.
    """
    layout = rows.layout
    if named := columns.model_dump(exclude_defaults=True):
        return named
    every = {name: column for name in ("prompt", "chosen", "rejected")
             if (column := getattr(layout, name)) is not None}  # fmt: skip
    try:
        again = detect(rows.sample, Columns(**every), rows.source.name)
    except DataError:
        return {}
    return every if again == layout else {}


def _why(account: Account) -> str:
    return account.why_nothing() if account.refused else "bring more"
