"""Evaluations: their tables, what is fresh, and statistics with known answers."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import polars as pl
import pytest
from conftest import OpenRun
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_server import serve
from scipy import optimize
from scipy import stats as scipy_stats

from macpo_data import stats
from macpo_data.errors import MacpoError, ModelError
from macpo_data.evaluation.evaluate import evaluate
from macpo_data.evaluation.measures import MEASURES, PER_ANSWER
from macpo_data.evaluation.policies import choose, trained
from macpo_data.evaluation.results import REQUESTS, latest
from macpo_data.generation import judge
from macpo_data.plan import Policy
from macpo_data.world.judge import gold
from macpo_run.cleaning import unreachable
from macpo_run.policies import train_reward
from macpo_run.rounds import Run
from macpo_run.terminal.scores import print_evaluation
from macpo_run.terminal.text import interval


def everything(run: Run) -> Run:
    for each in range(run.recipe.rounds + 1):
        assert not run.finish_round(each).waiting
    return run


def test_a_row_per_policy_and_measure(open_run: OpenRun) -> None:
    """4 agents: positive of rounds 0 and 1, negative of round 0; 6 test prompts; gold alone."""
    run = everything(open_run())
    evaluation = evaluate(run.context(), trained(run.plan, run.store))
    assert evaluation.table.height == 12
    assert evaluation.table["measure"].unique().to_list() == ["gold"]
    assert evaluation.table["prompts"].to_list() == [6] * 12
    prompts = dict(run.context().prompts("test").select("prompt_id", "prompt").iter_rows())
    own = evaluation.responses.filter(agent="student", behavior="positive", round=1)
    by_hand = [
        gold(prompts[row["prompt_id"]], row["response"]).score for row in own.iter_rows(named=True)
    ]
    row = evaluation.table.row(by_predicate=policy_row("student", "positive", 1), named=True)
    assert row["mean"] == pytest.approx(sum(by_hand) / 6)
    assert row["low"] <= row["mean"] <= row["high"]
    assert row["chars"] == pytest.approx(sum(map(len, own["response"])) / 6)
    assert row["truncated"] == sum(reason == "length" for reason in own["finish_reason"]) / 6


def policy_row(agent: str, behavior: str, round_: int | None) -> pl.Expr:
    same_round = pl.col("round").eq_missing(pl.lit(round_, pl.Int64))
    return (pl.col("agent") == agent) & (pl.col("behavior") == behavior) & same_round


def test_a_damaged_table_is_made_anew(open_run: OpenRun) -> None:
    run = everything(open_run())
    evaluation = evaluate(run.context(), [Policy("student", "positive", 0)])
    path = evaluation.paths[0] / "table.parquet"
    path.write_bytes(path.read_bytes()[:50])
    assert latest(run.plan, run.store) is None
    again = evaluate(run.context(), [Policy("student", "positive", 0)])
    assert again.table.equals(evaluation.table)


def test_the_newest_of_each_policy_is_on_top_and_bases_are_apart(open_run: OpenRun) -> None:
    """Teachers 1 and 3 share a base, so that only their names tell their bare bases apart."""
    run = everything(open_run())
    assert latest(run.plan, run.store) is None
    bases = [Policy("teacher1"), Policy("teacher3"), Policy("student", "positive", 0)]
    evaluate(run.context(), bases)
    evaluate(run.context(), [Policy("student", "positive", 0), Policy("student", "positive", 1)])
    evaluation = latest(run.plan, run.store)
    assert evaluation is not None
    who = evaluation.table.select("agent", "round").sort("agent", "round").rows()
    assert who == [("student", 0), ("student", 1), ("teacher1", None), ("teacher3", None)]
    assert evaluation.responses.height == 4 * 6 and len(evaluation.paths) == 2


def test_what_changed_since_is_not_fresh_but_kept(open_run: OpenRun) -> None:
    run = everything(open_run())
    evaluate(run.context(), [Policy("student", "positive", 1)])
    assert unreachable([run]) == []
    other = open_run("sampling.temperature=0.5")
    assert latest(other.plan, other.store) is None
    assert any(name.startswith("eval/") for name in unreachable([other]))
    sample = run.plan.sample_name(Policy("student", "positive", 1), "test", "0")
    run.store.aside(sample)
    folder = run.store.clear(sample)
    (folder / "changed").write_text("")
    run.store.finish(sample, {"inputs": {}})
    assert latest(run.plan, run.store) is None


def test_wins_against_a_baseline(open_run: OpenRun) -> None:
    """Better, as good and worse answers than the baseline's by the world's gold judge count 1, 0.5
    and 0; the baseline is measured, but not compared with itself."""
    run = everything(open_run())
    evaluation = run.evaluate([Policy("student", "positive", 1)], against="chosen")
    # A fake answer is worth nothing, the human's is.
    assert evaluation.judgements["win"].to_list() == [0.0] * 6
    rows = {row["measure"]: row for row in evaluation.table.iter_rows(named=True)}
    assert rows["win"]["mean"] == 0.0 and rows["win"]["against"] == "chosen"
    assert 0 < rows["win_lc"]["mean"] < 0.2 and rows["win_lc"]["by"] == "gold judge"
    chosen = run.context().prompts("test")["chosen"].str.len_chars()
    written = evaluation.responses["response"].str.len_chars()
    assert evaluation.judgements["longer"].to_list() == [
        int(a) - int(b) for a, b in zip(written, chosen, strict=True)
    ]

    evaluation = run.evaluate([Policy("student", "positive", 1)], against="student-base")
    assert evaluation.table.filter(pl.col("round").is_null())["measure"].to_list() == ["gold"]
    assert evaluation.judgements["win"].to_list() == [0.5] * 6  # 0 against 0


def test_of_each_measure_only_rows_by_one_judge_stand_together(open_run: OpenRun) -> None:
    run = everything(open_run("eval.reward=org/one"))
    both = [Policy("student", "positive", 0), Policy("student", "positive", 1)]
    run.evaluate(both)
    other = open_run("eval.reward=org/other")
    other.evaluate(both[:1])
    evaluation = latest(run.plan, run.store)
    assert evaluation is not None
    rewards = evaluation.table.filter(measure="reward")
    assert rewards.select("round", "by").rows() == [(0, "org/other")]
    assert evaluation.table.filter(measure="gold").height == 2

    assert sorted(evaluation.responses.drop_nulls("reward")["round"].unique()) == [0]
    run.evaluate(both)  # made before, but asked for last
    evaluation = latest(run.plan, run.store)
    assert evaluation is not None
    assert evaluation.table.filter(measure="reward")["by"].unique().to_list() == ["org/one"]


def by_whom(run: Run) -> list[str]:
    """Whose rewards stand on top."""
    newest = latest(run.plan, run.store)
    assert newest is not None
    return newest.table.filter(measure="reward")["by"].unique().to_list()


def test_which_evaluation_is_the_newest_stands_in_the_run_folder(
    open_run: OpenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one asked for last, whatever the files' times say; in a run without a list of requests,
    as runs had none before, the one that was made last by its manifest."""
    one = [Policy("student", "positive", 0)]
    first, second = open_run("rounds=0", "eval.reward=org/one"), open_run("eval.reward=org/other")
    everything(first)
    paths = []
    for run, when in ((first, "2026-01-02T00:00:00Z"), (second, "2026-01-01T00:00:00Z")):
        monkeypatch.setattr("macpo_data.store.store.time.strftime", lambda *_, now=when: now)
        paths.append(run.evaluate(one).paths[0])
    requests = first.store.path(REQUESTS)
    asked = [line.split()[1] for line in requests.read_text().splitlines()]
    assert asked == [f"eval/{path.name}" for path in paths]
    assert by_whom(first) == ["org/other"]
    os.utime(paths[0] / "manifest.json", (4e9, 4e9))
    assert by_whom(first) == ["org/other"]
    second.evaluate(one)  # the newest already
    assert len(requests.read_text().splitlines()) == 2
    requests.unlink()
    assert by_whom(first) == ["org/one"]
    requests.write_text("a line that names no evaluation\n")
    assert by_whom(first) == ["org/one"]
    second.evaluate(one)  # one request is newer than whatever was made before there was a list
    assert by_whom(first) == ["org/other"]


