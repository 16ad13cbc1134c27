"""What a person reads: numbers as cells, options spelt out again, costs counted once."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from conftest import OpenRun
from hypothesis import given
from hypothesis import strategies as st

from macpo_data.generation.cost import Ask
from macpo_run.commands.run_options import RunOptions, spelt
from macpo_run.terminal.lines import program, say, say_next
from macpo_run.terminal.steps import StepRow, print_costs, print_steps
from macpo_run.terminal.text import interval, plain, short_number


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.25, 1.5, "0.500 [-.25,1.50]"),
        (0.25, 0.75, "0.500 [.25,.75]"),
        (None, None, "0.500 [none]"),
    ],
)
def test_intervals(low: float | None, high: float | None, expected: str) -> None:
    assert interval({"mean": 0.5, "low": low, "high": high}) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, "0"), (9_999, "9,999"), (10_000, "10.0k"), (9_999_999, "10,000.0k"), (2.5e7, "25.0M"),
     (3e10, "30.0G")],
)  # fmt: skip
def test_short_numbers(number: float, expected: str) -> None:
    assert short_number(number) == expected


def test_text_is_no_markup() -> None:
    text = plain("[red]x[/red]\x1b[2J")
    assert text.plain.startswith("[red]x[/red]") and "\x1b" not in text.plain and not text.spans


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)


@given(st.lists(NAMES), NAMES, st.lists(NAMES))
def test_options_can_be_copied_whole(recipes: list[str], runs: str, sets: list[str]) -> None:
    """A shell reads back what was given, whatever blanks and quotes are in it."""
    words = shlex.split(spelt(recipes, Path(runs), sets))
    folder = ["--runs", str(Path(runs))] if Path(runs) != Path("runs") else []
    expected = [w for name in recipes for w in ("--recipe", name)] + folder
    assert words == expected + [w for setting in sets for w in ("--set", setting)]


def test_no_options_are_no_words() -> None:
    assert str(RunOptions(None)) == "" and str(RunOptions("a b")) == " --recipe 'a b'"


def test_a_program_off_the_path_is_called_by_its_path(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "my bin" / "macpo")])
    assert program() == "'my bin/macpo'"
    say_next("macpo status --recipe macpo")
    assert capsys.readouterr().out == "next: 'my bin/macpo' status --recipe macpo\n"
    monkeypatch.setattr(sys, "argv", ["/usr/lib/macpo/__main__.py"])
    assert program() == "macpo"


def test_of_several_processes_one_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        say(f"rank {rank}")
    assert capsys.readouterr().out == "rank 0\n"


def test_costs_are_added_up(open_run: OpenRun, capsys: pytest.CaptureFixture[str]) -> None:
    """100 calls of 10 tokens in and 20 out, twice, and 50 times 3 calls of the judge: 350 calls,
    2,000 tokens in, 4,000 out, 6,000 at most. Which calls are the judge's, their kind says."""
    run = open_run()
    one, other = run.select("gen", 1)[:2]
    write = Ask("write", "judge what to write", "student", 100, 1, 10.0, 20.0, 30.0)
    judge = Ask("judge", "verdicts", "student", 50, 3, 0.0, 0.0, 0.0)
    print_costs([(one, [write, judge]), (other, [write])], run.recipe, "a guess")
    *rows, note = capsys.readouterr().out.splitlines()
    assert rows[-1].split() == ["all", "350", "2,000", "4,000", "6,000"]
    assert note == "estimated: a guess; the judge of round 1: about 3 calls a prompt"


def test_a_step_shows_its_result_or_what_it_waits_for(
    open_run: OpenRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    step = open_run().plan.steps[0]
    rows = [
        StepRow(step, "done", "data/made", []),
        StepRow(step, "waiting", "data/none", ["one"]),
        StepRow(step, "waiting", "data/none", ["one", "two", "three"]),
    ]
    print_steps(rows, "[b]title[/b]")
    title, _, *lines = capsys.readouterr().out.splitlines()
    assert title.strip() == "[b]title[/b]"
    assert [line.rstrip().rpartition("  ")[2].strip() for line in lines] == [
        "data/made", "one", "one and 2 more",
    ]  # fmt: skip
