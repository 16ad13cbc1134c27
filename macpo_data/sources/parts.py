"""Draws the splits of a run from its source datasets.

A source's file turns its dataset's own form into rows. From there all rows go one way: unusable
ones are put aside with a reason, and the parts are drawn. Nothing after this knows the source.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from macpo_data import schema
from macpo_data.errors import DataError
from macpo_data.recipe.data import Data, Probe, ReleaseData, WorldData
from macpo_data.schema import PROMPTS, UNUSABLE, Part
from macpo_data.sources import macpo_release, registry, world
from macpo_data.sources.files import is_local
from macpo_data.sources.ingest.splits import Dataset
from macpo_data.sources.places import PARTS, Draw, Files, Origin, Place, all_paths, draws, in_words
from macpo_data.sources.usable import put_aside, usable, with_reasons

Revisions = Mapping[str, str | None]  # of Hub datasets, by their ids
Owners = dict[str, Part]  # which part has drawn a prompt, by its id


@dataclass
class _Pool:
    """One place: its usable rows in shuffled order, taken from the top, and the others."""

    rows: pl.DataFrame
    aside: pl.DataFrame  # UNUSABLE

    def leave_out(self, owners: Owners, part: Part) -> None:
        """Mark as unusable the rows that another part has drawn."""
        owner = pl.col("prompt_id").replace_strict(owners, default=None, return_dtype=pl.String)
        rows = self.rows.with_columns(reason="prompt_in_" + owner)
        self.rows, self.aside = usable(rows), pl.concat([self.aside, put_aside(rows, part)])


def read_parts(
    data: Data,
    seed: int,
    revisions: Mapping[str, str | None] = {},
    accounts: registry.Accounts | None = None,
) -> tuple[dict[Part, pl.DataFrame], pl.DataFrame]:
    """Draw d1, d2 and test, disjoint by prompt, and take the probe out of d1.

    The authors' release is taken as it is: in its order, with the prompts that occur twice.

    Test is settled first, then d1, then d2. A row put aside stands under the first part, in that
    order, that looked at it.

    Args:
        data: what the recipe says about its data.
        seed: of the shuffle.
        revisions: the commit at which to read a Hub dataset, by its id; else `data.revision`.
        accounts: gets what became of each dataset's rows, by its place.

    Returns:
        PROMPTS of each part, and UNUSABLE: the rows that cannot be used.

    Raises:
        DataError: a dataset cannot be read, or holds too few usable rows.
    """
    as_released = isinstance(data, ReleaseData)
    folders = {data.path} if isinstance(data, ReleaseData) else set()
    local = [path for path in all_paths(data) if is_local(path) and path not in folders]
    files = {path: registry.has_splits(path) for path in local}
    pools: dict[tuple[str, Place], _Pool] = {}
    owners: Owners = {}
    parts: dict[Part, pl.DataFrame] = {part: schema.empty(PROMPTS) for part in (*PARTS, "probe")}
    for draw in draws(data, files):
        room = data.limit and data.limit - len(parts[draw.part])
        if room == 0:
            continue
        # 1. The first part that names a place opens it.
        key = (draw.key if draw.is_second else "", draw.place)
        if key not in pools:
            pools[key] = _open(draw, data, seed, files, revisions, accounts)
        pool = pools[key]
        # 2. The probe leaves D1 before anything is drawn for D2.
        if draw.key == "d2":
            if data.rejected == "mismatch":
                parts["d1"] = _mismatched(parts["d1"])
            parts["d1"], parts["probe"] = _without_probe(parts["d1"], data.probe)
            owners |= dict.fromkeys(parts["probe"]["prompt_id"], "probe")
        # 3. What an earlier part took from another place is not drawn again.
        barred = owners
        if draw.key == "d2" and data.overlap:
            barred = {id_: by for id_, by in owners.items() if by != "d1"}
        if not as_released:
            pool.leave_out(barred, draw.part)
        # 4. Take from the top.
        taken = _take(pool, draw, room, data.limit)
        if not (draw.key == "d1" and data.overlap):
            pool.rows = pool.rows.slice(len(taken))
        owners = dict.fromkeys(taken["prompt_id"], draw.part) | owners
        parts[draw.part] = parts[draw.part].vstack(taken)
    aside = pl.concat(pool.aside for pool in pools.values())
    return parts, schema.check(aside, UNUSABLE, "unusable rows")


def _open(
    draw: Draw,
    data: Data,
    seed: int,
    files: Files,
    revisions: Revisions,
    accounts: registry.Accounts | None,
) -> _Pool:
    """Read a place and shuffle what can be used of it."""
    origins = [_read(draw, origin, seed, files, revisions, accounts) for origin in draw.place]
    rows = pl.concat(origins)
    as_released = isinstance(draw.settings, ReleaseData)
    if as_released:
        rows = macpo_release.tell_apart(rows)
    rows = with_reasons(rows, data.max_prompt_chars)
    fit = usable(rows)
    return _Pool(fit if as_released else _shuffle(fit, seed), put_aside(rows, draw.part))


def _read(
    draw: Draw,
    origin: Origin,
    seed: int,
    files: Files,
    revisions: Revisions,
    accounts: registry.Accounts | None,
) -> pl.DataFrame:
    """The rows of an origin as (row, prompt, chosen, rejected, right, reason, prompt_id, text)."""
    (path, split), settings = origin, draw.settings
    if isinstance(settings, WorldData):
        return world.generate(seed)
    if isinstance(settings, ReleaseData):
        return registry.read(Dataset(path, split=split), settings, accounts=accounts)
    if path in files:
        return registry.read(Dataset(path), settings, split, accounts)
    revision = revisions.get(path) or settings.revision
    config = getattr(settings, "config", None)
    dataset = Dataset(path, config, revision, split, settings.subset)
    return registry.read(dataset, settings, accounts=accounts)


def _shuffle(rows: pl.DataFrame, seed: int) -> pl.DataFrame:
    order = list(range(len(rows)))
    random.Random(f"macpo prompts: {seed}").shuffle(order)
    return rows[order]


def _mismatched(d1: pl.DataFrame) -> pl.DataFrame:
    """D1 whose worse answers are the better ones to the next prompt that has another.

    Raises:
        DataError: there are no two different answers.
    """
    if d1["chosen"].n_unique() < 2:
        raise DataError(
            "data.rejected=mismatch: D1 has no two different good answers; raise data.d1.count, or "
            "set data.rejected=source"
        )
    answers = d1["chosen"].to_list()
    others = []
    for n, answer in enumerate(answers):
        after = answers[n + 1 :] + answers[:n]
        others.append(next(other for other in after if other != answer))
    return d1.with_columns(rejected=pl.Series(others, dtype=pl.String))


def _without_probe(d1: pl.DataFrame, probe: Probe) -> tuple[pl.DataFrame, pl.DataFrame]:
    """D1 without its last rows that have both answers, and those: the probe.

    Raises:
        DataError: nothing would be left of D1.
    """
    size = probe.size(len(d1))
    if size and size >= len(d1):
        raise DataError(
            f"data.probe.count takes {size} of D1's {len(d1)} rows and leaves none to train on; "
            f"set it to {len(d1) // 5} or less, or raise data.d1.count"
        )
    pairs = d1.drop_nulls(["chosen", "rejected"]).tail(size)
    return d1.join(pairs, on="prompt_id", how="anti", maintain_order="left"), pairs


def _take(pool: _Pool, draw: Draw, room: int | None, limit: int | None) -> pl.DataFrame:
    """The rows that a draw gets, PROMPTS.

    Args:
        pool: of its place.
        draw: what it asks for.
        room: rows that the part may still have; None for any number.
        limit: `data.limit`, which alone asks for no more than there are.

    Raises:
        DataError: too few are left.
    """
    count = draw.count or len(pool.rows)
    wanted = min(count, room or count)
    if pool.rows.is_empty() or len(pool.rows) < wanted:
        raise DataError(_too_few(pool, draw, wanted, wanted == limit))
    return schema.check(pool.rows.head(wanted), PROMPTS, f"data.{draw.key}")


def _too_few(pool: _Pool, draw: Draw, wanted: int, by_limit: bool) -> str:
    key, there = "data.limit" if by_limit else f"data.{draw.key}.count", len(pool.rows)
    what = f"{there} usable rows are left for it" if there else "no usable row is left for it"
    mend = f"set {key} to {there} or less" if there else "check data.source, split and columns"
    counts = pool.aside["reason"].value_counts()
    counts = counts.sort(["count", "reason"], descending=[True, False])
    because = ", ".join(f"{n} {reason}" for reason, n in counts.iter_rows()) or "nothing"
    return (
        f"{in_words(draw.place)}: data.{draw.key} asks for {wanted or 'some'} rows, {what} "
        f"(put aside: {because}); {mend}, or set data.{draw.key}.path to more"
    )
