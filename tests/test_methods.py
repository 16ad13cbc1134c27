"""What MACPO is compared with, and its ablations: who is chosen, who is rejected, who learns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import OpenRun
from typer.testing import CliRunner

from macpo.cli import app
from macpo_data.errors import MacpoError, RecipeError
from macpo_data.generation import select
from macpo_data.hub import card
from macpo_data.hub import push as hub
from macpo_data.loading.conflicts import departures
from macpo_data.loading.load import load_recipe
from macpo_data.methods import spin
from macpo_data.methods.registry import SHARPENING, make_plan, methods, name_of, names
from macpo_data.plan import Policy
from macpo_data.recipe.generation import Select
from macpo_data.report import collect as report
from macpo_data.report.excerpt import Texts
from macpo_data.schema import CANDIDATES, SCORES, check
from macpo_run.commands.status_show_report import source
from macpo_run.rounds import Run
from macpo_run.sweep.study import Variant, load_study, shipped, variants

JUDGED = ["sampling.n=3", "judge.kind=likelihood", "judge.agent=teacher2"]
SELF = ["sampling.n=3", "judge.kind=likelihood", "judge.agent=student"]
DELTA = ["method=delta", "delta={chosen: teacher3, rejected: teacher2}"]
METHODS = {"weak_labels": [], "spin": [], "rlcd": [], "rlaif": JUDGED, "self_rewarding": SELF}


def of(method: str, *sets: str) -> list[str]:
    return [f"method={method}", "rounds=2", *METHODS.get(method, []), *sets]


def finish(run: Run) -> Run:
    for each in range(run.recipe.rounds + 1):
        assert not run.finish_round(each).waiting
    return run


def dataset(run: Run, round_: int, learner: str = "student", table: str = "pairs") -> pl.DataFrame:
    step = next(s for s in run.select("gen", round_) if s.learner == learner)
    return run.store.read(run.plan.name(step), f"{table}.parquet")


def answers_of(run: Run, policy: Policy, draw: str = "0") -> dict[str, str]:
    """What a policy wrote to each prompt of D2, read from its sample set."""
    name = run.plan.sample_name(policy, "d2", draw)
    rows = pl.read_parquet(run.store.path(name) / "shards" / "*.parquet")
    return dict(rows.select("prompt_id", "response").iter_rows())


def sides(pairs: pl.DataFrame, side: str) -> dict[str, str]:
    return dict(pairs.select("prompt_id", side).iter_rows())


@pytest.mark.parametrize("method", METHODS)
def test_two_rounds_of_the_student_alone(method: str, open_run: OpenRun) -> None:
    """One teacher labels; from then on only the student learns, from where MACPO's begins."""
    run = finish(open_run(*of(method)))
    macpo = open_run("rounds=2")
    learners = {(s.round, s.learner) for s in run.plan.steps}
    assert learners == {(0, "teacher1"), (0, "student"), (1, "student"), (2, "student")}
    start = Policy("student", "positive", 0)
    assert run.plan.policy_fingerprint(start) == macpo.plan.policy_fingerprint(start)
    later = Policy("student", "positive", 1)
    assert run.plan.policy_fingerprint(later) != macpo.plan.policy_fingerprint(later)
    assert all(len(dataset(run, t)) > 0 for t in (1, 2))
    assert open_run(*of(method)).finish_round(2).wrote == []


def test_weak_labels_stay_the_same(open_run: OpenRun) -> None:
    run = finish(open_run(*of("weak_labels")))
    labels = answers_of(run, Policy("teacher1", "positive", 0))
    for t in (0, 1, 2):
        chosen = sides(dataset(run, t), "chosen")
        assert chosen and all(labels[i] == text for i, text in chosen.items())
    trained = [s for s in run.plan.steps if s.kind == "train" and s.round]
    assert {s.objective for s in trained} == {"sft_chosen"}


def test_spin_rejects_what_the_student_last_said(open_run: OpenRun) -> None:
    run = finish(open_run(*of("spin")))
    labels = answers_of(run, Policy("teacher1", "positive", 0))
    for t in (1, 2):
        pairs, last = dataset(run, t), answers_of(run, Policy("student", "positive", t - 1))
        assert all(labels[i] == text for i, text in sides(pairs, "chosen").items())
        assert all(last[i] == text for i, text in sides(pairs, "rejected").items())


