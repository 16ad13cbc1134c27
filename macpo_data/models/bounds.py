"""Bounds on what a chat template may take: processor time, memory, and the length of its text.

Templates come with models and recipes from anywhere. jinja's sandbox keeps them from files and
code; it does not keep them from running for ever, or from filling the memory.
"""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SECONDS = 2.0  # of processor time, whatever else the machine does
CHARACTERS_PER_SECOND = 1_000_000  # beside them, for long conversations and books
MEMORY = 1 << 30  # bytes beyond what the process has
BYTES_PER_CHARACTER = 16  # beside them: four of a character, and some copies
# What a template adds to messages: a system prompt of its own, marks, a repeated turn.
ADDED = 100_000
GROWTH = 20


class OutOfBounds(BaseException):
    """More than is allowed. No handler inside a template's engine takes it for its own."""


@contextmanager
def bounded(characters: int) -> Iterator[None]:
    """Bound what is done inside, in relation to the characters that it reads.

    Only the main thread can be interrupted, so elsewhere nothing is bounded. Rendering happens in
    the main thread of its process: a worker's, a trainer's, or that of `check`.

    Raises:
        OutOfBounds: its processor time is used up.
        MemoryError: it wants more memory than it may have.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seconds = SECONDS + characters / CHARACTERS_PER_SECOND
    armed = True

    def stop(*_: Any) -> None:
        if armed:  # a signal may still be under way when all is done
            raise OutOfBounds(f"it takes more than {seconds:.2g} seconds of processor time")

    before = signal.signal(signal.SIGPROF, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        _limit_memory(MEMORY + BYTES_PER_CHARACTER * characters, soft, hard)
        signal.setitimer(signal.ITIMER_PROF, seconds, 1.0)
        yield
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before or signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def longest(characters: int) -> int:
    """So many characters a template may make of those that it reads."""
    return ADDED + GROWTH * characters


def _limit_memory(more: int, soft: int, hard: int) -> None:
    """Lower the limit of this process's memory to what it has and so many bytes more."""
    try:
        statm = os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:  # a system that does not say how much it has
        return
    try:
        size = int(os.read(statm, 64).split()[0]) * resource.getpagesize() + more
    finally:
        os.close(statm)
    if soft == resource.RLIM_INFINITY or size < soft:
        resource.setrlimit(resource.RLIMIT_AS, (size, hard))
