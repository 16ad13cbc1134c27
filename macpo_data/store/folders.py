"""A folder that appears whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from macpo_data.errors import StoreError


def check_new(path: Path) -> None:
    """Refuse a place where something is, before the work is done.

    Raises:
        StoreError: a file, a link or a folder that holds something is there.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise StoreError(f"{path} is there and no folder; choose another with --to")
    if path.is_dir() and any(path.iterdir()):
        raise StoreError(f"{path} is not empty; choose another folder with --to")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling to fill; it takes the name `path` when all went well.

    Raises:
        StoreError: something is there already.
    """
    check_new(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        for each in temporary.iterdir():
            with each.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
