"""The table of a study and its plot, from scores written by hand: every number is derived here."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macpo_data.errors import MacpoError
from macpo_data.evaluation.gap import Gap
from macpo_data.evaluation.results import Evaluation
from macpo_data.plan import Policy
from macpo_data.recipe.generation import Sampling
from macpo_data.schema import EVALUATION, JUDGEMENTS, RESPONSES, empty
from macpo_data.stats import Sides, between, holm, paired_p
from macpo_run.sweep.budget import Budget
from macpo_run.sweep.budget import mean as budget_mean
from macpo_run.sweep.plot import DARK, GRID, MOST_LINES, PADDING, PAPER, WIDTH, apart, plot
from macpo_run.sweep.standings import Measured, Standings
from macpo_run.sweep.study import Primary
from macpo_run.sweep.sweep import write
from macpo_run.sweep.table import columns, markdown, notes, primary
from macpo_run.terminal.sweeps import print_standings

GREEDY = Sampling(temperature=0, top_p=1, top_k=0)


def evaluation(means: list[float], prompts: list[list[float | None]] | None = None) -> Evaluation:
    """A student's rounds: their means, and the scores of single prompts, by default one each."""
    rows = [
        {"agent": "student", "behavior": "positive", "round": t, "measure": "gold", "mean": mean,
         "low": mean - 0.1, "high": mean + 0.1, "chars": 50.0 + t, "prompts": 3}
        for t, mean in enumerate(means)
    ]  # fmt: skip
    golds: list[list[float | None]] = prompts or [[mean] for mean in means]
    scores = [
        {"prompt_id": str(i), "agent": "student", "behavior": "positive", "round": t, "gold": gold,
         "response": "one two three", "finish_reason": "stop"}
        for t, of_round in enumerate(golds)
        for i, gold in enumerate(of_round)
    ]  # fmt: skip
    table, responses = (
        pl.DataFrame(each, schema=schema, orient="row")
        for each, schema in ((rows, EVALUATION), (scores, RESPONSES))
    )
    return Evaluation(table, responses, empty(JUDGEMENTS), [], GREEDY)


def test_the_table_between_seeds() -> None:
    """t(0.975; 2 degrees of freedom) = 4.303, so half an interval of 3 seeds is 2.484 deviations.

    Round 1 of a: .5 .6 .7, deviation .1: .6 ± .248. Its change: .1 .1 .4, mean .2, deviation
    .1732: ± .430. b is ahead of a by .1 on the two seeds that both finished, with no deviation.
    """
    a = [evaluation(m) for m in ([0.4, 0.5], [0.5, 0.6], [0.3, 0.7])]
    b = [evaluation(m) for m in ([0.4, 0.6], [0.5, 0.7], [0.9])]
    measured = []
    for seed in range(3):
        measured += [Measured("a", seed, a[seed])]
        measured += [Measured("b", seed, b[seed], "diverged" if seed == 2 else None)]
    standings = Standings(measured, ["student"])
    assert columns(standings, [0, 1]) == {
        "variant": ["a", "b"],
        "round 0": [".400±.248", ".600±.657"],
        "round 1": [".600±.248", ".650±.635"],
        "words": ["3.0", "3.0"],
        "cut": ["0.0%", "0.0%"],
        "pairs": ["", ""],
        "steps": ["", ""],
        "written": ["", ""],
        "change": ["+.200±.430", "+.200±.000"],
        "ahead": ["", "+.100±.000"],
        "p": ["", ""],
        "p Holm": ["", ""],
    }
    assert notes(standings)[-2:] == [
        "not tested, counted as p = 1, since seeds or spread are missing: b",
        "failed: b, seed 2: diverged",
    ]
    assert standings.results.select("variant", "seed", "round").rows()[:4] == [
        ("a", 0, 0), ("a", 0, 1), ("b", 0, 0), ("b", 0, 1)
    ]  # fmt: skip


def by_seed(lasts: dict[str, list[float]]) -> list[Measured]:
    """Variants that end with these scores on the seeds 0, 1, 2, ..."""
    return [
        Measured(variant, seed, evaluation([0.0, score]))
        for variant, scores in lasts.items()
        for seed, score in enumerate(scores)
    ]


