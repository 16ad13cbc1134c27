"""The ceiling, and how much of the gap below it was recovered."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from conftest import OpenRun, no_progress
from test_evaluate import everything
from typer.testing import CliRunner

from macpo.cli import app
from macpo_data.errors import DataError
from macpo_data.evaluation import gap
from macpo_data.evaluation.evaluate import evaluate
from macpo_data.evaluation.policies import trained
from macpo_data.evaluation.results import Evaluation
from macpo_data.hub import push as hub
from macpo_data.loading.load import load_recipe
from macpo_data.methods.registry import make_plan
from macpo_data.plan import Plan, Policy
from macpo_data.report.collect import Source, collect
from macpo_data.report.excerpt import inline_json
from macpo_data.schema import EVALUATION, JUDGEMENTS, RESPONSES, empty
from macpo_data.stats import Sides, gap_recovered
from macpo_run.cleaning import unreachable
from macpo_run.sweep.standings import Measured, Standings
from macpo_run.sweep.study import load_study, variants
from macpo_run.sweep.sweep import Sweep
from macpo_run.sweep.table import columns, details, notes

CEILING = "eval.ceiling=true"


def sides(gained: list[float], gap_: list[float]) -> Sides:
    """By prompt what the student and the ceiling are above the floor, which differs by prompt."""
    floor = np.arange(len(gained), dtype=float)
    return Sides(floor + gained, floor, floor + gap_)


# ---------------------------------------------------------------------------- the ratio


def test_constant_differences_have_no_spread() -> None:
    recovered = gap_recovered([sides([0.25] * 4, [1.0] * 4)])
    assert recovered.share == (0.25, 0.25, 0.25) and recovered.gap == (1, 1, 1)


def test_prompts_are_resampled_with_all_three() -> None:
    """On each prompt half of its own gap, 1 or 3: any draw of prompts gives a half."""
    recovered = gap_recovered([sides([0.5, 1.5], [1.0, 3.0])])
    assert recovered.share == (0.5, 0.5, 0.5) and recovered.gap == (2, 1, 3)


def test_an_interval_by_hand() -> None:
    """Of the gap 1 nothing or all: a draw of two gives 0, 1/2, 1 with 1/4, 1/2, 1/4."""
    assert gap_recovered([sides([0.0, 1.0], [1.0, 1.0])]).share == (0.5, 0.0, 1.0)


@pytest.mark.parametrize(
    ("gap_", "interval"),
    [([0.0, 0.0], (0, 0, 0)), ([-1.0, -1.0], (-1, -1, -1)), ([1.0, -1.0], (0, -1, 1)),
     ([0.0, 2.0], (1, 0, 2))],
)  # fmt: skip
def test_without_a_clear_gap_it_is_not_defined(
    gap_: list[float], interval: tuple[float, float, float]
) -> None:
    """Two prompts: the interval ends in them. The last one touches 0."""
    recovered = gap_recovered([sides([0.5, 0.5], gap_)])
    assert recovered.share is None and recovered.gap == interval


def test_of_one_prompt_and_of_none() -> None:
    one = gap_recovered([sides([0.5], [1.0])])
    assert one.share is None and one.gap.mean == 1 and np.isnan(one.gap.low)
    assert gap_recovered([]).share is None and gap_recovered([sides([], [])]).share is None


def test_seeds_are_pooled_and_resampled() -> None:
    """Seeds with 1 of a gap of 1, and 0 of 3: 1 of 4, which is not the mean of their ratios.

    Without spread inside the seeds a draw of two has (1, 1), (1, 3) in either order, or (0, 3):
    the ratio is 1, 1/4 or 0, the mean gap 1, 2 or 3.
    """
    recovered = gap_recovered([sides([1.0] * 3, [1.0] * 3), sides([0.0] * 5, [3.0] * 5)])
    assert recovered.share == (0.25, 0, 1) and recovered.gap == (2, 1, 3)


def test_seeds_are_drawn_and_then_prompts_within_them() -> None:
    """Every draw of two seeds, and for each of two of its prompts, is counted out.

    The gap is 1 everywhere. The first seed gained nothing, the second 0 and 1: the mean is 1 in 1
    of 64 draws and 3/4 in 4, so that the upper end is 3/4; it would be 1/2 if seeds alone were
    drawn, or prompts alone. The pooled ratio is 1/4, and the ratio over all draws from 0.
    """
    gains = [[0.0, 0.0], [0.0, 1.0]]
    drawn = [
        sum(gains[seed][prompt] for seed, of in zip(seeds, prompts, strict=True) for prompt in of)
        / 4
        for seeds in product(range(2), repeat=2)
        for prompts in product(product(range(2), repeat=2), repeat=2)
    ]
    assert len(drawn) == 64 and sorted(drawn)[-5:] == [0.75] * 4 + [1.0]
    recovered = gap_recovered([sides(gain, [1.0, 1.0]) for gain in gains])
    low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
    assert recovered.share == (0.25, low, high) == (0.25, 0, 0.75)


# ---------------------------------------------------------------------------- what it is between


def answers(scores: dict[str, list[float]]) -> pl.DataFrame:
    """RESPONSES: by policy the gold of two draws for each of two prompts, in this order."""
    rows = []
    for name, golds in scores.items():
        agent, behavior, round_ = name.split("-")
        rows += [
            {"prompt_id": "pq"[n // 2], "agent": agent, "behavior": behavior, "round": int(round_),
             "draw": n % 2, "response": "x", "gold": gold}
            for n, gold in enumerate(golds)
        ]  # fmt: skip
    return pl.DataFrame(rows, schema=RESPONSES)


# Means by prompt: the best teacher is the second, 0.25 and 0.25; the ceiling is 1 above it.
SCORES = {
    "teacher1-positive-0": [0.0, 0.25, 0.0, 0.25],
    "teacher2-positive-0": [0.0, 0.5, 0.25, 0.25],
    "teacher3-positive-0": [0.0, 0.0, 0.0, 0.0],
    "student-positive-0": [0.5, 0.5, 0.25, 0.75],  # 0.25 above the floor
    "student-positive-1": [1.0, 0.5, 0.75, 0.75],  # 0.5 above it
    "student-negative-0": [9.0, 9.0, 9.0, 9.0],
    "student-ceiling-0": [1.25, 1.25, 1.0, 1.5],
}


def test_the_floor_is_the_best_teacher(open_run: OpenRun) -> None:
    plan = open_run(CEILING).plan
    (gap_,) = gap.measured(plan, answers(SCORES))
    assert str(gap_.floor) == "teacher2-positive-0" and str(gap_.ceiling) == "student-ceiling-0"
    assert [str(policy) for policy in gap_.students] == [
        "student-positive-0", "student-positive-1"
    ]  # fmt: skip
    assert [gap_.recovered(policy).share for policy in gap_.students] == [
        (0.25, 0.25, 0.25), (0.5, 0.5, 0.5)
    ]  # fmt: skip
    assert gap.lines(plan, answers(SCORES)) == [
        "Gap recovered by gold: round 0 0.250 [0.250, 0.250], round 1 0.500 [0.500, 0.500]; floor "
        "teacher2-positive-0 0.250 (teacher1-positive-0, who labels, 0.125), ceiling "
        "student-ceiling-0 1.250."
    ]
    assert gap.in_words(gap_) == (
        "By round 1 the student closed 50 % (95 % interval: 50 % to 50 %) of the distance between "
        "its best teacher of round 0 (teacher2, 0.25) and the same student trained on good answers "
        "(1.25)."
    )
    json.loads(inline_json(gap.facts(gap_)))


def test_nothing_of_the_gap(open_run: OpenRun) -> None:
    """A quarter below the floor, on either prompt, of a gap of 1."""
    fell = answers(SCORES | {"student-positive-1": [0.0, 0.0, -0.25, 0.25]})
    (gap_,) = gap.measured(open_run(CEILING).plan, fell)
    assert "the student closed nothing of the distance" in gap.in_words(gap_)


def test_where_the_ceiling_is_the_floor(open_run: OpenRun) -> None:
    plan = open_run(CEILING, "labeller=teacher2").plan
    level = answers(SCORES | {"student-ceiling-0": SCORES["teacher2-positive-0"]})
    assert gap.lines(plan, level) == [
        "Gap recovered by gold: not defined, ceiling - floor is not clearly above 0 (0.000 [0.000, "
        "0.000]); floor teacher2-positive-0 0.250 (it labels), ceiling student-ceiling-0 0.250."
    ]
    (gap_,) = gap.measured(plan, level)
    assert gap.in_words(gap_) == (
        "How much of what it could learn the student learned cannot be said: the same student "
        "trained on good answers (0.25) is not clearly better than its best teacher of round 0 "
        "(teacher2, 0.25)."
    )
    assert gap.facts(gap_)["rounds"][1] == {"round": 1, "mean": None, "low": None, "high": None}


@pytest.mark.parametrize("missing", ["teacher3-positive-0", "student-ceiling-0", "student"])
def test_all_of_it_has_to_be_measured(open_run: OpenRun, missing: str) -> None:
    some = answers({k: v for k, v in SCORES.items() if not k.startswith(missing)})
    plan = open_run(CEILING).plan
    assert gap.measured(plan, some) == []
    (line,) = gap.lines(plan, some)
    assert line.startswith("Gap recovered: not known yet") and "macpo eval --round all" in line
    assert gap.lines(open_run().plan, some) == []


def test_a_method_without_teachers_has_no_floor() -> None:
    plan = make_plan(load_recipe("moaa_quickstart", [CEILING]))
    assert gap.measured(plan, empty(RESPONSES)) == []
    assert "moaa trains no teacher" in gap.lines(plan, empty(RESPONSES))[0]


# ---------------------------------------------------------------------------- the steps


def names(plan: Plan) -> list[str]:
    return [plan.name(step) for step in plan.steps]


@pytest.mark.parametrize("more", [[], ["method=weak_labels"], ["confidence={}"], ["method=spin"]])
def test_it_changes_no_other_step(open_run: OpenRun, more: list[str]) -> None:
    """Two steps at the end of round 0, the same ones for any method, are all that is new."""
    with_, without = open_run(CEILING, *more).plan, open_run(*more).plan
    new = [step for step in with_.steps if step.is_ceiling]
    assert [step for step in with_.steps if not step.is_ceiling] == without.steps
    assert [n for n in names(with_) if n not in [with_.name(s) for s in new]] == names(without)
    gen, train = new
    assert (str(gen), str(train)) == (
        "gen round 0 student ceiling", "train round 0 student ceiling"
    )  # fmt: skip
    assert with_.dataset(train) == gen and str(train.makes) == "student-ceiling-0"
    assert with_.name(gen).startswith("data/round-0-student-ceiling-")
    assert with_.name(train).startswith("adapters/student-ceiling-0-")
    own = next(s for s in with_.steps if s.makes == Policy("student", "positive", 0))
    assert not with_.dataset(own).is_ceiling
    assert [step.round for step in with_.steps] == sorted(step.round for step in with_.steps)
    assert [with_.name(step) for step in new] == names(open_run(CEILING).plan)[12:14]


def test_a_run_makes_and_measures_it(open_run: OpenRun) -> None:
    """It learns D2's good answers as they are, though a quarter of the teachers' pairs is swapped,
    and neither publishing nor cleaning nor the report takes it for a learner's round."""
    run = everything(open_run(CEILING))
    gen, train = (step for step in run.plan.steps if step.is_ceiling)
    pairs = run.store.read(run.plan.name(gen), "pairs.parquet")
    d2 = run.context().prompts("d2")
    assert pairs.select("prompt_id", "chosen").equals(d2.select("prompt_id", "chosen"))
    assert pairs["rejected"].null_count() == pairs["rejected_agent"].null_count() == 12
    assert (run.store.manifest(run.plan.name(train)) or {})["start"] is None

    evaluation = evaluate(run.context(), trained(run.plan, run.store))
    who = evaluation.table.filter(behavior="ceiling").select("agent", "round", "measure").rows()
    assert who == [("student", 0, "gold")]
    signs = (run.store.manifest(f"eval/{evaluation.paths[0].name}") or {})["signs"]
    assert not any("ceiling" in policy for policy in signs)
    # Fake answers are worth nothing, whoever wrote them.
    assert "not defined" in gap.lines(run.plan, evaluation.responses)[0]

    published = hub.round_steps(run.plan, run.store, run.select("gen", 0), None)
    assert [step.learner for step in published] == ["teacher1", "teacher2", "teacher3", "student"]
    assert unreachable([run]) == []
    mine = {run.plan.name(gen), run.plan.name(train)}
    left = unreachable([open_run()])
    assert mine <= {*left} and all("ceiling" in n or n.startswith("eval/") for n in left)

    (shown,) = collect([Source("mine", run.plan, run.store)])["recipes"]
    assert [g["text"] for g in shown["gaps"]] == gap.lines(run.plan, evaluation.responses)
    assert {w["agent"] for w in shown["winners"] if w["round"] == 0} == {"teacher1"}
    rows = [(s["step"], s["state"]) for s in shown["steps"] if "ceiling" in s["step"]]
    assert rows == [("gen ceiling", "done"), ("train ceiling", "done")]


