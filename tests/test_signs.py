"""Signs of failure: each by hand, crossed and not, and in the manifests of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import OpenRun
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cli import app
from macpo_data.diversity import TEXTS, WORDS, distinct, overlap, sample, self_bleu
from macpo_data.evaluate import evaluate, trained
from macpo_data.report import Source, collect
from macpo_data.schema import CANDIDATES, PAIRS, RESPONSES
from macpo_data.signs import (
    ENOUGH,
    RULES,
    WINDOW,
    Sign,
    Signs,
    flags,
    of_dataset,
    of_evaluation,
    of_training,
    sentences,
    sign,
)

FEW = settings(max_examples=25, deadline=None)  # sacrebleu is imported in the first
TOKENS = st.lists(st.lists(st.sampled_from("abcde"), min_size=1, max_size=8), min_size=2)


def crossed(signs: Signs) -> set[str]:
    return {name for name, found in signs.items() if found["crossed"]}


def dataset(**columns: list[Any]) -> pl.DataFrame:
    """PAIRS of these columns, with ids in order."""
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return pl.DataFrame([{"prompt_id": f"{n:03}", **row} for n, row in enumerate(rows)], PAIRS)


def candidates(repetition: list[float], agents: list[str] | None = None) -> pl.DataFrame:
    rows = [
        {"repetition": share, "agent": agent, "finish_reason": "length" if share < 0 else "stop"}
        for share, agent in zip(repetition, agents or ["t"] * len(repetition), strict=True)
    ]
    return pl.DataFrame(rows, schema=CANDIDATES)


def test_words_and_what_two_texts_share() -> None:
    """{go, home, now} and {go, away}: 1 of 4 words. Texts without words share nothing."""
    pair = dataset(chosen=["Go home, now! Go.", "..."], rejected=["go away", "?"])
    assert pair.select(overlap("chosen", "rejected")).to_series().to_list() == [0.25, None]


def test_distinct_by_hand() -> None:
    """a b a, c, and a b: 6 words of 3 kinds; ab, ba, ab: 3 pairs of 2 kinds; aba alone."""
    texts = pl.Series([["a", "b", "a"], ["c"], [], ["a", "b"]])
    assert [distinct(texts, n) for n in (1, 2, 3, 4)] == [3 / 6, 2 / 3, 1, None]


@FEW
@given(TOKENS)
def test_distinct_is_that_of_a_plain_loop(texts: list[list[str]]) -> None:
    for n in (1, 2, 3):
        ngrams = [tuple(t[i : i + n]) for t in texts for i in range(len(t) - n + 1)]
        expected = len(set(ngrams)) / len(ngrams) if ngrams else None
        assert distinct(pl.Series(texts), n) == expected


@FEW
@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=8), st.integers(2, 5))
def test_the_same_text_again_and_again(text: list[str], times: int) -> None:
    """Self-BLEU is 100, and no text adds an n-gram to those of the first."""
    texts = pl.Series([text] * times)
    assert self_bleu(texts) == pytest.approx(100)
    once = distinct(pl.Series([text]), 1)
    assert once and distinct(texts, 1) == pytest.approx(once / times)


@FEW
@given(TOKENS)
def test_self_bleu_is_bounded_and_of_no_order(texts: list[list[str]]) -> None:
    found = self_bleu(pl.Series(texts))
    assert found is not None and -1e-6 <= found <= 100 + 1e-6
    assert self_bleu(pl.Series(texts[::-1])) == pytest.approx(found)


def test_self_bleu_of_nothing_in_common() -> None:
    assert self_bleu(pl.Series([["a", "b"], ["c", "d"]])) == pytest.approx(0)
    assert self_bleu(pl.Series([["a", "b"], []])) is None


def test_a_sample_is_of_the_first_prompts_and_words() -> None:
    """One answer for a prompt, the first; neither their order nor more prompts change it."""
    rows = [(f"{n:03}", "word " * 2 * WORDS) for n in range(TEXTS + 9)]
    rows += [("000", "another")]
    frame = pl.DataFrame(rows, schema=["prompt_id", "response"], orient="row")
    found = sample(frame)
    assert found.list.len().to_list() == [WORDS] * TEXTS
    assert found.equals(sample(frame[:-1].reverse()))


def test_the_line_is_on_the_side_of_the_value() -> None:
    """distinct-2 may fall to 0.8 times 0.5; lengths may move to 60 / 1.5 and 60 * 1.5."""
    assert sign("distinct_2", 0.39, 0.5) == Sign(value=0.39, before=0.5, line=0.4, crossed=True)
    assert not sign("distinct_2", 0.41, 0.5)["crossed"]
    assert sign("distinct_2", 0.1) == Sign(value=0.1, before=None, line=None, crossed=False)
    assert sign("self_bleu", 31, 20)["line"] == 30 and not sign("self_bleu", 29, 20)["crossed"]
    lines = {value: sign("chars", value, 60.0) for value in (39.0, 41.0, 89.0, 91.0)}
    assert [found["line"] for found in lines.values()] == [40, 90, 90, 90]
    assert [found["crossed"] for found in lines.values()] == [True, False, False, True]


def test_a_dataset_by_hand() -> None:
    """The gap is ln(4 / 2); lengths 3 and 6; 1 of 4 words shared; a third loops; t wrote half."""
    pairs = dataset(
        chosen=["a b", "c d"], rejected=["a bcd ef", "g hij"],
        chosen_perplexity=[2.0, 2.0], rejected_perplexity=[4.0, 4.0], chosen_agent=["t", "u"],
    )  # fmt: skip
    found = of_dataset(pairs, candidates([0.6, 0.5, -1.0], ["t", "u", "u"]), {}, {})
    values = {name: one["value"] for name, one in found.items()}
    assert values == pytest.approx(
        {
            "perplexity": 2.0,
            "gap": math.log(2),
            "overlap": 0.125,
            "chosen_chars": 3.0,
            "rejected_chars": 6.5,
            "distinct_1": 1.0,
            "distinct_2": 1.0,
            "self_bleu": 0.0,
            "loops": 1 / 3,
            "cut": 1 / 3,
            "one_sided": 0.5,
        },
        rel=1e-4,
    )
    assert crossed(found) == {"loops", "cut"}


def test_a_dataset_that_goes_wrong() -> None:
    """Against round 1 all texts are the same, longer, odder, one's alone, and as the rejected.

    Eight times 11 pairs of words, of which 7 differ: 7 / 88.
    """
    chosen = [f"{n} quite {n} unlike {n} answers {n}" for n in range(8)]
    first = of_dataset(
        dataset(
            chosen=chosen, rejected=["no"] * 8, chosen_agent=["t", "u"] * 4,
            chosen_perplexity=[2.0] * 8, rejected_perplexity=[4.0] * 8,
        ), candidates([0.0, 0.0], ["t", "u"]), {}, {},
    )  # fmt: skip
    assert crossed(first) == set()
    same = ["the very same long answer, the very same long answer, every time"] * 8
    wrong = dataset(
        chosen=same, rejected=same, chosen_agent=["t"] * 8,
        chosen_perplexity=[4.0] * 8, rejected_perplexity=[4.1] * 8,
    )  # fmt: skip
    found = of_dataset(wrong, candidates([0.9, -1.0], ["t", "u"]), first, first)
    assert crossed(found) == set(found) == set(first)
    assert found["perplexity"] == Sign(value=4.0, before=2.0, line=2.2, crossed=True)
    lines = sentences(found)
    assert len(lines) == 7 and all("; " in line for line in lines)  # those of one kind are one
    assert "distinct-2 0.0795 (1 before" in next(row for row in lines if "self-BLEU 100" in row)
    (alone,) = sentences(of_dataset(wrong[:1], candidates([]), {}, {}))  # with nothing before it
    assert "gap 0.0247 (line 0.05), shared words 1 (line 0.5); train the negative" in alone


@pytest.mark.parametrize(
    ("values", "held"),
    [
        ([2.0, 2.3, 2.5], (2.0, 2.42, True)),  # slowly: 1.1 squared above the first round
        ([2.0, 1.0, 1.2], (1.0, 1.1, True)),  # at once, from below the first round
        ([2.0, 2.1, 2.3], (2.1, 2.31, False)),
    ],
)
def test_a_decline_slow_or_sudden(values: list[float], held: tuple[float, float, bool]) -> None:
    """The learner's perplexity of what it learns, in rounds 1, 2 and 3."""
    first, before, now = (
        dataset(chosen=["a"], rejected=["b"], chosen_perplexity=[v], rejected_perplexity=[9.0])
        for v in values
    )
    start = of_dataset(first, candidates([]), {}, {})
    middle = of_dataset(before, candidates([]), start, start)
    found = of_dataset(now, candidates([]), middle, start)["perplexity"]
    assert (found["before"], found["line"], found["crossed"]) == held


