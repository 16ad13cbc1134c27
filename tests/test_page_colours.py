"""The page's colours: readable on paper in light and dark (WCAG AA), and one meaning each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import macpo_data.report.page as folder

CSS = Path(str(folder.__file__)).with_name("page.css").read_text("utf-8")
AGENTS = [f"--c{n}" for n in range(6)]
RECIPES = [f"--r{n}" for n in range(4)]
TEXT = ["--ink", "--quiet", "--good", "--bad", "--c0"]  # links are c0


def palettes() -> dict[str, dict[str, str]]:
    """The variables of the light page, and of the dark one."""
    light, dark = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)[:2]
    return {
        name: dict(re.findall(r"(--[\w]+): (#[0-9a-f]{3,6})", block))
        for name, block in (("light", light), ("dark", dark))
    }


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[n : n + 2], 16) / 255 for n in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """From 1 (none) to 21 (black on white)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_by_hand() -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_text_and_marks_stand_out(name: str) -> None:
    """Text 4.5 to 1 on paper and on the wash of controls; lines and bars 3 to 1 on paper."""
    colours = palettes()[name]
    for each in TEXT:
        assert contrast(colours[each], colours["--paper"]) >= 4.5, each
    for each in ("--ink", "--quiet"):
        assert contrast(colours[each], colours["--wash"]) >= 4.5, each
    for each in [*AGENTS, *RECIPES, "--early", "--late"]:
        assert contrast(colours[each], colours["--paper"]) >= 3, each


@pytest.mark.parametrize("name", ["light", "dark"])
def test_a_colour_means_one_thing(name: str) -> None:
    """Agents, recipes, the two ends of the ramp for rounds, good and bad: all of them differ."""
    colours = palettes()[name]
    used = [colours[each] for each in [*AGENTS, *RECIPES, "--early", "--late", "--good", "--bad"]]
    assert len(used) == len({*used})
    # Later rounds are further from paper.
    late, early = (contrast(colours[f"--{end}"], colours["--paper"]) for end in ("late", "early"))
    assert late > 2 * early


def test_a_share_written_into_a_bar_can_be_read() -> None:
    for colours in palettes().values():
        assert min(contrast(colours[each], colours["--paper"]) for each in AGENTS[:4]) >= 4.5