def test_the_commands(recipe_file: Path, tmp_path: Path) -> None:
    def macpo(*args: str) -> str:
        options = ["--recipe", str(recipe_file), "--runs", str(tmp_path / "runs")]
        options += ["--set", "engine.name=fake", "--set", CEILING]
        done = CliRunner().invoke(app, [*args, *options])
        assert done.exit_code == 0, done.output
        return " ".join(done.stdout.split())

    assert "gen ceiling student ready" in macpo("run", "--round", "0", "--dry-run")
    assert "gen round 0 student ceiling: " in macpo("gen", "--round", "0")
    assert "train round 0 student ceiling: " in macpo("train", "--round", "0")
    ran = macpo("run", "--until", "1")
    assert "student trained on good answers 0.00" in ran
    assert "(0.00) is not clearly better than its best teacher of round 0" in ran
    assert "train ceiling student done" in macpo("status")
    assert "pairs of round 0 for student" in (shown := macpo("show", "--round", "0"))
    assert "rejected (teacher1" in shown  # the student's own, not the ceiling's
    assert "Gap recovered by gold: not defined" in macpo("eval", "--round", "1")
    assert "wrote" in macpo("push", "--round", "0", "--to", str(tmp_path / "hub"))
    tree = [p.relative_to(tmp_path).as_posix() for p in (tmp_path / "hub").rglob("*")]
    assert tree and not any("ceiling" in path for path in tree)
    place = ["--runs", str(tmp_path / "other"), "--recipe-to", str(tmp_path / "pulled.yaml")]
    pulled = CliRunner().invoke(app, ["pull", str(tmp_path / "hub"), "--round", "0", *place])
    assert pulled.exit_code == 0, pulled.output
    assert pulled.stdout.count("pulled   ") == 4
    # Its dataset stays where it was made: here nothing would wait for it for ever.
    assert yaml.safe_load((tmp_path / "pulled.yaml").read_text())["eval"]["ceiling"] is False


