"""Live progress of a run's processes, written as files and shown by `macpo status --watch`."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from macpo_data.errors import Interrupted, plain
from macpo_data.models.worker import Report
from macpo_data.outside import parse_json, read_bytes
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


class Size(NamedTuple):
    """Of a terminal, in characters."""

    width: int
    height: int


class Note(BaseModel):
    """What a process says of its work."""

    model_config = ConfigDict(strict=True, frozen=True)

    host: str
    pid: Annotated[int, Field(ge=1, lt=2**31)]
    begun: FiniteFloat  # seconds since 1970
    what: str
    done: Annotated[int, Field(ge=0, le=10**12)]
    of: Annotated[int, Field(ge=0, le=10**12)]  # 0: it is not known of how many
    note: str


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
                    at |= {"what": title, "done": done, "of": total, "note": text}
                    with suppress(OSError):  # work goes on where nobody can follow it
                        write_json(path, at)

        with progress(title) as report:

            def tell(done: int, total: int, text: str) -> None:
                report(done, total, text)
                note(done, total, text)

            note(0, 0, "")
            try:
                yield tell
            finally:
                with suppress(OSError):
                    path.unlink(missing_ok=True)

    return both


def making(folder: Path) -> list[Note]:
    """The notes of processes that are alive."""
    notes = []
    for path in sorted(folder.glob("*.json")):
        try:
            note = Note.model_validate(parse_json(read_bytes(path)))
            seen = path.stat().st_mtime
        except (OSError, ValueError):  # it was just taken away, or is none
            continue
        here = note.host == socket.gethostname()
        if is_alive(note.pid, seen) if here else time.time() - seen < OLD:
            notes.append(note)
    return notes


def is_alive(pid: int, at: float) -> bool:
    """Whether the process that had a number then still has it; numbers are given away again.

    Args:
        pid: the number.
        at: when it had it, in seconds since 1970.
    """
    import psutil

    try:
        return bool(psutil.Process(pid).create_time() <= at + 1)  # clocks of files are coarse
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def view(
    title: str,
    states: dict[Step, State],
    notes: Sequence[Note],
    after: str,
    left: str = "",
    size: Size | None = None,
) -> RenderableType:
    """Steps as a table, a line per round and learner; below it what is being made.

    Args:
        title: of the table.
        states: of all steps.
        notes: of processes at work.
        after: the next command.
        left: the time left for all steps, in words.
        size: of the terminal. Where it is too narrow, marks stand for words; where it is too
            low, rounds that are finished make way, and then the last ones.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(plain(title)), title_justify="left", box=None, pad_edge=False)
    kinds = list(dict.fromkeys(step.what for step in states))
    narrow = size is not None and size.width < 9 + 14 + sum(max(len(k), 9) + 2 for k in kinds)
    heads = [kind.removeprefix("train ") for kind in kinds] if narrow else kinds
    for column in ("round", "learner", *heads):
        table.add_column(column, no_wrap=True)
    lines: _Lines = {}
    for step, state in states.items():
        lines.setdefault((step.round, step.learner), {})[step.what] = state
    foot = 6 + max(1, 2 * len(notes))
    shown = _that_fit(lines, None if size is None else size.height - foot)
    hidden = len(dict.fromkeys(round_ for round_, _ in lines)) - len({r for r, _ in shown})
    for (round_, learner), cells in shown.items():
        texts = [
            Text(MARKS[s] if narrow else f"{MARKS[s]} {s}", STYLES[s])
            if (s := cells.get(kind))
            else ""
            for kind in kinds
        ]
        table.add_row(str(round_), learner, *texts)
    done = sum(state == "done" for state in states.values())
    below = [_line(note) for note in notes] or [f"nothing is being made; next: {after}"]
    some = f"; {hidden} rounds are not shown" if hidden else ""
    some += "".join(f"; {MARKS[s]} {s}" for s in dict.fromkeys(states.values())) if narrow else ""
    whole = f", {left}" if left and done < len(states) else ""
    return Group(
        table, Text(f"\n{done} of {len(states)} steps done{whole}{some}"), *map(Text, below)
    )


_Lines = dict[tuple[int, str], dict[str, "State"]]


def _that_fit(lines: _Lines, room: int | None) -> _Lines:
    """The lines of a table for which there is room: finished rounds go first, then the last."""
    rounds = list(dict.fromkeys(round_ for round_, _ in lines))
    busy = [
        r for r in rounds if any(set(lines[k].values()) != {"done"} for k in lines if k[0] == r)
    ]
    kept = list(rounds)
    while room is not None and len(kept) > 1 and sum(k[0] in kept for k in lines) > room:
        finished = [r for r in kept if r not in busy]
        kept.remove(finished[0] if finished else kept[-1])
    return {key: cells for key, cells in lines.items() if key[0] in kept}


def _line(note: Note) -> str:
    """One note: a bar, counts, and the time left where it is known."""
    done, of, spent = min(note.done, note.of), note.of, time.time() - note.begun
    what = plain(note.what)
    if not of:
        return f"{what}: {spent:.0f} s elapsed"
    bar = "█" * (BAR * done // of)
    left = f", {spent / done * (of - done):.0f} s left" if done else ""
    return plain(f"{what}  {bar:░<{BAR}} {done}/{of} {note.note}{left}")


def watch(look: Callable[[Size | None], RenderableType], console: Console | None = None) -> None:
    """Show what `look` sees until Ctrl-C; once where there is no terminal.

    Args:
        look: gets the size that there is, None where nothing bounds it.
        console: where it is shown.
    """
    from rich.console import Console
    from rich.live import Live

    console = console or Console()
    if not console.is_terminal:
        return console.print(look(None))
    try:
        with Live(look(Size(*console.size)), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(EVERY)
                live.update(look(Size(*console.size)), refresh=True)
    except (Interrupted, KeyboardInterrupt):
        return
