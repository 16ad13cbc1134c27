"""Verdicts: who wins a pair, what is unreadable, and what makes a judge unfit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import OpenRun

from macpo_data.errors import MacpoError, ModelError
from macpo_data.generation import judge as judges
from macpo_data.generation.verdicts import parse_criteria, parse_points, parse_verdict
from macpo_data.prompts import fill
from macpo_data.recipe.evaluation import Judge

GOLD = Judge(kind="gold")


def pairs(open_run: OpenRun, *sides: tuple[str | None, str | None]) -> pl.DataFrame:
    """Pairs of answers to the first prompts of D1: `+` is the good one, `-` the bad one."""
    prompts = open_run().context().prompts("d1").head(len(sides))
    named: dict[str | None, Any] = {
        "+": prompts["chosen"].to_list(),
        "-": prompts["rejected"].to_list(),
    }
    return prompts.select("prompt_id", "prompt").with_columns(
        a=pl.Series([named.get(a, {n: a})[n] for n, (a, _) in enumerate(sides)], dtype=pl.String),
        b=pl.Series([named.get(b, {n: b})[n] for n, (_, b) in enumerate(sides)], dtype=pl.String),
    )


def test_the_gold_judge(open_run: OpenRun) -> None:
    """A good answer beats a bad one in both orders, two useless ones tie; what was not written
    loses unseen, and equal ones are level unseen."""
    sides = (("+", "-"), ("-", "+"), ("Zz", "Qq"), ("+", "+"), ("-", None), ("", "-"), (None, ""))
    judged = judges.compare(open_run().context(), GOLD, pairs(open_run, *sides))
    assert judged["first"].to_list() == ["a", "b", "tie", *[None] * 4]
    assert judged["second"].equals(judged["first"].alias("second"))
    assert judged["win"].to_list() == [1.0, 0.0, 0.5, 0.5, 1.0, 0.0, None]
    text = judges.report(judged)
    counts = [text[name] for name in ("comparisons", "verdicts", "ties", "unparseable")]
    assert counts == [7, 6, 2, 0]
    assert (text["shown_first_wins"], text["orders_agree"], text["win"]) == (0.5, 1.0, 0.5)


def test_a_verdict_that_was_cut_is_none(open_run: OpenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names A on its way, and would have ended otherwise."""
    context = open_run().context()

    def ask(wanted: list[Any], *_: Any) -> list[pl.DataFrame]:
        cut = {"response": "[[A]] is worse,", "finish_reason": "length"}
        return [pl.DataFrame([cut] * len(rows)) for _, rows in wanted]

    monkeypatch.setattr(context, "ask", ask)
    judged = judges.compare(
        context, Judge(kind="llm", agent="student"), pairs(open_run, ("+", "-"))
    )
    assert judged.select("first", "second", "win").row(0) == (None, None, None)


def test_nothing_to_compare(open_run: OpenRun) -> None:
    rows = pairs(open_run, ("+", "-")).clear()
    judged = judges.compare(open_run().context(), GOLD, rows)
    assert len(judged) == 0 and judges.report(judged)["win"] is None


def test_a_prompt_may_stand_in_several_pairs(open_run: OpenRun) -> None:
    """On the fake engine, whose verdicts follow from the text that it is shown."""
    row = pairs(open_run, ("+", "-"))
    rows = pl.concat([row, row, row.select("prompt_id", "prompt", a="b", b="a")])
    run = open_run("judge={kind: mixture, agent: student, proposers: [teacher1, teacher2]}")
    assert run.recipe.judge is not None
    judged = judges.compare(run.context(), run.recipe.judge, rows)
    assert judged.row(0) == judged.row(1)
    # The same two texts the other way round: what was first is second.
    swap = {"a": "b", "b": "a"}
    assert judged["second"][2] == swap[judged["first"][0]]
    assert judged["criteria"].to_list() == [None] * 3


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("B repeats itself. [[A]]", "A"),
        ("At first [[A]] seems better, but in the end\n[[B]].", "B"),
        ("[A]", None),
        ("[[C]]", None),
        ("", None),
        (None, None),
    ],
)
def test_a_verdict(text: str | None, verdict: str | None) -> None:
    assert parse_verdict(text) == verdict