def test_spin_learns_the_pairs_of_the_round_before_as_well(open_run: OpenRun) -> None:
    """Each label against the student's last answer and the one before that, all scored under the
    learner; round 1 has one opponent alone and is that of SPIN without the switch."""
    plain = finish(open_run(*of("spin")))
    both = finish(open_run(*of("spin", "spin.earlier_pairs=true")))
    names = [[run.plan.name(step) for step in run.select(None, 1)] for run in (plain, both)]
    assert names[0] == names[1]
    labels = answers_of(both, Policy("teacher1", "positive", 0))
    last, before = (answers_of(both, Policy("student", "positive", t)) for t in (1, 0))
    pairs = dataset(both, 2)
    expected = [
        {"prompt_id": i, "chosen": labels[i], "rejected": wrote[i]}
        for i in both.context().prompts("d2")["prompt_id"]
        for wrote in (last, before)
    ]
    assert pairs.select("prompt_id", "chosen", "rejected").to_dicts() == expected
    learner = both.plan.policy_fingerprint(Policy("student", "positive", 1))
    (gen,) = both.select("gen", 2)
    scored = (both.store.manifest(both.plan.name(gen)) or {})["scored_under"]
    assert scored == {"student-positive-1": {"fake": learner}}
    assert pairs["rejected_perplexity"].null_count() == 0
    # A label is one candidate, however many answers it stands against.
    candidates = dataset(both, 2, table="candidates")
    assert candidates["prompt_id"].equals(both.context().prompts("d2")["prompt_id"])
    assert candidates["selected"].all()


def test_spin_keeps_a_label_that_one_opponent_repeats(open_run: OpenRun) -> None:
    """On the fake engine all that a label needs to be lost to an opponent is to be its answer."""
    run = finish(open_run(*of("spin", "spin.earlier_pairs=true", "select.on_filter=drop")))
    (gen,) = run.select("gen", 2)
    ctx = run.context()
    labels = ctx.generate([gen.policies[0]], "d2")
    wrote = ctx.generate

    def repeat(policies: list[Policy], *args: Any, **more: Any) -> pl.DataFrame:
        """The newest opponent repeats every label."""
        is_newest = policies == [Policy("student", "positive", 1)]
        return labels if is_newest else wrote(policies, *args, **more)

    ctx.generate = repeat  # type: ignore[method-assign,assignment]
    data = spin.build(gen, ctx)
    before = answers_of(run, Policy("student", "positive", 0))
    kept = sides(data.pairs, "rejected")
    assert kept and len(kept) == len(data.pairs)
    assert all(before[i] == text for i, text in kept.items())
    selected = data.candidates.filter("selected")
    assert set(selected["prompt_id"]) == set(kept) and selected["reason"].null_count() == len(kept)
    assert "same_as_rejected" in data.dropped["reason"].to_list()
    assert data.dropped.is_unique().all()


@pytest.mark.parametrize("noise", [0.5, 1.0])
def test_label_noise_is_the_same_in_every_round(noise: float, open_run: OpenRun) -> None:
    """SPIN's and naive SFT's labels are round 0's: the teacher's bad answer where swapped."""
    good, bad = (Policy("teacher1", behavior, 0) for behavior in ("positive", "negative"))
    for method in ("spin", "weak_labels"):
        run = finish(open_run(*of(method, f"data.label_noise={noise}")))
        start = sides(dataset(run, 0), "chosen")
        swapped = {i for i, text in start.items() if text == answers_of(run, bad)[i]}
        assert all(answers_of(run, good)[i] == start[i] for i in start.keys() - swapped)
        assert swapped and (swapped == start.keys()) == (noise == 1.0)
        for t in (1, 2):
            assert sides(dataset(run, t), "chosen") == start