def test_a_table_of_an_earlier_version_is_passed_over(open_run: OpenRun) -> None:
    """Whole by its manifest, but without a column that tables have now; asked for, made anew."""
    run = everything(open_run("rounds=0"))
    one = [Policy("student", "positive", 0)]
    folder = run.evaluate(one).paths[0]
    name, facts = f"eval/{folder.name}", run.store.manifest(f"eval/{folder.name}")
    assert facts is not None
    pl.read_parquet(folder / "table.parquet").drop("chars").write_parquet(folder / "table.parquet")
    run.store.finish(name, facts)
    assert latest(run.plan, run.store) is None
    assert "chars" in run.evaluate(one).table.columns


def test_a_retrained_reward_model_is_another_judge(open_run: OpenRun) -> None:
    """The same words in eval.judge, but epochs of its training differ."""
    evaluations = []
    for epochs in (1, 2):
        settings = "eval.judge={kind: reward, reward: trained}", f"reward.epochs={epochs}"
        run = everything(open_run("rounds=0", *settings))
        train_reward(run)
        evaluations.append(run.evaluate([Policy("student", "positive", 0)], against="student-base"))
    assert evaluations[0].paths != evaluations[1].paths
    assert set(evaluations[0].table.filter(measure="win")["by"]) == {"reward judge trained"}
    newest = latest(run.plan, run.store)
    assert newest is not None and newest.judgements.equals(evaluations[1].judgements)


