"""Helpers for all tables here: plain text, a plain table, numbers as cells."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from macpo_data.errors import plain as without_controls


def plain(text: str) -> Text:
    """Text as data: no markup, and no control characters."""
    return Text(without_controls(text))


def make_table(*columns: Column | str, title: str | None = None) -> Table:
    """A table without lines, its title at the left."""
    head = None if title is None else plain(title)
    return Table(*columns, title=head, title_justify="left", box=None, pad_edge=False)


def interval(estimate: Mapping[str, Any]) -> str:
    """An estimate with its 95 % interval; that of a single row has none.

    >>> interval({"mean": 0.5, "low": -0.25, "high": 1.5})
    '0.500 [-.25,1.50]'
    """
    if estimate["low"] is None:
        return f"{estimate['mean']:.3f} [none]"
    low, high = (re.sub(r"^(-?)0\.", r"\1.", f"{estimate[k]:.2f}") for k in ("low", "high"))
    return f"{estimate['mean']:.3f} [{low},{high}]"


def duration(seconds: float) -> str:
    """A time as a person wants to read it.

    >>> [duration(s) for s in (0, 0.2, 59, 119, 150, 5400, 360_000)]
    ['0 s', '<1 s', '59 s', '119 s', '2 min', '1.5 h', '100 h']
    """
    if seconds < 120:
        return "<1 s" if 0 < seconds < 0.5 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 36_000 else f"{seconds / 3600:,.0f} h"


def short_number(value: float) -> str:
    """A count in a few characters.

    >>> [short_number(n) for n in (9_999, 10_000, 999_960, 1_000_000, 25_000_000)]
    ['9,999', '10.0k', '1.0M', '1.0M', '25.0M']
    """
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # What would be written as 1,000.0 of the unit below is one of this unit.
        if round(value) >= (10 * unit if name == "k" else 0.99995 * unit):
            return f"{value / unit:,.1f}{name}"
    return f"{value:,.0f}"
