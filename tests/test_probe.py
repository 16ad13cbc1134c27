"""The probe: kept apart, read after each round, and all that stops, keeps or advises."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import OpenRun

from macpo_data import stats
from macpo_data.errors import DataError, RecipeError
from macpo_data.evaluation import probe
from macpo_data.evaluation.advice import HUMAN, Next, advise
from macpo_data.evaluation.policies import trained
from macpo_data.evaluation.probe import Reading
from macpo_data.plan import Policy
from macpo_data.recipe.data import Probe
from macpo_data.sources.places import PARTS
from macpo_data.store.manifests import ProbeManifest
from macpo_data.world import judge
from macpo_run.rounds import Run


def finished(run: Run) -> Run:
    for each in range(run.recipe.rounds + 1):
        assert not run.finish_round(each).waiting
    return run


def read(agent: str, round_: int, perplexity: float, score: float | None = None) -> Reading:
    return Reading(Policy(agent, "positive", round_), perplexity, 0.5, score, {})


@pytest.mark.parametrize(("rows", "size"), [(4, 0), (12, 2), (249, 49), (250, 50), (9000, 50)])
def test_a_fifth_of_d1_and_no_more_than_fifty(rows: int, size: int) -> None:
    assert Probe().size(rows) == size


def test_it_is_in_no_training_and_no_test(open_run: OpenRun) -> None:
    run = finished(open_run("data.probe.count=6"))
    parts = {p: set(run.context().prompts(p)["prompt_id"]) for p in (*PARTS, "probe")}
    assert {name: len(ids) for name, ids in parts.items()} == {
        "d1": 8, "d2": 12, "test": 6, "probe": 6,
    }  # fmt: skip
    for name in PARTS:
        assert not parts["probe"] & parts[name]
    learned = [run.store.read(run.plan.name(s), "pairs.parquet") for s in run.plan.steps
               if s.kind == "gen"]  # fmt: skip
    assert len(learned) == 8
    assert not parts["probe"] & set(pl.concat(learned)["prompt_id"])


def test_with_d2_from_d1_it_still_is_not_asked(open_run: OpenRun) -> None:
    run = open_run("data.overlap=true", "data.probe.count=4", "data.d1.count=600")
    context = run.context()
    held = set(context.prompts("probe")["prompt_id"])
    assert len(held) == 4 and not held & set(context.prompts("d2")["prompt_id"])


def test_larger_than_d1_is_one_line(open_run: OpenRun) -> None:
    with pytest.raises(DataError, match=r"data.probe.count takes 14 of D1's 14 rows .* to 2 or"):
        open_run("data.probe.count=14").context().prompts("d1")


def test_none_is_fine(open_run: OpenRun) -> None:
    run = finished(open_run("data.probe.count=0"))
    assert len(run.context().prompts("d1")) == 14
    assert probe.readings(run.plan, run.store) == []
    assert probe.best_round(run.recipe, []) is None and advise(run.plan, []) is None


def probed(chosen: list[float | None], rejected: list[float | None]) -> pl.DataFrame:
    columns = {"chosen_perplexity": chosen, "rejected_perplexity": rejected}
    frame = pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.Float64))
    ids = pl.Series("prompt_id", [str(n) for n in range(len(chosen))], dtype=pl.String)
    return frame.with_columns(ids)


def test_values_by_hand() -> None:
    """The median of the chosen's perplexities, and how pairs are ranked.

    From the twin to the policy the perplexity of the first pair's chosen answer falls from 4 to 2,
    that of its rejected one from 16 to 4, which is more: wrong, though 2 is below 4. The second
    pair's chosen one falls from 6 to 3, the rejected one stays. In the third neither moves.
    """
    student = Policy("student", "positive", 0)
    own = probed([2.0, 3.0, 8.0, None], [4.0, 3.0, 9.0, 1.0])
    twin = probed([4.0, 6.0, 8.0, 1.0], [16.0, 3.0, 9.0, 1.0])
    alone, beside = probe._reading(student, own, None), probe._reading(student, own, twin)
    assert alone is not None and beside is not None
    assert alone.perplexity == beside.perplexity == 3.0 and alone.score is None
    assert list(alone.ranked.values()) == [True, False, True]
    assert list(beside.ranked.values()) == [False, True, False]
    assert alone.accuracy == pytest.approx(2 / 3) and beside.accuracy == pytest.approx(1 / 3)
    assert probe._reading(student, probed([None], [1.0]), None) is None


def test_a_policy_is_read_beside_its_twin(open_run: OpenRun) -> None:
    run = finished(open_run("rounds=1"))
    names = {path.name.rpartition("-")[0] for path in run.store.root.glob("probe/*")}
    agents = ("teacher1", "teacher2", "teacher3", "student")
    voices = ("positive-0", "negative-0", "positive-1")
    assert names == {f"{agent}-{voice}" for agent in agents for voice in voices}
    (first, *_) = probe.readings(run.plan, run.store)
    tables = [
        run.store.read(probe.result_name(run.plan, p), probe.FILE)
        for p in (first.policy, Policy(first.policy.agent, "negative", 0))
    ]
    assert first == probe._reading(first.policy, *tables)


def test_a_reading_names_what_it_alone_is_made_from(open_run: OpenRun) -> None:
    """Whichever other policies are read in the same go."""
    run = open_run()
    run.finish_round(0)
    for name in run.store.names():
        if name.startswith("probe/"):
            manifest = run.store.typed(name, ProbeManifest)
            assert manifest and manifest.inputs
            learner, behavior, round_ = manifest.policy.split("-")
            allowed = {f"{learner}-{behavior}-{round_}", f"{learner}-positive-{round_}"}
            assert all(
                n.startswith(tuple(f"scores/{a}-" for a in allowed)) for n in manifest.inputs
            )


def test_the_round_to_keep(open_run: OpenRun) -> None:
    recipe = open_run("stop_above=1.5").recipe
    rounds = [read("student", n, p) for n, p in enumerate([2.0, 2.5, 3.0, 3.01, 2.0])]
    rounds.append(read("teacher1", 0, 99.0))
    assert probe.line(recipe, rounds) == 3.0
    best = probe.best_round(recipe, rounds)
    assert best is not None and (best.round, best.crossed) == (2, 3)  # at the line is below it
    assert "from round 3 on" in str(probe.warning(recipe, rounds))
    assert probe.warning(recipe, rounds[:3]) is None
    whole = probe.best_round(recipe, rounds[:3])
    assert whole is not None and (whole.round, whole.crossed) == (2, None)
    scored = [read("student", n, 2.0, s) for n, s in enumerate([0.1, 0.7, 0.7, 0.3])]
    judged = probe.best_round(recipe, [*scored, read("student", 4, 9.0, 1.0)])
    assert judged is not None and (judged.round, judged.crossed) == (1, 4)


def test_a_run_ends_where_it_passes_the_line(
    open_run: OpenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run("stop=probe", "rounds=3")
    known = [read("student", n, p) for n, p in enumerate([2.0, 2.4, 2.6, 2.0])]
    monkeypatch.setattr(probe, "readings", lambda *_: known)
    assert [run.ended(n) is not None for n in range(4)] == [False, False, True, False]
    assert "after round 2 the student's perplexity of the probe is 2.60, above 2.50" in str(
        run.ended(2)
    )
    assert run.ended_after() == 2


def test_nothing_that_stops_keeps_or_advises_reads_gold(
    open_run: OpenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gold(*_: Any) -> Any:
        raise AssertionError("gold was asked")

    monkeypatch.setattr(judge, "ask_of", gold)  # with which every verdict begins
    run = finished(open_run("stop=probe", "eval.judge={kind: gold}"))
    known = probe.readings(run.plan, run.store)
    assert len(known) == 8
    assert probe.best_round(run.recipe, known) and advise(run.plan, known)
    run.ended_after()
    with pytest.raises(AssertionError, match="gold was asked"):  # the judge does raise
        run.evaluate(trained(run.plan, run.store))


def test_only_a_judge_who_reads_scores_answers(open_run: OpenRun) -> None:
    """Of the student alone; the world's gold judge is none, a model is."""
    blind = finished(open_run("rounds=1", "run=blind"))
    assert all(r.score is None for r in probe.readings(blind.plan, blind.store))
    judged = finished(open_run("eval.judge={kind: llm, agent: student}"))
    scores = {str(r.policy): r.score for r in probe.readings(judged.plan, judged.store)}
    assert scores["student-positive-0"] == 0.5  # against itself
    assert scores["student-positive-1"] is not None and scores["teacher1-positive-1"] is None


