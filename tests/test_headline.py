"""What a run came to: the facts by hand, and the screen as a person sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from conftest import RECIPE, Macpo

from macpo_data import stats
from macpo_data.evaluation.headline import (
    CEILING,
    Answer,
    Example,
    Headline,
    drawn,
    score_table,
    warnings,
)
from macpo_data.evaluation.probe import Reading
from macpo_data.evaluation.verdict import State, Verdict, change, name_baseline, verdict
from macpo_data.loading.load import load_recipe
from macpo_data.plan import Policy
from macpo_data.schema import PROMPTS, RESPONSES, Message
from macpo_run.terminal.headline import print_headline

PAPER = (
    "positive", "negative", "twin", "D1", "D2", "gold", "PGR", "perplexity", "chosen", "rejected",
    "margin", "contrast", "probe", "DPO", "SFT", "pair",
)  # fmt: skip


def answers(golds: dict[int, list[float]], agent: str = "s") -> pl.DataFrame:
    """RESPONSES of an agent's positive policies: scores by round, one for each prompt."""
    rows = [
        {"prompt_id": str(n), "agent": agent, "behavior": "positive", "round": r, "gold": gold}
        for r, golds_ in golds.items()
        for n, gold in enumerate(golds_)
    ]
    return pl.DataFrame(rows, schema=RESPONSES)


def score(round_: int | None, mean: float, **more: object) -> dict[str, object]:
    row = {"agent": "s", "behavior": "positive", "round": round_, "measure": "gold", "mean": mean}
    rest = {"against": None, "low": mean, "high": mean, "by": "world", "prompts": 4}
    return {**row, **rest, **more}


# ---------------------------------------------------------------------------- the verdict


def test_a_change_is_paired_by_prompt() -> None:
    """Gold 0, 0, 1, 1 becomes 1, 1, 1, 1: changes 1, 1, 0, 0, mean 0.5; equal scores: exactly 0."""
    moved = change(answers({0: [0, 0, 1, 1], 1: [1, 1, 1, 1]}), "s", "gold", 0, 1)
    assert moved is not None and moved.mean == 0.5 and 0 <= moved.low < 0.5 < moved.high <= 1
    same = change(answers({0: [0, 1, 1], 1: [0, 1, 1]}), "s", "gold", 0, 1)
    assert same == (0, 0, 0)
    assert change(answers({0: [1.0]}), "s", "gold", 0, 1) is None


@pytest.mark.parametrize(
    ("after", "state", "title"),
    [
        ([0.75] * 4, "better", "The student got better: from 0.50 to 0.75 of 1."),
        ([0.25] * 4, "worse", "The student got worse: from 0.50 to 0.25 of 1."),
        (
            [1.0, 0.0] * 2,
            "same",
            "The student did not clearly change: 0.50 of 1 in round 0, 0.50 in round 1.",
        ),
        ([0.501] * 4, "better", "The student got better: from 0.500 to 0.501 of 1."),
    ],
)
def test_better_worse_or_the_same(after: list[float], state: State, title: str) -> None:
    """From 0.5 everywhere; the interval of a constant change is that constant."""
    scores = [score(0, 0.5), score(1, sum(after) / 4)]
    verdict_ = verdict("s", [], scores, answers({0: [0.5] * 4, 1: after}))
    assert (verdict_.state, verdict_.title) == (state, title)


def test_the_numbers_behind_it() -> None:
    verdict_ = verdict("s", [], [score(0, 0.5), score(1, 0.75)], answers({0: [0.5], 1: [0.75]}))
    assert verdict_.state == "unknown" and "one prompt has no interval" in verdict_.text
    scores = answers({0: [0.5] * 4, 2: [0.75] * 4})
    assert verdict("s", [], [score(0, 0.5), score(2, 0.75)], scores).text == (
        "On 4 held-out prompts its mean score changed by +0.25 from round 0 to round 2; with other "
        "prompts of this kind most likely by +0.25 to +0.25 (95 % interval)."
    )


