"""What a person reads: numbers as cells, options spelt out again, costs counted once."""

from __future__ import annotations

import shlex
import sys
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Macpo, OpenRun
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from macpo_data.generation.cost import Ask
from macpo_data.plan import Step
from macpo_data.store.store import State
from macpo_run import live_status
from macpo_run.commands import following
from macpo_run.commands.run_options import RunOptions, spelt
from macpo_run.terminal import progress
from macpo_run.terminal.lines import program, say, say_next
from macpo_run.terminal.scores import print_agreement
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
    [(0, "0"), (9_999, "9,999"), (10_000, "10.0k"), (9_999_999, "10.0M"), (2.5e7, "25.0M"),
     (3e10, "30.0G"), (999_949, "999.9k"), (999_950, "1.0M"), (999_999_999, "1.0G")],
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


def test_the_time_left_of_work_that_is_gone_on_with(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """900 of 1000 steps were there before, and 2 more took 40 seconds: 98 take 1960."""
    now = 0.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    with progress.progress("training out") as report:
        for now, done in ((30.0, 900), (50.0, 901), (70.0, 902)):  # noqa: B007
            report(done, 1000, "loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training out: 900/1000 loss 0.5"
    assert lines[2] == "training out: 902/1000 loss 0.5, 0.1/s, 33 min left"


def test_a_rate_of_a_moment_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten samples in the second after the first: nobody knows yet. In three seconds, 20 of 30."""
    now = 0.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    pace = progress._Pace()
    assert pace(0) is None
    now = 1.0
    assert pace(10) is None
    now = 4.0
    assert pace(20) == 5.0


def test_a_bar_says_what_is_elapsed_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is called left before a rate is known."""
    now, console = 0.0, Console(file=StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    with progress._bar(console, "writing") as report:
        report(0, 40, "samples")
        assert isinstance(console.file, StringIO)
        now = 5.0
        report(10, 40, "samples")
    shown = console.file.getvalue()
    assert "elapsed" in shown and "elapsed, 15 s left" in shown


def test_names_are_whole_at_any_width(
    open_run: OpenRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A narrow terminal gets fingerprints; a pipe, which has no width, whole names."""
    run = open_run()
    name = "adapters/a_teacher_of_a_long_name-positive-0-a16bf0fe"
    rows = [
        StepRow(run.plan.steps[1], "done", name, []),
        StepRow(run.plan.steps[2], "waiting", name, ["train round 0 teacher1 positive", "b", "c"]),
    ]
    monkeypatch.delenv("COLUMNS", raising=False)
    print_steps(rows, "runs/x")
    assert f" {name}" in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "80")
    print_steps(rows, "runs/x")
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert " a16bf0fe" in shown and "adapters/" not in shown
    assert "train round 0 teacher1 positive" in " ".join(shown.split())


def test_a_run_says_what_is_left_of_the_whole(macpo: Macpo, recipe_file: Path) -> None:
    done = macpo("run", "--until", "0", "-r", recipe_file, fake=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("[")]
    assert "rounds 0..1: 12 steps to make" in done.stderr
    unknown = "time left unknown, nothing like it was timed yet"
    assert lines[0] == f"[1/12] gen round 0 teacher1; {unknown}"
    assert lines[-1] == "[12/12] train round 0 student negative; all made" and len(lines) == 12
    again = macpo("run", "--until", "0", "-r", recipe_file, fake=True)
    assert "steps to make" not in again.stderr


def test_what_was_never_timed_is_told_by_the_plan_at_the_pace_so_far(
    open_run: OpenRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four steps of 114 s each, and the first takes 288: (288 + 60) / (114 + 60) is twice."""
    run, now = open_run(), 0.0
    steps = [step for step in run.plan.steps if step.round == 0][:4]
    monkeypatch.setattr(following, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(following, "_planned", lambda run, steps: dict.fromkeys(steps, 114.0))
    following.follow(run, steps)
    now = 288.0
    run.on_step(steps[0])
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("4 steps to make; about 8 min left, by the plan")
    assert second.endswith("[1/4] gen round 0 teacher1; about 11 min left")


def test_a_plan_of_real_models_has_seconds_for_every_step(open_run: OpenRun) -> None:
    run = open_run("engine.name=transformers")
    planned = following._planned(run, run.plan.steps)
    assert planned.keys() == set(run.plan.steps)
    assert min(planned.values()) >= following.OVERHEAD < max(planned.values())
    assert following._planned(open_run(), run.plan.steps) == {}


def test_a_watched_run_fits_its_terminal(open_run: OpenRun) -> None:
    """Of nine rounds, five finished: those make way, then the last ones; the foot always stays."""
    run = open_run("rounds=8")
    states: dict[Step, State] = {
        step: "done" if step.round < 5 else "waiting" for step in run.plan.steps
    }
    for size, hidden in (((80, 24), 5), (None, 0), ((120, 200), 0), ((40, 24), 5)):
        console = Console(file=StringIO(), width=size[0] if size else 80)
        bounds = live_status.Size(*size) if size else None
        console.print(live_status.view("x", states, [], "macpo x", "about 9 s left", bounds))
        assert isinstance(console.file, StringIO)
        lines = console.file.getvalue().splitlines()
        assert size is None or len(lines) <= size[1]
        assert "teacher1" in console.file.getvalue() and "…" not in console.file.getvalue()
        foot = " ".join(" ".join(lines).partition("steps done")[2].split())
        assert "about 9 s left" in foot and ("rounds are not shown" in foot) == bool(hidden)


@pytest.mark.parametrize(("alpha", "warned"), [(-0.003, True), (0.19, True), (0.2, False)])
def test_annotators_who_hardly_agree(
    alpha: float, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = {"annotators": ["a", "b"], "verdicts": [3, 4], "krippendorff_alpha": alpha}
    print_agreement({"judge": judge})
    assert ("hardly agree" in capsys.readouterr().out) == warned
