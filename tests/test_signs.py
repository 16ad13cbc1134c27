"""Signs of failure: each by hand, crossed and not, and in the manifests of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import OpenRun
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from macpo.cli import app
from macpo_data.evaluation.evaluate import evaluate
from macpo_data.evaluation.policies import trained
from macpo_data.evaluation.signs import of_evaluation
from macpo_data.report.collect import Source, collect
from macpo_data.schema import CANDIDATES, JUDGEMENTS, PAIRS, RESPONSES, empty
from macpo_data.signs.dataset import of_dataset
from macpo_data.signs.rules import ENOUGH, RULES, Sign, Signs, flags, sentences, sign
from macpo_data.signs.training import WINDOW, Reference, of_training
from macpo_data.text import TEXTS, WORDS, distinct, overlap, sample, self_bleu, words

FEW = settings(max_examples=25, deadline=None)  # sacrebleu is imported in the first
NONE = empty(JUDGEMENTS)
TOKENS = st.lists(st.lists(st.sampled_from("abcde"), min_size=1, max_size=8), min_size=2)


def crossed(signs: Signs) -> set[str]:
    return {name for name, sign in signs.items() if sign["crossed"]}


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
    pair = pair.select(words("chosen"), words("rejected"))
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
    score = self_bleu(pl.Series(texts))
    assert score is not None and -1e-6 <= score <= 100 + 1e-6
    assert self_bleu(pl.Series(texts[::-1])) == pytest.approx(score)


def test_self_bleu_of_nothing_in_common() -> None:
    assert self_bleu(pl.Series([["a", "b"], ["c", "d"]])) == pytest.approx(0)
    assert self_bleu(pl.Series([["a", "b"], []])) is None


def test_a_sample_is_of_the_first_prompts_and_words() -> None:
    """One answer for a prompt, the first; neither their order nor more prompts change it."""
    rows = [(f"{n:03}", "word " * 2 * WORDS) for n in range(TEXTS + 9)]
    rows += [("000", "another")]
    frame = pl.DataFrame(rows, schema=["prompt_id", "response"], orient="row")
    sampled = sample(frame)
    assert sampled.list.len().to_list() == [WORDS] * TEXTS
    assert sampled.equals(sample(frame[:-1].reverse()))


def test_the_line_is_on_the_side_of_the_value() -> None:
    """distinct-2 may fall to 0.8 times 0.5; lengths may move to 60 / 1.5 and 60 * 1.5."""
    assert sign("distinct_2", 0.39, 0.5) == Sign(value=0.39, before=0.5, line=0.4, crossed=True)
    assert not sign("distinct_2", 0.41, 0.5)["crossed"]
    assert sign("distinct_2", 0.1) == Sign(value=0.1, before=None, line=None, crossed=False)
    assert sign("self_bleu", 31, 20)["line"] == 30 and not sign("self_bleu", 29, 20)["crossed"]
    lines = {value: sign("chars", value, 60.0) for value in (39.0, 41.0, 89.0, 91.0)}
    assert [each["line"] for each in lines.values()] == [40, 90, 90, 90]
    assert [each["crossed"] for each in lines.values()] == [True, False, False, True]


def test_a_dataset_by_hand() -> None:
    """The gap is ln(4 / 2); lengths 3 and 7; 1 of 4 words shared; a third loops; t wrote half.

    One pair of two has the same first word, and is ranked right: -3 > -5, but -4 is not above -4.
    """
    pairs = dataset(
        chosen=["a b", "c d"], rejected=["A, bcd ef", "g hij"],
        chosen_perplexity=[2.0, 2.0], rejected_perplexity=[4.0, 4.0], chosen_agent=["t", "u"],
        chosen_sum_logprob=[-2.5, -3.0], chosen_eot_logprob=[-0.5, -1.0],
        rejected_sum_logprob=[-2.0, -4.0], rejected_eot_logprob=[-3.0, 0.0],
        chosen_finish_reason=["stop", "stop"],
    )  # fmt: skip
    signs = of_dataset(pairs, candidates([0.6, 0.5, -1.0], ["t", "u", "u"]), {}, {})
    values = {name: one["value"] for name, one in signs.items()}
    assert values == pytest.approx(
        {
            "perplexity": 2.0,
            "gap": math.log(2),
            "apart": math.log(2),
            "reversed": 0.0,
            "overlap": 0.125,
            "ranked": 0.5,
            "first_word": 0.5,
            "chosen_chars": 3.0,
            "rejected_chars": 7.0,
            "chosen_short": 1.0,
            "chosen_cut": 0.0,
            "distinct_1": 1.0,
            "distinct_2": 1.0,
            "self_bleu": 0.0,
            "loops": 1 / 3,
            "cut": 1 / 3,
            "one_sided": 0.5,
        },
        rel=1e-4,
    )
    assert crossed(signs) == {"loops", "cut"}


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
    signs = of_dataset(wrong, candidates([0.9, -1.0], ["t", "u"]), first, first)
    assert set(signs) == set(first)
    # The rejected ones are as likely, not likelier; all are long, and begin alike.
    assert crossed(signs) == set(signs) - {"gap", "reversed", "first_word", "chosen_short"}
    assert signs["perplexity"] == Sign(value=4.0, before=2.0, line=2.2, crossed=True)
    lines = sentences(signs)
    assert len(lines) == 7 and all("; " in line for line in lines)  # those of one kind are one
    assert "distinct-2 0.0795 (1 before" in next(row for row in lines if "self-BLEU 100" in row)
    (alone,) = sentences(of_dataset(wrong[:1], candidates([]), {}, {}))  # with nothing before it
    assert "apart 0.0247 (line 0.05), shared words 1 (line 0.5); train the negative" in alone


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
    sign = of_dataset(now, candidates([]), middle, start)["perplexity"]
    assert (sign["before"], sign["line"], sign["crossed"]) == held


def test_fine_tuning_data_has_no_rejected_side() -> None:
    signs = of_dataset(dataset(chosen=["one answer", "another answer"]), candidates([]), {}, {})
    lengths = {"chosen_chars", "chosen_short"}
    assert set(signs) == {*lengths, "distinct_1", "distinct_2", "self_bleu"}


@pytest.mark.parametrize(
    ("right", "alike", "easy"),
    [
        (20, 0, True),
        (19, 0, False),  # 0.95 is on the line
        (20, 1, False),  # and so is 0.05
        (None, 0, False),  # without scores nothing is known of what the learner knows
    ],
)
def test_pairs_are_too_easy_by_two_signs(right: int | None, alike: int, easy: bool) -> None:
    """Of 20 pairs: ranked right by the learner, the end of the answer counted, and begun alike.

    Without their ends all are ranked wrong: -2 against -1.
    """
    ends = [-9.0 if right is None or n < right else -0.5 for n in range(20)]
    scores = {
        "chosen_sum_logprob": [-2.0] * 20, "chosen_eot_logprob": [0.0] * 20,
        "rejected_sum_logprob": [-1.0] * 20, "rejected_eot_logprob": ends,
    }  # fmt: skip
    pairs = dataset(
        chosen=["Yes, of course it is."] * 20,
        rejected=["YES: what else could it be"] * alike + ["No, or so I think."] * (20 - alike),
        **({} if right is None else scores),
    )
    signs = of_dataset(pairs, candidates([]), {}, {})
    assert signs["first_word"]["value"] == alike / 20
    if right is None:
        assert "ranked" not in signs
    else:
        assert signs["ranked"]["value"] == right / 20
    assert crossed(signs) == ({"ranked", "first_word"} if easy else set())
    if easy:
        (line,) = sentences(signs)
        assert "before training 1 (line 0.95), with the same first word 0 (line 0.05); " in line


def test_a_text_without_words_begins_with_none() -> None:
    """It counts for no pair: one of the two others begins alike."""
    pairs = dataset(chosen=["...", "so it is", "so"], rejected=["...", "So!", "no"])
    assert of_dataset(pairs, candidates([]), {}, {})["first_word"]["value"] == 0.5


def with_gap(nats: float) -> pl.DataFrame:
    ends = {"chosen_perplexity": [2.0], "rejected_perplexity": [2.0 * math.exp(nats)]}
    return dataset(chosen=["one two three four"], rejected=["five six seven eight"], **ends)


@pytest.mark.parametrize(
    ("nats", "alike"), [(0.051, False), (0.049, True), (-0.049, True), (-0.051, False)]
)
def test_sides_are_alike_where_no_pair_is_apart(nats: float, alike: bool) -> None:
    signs = of_dataset(with_gap(nats), candidates([]), {}, {})
    assert signs["gap"]["value"] == pytest.approx(nats, rel=1e-3) and signs["gap"]["line"] is None
    assert signs["apart"]["value"] == pytest.approx(abs(nats), rel=1e-3)
    assert crossed(signs) & {"gap", "apart", "reversed"} == ({"apart"} if alike else set())


def test_pairs_apart_to_either_side_are_not_alike() -> None:
    """Half of them by 0.3 nats, half by -0.3: a gap of 0, as a learner passes it."""
    pairs = pl.concat([with_gap(0.3), with_gap(-0.3)])
    signs = of_dataset(pairs, candidates([]), {}, {})
    assert signs["gap"]["value"] == pytest.approx(0, abs=1e-9)
    assert signs["apart"]["value"] == pytest.approx(0.3)
    assert not crossed(signs) & {"gap", "apart", "reversed"}


@pytest.mark.parametrize(
    ("gaps", "held"),
    [
        ([0.5, -0.09], (0.0, -0.1, False)),
        ([0.5, -0.11], (0.0, -0.1, True)),
        ([-0.5, -0.3], (-0.5, -0.6, False)),  # it rises
        ([-0.5, -0.59, -0.65], (-0.59, -0.69, False)),
        ([-0.5, -0.59, -0.68, -0.71], (-0.5, -0.7, True)),  # slowly: 0.2 below the first
    ],
)
def test_a_gap_falls_below_0(gaps: list[float], held: tuple[float, float, bool]) -> None:
    rounds: list[Signs] = []
    for nats in gaps:
        earlier = (rounds[-1], rounds[0]) if rounds else ({}, {})
        rounds.append(of_dataset(with_gap(nats), candidates([]), *earlier))
    sign = rounds[-1]["reversed"]
    assert (sign["before"], sign["line"], sign["crossed"]) == held


@pytest.mark.parametrize(("bad", "is_crossed"), [(2, False), (3, True)])
def test_chosen_that_are_cut_or_short(bad: int, is_crossed: bool) -> None:
    """Of 20: 2 cut are on the line of 0.1; so are 2 with three words where there was none."""
    fine = ["each has four words"] * 20
    first = of_dataset(dataset(chosen=fine), candidates([]), {}, {})
    ends = ["length"] * bad + ["stop"] * (20 - bad)
    cut = of_dataset(dataset(chosen=fine, chosen_finish_reason=ends), candidates([]), first, first)
    assert cut["chosen_cut"] == Sign(value=bad / 20, before=None, line=0.1, crossed=is_crossed)
    assert crossed(cut) == ({"chosen_cut"} if is_crossed else set())
    short = dataset(chosen=["only three words."] * bad + fine[bad:])
    sign = of_dataset(short, candidates([]), first, first)["chosen_short"]
    assert sign == Sign(value=bad / 20, before=0.0, line=0.1, crossed=is_crossed)
    # Where short answers are what the prompts ask for, they are no sign.
    alone = of_dataset(dataset(chosen=["42"] * 20), candidates([]), {}, {})["chosen_short"]
    assert alone == Sign(value=1.0, before=None, line=None, crossed=False)


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


def shifts(start: float, end: float) -> list[dict[str, float]]:
    """A history in which both log-probabilities stand at one value, and at last at another."""
    last = {"margin": 0.0, "accuracy": 0.8}
    each = [start] + [end] * WINDOW
    return [{"chosen_shift": v, "rejected_shift": v, **last} for v in each]


def test_a_fall_adds_up_over_the_rounds() -> None:
    """10 nats in each round: -10, then -20. On the line itself, -15, nothing is crossed."""
    first = of_training(shifts(0.0, -10.0))
    assert first["rejected_shift"] == Sign(value=-10, before=None, line=-15, crossed=False)
    second = of_training(shifts(0.0, -10.0), first)
    assert second["rejected_shift"] == Sign(value=-20, before=-10, line=-15, crossed=True)
    third = of_training(shifts(0.0, 2.0), second)
    assert third["rejected_shift"] == Sign(value=-18, before=-20, line=-15, crossed=True)
    assert of_training(shifts(0.0, -5.0), first)["rejected_shift"]["value"] == -15
    assert not of_training(shifts(0.0, -5.0), first)["rejected_shift"]["crossed"]
    assert of_training(shifts(0.0, -5.01), first)["rejected_shift"]["crossed"]
    # Fine-tuning in round 0 has another sign, which adds nothing.
    tuned = of_training([{"loss": 3.0}] * WINDOW)
    assert of_training(shifts(0.0, -10.0), tuned) == first


def test_a_rise_before_makes_up_for_no_fall() -> None:
    """Up by 3 nats, then down by 2: a fall of 2."""
    rose = of_training(shifts(0.0, 3.0))
    fell = of_training(shifts(0.0, -2.0), rose)["chosen_shift"]
    assert fell == Sign(value=-2, before=3, line=-1.5, crossed=True)


@pytest.mark.parametrize(
    ("reference", "history", "value"),
    [
        # The start of round 2 is where the reference is.
        ("previous", shifts(0.0, -10.0), -20.0),
        # 40 nats above the bare base after round 0, 30 after round 1, 20 at the end.
        ("base", shifts(30.0, 20.0), -20.0),
        # Against the policy of round 0; on these pairs round 1 fell by 12.
        ("initial", shifts(-12.0, -22.0), -22.0),
    ],
)
def test_what_is_since_round_0_by_reference(
    reference: Reference, history: list[dict[str, float]], value: float
) -> None:
    """Round 1 fell by 10 nats, as its own sign says, and round 2 by 10 more."""
    start = of_training(shifts(0.0, -10.0))
    sign = of_training(history, start, reference)["rejected_shift"]
    assert sign["value"] == value
    assert sign["before"] == (-12 if reference == "initial" else -10)


def test_a_fine_tuning() -> None:
    """The mean of the last five losses is held against 1.5 times the first: here 3 times 1.5.

    Of fewer than twenty it is against the hardest of the first five: the first may have been easy.
    """
    for last, above in ((4.5, False), (4.51, True)):
        history = [{"loss": 3.0}] * (ENOUGH - WINDOW) + [{"loss": last}] * WINDOW
        easy = [{"loss": 1.0}, *history[2:]]
        assert crossed(of_training(easy)) == ({"loss"} if above else set())
        assert of_training(history) == {
            "loss": {"value": last, "before": 3.0, "line": 4.5, "crossed": above}
        }
    mixed = [{"loss": 9.0 * n, "weak": 2.0} for n in range(ENOUGH)]  # only the labels' part counts
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
    signs = of_evaluation(responses, ["t"], NONE)
    gold = Sign(value=0.0, before=1.0, line=1.0, crossed=True)
    assert signs["s-positive-1"]["gold"] == gold
    assert signs["t-positive-1"]["gold"]["crossed"] is False
    assert signs["teachers-1"]["plateau"]["crossed"] is True
    assert signs["s-positive-1"]["chars"]["crossed"] is True  # 12 to 23 characters
    assert crossed(signs["s-positive-0"]) == set()
    assert "teachers-1" not in of_evaluation(responses, ["t", "u"], NONE)  # of u nothing is known
    rises = answers("t", {0: [0.0] * 4, 2: [1.0, 0.9, 1.0, 0.9]})
    assert of_evaluation(rises, ["t"], NONE)["teachers-2"]["plateau"]["crossed"] is False
    # Of 40 prompts 1, then 2 are lost in a round, which is no clear fall; 12 of 40 in all are.
    slow = {r: [0.0] * lost + [1.0] * (40 - lost) for r, lost in enumerate((0, 2, 4, 6, 8))}
    slid = of_evaluation(answers("s", slow), [], NONE)
    assert [slid[f"s-positive-{r}"]["gold"]["crossed"] for r in (1, 4)] == [False, True]
    assert slid["s-positive-4"]["gold"]["before"] == 1.0
    cut = of_evaluation(answers("s", {3: [-1.0, 1.0, 1.0, 1.0]}), [], NONE)
    assert cut["s-positive-3"]["cut"] == Sign(value=0.25, before=None, line=0.2, crossed=True)


def test_a_fall_is_clear_where_its_whole_interval_is() -> None:
    """-1 and +1 in turns is no fall; one prompt has no interval, and nothing is said of it."""
    level = {0: [0.0] * 8, 1: [-1.0, 1.0] * 4}
    assert "gold" not in crossed(of_evaluation(answers("s", level), [], NONE)["s-positive-1"])
    one = of_evaluation(answers("s", {0: [1.0], 1: [0.0]}), ["s"], NONE)
    assert "gold" not in one["s-positive-1"] and "teachers-1" not in one


def verdicts(
    agent: str, wins: Mapping[int, Sequence[float | None]], against: str = "base"
) -> pl.DataFrame:
    rows = [
        {"prompt_id": str(n), "agent": agent, "behavior": "positive", "round": r,
         "against": against, "win": win}
        for r, each in wins.items()
        for n, win in enumerate(each)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=JUDGEMENTS)


def unscored(agents: str, rounds: int) -> pl.DataFrame:
    """Answers that nobody scored by themselves."""
    nothing = pl.lit(None, pl.Float64)
    each = [answers(agent, dict.fromkeys(range(rounds), [0.0] * 4)) for agent in agents]
    return pl.concat(each).with_columns(gold=nothing)


def test_a_win_rate_falls_and_teachers_stand_still() -> None:
    """The student wins all, then none, its teacher half of both rounds: nobody else judged them.

    All four prompts lose 1, so that the interval is -1 to -1 and the line 0 + 1.
    """
    responses = unscored("st", 2)
    fell, stood = {0: [1.0] * 4, 1: [0.0] * 4}, {0: [1.0, 0.0] * 2, 1: [1.0, 0.0] * 2}
    signs = of_evaluation(responses, ["t"], pl.concat([verdicts("s", fell), verdicts("t", stood)]))
    assert signs["s-positive-1"]["win"] == Sign(value=0.0, before=1.0, line=1.0, crossed=True)
    # An interval of 0 to 0 meets 0 and does not fall, nor is it a gain.
    assert signs["t-positive-1"]["win"] == Sign(value=0.5, before=0.5, line=0.5, crossed=False)
    assert signs["teachers-1"]["plateau"] == Sign(value=0.0, before=None, line=0.0, crossed=True)
    assert not {"gold", "win"} & set(signs["s-positive-0"])
    (line,) = [row for row in sentences(signs["s-positive-1"]) if "win rate" in row]
    assert line.startswith("the held-out answers get worse: win rate 0 (1 before, line 1); ")
    rose = verdicts("t", {0: [0.0] * 4, 1: [1.0, 0.5] * 2})
    assert not of_evaluation(responses, ["t"], rose)["teachers-1"]["plateau"]["crossed"]
    # Scores of single answers say it where there are any: by gold this teacher rises.
    scored = answers("t", {0: [0.0] * 4, 1: [1.0] * 4})
    both = of_evaluation(scored, ["t"], verdicts("t", stood))
    assert not both["teachers-1"]["plateau"]["crossed"]
    assert {"gold", "win"} <= set(both["t-positive-1"])


def test_win_rates_are_paired_by_prompt_and_baseline() -> None:
    """Round 0 is the baseline itself, so that the slow fall is told from round 1 on.

    Two of 40 prompts are lost in a round, which is no clear fall: 0.95^40 = 0.13 of the resamples
    hold neither. Of four, 0.9^40 = 0.015 hold none, less than the 0.025 below the interval.
    Prompts without a readable verdict are left out: with the other baseline no pair is left.
    """
    slow = {r: [0.0] * lost + [1.0] * (40 - lost) for r, lost in ((1, 0), (2, 2), (3, 4))}
    other = verdicts("s", {1: [1.0] * 20 + [None] * 20, 2: [None] * 20 + [0.0] * 20}, "chosen")
    judged = pl.concat([verdicts("s", slow, "s-positive-0"), other])
    signs = of_evaluation(unscored("s", 4), ["s"], judged)
    assert "win" not in signs["s-positive-1"]
    second, third = (signs[f"s-positive-{r}"]["win"] for r in (2, 3))
    assert not second["crossed"] and third["crossed"]
    assert (second["value"], second["before"]) == (0.95, 1.0)
    assert (third["value"], third["before"]) == (0.9, 1.0)
    # Of two baselines, the one against which it falls.
    beaten = verdicts("s", {1: [1.0] * 4, 2: [0.0] * 4}, "chosen")
    for order in ([judged, beaten], [beaten, judged]):
        fell = of_evaluation(unscored("s", 4), ["s"], pl.concat(order))["s-positive-2"]["win"]
        assert fell == Sign(value=0.0, before=1.0, line=1.0, crossed=True)


@pytest.mark.parametrize(("short", "is_crossed"), [(2, False), (3, True)])
def test_held_out_answers_grow_short(short: int, is_crossed: bool) -> None:
    """Of 20, 2 with three words or none at all are on the line of 0 + 0.1."""
    fine = ["each has four words"] * 20
    bad: list[str | None] = ["only three words", None, "gladly"]
    texts: dict[int, list[str | None]] = {0: [*fine], 1: [*bad[:short], *fine[short:]]}
    rows = [
        {"prompt_id": str(n), "agent": "s", "behavior": "positive", "round": r, "response": text}
        for r, each in texts.items()
        for n, text in enumerate(each)
    ]
    sign = of_evaluation(pl.DataFrame(rows, RESPONSES), [], NONE)["s-positive-1"]["short"]
    assert sign == Sign(value=short / 20, before=0.0, line=0.1, crossed=is_crossed)


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
    manifests = {
        (s.round, s.learner): run.store.manifest(run.plan.name(s)) or {}
        for s in run.plan.steps
        if s.kind == "gen"
    }
    for (round_, learner), manifest in manifests.items():
        before = manifests.get((round_ - 1, learner), {}) if round_ > 1 else {"signs": {}}
        for name, now in manifest["signs"].items():
            if not name.endswith("chars"):
                assert now["before"] == before["signs"].get(name, {}).get("value")
    evaluation = evaluate(run.context(), trained(run.plan, run.store), "student-positive-0")
    held_out = run.store.manifest(f"eval/{evaluation.paths[0].name}") or {}
    assert {"gold", "win"} <= set(held_out["signs"]["student-positive-2"])
    assert "win" not in held_out["signs"]["student-positive-1"]  # the first that is compared
    warnings = collect([Source("mine", run.plan, run.store)])["recipes"][0]["warnings"]
    step = next(s for s in run.plan.steps if (s.kind, s.round, s.learner) == ("gen", 2, "student"))
    lines = [f"{step}: {line}" for line in flags(manifests[2, "student"])]
    assert lines and {*lines, *flags(held_out)} <= set(warnings)
    name = run.plan.name(step)
    old = {k: v for k, v in manifests[2, "student"].items() if k != "signs"}
    run.store.finish(name, old)
    newer: Any = {"unheard": {"crossed": True}}
    assert flags({"kind": "gen", "signs": newer}) == []
    assert flags({"warnings": ["as it was"]}) == ["as it was"] and flags(old) == []
    warnings = collect([Source("mine", run.plan, run.store)])["recipes"][0]["warnings"]
    assert not set(lines) & set(warnings)


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
    assert line in macpo("status").splitlines()
    (signs,) = [row["signs"] for row in json.loads(macpo("status", "--json")) if row["signs"]]
    assert line.removeprefix("! gen round 0 student: ") in signs
