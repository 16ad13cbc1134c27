"""Studies: what is shared is made once, a failure stops nobody else, and what is told of them."""

from __future__ import annotations

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
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from conftest import Macpo, no_progress

from macpo_data.errors import MacpoError
from macpo_data.evaluation.results import Evaluation
from macpo_data.plan import Policy
from macpo_data.shipped_recipes import recipes_folder
from macpo_data.versions import versions
from macpo_data.world.bases import VERSION
from macpo_run.cleaning import unreachable
from macpo_run.sweep.budget import Budget, spent, words_in
from macpo_run.sweep.provenance import commit, provenance
from macpo_run.sweep.standings import Measured, Standings
from macpo_run.sweep.study import load_study, parse_grid, parse_seeds, shipped, variants
from macpo_run.sweep.sweep import Sweep, recorded
from macpo_run.sweep.table import columns, markdown, notes
from macpo_run.sweep.time_left import about, in_words
from macpo_run.terminal.sweeps import print_sweep

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


def results_in(root: Path) -> set[Path]:
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
    assert len(results_in(root)) == 16
    before = {p: p.stat().st_mtime_ns for p in results_in(root)}
    again = open_sweep(grid=GRID)
    assert (again.outline().todo, again.todo(again.answers)) == (0, [])
    again.make()
    assert {p: p.stat().st_mtime_ns for p in results_in(root)} == before


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
    command = [sys.executable, "-m", "macpo", *args, "--set", "engine.name=fake", "--runs"]
    assert subprocess.run([*command, "whole"], cwd=tmp_path, capture_output=True).returncode == 0
    whole, killed = tmp_path / "whole" / "test", tmp_path / "killed" / "test"
    total = len(results_in(whole))
    process = subprocess.Popen(
        [*command, "killed"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and len(results_in(killed)) < total // 2:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < len(results_in(killed)) < total
    done = subprocess.run([*command, "killed"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert "[2/2] sft.epochs=2, seed 3: " in done.stderr
    assert {p.relative_to(killed) for p in results_in(killed)} == {
        p.relative_to(whole) for p in results_in(whole)
    }
    for name in ("table.md", "plot.svg"):
        (one,), (other,) = (root.glob(f"sweep/*/{name}") for root in (killed, whole))
        assert one.read_bytes() == other.read_bytes()


def test_one_variant_fails_and_the_others_go_on(macpo: Macpo, recipe_file: Path) -> None:
    study = recipe_file.with_name("study.yaml")
    study.write_text(
        f"recipe: {recipe_file}\nrun: one\nvariants:\n  none left: {IMPOSSIBLE}\n  fine: {{}}\n"
    )
    done = macpo("sweep", "./study.yaml", fake=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "[1/2] none left, seed 0: failed: " in done.stderr
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
    family = open_sweep(agents=["student", "teacher3"], variants={
        "three": {}, "two": {"agents.teacher3": None}
    }).make()  # fmt: skip
    assert [(row.variant, row.agent) for row in family.rows] == [
        ("three", "student"), ("two", "student"), ("three", "teacher3")
    ]  # fmt: skip
    assert columns(family, [0, 1])["variant"][0] == "three, student"
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
    standings = open_sweep(seeds=2, rounds=0, set={"eval.against": "student-base"}).make()
    assert None in standings.results["round"].to_list()
    assert [list(row.rounds) for row in standings.rows] == [[0]] and not standings.rows[0].problems
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
    (note,) = [n for n in notes(Standings(wins, ["student"])) if "yardstick" in n]
    assert "win depends on" in note
    assert Standings([*wins[:1], *wins[:1]], ["student"]).is_fair
    assert not open_sweep(grid={"data.test.count": [3, 4]}, rounds=0).make().is_fair


def only(evaluation: Evaluation, measure: str) -> Evaluation:
    return replace(evaluation, table=evaluation.table.filter(measure=measure))


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
    standings = sweep.make()
    plan = sweep.outline()
    (_, whole, _, _), (_, some, _, _) = plan.variants
    assert some < whole and plan.todo == 0 and plan.left == "nothing is left to make"
    assert [list(row.rounds) for row in standings.rows] == [[0, 1, 2, 3], [0, 1, 2]]
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
    assert "0 to make\n" in (output := capsys.readouterr().out) and "nothing is left" not in output
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
    standings = open_sweep(seeds=2, rounds=0, set={"eval.reward": "trained"}).make()
    assert set(standings.results["measure"]) == {"gold", "reward"}
    # Behind the prompts, which are each seed's own.
    prices = {
        of: {m.yardsticks[of].split(" ", 1)[1] for m in standings.measured}
        for of in ("gold", "reward")
    }
    assert [len(each) for each in prices.values()] == [1, 2]  # each seed has a model of its own
    assert not any(m.problem for m in standings.measured)


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
    assert in_words(*sweep.seconds_left()) == "time left unknown, nothing like it was timed yet"
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
        ((3, 25), "time left unknown, nothing like it was timed yet"),
        ((9000, 2), "about 2.5 h left, without 2 of a kind that was never timed"),
    ],
)
def test_time_as_it_is_said(left: tuple[float, int], expected: str) -> None:
    assert in_words(*left) == expected


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
        (["--grid", "dpo.beta={a: &x [*x]}"], "write it as key.key=value,value"),
        (["--grid", r'dpo.loss="a\x07b",ipo'], r"variant 'dpo.loss=a\\x07b': its name goes into"),
        (["./bell.yaml"], r"variant 'a\\nb': its name goes into tables"),
        (["--seeds", "x"], "--seeds x: write a count such as 3, or seeds"),
        (["--seeds", "0"], "sweep: seeds: input should be greater than or equal to 1"),
        (["--seeds", ""], "--seeds : write a count"),
        (["noise", "--seeds", "20"], r"--seeds 20: the study lists 3 \(20, 21, 22\); for"),
        (["--seeds", "1000000000000"], "sweep: seeds: input should be less than or equal to 1000"),
        (["--seeds", "2", "--set", "seed=4294967295"], "seeds: there is none above 4294967295"),
        (
            ["-r", "hh_helpful", "--seeds", "2"],
            "nothing would measure the answers: set eval.reward",
        ),
        (["baselinez"], r"named 'baselinez' \(did you mean baselines\?\); shipped are .*noise"),
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
    from macpo import cli

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


@pytest.mark.parametrize(("asked", "seeds"), [(2, [20, 21]), (3, [20, 21, 22]), ([7], [7])])
def test_so_many_are_the_first_that_a_study_lists(asked: int | list[int], seeds: list[int]) -> None:
    """Else --seeds 2 would run seeds 0 and 1, on which settings were chosen."""
    assert load_study("noise", {"seeds": asked}).seeds == seeds


def test_settings_have_an_order(recipe_file: Path) -> None:
    """File, study, variant, grid, command line: each has its say over those before it."""
    fields = {
        "recipe": str(recipe_file), "seeds": 2, "rounds": 5,
        "set": {"dpo.beta": 1, "dpo.gamma": 1, "seed": 7, "lora.r": 1},
        "variants": {"a": {"dpo.gamma": 2, "lora.r": 2}}, "grid": {"lora.r": [3]},
    }  # fmt: skip
    recipes = variants(load_study(None, fields), ["dpo.loss=ipo", "lora.alpha=9"])
    assert [v.name for v in recipes] == ["a, lora.r=3"] * 2
    assert [v.recipe.seed for v in recipes] == [7, 8]
    recipe = recipes[0].recipe
    assert (recipe.dpo.beta, recipe.dpo.gamma, recipe.lora.r, recipe.rounds) == (1, 2, 3, 5)
    assert (recipe.dpo.loss, recipe.lora.alpha, recipe.dpo.epochs) == ("ipo", 9, 1)


# ---------------------------------------------------------------------------- what is told of it


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
    name = sweep.runs[0].plan.name(sweep.runs[0].plan.steps[0])
    (sweep.home.store.path(name) / "manifest.json").write_text("{}")
    damaged = sweep.make()
    assert [bool(m.problem) for m in damaged.measured] == [True, False]
    assert "Python" in markdown(damaged, "x")
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
    done = macpo("sweep", "./study.yaml", fake=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-4].startswith("primary: a minus b in the last round: ")
    assert [Path(line.split()[-1]).name for line in lines[-3:]] == [
        "results.parquet", "table.md", "plot.svg"
    ]  # fmt: skip


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
    text = (recipes_folder() / "studies" / f"{name}.yaml").read_text("utf-8")
    lines = text.splitlines()
    assert f"#     macpo sweep {name}" in lines
    keys = list(block_keys(yaml.compose(text)))
    assert len(keys) > 4
    explained = re.compile(r"\s*# \S")
    alike = [re.sub(r"[\d.e-]+", "", line) for line in lines]  # a series differs in numbers alone
    assert [
        lines[i] for i in keys if not explained.match(lines[i - 1]) and alike[i] != alike[i - 1]
    ] == []