def test_spin_without_noise_asks_nobody_for_bad_labels(open_run: OpenRun) -> None:
    """Its steps are then what they were before labels could be noisy in it."""
    plain, noisy = (open_run(*of("spin", f"data.label_noise={n}")) for n in (0.0, 0.1))
    (one,), (other,) = (run.select("gen", 1) for run in (plain, noisy))
    assert "data.label_noise" in other.reads and "data.label_noise" not in one.reads
    assert [str(policy) for policy in one.policies] == ["teacher1-positive-0", "student-positive-0"]
    assert [str(p) for p in other.policies] == [
        "teacher1-positive-0", "teacher1-negative-0", "student-positive-0"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (["dpo.gamma=0"], []),
        (["dpo.gamma=0", "dpo.loss=ipo"], ["dpo.loss=ipo where its paper has sigmoid"]),
        (
            ["dpo.reference=base"],
            [
                "dpo.reference=base where its paper has previous",
                "dpo.gamma=0.2 where its paper has 0.0",
            ],
        ),
    ],
)
def test_where_spin_is_not_its_papers(
    sets: list[str], expected: list[str], recipe_file: Path
) -> None:
    """The small recipe has the reference of the round's start, and an SFT term."""
    assert departures(load_recipe(str(recipe_file), ["method=spin", *sets])) == expected
    assert departures(load_recipe(str(recipe_file), sets)) == []


@pytest.mark.parametrize(
    ("command", "warnings"),
    [
        (["gen", "--round", "0"], 1),
        (["train", "--round", "0"], 1),
        (["run"], 1),
        (["sweep", "--grid", "dpo.beta=0.1,0.2", "--seeds", "2"], 2),  # one for each variant
        (["status"], 0),
    ],
)
def test_departures_are_told_before_work(
    command: list[str], warnings: int, recipe_file: Path, tmp_path: Path
) -> None:
    dry = [] if command == ["status"] else ["--dry-run"]
    options = ["--recipe", str(recipe_file), "--runs", str(tmp_path), "--set", "method=spin"]
    result = CliRunner().invoke(app, [*command, *dry, *options])
    assert result.exit_code == 0
    lines = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert len(lines) == warnings
    assert all("dpo.gamma=0.2 where its paper has 0.0" in line for line in lines)
    none = CliRunner().invoke(app, [*command, *dry, *options, "--set", "dpo.gamma=0"])
    assert none.exit_code == 0 and "warning" not in none.stderr


def shipped_variants() -> Iterator[tuple[str, Variant]]:
    for name in shipped():
        yield from ((name, variant) for variant in variants(load_study(name, {})))


def test_shipped_spin_is_its_papers() -> None:
    spins = [variant for _, variant in shipped_variants() if variant.recipe.method == "spin"]
    assert len(spins) > 1
    assert [departures(variant.recipe) for variant in spins] == [[]] * len(spins)


# Variants that start otherwise on purpose: another loss or rate of fine-tuning, another teacher's
# labels.
OTHER_START = {
    "confident loss",
    "naive SFT",
    "naive SFT, best teacher",
    "sharpening, best teacher's labels",
    "naive SFT, teacher 2's labels",
    "sharpening, teacher 2's labels",
    "labelled by teacher 2",
    "labelled by teacher 3",
    "SFT on the better",
}
# Studies whose variants try rates of the first fine-tuning, or use different ones.
TUNE_THE_START = {"calibration", "start", "primary_start", "same_labels_start", "moaa_weights"}


def test_all_shipped_variants_start_from_one_student() -> None:
    """In each study, seed by seed, where the data and who labels by default are the same."""
    starts: dict[tuple[str, int, str], dict[str, str]] = {}
    for study, variant in shipped_variants():
        if study in TUNE_THE_START or study == "larger_students":
            continue
        plan = make_plan(variant.recipe)
        base = variant.recipe.agents[variant.recipe.teachers[0]].base
        key = (study, variant.recipe.seed, variant.recipe.data.model_dump_json() + str(base))
        start = plan.policy_fingerprint(Policy(variant.recipe.students[0], "positive", 0))
        starts.setdefault(key, {})[variant.name] = start
    differ = set()
    for group in starts.values():
        names_of = {name: name.split(", data.")[0] for name in group}
        (common,) = {group[name] for name, own in names_of.items() if own not in OTHER_START}
        differ |= {own for name, own in names_of.items() if group[name] != common}
    assert differ == OTHER_START
    used = {variant.recipe.method for _, variant in shipped_variants()}
    assert used == {*names()} - {"rlaif", "rlcd"}