@pytest.mark.parametrize(
    ("best", "where"),
    [
        ([0.25] * 4, "above"),
        ([0.875] * 4, "below"),
        ([1.0, 1.0, 0.5, 0.5], "not clearly above or below"),
    ],
)
def test_it_is_held_against_the_best_teacher_of_any_round(best: list[float], where: str) -> None:
    """The student ends at 0.75 on each of four prompts. The second teacher is best in round 0."""
    mean = sum(best) / 4
    scores = [
        score(0, 0.5), score(1, 0.75),
        score(0, 0.125, agent="a"), score(1, 0.125, agent="a"),
        score(0, mean, agent="b"), score(1, 0.0, agent="b"),
        score(0, 1.0, agent="b", behavior="negative"), score(None, 1.0, agent="b"),
    ]  # fmt: skip
    responses = pl.concat([
        answers({0: [0.5] * 4, 1: [0.75] * 4}),
        answers({0: [0.125] * 4, 1: [0.125] * 4}, "a"),
        answers({0: best, 1: [0.0] * 4}, "b"),
    ])  # fmt: skip
    verdict_ = verdict("s", ["a", "b"], scores, responses)
    assert verdict_.title == (
        f"The student got better: from 0.50 to 0.75 of 1, {where} its best teacher "
        f"(b in round 0: {mean:.2f})."
    )


@pytest.mark.parametrize(
    ("second", "rest"),
    [([0.875] * 4, "; the student was better in round 1 (0.88)."), ([1.0, 1.0, 0.75, 0.75], "."),
     ([0.5] * 4, ".")],
)  # fmt: skip
def test_an_earlier_round_that_was_better_is_named(second: list[float], rest: str) -> None:
    """The last is 0.75: 1/8 below the second everywhere; or on half of the prompts, by 1/4."""
    responses = answers({0: [0.25] * 4, 1: second, 2: [0.75] * 4})
    scores = [score(0, 0.25), score(1, sum(second) / 4), score(2, 0.75)]
    title = verdict("s", [], scores, responses).title
    assert title == f"The student got better: from 0.25 to 0.75 of 1{rest}"


def test_a_reward_has_no_top() -> None:
    scores = [score(t, mean, measure="reward") for t, mean in enumerate((-1.5, 2.0))]
    responses = answers({0: [-1.5] * 4, 1: [2.0] * 4}).with_columns(reward="gold", gold=None)
    verdict_ = verdict("s", [], scores, responses)
    assert verdict_.title == "The student got better: from -1.50 to 2.00."


def test_one_round_is_no_trend() -> None:
    verdict_ = verdict("s", [], [score(0, 0.5, low=0.25, high=0.75)], answers({0: [0.5] * 4}))
    assert verdict_.state == "unknown"
    assert verdict_.title == "The student scores 0.50 of 1 after round 0."
    assert verdict_.text == "One round is no trend. 4 held-out prompts, 95 % interval 0.25 to 0.75."


def test_where_nobody_scored() -> None:
    """Before an evaluation it is the next command; after one without a judge, a judge."""
    assert "macpo eval lets it answer" in verdict("s", [], [], answers({})).text
    assert "eval.reward" in verdict("s", [], [], answers({0: [0.0]})).text


def test_a_win_rate_is_held_against_one_half() -> None:
    more = {"measure": "win", "against": "s-positive-0"}
    won = [score(1, 0.7, low=0.6, high=0.8, **more)]
    verdict_ = verdict("s", [], won, answers({}))
    assert verdict_.title == "The student beats itself of round 0 (it wins 70 %)."
    assert "equally long" not in verdict_.text
    alike = [row | {"measure": "win_lc"} for row in won]
    assert (
        "0.60 to 0.80, as if all answers were equally long"
        in verdict("s", [], [*won, *alike], answers({})).text
    )
    level = [score(1, 0.55, low=0.4, high=0.7, **more)]
    assert verdict("s", [], level, answers({})).state == "same"


def test_every_baseline_has_its_say() -> None:
    """The newest stands first; of each the last round counts."""
    base: dict[str, object] = {"measure": "win", "against": "s-base"}
    human = base | {"against": "chosen"}
    rows = [score(1, 0.8, low=0.7, high=0.9, **base), score(1, 0.2, low=0.1, high=0.3, **human)]
    first = score(0, 0.5, low=0.4, high=0.6, **human)
    verdict_ = verdict("s", [], [*rows, first], answers({}))
    assert verdict_.state == "unknown"
    assert verdict_.title == (
        "The student loses to the human answers (it wins 20 %), beats itself before any training "
        "(it wins 80 %)."
    )
    assert "against the human answers: 4 held-out prompts, 95 % interval 0.10 to" in verdict_.text


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        ("a-b-positive-12", "a-b of round 12"),
        ("s-negative-0", "itself of round 0, trained to answer badly"),
        ("s-ceiling-0", "itself of round 0, trained on good answers"),
        ("a-base", "a before any training"),
    ],
)
def test_baselines_have_names(policy: str, name: str) -> None:
    assert name_baseline(policy, "s") == name


