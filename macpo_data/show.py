"""What a person sees in the terminal. Text from models is printed as text, never as markup."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import polars as pl
from rich.console import Console
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from macpo_data.errors import DataError, first_line
from macpo_data.errors import plain as without_controls
from macpo_data.evaluation.draws import described
from macpo_data.models.worker import Report
from macpo_data.plan import Policy, Step

if TYPE_CHECKING:
    from macpo_data.evaluation.advice import Advice
    from macpo_data.evaluation.headline import Example, Headline, ScoreTable
    from macpo_data.evaluation.results import Evaluation
    from macpo_data.evaluation.verdict import Verdict
    from macpo_data.forms.check import Finding, Reading
    from macpo_data.generation.cost import Ask
    from macpo_data.recipe import Recipe
    from macpo_data.report.compare import Comparison
    from macpo_run.doctor import Health
    from macpo_run.sweep.standings import Standings
    from macpo_run.sweep.sweep import Outline

STYLES = {"done": "green", "ready": "cyan", "waiting": "dim", "stale": "yellow"}
SIGNS = {"ok": "green", "warning": "yellow", "problem": "red"}
CLIP, LINES = 300, 8  # characters and lines of an answer on the last screen of a run
TURNS = 3  # of a prompt, the last ones
PLAIN_SECONDS = 10  # between two lines where there is no terminal


def plain(text: str) -> Text:
    """Text as data: no markup, and no control characters."""
    return Text(without_controls(text))


def print_health(findings: Sequence[Health]) -> None:
    """A line for each thing that `macpo doctor` looked at, and below it what mends it."""
    console = Console()
    for finding in findings:
        line = Text(f"{finding.status:8}", SIGNS[finding.status])
        console.print(line, plain(f"{finding.what}: {finding.found}"), soft_wrap=True)
        if finding.mend:
            console.print(plain(f"         -> {finding.mend}"), soft_wrap=True)


@contextmanager
def progress(title: str, leave: bool = True) -> Iterator[Report]:
    """A bar on stderr with counts, rate and time left; plain lines where there is no terminal.

    `leave`: a line stays that says how long it took.
    """
    console = Console(stderr=True)
    started = time.monotonic()
    said = started
    if not console.is_terminal:

        def lines(done: int, total: int, note: str) -> None:
            nonlocal said
            now = time.monotonic()
            if done and now - said > PLAIN_SECONDS:
                said = now
                left = (now - started) / done * (total - done)
                rate = done / (now - started)
                print(
                    f"{title}: {done}/{total} {note}, {rate:.1f}/s, {left:.0f} s left",
                    file=sys.stderr,
                    flush=True,
                )

        yield lines
        if leave:
            print(f"{title}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(without_controls(title), total=None, note="")

        def bar(done: int, total: int, note: str) -> None:
            rate = done / max(time.monotonic() - started, 1e-9)
            bars.update(task, completed=done, total=total, note=f"{note} {rate:.1f}/s")

        yield bar
    if leave:
        print(f"{title}: {time.monotonic() - started:.1f} s", file=sys.stderr)


def print_steps(rows: Sequence[tuple[Step, str, str, list[str]]], title: str) -> None:
    """A table of steps with their states, paths, and what they wait for."""
    names = ("round", "step", "learner", "state")
    last = Column("result or what it waits for", overflow="fold")
    table = _table(*(Column(name, no_wrap=True) for name in names), last, title=title)
    for step, state, name, waiting in rows:
        more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
        where = waiting[0] + more if waiting else name
        table.add_row(
            str(step.round),
            step.what,
            step.learner,
            Text(state, STYLES[state]),
            plain(where),
        )
    Console().print(table)


def _table(*columns: Column | str, title: str | None = None) -> Table:
    head = None if title is None else plain(title)
    return Table(*columns, title=head, title_justify="left", box=None, pad_edge=False)


def print_costs(asked: Sequence[tuple[Step, list[Ask]]], recipe: Recipe, note: str) -> None:
    """Calls, tokens and money of gen steps, and their sum. What several ask is counted once."""
    endpoints = [agent.endpoint for agent in recipe.agents.values() if agent.endpoint]
    priced = any(endpoint.cost(1, 1) is not None for endpoint in endpoints)
    numbers = ["a prompt", "calls", "tokens in", "out", "at most"]
    numbers += ["money", "at most"] if priced else []
    columns = [Column(name, no_wrap=True) for name in ("what", "who")]
    columns += [Column(name, justify="right", no_wrap=True) for name in numbers]
    table = _table(*columns, title="what it asks for")
    sums, known, unpriced = [0.0] * 6, set(), set()
    for step, asks in asked:
        ceiling = ", ceiling" if step.is_ceiling else ""
        table.add_row(plain(f"round {step.round}, {step.learner}{ceiling}"), style="bold")
        for ask in asks:
            if (again := (step.round, ask.what, ask.agent)) in known and "write" in ask.what:
                continue
            known.add(again)
            endpoint, calls = recipe.agents[ask.agent].endpoint, ask.prompts * ask.calls
            money = [ask.money(endpoint, out) for out in (ask.tokens_out, ask.most_out)]
            if money[0] is None and endpoint is not None:
                unpriced.add(ask.agent)
            tokens = [calls * each for each in (ask.tokens_in, ask.tokens_out, ask.most_out)]
            sums = [a + (b or 0.0) for a, b in zip(sums, [calls, *tokens, *money], strict=True)]
            cells = [*map(_short_number, [calls, *tokens]), *map(_money, money if priced else ())]
            table.add_row(ask.what, plain(ask.agent), f"{ask.calls:g}", *cells)
        if judged := sum(ask.calls for ask in asks if ask.what.startswith("judge")):
            note += f"; the judge of round {step.round}: at most {judged:g} calls a prompt"
    whole = [*map(_short_number, sums[:4]), *map(_money, sums[4:] if priced else ())]
    table.add_row("all", "", "", *whole, style="bold")
    Console().print(table)
    if priced and unpriced:
        note += f"; the money is without {', '.join(sorted(unpriced))}, who has no prices"
    print(f"estimated: {note}")


def _short_number(value: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 10 * unit:
            return f"{value / unit:,.1f}{name}"
    return f"{value:,.0f}"


def _money(value: float | None) -> str:
    return "" if value is None else f"{value:,.2f}"


def pick(
    pairs: pl.DataFrame, where: str | None, sort: str | None, sample: bool, count: int
) -> pl.DataFrame:
    """The pairs that a person asks for.

    Args:
        pairs: PAIRS.
        where: a condition in SQL over the columns; chosen_ppl is short for chosen_perplexity.
        sort: an expression in SQL; one that begins with - sorts the other way round.
        sample: whether to draw them at random, in place of taking them from the top.
        count: how many.

    Raises:
        DataError: an expression cannot be understood.
    """
    short = {f"{s}_ppl": pl.col(f"{s}_perplexity") for s in ("chosen", "rejected")}
    chars = {f"{s}_chars": pl.col(s).str.len_chars() for s in ("chosen", "rejected")}
    frame = pairs.with_columns(**short, **chars)
    for flag, text in (("--where", where), ("--sort", sort)):
        if text is None:
            continue
        try:
            if flag == "--where":
                frame = frame.filter(pl.sql_expr(text))
            else:
                # polars would read a direction, and then forget it.
                what, _, way = text.strip().rpartition(" ")
                if way.lower() not in ("asc", "desc"):
                    what, way = text, ""
                by, down = pl.sql_expr(what), way.lower() == "desc"
                frame = frame.sort(by, descending=down, nulls_last=True, maintain_order=True)
        except pl.exceptions.PolarsError as error:
            first = first_line(error).split("; valid columns")[0]
            raise DataError(
                f"{flag} {text!r}: {first}; columns are {', '.join(sorted(frame.columns))}"
            ) from None
    if sample:
        frame = frame.sample(min(count, len(frame)))
    return frame.drop(*short, *chars)


def print_pairs(
    pairs: pl.DataFrame, manifest: dict[str, Any] | None, count: int, spread: bool = True
) -> None:
    """Some pairs of a dataset, evenly spread over it or from its top."""
    console = Console()
    facts = manifest or {}
    console.print(
        plain(f"{len(pairs)} pairs of round {facts.get('round')} for {facts.get('learner')}")
    )
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


MEASURES = {"gold": "gold", "reward": "reward", "win": "win", "win_lc": "LC win"}


def print_evaluation(found: Evaluation) -> None:
    """A row per policy, a column per measure, each with its 95 % interval."""
    kinds = ["measure", "against", "by"]
    columns = found.table.select(kinds).unique(maintain_order=True).rows()
    cut = ["cut"] if (found.table["truncated"] > 0).any() else []
    names = ("chars", *cut, *(MEASURES[measure] for measure, _, _ in columns))
    numbers = (Column(name, justify="right", overflow="fold") for name in names)
    shown = _table(Column("held-out", no_wrap=True), *numbers)
    who = ["agent", "behavior", "round"]
    for (agent, behavior, round_), own in found.table.group_by(who, maintain_order=True):
        cells = {tuple(row[k] for k in kinds): row for row in own.iter_rows(named=True)}
        first = own.row(0, named=True)
        shown.add_row(
            str(Policy(str(agent), behavior, round_)),
            f"{first['chars']:.0f}",
            *([f"{first['truncated']:.0%}"] if cut else []),
            *(Text(_interval(cells[c]) if c in cells else "") for c in columns),
        )
    console = Console()
    console.print(shown)
    console.print(plain(f"held-out: {described(found.sampling)}, mean over prompts [95 %]"))
    for measure, against, by in columns:
        controlled = ", as if both were equally long" if measure == "win_lc" else ""
        versus = f" against {against}" if against else ""
        console.print(plain(f"{MEASURES[measure]}: by {by}{versus}{controlled}"))
    for path in found.paths:
        print(path / "table.parquet")


def _interval(found: dict[str, Any]) -> str:
    """An estimate with its 95 % interval; that of a single row has none."""
    if found["low"] is None:
        return f"{found['mean']:.3f} [none]"
    low, high = (re.sub(r"^(-?)0\.", r"\1.", f"{found[k]:.2f}") for k in ("low", "high"))
    return f"{found['mean']:.3f} [{low},{high}]"


def print_agreement(manifest: dict[str, Any]) -> None:
    """How many verdicts each annotator gave, and how far they agree."""
    told = manifest["judge"]
    for who, count in zip(told["annotators"], told["verdicts"], strict=True):
        print(f"{without_controls(who)}: {count} verdicts")
    alpha = told["krippendorff_alpha"]
    print(f"agreement (Krippendorff's alpha): {'-' if alpha is None else f'{alpha:.3f}'}")


def print_reward_model(manifest: dict[str, Any]) -> None:
    """How well a reward model tells the human's chosen answer on held-out pairs."""
    found, pairs = manifest["held_out_accuracy"], manifest["held_out_pairs"]
    if found["mean"] is None:
        print("no held-out pairs: the test part has no chosen and rejected answers")
        return
    print(f"accuracy {_interval(found)} on {pairs} held-out pairs")


