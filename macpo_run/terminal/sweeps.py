"""A sweep: what it would make, and how its variants compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column

from macpo_run.terminal.text import make_table, plain

if TYPE_CHECKING:
    from macpo_run.sweep.standings import Standings
    from macpo_run.sweep.sweep import Outline


def print_sweep(outline: Outline) -> None:
    """Which steps a sweep has, how many of them are made once for several, and the time left."""
    numbers = ("steps", "not above", "to make")
    table = make_table("variant", *(Column(n, justify="right", no_wrap=True) for n in numbers))
    for name, *counts in outline.variants:
        table.add_row(plain(name), *map(str, counts))
    Console().print(table)
    steps = sum(own for _, own, _, _ in outline.variants)
    seeds = str(outline.seeds)[1:-1]
    print(f"{outline.root}: {len(outline.variants)} variants, seeds {seeds}")
    print(f"{steps} steps, of which {outline.distinct} are distinct: {outline.todo} to make")
    print(outline.left)


def print_standings(found: Standings) -> None:
    """The table of a sweep, and below it what it shows and what failed."""
    from macpo_run.sweep.standings import SHOWN, cells, known_rounds, notes

    columns = sum(any(getattr(r, name) for r in found.rows) for name in ("ahead", "recovered"))
    head, *rows = cells(found, known_rounds(found, SHOWN - (columns > 1)))
    numbers = (Column(name, justify="right", overflow="fold") for name in head[1:])
    table = make_table(Column(head[0], overflow="fold"), *numbers)
    for row in rows:
        table.add_row(*map(plain, row))
    console = Console()
    console.print(table)
    for note in notes(found):
        console.print(plain(note), soft_wrap=True)
