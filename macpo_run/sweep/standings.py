"""How the variants of a study compare: one table and one plot."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import polars as pl

from macpo_data import stats
from macpo_data.errors import MacpoError, first_line
from macpo_data.evaluation import draws
from macpo_data.evaluation.gap import FORMULA, Gap, pooled
from macpo_data.evaluation.measures import PER_ANSWER as MEASURES
from macpo_data.evaluation.results import Evaluation
from macpo_data.schema import EVALUATION
from macpo_data.stats import Estimate, Recovered

RESULTS = {"variant": pl.String(), "seed": pl.Int64(), **EVALUATION}
UNITS = {
    "variant": pl.String(),
    "agent": pl.String(),
    "round": pl.Int64(),
    "unit": pl.String(),  # a seed, or with one seed a prompt
    "score": pl.Float64(),
    "whole": pl.Boolean(),  # whether this variant came to its end with this seed
}
# Not the baselines: the bare bases and negative twins.
MADE = (pl.col("behavior") == "positive") & pl.col("round").is_not_null()
SHOWN = 4  # rounds that have room in a terminal
VEGA_LITE = "6.4"  # of those that vl-convert brings
# Okabe and Ito's without the yellow: seven that the colour-blind tell apart; then with dashes.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
DASHES = ([1, 0], [6, 3], [2, 2])
WIDTH, HEIGHT, LINE = 620, 380, 15  # of the plot and of a label in it, in pixels
SIDE_BY_SIDE = 0.35  # of the way between two rounds, the most over which bars are spread


@dataclass(frozen=True)
class Measured:
    """One variant with one seed, as far as it came."""

    variant: str
    seed: int
    found: Evaluation | None
    problem: str | None = None  # why it did not come to its end
    # Measure: what it depends on besides the answers that are measured.
    yardsticks: Mapping[str, str] = field(default_factory=dict)
    gaps: Mapping[str, Gap] = field(default_factory=dict)  # by measure, where there is a ceiling


@dataclass(frozen=True)
class Row:
    """One agent of one variant in the table."""

    variant: str
    agent: str
    rounds: dict[int, Estimate]
    chars: float | None  # mean length of the answers in the last round
    change: Estimate  # from the first round to the last
    ahead: Estimate | None  # of the first variant, in the last round; None for that one itself
    recovered: Recovered | None  # of the gap, in the last round; None where there is no ceiling
    problems: list[str]


class Standings:
    """What was measured of a study."""

    def __init__(self, measured: Sequence[Measured], agents: Sequence[str]) -> None:
        """Take it in the study's order: seed by seed, variant by variant."""
        self.measured = measured
        self.agents = list(agents)
        self.variants = list(dict.fromkeys(m.variant for m in measured))
        self.seeds = list(dict.fromkeys(m.seed for m in measured))

    @cached_property
    def results(self) -> pl.DataFrame:
        """One row per variant, seed, policy and measure, as RESULTS."""
        tables = [
            m.found.table.with_columns(variant=pl.lit(m.variant), seed=pl.lit(m.seed, pl.Int64))
            for m in self.measured
            if m.found
        ]
        return pl.concat([pl.DataFrame(schema=RESULTS), *(t.select(*RESULTS) for t in tables)])

    @cached_property
    def measure(self) -> str | None:
        """What is compared; None where nothing was measured."""
        known = set(self.results["measure"])
        return next((m for m in MEASURES if m in known), None)

    @property
    def is_fair(self) -> bool:
        """Whether the variants were measured alike, each seed for itself."""
        of = self.measure or ""
        known = {(m.seed, m.yardsticks[of]) for m in self.measured if of in m.yardsticks}
        return len(known) == len({seed for seed, _ in known})

    @property
    def answers(self) -> str:
        """How the answers were sampled; where the variants differ in it, each with its names."""
        names: dict[str, dict[str, None]] = {}
        for m in self.measured:
            if m.found:
                names.setdefault(draws.described(m.found.sampling), {})[m.variant] = None
        if len(names) < 2:
            return "".join(names)
        return "; ".join(f"{how} ({', '.join(who)})" for how, who in names.items())

    @property
    def interval(self) -> str:
        """What the intervals are."""
        if len(self.seeds) > 1:
            return f"95 % t-interval between {len(self.seeds)} seeds"
        return "95 % bootstrap interval over the prompts of one seed"

    @cached_property
    def rows(self) -> list[Row]:
        """The table: agent by agent, variant by variant."""
        found = (self._row(v, agent) for agent in self.agents for v in self.variants)
        return [row for row in found if row.rounds or row.problems]

    @cached_property
    def _units(self) -> pl.DataFrame:
        """The values that intervals are taken over, as UNITS."""
        frames = [self._units_of(m, m.found) for m in self.measured if m.found and self.measure]
        return pl.concat([pl.DataFrame(schema=UNITS), *frames])

    def _units_of(self, m: Measured, found: Evaluation) -> pl.DataFrame:
        assert self.measure is not None
        if len(self.seeds) > 1:
            rows = found.table.filter(measure=self.measure)
            rows = rows.with_columns(unit=pl.lit(str(m.seed)), score="mean")
        else:
            rows = draws.by_prompt(getattr(found, MEASURES[self.measure]), self.measure)
            rows = rows.drop_nulls(self.measure)
            rows = rows.with_columns(unit="prompt_id", score=self.measure)
        rows = rows.filter(MADE)
        rows = rows.with_columns(variant=pl.lit(m.variant), whole=pl.lit(m.problem is None))
        return rows.select(*UNITS).sort("round", maintain_order=True)

    def _estimate(self, values: pl.Series) -> Estimate:
        of = stats.between if len(self.seeds) > 1 else stats.mean
        return of(values.to_numpy())

    def _row(self, variant: str, agent: str) -> Row:
        own = self._units.filter(variant=variant, agent=agent).sort("round", maintain_order=True)
        ends = self._ends(variant, agent)
        moved = ends.filter(pl.col("begin") < pl.col("end")).drop_nulls(["first", "last"])
        first = self._ends(self.variants[0], agent)
        beside = ends.join(first, on="unit", suffix="_first", maintain_order="left")
        beside = beside.drop_nulls(["last", "last_first"])
        ahead = self._estimate(beside["last"] - beside["last_first"])
        last = self.results.filter(variant=variant, agent=agent, measure=self.measure or "")
        last = last.filter(MADE).filter(pl.col("round") == pl.col("round").max().over("seed"))
        return Row(
            variant,
            agent,
            {
                int(str(round_)): self._estimate(rows["score"])
                for (round_,), rows in own.group_by("round", maintain_order=True)
            },
            last.select(pl.col("chars").mean()).item(),
            self._estimate(moved["last"] - moved["first"]),
            None if variant == self.variants[0] else ahead,
            pooled([gap for gap in self._gaps(variant) if gap.ceiling.agent == agent]),
            list(dict.fromkeys(
                f"seed {m.seed}: {m.problem}"
                for m in self.measured if m.variant == variant and m.problem
            )),
        )  # fmt: skip

    def _gaps(self, variant: str) -> list[Gap]:
        """The gap of each seed that came to its end."""
        own = [m for m in self.measured if m.variant == variant and m.problem is None]
        return [gap for m in own if (gap := m.gaps.get(self.measure or ""))]

    @property
    def floors(self) -> dict[str, list[str]]:
        """The floors of the gaps, each with the variants that have it with some seed."""
        names: dict[str, dict[str, None]] = {}
        for variant in self.variants:
            for gap in self._gaps(variant):
                names.setdefault(str(gap.floor), {})[variant] = None
        return {floor: [*of] for floor, of in names.items()}

    def _ends(self, variant: str, agent: str) -> pl.DataFrame:
        """The first and last round of those that came to their end, and each unit's scores there.

        All prompts of a seed have the same rounds; a prompt has no score where it lacks that round.
        """
        own = self._units.filter(pl.col("whole"), variant=variant, agent=agent)
        round_ = pl.col("round")
        begin, end = round_.min(), round_.max()
        if len(self.seeds) > 1:
            begin, end = begin.over("unit"), end.over("unit")
        score, own = pl.col("score"), own.with_columns(begin=begin, end=end)
        return own.group_by("unit", maintain_order=True).agg(
            pl.col("begin", "end").first(),
            first=score.filter(round_ == pl.col("begin")).first(),
            last=score.filter(round_ == pl.col("end")).first(),
        )


