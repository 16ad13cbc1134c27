"""The loop's logic on the fake engine: plan, store, states, resume, schedules."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from conftest import OpenRun

from macpo_data.errors import DataError, MacpoError, RecipeError, StoreError
from macpo_data.hub import provenance
from macpo_data.models.weights import weights_sha256
from macpo_data.plan import Policy, Step
from macpo_run.cleaning import remove, unreachable
from macpo_run.rounds import Run


def bytes_of(run: Run, pattern: str) -> dict[str, bytes]:
    return {
        str(p.relative_to(run.store.root)): p.read_bytes()
        for p in sorted(run.store.root.glob(pattern))
    }


def done(run: Run) -> int:
    return sum(state == "done" for state in run.states().values())


def step(run: Run, kind: str, round_: int, learner: str, behavior: str = "positive") -> Step:
    return next(
        s
        for s in run.plan.steps
        if (s.kind, s.round, s.learner, s.behavior) == (kind, round_, learner, behavior)
    )


def everything(run: Run) -> Run:
    for each in range(run.recipe.rounds + 1):
        assert not run.finish_round(each).waiting
    return run


def test_a_round_takes_gen_train_gen_train(open_run: OpenRun) -> None:
    run = open_run()
    assert [s.learner for s, _ in run.make("gen", 0).wrote] == ["teacher1", "teacher2", "teacher3"]
    assert "student" in {s.learner for s in run.make("gen", 0).waiting}
    assert len(run.make("train", 0).wrote) == 6
    assert [s.learner for s, _ in run.make("gen", 0).wrote] == ["student"]
    assert [s.behavior for s, _ in run.make("train", 0).wrote] == ["positive", "negative"]
    # Round 1: the student first.
    first = run.make("gen", 1)
    assert [s.learner for s, _ in first.wrote] == ["student"]
    assert first.waiting[step(run, "gen", 1, "teacher1")] == ["train round 1 student positive"]
    assert len(run.make("train", 1).wrote) == 1
    assert len(run.make("gen", 1).wrote) == 3
    assert len(run.make("train", 1).wrote) == 3
    assert done(run) == len(run.plan.steps)


def test_simultaneous_is_one_gen_and_one_train(open_run: OpenRun) -> None:
    run = open_run("schedule=simultaneous")
    run.finish_round(0)
    assert len(run.make("gen", 1).wrote) == 4
    assert len(run.make("train", 1).wrote) == 4
    # Teachers learn from the student of round 0.
    pairs = run.store.read(run.plan.name(step(run, "gen", 1, "teacher1")), "pairs.parquet")
    writer = run.plan.fingerprint(step(run, "train", 0, "student"))
    assert pairs["chosen_policy"].unique().to_list() == [writer]


def test_who_writes_what(open_run: OpenRun) -> None:
    run = everything(open_run())
    student = run.store.read(run.plan.name(step(run, "gen", 1, "student")), "pairs.parquet")
    assert set(student["chosen_agent"]) <= {"teacher1", "teacher2", "teacher3"}
    assert set(student["rejected_agent"]) == {"student"}
    negative = run.plan.fingerprint(step(run, "train", 0, "student", "negative"))
    assert set(student["rejected_policy"]) == {negative}
    candidates = run.store.read(run.plan.name(step(run, "gen", 1, "student")), "candidates.parquet")
    usable = candidates.filter(pl.col("rank").is_not_null(), finish_reason="stop")
    lowest = usable.group_by("prompt_id").agg(pl.col("perplexity").min())
    joined = student.join(lowest, on="prompt_id")
    assert (joined["chosen_perplexity"] == joined["perplexity"]).all()

    teacher = run.store.read(run.plan.name(step(run, "gen", 1, "teacher2")), "pairs.parquet")
    assert set(teacher["chosen_agent"]) == {"student"}
    assert set(teacher["rejected_agent"]) == {"teacher2"}
    first = run.store.read(run.plan.name(step(run, "gen", 0, "student")), "pairs.parquet")
    assert set(first["chosen_agent"]) | set(first["rejected_agent"]) == {"teacher1"}


def test_three_teachers_share_one_student_sample_set(open_run: OpenRun) -> None:
    run = everything(open_run())
    written = [p.name for p in (run.store.root / "samples").glob("student-positive-1-d2-*")]
    assert len(written) == 1
    texts = {
        learner: run.store.read(run.plan.name(step(run, "gen", 1, learner)), "pairs.parquet")
        for learner in run.recipe.teachers
    }
    assert texts["teacher1"]["chosen"].equals(texts["teacher3"]["chosen"])


def test_negatives_once_or_every_round(open_run: OpenRun) -> None:
    once = everything(open_run("rounds=2", "run=once"))
    fresh = everything(open_run("rounds=2", "run=fresh", "negatives=every_round"))

    def negatives(run: Run) -> list[list[str]]:
        names = [run.plan.name(step(run, "gen", t, "student")) for t in (1, 2)]
        return [run.store.read(name, "pairs.parquet")["rejected"].to_list() for name in names]

    assert negatives(once)[0] == negatives(once)[1]
    assert negatives(fresh)[0] != negatives(fresh)[1]


def test_twice_is_a_no_op(open_run: OpenRun) -> None:
    run = everything(open_run())
    before = {p: p.stat().st_mtime_ns for p in run.store.root.rglob("*") if p.is_file()}
    again = open_run()
    for each in (0, 1):
        outcome = again.finish_round(each)
        assert not outcome.wrote and outcome.kept
    after = {p: p.stat().st_mtime_ns for p in run.store.root.rglob("*") if p.is_file()}
    locks = {p for p in after if ".locks" in p.parts}
    assert {p: t for p, t in after.items() if p not in locks} == {
        p: t for p, t in before.items() if p not in locks
    }


def test_what_a_change_makes_anew(open_run: OpenRun) -> None:
    """Temperature: new samples, same D1 training. Batch size: nothing. Beta: no new text."""
    run = open_run()
    first = {str(s): run.plan.fingerprint(s) for s in run.plan.steps}

    def changed(*sets: str) -> set[str]:
        plan = open_run(*sets).plan
        return {str(s) for s in plan.steps if plan.fingerprint(s) != first[str(s)]}

    assert changed("engine.batch_size=7", "train.micro_batch_size=2", "run=other") == set()
    assert "gen round 0 student" in changed("sampling.temperature=0.5")
    assert "train round 0 teacher1 positive" not in changed("sampling.temperature=0.5")
    beta = changed("dpo.beta=0.5")
    assert "train round 1 student positive" in beta
    assert not {s for s in beta if "round 0" in s} and "gen round 1 student" not in beta
    assert "gen round 0 teacher1" in changed("data.noise=0.1")
    assert run.plan.prompts_fingerprint == open_run("data.noise=0.1").plan.prompts_fingerprint
    scaled = changed("agents.student.lr_scale=2.0")
    assert "gen round 0 student" not in scaled and "train round 0 student positive" in scaled
    assert len(changed("seed=1")) == len(first)
    assert changed("sampling.n=2", "select.keep=2", "select.max_perplexity=9.0") == {
        s for s in first if "round 1" in s
    }
    real = open_run(fake=False).plan
    assert not {str(s) for s in real.steps if real.fingerprint(s) == first[str(s)]} - {
        f"gen round 0 teacher{n}" for n in (1, 2, 3)
    }
    parallel = ("tensor_parallel=2", "pipeline_parallel=2")
    knobs = (*parallel, "memory=0.5", "max_model_len=512", "enforce_eager=true")
    assert changed("engine.adapters=merge", *(f"engine.vllm.{knob}" for knob in knobs)) == set()
    assert changed("engine.quantization=fp8") >= {"gen round 0 student"}
    assert changed("engine.dtype=bfloat16") >= {"gen round 0 student"}
    labels = changed("labeller=teacher2")
    assert "gen round 0 student" in labels and "train round 0 teacher1 positive" not in labels
    base, gamma = changed("dpo.reference=base"), changed("dpo.gamma=0.5")
    assert gamma == beta and base >= beta and not {s for s in base if "round 0" in s}
    assert "train round 0 teacher1 positive" not in changed("engine.dtype=bfloat16")


def test_noise_swaps_its_share_for_each_teacher_anew(open_run: OpenRun) -> None:
    run = open_run("data.d1.count=400", "data.noise=0.25")
    run.make("gen", 0)
    human = run.context().prompts("d1")

    def swapped(learner: str) -> list[bool]:
        pairs = run.store.read(run.plan.name(step(run, "gen", 0, learner)), "pairs.parquet")
        return (pairs["chosen"] == human["rejected"]).to_list()

    shares = {learner: sum(swapped(learner)) / 400 for learner in run.recipe.teachers}
    # Three standard deviations of a binomial share around a quarter.
    assert all(abs(share - 0.25) < 3 * (0.25 * 0.75 / 400) ** 0.5 for share in shares.values())
    assert swapped("teacher1") != swapped("teacher3")


def test_a_parent_with_other_content_makes_its_children_stale(open_run: OpenRun) -> None:
    run = everything(open_run())
    gen = step(run, "gen", 0, "teacher1")
    name = run.plan.name(gen)
    pairs = run.store.read(name, "pairs.parquet")
    manifest = run.store.manifest(name)
    assert manifest is not None
    pairs.reverse().write_parquet(run.store.path(name) / "pairs.parquet")
    run.store.finish(name, {k: v for k, v in manifest.items() if k != "seal"})
    states = run.states()
    assert states[gen] == "done"
    stale = {str(s) for s, state in states.items() if state == "stale"}
    assert "train round 0 teacher1 positive" in stale and "gen round 1 student" in stale
    assert "train round 0 teacher2 positive" not in stale
    # Never used silently: nothing is made from it without --redo.
    outcome = run.make("train", 0, "teacher1")
    assert not outcome.wrote and outcome.waiting
    assert run.make("train", 0, "teacher1", redo=True).wrote
    assert (run.store.root / "aside").is_dir()


@pytest.mark.parametrize("damage", ["cut", "edit", "gone"])
def test_a_damaged_table_is_detected_and_redo_mends_it(open_run: OpenRun, damage: str) -> None:
    run = open_run()
    run.make("gen", 0)
    name = run.plan.name(step(run, "gen", 0, "teacher1"))
    path = run.store.path(name) / "pairs.parquet"
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(whole[:-40] if damage == "cut" else whole[:-40] + b"x" * 40)
    with pytest.raises(StoreError, match="--redo"):
        run.make("train", 0, "teacher1")
    run.make("gen", 0, "teacher1", redo=True)
    assert path.read_bytes() == whole
    assert run.make("train", 0, "teacher1").wrote


@pytest.mark.parametrize("damage", ["cut", "edit"])
def test_a_damaged_manifest_is_detected(open_run: OpenRun, damage: str) -> None:
    run = open_run()
    run.make("gen", 0)
    gen = step(run, "gen", 0, "teacher1")
    path = run.path(gen) / "manifest.json"
    text = path.read_text()
    path.write_text(text[:100] if damage == "cut" else text.replace('"pairs": 12', '"pairs": 13'))
    assert run.states()[gen] == "stale"
    with pytest.raises(StoreError, match="edited or cut short"):
        run.store.manifest(run.plan.name(gen))
    run.make("gen", 0, "teacher1", redo=True)
    assert run.states()[gen] == "done"


def test_a_damaged_sample_set_is_mended_by_redo(open_run: OpenRun) -> None:
    run = open_run()
    run.finish_round(0)
    gen = run.plan.name(step(run, "gen", 0, "student"))
    before = (run.store.path(gen) / "pairs.parquet").read_bytes()
    shard = next((run.store.root / "samples").glob("teacher1-positive-0-d2-*/shards/*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(StoreError, match="--redo"):
        run.make("gen", 1)
    run.make("gen", 0, "student", redo=True)
    assert (run.store.path(gen) / "pairs.parquet").read_bytes() == before
    run.make("gen", 1)


def test_resume_from_any_set_of_shards_gives_the_same_bytes(open_run: OpenRun) -> None:
    run = everything(open_run())
    whole = bytes_of(run, "data/*/pairs.parquet")
    for name in run.store.names():
        manifest = run.store.path(name) / "manifest.json"
        if name.startswith(("data/round", "samples", "scores")):
            manifest.unlink()
    for i, shard in enumerate(sorted(run.store.root.glob("s*/*/shards/*.parquet"))):
        if i % 3 == 1:
            shard.unlink()
    again = everything(open_run())
    assert bytes_of(again, "data/*/pairs.parquet") == whole


def test_rows_that_fall_out_are_kept_with_their_reason(open_run: OpenRun) -> None:
    run = open_run("select.on_filter=drop", "sampling.max_new_tokens=6", "data.d2.count=60")
    run.finish_round(0)
    run.make("gen", 1)
    name = run.plan.name(step(run, "gen", 1, "student"))
    manifest = run.store.manifest(name)
    assert manifest is not None
    dropped = run.store.read(name, "dropped.parquet")
    assert manifest["summary"]["dropped_by_reason"]["truncated"] == len(
        dropped.filter(pl.col("reason") == "truncated")
    )
    kept = run.store.read(name, "pairs.parquet")["prompt_id"].n_unique()
    lost = set(dropped["prompt_id"]) - set(run.store.read(name, "pairs.parquet")["prompt_id"])
    assert (
        kept + len(lost)
        == run.store.read(run.plan.name(step(run, "gen", 0, "student")), "candidates.parquet")[
            "prompt_id"
        ].n_unique()
    )


def test_nothing_left_is_a_clear_error(open_run: OpenRun) -> None:
    run = open_run("select.on_filter=drop", "select.min_chars=5000")
    with pytest.raises(DataError, match=r"no pair is left.*too_short"):
        run.finish_round(0)


def test_no_such_round_or_learner(open_run: OpenRun) -> None:
    run = open_run()
    with pytest.raises(MacpoError, match=r"rounds 0..1; for more say --set rounds=7"):
        run.make("gen", 7)
    with pytest.raises(MacpoError, match="choose teacher1, teacher2, teacher3, student"):
        run.make("gen", 0, "nobody")
    spin = open_run("method=spin")
    with pytest.raises(MacpoError, match="teacher2 learns nothing in method spin: choose teacher1"):
        spin.make("gen", 0, "teacher2")


def test_clean_finds_what_no_recipe_reaches(open_run: OpenRun) -> None:
    one = everything(open_run())
    other = everything(open_run("sampling.temperature=0.5"))
    assert unreachable([one, other]) == []
    alone = unreachable([one])
    moved = one.store.path(alone[0])  # to another disk
    moved.rename(one.store.root.parent / "elsewhere")
    moved.symlink_to(one.store.root.parent / "elsewhere")
    assert {name.split("/")[0] for name in alone} == {
        "data", "samples", "scores", "adapters", "probe",
    }  # fmt: skip
    for name in alone:
        remove(one.store, name)
    assert unreachable([one]) == []
    assert (one.store.root.parent / "elsewhere/manifest.json").is_file()
    assert done(one) == len(one.plan.steps)
    assert not one.finish_round(1).wrote


def test_manifest_says_what_it_was_made_from(open_run: OpenRun) -> None:
    run = everything(open_run())
    gen, train = step(run, "gen", 1, "student"), step(run, "train", 1, "student")
    manifest = json.loads((run.path(train) / "manifest.json").read_text())
    assert manifest["inputs"][run.plan.name(gen)] == run.store.content(run.plan.name(gen))
    start = run.plan.name(step(run, "train", 0, "student"))
    assert manifest["start"] == start == manifest["reference"]
    assert manifest["reads"]["dpo"]["beta"] == 0.1
    assert manifest["recipe"]["data"]["source"] == "world"
    assert Path(run.path(train) / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("by", ["judge", "random"])
def test_the_student_may_choose_otherwise(by: str, open_run: OpenRun) -> None:
    sets = [f"select.by={by}", "judge={kind: llm, agent: student, max_position_bias: 1.0}"]
    run = everything(open_run(*sets))
    gen = step(run, "gen", 1, "student")
    candidates = run.store.read(run.plan.name(gen), "candidates.parquet")
    assert set(candidates["agent"]) == set(run.recipe.teachers)
    best = candidates.filter(pl.col("rank") == 1)
    assert best["selected"].all() and len(best) == candidates["prompt_id"].n_unique()
    manifest = run.store.manifest(run.plan.name(gen))
    assert manifest is not None and ("judged" in manifest) == (by == "judge")
    if by == "judge":
        met = run.store.read(run.plan.name(gen), "judgements.parquet")
        assert len(met) == 3 * len(best) and manifest["judged"]["comparisons"] == len(met)
    assert run.plan.name(gen) != open_run().plan.name(step(open_run(), "gen", 1, "student"))


def test_teachers_need_human_answers(open_run: OpenRun, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(f'{{"prompt": "q{i}"}}\n' for i in range(9)))
    counts = "d1: {count: 3}, d2: {count: 3}, test: {count: 3}"
    run = open_run(f"data={{source: pairs, path: {file}, {counts}}}")
    with pytest.raises(DataError, match=r"data\.d1 needs human answers"):
        run.make("gen", 0)


def test_samples_of_an_adapter_that_changed_are_not_used(open_run: OpenRun) -> None:
    """An adapter trained anew with another outcome: its old samples are refused, then redone."""
    run = everything(open_run())
    train = step(run, "train", 0, "teacher1")
    name = run.plan.name(train)
    manifest = run.store.manifest(name)
    assert manifest is not None
    (run.path(train) / "adapter_model.safetensors").write_bytes(b"another outcome")
    run.store.finish(name, {k: v for k, v in manifest.items() if k != "seal"})
    gen = step(run, "gen", 0, "student")
    assert run.states()[gen] == "stale"
    run.make("train", 0, "teacher1", redo=False)
    negative = step(run, "train", 0, "teacher1", "negative")
    (run.path(negative) / "manifest.json").unlink()
    run.make("train", 0, "teacher1")
    (run.path(gen) / "manifest.json").unlink()
    with pytest.raises(StoreError, match="made from results that changed since"):
        run.make("gen", 0, "student")
    assert run.make("gen", 0, "student", redo=True).wrote


def test_redo_never_uses_a_stale_parent(open_run: OpenRun) -> None:
    run = everything(open_run())
    for learner in ("teacher1", "student"):
        name = run.plan.name(step(run, "gen", 0, learner))
        manifest = run.store.manifest(name)
        assert manifest is not None
        pairs = run.store.read(name, "pairs.parquet")
        pairs.reverse().write_parquet(run.store.path(name) / "pairs.parquet")
        run.store.finish(name, {k: v for k, v in manifest.items() if k != "seal"})
    outcome = run.make("train", 0, redo=True)
    # teacher1's new weights make the student's labels stale, so the student has to wait.
    assert {s.learner for s, _ in outcome.wrote} == {"teacher1", "teacher2", "teacher3"}
    assert {s.learner for s in outcome.waiting} == {"student"}


def test_a_cut_shard_of_a_begun_set_is_made_anew(open_run: OpenRun) -> None:
    run = everything(open_run())
    whole = bytes_of(run, "data/*/pairs.parquet")
    (folder,) = (run.store.root / "samples").glob("student-negative-0-d2-*")
    (folder / "manifest.json").unlink()
    shard = sorted((folder / "shards").iterdir())[1]
    shard.write_bytes(shard.read_bytes()[:90])
    (run.path(step(run, "gen", 1, "student")) / "manifest.json").unlink()
    # Another shard size on the way: what was begun goes on as it was begun.
    again = open_run("engine.shard_size=5")
    again.make("gen", 1, "student")
    assert bytes_of(again, "data/*/pairs.parquet") == whole
    assert len(list((folder / "shards").iterdir())) == 3


def test_a_begun_score_set_is_not_finished_by_another_scorer(open_run: OpenRun) -> None:
    """With vLLM's first shard kept, forward passes would stand for scores that are none of theirs.

    What the same scorer began goes on.
    """
    run = everything(open_run())
    step_ = run.store.manifest(run.plan.name(step(run, "gen", 1, "student"))) or {}
    names = [name for name in step_["inputs"] if name.startswith("scores/")]  # not the probe's
    folders = [run.store.path(name) for name in names]
    for again, kept in (("engine.batch_size=3", True), ("score.engine=vllm", False)):
        (run.path(step(run, "gen", 1, "student")) / "manifest.json").unlink()
        for folder in folders:
            (folder / "manifest.json").unlink()
        before = {f: f.stat().st_mtime_ns for d in folders for f in d.glob("shards/*.parquet")}
        open_run(again).make("gen", 1, "student")
        assert before and all((f.stat().st_mtime_ns == t) is kept for f, t in before.items())


def test_clean_keeps_rounds_beyond_the_recipe(open_run: OpenRun) -> None:
    everything(open_run("rounds=2"))
    assert unreachable([open_run()]) == []


def test_a_twin_is_retrained_from_the_newest_policy(open_run: OpenRun) -> None:
    run = everything(open_run("rounds=3", "negatives=retrained"))
    twins = [s for s in run.plan.steps if s.kind == "train" and s.behavior == "negative"]
    assert [s.round for s in twins if s.learner == "student"] == [0, 2, 3]
    for twin in twins:
        # On the rejected answers of round 0, from the policy that the round begins with.
        assert (run.plan.dataset(twin).round, twin.objective) == (0, "sft_rejected")
        assert twin.policies == (Policy(twin.learner, "positive", max(twin.round - 1, 0)),)
    for round_ in (1, 2, 3):
        gen = step(run, "gen", round_, "student")
        writer = Policy("student", "negative", 0 if round_ == 1 else round_)
        assert gen.policies[-2] == writer
        pairs = run.store.read(run.plan.name(gen), "pairs.parquet")
        assert set(pairs["rejected_policy"]) == {run.plan.policy_fingerprint(writer)}
    # What is published of round 0 knows nothing of the trainings of later rounds.
    published = provenance.starts(run.plan, run.store, step(run, "gen", 0, "student"), None)
    assert [each["trains"] for each in published] == ["student-positive-0", "student-negative-0"]


def test_retrained_negatives_need_fine_tuned_ones(open_run: OpenRun) -> None:
    with pytest.raises(RecipeError, match=r"negatives: retrained .* set negatives_by=fine_tuning"):
        open_run("negatives=retrained", "negatives_by=base")


def test_noise_of_one_teacher(open_run: OpenRun) -> None:
    """Its dataset alone is another one; nothing of its voice before training is."""
    plain, noisy = open_run(), open_run("agents.teacher2.noise=1.0")
    changed = {
        str(a)
        for a, b in zip(plain.plan.steps, noisy.plan.steps, strict=True)
        if plain.plan.name(a) != noisy.plan.name(b) and a.round == 0 and a.kind == "gen"
    }
    assert changed == {"gen round 0 teacher2"}
    base = Policy("teacher2")
    assert plain.plan.policy_fingerprint(base) == noisy.plan.policy_fingerprint(base)
    human = noisy.context().prompts("d1")
    pairs = noisy.context().human_pairs("d1", "teacher2").pairs
    assert pairs["chosen"].to_list() == human["rejected"].to_list()
    others = open_run("data.noise=0.0", "agents.teacher2.noise=1.0").context()
    assert others.human_pairs("d1", "teacher1").pairs["chosen"].equals(human["chosen"])


def test_a_fixed_reference_changes_trainings_and_no_dataset_by_itself(open_run: OpenRun) -> None:
    run = everything(open_run("rounds=2", "dpo.reference=initial", "run=fixed"))
    first, second = (step(run, "train", n, "teacher1") for n in (1, 2))
    origin = Policy("teacher1", "positive", 0)
    assert first.policies == (origin,)
    assert second.policies == (Policy("teacher1", "positive", 1), origin)
    adapter = run.plan.name(step(run, "train", 0, "teacher1"))
    for each in (first, second):
        manifest = run.store.manifest(run.plan.name(each))
        assert manifest is not None and manifest["reference"] == adapter
        assert set(manifest["files"]) == {"adapter_config.json", "adapter_model.safetensors"}
    other = open_run("rounds=1", "dpo.reference=base", "run=fixed")
    gen = step(run, "gen", 1, "student")
    assert run.plan.name(gen) == other.plan.name(step(other, "gen", 1, "student"))


def test_a_reference_scores_each_text_once(open_run: OpenRun) -> None:
    """The rejected answers of all rounds are the same: later ones ask for the new chosen ones."""
    run = everything(open_run("rounds=3", "dpo.reference=initial"))
    names = run.store.root.glob("scores/teacher1-positive-0-*/manifest.json")
    rows = sorted(json.loads(p.read_text())["rows"] for p in names)
    probed = 2 * len(run.context().prompts("probe"))
    texts = {
        (row["prompt_id"], row[side])
        for n in (2, 3)
        for row in run.store.read(
            run.plan.name(step(run, "gen", n, "teacher1")), "pairs.parquet"
        ).iter_rows(named=True)
        for side in ("chosen", "rejected")
    }
    round_1 = 2 * 12  # scored for its own dataset, under the policy that round 1 begins with
    assert sum(rows) == probed + round_1 + len(texts)


@pytest.mark.slow
def test_teachers_on_one_base_with_the_same_data_differ(
    open_run: OpenRun, tiny_recipe: Path
) -> None:
    with open_run("data.noise=0.0", file=tiny_recipe, fake=False) as run:
        run.make("gen", 0)
        run.make("train", 0)
        trained = [step(run, "train", 0, f"teacher{n}") for n in (1, 2, 3)]
        data = {run.store.content(run.plan.name(run.plan.dataset(each))) for each in trained}
        adapters = {weights_sha256(run.path(each)) for each in trained}
    assert (len(data), len(adapters)) == (1, 3)