def test_fine_tuning_data_has_no_rejected_side() -> None:
    found = of_dataset(dataset(chosen=["one answer", "another answer"]), candidates([]), {}, {})
    assert set(found) == {"chosen_chars", "distinct_1", "distinct_2", "self_bleu"}


def steps(count: int, **last: float) -> list[dict[str, float]]:
    """A calm history whose values move evenly to those given."""
    calm = {"chosen_shift": 0.0, "rejected_shift": 0.0, "margin": 0.0, "accuracy": 0.8}
    return [
        {k: v + (last.get(k, v) - v) * n / (count - 1) for k, v in calm.items()}
        for n in range(count)
    ]


@pytest.mark.parametrize(
    ("last", "name"),
    [
        ({}, None),
        ({"chosen_shift": -1.5}, None),  # the mean of the last steps is above it
        ({"chosen_shift": -2.0}, "chosen_shift"),
        ({"rejected_shift": -14.0}, None),
        ({"rejected_shift": -20.0}, "rejected_shift"),
        ({"margin": 10.0}, None),
        ({"margin": 12.0}, "reward_margin"),
        ({"accuracy": 0.45}, None),  # a mean of 0.565 over the last 20 of 30 steps
        ({"accuracy": 0.4}, "accuracy"),  # 0.531
    ],
)
def test_a_training(last: dict[str, float], name: str | None) -> None:
    assert crossed(of_training(steps(ENOUGH + 10, **last))) == ({name} if name else set())