def print_headline(found: Headline, examples: Sequence[Example], more: str) -> None:
    """What a run came to, the verdict last.

    Args:
        found: the facts.
        examples: answers to read.
        more: the command that shows all signs.
    """
    console = Console()
    if found.table:
        _print_scores(console, found.table)
    if found.gap:
        console.print(plain(found.gap))
        console.print()
    if examples:
        _print_examples(console, examples)
        console.print()
    for line in [*([found.unmeasured] if found.unmeasured else []), *found.warnings]:
        console.print(Text("! ", "yellow"), plain(line), sep="")
    if found.advice:
        console.print(plain(f"Advice: {found.advice}"))
    if rest := len(found.signs) - len(found.warnings):
        signs = "1 sign" if rest == 1 else f"{rest} signs"
        # One line, whatever the width: it is to be copied.
        console.print(plain(f"{signs} for the expert: {more}"), style="dim", soft_wrap=True)
    if found.unmeasured or found.warnings or found.advice or rest:
        console.print()
    print_verdict(found.verdict)


def print_verdict(found: Verdict) -> None:
    """Whether the student got better: one sentence, and the numbers behind it."""
    console = Console()
    console.print(plain(found.title), style="bold")
    console.print(plain(found.text))


def _print_scores(console: Console, found: ScoreTable) -> None:
    rounds = (Column(f"round {r}", justify="right", no_wrap=True) for r in found.rounds)
    table = _table(Column("score", overflow="fold"), *rounds)
    for n, row in enumerate(found.rows):
        cells = ("" if mean is None else f"{mean:.2f}" for mean in row.means)
        table.add_row(plain(row.name), *cells, style=None if n else "bold")
    console.print(table)
    console.print(plain(f"Score: {found.meaning}"))
    console.print()


