"""Prints preference pairs: those of a round, or the differences of two versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from macpo_data.errors import DataError, did_you_mean, first_line
from macpo_run.terminal.text import make_table, plain

if TYPE_CHECKING:
    from macpo_data.report.compare import Comparison


def matching(pairs: pl.DataFrame, where: str | None, sort: str | None) -> pl.DataFrame:
    """The pairs that a person asks for, in the order that is asked for.

    Args:
        pairs: PAIRS.
        where: a condition in SQL over the columns; chosen_ppl is short for chosen_perplexity.
        sort: an expression in SQL; one that begins with - sorts the other way round.

    Raises:
        DataError: an expression cannot be understood.
    """
    short = {f"{s}_ppl": pl.col(f"{s}_perplexity") for s in ("chosen", "rejected")}
    chars = {f"{s}_chars": pl.col(s).str.len_chars() for s in ("chosen", "rejected")}
    frame = pairs.with_columns(**short, **chars)
    for flag, text, apply in (("--where", where, _filtered), ("--sort", sort, _sorted)):
        if text is None:
            continue
        try:
            frame = apply(frame, text)
        except pl.exceptions.PolarsError as error:
            first = first_line(error).split("; valid columns")[0]
            raise DataError(
                f"{flag} {text!r}: {first}{_meant(text, frame)}; columns are "
                f"{', '.join(sorted(frame.columns))}"
            ) from None
    return frame.drop(*short, *chars)


def _meant(text: str, frame: pl.DataFrame) -> str:
    """The column that was likely meant by one that is not there."""
    try:
        names = pl.sql_expr(text).meta.root_names()
    except pl.exceptions.PolarsError:
        return ""
    unknown = [name for name in names if name not in frame.columns]
    return did_you_mean(unknown[0], frame.columns) if unknown else ""


def _filtered(frame: pl.DataFrame, condition: str) -> pl.DataFrame:
    return frame.filter(pl.sql_expr(condition))


def _sorted(frame: pl.DataFrame, order: str) -> pl.DataFrame:
    # polars would read a direction, and then forget it.
    what, _, way = order.strip().rpartition(" ")
    if way.lower() not in ("asc", "desc"):
        what, way = order, ""
    by, down = pl.sql_expr(what), way.lower() == "desc"
    return frame.sort(by, descending=down, nulls_last=True, maintain_order=True)


def print_pairs(
    pairs: pl.DataFrame,
    manifest: dict[str, Any] | None,
    count: int,
    *,
    of: int | None = None,
    draw: bool = False,
    spread: bool = True,
) -> None:
    """Some pairs of a dataset: drawn at random, evenly spread over it, or from its top.

    Args:
        pairs: from which they are taken.
        manifest: of the dataset.
        count: how many to print.
        of: how many pairs the dataset has, where `pairs` are those that match a condition.
        draw: at random.
        spread: evenly.
    """
    console = Console()
    facts = manifest or {}
    total = len(pairs) if of is None else of
    heading = f"{total:,} {'pair' if total == 1 else 'pairs'}"
    heading += f" of round {facts.get('round')} for {facts.get('learner')}"
    if of is not None:
        heading = f"{len(pairs):,} of {heading} {'matches' if len(pairs) == 1 else 'match'}"
    console.print(plain(heading))
    if draw:
        pairs = pairs.sample(min(count, len(pairs)))
    step = max(1, len(pairs) // count) if spread else 1
    for at in range(0, len(pairs), step)[:count]:
        row = pairs.row(at, named=True)
        body = Text()
        for message in row["prompt"]:
            body.append(f"{message['role']}: ", "bold").append_text(plain(message["content"]))
            body.append("\n")
        for side, style in (("chosen", "bold green"), ("rejected", "bold red")):
            if row[side] is None:  # a dataset for fine-tuning has none
                continue
            body.append(f"{side} ", style).append(f"({_origin(row, side)})\n", "dim")
            body.append_text(plain(row[side])).append("\n")
        console.print(Panel(body, title=row["prompt_id"][:12], title_align="left"))


def _origin(row: dict[str, Any], side: str) -> str:
    perplexity = row[f"{side}_perplexity"]
    score = "" if perplexity is None else f", perplexity {perplexity:.2f}"
    return f"{row[f'{side}_agent']}{score}"


def print_comparison(comparison: Comparison, count: int) -> None:
    """Two versions of a round: recipe, prompts, distributions, and some that changed."""
    console = Console()
    one, other = comparison.names
    console.print(plain(f"A {one}\nB {other}\n"))
    if comparison.recipe is None:
        console.print("recipe: not known of both")
    elif not comparison.recipe:
        console.print("recipe: the same")
    for path, (before, after) in (comparison.recipe or {}).items():
        console.print(plain(f"recipe: {path}: {before} -> {after}"))
    console.print(plain("\n".join(f"{n:>9,} {what}" for what, n in comparison.counts.items())))
    table = make_table("median (5%, 95%)", "A", "B")
    for what, pair in comparison.quantiles.items():
        table.add_row(
            what, *("" if q is None else f"{q[1]:.2f} ({q[0]:.2f}, {q[2]:.2f})" for q in pair)
        )
    console.print(table)
    for row in comparison.changed.head(count).iter_rows(named=True):
        body = Text()
        body.append_text(plain(row["prompt"][-1]["content"])).append("\n")
        body.append("A ", "bold yellow").append_text(plain(row["chosen_a"])).append("\n")
        body.append("B ", "bold cyan").append_text(plain(row["chosen_b"]))
        console.print(Panel(body, title=row["prompt_id"][:12], title_align="left"))
