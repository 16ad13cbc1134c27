"""Studies: what is shared is made once, a failure stops nobody else, and the table is right."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import resources
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
import yaml
from conftest import Macpo, no_progress
from hypothesis import given
from hypothesis import strategies as st

from macpo_data.budget import Budget, spent, words_in
from macpo_data.budget import mean as budget_mean
from macpo_data.errors import MacpoError
from macpo_data.evaluate import Evaluation
from macpo_data.gap import Gap
from macpo_data.generate import versions
from macpo_data.plan import Policy
from macpo_data.provenance import commit, provenance
from macpo_data.recipe import Sampling
from macpo_data.schema import EVALUATION, JUDGEMENTS, RESPONSES, empty
from macpo_data.show import print_standings, print_sweep
from macpo_data.standings import Measured, Standings
from macpo_data.standings_plot import DARK, MOST_LINES, PAPER, apart, plot
from macpo_data.standings_plot import GRID as GRID_LINES
from macpo_data.standings_table import columns, markdown, notes, primary
from macpo_data.stats import Sides, between, holm, paired_p
from macpo_data.study import Primary, load_study, parse_grid, parse_seeds, shipped, variants
from macpo_data.world import VERSION
from macpo_run.cleaning import unreachable
from macpo_run.sweeps import Sweep, about, recorded, said, write

GREEDY = Sampling(temperature=0, top_p=1, top_k=0)
OpenSweep = Callable[..., Sweep]
GRID = {"dpo.beta": [0.05, 0.1], "select.by": ["perplexity", "random"]}
IMPOSSIBLE = {"select.min_chars": 10_000, "select.on_filter": "drop"}


@pytest.fixture
def open_sweep(recipe_file: Path, tmp_path: Path) -> OpenSweep:
    """A sweep of the small recipe on the fake engine."""

    def call(**fields: Any) -> Sweep:
        study = load_study(None, {"recipe": str(recipe_file), **fields})
        family = variants(study, ["engine.name=fake"])
        return Sweep(study, family, tmp_path / "runs", no_progress, lambda line: None)

    return call


def made(root: Path) -> set[Path]:
    return {
        p for kind in ("data/round-*", "adapters/*") for p in root.glob(f"{kind}/manifest.json")
    }


# ---------------------------------------------------------------------------- sharing


def test_the_plan_says_what_is_made(open_sweep: OpenSweep) -> None:
    """Four variants of 12 steps: what the measured student does not learn from is left out.

    Round 0 is shared by all: data and a positive policy of each teacher, the negative twin of the
    one who labels, data, policy and twin of the student (3 + 3 + 1 + 3). In round 1 the student's
    data depend on select.by alone (2), its training also on beta (4): 10 + 2 + 4 = 16. Nobody asks
    what the teachers learn from it afterwards.
    """
    sweep = open_sweep(grid=GRID)
    plan = sweep.outline()
    assert sum(steps for _, steps, _, _ in plan.variants) == 4 * 12
    assert [new for _, _, new, _ in plan.variants] == [12, 2, 1, 1]
    assert (plan.distinct, plan.todo) == (16, 16)
    sweep.make()
    root = sweep.home.store.root
    assert len(made(root)) == 16
    before = {p: p.stat().st_mtime_ns for p in made(root)}
    again = open_sweep(grid=GRID)
    assert (again.outline().todo, again.todo(again.answers)) == (0, [])
    again.make()
    assert {p: p.stat().st_mtime_ns for p in made(root)} == before


def test_a_killed_sweep_goes_on(recipe_file: Path, tmp_path: Path) -> None:
    args = [
        "sweep",
        "-r",
        str(recipe_file),
        "--grid",
        "sft.epochs=1,2",
        "--until",
        "0",
        "--seeds",
        "3,",
    ]
    command = [sys.executable, "-m", "cli", *args, "--set", "engine.name=fake", "--runs"]
    assert subprocess.run([*command, "whole"], cwd=tmp_path, capture_output=True).returncode == 0
    whole, killed = tmp_path / "whole" / "test", tmp_path / "killed" / "test"
    total = len(made(whole))
    process = subprocess.Popen(
        [*command, "killed"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and len(made(killed)) < total // 2:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < len(made(killed)) < total
    done = subprocess.run([*command, "killed"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert "[2/2] sft.epochs=2, seed 3: " in done.stderr
    assert {p.relative_to(killed) for p in made(killed)} == {
        p.relative_to(whole) for p in made(whole)
    }
    for name in ("table.md", "plot.svg"):
        (one,), (other,) = (root.glob(f"sweep/*/{name}") for root in (killed, whole))
        assert one.read_bytes() == other.read_bytes()


def test_one_variant_fails_and_the_others_go_on(macpo: Macpo, recipe_file: Path) -> None:
    study = recipe_file.with_name("study.yaml")
    study.write_text(
        f"recipe: {recipe_file}\nrun: one\nvariants:\n  none left: {IMPOSSIBLE}\n  fine: {{}}\n"
    )
    found = macpo("sweep", "./study.yaml", fake=True)
    assert found.returncode == 1 and "Traceback" not in found.stderr
    assert "[1/2] none left, seed 0: failed: " in found.stderr
    table = (study.parent / "runs/one/sweep/study/table.md").read_text()
    assert "failed: none left, seed 0: gen round 0 student: no pair is left" in table
    results = pl.read_parquet(study.parent / "runs/one/sweep/study/results.parquet")
    assert results.filter(variant="fine")["round"].unique().sort().to_list() == [0, 1]
    assert results.filter(variant="none left").is_empty()  # its student was never trained


def test_a_variant_without_memory_is_a_line(
    open_sweep: OpenSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a worker says of a failure that nobody foresaw ends in its name."""
    sweep = open_sweep(grid={"dpo.beta": [0.1, 0.2]}, rounds=0)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("in the process of teacher1:\nTraceback ...\nMemoryError: no memory")

    monkeypatch.setattr(sweep.runs[0], "make", fail)
    first, second = sweep.make().measured
    assert first.problem == "MemoryError: no memory" and second.problem is None


