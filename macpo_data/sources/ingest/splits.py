"""The splits of a dataset by their names: of a folder, a file, or a dataset on the Hub.

Files are joined only within one split, and splits never. Local folders are read without the cache
of `datasets`, which may serve rows that are no longer there.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from macpo_data import hub_client
from macpo_data.errors import DataError, first_line
from macpo_data.outside import OutsideError, parse_yaml
from macpo_data.sources import macpo_release
from macpo_data.sources.files import is_local, is_plain_file
from macpo_data.sources.ingest.files import BATCH, SUFFIXES, Batches, as_records, is_data, read_file
from macpo_data.sources.ingest.json_text import Record

TRAIN = "train"  # the split that is read where none is named
_SHARD = re.compile(r"([-_.]*\d+(-?of-?\d+)?)+$")  # the number of a file among its like
_SPLIT = re.compile(r"(?<![a-z])(train|test|valid|validation|val|dev|eval|evaluation)(?![a-z])")


@dataclass(frozen=True)
class Dataset:
    """A dataset, as a person names it."""

    place: str  # a folder, a file, or org/name on the Hub
    config: str | None = None  # the card's default one by default
    revision: str | None = None  # tag, branch or commit on the Hub
    split: str | None = None  # None: train, or the only one there is
    subset: str | None = None  # a folder of the dataset on the Hub


@dataclass
class Source:
    """The records of one split."""

    name: str  # for errors
    batches: Batches
    notes: list[str] = field(default_factory=list)  # what is odd about its files, once it is read

    def peek(self) -> list[Record]:
        """Its first records, which stay to be read."""
        first = next(self.batches, [])
        self.batches = itertools.chain([first] if first else [], self.batches)
        return first


def open_split(dataset: Dataset) -> Source:
    """The records of the one split that is meant.

    Raises:
        DataError: there is no such dataset, configuration or split, or several that may be meant.
        HubError: the Hub refuses.
    """
    path = Path(dataset.place).expanduser()
    source = Source(dataset.place, iter(()))
    _check_read(dataset)
    if path.is_dir():
        splits = _splits(path, dataset.config)
        source.batches = splits[_choose(dataset, list(splits))](source.notes)
    elif is_local(dataset.place):
        source.batches = read_file(dataset.place)
    else:
        source.batches = _read_hub(dataset)
    return source


def _check_read(dataset: Dataset) -> None:
    """Refuse what is said of a dataset where nothing would read it."""
    place = dataset.place
    if not is_local(place):
        return
    unread = ["--revision"] if dataset.revision else []
    if is_file := is_plain_file(place):
        unread += ["--config"] if dataset.config else []
        unread += ["--split"] if dataset.split not in (None, TRAIN) else []
    if unread:
        kind = "file" if is_file else "folder"
        raise DataError(f"{', '.join(sorted(unread))}: not read of a {kind}, {place}; leave it out")


def split_names(dataset: Dataset) -> list[str]:
    """The names of a dataset's splits, the one that is meant first; none of a file, which is one.

    Raises:
        DataError: there is no such dataset, or the one that is meant is not clear.
        HubError: the Hub refuses.
    """
    _check_read(dataset)
    path = Path(dataset.place).expanduser()
    if is_plain_file(dataset.place):
        return []
    names = list(_splits(path, dataset.config)) if path.is_dir() else _hub_splits(dataset)
    meant = _choose(dataset, names)
    return [meant, *(name for name in names if name != meant)]


def every_split(dataset: Dataset) -> Batches:
    """The records of all splits, one after the other: of a test set, which is all to be kept out.

    Raises:
        DataError: there is no such dataset or configuration.
        HubError: the Hub refuses.
    """
    path = Path(dataset.place).expanduser()
    if path.is_dir():
        for read in _splits(path, dataset.config).values():
            yield from read([])
    elif is_local(dataset.place):
        yield from read_file(dataset.place)
    else:
        for split in _hub_splits(dataset):
            yield from _read_hub(replace(dataset, split=split))


def default_config(card: Path | bytes) -> str | None:
    """The configuration that a card names as default."""
    text = card.decode("utf-8", "replace") if isinstance(card, bytes) else _text(card)
    configs = _configs(text, "the card")
    named = [str(each.get("config_name")) for each in configs if each.get("default")]
    return named[0] if named else None


_Splits = dict[str, Callable[[list[str]], Batches]]  # by name; each takes a list for its notes


def _splits(folder: Path, config: str | None) -> _Splits:
    """The splits of a folder, in order."""
    if macpo_release.is_release(folder):
        return {TRAIN: lambda notes: macpo_release.read_round(folder, config)}
    if saved := _saved(folder):
        return saved
    files = files_by_split(folder, config)
    return {name: partial(_joined, paths) for name, paths in files.items()}


def files_by_split(folder: Path, config: str | None = None) -> dict[str, list[Path]]:
    """The data files of a folder by the names of their splits.

    Args:
        folder: with a card, without one, or saved by `datasets`.
        config: of its card; the default one by default.

    Raises:
        DataError: there are none.
    """
    if saved := _saved(folder):
        return {name: sorted((folder / name).glob("data-*.arrow"))
                or sorted(folder.glob("data-*.arrow")) for name in saved}  # fmt: skip
    configs = _configs(_text(folder / "README.md"), f"{folder}/README.md")
    if configs:
        return _of_config(folder, configs, config)
    if config is not None:
        raise DataError(f"{folder} has no configurations in a README.md; name its file instead")
    return _of_names(folder)


def _choose(dataset: Dataset, names: list[str]) -> str:
    """The split that is meant: the named one, else train, or the only one that it can be."""
    place, split = dataset.place, dataset.split
    if split is not None:
        if split in names:
            return split
        raise DataError(
            f"{place} has no file for the split {split}; choose --split {', '.join(names)}"
        )
    training = [name for name in names if re.search(r"(?<![a-z])train(?![a-z])", name)]
    for candidates in ([name for name in names if name == TRAIN], training, names):
        if len(candidates) == 1:
            return candidates[0]
    raise DataError(
        f"{place} has several splits, which are never joined; choose --split {', '.join(names)}"
    )


def _saved(folder: Path) -> _Splits:
    """What `save_to_disk` of `datasets` wrote; empty where a folder is of another kind."""
    if not any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return {}
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # of any class: the folder may hold anything
        raise DataError(
            f"cannot read {folder}, a folder of save_to_disk: {first_line(error)}; save it anew"
        ) from None
    parts = loaded if isinstance(loaded, dict) else {str(loaded.split or TRAIN): loaded}
    return {name: partial(_rows, part) for name, part in parts.items()}


def _rows(part: Any, notes: list[str] | None = None) -> Batches:
    """The records of a `datasets.Dataset`."""
    for batch in part.with_format("arrow").iter(BATCH):
        yield as_records(batch)


def _of_names(folder: Path) -> dict[str, list[Path]]:
    """The files of a folder without a card, by the split that their names or folders say.

    Where some do, the others belong to none. Where none does, all are one split.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and is_data(p))
    if not files:
        raise DataError(f"{folder} has no data file ({', '.join(SUFFIXES)}); name another folder")
    by_split: dict[str, list[Path]] = {}
    for path in files:
        if name := _split_of(path.relative_to(folder)):
            by_split.setdefault(name, []).append(path)
    by_split = by_split or {TRAIN: files}
    for name, paths in by_split.items():
        if len({_suffix(path) for path in paths}) > 1:
            listed = ", ".join(path.name for path in paths[:3])
            raise DataError(
                f"{folder}: {name} is there in files of several kinds ({listed}); name one"
            )
    return by_split


