"""Ranking by the teachers who did not write: by hand, what a step reads, and whole rounds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import polars as pl
import pytest
from conftest import Macpo, OpenRun
from test_cost import counted
from test_methods import candidates, dataset, finish

from macpo_data.errors import RecipeError
from macpo_data.generation import select
from macpo_data.generation.run_context import RunContext
from macpo_data.loading.conflicts import departures
from macpo_data.loading.load import load_recipe
from macpo_data.methods import macpo
from macpo_data.methods.registry import make_plan
from macpo_data.plan import Plan, Policy, Step
from macpo_data.recipe.generation import Select
from macpo_run.rounds import Run

PEERS = "select.under=peers"
TEACHERS = [Policy(f"t{n}", "positive", 0) for n in range(3)]


class Scorer:
    """A context of which nothing is there but perplexities that were written down."""

    def __init__(self, known: dict[str, dict[str, float | None]]) -> None:
        self.known = known  # by reader, then response
        self.read: dict[str, list[str]] = {}

    def score(self, samples: pl.DataFrame, under: Policy) -> pl.DataFrame:
        texts = samples["response"].to_list()
        self.read[under.agent] = texts
        values = [self.known[under.agent][text] for text in texts]
        return samples.with_columns(perplexity=pl.Series(values, dtype=pl.Float64))


def peers(frame: pl.DataFrame, scorer: Scorer) -> list[float | None]:
    return macpo._under_peers(cast(RunContext, scorer), frame, TEACHERS).to_list()


def test_three_teachers_and_two_candidates_by_hand() -> None:
    """t0 wrote x, t1 wrote y. Under the others x has sqrt(4 * 9) = 6, and y sqrt(1 * 16) = 4.

    y is chosen, though the learner prefers x (2 to 3), and so would the arithmetic mean (6.5 to
    8.5) and the mean over all three, the writers' own 1 and 20 among them (3.3 to 6.8).
    """
    frame = candidates(a=[2.0, 3.0]).with_columns(response=pl.Series(["x", "y"]))
    scorer = Scorer({"t0": {"x": 1.0, "y": 1.0}, "t1": {"x": 4.0, "y": 20.0},
                     "t2": {"x": 9.0, "y": 16.0}})  # fmt: skip
    means = peers(frame, scorer)
    assert means == pytest.approx([6.0, 4.0])
    assert scorer.read == {"t0": ["y"], "t1": ["x"], "t2": ["x", "y"]}
    frame = frame.with_columns(peers=pl.Series(means))
    ranked = select.by_perplexity(frame, frame.clear(), Select(), ranks="peers")
    assert ranked["rank"].to_list() == [2, 1]
    assert ranked["perplexity"].to_list() == [2.0, 3.0]  # the learner's own is what is kept
    assert "peers" not in ranked.columns
    own = select.by_perplexity(frame, frame.clear(), Select())
    assert own["rank"].to_list() == [1, 2]


def test_a_teacher_who_cannot_read_an_answer_leaves_it_without_a_rank() -> None:
    """A mean over fewer readers would be no number to rank beside the others'."""
    frame = candidates(a=[2.0, 3.0]).with_columns(response=pl.Series(["x", "y"]))
    scorer = Scorer({"t0": {"y": 5.0}, "t1": {"x": 4.0}, "t2": {"x": None, "y": 5.0}})
    means = peers(frame, scorer)
    assert means == [None, pytest.approx(5.0)]
    frame = frame.with_columns(peers=pl.Series(means))
    ranked = select.by_perplexity(frame, frame.clear(), Select(), ranks="peers")
    assert ranked["rank"].to_list() == [None, 1]
    assert ranked["reason"].to_list() == ["no_score", None]


