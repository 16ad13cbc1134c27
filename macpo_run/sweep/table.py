"""The table of a study as text: complete for a file, the main columns for a terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from macpo_data.evaluation.gap import FORMULA
from macpo_data.stats import LEVEL, Estimate, Recovered
from macpo_run.sweep.budget import Budget
from macpo_run.sweep.standings import TESTED_SEEDS, Row, Standings, known_rounds

T = TypeVar("T")
IN_TERMINAL = ("words", "cut", "ahead", "gap recovered")  # beside the variant and some rounds
ALPHA = 1 - LEVEL
CORRECTED, PRIMARY = " *", " †"  # behind a lead: significant after correction; tested alone


def columns(standings: Standings, rounds: Sequence[int]) -> dict[str, list[str]]:
    """The table as text: by the title of each column its cells, from top to bottom.

    Args:
        standings: what was measured.
        rounds: that get a column.
    """
    rows = standings.rows
    several = len(standings.agents) > 1
    table = {"variant": [f"{r.variant}, {r.agent}" if several else r.variant for r in rows]}
    table |= {f"round {t}": [_estimate(row.rounds.get(t)) for row in rows] for t in rounds}
    table["words"] = [_maybe(row.words, "{:.1f}".format) for row in rows]
    table["cut"] = [_maybe(row.cut, "{:.1%}".format) for row in rows]
    budgets = [row.budget or Budget(None, None, None) for row in rows]
    table["pairs"] = [_maybe(budget.pairs, _count) for budget in budgets]
    table["steps"] = [_maybe(budget.steps, _count) for budget in budgets]
    table["written"] = [_maybe(budget.words, _count) for budget in budgets]
    table["change"] = [_estimate(row.change, "+") for row in rows]
    if len(standings.variants) > 1:
        table["ahead"] = [_lead(row) for row in rows]
        table["p"] = [_maybe(row.ahead.p if row.ahead else None, _p) for row in rows]
        table["p Holm"] = [_corrected(row) for row in rows]
    if any(row.recovered for row in rows):
        table["gap recovered"] = [_of_gap(row.recovered) for row in rows]
    return table


def in_terminal(standings: Standings, rounds: int) -> dict[str, list[str]]:
    """The columns that a terminal has room for, with at most so many rounds."""
    table = columns(standings, known_rounds(standings, rounds))
    return {
        title: cells
        for title, cells in table.items()
        if title in ("variant", *IN_TERMINAL) or title.startswith("round ")
    }


def primary(standings: Standings) -> str | None:
    """The sentence on the primary contrast; None where the study names none."""
    of, contrast = standings.primary, standings.primary_contrast
    if of is None or contrast is None:
        return None
    who = f", {standings.agents[0]}," if len(standings.agents) > 1 else ""
    what = f"primary: {of.first} minus {of.second}{who} in the last round: "
    mean, low, high = contrast.difference
    if math.isnan(mean):
        return f"{what}not known, no seed has both"
    value = f"{what}{_number(mean, '+')} (95 % "
    between = f"{_number(low, '+')} to {_number(high, '+')})"
    if len(standings.seeds) == 1:
        over = "bootstrap interval over the prompts of one seed"
        return f"{value}{over} {between}; no test, which takes several seeds"
    if contrast.seeds == 1:
        return f"{what}{_number(mean, '+')}; no interval and no test, one seed has both"
    of_all = "" if contrast.seeds == len(standings.seeds) else f" of {len(standings.seeds)}"
    interval = f"{value}t-interval over {contrast.seeds}{of_all} seed means {between}"
    if contrast.p is None:
        return f"{interval}; no test, since it is the same on every seed"
    p = f"p {_p(contrast.p)}" if contrast.p < 0.001 else f"p = {_p(contrast.p)}"
    return f"{interval}, {p}, tested alone at {_number(ALPHA, digits=2)}"


def notes(standings: Standings) -> list[str]:
    """What stands below the table: what is shown, and what failed."""
    failed: dict[str, list[str]] = {}
    for row in standings.rows:
        for problem in row.problems:
            failed.setdefault(problem, []).append(row.variant)
    below = [f"failed: {', '.join(dict.fromkeys(v))}, {p}" for p, v in failed.items()]
    if standings.measure is None:
        return ["nothing was measured", *below]
    lines = [
        f"{standings.measure}: mean over held-out prompts ± half the {standings.interval}",
        f"measured on {standings.answers}",
        "words: mean length of the last round's answers; cut: share of them that the token limit "
        "cut",
    ]
    if len(standings.variants) > 1:
        lines.append(f"ahead: of {standings.variants[0]} in the last round, {_paired(standings)}")
        lines += _tests(standings)
    if standings.floors:
        over = "seeds and prompts" if len(standings.seeds) > 1 else "prompts"
        lines.append(
            f"gap recovered: {FORMULA}, in the last round, with a bootstrap interval over {over}; "
            "not defined where that of ceiling - floor meets 0"
        )
    if not standings.is_fair:
        lines.append(
            f"not one yardstick: what {standings.measure} depends on, a reward model, how answers "
            "are sampled or the answers compared with, differs between the variants"
        )
    return lines + below


def details(standings: Standings) -> list[str]:
    """What the columns are for which a terminal has no room."""
    if standings.measure is None:
        return []
    lines = [
        "pairs, steps: what the measured agent learned from in rounds 1 and later, and the "
        "optimizer's steps in them (the fake engine takes none); written: words that models wrote "
        "for its training, all rounds and agents, held-out answers not among them; means over "
        "seeds",
        f"change: from the first round to the last, {_paired(standings)}",
    ]
    if len(standings.variants) > 1:
        lines.append(
            "p: two-sided paired t-test over seeds of the lead over the first variant; p Holm: "
            "corrected for the number of comparisons"
        )
    if floors := standings.floors:
        best = (f"{floor} ({', '.join(of)})" for floor, of in floors.items())
        lines.append("floor, the best teacher of round 0: " + "; ".join(best))
    return lines


def markdown(standings: Standings, title: str) -> str:
    """The table of all rounds for a file, with where it comes from above it."""
    table = columns(standings, known_rounds(standings))
    titles = [_escaped(title) for title in table]
    cells = ([_escaped(cell) for cell in row] for row in zip(*table.values(), strict=True))
    rows = [titles, ["---"] * len(titles), *cells]
    origin = standings.provenance
    above = origin.lines(standings.seeds) if origin else []
    sentence = primary(standings)
    below = [*([sentence] if sentence else []), *notes(standings), *details(standings)]
    parts = [
        f"# {_escaped(title)}",
        _list(above),
        "\n".join(f"| {' | '.join(row)} |" for row in rows),
        _list(below),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _tests(standings: Standings) -> list[str]:
    """How the comparisons with the first variant are tested."""
    if len(standings.seeds) < TESTED_SEEDS:
        return ["exploratory: too few seeds for a test of what is ahead"]
    family = standings.adjusted
    lines = []
    if family:
        many = f"{len(family)} comparisons were" if len(family) > 1 else "1 comparison was"
        level = _number(ALPHA, digits=2)
        lines.append(f"{many} corrected (Holm):{CORRECTED} significant at {level} after it")
    if any(row.is_primary for row in standings.rows):
        lines.append(f"{PRIMARY.strip()} the primary contrast, not among them")
    untested = [key for key in family if standings.contrasts[key].p is None]
    if untested:
        names = ", ".join(dict.fromkeys(variant for variant, _ in untested))
        lines.append(f"not tested, counted as p = 1, since seeds or spread are missing: {names}")
    return lines


def _paired(standings: Standings) -> str:
    return "seed by seed" if len(standings.seeds) > 1 else "prompt by prompt"


def _lead(row: Row) -> str:
    text = _estimate(row.ahead.difference if row.ahead else None, "+")
    if text and row.is_primary:
        return text + PRIMARY
    significant = row.adjusted is not None and row.adjusted <= ALPHA
    return text + (CORRECTED if significant else "")


def _corrected(row: Row) -> str:
    if row.is_primary:
        return "primary"
    untested = row.ahead is None or row.ahead.p is None
    return "" if untested else _maybe(row.adjusted, _p)


def _of_gap(value: Recovered | None) -> str:
    return "" if value is None else _estimate(value.share) or "not defined"


def _maybe(value: T | None, text: Callable[[T], str]) -> str:
    return "" if value is None else text(value)


def _count(value: float) -> str:
    """A count, or the mean of counts."""
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else _number(value)


def _number(value: float, sign: str = "", digits: int = 3) -> str:
    """Without the 0 before the point, and without the sign of a 0."""
    rounded = round(value, digits) + 0.0
    return re.sub(r"(?<!\d)0\.", ".", f"{rounded:{sign}.{digits}f}")


def _estimate(value: Estimate | None, sign: str = "") -> str:
    """An estimate with half its interval, where there is one."""
    if value is None or math.isnan(value.mean):
        return ""
    mean, half = _number(value.mean, sign), (value.high - value.low) / 2
    return mean if math.isnan(half) else f"{mean}±{_number(half)}"


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {_escaped(line)}" for line in lines)


def _escaped(text: str) -> str:
    return re.sub(r"([\\|<>`*_\[\]])", r"\\\1", text)