def cells(found: Standings, rounds: Sequence[int]) -> list[list[str]]:
    """The table as text, its head first.

    Args:
        found: what was measured.
        rounds: that get a column.
    """
    several = len(found.agents) > 1
    compared, gap = len(found.variants) > 1, any(row.recovered for row in found.rows)
    head = ["variant", *(f"round {r}" for r in rounds), "chars", "change"]
    lines = [head + ["ahead"] * compared + ["gap recovered"] * gap]
    for row in found.rows:
        who = f"{row.variant}, {row.agent}" if several else row.variant
        scores = [_said(row.rounds.get(r)) for r in rounds]
        chars = "" if row.chars is None else f"{row.chars:.0f}"
        line = [who, *scores, chars, _said(row.change, "+")]
        line += [_said(row.ahead, "+")] * compared
        lines.append(line + [_of_gap(row.recovered)] * gap)
    return lines


def known_rounds(found: Standings, most: int | None = None) -> list[int]:
    """The rounds that were measured; at most so many, evenly spread from the first to the last."""
    rounds = sorted({r for row in found.rows for r in row.rounds})
    return rounds if most is None else stats.evenly(rounds, most)


def notes(found: Standings) -> list[str]:
    """What stands below the table: what is shown, and what failed."""
    failed: dict[str, list[str]] = {}
    for row in found.rows:
        for problem in row.problems:
            failed.setdefault(problem, []).append(row.variant)
    below = [f"failed: {', '.join(dict.fromkeys(v))}, {p}" for p, v in failed.items()]
    if found.measure is None:
        return ["nothing was measured", *below]
    paired = "seed by seed" if len(found.seeds) > 1 else "prompt by prompt"
    said = [
        f"{found.measure}: mean over held-out prompts ± half the {found.interval}; chars: mean "
        "length of the last round's answers",
        f"measured on {found.answers}",
        f"change: from the first round to the last, {paired}",
    ]
    if len(found.variants) > 1:
        said.append(f"ahead: of {found.variants[0]} in the last round, {paired}")
    if floors := found.floors:
        over = "seeds and prompts" if len(found.seeds) > 1 else "prompts"
        said.append(
            f"gap recovered: {FORMULA}, in the last round, with a bootstrap interval over {over}; "
            "not defined where that of ceiling - floor meets 0"
        )
        best = (f"{floor} ({', '.join(of)})" for floor, of in floors.items())
        said.append("floor, the best teacher of round 0: " + "; ".join(best))
    if not found.is_fair:
        said.append(
            f"not one yardstick: what {found.measure} depends on, a reward model, how answers "
            "are sampled or the answers compared with, differs between the variants"
        )
    return said + below


