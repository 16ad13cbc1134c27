"""Reads any dataset as a frame: a folder with a card, data files, or a dataset on the Hub.

Local folders are read without the cache of `datasets`, which may serve rows that are no longer
there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from macpo_data import hub_client
from macpo_data.errors import DataError, first_line
from macpo_data.sources.files import LOCAL_SUFFIXES, is_local, read_file


def read_table(
    place: str, config: str | None = None, revision: str | None = None, split: str | None = "train"
) -> pl.DataFrame:
    """Read one configuration of a dataset.

    Args:
        place: a folder, a parquet or JSONL file, or a dataset on the Hub.
        config: which; by default the one that its card names as default.
        revision: tag, branch or commit on the Hub.
        split: of the configuration; None takes all.

    Raises:
        DataError: it is not there, or has no such configuration or split.
        HubError: the Hub refuses.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        return _read_folder(path, config, split)
    if is_local(place):
        return read_file(place)
    return _read_hub(hub_client.check_repo(place), config, revision, split)


def default_config(card: Path | bytes) -> str | None:
    """The configuration that a card names as default."""
    text = card.decode("utf-8", "replace") if isinstance(card, bytes) else _text(card)
    configs = _configs(text, "the card")
    named = [str(each.get("config_name")) for each in configs if each.get("default")]
    return named[0] if named else None


def _read_folder(folder: Path, config: str | None, split: str | None) -> pl.DataFrame:
    configs = _configs(_text(folder / "README.md"), f"{folder}/README.md")
    files = _of_config(folder, configs, config, split) if configs else _of_split(folder, split)
    if not configs and (config is not None or not files):
        raise DataError(f"{folder} has no configurations in a README.md; name its file instead")
    return _read_files(files)


def _of_split(folder: Path, split: str | None) -> list[Path]:
    """The files of a folder without a card whose names have the split in them; else, all."""
    every = sorted(p for p in folder.rglob("*") if p.name.endswith(LOCAL_SUFFIXES))
    every = [p for p in every if p.name not in ("manifest.json", "dataset_info.json")]
    word = re.compile(rf"(?<![a-z]){re.escape(split or '')}(?![a-z])")
    files = [p for p in every if split and word.search(p.name)]
    if not files and split not in (None, "train"):
        raise DataError(f"{folder} has no file for the split {split}; name its file instead")
    return files or every


def _of_config(
    folder: Path, configs: list[dict[str, Any]], config: str | None, split: str | None
) -> list[Path]:
    """The files of one configuration of a folder's card."""
    names = [str(each.get("config_name", "default")) for each in configs]
    default = next((n for n, each in zip(names, configs, strict=True) if each.get("default")), None)
    wanted = config or default or (names[0] if len(names) == 1 else None)
    if wanted not in names:
        raise DataError(
            f"{folder} has no {wanted or 'default'}; choose --config {', '.join(names)}"
        )
    patterns = _patterns(configs[names.index(wanted)].get("data_files"), split)
    for pattern in patterns:
        # A stranger's card names files of its own folder, and no others.
        if not isinstance(pattern, str) or not pattern or {"/", ".."} & {*Path(pattern).parts}:
            raise DataError(f"{folder}/README.md: {pattern!r} is no file of this folder; mend it")
    files = sorted({p for pattern in patterns for p in folder.glob(pattern)})
    if not files:
        raise DataError(f"{folder}: the files of {wanted}, split {split or 'any'}, are not there")
    return files


def _text(card: Path) -> str:
    return card.read_text("utf-8", "replace") if card.is_file() else ""


def _configs(text: str, where: str) -> list[dict[str, Any]]:
    """The configurations that a card declares."""
    head = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    if head is None:
        return []
    try:
        values = yaml.safe_load(head[1]) or {}
        configs = values.get("configs", [])
        return [dict(each) for each in configs]
    except (yaml.YAMLError, AttributeError, TypeError, ValueError, RecursionError):
        raise DataError(f"the YAML at the top of {where} is broken; mend it") from None


def _patterns(files: Any, split: str | None) -> list[Any]:
    """The patterns of a split, in each of the forms that a card may use; what is none, too."""
    patterns: list[Any] = []
    for each in files if isinstance(files, list) else [files] if files else []:
        if not isinstance(each, dict):
            patterns.append(each)
        elif split in (None, each.get("split")):
            path = each.get("path", [])
            patterns += path if isinstance(path, list) else [path]
    return patterns


def _read_files(files: list[Path]) -> pl.DataFrame:
    frames = [read_file(str(path)) for path in files]
    try:
        return pl.concat(frames, how="vertical_relaxed")
    except pl.exceptions.PolarsError as error:
        why = first_line(error)
        raise DataError(f"{files[0].parent}: its files do not fit together: {why}") from None


def _read_hub(
    repo: str, config: str | None, revision: str | None, split: str | None
) -> pl.DataFrame:
    import datasets

    datasets.utils.logging.disable_progress_bar()
    with hub_client.one_line("read", repo):
        hub_client.connect()
        try:
            read = datasets.load_dataset(repo, config, split=split, revision=revision)
        except ValueError as error:  # how datasets says that it has no such configuration or split
            why = first_line(error)
            raise DataError(f"dataset {repo}: {why}; check --config and --revision") from None
        except datasets.exceptions.DatasetNotFoundError:
            raise DataError(
                f"dataset {repo}: there is none of that name"
                + (f" and revision {revision}" if revision else "")
                + ", or it is private; check both, or run `hf auth login`"
            ) from None
        except ConnectionError:
            raise DataError(f"dataset {repo}: the Hub does not answer; check the network") from None
    parts = [read] if split else list(read.values())
    frames = [pl.DataFrame(part.to_polars()) for part in parts]
    return pl.concat(frames, how="diagonal_relaxed")
