"""Data files as frames, and hashes of their content that pin what a path holds."""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from pathlib import Path

import polars as pl

from macpo_data.errors import DataError, first_line
from macpo_data.models.base import unreachable

LOCAL_SUFFIXES = (".parquet", ".jsonl", ".json", ".jsonl.gz", ".json.gz")


def is_local(path: str) -> bool:
    """Whether a path of the recipe is a file here, and not a dataset on the Hub."""
    looks_local = path.startswith((".", "/", "~")) or path.endswith(LOCAL_SUFFIXES)
    return looks_local or Path(path).exists()


def resolve(path: str, revision: str) -> str:
    """Pin a path: the commit that a Hub dataset's revision names now, or a file's sha256.

    Raises:
        DataError: it is not there, or the network is not.
    """
    if is_local(path):
        return f"sha256:{hashlib.sha256(_read_bytes(path)).hexdigest()}"
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(path, revision=revision).sha)
    except Exception as error:  # every way of not reaching the Hub has its own class
        raise DataError(unreachable("dataset", path, error)) from None


def read_file(path: str) -> pl.DataFrame:
    """A parquet or JSONL file as it is.

    Raises:
        DataError: it cannot be read.
    """
    content = _read_bytes(path)
    try:
        if path.endswith(".gz"):
            content = gzip.decompress(content)
        if path.endswith(".parquet"):
            return pl.read_parquet(io.BytesIO(content))
        content = content.removeprefix(b"\xef\xbb\xbf")  # as Windows begins a text
        if content.lstrip()[:1] == b"[":
            return pl.read_json(io.BytesIO(content), infer_schema_length=None)
        return pl.read_ndjson(io.BytesIO(content), infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"cannot read {path}: {first_line(error)}; it is damaged, cut short or of another "
            f"kind than its name says ({', '.join(LOCAL_SUFFIXES)}): fetch it anew"
        ) from None


def read_hub(path: str, subset: str | None, split: str | None, revision: str) -> pl.DataFrame:
    """One split of a dataset on the Hub.

    Raises:
        DataError: it has no such subset or split, or cannot be reached.
    """
    import datasets

    try:
        read = datasets.load_dataset(path, data_dir=subset, split=split, revision=revision)
        frame = read.to_polars()
    except ValueError as error:  # how datasets says that it knows no such split or configuration
        raise DataError(
            f"dataset {path}: {first_line(error)}; check data.subset and the parts' split"
        ) from None
    except Exception as error:  # every way of not reaching the Hub has its own class
        raise DataError(unreachable("dataset", path, error)) from None
    assert isinstance(frame, pl.DataFrame)  # to_polars gives an iterator only when asked to
    return frame


def _read_bytes(path: str) -> bytes:
    file = Path(path).expanduser()
    if file.is_dir():
        raise DataError(f"{path} is a folder; name its files, such as {path.rstrip('/')}/x.parquet")
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise DataError(f"no file {path}; check data.path, which starts at this folder") from None
    except (OSError, ValueError) as error:  # a name that can be none
        why = getattr(error, "strerror", error)
        raise DataError(f"cannot read {path}: {why}; check the file") from None