# ---------------------------------------------------------------------------- the table


def test_student_teachers_and_ceiling_by_round() -> None:
    scores = [
        score(0, 0.25), score(1, 0.5), score(None, 0.1), score(0, 0.0, behavior="negative"),
        score(0, 0.3, agent="a"), score(0, 0.9, behavior="ceiling"),
        score(1, 0.7, measure="win", against="s-base"),
    ]  # fmt: skip
    table = score_table("s", ["a", "b"], scores)
    assert table is not None and table.rounds == [0, 1]
    assert {row.name: row.means for row in table.rows} == {
        "s": [0.25, 0.5], "a": [0.3, None], CEILING: [None, 0.9],
    }  # fmt: skip
    assert table.meaning.startswith("from 0 (bad) to 1 (good)") and " 4 held-out" in table.meaning
    assert score_table("s", ["a"], [score(0, 0.3, agent="a")]) is None


def test_a_table_of_wins() -> None:
    """Of two baselines the first; the student of round 0 is not compared with itself."""
    more = {"measure": "win", "by": "llm judge j"}
    scores = [
        score(1, 0.7, against="s-positive-0", **more), score(1, 0.9, against="chosen", **more),
        score(0, 0.4, agent="a", against="s-positive-0", **more),
    ]  # fmt: skip
    table = score_table("s", ["a"], scores)
    assert table is not None
    assert {row.name: row.means for row in table.rows} == {"s": [None, 0.7], "a": [0.4, None]}
    assert table.meaning.startswith(
        "share of comparisons won against itself of round 0, by the llm"
    )


def test_ten_rounds_in_five_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """Steps of 9/4: 0, 2.25, 4.5, 6.75, 9. With the longest name they fit 80 columns."""
    assert stats.evenly(range(10), 5) == [0, 2, 4, 7, 9]
    assert stats.evenly([0, 1, 2], 5) == [0, 1, 2]
    scores = [score(t, 0.5) for t in range(10)] + [score(0, 0.75, behavior="ceiling")]
    table = score_table("s", [], scores)
    print_headline(Headline(Verdict("same", "", ""), table, None, None, [], None, []), [], "")
    (line,) = [row for row in capsys.readouterr().out.splitlines() if row.startswith(CEILING)]
    assert line.split()[-1] == "0.75"


# ---------------------------------------------------------------------------- answers, warnings


def test_of_several_baselines_the_recipes_own_is_shown() -> None:
    """Else the newest, which stands first."""
    won = {"measure": "win", "against": "s-base"}
    human = {"measure": "win", "against": "chosen"}
    scores = [score(0, 0.75, **won), score(0, 0.25, **human)]
    for wanted, mean in (("chosen", 0.25), ("s-base", 0.75), ("a-base", 0.75), (None, 0.75)):
        table = score_table("s", [], scores, wanted)
        assert table is not None and table.rows[0].means == [mean]


def test_the_ceiling_stands_beside_the_students_newest_score() -> None:
    scores = [score(0, 0.5), score(1, 0.5, agent="a"), score(0, 0.75, behavior="ceiling")]
    table = score_table("s", ["a"], scores)
    assert table is not None and table.rows[-1].means == [0.75, None]
    # Of ten rounds five are shown, 0 2 4 7 9; the student's newest, 3, is not among them.
    further = [score(3, 0.5), *(score(t, 0.5, agent="a") for t in range(10))]
    table = score_table("s", ["a"], [*further, score(0, 0.75, behavior="ceiling")])
    assert table is not None and table.rows[-1].means == [None, 0.75, None, None, None]


