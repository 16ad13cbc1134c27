"""Prints the summary at the end of `macpo run`, and the advice of `macpo status`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from macpo_run.terminal.text import interval, make_table, plain

if TYPE_CHECKING:
    from macpo_data.evaluation.advice import Advice
    from macpo_data.evaluation.headline import Example, Headline, ScoreTable
    from macpo_data.evaluation.verdict import Verdict

CLIP, LINES = 300, 8  # characters and lines of an answer
TURNS = 3  # of a prompt, the last ones


def print_headline(headline: Headline, examples: Sequence[Example], more: str) -> None:
    """The summary of a run: answers to read, and last, on one screen, verdict, scores, warnings.

    Args:
        headline: the facts.
        examples: answers to read.
        more: the command that shows all signs.
    """
    console = Console()
    if examples:
        _print_examples(console, examples)
        console.print()
    print_verdict(headline.verdict)
    console.print()
    if headline.table:
        _print_scores(console, headline.table)
    if headline.gap:
        console.print(plain(headline.gap))
    if headline.table or headline.gap:
        console.print()
    _print_signs(console, headline, more)


def _print_signs(console: Console, headline: Headline, more: str) -> None:
    """What is missing or wrong, what it advises, and how many signs there are besides."""
    unmeasured = [headline.unmeasured] if headline.unmeasured else []
    for line in [*unmeasured, *headline.warnings]:
        console.print(Text("! ", "yellow"), plain(line), sep="")
    if headline.advice:
        console.print(plain(f"Advice: {headline.advice}"))
    if rest := len(headline.signs) - len(headline.warnings):
        signs = "1 sign" if rest == 1 else f"{rest} signs"
        # One line, whatever the width: it is to be copied.
        console.print(plain(f"{signs} for the expert: {more}"), style="dim", soft_wrap=True)


def print_verdict(verdict: Verdict) -> None:
    """Whether the student got better: one sentence, and the numbers behind it."""
    console = Console()
    console.print(plain(verdict.title), style="bold")
    console.print(plain(verdict.text))


def _print_scores(console: Console, scores: ScoreTable) -> None:
    rounds = (Column(f"round {r}", justify="right", no_wrap=True) for r in scores.rounds)
    table = make_table(Column("score", overflow="fold"), *rounds)
    for n, row in enumerate(scores.rows):
        cells = ("" if mean is None else f"{mean:.2f}" for mean in row.means)
        table.add_row(plain(row.name), *cells, style=None if n else "bold")
    console.print(table)
    console.print(plain(f"Score: {scores.meaning}"))


def _print_examples(console: Console, examples: Sequence[Example]) -> None:
    """Prompts, each with the student's answers of its first and last round side by side."""
    prompts = "a held-out prompt" if len(examples) == 1 else f"{len(examples)} held-out prompts"
    console.print(plain(f"What the student writes to {prompts}, drawn by chance:"))
    for each in examples:
        turns = [
            plain(f"{turn['role']}: ").append_text(_clipped(turn["content"]))
            for turn in each.prompt[-TURNS:]
        ]
        if len(each.prompt) > TURNS:
            turns.insert(0, plain("..."))
        heads = (
            f"round {a.round}" + ("" if a.score is None else f", score {a.score:.2f}")
            for a in each.answers
        )
        columns = (Column(head, ratio=1, overflow="fold") for head in heads)
        table = Table(*columns, box=None, expand=True, padding=(0, 0, 0, 2))
        table.add_row(*(_clipped(a.text or "(nothing was written)") for a in each.answers))
        console.print()
        console.print(Text("\n").join(turns))
        console.print(table)


def _clipped(text: str) -> Text:
    """Text as data, of which the rest is on the report's page where it is very long."""
    shown = "\n".join(text[:CLIP].split("\n")[:LINES])
    return plain(text if shown == text else f"{shown.rstrip()} ...")


def print_advice(advice: Advice) -> None:
    """What is worth running next, and the numbers behind it."""
    numbers = Column("right, estimated", justify="right")
    table = make_table(Column("the probe, after round 0", no_wrap=True), numbers)
    for name, share in [*advice.accuracy.items(), ("the teachers together", advice.together)]:
        table.add_row(plain(name), f"{share:.3f}")
    table.add_row("their lead over the student", Text(interval(advice.lead._asdict())))
    if advice.some_right is not None:
        table.add_row("some teacher, where the student is wrong", f"{advice.some_right:.3f}")
    if advice.agreement is not None:
        table.add_row("two teachers alike", f"{advice.agreement:.3f}")
    console = Console()
    console.print(Text(f"Advice: {advice.next}. ", "bold"), plain(advice.text), sep="")
    console.print(table)