def test_a_training_of_few_steps_or_another_kind() -> None:
    """Four steps tell nothing, ten no accuracy."""
    assert of_training(steps(WINDOW - 1, margin=99.0)) == {}
    assert set(of_training(steps(10))) == {"chosen_shift", "rejected_shift", "reward_margin"}


def test_a_fine_tuning() -> None:
    """The mean of the last five losses is held against 1.5 times the first: here 3 times 1.5."""
    for last, above in ((4.5, False), (4.51, True)):
        history = [{"loss": 3.0}] * 4 + [{"loss": last}] * WINDOW
        assert of_training(history) == {
            "loss": {"value": last, "before": 3.0, "line": 4.5, "crossed": above}
        }
    mixed = [{"loss": 9.0 * n, "weak": 2.0} for n in range(9)]  # only the labels' part counts
    assert not crossed(of_training(mixed))


def answers(agent: str, golds: dict[int, list[float]], text: str = "one of many") -> pl.DataFrame:
    rows = [
        {"prompt_id": str(n), "agent": agent, "behavior": "positive", "round": r, "gold": gold,
         "response": f"{text * (r + 1)} {n}", "finish_reason": "length" if gold < 0 else "stop"}
        for r, golds_ in golds.items()
        for n, gold in enumerate(golds_)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=RESPONSES)


def test_an_evaluation_by_hand() -> None:
    """The student falls from 1 to 0, its teacher stands still; an answer is twice as long.

    All four prompts lose 1, so that the change's interval is -1 to -1: the mean of 0 would have
    to have lost nothing to stay above its line, 0 + 1.
    """
    falls, stands = {0: [1.0] * 4, 1: [0.0] * 4}, {0: [1.0] * 4, 1: [1.0] * 4}
    responses = pl.concat([answers("s", falls), answers("t", stands)])
    found = of_evaluation(responses, ["t"])
    gold = Sign(value=0.0, before=1.0, line=1.0, crossed=True)
    assert found["s-positive-1"]["gold"] == gold
    assert found["t-positive-1"]["gold"]["crossed"] is False
    assert found["teachers-1"]["plateau"]["crossed"] is True
    assert found["s-positive-1"]["chars"]["crossed"] is True  # 12 to 23 characters
    assert crossed(found["s-positive-0"]) == set()
    assert "teachers-1" not in of_evaluation(responses, ["t", "u"])  # of u nothing is known
    rises = answers("t", {0: [0.0] * 4, 2: [1.0, 0.9, 1.0, 0.9]})
    assert of_evaluation(rises, ["t"])["teachers-2"]["plateau"]["crossed"] is False
    # Of 40 prompts 1, then 2 are lost in a round, which is no clear fall; 12 of 40 in all are.
    slow = {r: [0.0] * lost + [1.0] * (40 - lost) for r, lost in enumerate((0, 2, 4, 6, 8))}
    slid = of_evaluation(answers("s", slow), [])
    assert [slid[f"s-positive-{r}"]["gold"]["crossed"] for r in (1, 4)] == [False, True]
    assert slid["s-positive-4"]["gold"]["before"] == 1.0
    cut = of_evaluation(answers("s", {3: [-1.0, 1.0, 1.0, 1.0]}), [])
    assert cut["s-positive-3"]["cut"] == Sign(value=0.25, before=None, line=0.2, crossed=True)