def _print_examples(console: Console, found: Sequence[Example]) -> None:
    """Prompts, each with the student's answers of its first and last round side by side."""
    prompts = "a held-out prompt" if len(found) == 1 else f"{len(found)} held-out prompts"
    console.print(plain(f"What the student writes to {prompts}, drawn by chance:"))
    for each in found:
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
    table = _table(Column("the probe, after round 0", no_wrap=True), numbers)
    for name, share in [*advice.accuracy.items(), ("the teachers together", advice.together)]:
        table.add_row(plain(name), f"{share:.3f}")
    table.add_row("their lead over the student", Text(_interval(advice.lead._asdict())))
    if advice.some_right is not None:
        table.add_row("some teacher, where the student is wrong", f"{advice.some_right:.3f}")
    if advice.agreement is not None:
        table.add_row("two teachers alike", f"{advice.agreement:.3f}")
    console = Console()
    console.print(Text(f"Advice: {advice.next}. ", "bold"), plain(advice.text), sep="")
    console.print(table)


def print_sweep(found: Outline) -> None:
    """Which steps a sweep has, how many of them are made once for several, and the time left."""
    numbers = ("steps", "not above", "to make")
    table = _table("variant", *(Column(n, justify="right", no_wrap=True) for n in numbers))
    for name, *counts in found.variants:
        table.add_row(plain(name), *map(str, counts))
    Console().print(table)
    named = sum(steps for _, steps, _, _ in found.variants)
    print(f"{found.root}: {len(found.variants)} variants, seeds {str(found.seeds)[1:-1]}")
    print(f"{named} steps, of which {found.distinct} are distinct: {found.todo} to make")
    print(found.left)