def test_rlcd_frames_the_student_both_ways(open_run: OpenRun) -> None:
    run = finish(open_run(*of("rlcd", "framing.insert=user")))
    pairs = dataset(run, 1)
    assert set(pairs["chosen_agent"]) == set(pairs["rejected_agent"]) == {"student"}
    assert (pairs["chosen"] != pairs["rejected"]).all()
    # The prompt is learned as it stands: the frame is no part of it.
    prompts = run.context().prompts("d2")
    assert (
        dict(pairs.select("prompt_id", "prompt").rows()).items()
        <= dict(prompts.select("prompt_id", "prompt").rows()).items()
    )
    for side, frame in (("chosen", "positive"), ("rejected", "negative")):
        assert set(pairs[side]) <= framed(run, frame)


def framed(run: Run, side: str) -> set[str]:
    """What anybody wrote under a frame."""
    files = run.store.path("answers").glob(f"*-framed-{side}-*/shards/*.parquet")
    return {text for file in files for text in pl.read_parquet(file)["response"]}


@pytest.mark.parametrize("method", ["rlaif", "self_rewarding"])
def test_best_and_worst_by_the_judge(method: str, open_run: OpenRun) -> None:
    """Chosen and rejected are the ends of the judge's own order, computed here a second time.

    RLAIF asks another model, self-rewarding the student as it has become.
    """
    run = finish(open_run(*of(method)))
    for t in (1, 2):
        student, ctx = Policy("student", "positive", t - 1), run.context()
        frame = ctx.generate([student], "d2", n=3)
        scored = ctx.score(frame, student if method == "self_rewarding" else Policy("teacher2"))
        frame = frame.with_columns(worth=-scored["perplexity"].log())
        worth = {(r["prompt_id"], r["response"]): r["worth"] for r in frame.iter_rows(named=True)}
        caught = dataset(run, t, table="candidates").drop_nulls("rank")
        pairs = dataset(run, t)
        assert len(pairs)
        for row in pairs.iter_rows(named=True):
            mine = caught.filter(pl.col("prompt_id") == row["prompt_id"])["response"]
            values = [worth[row["prompt_id"], text] for text in mine]
            assert worth[row["prompt_id"], row["chosen"]] == max(values)
            assert worth[row["prompt_id"], row["rejected"]] == min(values)


def test_self_rewarding_by_points(open_run: OpenRun) -> None:
    """As in its paper: the student as it has become gives each of its answers points."""
    judge = "judge={kind: points, agent: student, sampling: {temperature: 0, max_new_tokens: 99}}"
    run = finish(open_run("method=self_rewarding", "rounds=2", "sampling.n=4", judge))
    for t in (1, 2):
        student = Policy("student", "positive", t - 1)
        (folder,) = run.store.path("answers").glob(
            f"{student}-judge-points-{run.plan.policy_fingerprint(student)}-*"
        )
        wrote = dataset(run, t, table="candidates")
        asked = pl.read_parquet(folder / "shards" / "*.parquet")
        assert len(asked) == wrote.select("prompt_id", "response").unique().height
        (gen,) = run.select("gen", t)
        judged = (run.store.manifest(run.plan.name(gen)) or {})["judged"]
        assert judged["unparseable"] == 0 < judged["verdicts"] and len(dataset(run, t))


def test_own_positives(open_run: OpenRun) -> None:
    """-MP: nobody hears the other side."""
    run = finish(open_run("positives=own"))
    for learner in ("student", "teacher2"):
        assert set(dataset(run, 1, learner)["chosen_agent"]) == {learner}
    same = open_run().plan.name(open_run().select("gen", 0, "student")[0])
    assert run.plan.name(run.select("gen", 0, "student")[0]) == same


