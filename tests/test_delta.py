"""Delta learning: whose answers are paired, its steps, and that it ends after one round."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from conftest import Macpo, OpenRun
from test_cost import counted
from test_methods import DELTA, answers_of, dataset, finish, sides

from macpo_data.loading.load import load_recipe
from macpo_data.methods.registry import make_plan
from macpo_data.plan import Policy


def test_delta_takes_the_writers_word_for_it(open_run: OpenRun) -> None:
    """teacher3's answers against teacher2's; these and the student are MACPO's of round 0."""
    run, macpo = finish(open_run(*DELTA)), open_run()
    better, worse = (Policy(f"teacher{k}", "positive", 0) for k in (3, 2))
    pairs = dataset(run, 1)
    assert sides(pairs, "chosen") == answers_of(run, better)
    assert sides(pairs, "rejected") == answers_of(run, worse)
    learner = Policy("student", "positive", 0)
    for policy in (better, worse, learner):
        fingerprint = run.plan.policy_fingerprint(policy)
        assert fingerprint == macpo.plan.policy_fingerprint(policy)
    (gen,) = run.select("gen", 1)
    facts = run.store.manifest(run.plan.name(gen)) or {}
    assert facts["scored_under"] == {str(learner): {"fake": run.plan.policy_fingerprint(learner)}}
    # One pass for both sides: a set of scores of the learner's, and two sample sets.
    read = [name.split("/")[0] for name in facts["inputs"]]
    assert sorted(read) == ["adapters"] * 3 + ["data", "samples", "samples", "scores"]


def test_the_plan_of_delta(recipe_file: Path) -> None:
    """Who labels has a negative twin, the other writers none; the order of the two decides."""
    plan = make_plan(load_recipe(str(recipe_file), DELTA))
    assert [str(step) for step in plan.steps] == [
        "gen round 0 teacher2",
        "train round 0 teacher2 positive",
        "gen round 0 teacher3",
        "train round 0 teacher3 positive",
        "gen round 0 teacher1",
        "train round 0 teacher1 positive",
        "train round 0 teacher1 negative",
        "gen round 0 student",
        "train round 0 student positive",
        "gen round 1 student",
        "train round 1 student positive",
    ]
    *_, gen, train = plan.steps
    assert [str(parent) for parent in plan.parents(gen)] == [
        "train round 0 teacher3 positive",
        "train round 0 teacher2 positive",
        "train round 0 student positive",
    ]
    assert train.policies == (Policy("student", "positive", 0),)
    swapped = [*DELTA, "delta={chosen: teacher2, rejected: teacher3}"]
    other = make_plan(load_recipe(str(recipe_file), swapped))
    names = [{p.name(step) for step in p.steps if step.round == 0} for p in (plan, other)]
    assert names[0] == names[1] and plan.name(gen) != other.name(other.steps[-2])
    # A writer who labels as well is trained once.
    labelled = make_plan(load_recipe(str(recipe_file), [*DELTA, "labeller=teacher3"]))
    learners = [step.learner for step in labelled.steps if step.kind == "gen"]
    assert learners == ["teacher2", "teacher3", "student", "student"]


def test_delta_ends_with_round_1(macpo: Macpo, recipe_file: Path) -> None:
    """Beside methods of more rounds in one study, whose last round is for all of them."""
    options = ["--recipe", recipe_file, "--set", "rounds=2"]
    options += [word for each in DELTA for word in ("--set", each)]
    done = macpo("run", *options, fake=True)
    assert done.returncode == 0, done.stderr
    status = macpo("status", *options, fake=True).stdout
    assert "delta, rounds 0..1" in status and "waiting" not in status and "ready" not in status
    more = macpo("gen", "--round", "2", *options, fake=True)
    assert more.returncode == 1
    assert more.stderr == (
        "error: no round 2: this recipe has rounds 0..1; method delta has no more\n"
    )
    variants = (
        "{MACPO: {}, delta: {method: delta, delta.chosen: teacher3, delta.rejected: teacher2}}"
    )
    (recipe_file.parent / "study.yaml").write_text(f"rounds: 2\nvariants: {variants}\n")
    study = macpo("sweep", "./study.yaml", "--recipe", recipe_file, fake=True)
    assert study.returncode == 0, study.stderr
    results = pl.read_parquet(
        recipe_file.parent / "runs" / "test" / "sweep" / "study" / "results.parquet"
    )
    known = set(results.select("variant", "round").iter_rows())
    assert known == {("MACPO", 0), ("MACPO", 1), ("MACPO", 2), ("delta", 0), ("delta", 1)}


def test_the_costs_of_delta(recipe_file: Path, tmp_path: Path) -> None:
    """Of 100 prompts each of the two writes one answer, and the student reads both."""
    recipe = load_recipe(str(recipe_file), DELTA)
    step = make_plan(recipe).steps[-2]
    asked = counted(recipe, tmp_path, [step])
    assert [(ask.what, ask.agent, ask.prompts * ask.calls) for ask in asked] == [
        ("write d2", "teacher3", 100),
        ("write d2", "teacher2", 100),
        ("score", "student", 200),
    ]