def files(folder: Path, d2: list[dict[str, object]]) -> str:
    """A source of local files, with D2 as given."""
    whole: list[dict[str, object]] = [
        {"prompt": f"{n}?", "chosen": "yes", "rejected": "no"} for n in range(12)
    ]
    parts = {"d1": whole[:6], "d2": d2, "test": whole[6:]}
    for part, rows in parts.items():
        (folder / f"{part}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    paths = {part: {"path": str(folder / f"{part}.jsonl")} for part in parts}
    return f"data={json.dumps({'source': 'pairs', **paths})}"


def test_prompts_alone_have_no_ceiling(open_run: OpenRun, tmp_path: Path) -> None:
    """Told when the prompts are read, before anything is trained."""
    data = files(tmp_path, [{"prompt": f"{n}?"} for n in "abcde"])
    run = open_run(data, CEILING)
    with pytest.raises(
        DataError, match=r"data\.d2 with chosen answers, and 5 of 5 prompts have none"
    ):
        run.make("gen", 0)
    assert not list(run.store.root.glob("data/round-*"))
    assert len(open_run(data).make("gen", 0).wrote) == 3


def test_the_ceiling_needs_no_bad_answers(open_run: OpenRun, tmp_path: Path) -> None:
    """A second dataset of D2, of conversations, has none."""
    data = files(tmp_path, [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no"} for n in "ab"])
    turns = [{"role": "user", "content": "c?"}, {"role": "assistant", "content": "perhaps"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": turns}))
    more = {"source": "ultrachat", "path": str(tmp_path / "chat.jsonl"), "count": 1}
    run = open_run(data, f"data.d2.more={json.dumps(more)}", CEILING)
    assert len(run.make("gen", 0).wrote) == 4  # three teachers and the ceiling
    gen = next(step for step in run.plan.steps if step.is_ceiling)
    pairs = run.store.read(run.plan.name(gen), "pairs.parquet")
    assert sorted(pairs["chosen"]) == ["perhaps", "yes", "yes"]


# ---------------------------------------------------------------------------- studies


def of_two_rounds(plan: Plan, rows: pl.DataFrame) -> Evaluation:
    """An evaluation of the student in rounds 0 and 1, .5 each."""
    facts = {"agent": "student", "behavior": "positive", "measure": "gold", "mean": 0.5}
    table = pl.DataFrame([facts | {"round": t} for t in (0, 1)], schema=EVALUATION)
    return Evaluation(table, rows, empty(JUDGEMENTS), [], plan.sampling("test"))


def test_a_column_of_a_study(open_run: OpenRun) -> None:
    """Two seeds that both recovered half; of the one that failed nothing is counted."""
    plan, rows = open_run(CEILING).plan, answers(SCORES)
    (gap_,) = gap.measured(plan, rows)
    run = of_two_rounds(plan, rows)
    measured = [
        Measured("a", 0, run, None, {}, {"gold": gap_}),
        Measured("a", 1, run, None, {}, {"gold": gap_}),
        Measured("b", 0, run, None, {}, {}),
        Measured("b", 1, run, "diverged", {}, {"gold": gap_}),
    ]
    standings = Standings(measured, ["student"])
    assert columns(standings, [0, 1])["gap recovered"] == [".500±.000", ""]
    text = "\n".join([*notes(standings), *details(standings)])
    assert "bootstrap interval over seeds and prompts" in text
    assert "floor, the best teacher of round 0: teacher2-positive-0 (a)" in text


def test_variants_with_the_same_teachers_have_one_floor(open_run: OpenRun) -> None:
    """One that trains the labeller alone is measured from the best teacher that another trained."""
    plan, rows = open_run(CEILING).plan, answers(SCORES)
    (all_,) = gap.measured(plan, rows)
    assert all_.floor == Policy("teacher2", "positive", 0)
    lone = replace(
        all_,
        floor=Policy("teacher1", "positive", 0),
        scores=all_.scores.drop("teacher2-positive-0", "teacher3-positive-0"),
    )
    run = of_two_rounds(plan, rows)

    def recovered(teachers: str) -> list[str]:
        measured = [
            Measured("all", 0, run, gaps={"gold": all_}, teachers="same"),
            Measured("lone", 0, run, gaps={"gold": lone}, teachers=teachers),
        ]
        return columns(Standings(measured, ["student"]), [0, 1])["gap recovered"]

    alone = lone.recovered(lone.students[-1]).share
    assert alone is not None and alone.mean != 0.5
    same, other = recovered("same"), recovered("other")
    assert same[0] == same[1] == other[0] != other[1]


def test_a_study_measures_what_the_gap_is_between(recipe_file: Path, tmp_path: Path) -> None:
    """The student's two rounds, three teachers of round 0 and the ceiling, in both variants."""
    fields = {"recipe": str(recipe_file), "grid": {"dpo.beta": [0.1, 0.2]}}
    study = load_study(None, fields)
    family = variants(study, ["engine.name=fake", CEILING])
    sweep = Sweep(study, family, tmp_path / "runs", no_progress, lambda line: None)
    standings = sweep.make()
    assert len(standings.results) == 2 * 6
    assert columns(standings, [0, 1])["gap recovered"] == ["not defined"] * 2
    assert {row.agent for row in standings.rows} == {"student"}
    assert sweep.todo(sweep.steps + sweep.answers) == []