def test_frozen_teachers(open_run: OpenRun) -> None:
    """-IW: after round 0 the student alone learns, every round from the same teachers."""
    run = open_run("frozen_teachers=true", "rounds=2")
    assert {s.learner for s in run.plan.steps if s.round} == {"student"}
    for t in (1, 2):
        (gen,) = run.select("gen", t)
        assert gen.policies[:3] == tuple(Policy(f"teacher{k}", "positive", 0) for k in (1, 2, 3))
    finish(run)
    # Round 1 of the student is MACPO's own.
    assert run.plan.name(run.select("gen", 1)[0]) == open_run().plan.name(
        open_run().select("gen", 1, "student")[0]
    )


@pytest.mark.parametrize(
    ("by", "writer"),
    [
        ("base", Policy("student")),
        ("framing", Policy("student", "positive", 0)),
        ("temperature", Policy("student", "positive", 0)),
    ],
)
def test_negatives_by_somebody_else(by: str, writer: Policy, open_run: OpenRun) -> None:
    run = finish(open_run(f"negatives_by={by}"))
    pairs, (gen,) = dataset(run, 1), run.select("gen", 1, "student")
    assert gen.policies[-2] == writer
    assert set(pairs["rejected_policy"]) == {run.plan.policy_fingerprint(writer)}
    if by == "base":
        wrote = answers_of(run, writer)
        assert all(wrote[i] == text for i, text in sides(pairs, "rejected").items())
    elif by == "framing":
        assert set(pairs["rejected"]) <= framed(run, "negative")
    else:
        (hot,) = run.store.root.glob("answers/student-*-hot-*/manifest.json")
        asked = json.loads(hot.read_text())["sampling"]
        assert (asked["temperature"], asked["top_p"], asked["top_k"]) == (2.0, 1.0, 0)


@pytest.mark.parametrize("by", ["corruption", "mismatch"])
def test_negatives_made_of_positives(by: str, open_run: OpenRun) -> None:
    run = finish(open_run(f"negatives_by={by}"))
    for learner in ("student", "teacher1"):
        pairs = dataset(run, 1, learner)
        assert len(pairs) and pairs["rejected_perplexity"].null_count() == 0
        for row in pairs.iter_rows(named=True):
            assert row["rejected"] != row["chosen"] and row["rejected_agent"] == by
            if by == "corruption":
                assert sorted(row["rejected"].split()) == sorted(row["chosen"].split())
            else:
                others = pairs.filter(pl.col("prompt_id") != row["prompt_id"])
                dropped = dataset(run, 1, learner, "candidates")
                assert row["rejected"] in {*others["chosen"], *dropped["response"]}


def test_swapped_weak_labels(open_run: OpenRun) -> None:
    """All of them: what was chosen is rejected, and the teachers are as they were."""
    plain, noisy = open_run(), open_run("data.label_noise=1.0")
    finish(plain), finish(noisy)
    one, other = dataset(plain, 0), dataset(noisy, 0)
    assert one["chosen"].to_list() == other["rejected"].to_list()
    assert one["rejected_policy"].to_list() == other["chosen_policy"].to_list()
    (train,) = (s for s in plain.plan.steps if s.makes == Policy("teacher1", "positive", 0))
    assert plain.plan.name(train) == noisy.plan.name(train)


def candidates(**perplexities: list[float]) -> pl.DataFrame:
    """SAMPLES with SCORES of prompts a, b, ...: an answer for each perplexity, named after it."""
    rows = [
        {
            "prompt_id": prompt,
            "agent": f"t{n}",
            "policy": "p",
            "draw": 0,
            "response": f"{prompt} {value}",
            "finish_reason": "stop",
            "repetition": 0.0,
            "perplexity": value,
        }
        for prompt, values in perplexities.items()
        for n, value in enumerate(values)
    ]
    nothing = {name: pl.lit(None, t) for name, t in SCORES.items() if name != "perplexity"}
    return pl.DataFrame(rows).with_columns(**nothing)