def rankings(**ranked: str) -> list[Reading]:
    """Round 0 of each agent, with a letter per pair: y ranked right, n wrong."""
    return [
        Reading(
            Policy(agent, "positive", 0), 2.0, 0.5, None,
            {str(i): letter == "y" for i, letter in enumerate(letters)},
        )
        for agent, letters in ranked.items()
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("teachers", "student", "expected"),
    [
        (("y" * 20, "y" * 20, "n" * 20), "n" * 20, Next.MUTUAL),
        (("yn" * 10, "ny" * 10, "yn" * 10), "y" * 18 + "nn", Next.OWN),
        (("yn" * 10, "yn" * 10, "yn" * 10), "ny" * 10, Next.LABELS),
        (("y" * 20, "y" * 20, "y" * 20), "y" * 20, Next.STOP),
    ],
)
def test_advice(
    teachers: tuple[str, str, str], student: str, expected: Next, open_run: OpenRun
) -> None:
    named = dict(zip(("teacher1", "teacher2", "teacher3"), teachers, strict=True))
    advice = advise(open_run().plan, rankings(**named, student=student))
    assert advice is not None and advice.next is expected


def test_the_numbers_behind_it(open_run: OpenRun) -> None:
    known = rankings(teacher1="yyyy", teacher2="yyyy", teacher3="ynyn", student="nnyy")
    advice = advise(open_run().plan, known)
    assert advice is not None
    # The labels and two teachers always agree, so that they are trusted, and all else follows.
    assert advice.accuracy == pytest.approx(
        {"teacher1": 0.98, "teacher2": 0.98, "teacher3": 0.5, "student": 0.5, HUMAN: 0.98}, abs=1e-3
    )
    assert (advice.together, advice.lead.mean) == pytest.approx((1.0, 0.5), abs=1e-3)
    assert advice.some_right == pytest.approx(1.0)
    # Teachers 1 and 2 rank all alike, teacher 3 half of that.
    assert advice.agreement == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert advise(open_run().plan, known[:-1]) is None
    assert not advice.is_clear  # four pairs: a resample may hold none where they differ