def test_answers_are_drawn_and_not_chosen() -> None:
    """The first three prompts by id, whatever their scores; of two draws the first."""
    asked = [{"role": "user", "content": "?"}]
    prompts = pl.DataFrame(
        [{"prompt_id": i, "prompt": asked} for i in "dbca"], schema=PROMPTS, orient="row"
    )
    scored = pl.DataFrame(
        [
            {"prompt_id": i, "agent": "s", "behavior": "positive", "round": r, "draw": d,
             "response": None if i == "b" else f"{i}{r}{d}", "score": float(i == "d")}
            for i in "dbca" for r in (2, 0, 1) for d in (1, 0)
        ],
        schema={**RESPONSES, "score": pl.Float64()},
    )  # fmt: skip
    examples = drawn(prompts, scored, "s")
    assert [example.answers for example in examples] == [
        [Answer(0, "a00", 0.0), Answer(2, "a20", 0.0)],
        [Answer(0, None, 0.0), Answer(2, None, 0.0)],
        [Answer(0, "c00", 0.0), Answer(2, "c20", 0.0)],
    ]
    (one, *_) = drawn(prompts, scored.filter(round=1), "s")
    assert one.answers == [Answer(1, "a10", 0.0)]
    assert drawn(prompts, scored.filter(agent="t"), "s") == []


def crossed(value: float) -> Any:
    return {"value": value, "before": None, "line": 0.1, "crossed": True}


def test_only_what_a_person_has_to_act_on() -> None:
    """Of the student's newest answers; the probe is passed in round 2: 3 is above 1.25 times 2."""
    recipe = load_recipe("quickstart", [])
    held_out: Any = {
        "student-positive-1": {"loops": crossed(0.5)},
        "student-positive-2": {
            "cut": crossed(0.3), "gold": crossed(0.2), "self_bleu": crossed(90.0),
            "short": {**crossed(0.0), "crossed": False},
        },
        "teacher_1-positive-3": {"gold": crossed(0.2)},
        "teachers-2": {"plateau": crossed(0.0)},
    }  # fmt: skip
    readings = [
        Reading(Policy("student", "positive", r), perplexity, 0.5, None, {})
        for r, perplexity in enumerate((2.0, 2.0, 3.0))
    ]
    cut, fell, strays = warnings(recipe, readings, held_out)
    assert cut.startswith("30 % of the student's answers are cut before their end: raise sampling.")
    assert fell.startswith("in round 2 the student's answers are worse than in an earlier one")
    assert strays.startswith("from round 2 on the student strays")
    assert warnings(recipe, readings[:2], {}) == []


# ---------------------------------------------------------------------------- the screen


def screen(macpo: Macpo, *args: str | Path) -> str:
    """What `macpo run` prints below its list of results."""
    done = macpo("run", *args)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    at = max(n for n, line in enumerate(lines) if line.startswith(("wrote ", "kept ")))
    return "\n".join(line.rstrip() for line in lines[at + 1 :])


def test_the_last_screen(macpo: Macpo, recipe_file: Path) -> None:
    """In this order, without a word that needs the paper, and plain where there is no terminal."""
    sets = ["--set", "engine.name=fake", "--set", "eval.ceiling=true"]
    shown = screen(macpo, "--until", "1", "-r", recipe_file, *sets)
    parts = (
        "What the student writes to 3 held-out prompts, drawn by chance:", "round 0, score 0.00",
        "The student did not clearly change: 0.00 of 1", "student ", "teacher3 ", CEILING,
        "Score: from 0", "cannot be said: the same", " for the expert: macpo status --recipe",
        "next: macpo report --recipe",
    )  # fmt: skip
    at, places = 0, []
    for part in parts:
        at = shown.find(part, at)
        places.append(at)
    assert -1 not in places, (places, shown)
    # From the verdict on, all fits a small terminal; the line of the signs is to be copied whole.
    assert len(shown[places[2] :].splitlines()) < 24, shown
    # Commands stay whole, to be copied.
    wrapped = [line for line in shown.splitlines()[:-1] if " for the expert" not in line]
    assert "\x1b" not in shown and max(map(len, wrapped)) <= 80
    last = shown[places[2] :].partition(" for the expert: ")[0]
    assert not [word for word in PAPER if word in last]
    status = macpo("status", "-r", recipe_file, *sets).stdout
    signs = int(next(w for w in shown.split("\n") if " for the expert" in w).split()[0])
    assert sum(line.startswith("! ") for line in status.splitlines()) >= signs > 0


