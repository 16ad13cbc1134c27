"""Progress bars of long work, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from macpo_data.errors import plain
from macpo_data.models.worker import Report

PLAIN_SECONDS = 10  # between two lines where there is no terminal


@contextmanager
def progress(title: str, leave: bool = True) -> Iterator[Report]:
    """A bar with counts, rate and time left; plain lines where there is no terminal.

    Args:
        title: what is being done.
        leave: a line stays that says how long it took.
    """
    console, started = Console(stderr=True), time.monotonic()
    if console.is_terminal:
        with _bar(console, title, started) as report:
            yield report
    else:
        yield _lines(title, started)
    if leave:
        print(f"{title}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)


@contextmanager
def _bar(console: Console, title: str, started: float) -> Iterator[Report]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(plain(title), total=None, note="")

        def report(done: int, total: int, note: str) -> None:
            rate = done / max(time.monotonic() - started, 1e-9)
            bars.update(task, completed=done, total=total, note=f"{note} {rate:.1f}/s")

        yield report


def _lines(title: str, started: float) -> Report:
    last = started  # when a line was printed

    def report(done: int, total: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if done and now - last > PLAIN_SECONDS:
            last = now
            left = (now - started) / done * (total - done)
            rate = done / (now - started)
            line = f"{title}: {done}/{total} {note}, {rate:.1f}/s, {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)

    return report