def test_who_is_measured(open_sweep: OpenSweep) -> None:
    found = open_sweep(agents=["student", "teacher3"], variants={
        "three": {}, "two": {"agents.teacher3": None}
    }).make()  # fmt: skip
    assert [(row.variant, row.agent) for row in found.rows] == [
        ("three", "student"), ("two", "student"), ("three", "teacher3")
    ]  # fmt: skip
    assert columns(found, [0, 1])["variant"][0] == "three, student"
    assert open_sweep(agents=["student", "student"], seeds=2).agents == ["student"]
    with pytest.raises(
        MacpoError, match=r"no agent 'x' that is trained: measure student, teacher1"
    ):
        open_sweep(agents=["x"], seeds=2)
    referee = {"agents.referee": {"role": "judge", "base": "x"}}
    with pytest.raises(MacpoError, match=r"no agent 'referee' that is trained"):
        open_sweep(agents=["referee"], seeds=2, set=referee)


def test_a_bare_base_as_baseline(open_sweep: OpenSweep) -> None:
    """It is in the results, and no round of the table; one that is not there is told at once."""
    found = open_sweep(seeds=2, rounds=0, set={"eval.against": "student-base"}).make()
    assert None in found.results["round"].to_list()
    assert [list(row.rounds) for row in found.rows] == [[0]] and not found.rows[0].problems
    with pytest.raises(MacpoError, match=r"late: eval.against: no policy 'student-positive-9'"):
        open_sweep(variants={"fine": {}, "late": {"eval.against": "student-positive-9"}})


