"""Live progress of a run's processes, written as files and shown by `macpo status --watch`."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macpo_data.errors import Interrupted, plain
from macpo_data.models.worker import Report
from macpo_data.plan import Step
from macpo_data.store.store import State, write_json

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from macpo_data.models.worker import Progress

NOTES = ".progress"  # folder inside a run
EVERY = 2.0  # seconds between two looks
OLD = 600.0  # seconds after which a note from another machine is taken for forgotten
STYLES = {"done": "green", "ready": "cyan", "waiting": "dim", "stale": "yellow"}
MARKS = {"done": "✓", "ready": "+", "waiting": "·", "stale": "!"}  # so that colour is not all
BAR = 24


def noted(progress: Progress, folder: Path) -> Progress:
    """The same progress, which others can read in a folder while it goes on."""

    @contextmanager
    def both(title: str) -> Iterator[Report]:
        path = folder / f"{socket.gethostname()}-{os.getpid()}.json"
        begun, last, lock = time.time(), 0.0, threading.Lock()

        def note(done: int, total: int, text: str) -> None:
            nonlocal last
            with lock:  # bases are pretrained side by side
                if time.monotonic() - last >= 1:
                    last = time.monotonic()
                    at = {"host": socket.gethostname(), "pid": os.getpid(), "begun": begun}
                    write_json(path, {**at, "what": title, "done": done, "of": total, "note": text})

        with progress(title) as report:

            def tell(done: int, total: int, text: str) -> None:
                report(done, total, text)
                note(done, total, text)

            note(0, 0, "")
            try:
                yield tell
            finally:
                path.unlink(missing_ok=True)

    return both


def making(folder: Path) -> list[dict[str, Any]]:
    """The notes of processes that are alive."""
    notes = []
    for path in sorted(folder.glob("*.json")):
        try:
            note = json.loads(path.read_text("utf-8"))
            seen = path.stat().st_mtime
        except (OSError, ValueError):  # it was just taken away
            continue
        here = note["host"] == socket.gethostname()
        if _alive(note["pid"]) if here else time.time() - seen < OLD:
            notes.append(note)
    return notes


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def view(
    title: str, states: dict[Step, State], notes: Sequence[dict[str, Any]], after: str
) -> RenderableType:
    """Steps as a table, a line per round and learner; below it what is being made."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(plain(title)), title_justify="left", box=None, pad_edge=False)
    kinds = list(dict.fromkeys(step.what for step in states))
    for column in ("round", "learner", *kinds):
        table.add_column(column, no_wrap=True)
    lines: dict[tuple[int, str], dict[str, State]] = {}
    for step, state in states.items():
        lines.setdefault((step.round, step.learner), {})[step.what] = state
    for (round_, learner), cells in lines.items():
        texts = [
            Text(f"{MARKS[s]} {s}", STYLES[s]) if (s := cells.get(kind)) else "" for kind in kinds
        ]
        table.add_row(str(round_), learner, *texts)
    done = sum(state == "done" for state in states.values())
    below = [_line(note) for note in notes] or [f"nothing is being made; next: {after}"]
    return Group(table, Text(f"\n{done} of {len(states)} steps done"), *map(Text, below))


def _line(note: dict[str, Any]) -> str:
    """One note: a bar, counts, and the time left where it is known."""
    done, of, spent = note["done"], note["of"], time.time() - note["begun"]
    what = plain(note["what"])
    if not of:
        return f"{what}: {spent:.0f} s"
    bar = "█" * (BAR * done // of)
    left = f", {spent / done * (of - done):.0f} s left" if done else ""
    return plain(f"{what}  {bar:░<{BAR}} {done}/{of} {note['note']}{left}")


def watch(look: Callable[[], RenderableType], console: Console | None = None) -> None:
    """Show what `look` sees until Ctrl-C; once where there is no terminal."""
    from rich.console import Console
    from rich.live import Live

    console = console or Console()
    if not console.is_terminal:
        return console.print(look())
    try:
        with Live(look(), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(EVERY)
                live.update(look(), refresh=True)
    except (Interrupted, KeyboardInterrupt):
        return