def test_redo_mends_rewards_of_a_model_that_was_trained_anew(open_run: OpenRun) -> None:
    run = everything(open_run("rounds=0", "eval.reward=trained"))
    train_reward(run)
    one = [Policy("student", "positive", 0)]
    run.evaluate(one)
    name = run.plan.reward_name
    (run.store.path(name) / "other").write_text("weights")
    run.store.finish(name, run.store.manifest(name) or {})
    with pytest.raises(MacpoError, match="--redo"):
        run.evaluate(one)
    assert run.evaluate(one, redo=True).table.height == 2


def test_prompts_without_a_human_answer_are_not_compared(open_run: OpenRun) -> None:
    """Two of six test prompts lose their human answer, then all."""
    run = everything(open_run("rounds=0"))
    lines: list[str] = []
    run.store.say = lines.append
    prompts = run.context().prompts("test")
    for missing in (2, 6):
        name = run.plan.prompts_name
        facts = run.store.manifest(name) or {}
        kept = pl.int_range(pl.len()) >= missing
        prompts.with_columns(chosen=pl.when(kept).then("chosen")).write_parquet(
            run.store.path(name) / "test.parquet"
        )
        run.store.finish(name, facts)
        ctx = run.context(redo=True)
        if missing == 2:
            evaluation = evaluate(ctx, [Policy("student", "positive", 0)], "chosen")
            assert len(evaluation.judgements) == 4 and "2 of 6 test prompts" in lines[-1]
        else:
            with pytest.raises(MacpoError, match="have no human answers"):
                evaluate(ctx, [Policy("student", "positive", 0)], "chosen")


def test_who_is_stale_is_said(open_run: OpenRun) -> None:
    run = everything(open_run("rounds=0"))
    lines: list[str] = []
    run.store.say = lines.append
    assert choose(run.plan, run.store) and not lines
    name = next(run.plan.name(step) for step in run.plan.steps if step.kind == "gen")
    (run.store.path(name) / "other").write_text("changed")
    run.store.finish(name, run.store.manifest(name) or {})
    assert choose(run.plan, run.store)
    assert len(lines) == 1 and "made from what changed since" in lines[0]


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [(10.25, 20.4, "[10.25,20.40]"), (-10.55, -0.5, "[-10.55,-.50]"), (0.2, 0.75, "[.20,.75]")],
)
def test_an_interval_in_the_terminal(low: float, high: float, shown: str) -> None:
    assert interval({"mean": 1.0, "low": low, "high": high}) == f"1.000 {shown}"


def test_of_one_prompt_there_is_no_interval(
    open_run: OpenRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = everything(open_run("rounds=0", "data.test.count=1"))
    print_evaluation(run.evaluate([Policy("student", "positive", 0)], "chosen"))
    output = capsys.readouterr().out
    assert output.count("[none]") == 3 and "nan" not in output  # gold, win, LC win


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("all", ["bob"]), "no agent 'bob'"),
        (("2", []), "no such policy is trained yet"),
        (("soon", []), "write a number, all, or base"),
    ],
)
def test_who_cannot_be_evaluated(
    open_run: OpenRun, args: tuple[str, list[str]], message: str
) -> None:
    run = everything(open_run("rounds=0"))
    with pytest.raises(MacpoError, match=message):
        choose(run.plan, run.store, *args)
    assert choose(run.plan, run.store, "base", ["student"]) == [Policy("student")]
    assert choose(run.plan, run.store, "0", ["student"]) == [
        Policy("student", "positive", 0),
        Policy("student", "negative", 0),
    ]


def test_a_baseline_that_nobody_knows_or_judges(open_run: OpenRun) -> None:
    run = everything(open_run("rounds=0"))
    with pytest.raises(
        MacpoError, match="no policy 'bob': name an agent and its round, such as student-positive-0"
    ):
        run.evaluate([Policy("student", "positive", 0)], against="bob")