def test_one_yardstick_for_all(open_sweep: OpenSweep) -> None:
    """Answers are compared with those of a round 0 that another training made."""
    human = {"data.source": "world", "eval.against": "student-positive-0"}
    other = open_sweep(grid={"sft.epochs": [1, 2]}, set=human, rounds=1).make()
    assert other.is_fair  # the gold score needs none
    wins = [
        Measured(m.variant, m.seed, m.evaluation and only(m.evaluation, "win"), None, m.yardsticks)
        for m in other.measured
    ]
    (said,) = [n for n in notes(Standings(wins, ["student"])) if "yardstick" in n]
    assert "win depends on" in said
    assert Standings([*wins[:1], *wins[:1]], ["student"]).is_fair
    assert not open_sweep(grid={"data.test.count": [3, 4]}, rounds=0).make().is_fair


def only(found: Evaluation, measure: str) -> Evaluation:
    return replace(found, table=found.table.filter(measure=measure))


def test_processes_of_its_own_end_with_a_variant(
    open_sweep: OpenSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are shared go on to the end."""
    sweep, closed = open_sweep(grid={"engine.batch_size": [4, 8]}, rounds=0), []
    for n, run in enumerate(sweep.runs):
        monkeypatch.setattr(run, "close", lambda kill=False, n=n: closed.append(n))
    home = sweep.home.recipe.engine.batch_size
    sweep.make()
    assert set(closed) == {
        n for n, run in enumerate(sweep.runs) if run.recipe.engine.batch_size != home
    } != set()  # fmt: skip


def test_a_converged_run_has_no_later_steps(open_sweep: OpenSweep) -> None:
    """Whatever the student gains is too little; another variant makes all rounds all the same."""
    stop = {"stop": "converged", "stop_below": 1.0}
    sweep = open_sweep(variants={"all": {}, "stops": stop}, rounds=3)
    assert not sweep.twins()
    found = sweep.make()
    plan = sweep.outline()
    (_, whole, _, _), (_, some, _, _) = plan.variants
    assert some < whole and plan.todo == 0 and plan.left == "nothing is left to make"
    assert [list(row.rounds) for row in found.rows] == [[0, 1, 2, 3], [0, 1, 2]]
    alone = open_sweep(variants={"stops": stop}, rounds=3, run="alone")
    alone.make()
    assert alone.outline().todo == 0 and not alone.todo(alone.answers)


def test_answers_are_left_to_make_too(
    open_sweep: OpenSweep, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = open_sweep(seeds=2, rounds=0)
    for run in sweep.runs:
        run.finish_round(0)
    print_sweep(sweep.outline())
    assert "0 to make\n" in (told := capsys.readouterr().out) and "nothing is left" not in told
    sweep.make()
    print_sweep(sweep.outline())
    assert "nothing is left to make" in capsys.readouterr().out


def test_two_studies_in_one_folder(open_sweep: OpenSweep) -> None:
    one, other = open_sweep(seeds=2), open_sweep(seeds=3)
    assert one.folder != other.folder and one.folder.parent == other.folder.parent
    assert Sweep(one.study, one.variants, Path("runs"), no_progress, print, "..").folder == Path(
        "runs/test/sweep/__"
    )


def test_the_runs_own_reward_model_is_trained_first(open_sweep: OpenSweep) -> None:
    found = open_sweep(seeds=2, rounds=0, set={"eval.reward": "trained"}).make()
    assert set(found.results["measure"]) == {"gold", "reward"}
    # Behind the prompts, which are each seed's own.
    said = {
        of: {m.yardsticks[of].split(" ", 1)[1] for m in found.measured} for of in ("gold", "reward")
    }
    assert [len(each) for each in said.values()] == [1, 2]  # each seed has a model of its own
    assert not any(m.problem for m in found.measured)


def test_variants_that_come_out_the_same(open_sweep: OpenSweep) -> None:
    sweep = open_sweep(grid={"engine.batch_size": [4, 8], "dpo.beta": [0.1, 0.2]}, seeds=2)
    assert sweep.twins() == [
        (f"engine.batch_size=4, dpo.beta={b}", f"engine.batch_size=8, dpo.beta={b}")
        for b in (0.1, 0.2)
    ]
    assert not open_sweep(grid={"eval.against": ["chosen", "student-base"]}).twins()


def test_clean_keeps_what_a_sweep_made(open_sweep: OpenSweep, macpo: Macpo) -> None:
    sweep = open_sweep(grid=GRID)
    sweep.make()
    ((path, runs),) = recorded(sweep.home)
    assert unreachable([sweep.home]) and not unreachable([sweep.home, *runs])
    args = ("clean", "-r", "recipe.yaml")
    kept = macpo(*args, fake=True)
    assert "every result is reached" in kept.stdout and str(path.name) in kept.stderr
    assert path.parent == sweep.folder
    path.unlink()
    assert "unreached" in macpo(*args, fake=True).stdout
    path.write_text("[[1]]")
    with pytest.raises(MacpoError, match="remove it, if its results may go"):
        list(recorded(sweep.home))


# ---------------------------------------------------------------------------- time left


def test_the_time_left(open_sweep: OpenSweep) -> None:
    sweep = open_sweep(grid={"dpo.beta": [0.05, 0.1]})
    answers = 3  # of the student: in round 0, and of each variant in round 1
    assert sweep.seconds_left() == (0, 10 + 1 + 2 + answers)
    assert said(*sweep.seconds_left()) == "time left unknown, nothing like it was timed yet"
    elsewhere = open_sweep(run="other", seeds=[0])
    elsewhere.make()
    seconds, untimed = sweep.seconds_left()
    assert seconds > 0 and not untimed
    other = open_sweep(variants={"spin": {"method": "spin"}}, run="spin")
    assert other.seconds_left()[1] == 0  # another method's datasets tell about how long
    sweep.make()
    assert sweep.seconds_left() == (0, 0)


def test_the_nearest_size_tells() -> None:
    """Of 4, 100 and 110 prompts the last is nearest to 150: 11 s and 13 s, times 150 / 110."""
    timed = [(4, 3.0), (100, 5.0), (110, 11.0), (110, 13.0)]
    assert about(timed, 150) == pytest.approx(12 * 150 / 110)


def test_nobody_knows_how_many_all_are(open_sweep: OpenSweep) -> None:
    """What some prompts took tells nothing of a source that is read to its end."""
    open_sweep(seeds=[0]).make()
    whole = {"data.d1.count": None, "data.d2.count": 4}
    sweep = open_sweep(seeds=2, run="whole", set=whole)
    assert sweep.seconds_left()[1] == len(sweep.steps)


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        ((40, 0), "about 40 s left"),
        ((600, 0), "about 10 min left"),
        ((9000, 2), "about 2.5 h left, without 2 of a kind that was never timed"),
    ],
)
def test_time_as_it_is_said(left: tuple[float, int], expected: str) -> None:
    assert said(*left) == expected


# ---------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--grid", "dpo.beta="], "--grid dpo.beta=: write it as key.key=value,value"),
        (["--grid", "dpo.beta"], "--grid dpo.beta: write it as"),
        (["--grid", "dpo.beta=[1"], "write it as"),
        (["--grid", "dpo.betta=1,2"], "quickstart, dpo.betta=1: dpo.betta: unknown key"),
        (["--grid", "dpo.beta=0.1,strong"], "quickstart, dpo.beta=strong: dpo.beta: "),
        (["--grid", "run=a,b"], "'run=a': run: all variants share it; say --run"),
        (["--grid", "seed=1,2"], "seed: all variants share it; say --seeds"),
        (["--grid", "rounds=1,2"], "rounds: all variants share it; say --until"),
        (["--seeds", "1,2", "--set", "seed=3"], "the study lists its seeds; choose others with"),
        (["--grid", "dpo.beta=1", "--grid", "dpo.beta=2"], "dpo.beta was given before"),
        (["--grid", "dpo.beta=1,1"], "two variants are called 'dpo.beta=1'"),
        (["--grid", "dpo.beta={a: &x [*x]}"], "grid dpo.beta: Circular reference"),
        (["--grid", r'dpo.loss="a\x07b",ipo'], r"variant 'dpo.loss=a\\x07b': its name goes into"),
        (["./bell.yaml"], r"variant 'a\\nb': its name goes into tables"),
        (["--seeds", "x"], "--seeds x: write a count such as 3, or seeds"),
        (["--seeds", "0"], "sweep: seeds: input should be greater than or equal to 1"),
        (["--seeds", ""], "--seeds : write a count"),
        (["--seeds", "1000000000000"], "sweep: seeds: input should be less than or equal to 1000"),
        (["--seeds", "2", "--set", "seed=4294967295"], "seeds: there is none above 4294967295"),
        (
            ["-r", "hh_helpful", "--seeds", "2"],
            "nothing would measure the answers: set eval.reward",
        ),
        (["baselinez"], "no study named 'baselinez'; shipped are .*noise"),
        (["./none.yaml"], "cannot read study ./none.yaml"),
        (["./third.yaml"], "primary: no variant 'c'; choose among: a; b"),
        (["./twice.yaml"], "primary: 'a' is both sides; name two variants"),
        (["./half.yaml"], "study ./half.yaml: primary.second: "),
        (["./bad.yaml"], "study ./bad.yaml: grid.dpo.beta: list should have.*; grids: unknown"),
        ([], "nothing to compare: "),
    ],
)
def test_a_mistake_is_one_line(
    args: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    import cli

    monkeypatch.chdir(tmp_path)
    Path("bell.yaml").write_text(r'variants: {"a\nb": {}, b: {}}')
    for name, sides in {"third": "first: a, second: c", "twice": "first: a, second: a"}.items():
        Path(f"{name}.yaml").write_text(f"variants: {{a: {{}}, b: {{}}}}\nprimary: {{{sides}}}")
    Path("half.yaml").write_text("variants: {a: {}, b: {}}\nprimary: {first: a}")
    Path("bad.yaml").write_text("grid: {dpo.beta: []}\ngrids: {}\n")
    monkeypatch.setattr(sys, "argv", ["macpo", "sweep", *args])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    message = str(ended.value.code)
    assert re.search(expected, message) and "\n" not in message
    assert not Path("runs").exists()


def test_what_a_person_types() -> None:
    assert parse_grid(["a.b=0.1,null,[x, y]", "c=yes"]) == {
        "a.b": [0.1, None, ["x", "y"]], "c": [True]
    }  # fmt: skip
    assert (parse_seeds("3"), parse_seeds("3,4"), parse_seeds("5,")) == (3, [3, 4], [5])


def test_settings_have_an_order(recipe_file: Path) -> None:
    """File, study, variant, grid, command line: each has its say over those before it."""
    fields = {
        "recipe": str(recipe_file), "seeds": 2, "rounds": 5,
        "set": {"dpo.beta": 1, "dpo.gamma": 1, "seed": 7, "lora.r": 1},
        "variants": {"a": {"dpo.gamma": 2, "lora.r": 2}}, "grid": {"lora.r": [3]},
    }  # fmt: skip
    found = variants(load_study(None, fields), ["dpo.loss=ipo", "lora.alpha=9"])
    assert [v.name for v in found] == ["a, lora.r=3"] * 2
    assert [v.recipe.seed for v in found] == [7, 8]
    recipe = found[0].recipe
    assert (recipe.dpo.beta, recipe.dpo.gamma, recipe.lora.r, recipe.rounds) == (1, 2, 3, 5)
    assert (recipe.dpo.loss, recipe.lora.alpha, recipe.dpo.epochs) == ("ipo", 9, 1)


# ---------------------------------------------------------------------------- the table


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
    found = Standings(measured, ["student"])
    assert columns(found, [0, 1]) == {
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
    assert notes(found)[-2:] == [
        "not tested, counted as p = 1, since seeds or spread are missing: b",
        "failed: b, seed 2: diverged",
    ]
    assert found.results.select("variant", "seed", "round").rows()[:4] == [
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
    found = Standings(by_seed(LASTS), ["student"])
    table = columns(found, [0, 1])
    assert table["ahead"] == ["", "+.200±.248", "+.110±.043 *", "+.000±.248"]
    assert (table["p"], table["p Holm"]) == (
        ["", ".074", ".008", "1.000"], ["", ".148", ".024", "1.000"]
    )  # fmt: skip
    assert "3 comparisons were corrected (Holm): * significant at .05 after it" in notes(found)
    assert primary(found) is None


def test_the_primary_contrast_is_tested_alone() -> None:
    """a - b: -.2 ± 4.303 * .1 / sqrt(3) = .248, and p as above; of the others Holm takes two."""
    found = Standings(by_seed(LASTS), ["student"], A_TO_B)
    table = columns(found, [0, 1])
    assert table["ahead"] == ["", "+.200±.248 †", "+.110±.043 *", "+.000±.248"]
    assert table["p Holm"] == ["", "primary", ".016", "1.000"]
    assert primary(found) == (
        "primary: a minus b in the last round: -.200 (95 % t-interval over 3 seed means -.448 to "
        "+.048), p = .074, tested alone at .05"
    )
    assert "2 comparisons were corrected (Holm): * significant at .05 after it" in notes(found)
    assert str(primary(found)) in markdown(found, "x").replace("\\", "")
    other = Standings(by_seed(LASTS), ["student"], Primary(first="c", second="b"))
    assert columns(other, [1])["p Holm"] == ["", ".148", ".024", "1.000"]
    assert str(primary(other)).startswith("primary: c minus b in the last round: -.090 (95 % t-")


def test_a_variant_that_fails_makes_no_other_significant() -> None:
    """Without d, c alone would have .0082; with d it counts among two, as if d had p = 1."""
    measured = [
        replace(m, problem="diverged") if m.variant == "d" and m.seed else m
        for m in by_seed({name: LASTS[name] for name in "acd"})
    ]
    found = Standings(measured, ["student"])
    assert columns(found, [1])["p Holm"] == ["", ".016", ""]
    assert [n for n in notes(found) if "not tested" in n] == [
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
        found = evaluation([0.1, 0.2], [[0.1, 0.1], [0.2, 0.2]])
        last = pl.col("round") == 1
        before = found.responses.filter(~last)
        after = found.responses.filter(last).with_columns(
            response=pl.Series([text for text, _ in answers]),
            finish_reason=pl.Series([reason for _, reason in answers]),
        )
        found = replace(found, responses=before.vstack(after))
        budgets = {"student": Budget(10 + seed, 4, None if seed == 2 else 1000 * (seed + 1))}
        problem = "diverged" if seed == 2 else None
        measured.append(Measured("a", seed, found, problem, budgets=budgets))
    table = columns(Standings(measured, ["student"]), [1])
    assert {name: table[name][0] for name in ("words", "cut", "pairs", "steps", "written")} == {
        "words": "3.5", "cut": "25.0%", "pairs": "10.5", "steps": "4", "written": "1,500"
    }  # fmt: skip
    assert budget_mean([Budget(1, None, 2), Budget(3, 1, 4)]) == Budget(2, None, 3)


def test_what_training_took(open_sweep: OpenSweep) -> None:
    """Pairs and steps of rounds 1 and 2 alone; words of all that was written to D2, each once.

    A placeholder takes no steps, so that those of a training are laid into its manifest.
    """
    sweep = open_sweep(seeds=[0], rounds=2, set={"eval.against": "student-base"})
    first = sweep.make()
    run = sweep.runs[0]
    rounds = {t: Policy("student", "positive", t) for t in range(3)}
    steps = {t: step for t, policy in rounds.items() if (step := run.plan.maker(policy))}
    pairs = {t: len(run.store.read(run.plan.name(run.plan.dataset(s)), "pairs.parquet"))
             for t, s in steps.items()}  # fmt: skip
    files = list(run.store.root.glob("samples/*-d2-*/shards/*.parquet"))
    texts = [text for file in files for text in pl.read_parquet(file)["response"]]
    words = sum(len(text.split()) for text in texts)
    (row,) = first.rows
    assert row.budget == Budget(pairs[1] + pairs[2], 0, words) and words > 0 < pairs[1]
    for t, count in {0: 9, 1: 3, 2: 4}.items():
        name = run.plan.name(steps[t])
        manifest = run.store.manifest(name) or {}
        run.store.finish(name, manifest | {"history": [{"step": n} for n in range(count)]})
    (row,) = open_sweep(seeds=[0], rounds=2, set={"eval.against": "student-base"}).make().rows
    assert row.budget == Budget(pairs[1] + pairs[2], 7, words)
    shutil.rmtree(run.store.root / "samples")
    assert spent(run.plan, run.store, rounds[2], partial(words_in, run.store)).words is None


def test_the_table_says_where_it_comes_from(open_sweep: OpenSweep) -> None:
    sweep = open_sweep(seeds=[4, 7], rounds=0)
    text = markdown(sweep.make(), "x")
    assert text.startswith("# x\n\n- seeds: 4, 7; digest of all recipes: " + sweep.digest)
    versions_ = versions()
    assert f"macpo {versions_['versions']['macpo']}" in text and "engine fake" in text
    assert f"Python {versions_['python']}" in text
    assert f"world, version {VERSION}: world:strong, world:weak-a, world:weak-b" in text
    hashes = re.findall(r"macpo at commit ([0-9a-f]{40})(?:-dirty)?\n", text)
    assert hashes == ([] if commit() is None else [str(commit()).removesuffix("-dirty")])
    two = provenance([], "d", [{"versions": {"torch": v}, "python": "3.11"} for v in ("2", "1")])
    assert two.packages == {"torch": ["1", "2"], "Python": ["3.11"]}


def test_the_last_lines_of_the_screen(macpo: Macpo, recipe_file: Path) -> None:
    """The primary contrast, and where everything is."""
    study = {
        "recipe": str(recipe_file), "run": "one", "rounds": 0, "seeds": 2,
        "variants": {"a": {}, "b": {"sft.epochs": 2}}, "primary": {"first": "a", "second": "b"},
    }  # fmt: skip
    recipe_file.with_name("study.yaml").write_text(yaml.dump(study))
    made = macpo("sweep", "./study.yaml", fake=True)
    assert made.returncode == 0, made.stderr
    lines = made.stdout.splitlines()
    assert lines[-4].startswith("primary: a minus b in the last round: ")
    assert [Path(line.split()[-1]).name for line in lines[-3:]] == [
        "results.parquet", "table.md", "plot.svg"
    ]  # fmt: skip


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
    found = Standings([Measured("a", 3, a), Measured("b", 3, b)], ["student"])
    one, other = found.rows
    assert one.ahead is None and other.ahead is not None
    ahead = other.ahead.difference
    assert [round(v, 6) for v in (*one.change, *ahead)] == [0.3] * 3 + [0.1] * 3
    assert one.rounds[0].low < 0.2 < one.rounds[0].high
    assert "over the prompts of one seed" in notes(found)[0]
    assert notes(found)[1] == "measured on greedy answers"
    hot = replace(b, sampling=Sampling(temperature=0.7, top_p=1, top_k=0, n=4))
    found = Standings([Measured("a", 3, a), Measured("b", 3, hot)], ["student"])
    assert notes(found)[1] == "measured on greedy answers (a); 4 answers at temperature 0.7 (b)"


def test_a_prompt_that_lacks_a_score_is_left_out() -> None:
    """In the last round a has no score for the last prompt, which had gained .9 before.

    Its change is over the other two: .4 - .1 and .5 - .2. b is ahead by .1 on these two; it has a
    last round of its own, and the third prompt's .9 is compared with nothing.
    """
    a = evaluation([0.2] * 3, [[0.1, 0.2, 0.0], [0.1, 0.2, 0.9], [0.4, 0.5, None]])
    b = evaluation([0.2] * 2, [[0.1, 0.2, 0.3], [0.5, 0.6, 0.9]])
    found = Standings([Measured("a", 3, a), Measured("b", 3, b)], ["student"])
    one, other = found.rows
    assert other.ahead is not None
    ahead = other.ahead.difference
    assert [round(v, 6) for v in (*one.change, *ahead)] == [0.3] * 3 + [0.1] * 3


def test_nothing_was_measured(tmp_path: Path) -> None:
    found = Standings([Measured("a|b", 0, None, "no luck")], ["student"])
    written = write(found, tmp_path, "*title*")
    assert [p.name for p in written] == ["results.parquet", "table.md"]
    assert "- failed: a\\|b, seed 0: no luck" in written[1].read_text()


def test_a_plot_that_fails_costs_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does that of an earlier table stay beside the new one. A bell in a title is fine."""
    found = Standings([Measured("a", 0, evaluation([0.2], [[0.1, 0.3]]))], ["student"])
    assert write(found, tmp_path, "a\x07bell")[2].is_file()
    monkeypatch.setattr("macpo_data.standings_plot.VEGA_LITE", "0.1")
    with pytest.raises(MacpoError, match="no plot, its table is written: "):
        write(found, tmp_path, "new")
    assert "# new" in (tmp_path / "table.md").read_text()
    assert not (tmp_path / "plot.svg").exists()


@pytest.mark.parametrize("count", [MOST_LINES, MOST_LINES + 1, 20])
def test_the_plot(count: int) -> None:
    """Every name is in it as text, whatever it holds; equal results give equal bytes."""
    names = [f"<b>{n}&" for n in range(count)]
    measured = [Measured(n, s, evaluation([0.1 * s, 0.2])) for s in (0, 1) for n in names]
    found = Standings(measured, ["student"])
    svg = plot(found, "title")
    assert svg is not None and svg == plot(found, "title")
    assert {*names, "title"} <= set(texts_of(svg))
    assert all(name in markdown(found, "x").replace("\\", "") for name in names)


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
    found = Standings(by_seed({str(n): [n / 10, n / 9] for n in range(count)}), ["student"])
    svg = plot(found, "title") or ""
    assert "<style>@media (prefers-color-scheme: dark){" in svg
    for page in ({}, DARK):
        paper = page.get(PAPER, PAPER)
        for element in ElementTree.fromstring(svg).iter():
            is_text = element.tag.endswith("text")
            colours = {element.get("fill"), element.get("stroke")} - {None, "none"}
            for colour in colours - {PAPER, GRID_LINES}:
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


# ---------------------------------------------------------------------------- shipped studies


def block_keys(node: yaml.Node | None) -> Iterator[int]:
    """The lines of keys that have one of their own."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style:
        for key, value in node.value:
            yield key.start_mark.line
            yield from block_keys(value)


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_study(name: str, tmp_path: Path) -> None:
    """It loads, its steps can be planned without a model, and each key or series is explained."""
    study = load_study(name, {})
    sweep = Sweep(study, variants(study), tmp_path, no_progress, lambda line: None)
    plan = sweep.outline()
    assert 0 < plan.todo == plan.distinct and not sweep.twins()
    text = (resources.files("recipes") / "studies" / f"{name}.yaml").read_text("utf-8")
    lines = text.splitlines()
    assert f"#     macpo sweep {name}" in lines
    keys = list(block_keys(yaml.compose(text)))
    assert len(keys) > 4
    explained = re.compile(r"\s*# \S")
    alike = [re.sub(r"[\d.e-]+", "", line) for line in lines]  # a series differs in numbers alone
    assert [
        lines[i] for i in keys if not explained.match(lines[i - 1]) and alike[i] != alike[i - 1]
    ] == []


def test_between_needs_two() -> None:
    assert math.isnan(between(np.array([])).mean)
    assert between(np.array([0.5]))[0] == 0.5 and math.isnan(between(np.array([0.5])).low)