# Ahead of the first variant: b by .1 .2 .3, c by .10 .10 .13, d by -.1 0 .1.
LASTS = {
    "a": [0.2, 0.2, 0.2], "b": [0.3, 0.4, 0.5], "c": [0.3, 0.3, 0.33], "d": [0.1, 0.2, 0.3]
}  # fmt: skip
A_TO_B = Primary(first="a", second="b")


def test_every_lead_is_corrected_for_their_number() -> None:
    """With 2 degrees of freedom p = 1 - t / sqrt(t^2 + 2).

    b: mean .2, deviation .1, t = 2 sqrt(3), p = 1 - sqrt(12 / 14) = .0742. c: mean .11, deviation
    .01732, t = 11, p = 1 - 11 / sqrt(123) = .0082. d: t = 0, p = 1. Holm: 3 * .0082, 2 * .0742, 1.
    """
    standings = Standings(by_seed(LASTS), ["student"])
    table = columns(standings, [0, 1])
    assert table["ahead"] == ["", "+.200±.248", "+.110±.043 *", "+.000±.248"]
    assert (table["p"], table["p Holm"]) == (
        ["", ".074", ".008", "1.000"], ["", ".148", ".024", "1.000"]
    )  # fmt: skip
    assert "3 comparisons were corrected (Holm): * significant at .05 after it" in notes(standings)
    assert primary(standings) is None


def test_the_primary_contrast_is_tested_alone() -> None:
    """a - b: -.2 ± 4.303 * .1 / sqrt(3) = .248, and p as above; of the others Holm takes two."""
    standings = Standings(by_seed(LASTS), ["student"], A_TO_B)
    table = columns(standings, [0, 1])
    assert table["ahead"] == ["", "+.200±.248 †", "+.110±.043 *", "+.000±.248"]
    assert table["p Holm"] == ["", "primary", ".016", "1.000"]
    assert primary(standings) == (
        "primary: a minus b in the last round: -.200 (95 % t-interval over 3 seed means -.448 to "
        "+.048), p = .074, tested alone at .05"
    )
    assert "2 comparisons were corrected (Holm): * significant at .05 after it" in notes(standings)
    assert str(primary(standings)) in markdown(standings, "x").replace("\\", "")
    other = Standings(by_seed(LASTS), ["student"], Primary(first="c", second="b"))
    assert columns(other, [1])["p Holm"] == ["", ".148", ".024", "1.000"]
    assert str(primary(other)).startswith("primary: c minus b in the last round: -.090 (95 % t-")


def test_a_variant_that_fails_makes_no_other_significant() -> None:
    """Without d, c alone would have .0082; with d it counts among two, as if d had p = 1."""
    measured = [
        replace(m, problem="diverged") if m.variant == "d" and m.seed else m
        for m in by_seed({name: LASTS[name] for name in "acd"})
    ]
    standings = Standings(measured, ["student"])
    assert columns(standings, [1])["p Holm"] == ["", ".016", ""]
    assert [n for n in notes(standings) if "not tested" in n] == [
        "not tested, counted as p = 1, since seeds or spread are missing: d"
    ]


def test_the_primary_contrast_of_few_seeds() -> None:
    """Of two seeds, differences -.1 and -.3: t = -2, and p = 1 - 2 atan(2) / pi = .295. t(.975) of
    one degree of freedom is 12.706, and the error .1. Of one seed there is no test."""
    two = Standings([m for m in by_seed(LASTS) if m.seed != 1], ["student"], A_TO_B)
    assert primary(two) == (
        "primary: a minus b in the last round: -.200 (95 % t-interval over 2 seed means -1.471 to "
        "+1.071), p = .295, tested alone at .05"
    )
    assert "exploratory: too few seeds for a test of what is ahead" in notes(two)
    assert columns(two, [1])["p"] == ["", ".295", "", ""]
    one = Standings([m for m in by_seed(LASTS) if m.seed == 1], ["student"], A_TO_B)
    assert str(primary(one)).endswith("no test, which takes several seeds")
    assert "p =" not in markdown(one, "x")
    failed = [replace(m, problem="x") if m.seed and m.variant == "b" else m for m in by_seed(LASTS)]
    assert str(primary(Standings(failed, ["student"], A_TO_B))).endswith(
        "-.100; no interval and no test, one seed has both"
    )
    none = [replace(m, problem="x") if m.variant == "b" else m for m in by_seed(LASTS)]
    assert str(primary(Standings(none, ["student"], A_TO_B))).endswith(
        "not known, no seed has both"
    )
    same = Standings(by_seed({"a": [0.1] * 3, "b": [0.3] * 3}), ["student"], A_TO_B)
    assert str(primary(same)).endswith("; no test, since it is the same on every seed")