def test_a_judge_that_always_says_a_gives_a_half(open_run: OpenRun) -> None:
    """A model behind a real server that prefers what is shown first: in both orders together each
    answer wins once, so that the rate is .5 whoever is better; what is known of the judge says why,
    and an evaluation by it is refused."""
    with serve(lambda model, messages: "Because it came first: [[A]]") as server:
        endpoint = {"base_url": server.url, "model": "m"}
        run = open_run(
            f"agents.judge={json.dumps({'role': 'judge', 'endpoint': endpoint})}",
            "eval.judge={kind: llm, agent: judge}",
            "data.test.count=20",
            fake=False,
        )
        ctx, compares = run.context(), run.recipe.eval.judge
        assert compares is not None
        rows = ctx.prompts("test").select("prompt_id", "prompt", a="chosen", b="rejected")
        judged = judge.compare(ctx, compares, rows)
        assert stats.mean(judged["win"].to_numpy()) == (0.5, 0.5, 0.5)
        assert len(server.seen) == 40
        with pytest.raises(ModelError, match="prefers the answer shown first in 100%"):
            judge.check(judge.report(judged), compares)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("eval.judge={kind: llm, agent: nobody}", "eval.judge.agent: 'nobody' is no agent"),
        ("eval.judge={kind: llm}", "eval.judge: kind llm needs an agent"),
        ("eval.reward={model: m, head: yes}", "eval.reward"),
    ],
)
def test_a_wrong_setting_of_an_evaluation(open_run: OpenRun, setting: str, message: str) -> None:
    with pytest.raises(MacpoError, match=re.escape(message)):
        open_run(setting)


def test_the_interval_is_scipys() -> None:
    values = np.random.default_rng(5).random(40)
    estimate = stats.mean(values)
    theirs = scipy_stats.bootstrap(
        (values,), np.mean, n_resamples=stats.RESAMPLES, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    assert estimate.mean == pytest.approx(values.mean())
    # 2,000 resamples leave about 2 % of the width to chance, and BCa corrects what little skew is.
    width = theirs.high - theirs.low
    assert abs(estimate.low - theirs.low) < 0.1 * width > abs(estimate.high - theirs.high)


def test_an_interval_by_hand() -> None:
    """Two values, 0 and 1: a resample's mean is 0, 0.5 or 1 with probability 1/4, 1/2, 1/4, so
    that the quantiles at 2.5 % and 97.5 % are 0 and 1."""
    assert stats.mean(np.array([0.0, 1.0])) == (0.5, 0.0, 1.0)
    assert stats.mean(np.array([0.25] * 9)) == (0.25, 0.25, 0.25)


def test_of_nothing_and_of_one() -> None:
    assert np.isnan(stats.mean(np.array([]))).all()
    one = stats.mean(np.array([0.7]))
    assert one.mean == 0.7 and np.isnan(one.low)


@pytest.mark.parametrize("truth", [0.3, 0.5, 0.7])
def test_length_control_recovers_the_truth(truth: float) -> None:
    """A judge who would prefer the policy in `truth` of all cases, and leans to the longer answer;
    the policy's answers are the longer ones, so that its raw win rate flatters."""
    rng = np.random.default_rng(0)
    longer = rng.normal(80, 100, 4000)
    logits = np.log(truth / (1 - truth)) + 1.5 * np.tanh(longer / longer.std())
    wins = (rng.random(4000) < 1 / (1 + np.exp(-logits))).astype(float)
    rate = stats.length_controlled(wins, longer)
    assert rate.low < truth < rate.high and rate.high - rate.low < 0.08
    assert wins.mean() > rate.high


def test_without_length_differences_it_is_the_win_rate() -> None:
    """Half a win of one more judgement: (3 + 0.5) / (4 + 1) = 0.7."""
    rate = stats.length_controlled(np.array([1.0, 1.0, 1.0, 0.0]), np.zeros(4))
    assert rate.mean == pytest.approx(0.7)


@settings(deadline=None)  # the first call imports scipy
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(-900, 900)), min_size=2))
def test_the_fit_is_a_minimum_of_the_penalised_likelihood(rows: list[tuple[float, int]]) -> None:
    wins, longer = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    rate = stats._at_equal_length(wins, longer)
    bias = np.tanh(longer / longer.std()) if longer.std() else longer * 0

    def loss(weights: stats.Values) -> float:
        logits = weights[0] + np.append(bias, 0) * weights[1]
        target = np.append(wins, 0.5)
        value = np.logaddexp(0, logits).sum() - target @ logits
        return float(value + stats.RIDGE * weights[1] ** 2 / 2)

    # Nelder-Mead stops short of the minimum on some of these.
    least = optimize.minimize(loss, np.zeros(2), method="BFGS")
    assert rate == pytest.approx(1 / (1 + np.exp(-least.x[0])), abs=2e-3)


def test_one_order_of_measures_for_a_run_its_report_and_a_sweep() -> None:
    """The sweep leaves out what has no score per answer, and keeps the order."""
    assert list(PER_ANSWER) == [measure for measure in MEASURES if measure in PER_ANSWER]
    assert set(MEASURES) - set(PER_ANSWER) == {"win_lc"}
