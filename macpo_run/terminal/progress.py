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
)

from macpo_data.errors import plain
from macpo_data.models.worker import Report
from macpo_run.terminal.text import duration

PLAIN_SECONDS = 10  # between two lines where there is no terminal
SURE_SECONDS = 3  # before which a rate tells nothing of the time left


@contextmanager
def progress(title: str, leave: bool = True) -> Iterator[Report]:
    """A bar with counts, rate and time left; plain lines where there is no terminal.

    Args:
        title: what is being done.
        leave: a line stays that says how long it took.
    """
    console, started = Console(stderr=True), time.monotonic()
    if console.is_terminal:
        with _bar(console, title) as report:
            yield report
    else:
        yield _lines(title, started)
    if leave:
        print(f"{title}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)


@contextmanager
def _bar(console: Console, title: str) -> Iterator[Report]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("elapsed{task.fields[left]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task, pace = bars.add_task(plain(title), total=None, note="", left=""), _Pace()

        def report(done: int, total: int, note: str) -> None:
            rate = pace(done)
            words = note if rate is None else f"{note} {rate:.1f}/s"
            left = "" if rate is None else f", {duration((total - done) / rate)} left"
            bars.update(task, completed=done, total=total, note=words, left=left)

        yield report


def _lines(title: str, started: float) -> Report:
    last, pace = started, _Pace()  # when a line was printed

    def report(done: int, total: int, note: str) -> None:
        nonlocal last
        now, rate = time.monotonic(), pace(done)
        if done and now - last > PLAIN_SECONDS:
            last = now
            line = f"{title}: {done}/{total} {note}"
            if rate is not None:
                line += f", {rate:.1f}/s, {duration((total - done) / rate)} left"
            print(line, file=sys.stderr, flush=True)

    return report


class _Pace:
    """How much is done in a second, counted from the first report.

    Before it models are loaded, and what is gone on with has much done already.
    """

    def __init__(self) -> None:
        """Nothing was reported yet."""
        self.first: tuple[int, float] | None = None

    def __call__(self, done: int) -> float | None:
        """The rate, now that so much is done; None as long as little tells it."""
        now = time.monotonic()
        if self.first is None:
            self.first = done, now
        before, began = self.first
        is_known = done > before and now - began >= SURE_SECONDS
        return (done - before) / (now - began) if is_known else None