def test_seeds_are_paired_prompt_by_prompt() -> None:
    """b lacks a score for its last prompt, which is easy: on the other two it is ahead by .1, by
    .2 and by .3, though its own mean is below that of a."""
    measured = []
    for seed in range(3):
        lead = 0.1 * (seed + 1)
        start = [0.0, 0.0, 0.9]
        measured += [
            Measured("a", seed, evaluation([0.3, 0.3], [[*start], [*start]])),
            Measured("b", seed, evaluation([0.3, lead], [[*start], [lead, lead, None]])),
        ]
    assert columns(Standings(measured, ["student"]), [1])["ahead"] == ["", "+.200±.248"]


def test_no_test_without_spread() -> None:
    assert paired_p(np.array([0.1] * 3)) is None and paired_p(np.array([0.1])) is None
    assert paired_p(np.array([])) is None and holm([]) == []
    assert paired_p(np.array([0.1, 0.2, 0.3])) == pytest.approx(1 - math.sqrt(12 / 14))


def test_holm_by_hand() -> None:
    """In order .01 .03 .04: 3 * .01, 2 * .03, and .04, which may not be below the one before."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.999), st.randoms()
)  # fmt: skip
def test_holm_rejects_as_its_procedure_does(
    p_values: list[float], level: float, random: Random
) -> None:
    """Step down: while the smallest p left is at most level / (how many are left), reject it."""
    adjusted, count = holm(p_values), len(p_values)
    rejected = set[int]()
    for rank, n in enumerate(sorted(range(count), key=p_values.__getitem__)):
        if p_values[n] * (count - rank) > level:
            break
        rejected.add(n)
    assert {n for n, p in enumerate(adjusted) if p <= level} == rejected
    assert all(p <= q <= min(1, p * count) for p, q in zip(p_values, adjusted, strict=True))
    order = random.sample(range(count), count)
    assert holm([p_values[n] for n in order]) == [adjusted[n] for n in order]


def test_what_stands_beside_the_scores() -> None:
    """Seed 0 has answers of 1 and 3 words, one of them cut, seed 1 two of 5: (2 + 5) / 2 words,
    (1/2 + 0) / 2 cut. Budgets are means over the seeds; seed 2 failed and is in none."""
    texts = [
        [("a", "length"), ("a b c", "stop")],
        [("a b c d e", "stop")] * 2,
        [("a", "length")] * 2,
    ]
    measured = []
    for seed, answers in enumerate(texts):
        outcome = evaluation([0.1, 0.2], [[0.1, 0.1], [0.2, 0.2]])
        last = pl.col("round") == 1
        before = outcome.responses.filter(~last)
        after = outcome.responses.filter(last).with_columns(
            response=pl.Series([text for text, _ in answers]),
            finish_reason=pl.Series([reason for _, reason in answers]),
        )
        outcome = replace(outcome, responses=before.vstack(after))
        budgets = {"student": Budget(10 + seed, 4, None if seed == 2 else 1000 * (seed + 1))}
        problem = "diverged" if seed == 2 else None
        measured.append(Measured("a", seed, outcome, problem, budgets=budgets))
    table = columns(Standings(measured, ["student"]), [1])
    assert {name: table[name][0] for name in ("words", "cut", "pairs", "steps", "written")} == {
        "words": "3.5", "cut": "25.0%", "pairs": "10.5", "steps": "4", "written": "1,500"
    }  # fmt: skip
    assert budget_mean([Budget(1, None, 2), Budget(3, 1, 4)]) == Budget(2, None, 3)


def test_a_terminal_of_120_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of five rounds, numbers that are not cut in two, long names in several lines."""
    monkeypatch.setenv("COLUMNS", "120")
    sides = Sides(*(np.array([base, base + 0.1]) for base in (0.3, 0.1, 0.9)))
    students = [Policy("student", "positive", 4)]
    scores = pl.DataFrame({"student-positive-4": sides[0], "t-positive-0": sides[1],
                           "student-ceiling-0": sides[2]})  # fmt: skip
    teacher, ceiling = Policy("t", "positive", 0), Policy("student", "ceiling", 0)
    gap = Gap("gold", students, teacher, teacher, ceiling, scores)
    leads = {"MACPO": 0.0, "sharpening, from the best teacher's labels (own likelihood)": 0.1}
    measured = [
        Measured(name, seed, evaluation([0.1] * 4 + [0.2 + lead * (seed + 9)]), gaps={"gold": gap})
        for name, lead in leads.items()
        for seed in range(3)
    ]
    print_standings(Standings(measured, ["student"]))
    lines = capsys.readouterr().out.splitlines()
    end = next(n for n, line in enumerate(lines) if line.startswith("gold: "))
    words = [re.findall(r"[^ │┃]+(?: [^ │┃]+)*", line) for line in lines[:end]]
    assert all(len(line) <= 120 for line in lines[:end])
    titles = ["variant", "round 0", "round 2", "round 4", "words", "cut", "ahead", "gap recovered"]
    assert titles in words
    (row,) = [cells for cells in words if cells and cells[0].startswith("sharpening")]
    assert row[1:] == [
        ".100±.000", ".100±.000", "1.200±.248", "3.0", "0.0%", "+1.000±.248 *", ".250±.000"
    ]  # fmt: skip