def test_a_mixtures_answer_is_read_by_all_teachers() -> None:
    """It is nobody's own: cube root of 2 * 4 * 8 = 4."""
    frame = candidates(a=[2.0]).with_columns(agent=pl.lit("sum"), response=pl.lit("x"))
    scorer = Scorer({"t0": {"x": 2.0}, "t1": {"x": 4.0}, "t2": {"x": 8.0}})
    assert peers(frame, scorer) == [pytest.approx(4.0)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # The learner's perplexities are 9, 1, 2 and 4, 8, 3.
        ({}, ["a 9.0", "b 8.0"]),
        ({"order": "highest"}, ["a 1.0", "b 3.0"]),
        ({"order": "middle"}, ["a 2.0", "b 4.0"]),
        # All that is kept of b, 1 to 3, comes before the second of a, 5.
        ({"keep": 3, "pool": 0.5}, ["b 8.0", "b 4.0", "b 3.0"]),
        # The threshold is the learner's.
        ({"max_perplexity": 8.5}, ["a 2.0", "b 8.0"]),
    ],
)
def test_orders_and_pools_by_peers(settings: dict[str, Any], expected: list[str]) -> None:
    frame = candidates(a=[9.0, 1.0, 2.0], b=[4.0, 8.0, 3.0])
    frame = frame.with_columns(peers=pl.Series([4.0, 6.0, 5.0, 2.0, 1.0, 3.0]))
    chosen = Select.model_validate(settings)
    ranked = select.by_perplexity(frame, frame.clear(), chosen, ranks="peers").filter("selected")
    assert ranked.sort("prompt_id", "rank")["response"].to_list() == expected


# ---------------------------------------------------------------------------- the plan


def gen(plan: Plan, round_: int, learner: str) -> Step:
    return next(s for s in plan.steps if (s.kind, s.round, s.learner) == ("gen", round_, learner))


def test_what_a_step_reads(recipe_file: Path) -> None:
    """The switch is the student's; all whose perplexities rank are parents with and without it."""
    plain, ranked = (make_plan(load_recipe(str(recipe_file), s)) for s in ([], [PEERS]))
    assert "under" not in plain.recipe.read("select")
    one, other = gen(plain, 1, "student"), gen(ranked, 1, "student")
    assert {*other.reads} - {*one.reads} == {"select.under"}
    assert plain.name(one) != ranked.name(other)
    teachers = [f"train round 0 teacher{k} positive" for k in (1, 2, 3)]
    student = [f"train round 0 student {side}" for side in ("negative", "positive")]
    for plan, step in ((plain, one), (ranked, other)):
        assert [str(parent) for parent in plan.parents(step)] == [*teachers, *student]
    # A teacher has nothing to rank: what it reads itself is the same, and so is all of round 0.
    one, other = gen(plain, 1, "teacher1"), gen(ranked, 1, "teacher1")
    assert one.reads == other.reads
    names = [[plan.name(s) for s in plan.steps if s.round == 0] for plan in (plain, ranked)]
    assert names[0] == names[1]


def test_that_peers_are_not_the_papers(recipe_file: Path) -> None:
    assert departures(load_recipe(str(recipe_file), [PEERS])) == [
        "select.under=peers where its paper has learner"
    ]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            ["agents.teacher2=null", "agents.teacher3=null"],
            "select.under: peers are other teachers, and teacher1 has none; set select.under=lear",
        ),
        (["positives=own"], "select.under: peers rank what teachers write, and with positives=own"),
        (["select.by=random"], "select.under: only read where perplexity ranks"),
        (["select.order=random"], "select.under: only read where perplexity ranks"),
        (["select.by=judge", "judge.kind=gold"], "select.under: only read where perplexity ranks"),
        (["method=spin"], "select.under: method spin does not read it"),
        (["select.under=all"], "select.under: input should be 'learner' or 'peers'"),
    ],
)
def test_what_peers_do_not_fit(sets: list[str], message: str, recipe_file: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(recipe_file), [PEERS, *sets])
    assert len(caught.value.problems) == 1 and caught.value.problems[0].startswith(message)


@pytest.mark.parametrize(
    ("sets", "answers", "of_others"),
    [
        ([], 1, 2),
        (["sampling.n=2"], 2, 4),
        (["agents.teacher3=null"], 1, 1),
        (["agents.far={role: judge, base: world:tiny}", "mixture.layers=[[far]]"], 1, 3),
    ],
)
def test_the_plan_of_costs_counts_a_pass_for_each_teacher(
    sets: list[str], answers: int, of_others: int, recipe_file: Path, tmp_path: Path
) -> None:
    """Of 100 prompts each teacher reads what the others wrote, and the mixture's one answer."""
    recipe = load_recipe(str(recipe_file), [PEERS, *sets])
    plan = make_plan(recipe)
    asked = counted(recipe, tmp_path, [gen(plan, 1, "student")])
    read = {ask.agent: (ask.prompts, ask.calls) for ask in asked if ask.what == "score"}
    learner = len(recipe.teachers) * answers + 1 + bool(recipe.mixture)
    assert read == dict.fromkeys(recipe.teachers, (100, of_others)) | {"student": (100, learner)}
    one = counted(recipe, tmp_path, [gen(plan, 1, "teacher1")])
    assert [ask.agent for ask in one if ask.what == "score"] == ["teacher1"]