@pytest.mark.parametrize(
    ("text", "criteria"),
    [
        ("I take [[Safety, accuracy, depth]]", "accuracy, depth, safety"),
        ("[[safety, accuracy]]", None),
        ("[[safety, accuracy, depth, clarity]]", None),
        ("[[safety, accuracy, wit]]", None),
        ("[[safety, safety, depth]]", None),
        ("none", None),
    ],
)
def test_exactly_three_criteria(text: str, criteria: str | None) -> None:
    assert parse_criteria(text, 3) == criteria


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("It is right.\nScore: 4", 4.0),
        ("At first I thought Score: 1, but no.\n**Score:** 5", 5.0),
        ("score: **0**", 0.0),
        ("Score: 3/5", 3.0),
        ("Score: 3.5", 3.5),
        ("Score: 6", None),
        ("Score: 45", None),
        ("Score: -1", None),
        ("Score: N", None),
        ("4", None),
        ("", None),
        (None, None),
    ],
)
def test_points(text: str | None, points: float | None) -> None:
    assert parse_points(text) == points


def test_a_prompt_of_points_is_identity_where_it_is_asked(tmp_path: Path) -> None:
    """Judges of other kinds are called what they were before there were points."""
    own = tmp_path / "own.txt"
    own.write_text("$query $answer Score: N")
    for kind, is_read in (("llm", False), ("points", True)):
        plain = {"kind": kind, "agent": "x"}
        one, other = (
            Judge.model_validate(plain | {"prompts": prompts}).identity()
            for prompts in ({}, {"points": str(own)})
        )
        assert ("points" in one["prompts"]) == is_read == (one != other)


def verdicts(*rows: tuple[str | None, str | None]) -> pl.DataFrame:
    schema = {"first": pl.String, "second": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(
        criteria=pl.lit(None, pl.String), shown=pl.lit(True), win=pl.lit(0.5)
    )


def test_position_and_agreement() -> None:
    """`first` shows a first, `second` b. The one shown first wins once in (a, a), twice in (a, b),
    never in (b, a), once in (a, ?): 4 of 7. Both verdicts are there in 3 rows, and agree in 1."""
    text = judges.report(verdicts(("a", "a"), ("a", "b"), ("b", "a"), ("a", None)))
    assert text["shown_first_wins"] == pytest.approx(4 / 7, abs=1e-4)
    assert text["orders_agree"] == pytest.approx(1 / 3, abs=1e-4)
    assert (text["verdicts"], text["unparseable"]) == (7, 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("a", "b"), "prefers the answer shown first in 100%"),
        (("b", "a"), "prefers the answer shown second in 100%"),
        (("tie", "tie"), "never varies"),
        ((None, None), "none of 20 verdicts could be read"),
        (("a", "a"), None),
    ],
)
def test_a_judge_that_is_unfit(row: tuple[str | None, str | None], message: str | None) -> None:
    """Ten pairs are twenty verdicts, enough to tell; nine are too few."""
    judges.check(judges.report(verdicts(*[row] * 9)), GOLD)
    text = judges.report(verdicts(*[row] * 10))
    if message is None:
        judges.check(text, GOLD)
        return
    with pytest.raises(ModelError, match=message):
        judges.check(text, GOLD)


def test_a_prompt_of_ones_own(tmp_path: Path) -> None:
    """It counts by its text; what is filled in is not read for names."""
    own = tmp_path / "own.txt"
    own.write_text("Costs $$5. $query / $answer_a / $answer_b")
    prompt = fill(str(own), query="$answer_a", answer_a="x", answer_b="y")
    assert prompt == "Costs $5. $answer_a / x / y"
    (tmp_path / "copy.txt").write_text(own.read_text())
    one, same = (
        Judge.model_validate({"kind": "gold", "prompts": {"verdict": str(path)}}).identity()
        for path in (own, tmp_path / "copy.txt")
    )
    assert one == same != GOLD.identity()
    own = tmp_path / "wrong.txt"
    own.write_text("$querry")
    with pytest.raises(MacpoError, match=r"may use \$query"):
        fill(str(own), query="x")
    with pytest.raises(MacpoError, match="name one of aggregate, bad, criteria, critique"):
        fill(str(tmp_path / "none.txt"))


def test_messages_stay_one_line(open_run: OpenRun) -> None:
    for sets, expected in {
        "judge={kind: llm}": "judge: kind llm needs an agent",
        "judge={kind: mixture, agent: student}": "judge: kind mixture needs proposers",
        "judge={kind: points}": "judge: kind points needs an agent",
        "judge={kind: points, agent: student, sampling: {n: 3, temperature: 0}}": "above 1 needs a",
        "judge={kind: llm, agent: nobody}": "judge.agent: 'nobody' is no agent",
    }.items():
        with pytest.raises(MacpoError, match=expected):
            open_run(sets)