def test_the_table_of_one_seed() -> None:
    """Intervals over prompts: a's answers gain .3 each, so that the change has no spread."""
    a = evaluation([0.2, 0.5], [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    b = evaluation([0.2, 0.6], [[0.1, 0.2, 0.3], [0.5, 0.6, 0.7]])
    standings = Standings([Measured("a", 3, a), Measured("b", 3, b)], ["student"])
    one, other = standings.rows
    assert one.ahead is None and other.ahead is not None
    ahead = other.ahead.difference
    assert [round(v, 6) for v in (*one.change, *ahead)] == [0.3] * 3 + [0.1] * 3
    assert one.rounds[0].low < 0.2 < one.rounds[0].high
    assert "over the prompts of one seed" in notes(standings)[0]
    assert notes(standings)[1] == "measured on greedy answers"
    hot = replace(b, sampling=Sampling(temperature=0.7, top_p=1, top_k=0, n=4))
    standings = Standings([Measured("a", 3, a), Measured("b", 3, hot)], ["student"])
    assert notes(standings)[1] == "measured on greedy answers (a); 4 answers at temperature 0.7 (b)"


def test_a_prompt_that_lacks_a_score_is_left_out() -> None:
    """In the last round a has no score for the last prompt, which had gained .9 before.

    Its change is over the other two: .4 - .1 and .5 - .2. b is ahead by .1 on these two; it has a
    last round of its own, and the third prompt's .9 is compared with nothing.
    """
    a = evaluation([0.2] * 3, [[0.1, 0.2, 0.0], [0.1, 0.2, 0.9], [0.4, 0.5, None]])
    b = evaluation([0.2] * 2, [[0.1, 0.2, 0.3], [0.5, 0.6, 0.9]])
    standings = Standings([Measured("a", 3, a), Measured("b", 3, b)], ["student"])
    one, other = standings.rows
    assert other.ahead is not None
    ahead = other.ahead.difference
    assert [round(v, 6) for v in (*one.change, *ahead)] == [0.3] * 3 + [0.1] * 3


def test_nothing_was_measured(tmp_path: Path) -> None:
    standings = Standings([Measured("a|b", 0, None, "no luck")], ["student"])
    written = write(standings, tmp_path, "*title*")
    assert [p.name for p in written] == ["results.parquet", "table.md"]
    assert "- failed: a\\|b, seed 0: no luck" in written[1].read_text()


def test_a_plot_that_fails_costs_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does that of an earlier table stay beside the new one. A bell in a title is fine."""
    standings = Standings([Measured("a", 0, evaluation([0.2], [[0.1, 0.3]]))], ["student"])
    assert write(standings, tmp_path, "a\x07bell")[2].is_file()
    monkeypatch.setattr("macpo_run.sweep.plot.VEGA_LITE", "0.1")
    with pytest.raises(MacpoError, match="no plot, its table is written: "):
        write(standings, tmp_path, "new")
    assert "# new" in (tmp_path / "table.md").read_text()
    assert not (tmp_path / "plot.svg").exists()


@pytest.mark.parametrize("count", [MOST_LINES, MOST_LINES + 1, 20])
def test_the_plot(count: int) -> None:
    """Every name is in it as text, whatever it holds; equal results give equal bytes."""
    names = [f"<b>{n}&" for n in range(count)]
    measured = [Measured(n, s, evaluation([0.1 * s, 0.2])) for s in (0, 1) for n in names]
    standings = Standings(measured, ["student"])
    svg = plot(standings, "title")
    assert svg is not None and svg == plot(standings, "title")
    assert {*names, "title"} <= set(texts_of(svg))
    assert all(name in markdown(standings, "x").replace("\\", "") for name in names)


def texts_of(svg: str) -> list[str]:
    """In the order in which they are drawn."""
    elements = (e for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("text"))
    return ["".join(e.itertext()) for e in elements]


def test_many_variants_are_sorted_by_their_last_round() -> None:
    """One that did not come to its end is left out; of none that did there is no plot."""
    lasts = {f"v{n}": [score, score + 0.01] for n, score in enumerate([5, 1, 8, 2, 7, 3, 6, 4, 9])}
    measured = [replace(m, problem="diverged") if m.variant == "v8" else m for m in by_seed(lasts)]
    svg = plot(Standings(measured, ["student"]), "title") or ""
    names = [text for text in texts_of(svg) if text in lasts]
    assert names == ["v2", "v4", "v6", "v0", "v7", "v5", "v3", "v1"]
    assert "gold in the last round; the line is at v0" in texts_of(svg)
    failed = [replace(m, problem="diverged") for m in measured]
    assert plot(Standings(failed, ["student"]), "title") is None


def test_a_long_name_has_room_in_a_wide_font() -> None:
    """It ends at the plot, and DejaVu's n is .634 of 12 pixels wide, Helvetica's .556."""
    lasts = {f"{letter}{'n' * 60}": [0.1, 0.2] for letter in "abcdefghijkl"}
    svg = plot(Standings(by_seed(lasts), ["student"]), "title") or ""
    width = float(ElementTree.fromstring(svg).attrib["width"])
    assert width - WIDTH - PADDING["right"] >= 60 * 0.634 * 12


def contrast_ratio(one: str, other: str) -> float:
    """By WCAG 2: (lighter + .05) / (darker + .05), of relative luminances."""

    def luminance(colour: str) -> float:
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("count", [MOST_LINES, 12])
def test_the_plot_is_legible_on_a_light_and_a_dark_page(count: int) -> None:
    """Text has the contrast that WCAG asks of it, 4.5; marks are seen, which 2 is enough for."""
    assert contrast_ratio("#000000", "#ffffff") == pytest.approx(21)
    standings = Standings(by_seed({str(n): [n / 10, n / 9] for n in range(count)}), ["student"])
    svg = plot(standings, "title") or ""
    assert "<style>@media (prefers-color-scheme: dark){" in svg
    for page in ({}, DARK):
        paper = page.get(PAPER, PAPER)
        for element in ElementTree.fromstring(svg).iter():
            is_text = element.tag.endswith("text")
            colours = {element.get("fill"), element.get("stroke")} - {None, "none"}
            for colour in colours - {PAPER, GRID}:
                shown = page.get(str(colour), str(colour))
                assert contrast_ratio(shown, paper) >= (4.5 if is_text else 2), colour
                assert colour == shown or f'[fill="{colour}" i]{{fill:{shown}}}' in svg


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=30),
)
def test_labels_do_not_cover_each_other(at: list[float]) -> None:
    named = {str(n): y for n, y in enumerate(at)}
    placed = apart(named, 0, 1, 0.04)
    ys = sorted(placed.values())
    gap = min(0.04, 1 / len(at))
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(ys))
    assert ys[-1] <= 1 and ys[0] >= min(*at, 1 - gap * (len(at) - 1)) - 1e-9
    assert sorted(named, key=named.__getitem__) == sorted(named, key=placed.__getitem__) or (
        len(set(at)) < len(at)
    )


def test_between_needs_two() -> None:
    assert math.isnan(between(np.array([])).mean)
    assert between(np.array([0.5]))[0] == 0.5 and math.isnan(between(np.array([0.5])).low)
