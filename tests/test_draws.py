"""How answers to measured prompts are sampled, and means over prompts where there are several."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from conftest import OpenRun
from test_evaluate import everything

from macpo_data.errors import RecipeError
from macpo_data.evaluation.draws import by_prompt, described
from macpo_data.evaluation.evaluate import answers_of, beside, evaluate
from macpo_data.evaluation.measures import means
from macpo_data.evaluation.results import latest
from macpo_data.evaluation.signs import of_evaluation
from macpo_data.evaluation.verdict import change
from macpo_data.plan import Policy
from macpo_data.recipe.generation import Sampling
from macpo_data.schema import JUDGEMENTS, RESPONSES, empty
from macpo_run.exporting import export
from macpo_run.terminal.scores import print_evaluation

THREE = "eval.sampling={temperature: 0.7, n: 3}"
STUDENT = Policy("student", "positive", 0)


def responses(golds: dict[int, dict[str, list[float | None]]]) -> pl.DataFrame:
    """RESPONSES of a student: by round and prompt the scores of its answers."""
    rows = [
        {"prompt_id": prompt, "agent": "student", "behavior": "positive", "round": r, "draw": n,
         "response": "abc", "finish_reason": "stop", "gold": gold}
        for r, prompts in golds.items()
        for prompt, scores in prompts.items()
        for n, gold in enumerate(scores)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=RESPONSES)


def test_greedy_by_default(open_run: OpenRun) -> None:
    """The limit is the recipe's own of 12 tokens, unless the evaluation has another one."""
    run = everything(open_run("rounds=0"))
    greedy = Sampling(temperature=0, top_p=1, top_k=0, max_new_tokens=12, n=1)
    assert run.plan.sampling("test") == run.plan.sampling("probe") == greedy
    assert run.plan.sampling("d1") == run.plan.sampling("d2") == run.recipe.sampling != greedy
    evaluate(run.context(), [STUDENT])
    by_part = {
        part: run.store.manifest(run.plan.sample_name(policy, part, "0")) or {}
        for part, policy in (("test", STUDENT), ("d2", Policy("teacher1", "positive", 0)))
    }
    assert by_part["test"]["sampling"] == greedy.model_dump()
    assert by_part["d2"]["sampling"] == run.recipe.sampling.model_dump()
    assert open_run("eval.sampling.max_new_tokens=99").plan.sampling("test").max_new_tokens == 99


def test_only_what_is_measured_has_another_name(open_run: OpenRun) -> None:
    """More answers are more sample sets of the same names; the evaluation is another one."""
    hot, two = "eval.sampling.temperature=0.7", "eval.sampling={temperature: 0.7, n: 2}"
    plans = [open_run(*sets).plan for sets in ([], [hot], [two])]
    names = [[plan.name(step) for step in plan.steps] for plan in plans]
    assert names[0] == names[1] == names[2]
    for part, count in (("d1", 1), ("d2", 1), ("test", 2)):
        assert len({plan.sample_name(STUDENT, part, "0") for plan in plans}) == count
    hotter = open_run("sampling.temperature=0.5").plan
    base = Policy("student")  # which is not trained, so that nothing else differs
    assert hotter.sample_name(base, "test", "0") == plans[0].sample_name(base, "test", "0")
    assert hotter.sample_name(base, "d2", "0") != plans[0].sample_name(base, "d2", "0")


def test_means_and_intervals_are_over_prompts() -> None:
    """Prompt p: 0, 0, 1, a mean of 1/3; q: 1, 1 and one without a score, 1; r has no score.

    The mean is that of 1/3 and 1, 2/3, and not 3/5. Of two values resampled, the quantiles at 2.5 %
    and 97.5 % are the values themselves.
    """
    rows = responses({0: {"p": [0, 0, 1], "q": [1, 1, None], "r": [None] * 3}})
    (row,) = means(rows, pl.DataFrame(schema=JUDGEMENTS), {"gold": "world"}).rows(named=True)
    assert [row[k] for k in ("mean", "low", "high")] == pytest.approx([2 / 3, 1 / 3, 1])
    assert row["prompts"] == 2


def test_changes_and_falls_are_over_prompts() -> None:
    """From round 0 to 1 p loses a half, (1 + 0) / 2 - 1, and q 1, (0 + 0) / 2 - 1: mean -0.75."""
    rows = responses({0: {"p": [1, 1], "q": [1, 1]}, 1: {"p": [1, 0], "q": [0, 0]}})
    moved = change(rows, "student", "gold", 0, 1)
    assert moved is not None and tuple(moved) == (-0.75, -1.0, -0.5)
    sign = of_evaluation(rows, [], empty(JUDGEMENTS))["student-positive-1"]["gold"]
    assert (sign["value"], sign["before"], sign["line"], sign["crossed"]) == (0.25, 1, 0.75, True)


