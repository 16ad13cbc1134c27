"""The plot of a study as SVG, in a light and a dark version.

Few variants are lines over the rounds; many are a dot and an interval each, in their last round.
"""

from __future__ import annotations

import math
from typing import Any

from macpo_data.errors import MacpoError, first_line
from macpo_data.stats import Estimate
from macpo_run.sweep.standings import Row, Standings, known_rounds

VEGA_LITE = "6.4"  # of those that vl-convert brings
INK, DIM, GRID = "#222222", "#666666", "#eeeeee"  # names and titles, axes, lines of the grid
# Okabe and Ito's without the yellow: seven that the colour-blind tell apart.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
DOT, FIRST = COLOURS[1], COLOURS[2]
PAPER = "#ffffff"
# What a dark page shows in place of these; the others are seen on both.
DARK = {PAPER: "#0d1117", INK: "#e6e6e6", DIM: "#8b949e", GRID: "#21262d"}
DARK |= {"#000000": "#f5f5f5", "#0072B2": "#2f7de0", "#009E73": "#1fc598"}
MOST_LINES = len(COLOURS)
WIDTH, HEIGHT, LINE = 620, 380, 15  # of the plot and of a label in it, in pixels
# Names are measured in a font that not everybody has; others are wider, by so many pixels a letter.
PADDING = {"left": 5, "top": 5, "right": 40, "bottom": 5}
WIDER = 1.5
ROW = 20  # pixels of a variant among many
SIDE_BY_SIDE = 0.35  # of the way between two rounds, the most over which bars are spread


def plot(standings: Standings, title: str) -> str | None:
    """The measure of the first agent as SVG; None where nothing was measured.

    Raises:
        MacpoError: it cannot be drawn.
    """
    import vl_convert

    rows = [row for row in standings.rows if row.agent == standings.agents[0] and row.rounds]
    draw = _lines
    if len(rows) > MOST_LINES:
        rows, draw = [row for row in rows if not math.isnan(row.last.mean)], _dots
    if not rows:
        return None
    try:
        # The library ends the whole process over a control character.
        title = "".join(c if c.isprintable() else " " for c in title)
        spec = _frame(standings, title) | draw(standings, rows)
        svg = vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE)
    except (RuntimeError, ValueError) as error:
        raise MacpoError(f"no plot, its table is written: {first_line(error)}") from None
    return with_style(str(svg))


def with_style(svg: str) -> str:
    """Let an SVG follow the page: where that is dark, its own style sheet replaces its colours.

    A style sheet has the last word over the attributes `fill` and `stroke` of a drawing.
    """
    rules = (
        f'[{attribute}="{light}" i]{{{attribute}:{dark}}}'
        for light, dark in DARK.items()
        for attribute in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{''.join(rules)}}}</style>"
    start = svg.index(">", svg.index("<svg")) + 1
    return f"{svg[:start]}{style}{svg[start:]}"


