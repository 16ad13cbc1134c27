"""Locks of a run: one for each result, and one of the whole run, which `macpo clean` waits for.

A lock ends with the process that holds it, however that ends. On a read-only disk there is none:
nothing can be made there, only read.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

FOLDER = ".locks"  # inside a run
RUN = "run.lock"  # shared by whoever makes results, whole for whoever removes some
# How the system says that nothing can be written there.
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
Say = Callable[[str], None]


@contextmanager
def of_result(root: Path, name: str, say: Say) -> Iterator[None]:
    """Keep other processes off one result. Waits for them, and says so."""
    lock = FileLock(root / FOLDER / f"{name.replace('/', '-')}.lock")
    with unless_read_only(root):
        (root / FOLDER).mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0.2)
        except Timeout:
            say(f"waiting for another macpo process that is making {name}")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def of_run(root: Path, say: Say, *, alone: bool) -> Iterator[None]:
    """Work in a run beside other processes, or alone. Waits for them, and says so."""
    with ExitStack() as stack:
        with unless_read_only(root):
            (root / FOLDER).mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((root / FOLDER / RUN).open("ab"))
            how = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
            try:
                fcntl.flock(file, how | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"waiting for another macpo process, at work in {root}")
                fcntl.flock(file, how)
        yield


@contextmanager
def unless_read_only(root: Path) -> Iterator[None]:
    """Go on without what cannot be done because nothing can be written into the run."""
    try:
        yield
    except OSError as error:
        if not is_read_only(error, root):
            raise


def is_read_only(error: OSError, root: Path) -> bool:
    """Whether an error says no more than that nothing can be written into the run."""
    return error.errno in READ_ONLY and not os.access(root, os.W_OK)


@contextmanager
def of_folder(folder: Path, say: Say) -> Iterator[None]:
    """Keep other processes out of a folder that is no run's; nothing of the lock is left in it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another macpo process that writes into {folder}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOTSUP):
                raise  # some network disks lock no folders
        yield
    finally:
        os.close(handle)


def is_at_work(root: Path) -> bool:
    """Whether any process makes results of a run just now."""
    path = root / FOLDER / RUN
    if not path.is_file():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
