"""Prints a sweep: its plan, and the comparison of its variants."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column

from macpo_run.terminal.text import make_table, plain

WIDE = 110  # columns of a terminal in which there is room for three rounds

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


def print_standings(standings: Standings) -> None:
    """The table of a sweep, what it shows and what failed, and last its primary contrast."""
    from macpo_run.sweep.table import in_terminal, notes, primary

    console = Console()
    cells = in_terminal(standings, 3 if console.width >= WIDE else 2)
    name, *others = cells
    numbers = (Column(title, justify="right", no_wrap=True) for title in others)
    table = make_table(Column(name, overflow="fold", min_width=12), *numbers)
    for row in zip(*cells.values(), strict=True):
        table.add_row(*map(plain, row))
    console.print(table)
    sentence = primary(standings)
    for line in [*notes(standings), *([sentence] if sentence else [])]:
        console.print(plain(line), soft_wrap=True)