def test_voters_of_known_accuracy() -> None:
    """From nothing but their votes, within a few points; the last problem has them all reversed."""
    rng, accuracy = np.random.default_rng(0), np.array([0.95, 0.8, 0.7, 0.6, 0.65])
    truth = rng.integers(2, size=2000)
    votes = np.where(rng.random((5, 2000)) < accuracy[:, None], truth, 1 - truth).astype(float)
    right, probability = stats.voters(np.stack([votes, 1 - votes]))
    assert right[0] == pytest.approx(accuracy, abs=0.04) and right[1] == pytest.approx(right[0])
    assert ((probability[0] > 0.5) == truth).mean() > 0.95
    assert probability[1] == pytest.approx(1 - probability[0])


def test_a_damaged_reading_stops_nobody_and_is_made_again(open_run: OpenRun) -> None:
    run = finished(open_run("rounds=1"))
    student = Policy("student", "positive", 1)
    whole = probe.readings(run.plan, run.store)
    folder = run.store.path(probe.result_name(run.plan, student))
    for damaged in (probe.FILE, "manifest.json"):
        (folder / damaged).write_text("junk")
        assert len(probe.readings(run.plan, run.store)) == len(whole) - 1
        run.make("train", 1)
        assert probe.readings(run.plan, run.store) == whole


def test_a_reading_of_another_adapter_does_not_count(open_run: OpenRun) -> None:
    run = finished(open_run("rounds=0"))
    student = Policy("student", "positive", 0)
    maker = run.plan.maker(student)
    assert maker is not None
    name = run.plan.name(maker)
    manifest = run.store.manifest(name) or {}
    (run.store.path(name) / "adapter_model.safetensors").write_bytes(b"other")
    run.store.finish(name, manifest)
    assert student not in {r.policy for r in probe.readings(run.plan, run.store)}


def test_scores_are_of_the_judge_that_is_asked_and_perplexities_of_none(open_run: OpenRun) -> None:
    judged = (
        "agents.judge={role: judge, base: 'world:tiny'}",
        "eval.judge={kind: llm, agent: judge}",
    )
    one = open_run(*judged)
    others = (
        (), (*judged, "agents.judge.base=world:strong"), (*judged, "eval.sampling.temperature=0.5"),
    )  # fmt: skip
    student = Policy("student", "positive", 1)
    for other in (open_run(*sets) for sets in others):
        assert probe.result_name(other.plan, student) == probe.result_name(one.plan, student)
        names = [probe.score_name(run.plan, run.store, student) for run in (one, other)]
        assert names[0] is not None and names[0] != names[1]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (("stop=probe", "data.probe.count=0"), r"stop: probe needs one; set data.probe.count"),
        (("agents.student.noise=0.3",), r"agents.student.noise: only a teacher learns from"),
    ],
)
def test_what_would_do_nothing_is_refused(
    sets: tuple[str, ...], message: str, open_run: OpenRun
) -> None:
    with pytest.raises(RecipeError, match=message):
        open_run(*sets)


def test_advice_is_for_those_who_are_taught_by_others(open_run: OpenRun) -> None:
    known = rankings(teacher1="yy", teacher2="yy", teacher3="yy", student="ny")
    assert advise(open_run().plan, known) is not None
    for other in ("positives=own", "method=weak_labels"):
        assert advise(open_run(other).plan, known) is None