def _of_gap(value: Recovered | None) -> str:
    return "" if value is None else _said(value.share) or "not defined"


def markdown(found: Standings, title: str) -> str:
    """The table of all rounds for a file."""
    head, *lines = ([_escaped(c) for c in line] for line in cells(found, known_rounds(found)))
    rows = [head, ["---"] * len(head), *lines]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    below = "\n".join(f"- {_escaped(note)}" for note in notes(found))
    return f"# {_escaped(title)}\n\n{table}\n\n{below}\n"


def _escaped(text: str) -> str:
    return re.sub(r"([\\|<>`*_\[\]])", r"\\\1", text)


def _said(value: Estimate | None, sign: str = "") -> str:
    """An estimate with half its interval, where there is one."""
    if value is None or math.isnan(value.mean):
        return ""
    mean, half = f"{value.mean:{sign}.3f}", (value.high - value.low) / 2
    text = mean if math.isnan(half) else f"{mean}±{half:.3f}"
    return re.sub(r"(?<!\d)0\.", ".", text)


def plot(found: Standings, title: str) -> str | None:
    """The measure over the rounds as SVG, a line per variant; None where nothing was measured.

    Raises:
        MacpoError: it cannot be drawn.
    """
    import vl_convert

    try:
        # The library ends the whole process over a control character.
        spec = _spec(found, "".join(c if c.isprintable() else " " for c in title))
        return None if spec is None else str(vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE))
    except (RuntimeError, ValueError) as error:
        raise MacpoError(f"no plot, its table is written: {first_line(error)}") from None


