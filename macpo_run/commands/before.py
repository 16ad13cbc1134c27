"""What a command that makes steps looks at before the first of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import typer

from macpo_data.errors import plain
from macpo_run.terminal.lines import say_aside
from macpo_train import ranks

if TYPE_CHECKING:
    from macpo_data.plan import Step
    from macpo_run.preflight.finding import Checks, Health
    from macpo_run.rounds import Run


def needs_of(
    run: Run, steps: Collection[Step], redo: bool = False, evaluates: bool = False
) -> Checks:
    """What a run needs for some of its steps, as far as they are still to be made."""
    from macpo_run.preflight.needs import needs
    from macpo_run.preflight.voices import coming

    todo = coming(run.plan, run.states(), steps, redo)
    return needs(run.plan, run.store, todo, evaluates)


def stop_unless_ready(checks: Checks) -> None:
    """Look at everything that is needed; say all that is missing, a line each.

    Raises:
        typer.Exit: something is missing.
    """
    from macpo_run.preflight.needs import look

    if not checks or not ranks.is_first():  # of several processes, one looks
        return
    findings = look(checks)
    for finding in findings:
        if finding.status == "warning":
            say_aside(f"warning: {in_words(finding)}")
    problems = list(dict.fromkeys(in_words(f) for f in findings if f.status == "problem"))
    for problem in problems:
        say_aside(f"error: {problem}")
    if problems:
        raise typer.Exit(1)


def in_words(finding: Health) -> str:
    """A finding in one line, with what mends it."""
    begins = finding.detail.startswith(f"{finding.what} ")
    line = finding.detail if begins else f"{finding.what}: {finding.detail}"
    return plain(" ".join(f"{line}; {finding.mend}".rstrip("; ").split()))
