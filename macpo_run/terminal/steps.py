"""Prints the steps of a run: their states and their estimated costs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from macpo_data.plan import Step
from macpo_run.terminal.text import make_table, plain, short_number

if TYPE_CHECKING:
    from macpo_data.generation.cost import Ask
    from macpo_data.recipe.recipe import Recipe
    from macpo_data.store.store import State

STYLES = {"done": "green", "ready": "cyan", "waiting": "dim", "stale": "yellow"}


@dataclass(frozen=True)
class StepRow:
    """A step as a table shows it."""

    step: Step
    state: State
    result: str  # its name in the store
    waits_for: Sequence[str]


def print_steps(rows: Sequence[StepRow], title: str) -> None:
    """A table of steps with their states, and their results or what they wait for.

    A terminal that is too narrow for the names of results gets their fingerprints, by which
    `macpo diff` finds them; a pipe gets all names whole.
    """
    console = Console()
    table = _steps_table(rows, title, short=False)
    wanted = console.measure(table, options=console.options.update(width=1000)).maximum
    if wanted > console.width:
        if console.is_terminal or "COLUMNS" in os.environ:
            table = _steps_table(rows, title, short=True)
        else:
            console = Console(width=wanted)
    console.print(table)


def _steps_table(rows: Sequence[StepRow], title: str, *, short: bool) -> Table:
    names = ("round", "step", "learner", "state")
    last = Column("fingerprint, or waits for" if short else "result or what it waits for")
    table = make_table(*(Column(name, no_wrap=True) for name in names), last, title=title)
    for row in rows:
        table.add_row(
            str(row.step.round),
            row.step.what,
            row.step.learner,
            Text(row.state, STYLES[row.state]),
            plain(_result_or_wait(row, short)),
        )
    return table


def _result_or_wait(row: StepRow, short: bool) -> str:
    if not row.waits_for:
        return row.result.rpartition("-")[2] if short else row.result
    more = len(row.waits_for) - 1
    return row.waits_for[0] + (f" and {more} more" if more else "")


def print_costs(costs: Sequence[tuple[Step, list[Ask]]], recipe: Recipe, note: str) -> None:
    """Calls, tokens and money of gen steps, and their sum. What several ask is counted once.

    Args:
        costs: the steps, and what each asks of its models.
        recipe: names the agents, some of which have prices.
        note: where the estimates come from.
    """
    endpoints = [agent.endpoint for agent in recipe.agents.values() if agent.endpoint]
    priced = any(endpoint.cost(1, 1) is not None for endpoint in endpoints)
    table, whole = _cost_table(priced), _Amounts()
    for step, asks in costs:
        ceiling = ", ceiling" if step.is_ceiling else ""
        table.add_row(plain(f"round {step.round}, {step.learner}{ceiling}"), style="bold")
        for ask in asks:
            amounts = _amounts(ask, recipe)
            whole += amounts
            cells = amounts.cells(priced)
            table.add_row(ask.what, plain(ask.agent), f"{ask.calls:g}", *cells)
    table.add_row("all", "", "", *whole.cells(priced), style="bold")
    Console().print(table)
    notes = [note, *_notes_on_judges(costs)]
    if priced and whole.unpriced:
        agents = ", ".join(sorted(whole.unpriced))
        notes.append(f"the money is without {agents}, who has no prices")
    print(f"estimated: {'; '.join(notes)}")


def _cost_table(priced: bool) -> Table:
    numbers = ["a prompt", "calls", "tokens in", "out", "at most"]
    numbers += ["money", "at most"] if priced else []
    columns = [Column(name, no_wrap=True) for name in ("what", "who")]
    columns += [Column(name, justify="right", no_wrap=True) for name in numbers]
    return make_table(*columns, title="what it asks for")


def _notes_on_judges(costs: Sequence[tuple[Step, list[Ask]]]) -> Iterator[str]:
    for step, asks in costs:
        if calls := sum(ask.calls for ask in asks if ask.kind == "judge"):
            yield f"the judge of round {step.round}: about {calls:g} calls a prompt"


@dataclass(frozen=True)
class _Amounts:
    """What some calls come to."""

    numbers: tuple[float, ...] = (0.0,) * 4  # calls, tokens in, out, out at most
    money: tuple[float | None, ...] = (0.0,) * 2  # typically, at most; None where nobody knows
    unpriced: frozenset[str] = frozenset()  # agents at an endpoint without prices

    def __add__(self, other: _Amounts) -> _Amounts:
        return _Amounts(
            tuple(a + b for a, b in zip(self.numbers, other.numbers, strict=True)),
            tuple((a or 0.0) + (b or 0.0) for a, b in zip(self.money, other.money, strict=True)),
            self.unpriced | other.unpriced,
        )

    def cells(self, priced: bool) -> list[str]:
        money = ["" if each is None else f"{each:,.2f}" for each in self.money]
        return [*map(short_number, self.numbers), *(money if priced else [])]


def _amounts(ask: Ask, recipe: Recipe) -> _Amounts:
    endpoint, calls = recipe.agents[ask.agent].endpoint, ask.prompts * ask.calls
    money = tuple(ask.money(endpoint, out) for out in (ask.tokens_out, ask.most_out))
    tokens = (calls * each for each in (ask.tokens_in, ask.tokens_out, ask.most_out))
    unknown = {ask.agent} if endpoint is not None and money[0] is None else ()
    return _Amounts((calls, *tokens), money, frozenset(unknown))
