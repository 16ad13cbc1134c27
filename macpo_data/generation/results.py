"""Results in shards, each made once; an interrupted one is resumed, a finished one is read.

Samples, answers, scores and rewards are all made here. What differs between them, how their rows
come to be, is given as a function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from macpo_data.errors import StoreError
from macpo_data.outside import parse_json, read_bytes
from macpo_data.store.store import Manifest, Shards, Store, write_json

BEGUN = "begun.json"  # written into a result before its first shard


class Begun(BaseModel):
    """What a result was begun with."""

    model_config = ConfigDict(strict=True, frozen=True)

    inputs: dict[str, str] | None = None  # None: nothing was begun, or it says nothing that holds
    shard_size: Annotated[int, Field(ge=1)] | None = None
    scored_by: str | None = None


@dataclass(frozen=True)
class Item:
    """One result that is wanted."""

    name: str  # its folder inside the run
    shards: Shards
    made_from: Mapping[str, str]  # the content of what decides it, by name
    # Texts may come from several engines; all scores of a set are of one, which is named here.
    scored_by: str | None = None


# Makes the rows of some items, by their place in a list, and yields each manifest as it is done.
Make = Callable[[list[int]], Iterator[tuple[int, Manifest]]]


class Results:
    """The results of one run that are made in shards."""

    def __init__(self, store: Store, shard_size: int, redo: bool) -> None:
        """`redo` moves aside results that are damaged or stale."""
        self.store = store
        self.used: dict[str, str] = {}  # content of every result that was asked for
        self._shard_size = shard_size
        self._redo = redo

    def shards(self, name: str, ids: list[str]) -> Shards:
        """The shards of a result, as a killed run began them or as the recipe wants them."""
        size = self._begun(name).shard_size
        return Shards(self.store.path(name), ids, size or self._shard_size)

    def once(self, items: Sequence[Item], make: Make) -> list[pl.DataFrame]:
        """The rows of each item; those that are not there are made, each by one process.

        Args:
            items: what is wanted; the same name may stand there twice.
            make: is given the places of those that are missing.

        Raises:
            StoreError: one is damaged, or made from what changed since, and `redo` is off.
        """
        with ExitStack() as locks:
            for name in sorted({item.name for item in items}):
                locks.enter_context(self.store.lock(name))
            for item in items:
                self.mend(item.name, item.made_from)
            places = {item.name: place for place, item in enumerate(items)}
            todo = [place for name, place in places.items() if not self.store.is_done(name)]
            for place in todo:
                self._begin(items[place])
            for place, manifest in make(todo) if todo else ():
                inputs = dict(items[place].made_from)
                self.store.finish(items[place].name, {**manifest, "inputs": inputs})
            self.used |= {name: str(self.store.content(name)) for name in places}
        return [self._rows(item.name) for item in items]

    def mend(self, name: str, made_from: Mapping[str, str] | None = None) -> None:
        """With `redo`, move aside a result that is damaged or stale.

        Raises:
            StoreError: it was made from what changed since, and `redo` is off.
        """
        try:
            manifest = self.store.manifest(name)
            if manifest and made_from is not None and manifest["inputs"] != made_from:
                raise StoreError(
                    f"{self.store.path(name)} was made from results that changed since; --redo "
                    "makes it anew"
                )
            if manifest and self._redo:
                self.store.verify(name)
        except StoreError:
            if not self._redo:
                raise
            self.store.aside(name)

    def _begun(self, name: str) -> Begun:
        """What a result was begun with."""
        try:
            return Begun.model_validate(parse_json(read_bytes(self.store.path(name) / BEGUN)))
        except (OSError, ValueError):  # pydantic's own error is a ValueError
            return Begun()

    def _begin(self, item: Item) -> None:
        """Keep the shards of a killed run, unless what made them changed since."""
        begun, inputs = self._begun(item.name), dict(item.made_from)
        if begun.inputs != inputs or begun.scored_by != item.scored_by:
            folder = self.store.clear(item.name)
            kept = {"inputs": inputs, "shard_size": item.shards.size, "scored_by": item.scored_by}
            write_json(folder / BEGUN, kept)

    def _rows(self, name: str) -> pl.DataFrame:
        """All shards of a finished result, after checking their bytes."""
        manifest = self.store.verify(name)
        files = sorted(f for f in manifest["files"] if f.startswith("shards/"))
        return pl.read_parquet([self.store.path(name) / f for f in files], glob=False)