def _frame(standings: Standings, title: str) -> dict[str, Any]:
    """What both kinds of plot have alike."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "padding": PADDING,
        "background": PAPER,
        "title": {
            "text": title, "anchor": "start", "frame": "bounds", "fontSize": 15, "color": INK,
            "subtitleColor": DIM,
            "subtitle": f"{standings.agents[0]}: {standings.measure}, mean over held-out prompts, "
            f"{standings.answers}; {standings.interval}",
        },
        "config": axes(),
    }  # fmt: skip


def axes() -> dict[str, Any]:
    """In Vega-Lite: how all plots of studies look."""
    quiet = {"labelColor": INK, "titleColor": INK, "titleFontWeight": "normal"}
    return {
        "font": "Helvetica, Arial, sans-serif",
        "view": {"stroke": None},
        "axis": quiet | {"labelFontSize": 12, "titleFontSize": 12, "gridColor": GRID,
                         "domainColor": DIM, "tickColor": DIM},
    }  # fmt: skip


def _dots(standings: Standings, rows: list[Row]) -> dict[str, Any]:
    """In Vega-Lite: a variant in each row, the best on top, and a line at the first variant."""
    first = standings.variants[0]
    ends = {row.variant: row.last for row in rows}
    order = sorted(ends, key=lambda variant: -ends[variant].mean)
    points = [{"variant": v, "first": v == first} | _values(e) for v, e in ends.items()]
    line_at = f"; the line is at {first}" if first in ends else ""
    x = {
        "field": "mean", "type": "quantitative", "scale": {"zero": False},
        "axis": {"tickCount": 8},  # more would touch each other in a wider font
        "title": f"{standings.measure} in the last round{line_at}",
    }  # fmt: skip
    y = {
        "field": "variant", "type": "nominal", "sort": order, "title": None,
        "axis": {"labelLimit": 0, "grid": True, "ticks": False, "domain": False, "labelPadding": 8},
    }  # fmt: skip
    colour = {"condition": {"test": "datum.first", "value": FIRST}, "value": DOT}
    bars = {"x": x | {"field": "low"}, "x2": {"field": "high"}, "y": y, "color": colour}
    line = {"mark": {"type": "rule", "strokeWidth": 1, "color": FIRST},
            "transform": [{"filter": "datum.first"}], "encoding": {"x": x}}  # fmt: skip
    return {
        "width": WIDTH,
        "padding": PADDING | {"left": 5 + WIDER * max(map(len, order))},
        "height": {"step": ROW},
        "data": {"values": points},
        "layer": [
            line,
            {"mark": {"type": "rule", "strokeWidth": 1.5}, "encoding": bars},
            {"mark": {"type": "point", "filled": True, "size": 55, "opacity": 1},
             "encoding": {"x": x, "y": y, "color": colour}},
        ],
    }  # fmt: skip


def _lines(standings: Standings, rows: list[Row]) -> dict[str, Any]:
    """In Vega-Lite: lines, bars side by side so that all are seen, and names at the right end."""
    step = min(SIDE_BY_SIDE / len(rows), 0.05)
    points: list[dict[str, Any]] = [
        {"variant": row.variant, "round": t + step * (n - (len(rows) - 1) / 2)} | _values(e)
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
    colour = {
        "field": "variant", "type": "nominal", "legend": None,
        "scale": {"domain": list(ends), "range": list(COLOURS[: len(ends)])},
    }  # fmt: skip
    axis = {"values": known_rounds(standings), "format": "d", "grid": False, "title": "round"}
    x = {
        "field": "round", "type": "quantitative", "axis": axis,
        "scale": {"domain": [-0.3, right], "nice": False},
    }  # fmt: skip
    y = {"field": "mean", "type": "quantitative", "title": standings.measure, "scale": scale}
    bars = {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}, "color": colour}
    lead = {"x": x, "x2": {"field": "x"}, "y": y, "y2": {"field": "y"}, "color": colour}
    text = {"x": x | {"field": "x"}, "y": y | {"field": "y"}, "text": {"field": "variant"}}
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "data": {"values": points},
        "layer": [
            {"mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.45}, "encoding": bars},
            {"mark": {"type": "line", "strokeWidth": 2},
             "encoding": {"x": x, "y": y, "color": colour}},
            {"mark": {"type": "point", "filled": True, "size": 40, "opacity": 1},
             "encoding": {"x": x, "y": y, "color": colour}},
            {"data": {"values": labels}, "mark": {"type": "rule", "strokeWidth": 1},
             "encoding": lead},
            {"data": {"values": labels},
             "mark": {"type": "text", "align": "left", "dx": 4, "fontSize": 12, "color": INK},
             "encoding": text},
        ],
    }  # fmt: skip


def _values(estimate: Estimate) -> dict[str, float | None]:
    """Without numbers that JSON does not know."""
    return {k: None if math.isnan(v) else v for k, v in estimate._asdict().items()}


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