def selected(frame: pl.DataFrame, settings: Select) -> list[str]:
    ranked = select.by_perplexity(frame, frame.clear(), settings)
    return ranked.filter("selected").sort("prompt_id", "rank")["response"].to_list()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["a 1.0", "b 3.0"]),
        ({"order": "highest"}, ["a 9.0", "b 8.0"]),
        # Medians are 2 and 4; what stands first wins a tie.
        ({"order": "middle"}, ["a 2.0", "b 4.0"]),
        ({"keep": 2}, ["a 1.0", "a 2.0", "b 3.0", "b 4.0"]),
        ({"keep": 3}, ["a 1.0", "a 2.0", "a 9.0", "b 3.0", "b 4.0", "b 8.0"]),
        # Half of the four that were kept: the two lowest, both of the first prompt.
        ({"keep": 2, "pool": 0.5}, ["a 1.0", "a 2.0"]),
        ({"keep": 2, "pool": 0.5, "order": "highest"}, ["a 9.0", "b 8.0"]),
    ],
)
def test_orders_and_pools(settings: dict[str, object], expected: list[str]) -> None:
    frame = candidates(a=[9.0, 1.0, 2.0], b=[4.0, 8.0, 3.0])
    assert selected(frame, Select.model_validate(settings)) == expected


def test_what_a_pool_leaves_out_keeps_its_reason() -> None:
    frame = candidates(a=[1.0], b=[2.0])
    ranked = select.by_perplexity(frame, frame.clear(), Select(pool=0.5))
    assert ranked["reason"].to_list() == [None, "outside_pool"]


def test_spoilt_answers() -> None:
    """One word cannot be put into another order; two prompts get each other's answers."""
    frame = candidates(a=[1.0], b=[2.0]).with_columns(
        response=pl.Series(["one two\n\nthree", "single"])
    )
    chosen = check(
        frame.with_columns(reason=pl.lit(None, pl.String), rank=1, selected=True).cast(
            {"rank": pl.Int64}
        ),
        CANDIDATES,
        "candidates",
    )
    shuffled = dict(select.corrupted(chosen, 0).select("prompt_id", "response").iter_rows())
    assert sorted(shuffled["a"].split()) == ["one", "three", "two"]
    assert shuffled["a"] != "one two\n\nthree" and "\n\n" in shuffled["a"]
    assert shuffled["b"] == ""
    swapped = dict(select.mismatched(chosen, 0).select("prompt_id", "response").iter_rows())
    assert swapped == {"a": "single", "b": "one two\n\nthree"}
    alone = select.mismatched(chosen.filter(pl.col("prompt_id") == "a"), 0)
    assert alone["response"].to_list() == [""]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["method=spin", "positives=own"], "positives: method spin does not read it"),
        (["method=rlaif"], "judge: missing; method rlaif needs it"),
        (["method=rlaif", "judge.kind=gold"], "sampling.n: method rlaif compares answers"),
        (["method=self_rewarding", "judge.agent=teacher1"], "judge.agent: in method"),
        (["judge.kind=likelihood"], "kind likelihood needs an agent"),
        (
            ["method=self_rewarding", "judge.kind=gold"],
            "judge.kind: in method self_rewarding the student judges: one of points, llm",
        ),
        (["delta={chosen: teacher1, rejected: teacher2}"], "delta: only method delta reads it"),
        (["method=delta"], "delta: missing; method delta needs it: {chosen: TEACHER"),
        (["method=delta", "delta.chosen=teacher1"], "delta.rejected: missing"),
        (
            ["method=delta", "delta={chosen: teacher1, rejected: teacher1}"],
            "delta: chosen and rejected are both teacher1; name two teachers",
        ),
        (
            ["method=delta", "delta={chosen: student, rejected: teacher1}"],
            r"delta.chosen: 'student' is no teacher \(those are: teacher1, teacher2, teacher3\)",
        ),
        ([*DELTA, "positives=own"], "positives: method delta does not read it"),
        ([*DELTA, "stop=probe"], "stop: method delta does not read it"),
        (["spin.earlier_pairs=true"], "spin.earlier_pairs: only method spin reads it"),
        (["select.by=random", "select.pool=0.5"], "select.pool: only read where"),
        (["negatives_by=mismatch", "select.keep=2"], "select.keep: negatives_by mismatch"),
        (["negatives_temperature=1.5"], "negatives_temperature: only read where negatives_by is"),
        (["framing.negative=/nowhere.txt"], "cannot read the prompt /nowhere.txt"),
        (["positives=own", "select.keep=2"], "select.keep: 2 of only 1 candidates"),
    ],
)
def test_what_does_not_fit(sets: list[str], message: str, recipe_file: Path) -> None:
    with pytest.raises(MacpoError, match=message):
        load_recipe(str(recipe_file), sets)


