"""Prints what steps take before they run: memory, disk, work, time, and what does not fit."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column
from rich.text import Text

from macpo_run.terminal.steps import STYLES
from macpo_run.terminal.text import duration, make_table, plain, short_number

if TYPE_CHECKING:
    from macpo_data.plan import Step
    from macpo_data.planning.outlook import Outlook
    from macpo_data.planning.work import Work

GIB = 1 << 30
WIDE = 92  # columns of a terminal in which FLOPs have room


def print_outlook(outlook: Outlook, title: str, redone: Collection[Step] = ()) -> None:
    """A row for each step with its state and what it takes, their sum, and what does not fit.

    Args:
        outlook: what the steps take.
        title: of the table.
        redone: steps whose results are there and will be moved aside.
    """
    console = Console()
    wide = console.width >= WIDE
    numbers = ["peak", "disk", "tokens", *(["FLOPs"] if wide else []), "time"]
    columns = [Column(name, no_wrap=True) for name in ("round", "step")]
    columns += [Column("learner", overflow="ellipsis", no_wrap=True, max_width=14)]
    columns += [Column("state", no_wrap=True)]
    right = [Column(name, justify="right", no_wrap=True) for name in numbers]
    table = make_table(*columns, *right, title=title)
    for row in outlook.rows:
        cells = [""] * len(numbers)
        if row.state != "done":
            over = any(not fit.fits for fit in row.fits)
            peak = "" if row.peak is None else size(row.peak) + ("*" if over else "")
            cells = [peak, size(row.disk), *_work_cells(row.work, wide)]
        state = Text("redo" if row.step in redone else row.state, STYLES[row.state])
        table.add_row(str(row.step.round), row.step.what, plain(row.step.learner), state, *cells)
    whole = [size(outlook.peak), size(outlook.disk), *_work_cells(outlook.work, wide)]
    table.add_row("all", "", "", "", *whole, style="bold")
    console.print(table)
    for line in lines(outlook):
        print(line)


def lines(outlook: Outlook) -> list[str]:
    """What belongs below a plan's table: hardware, download, what does not fit, what is assumed."""
    count = outlook.on.count
    device = "card" if outlook.on.is_gpu else "machine"
    below = [f"on {outlook.on.in_words}; peak: of one {device}, estimated" + _others(count, device)]
    if outlook.download:
        total = sum(outlook.download.values())
        bases = ", ".join(f"{base} {size(each)}" for base, each in outlook.download.items())
        below.append(f"to download: {size(total)} ({bases})")
    if outlook.misfits:
        below.append("* does not fit as it is; the figures are with the first way that fits:")
        below += [f"  {fit}" for fit in outlook.misfits]
    if outlook.made_once:
        bases = ", ".join(outlook.made_once)
        below.append(f"made once on this machine, in minutes that are not counted: {bases}")
    return [*below, *outlook.notes, "time is that of the models' work; a step takes seconds more"]


def _others(count: int, device: str) -> str:
    return f"; there are {count} of them" if device == "card" and count > 1 else ""


def _work_cells(work: Work, wide: bool) -> list[str]:
    if not work.tokens:
        return [""] * (3 if wide else 2)
    flops = [f"{work.flops:.0e}".replace("e+", "e")] if wide else []
    return [short_number(work.tokens), *flops, time_of(work.seconds)]


def time_of(seconds: float | None) -> str:
    """What some work takes, or that nobody knows."""
    return "?" if seconds is None else duration(seconds)


def size(count: float) -> str:
    """Bytes in a few characters.

    >>> [size(n) for n in (0, 10, 5 << 20, 80 * GIB, 1500 * GIB)]
    ['0', '<1 MiB', '5 MiB', '80.0 GiB', '1,500 GiB']
    """
    if count >= 1000 * GIB:
        return f"{count / GIB:,.0f} GiB"
    if count >= GIB:
        return f"{count / GIB:.1f} GiB"
    mib = count / (1 << 20)
    return f"{mib:,.0f} MiB" if mib >= 1 else "<1 MiB" if count else "0"


def print_whole(whole: Outlook, todo: int, of_all: int) -> None:
    """The sum over a sweep's steps, and what does not fit in any of them.

    Args:
        whole: of one seed.
        todo: steps of it that are to be made.
        of_all: those of all seeds, which take as much each.
    """
    if not todo:
        return
    times, work = of_all / todo, whole.work
    seconds = None if work.seconds is None else work.seconds * times
    print(
        f"peak {size(whole.peak)}, disk {size(whole.disk * times)}, "
        f"{short_number(work.tokens * times)} tokens, {work.flops * times:.0e} FLOPs, "
        f"{time_of(seconds)}, without the evaluations"
    )
    for line in lines(whole):
        print(line)