def print_standings(found: Standings) -> None:
    """The table of a sweep, and below it what it shows and what failed."""
    from macpo_run.sweep.standings import SHOWN, cells, known_rounds, notes

    columns = sum(any(getattr(r, name) for r in found.rows) for name in ("ahead", "recovered"))
    head, *rows = cells(found, known_rounds(found, SHOWN - (columns > 1)))
    numbers = (Column(name, justify="right", overflow="fold") for name in head[1:])
    table = _table(Column(head[0], overflow="fold"), *numbers)
    for row in rows:
        table.add_row(*map(plain, row))
    console = Console()
    console.print(table)
    for note in notes(found):
        console.print(plain(note), soft_wrap=True)


LEVELS = {"error": "bold red", "warning": "yellow", "note": "dim"}


def print_check(title: str, found: Sequence[Finding], read: Sequence[Reading]) -> None:
    """What each trainer makes of a dataset, and what is wrong with its rows."""
    console = Console()
    trainers = _table("trainer", "reads it", "how, or why not", title=title)
    for each in read:
        mark = Text("yes", "green") if each.reads else Text("no", "red")
        trainers.add_row(each.trainer, mark, plain(each.how))
    console.print(trainers)
    rows = _table("", "rows", "first", "what")
    for finding in found:
        first = "" if finding.row is None else str(finding.row)
        level = Text(finding.level, LEVELS[finding.level])
        rows.add_row(level, f"{finding.count:,}", first, plain(finding.what))
    console.print(rows)


def print_comparison(found: Comparison, count: int) -> None:
    """Two versions of a round: recipe, prompts, distributions, and some that changed."""
    console = Console()
    console.print(plain(f"A {found.names[0]}\nB {found.names[1]}\n"))
    if found.recipe is None:
        console.print("recipe: not known of both")
    elif not found.recipe:
        console.print("recipe: the same")
    for path, (one, other) in (found.recipe or {}).items():
        console.print(plain(f"recipe: {path}: {one} -> {other}"))
    console.print(plain("\n".join(f"{n:>9,} {what}" for what, n in found.counts.items())))
    table = _table("median (5%, 95%)", "A", "B")
    for what, pair in found.quantiles.items():
        table.add_row(
            what, *("" if q is None else f"{q[1]:.2f} ({q[0]:.2f}, {q[2]:.2f})" for q in pair)
        )
    console.print(table)
    for row in found.changed.head(count).iter_rows(named=True):
        body = Text()
        body.append_text(plain(row["prompt"][-1]["content"])).append("\n")
        body.append("A ", "bold yellow").append_text(plain(row["chosen_a"])).append("\n")
        body.append("B ", "bold cyan").append_text(plain(row["chosen_b"]))
        console.print(Panel(body, title=row["prompt_id"][:12], title_align="left"))
