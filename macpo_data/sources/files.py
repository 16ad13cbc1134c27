"""Whether a path is a file here, and hashes that pin what a path holds."""

from __future__ import annotations

import hashlib
from pathlib import Path

from macpo_data.errors import DataError
from macpo_data.models.base import unreachable
from macpo_data.outside import open_bytes
from macpo_data.sources import macpo_release
from macpo_data.sources.ingest.files import SUFFIXES


def is_local(path: str) -> bool:
    """Whether a path of the recipe is a file here, and not a dataset on the Hub."""
    looks_local = path.startswith((".", "/", "~")) or path.endswith(SUFFIXES)
    return looks_local or Path(path).exists()


def is_plain_file(place: str) -> bool:
    """Whether a dataset is a file here, which has no configurations, revisions or splits."""
    return is_local(place) and not Path(place).expanduser().is_dir()


def resolve(path: str, revision: str) -> str:
    """Pin a path: the commit that a Hub dataset's revision names now, or a file's sha256.

    A folder of MACPO's release is pinned like a file.

    Raises:
        DataError: it is not there, or the network is not.
    """
    if is_local(path):
        return f"sha256:{_sha256(path)}"
    from macpo_data.hub_client import connect

    try:
        return str(connect().dataset_info(path, revision=revision).sha)
    except Exception as error:  # every way of not reaching the Hub has its own class
        raise DataError(unreachable("dataset", path, error)) from None


def _sha256(path: str) -> str:
    file = Path(path).expanduser()
    if macpo_release.is_release(file):
        return macpo_release.sha256(file)
    if file.is_dir():
        raise DataError(f"{path} is a folder; name its files, such as {path.rstrip('/')}/x.parquet")
    try:
        with open_bytes(file) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        raise DataError(f"no file {path}; check its path, which starts at this folder") from None
    except (OSError, ValueError) as error:  # a name that can be none
        why = getattr(error, "strerror", error)
        raise DataError(f"cannot read {path}: {why}; check the file") from None