def test_one_round_has_advice(macpo: Macpo, recipe_file: Path) -> None:
    shown = screen(macpo, "--round", "0", "-r", recipe_file, "--set", "engine.name=fake")
    assert "The student scores 0.00 of 1 after round 0" in shown
    assert "\nAdvice: " in shown and "next: macpo gen --round 1" in shown


def of_a_file(folder: Path) -> None:
    """A recipe on prompts of a file, which bring no judge."""
    rows = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(9)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    part = {name: {"count": 3} for name in ("d1", "d2", "test")}
    data = {"source": "pairs", "path": "rows.jsonl", "probe": {"count": 0}, **part}
    (folder / "macpo.yaml").write_text(yaml.safe_dump(yaml.safe_load(RECIPE) | {"data": data}))


def test_a_run_that_nobody_scored(macpo: Macpo, tmp_path: Path) -> None:
    """Prompts of a file bring no judge: evaluated, then still without a score."""
    of_a_file(tmp_path)
    fake = ("--set", "engine.name=fake")
    shown = screen(macpo, "--until", "1", *fake)
    assert "Nobody has scored the student's answers yet." in shown
    assert shown.splitlines()[-1].startswith("next: macpo eval")
    assert macpo("eval", *fake).returncode == 0
    shown = screen(macpo, "--until", "1", *fake)
    assert "(eval.reward)" in shown and shown.splitlines()[-1].startswith("next: macpo report")


def test_a_round_that_nobody_measured_yet(macpo: Macpo, tmp_path: Path) -> None:
    """Prompts of a file are evaluated by hand: after another round, that is asked for again."""
    of_a_file(tmp_path)
    sets = ("--set", "engine.name=fake", "--set", "rounds=2")
    screen(macpo, "--until", "0", *sets)
    assert macpo("eval", *sets).returncode == 0
    shown = screen(macpo, "--until", "2", *sets)
    assert "! round 2 is not evaluated yet" in shown
    assert shown.splitlines()[-1].startswith("next: macpo eval")
    assert macpo("eval", *sets).returncode == 0
    shown = screen(macpo, "--until", "2", *sets)
    assert "not evaluated" not in shown
    assert shown.splitlines()[-1].startswith("next: macpo report")


def test_without_teachers(macpo: Macpo, tmp_path: Path) -> None:
    """MoAA trains the student alone; compared with itself, by the world's judge."""
    values = yaml.safe_load(RECIPE) | {
        "method": "moaa",
        "agents": {
            "one": {"role": "proposer", "base": "world:weak-a"},
            "sum": {"role": "aggregator", "base": "world:strong"},
            "student": {"role": "student", "base": "world:strong"},
        },
        "mixture": {"layers": [["one"], ["sum"]]},
        "judge": {"kind": "llm", "agent": "sum", "max_position_bias": 1.0},
        "sampling": {"max_new_tokens": 24, "n": 3},
    }
    (tmp_path / "macpo.yaml").write_text(yaml.safe_dump(values))
    shown = screen(macpo, "--until", "1", "--set", "engine.name=fake")
    table = shown[shown.index("\nscore ") + 1 :]
    head, first, rest = table.split("\n", 2)
    assert head.split() == ["score", "round", "0", "round", "1"]
    assert first.split() == ["student", "0.00", "0.00"] and rest.startswith("Score: from 0")
    assert "teacher" not in shown and "distance" not in shown


def test_what_a_model_wrote_stays_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Markup and terminal escapes are shown, not obeyed; long answers are cut."""
    hostile = "[red]a[/bold] \x1b[2J"
    answers_ = [Answer(0, f"{hostile}{chr(10) * 50}y", None), Answer(1, "x" * 400, 0.5)]
    earlier: list[Message] = [{"role": "user", "content": "z"}] * 3
    example = Example([*earlier, {"role": "user", "content": hostile}], answers_)
    verdict_ = Verdict("unknown", "[b]title", "text")
    headline = Headline(verdict_, None, None, None, ["[u]act"], None, ["a"])
    print_headline(headline, [example], "macpo status")
    shown = capsys.readouterr().out
    assert shown.count("[red]a[/bold]") == 2 and "\x1b" not in shown
    assert "[b]title" in shown and "! [u]act" in shown and shown.count("x") == 301  # and text
    assert shown.count("user: z") == 2 and len(shown.splitlines()) < 25  # lines and turns are, too
    assert "for the expert" not in shown  # the one sign was told in plain words