def _suffix(path: Path) -> str:
    return max((s for s in SUFFIXES if path.name.endswith(s)), key=len)


def _split_of(path: Path) -> str | None:
    """The split that a file's name says, or the nearest folder's.

    >>> _split_of(Path("data/train_prefs-00000-of-00001.parquet"))
    'train_prefs'
    """
    stem = path.name.removesuffix(_suffix(path))
    for name in (_SHARD.sub("", stem), *reversed(path.parent.parts)):
        for word in re.split(r"[-. ]+", name):
            if _SPLIT.search(word.lower()):
                return word
    return None


def _of_config(
    folder: Path, configs: list[dict[str, Any]], config: str | None
) -> dict[str, list[Path]]:
    """The files of one configuration of a folder's card, by split."""
    names = [str(each.get("config_name", "default")) for each in configs]
    default = next((n for n, each in zip(names, configs, strict=True) if each.get("default")), None)
    wanted = config or default or (names[0] if len(names) == 1 else None)
    if wanted not in names:
        raise DataError(
            f"{folder} has no {wanted or 'default'}; choose --config {', '.join(names)}"
        )
    by_split: dict[str, list[Path]] = {}
    for split, pattern in _patterns(configs[names.index(wanted)].get("data_files")):
        # A stranger's card names files of its own folder, and no others.
        if not isinstance(pattern, str) or not pattern or {"/", ".."} & {*Path(pattern).parts}:
            raise DataError(f"{folder}/README.md: {pattern!r} is no file of this folder; mend it")
        by_split.setdefault(split, []).extend(folder.glob(pattern))
    listed = {split: sorted(set(paths)) for split, paths in by_split.items() if paths}
    if not listed:
        raise DataError(f"{folder}: the files of {wanted} are not there")
    return listed