# ---------------------------------------------------------------------------- whole rounds


def test_a_round_by_the_command(macpo: Macpo, recipe_file: Path) -> None:
    ran = macpo("run", "--until", "1", "--recipe", recipe_file, "--set", PEERS, fake=True)
    assert ran.returncode == 0, ran.stderr
    assert "warning: method macpo is not its paper's: select.under=peers" in ran.stderr
    status = macpo("status", "--recipe", recipe_file, "--set", PEERS, fake=True)
    assert (
        status.returncode == 0 and "waiting" not in status.stdout and "ready" not in status.stdout
    )


def least_perplexing(run: Run) -> tuple[pl.DataFrame, dict[tuple[str, str, int], float]]:
    """The student's candidates of round 1, and what the other teachers make of each, anew."""
    frame, ctx = dataset(run, 1, table="candidates"), run.context()
    samples = frame.select("prompt_id", "agent", "draw", "policy", "response", "finish_reason")
    logs: dict[tuple[str, str, int], list[float]] = {}
    for teacher in run.recipe.teachers:
        scored = ctx.score(samples, under=Policy(teacher, "positive", 0))
        for prompt, agent, draw, value in scored.select(
            "prompt_id", "agent", "draw", "perplexity"
        ).iter_rows():
            if agent != teacher:
                logs.setdefault((prompt, agent, draw), []).append(math.log(value))
    return frame, {key: sum(each) / len(each) for key, each in logs.items()}


def test_the_student_learns_what_the_other_teachers_find_least_perplexing(
    open_run: OpenRun,
) -> None:
    """All that is kept with the pairs is the learner's: scores, and what they depend on."""
    run = finish(open_run(PEERS, "sampling.n=2", "sampling.max_new_tokens=24"))
    frame, means = least_perplexing(run)
    assert len(frame) == 12 * 3 * 2 and frame["finish_reason"].unique().to_list() == ["stop"]
    for (prompt,), group in frame.group_by("prompt_id"):
        rows = group.sort("rank").rows(named=True)
        order = [means[prompt, row["agent"], row["draw"]] for row in rows]
        assert order == sorted(order)
        assert [row["selected"] for row in rows] == [True] + [False] * 5
    learner = Policy("student", "positive", 0)
    under = run.context().score(frame.drop("perplexity", "sum_logprob", "num_tokens",
                                           "eot_logprob"), under=learner)  # fmt: skip
    assert under["perplexity"].to_list() == frame["perplexity"].to_list()
    plain = finish(open_run("sampling.n=2", "sampling.max_new_tokens=24"))
    pool, other = dataset(run, 1), dataset(plain, 1)
    assert pool["chosen"].to_list() != other["chosen"].to_list()
    facts = run.store.manifest(run.plan.name(gen(run.plan, 1, "student"))) or {}
    fingerprint = run.plan.policy_fingerprint(learner)
    assert facts["scored_under"] == {str(learner): {"fake": fingerprint}}
    # The sets of scores that ranked are inputs, one for each teacher, and one of the learner's.
    read = [name.split("-")[0] for name in facts["inputs"] if name.startswith("scores/")]
    assert sorted(read) == ["scores/student", *(f"scores/teacher{k}" for k in (1, 2, 3))]


def test_peers_where_no_twin_writes(open_run: OpenRun) -> None:
    """The chosen answer is known before the rejected one is made of it."""
    run = finish(open_run(PEERS, "negatives_by=corruption", "sampling.max_new_tokens=24"))
    frame, means = least_perplexing(run)
    for (prompt,), group in frame.group_by("prompt_id"):
        best = min(
            (means[prompt, r["agent"], r["draw"]], r["agent"]) for r in group.rows(named=True)
        )
        assert group.filter("selected")["agent"].to_list() == [best[1]]


@pytest.mark.slow
def test_training_still_takes_the_learners_scores_for_its_reference(
    open_run: OpenRun, tiny_recipe: Path
) -> None:
    """With real models: that others scored as well costs DPO no pass over the reference."""
    with open_run(PEERS, file=tiny_recipe, fake=False) as run:
        finish(run)
        (train,) = (s for s in run.select("train", 1, "student"))
        known = (run.store.manifest(run.plan.name(train)) or {})["reference_logprobs"]
        assert known["stored"] > 0 and known["computed"] == 0
        first = (run.store.manifest(run.plan.name(train)) or {})["history"][0]
        assert first["dpo"] == pytest.approx(math.log(2), abs=1e-4)