def test_a_judge_of_likelihood_needs_weights(recipe_file: Path) -> None:
    judge = ["sampling.n=2", "method=rlaif", "judge.kind=likelihood", "judge.agent=far"]
    far = "agents.far={role: judge, endpoint: {base_url: 'http://localhost:9/v1', model: x}}"
    with pytest.raises(RecipeError, match="give far a base"):
        load_recipe(str(recipe_file), [*judge, far])


def test_every_method_has_its_words() -> None:
    """A card says how its data came to be."""
    assert {"macpo", "ceiling"} < methods().keys()
    assert all(each.by.startswith("by ") for each in methods().values())


def test_self_rewarding_by_likelihood_is_called_sharpening(
    open_run: OpenRun, tmp_path: Path
) -> None:
    """In status, report and card; by points or verdicts it has its own name."""
    points = "judge={kind: points, agent: student, sampling: {temperature: 0, max_new_tokens: 99}}"
    for sets, name in (SELF, SHARPENING), (["sampling.n=3", points], "self_rewarding"):
        run = finish(open_run("method=self_rewarding", *sets))
        assert report._recipe(source(run), Texts())[0]["method"] == name
        (gen,) = run.select("gen", 1)
        push = hub.Push(run.plan, run.store, [gen], "round-1", None, False, "mit")
        hub.push_to_folder(push, tmp_path / name)
        text = (tmp_path / name / "README.md").read_text()
        assert card.made_by(name) in text and f"with the method {name}; " in text
        assert ("self-rewarding" in text) == (name != SHARPENING)
    options = [word for each in (*SELF, "method=self_rewarding") for word in ("--set", each)]
    recipe = ["--recipe", str(tmp_path / "recipe.yaml"), "--runs", str(tmp_path / "none")]
    result = CliRunner().invoke(app, ["status", *recipe, *options])
    assert result.exit_code == 0 and SHARPENING in " ".join(result.stdout.split())


def test_a_study_calls_sharpening_by_its_name() -> None:
    recipes = [variant for _, variant in shipped_variants()]
    mine = [variant for variant in recipes if variant.recipe.method == "self_rewarding"]
    assert {name_of(variant.recipe) for variant in mine} == {SHARPENING, "self_rewarding"}
    for variant in mine:
        is_sharpening = name_of(variant.recipe) == SHARPENING
        assert variant.name.startswith("sharpening" if is_sharpening else "self-rewarding")


def converge(run: Run, perplexities: dict[int, float]) -> Run:
    """A run whose student's datasets say so."""
    for t, value in perplexities.items():
        (gen,) = run.select("gen", t, "student")
        run.store.finish(
            run.plan.name(gen), {"inputs": {}, "summary": {"chosen_perplexity": value}}
        )
    return run


def test_convergence(open_run: OpenRun) -> None:
    """From 8 to 4 is half; from 4 to 3.99 a quarter of a percent; and rising is no gain either."""
    falls = {1: 8.0, 2: 4.0, 3: 3.99}
    run = converge(open_run("stop=converged", "rounds=3"), falls)
    assert [bool(run.ended(t)) for t in (0, 1, 2, 3)] == [False, False, False, True]
    assert "was 4.00 in round 2 and is 3.99 in round 3" in str(run.ended(3))
    fixed = open_run("rounds=3")
    assert fixed.ended(3) is None


@pytest.mark.slow
@pytest.mark.parametrize("method", ["self_rewarding", "rlcd"])
def test_with_real_models(method: str, open_run: OpenRun, tiny_recipe: Path) -> None:
    """Both rounds with weights that are sampled from, scored and trained."""
    with open_run(*of(method), file=tiny_recipe, fake=False) as run:
        finish(run)
        for t in (1, 2):
            (train,) = run.select("train", t)
            manifest = run.store.manifest(run.plan.name(train)) or {}
            assert manifest["start"] == run.plan.name(
                next(s for s in run.plan.steps if s.makes == Policy("student", "positive", t - 1))
            )
