"""Prints the findings of `macpo doctor` and `macpo check`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from macpo_run.terminal.text import make_table, plain

if TYPE_CHECKING:
    from macpo_data.forms.check import Reading
    from macpo_data.forms.row_findings import Finding
    from macpo_run.preflight.finding import Health

SIGNS = {"ok": "green", "warning": "yellow", "problem": "red"}
LEVELS = {"error": "bold red", "warning": "yellow", "note": "dim"}


def print_health(findings: Sequence[Health]) -> None:
    """A line for each thing that `macpo doctor` looked at, and below it what mends it."""
    console = Console()
    for finding in findings:
        line = Text(f"{finding.status:8}", SIGNS[finding.status])
        console.print(line, plain(f"{finding.what}: {finding.detail}"), soft_wrap=True)
        if finding.mend:
            console.print(plain(f"         -> {finding.mend}"), soft_wrap=True)


def print_check(title: str, findings: Sequence[Finding], readings: Sequence[Reading]) -> None:
    """What each trainer makes of a dataset, and what is wrong with its rows."""
    console = Console()
    trainers = make_table("trainer", "reads it", "how, or why not", title=title)
    for each in readings:
        mark = Text("yes", "green") if each.reads else Text("no", "red")
        trainers.add_row(each.trainer, mark, plain(each.how))
    console.print(trainers)
    rows = make_table("", "rows", "first", "what")
    for finding in findings:
        first = "" if finding.row is None else str(finding.row)
        level = Text(finding.level, LEVELS[finding.level])
        rows.add_row(level, f"{finding.count:,}", first, plain(finding.what))
    console.print(rows)