def test_a_fall_is_clear_where_its_whole_interval_is() -> None:
    """-1 and +1 in turns is no fall; one prompt has no interval, and nothing is said of it."""
    level = {0: [0.0] * 8, 1: [-1.0, 1.0] * 4}
    assert "gold" not in crossed(of_evaluation(answers("s", level), [])["s-positive-1"])
    one = of_evaluation(answers("s", {0: [1.0], 1: [0.0]}), ["s"])
    assert "gold" not in one["s-positive-1"] and "teachers-1" not in one


@pytest.mark.parametrize("name", RULES)
def test_every_sentence_ends_in_what_to_try(name: str) -> None:
    bad = Sign(value=1.0, before=2.0, line=3.0, crossed=True)
    (line,) = sentences({name: bad})
    assert line.endswith(f"; {RULES[name].mend}") and "1 (2 before, line 3)" in line


def test_manifests_hold_them_and_the_page_tells(open_run: OpenRun) -> None:
    """A round is compared with that learner's last; damage it not, old manifests have none."""
    run = open_run("rounds=2")
    for each in range(3):
        assert not run.finish_round(each).waiting
    made = {
        (s.round, s.learner): run.store.manifest(run.plan.name(s)) or {}
        for s in run.plan.steps
        if s.kind == "gen"
    }
    for (round_, learner), manifest in made.items():
        before = made.get((round_ - 1, learner), {}) if round_ > 1 else {"signs": {}}
        for name, found in manifest["signs"].items():
            if not name.endswith("chars"):
                assert found["before"] == before["signs"].get(name, {}).get("value")
    found = evaluate(run.context(), trained(run.plan, run.store))
    held_out = run.store.manifest(f"eval/{found.paths[0].name}") or {}
    assert "gold" in held_out["signs"]["student-positive-2"]
    warnings = collect([Source("mine", run.plan, run.store)])["recipes"][0]["warnings"]
    step = next(s for s in run.plan.steps if (s.kind, s.round, s.learner) == ("gen", 2, "student"))
    told = [f"{step}: {line}" for line in flags(made[2, "student"])]
    assert told and {*told, *flags(held_out)} <= set(warnings)
    name = run.plan.name(step)
    old = {k: v for k, v in made[2, "student"].items() if k != "signs"}
    run.store.finish(name, old)
    newer: Any = {"unheard": {"crossed": True}}
    assert flags({"kind": "gen", "signs": newer}) == []
    assert flags({"warnings": ["as it was"]}) == ["as it was"] and flags(old) == []
    warnings = collect([Source("mine", run.plan, run.store)])["recipes"][0]["warnings"]
    assert not set(told) & set(warnings)


def test_the_commands_tell(recipe_file: Path, tmp_path: Path) -> None:
    """The fake engine's answers have three words or more: two allowed, all are cut."""

    def macpo(*args: str) -> str:
        sets = ("engine.name=fake", "sampling.max_new_tokens=2")
        options = ["--recipe", str(recipe_file), "--runs", str(tmp_path / "runs")]
        options += [word for each in sets for word in ("--set", each)]
        done = CliRunner().invoke(app, [*args, *options])
        assert done.exit_code == 0, done.output
        return done.stdout

    for command in ("gen", "train"):
        assert "!" not in macpo(command, "--round", "0")  # the teachers' data are people's
    (line,) = [row for row in macpo("gen", "--round", "0").splitlines() if "cuts" in row]
    assert line.startswith("! gen round 0 student: ") and "share 1 (line 0.2)" in line
    assert line in macpo("show", "--round", "0")
    assert "!" not in macpo("gen", "--round", "0")  # it was told when it was made
    assert "signs of failure: gen round 0 student; macpo report" in macpo("status")
    (told,) = [row["signs"] for row in json.loads(macpo("status", "--json")) if row["signs"]]
    assert line.removeprefix("! gen round 0 student: ") in told
