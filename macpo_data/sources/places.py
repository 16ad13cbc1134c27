"""Where each part of the data comes from, as the recipe says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from macpo_data.errors import DataError
from macpo_data.recipe.data import Data, FileData, More, ReleaseData, WorldData
from macpo_data.schema import Part
from macpo_data.sources import world

# The order in which parts are settled: what is held out must stay clean whatever is trained on.
PARTS: tuple[Part, ...] = ("test", "d1", "d2")

# A file or Hub dataset and its split; None where a file knows no splits. Parts that name the same
# origins share one shuffle.
Origin = tuple[str, str | None]
Place = tuple[Origin, ...]
Files = dict[str, bool]  # by their paths: whether each has a column that says a row's split


@dataclass(frozen=True)
class Draw:
    """Rows that one part takes from one place."""

    part: Part
    settings: Data | More  # a second dataset of the part has its own
    count: int | None  # None takes all
    place: Place

    @property
    def is_second(self) -> bool:
        """Whether these rows come behind the part's first ones."""
        return isinstance(self.settings, More)

    @property
    def key(self) -> str:
        """How the recipe calls it, below `data`."""
        return f"{self.part}.more" if self.is_second else self.part


def mores(data: Data) -> list[More]:
    """The second datasets of its parts."""
    return [more for part in PARTS if (more := getattr(data, part).more)]


def all_paths(data: Data) -> list[str]:
    """Those of the parts, and of their second datasets."""
    return [*paths(data), *(more.path for more in mores(data))]


def paths(data: Data) -> list[str]:
    """Every file and Hub id that the parts are read from, each once."""
    if isinstance(data, WorldData):
        return []
    if isinstance(data, ReleaseData):
        return [data.path]
    return list(dict.fromkeys(path for part in sorted(PARTS) for path in _part_paths(data, part)))


def draws(data: Data, files: Files) -> Iterator[Draw]:
    """What is drawn, in order: of each part its rows, then those of its second dataset.

    Raises:
        DataError: a part has no place, or must say how many rows it takes.
    """
    for part, place in _places(data, files).items():
        spec = getattr(data, part)
        yield Draw(part, data, spec.count, place)
        if more := spec.more:
            origin = _origin(more.path, more.split or "train", files)
            yield Draw(part, more, more.count, (origin,))


def in_words(place: Place) -> str:
    """A place as a person reads it."""
    return ", ".join(path + (f" ({split})" if split else "") for path, split in place)


def _part_paths(data: FileData, part: Part) -> list[str]:
    named = getattr(data, part).path or data.path
    return [named] if isinstance(named, str) else list(named or [])


def _places(data: Data, files: Files) -> dict[Part, Place]:
    """Where each part comes from; parts with an equal place share its shuffle."""
    places = _in_files(data, files) if isinstance(data, FileData) else _in_one(data)
    drawn = {part: place for part, place in places.items() if part != "d2" or not data.overlap}
    shared = [part for part in drawn if list(drawn.values()).count(drawn[part]) > 1]
    if open_ends := [f"data.{part}.count" for part in shared if not getattr(data, part).count]:
        raise DataError(
            f"{in_words(places[shared[0]])}: several parts are drawn from it, and each must say "
            f"how many rows it takes; set {', '.join(open_ends)}"
        )
    return places


def _in_one(data: WorldData | ReleaseData) -> dict[Part, Place]:
    """Places of a source that knows by itself where its parts are."""
    odd = [f"data.{p}" for p in PARTS if getattr(data, p).path or getattr(data, p).split]
    if odd:
        raise DataError(
            f"{', '.join(odd)}: source {data.source} has no path or split of a part; leave them out"
        )
    if isinstance(data, ReleaseData):
        return {part: ((data.path, part),) for part in PARTS}
    return dict.fromkeys(PARTS, ((world.PLACE, None),))


def _in_files(data: FileData, files: Files) -> dict[Part, Place]:
    places: dict[Part, Place] = {
        part: tuple(
            _origin(path, getattr(data, part).split, files) for path in _part_paths(data, part)
        )
        for part in PARTS
    }
    if bare := [part for part, place in places.items() if not place]:
        raise DataError(f"data.{bare[0]}.path is an empty list; name a file or a Hub dataset")
    return places


def _origin(path: str, split: str | None, files: Files) -> Origin:
    """A file or Hub dataset, and the split that counts for it."""
    if path not in files:
        return path, split or "train"
    # A file without a text column `split` is one split, whatever the recipe calls it.
    return path, split if files[path] else None