def _text(card: Path) -> str:
    return card.read_text("utf-8", "replace") if card.is_file() else ""


def _configs(text: str, where: str) -> list[dict[str, Any]]:
    """The configurations that a card declares."""
    head = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    if head is None:
        return []
    try:
        values = parse_yaml(head[1]) or {}
        configs = values.get("configs", [])
        return [dict(each) for each in configs]
    except OutsideError as error:
        raise DataError(f"the YAML at the top of {where} is broken ({error}); mend it") from None
    except (AttributeError, TypeError, ValueError):
        raise DataError(f"the YAML at the top of {where} is broken; mend it") from None


def _patterns(files: Any) -> Iterator[tuple[str, Any]]:
    """(split, pattern) in each of the forms that a card may use; what is no pattern, too."""
    for each in files if isinstance(files, list) else [files] if files else []:
        if not isinstance(each, dict):
            yield TRAIN, each
            continue
        path = each.get("path", [])
        for pattern in path if isinstance(path, list) else [path]:
            yield str(each.get("split", TRAIN)), pattern


def _joined(files: Iterable[Path], notes: list[str]) -> Batches:
    """The files of one split, joined by the names of their columns; an odd one is noted."""
    first: tuple[Path, set[str]] | None = None
    for path in files:
        batches = read_file(path)
        batch = next(batches, [])
        columns = {name for record in batch for name in record}
        if first is not None and (odd := columns ^ first[1]) and batch:
            words = [
                f"{word} {', '.join(sorted(names))}"
                for word, names in (("more", odd & columns), ("lacks", odd - columns))
                if names
            ]
            notes.append(f"{path.name} has other columns than {first[0].name}: {'; '.join(words)}")
        first = first or (path, columns)
        yield from itertools.chain([batch] if batch else [], batches)


def _read_hub(dataset: Dataset) -> Batches:
    """One split of a dataset on the Hub."""
    yield from _rows(_hub(dataset, lambda: _load(dataset)))


def _load(dataset: Dataset) -> Any:
    import datasets

    datasets.utils.logging.disable_progress_bar()
    where = {"data_dir": dataset.subset} if dataset.subset or not dataset.config else {}
    named = {"name": dataset.config} if dataset.config else {}
    pinned = {"revision": dataset.revision}
    split = dataset.split or TRAIN
    try:
        return datasets.load_dataset(dataset.place, split=split, **named, **where, **pinned)
    except ValueError as error:
        if dataset.split is not None or "nknown split" not in str(error):
            raise
        only = _choose(dataset, _hub_splits(dataset))
        return datasets.load_dataset(dataset.place, split=only, **named, **where, **pinned)


def _hub_splits(dataset: Dataset) -> list[str]:
    import datasets

    def names() -> list[str]:
        more = {"data_dir": dataset.subset} if dataset.subset else {}
        listed = datasets.get_dataset_split_names(
            dataset.place, dataset.config, revision=dataset.revision, **more
        )
        return list(map(str, listed))

    return list(_hub(dataset, names))


def _hub(dataset: Dataset, ask: Callable[[], Any]) -> Any:
    """What the Hub answers.

    Raises:
        DataError: it has no such dataset, configuration or split.
        HubError: it refuses.
    """
    import datasets

    repo = hub_client.check_repo(dataset.place, or_path=True)
    with hub_client.one_line("read", repo):
        hub_client.connect()
        try:
            return ask()
        except ValueError as error:  # how datasets says that it has no such configuration or split
            raise DataError(
                f"dataset {repo}: {first_line(error)}; check --split, --config and --revision "
                "(of a recipe: data.subset, split and revision)"
            ) from None
        except datasets.exceptions.DatasetNotFoundError:
            raise DataError(
                f"dataset {repo}: there is none of that name"
                + (f" and revision {dataset.revision}" if dataset.revision else "")
                + ", or it is private; check both, or run `hf auth login`"
            ) from None
        except FileNotFoundError:
            raise DataError(
                f"dataset {repo}: no data file of it can be had; look at its page, and check "
                "HF_ENDPOINT"
            ) from None
        except ConnectionError:
            raise DataError(
                f"dataset {repo}: the Hub cannot be reached; check the network, or name a local "
                "folder"
            ) from None