def test_win_rates_are_over_prompts() -> None:
    """p wins both times, q one of three: the mean of 1 and 1/3, with no verdict on p's third."""
    wins: dict[str, list[float | None]] = {"p": [1.0, 1.0, None], "q": [0.0, 0.0, 1.0]}
    judged = [
        {"prompt_id": p, "agent": "student", "behavior": "positive", "round": 0, "draw": n,
         "against": "chosen", "longer": 0, "win": win}
        for p, each in wins.items() for n, win in enumerate(each)
    ]  # fmt: skip
    rows = responses({0: {"p": [None] * 3, "q": [None] * 3}})
    names = {"win": "judge", "win_lc": "judge"}
    table = means(rows, pl.DataFrame(judged, schema=JUDGEMENTS), names)
    win = table.row(by_predicate=pl.col("measure") == "win", named=True)
    assert (win["mean"], win["prompts"], win["against"]) == (pytest.approx(2 / 3), 2, "chosen")


def test_a_value_per_prompt_and_baseline() -> None:
    rows = pl.DataFrame(
        {"prompt_id": ["p", "p", "p"], "against": ["x", "x", "y"], "win": [1.0, 0.0, 0.25]}
    )
    assert by_prompt(rows, "win").rows() == [("p", "x", 0.5), ("p", "y", 0.25)]


def test_three_answers_are_measured_and_compared_draw_by_draw(
    open_run: OpenRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = everything(open_run("rounds=0", THREE))
    evaluation = run.evaluate([STUDENT], against="student-base")
    own = evaluation.responses.filter(pl.col("round") == 0)
    assert own["draw"].to_list() == [0, 1, 2] * 6 and own["response"].n_unique() > 6
    assert evaluation.judgements["draw"].to_list() == [0, 1, 2] * 6
    assert evaluation.table["prompts"].unique().to_list() == [6]
    ctx = run.context()
    met = beside(ctx, answers_of(ctx, [STUDENT]), Policy("student"))
    both = met.select("prompt_id", "draw", "b").rows()
    base = evaluation.responses.filter(pl.col("round").is_null())
    assert both == base.select("prompt_id", "draw", "response").rows()
    human = beside(ctx, answers_of(ctx, [STUDENT]), "chosen")
    assert len(human) == 18 and human["b"].n_unique() <= 6
    manifest = run.store.manifest(f"eval/{evaluation.paths[0].name}") or {}
    assert (manifest["sampling"]["n"], manifest["sampling"]["temperature"]) == (3, 0.7)
    print_evaluation(evaluation)
    assert "held-out: 3 answers at temperature 0.7, mean over prompts" in capsys.readouterr().out
    print_evaluation(replace(evaluation, table=evaluation.table.clear()))  # there is no judge
    shown = capsys.readouterr().out
    assert all(text in shown for text in (str(STUDENT), "Nobody has scored", "eval.reward"))


def test_what_was_answered_otherwise_stands_in_another_table(open_run: OpenRun) -> None:
    """Greedy answers, one and three at a temperature: none is shown beside another."""
    sets = ["", "eval.sampling.temperature=0.7", THREE]
    runs = [everything(open_run("rounds=0", *([each] if each else []))) for each in sets]
    folders = {run.evaluate([STUDENT]).paths[0] for run in runs}
    assert len(folders) == 3
    for run, count in zip(runs, (1, 1, 3), strict=True):
        evaluation = latest(run.plan, run.store)
        assert evaluation is not None and evaluation.sampling == run.plan.sampling("test")
        assert len(evaluation.paths) == 1 and len(evaluation.responses) == 6 * count


def test_people_read_the_first_answers(open_run: OpenRun, tmp_path: Path) -> None:
    run = everything(open_run("rounds=0", THREE))
    sheet = tmp_path / "sheet.csv"
    export(run, "human", [STUDENT], "student-base", None, sheet)
    rows = list(csv.DictReader(io.StringIO(sheet.read_text("utf-8-sig"))))
    first = answers_of(run.context(), [STUDENT, Policy("student")]).filter(draw=0)
    assert len(rows) == 6
    shown = sorted(row[side] for row in rows for side in ("answer_1", "answer_2"))
    assert shown == sorted(first["response"])


def test_several_greedy_answers_are_refused(open_run: OpenRun) -> None:
    with pytest.raises(RecipeError, match=r"eval\.sampling: n: greedy answers are all the same"):
        open_run("eval.sampling.n=3")


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        (Sampling(temperature=0, top_p=1, top_k=0), "greedy answers"),
        (Sampling(temperature=0.7, top_p=1, top_k=0, n=4), "4 answers at temperature 0.7"),
        (Sampling(), "one answer at temperature 0.95, top_p 0.7, top_k 50"),
    ],
)
def test_sampling_in_words(sampling: Sampling, words: str) -> None:
    assert described(sampling) == words