def _spec(found: Standings, title: str) -> dict[str, Any] | None:
    """In Vega-Lite: lines, bars side by side so that all are seen, and names at the right end."""
    agent = found.agents[0]
    rows = [row for row in found.rows if row.agent == agent and row.rounds]
    if not rows:
        return None
    step = min(SIDE_BY_SIDE / len(rows), 0.05)
    points: list[dict[str, Any]] = [
        {"variant": row.variant, "round": t + step * (n - (len(rows) - 1) / 2), "mean": e.mean}
        | {k: None if math.isnan(v) else v for k, v in (("low", e.low), ("high", e.high))}
        for n, row in enumerate(rows)
        for t, e in row.rounds.items()
    ]
    values = [v for p in points for v in (p["mean"], p["low"], p["high"]) if v is not None]
    margin = 0.04 * (max(values) - min(values)) or 0.05
    bottom, top = min(values) - margin, max(values) + margin
    scale = {"domain": [bottom, top], "nice": False, "zero": False}
    last = {p["variant"]: p for p in points}
    ends = {name: p["mean"] for name, p in last.items()}
    right = max(t for row in rows for t in row.rounds) + 0.3
    room = (top - bottom) * LINE / HEIGHT
    labels = [last[v] | {"x": right, "y": y} for v, y in apart(ends, bottom, top, room).items()]
    names = list(ends)
    colour = {
        "field": "variant", "type": "nominal", "legend": None,
        "scale": {"domain": names, "range": [COLOURS[n % len(COLOURS)] for n in range(len(names))]},
    }  # fmt: skip
    dash = {
        "field": "variant", "type": "nominal", "legend": None,
        "scale": {
            "domain": names,
            "range": [DASHES[n // len(COLOURS) % len(DASHES)] for n in range(len(names))],
        },
    }  # fmt: skip
    axis = {"values": known_rounds(found), "format": "d", "grid": False, "title": "round"}
    x = {
        "field": "round", "type": "quantitative", "axis": axis,
        "scale": {"domain": [-0.3, right], "nice": False},
    }  # fmt: skip
    y = {"field": "mean", "type": "quantitative", "title": found.measure, "scale": scale}
    bars = {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}, "color": colour}
    lines = {"x": x, "y": y, "color": colour, "strokeDash": dash}
    lead = {"x": x, "x2": {"field": "x"}, "y": y, "y2": {"field": "y"}, "color": colour}
    text = {"x": x | {"field": "x"}, "y": y | {"field": "y"}, "text": {"field": "variant"}}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": WIDTH,
        "height": HEIGHT,
        # Names are measured in a font that not everybody has; others are wider.
        "padding": {"left": 5, "top": 5, "right": 40, "bottom": 5},
        "background": "white",
        "title": {
            "text": title, "anchor": "start", "fontSize": 15, "subtitleColor": "#555",
            "subtitle": f"{agent}: {found.measure}, mean over held-out prompts, {found.answers}; "
            f"{found.interval}",
        },
        "data": {"values": points},
        "layer": [
            {"mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.45}, "encoding": bars},
            {"mark": {"type": "line", "strokeWidth": 2}, "encoding": lines},
            {"mark": {"type": "point", "filled": True, "size": 40, "opacity": 1},
             "encoding": {"x": x, "y": y, "color": colour}},
            {"data": {"values": labels},
             "mark": {"type": "rule", "strokeWidth": 0.7, "opacity": 0.5}, "encoding": lead},
            {"data": {"values": labels},
             "mark": {"type": "text", "align": "left", "dx": 4, "fontSize": 12},
             "encoding": text | {"color": colour}},
        ],
        "config": {
            "font": "Helvetica, Arial, sans-serif",
            "view": {"stroke": None},
            "axis": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal",
                     "gridColor": "#eee", "domainColor": "#888", "tickColor": "#888"},
        },
    }  # fmt: skip


def apart(at: dict[str, float], low: float, high: float, height: float) -> dict[str, float]:
    """Move labels up and down until none covers another.

    Args:
        at: name and place of each.
        low: the least that the axis shows.
        high: the most.
        height: of a label; less where they would not find room.
    """
    gap = min(height, (high - low) / len(at))
    names = sorted(at, key=lambda name: at[name])
    places = [at[name] for name in names]
    for n in range(1, len(places)):
        places[n] = max(places[n], places[n - 1] + gap)
    for n in reversed(range(len(places))):
        places[n] = min(places[n], high if n == len(places) - 1 else places[n + 1] - gap)
    return dict(zip(names, places, strict=True))
