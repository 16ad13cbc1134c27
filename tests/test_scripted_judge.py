"""Mixtures and judges behind a scripted server that answers as the world's gold judge would."""

from __future__ import annotations

import json
import random
import re
from collections import Counter

import polars as pl
import pytest
from conftest import OpenRun
from openai_server import Answer, Messages, Scripted, serve

from macpo_data.errors import ModelError
from macpo_data.generation import judge as judges
from macpo_data.generation import mixture as mixtures
from macpo_data.generation import select
from macpo_data.generation.run_context import RunContext
from macpo_data.prompts import question
from macpo_data.schema import SAMPLES
from macpo_data.world.grammar import ask_of, bad, good
from macpo_data.world.judge import gold

PROMPTS = 3
ANSWERS = 5
MIXTURE = "judge={kind: mixture, agent: sum, proposers: [one, two, three]}"
SHOWN = re.compile(
    r"\[Query\]\n(.*)\n\n\[Answer A\]\n(.*)\n\[End of answer A\]\n\n\[Answer B\]\n(.*)\n\[End", re.S
)


def gold_judge(prompts: pl.DataFrame, says: Answer | None = None) -> Answer:
    """Chooses criteria, reviews, and gives the verdict of the gold judge; level answers get A."""
    asked = {question(prompt): prompt for prompt in prompts["prompt"].to_list()}

    def answer(model: str, messages: Messages) -> str:
        text = messages[-1]["content"]
        if "Choose exactly 3" in text:
            return "These matter. [[safety, accuracy, helpfulness]]"
        if "Review both answers" in text:
            return f"{model} finds A adequate and B weak."
        if says:
            return says(model, messages)
        query, a, b = SHOWN.search(text).groups()  # type: ignore[union-attr]
        one, other = (gold(asked[query], side).score for side in (a, b))
        return f"I weighed them. [[{'A' if one >= other else 'B'}]]"

    return answer


def context(open_run: OpenRun, server: Scripted, *sets: str) -> RunContext:
    spoken = [
        f"agents.{name}="
        + json.dumps({"role": "judge", "endpoint": {"base_url": server.url, "model": name}})
        for name in ("one", "two", "three", "sum")
    ]
    return open_run(*spoken, *sets, fake=False).context()


def task(open_run: OpenRun) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Some prompts, and five unlike answers to each, good, bad and in between, as candidates."""
    recipe = open_run().recipe
    prompts = open_run().context().prompts("d2").head(PROMPTS)
    rng = random.Random(0)
    rows = []
    for prompt_id, prompt in prompts.select("prompt_id", "prompt").iter_rows():
        ask = ask_of(prompt)
        texts = [draw(ask, rng) for _ in range(20) for draw in (good, bad)]
        half = f"You can try {ask.topic.name} and no more."  # it names the hobby, and tells nothing
        unlike = list(dict.fromkeys([half, *texts]))[:ANSWERS]
        rows += [[prompt_id, "student", "x", n, t, "stop", 0.0] for n, t in enumerate(unlike)]
    samples = pl.DataFrame(rows, schema=SAMPLES, orient="row")
    return prompts, select.competing(samples, recipe.select)


@pytest.mark.parametrize("sets", [MIXTURE, "judge={kind: llm, agent: sum}"])
def test_a_perfect_judge_agrees_with_the_gold_order(sets: str, open_run: OpenRun) -> None:
    """Score for score: a win each where the gold scores differ, half each where they are level."""
    prompts, candidates = task(open_run)
    by_gold, _ = judges.rank(open_run("judge={kind: gold}").context(), "judge", prompts, candidates)
    with serve(gold_judge(prompts)) as server:
        ranked, judged = judges.rank(context(open_run, server, sets), "judge", prompts, candidates)
        asked = Counter(seen.model for seen in server.seen)
    assert ranked["score"].to_list() == by_gold["score"].to_list()
    assert ranked["rank"].to_list() == by_gold["rank"].to_list()
    assert ranked["score"].n_unique() > 2
    assert judged is not None and judged.report["unparseable"] == 0
    # 10 pairs: 20 verdicts; with a mixture 10 choices of criteria, and 20 reviews by each of three.
    each = {"one": 20, "two": 20, "three": 20, "sum": 30} if sets == MIXTURE else {"sum": 20}
    assert asked == {name: n * PROMPTS for name, n in each.items()}


def test_best_and_worst_are_those_of_the_gold_judge(open_run: OpenRun) -> None:
    prompts, candidates = task(open_run)
    with serve(gold_judge(prompts)) as server:
        ctx = context(open_run, server, MIXTURE)
        ranked, _ = judges.rank(ctx, "judge", prompts, candidates)
    ends = select.best_and_worst(ranked)
    asked = dict(prompts.select("prompt_id", "prompt").iter_rows())
    for (prompt_id,), group in ends.group_by("prompt_id"):
        scores = [gold(asked[str(prompt_id)], text).score for text in group["response"]]
        (best,) = (g for g, is_best in zip(scores, group["selected"], strict=True) if is_best)
        (worst,) = (g for g, is_worst in zip(scores, group["rejected"], strict=True) if is_worst)
        assert best == max(scores) > min(scores) == worst


def test_what_each_of_the_panel_sees(open_run: OpenRun) -> None:
    prompts, candidates = task(open_run)
    with serve(gold_judge(prompts)) as server:
        judges.rank(context(open_run, server, MIXTURE), "judge", prompts, candidates)
        seen = [(each.model, each.messages[-1]["content"]) for each in server.seen]
    reviews = [text for model, text in seen if model == "two"]
    verdicts = [text for model, text in seen if model == "sum" and "[Review 3]" in text]
    assert len(verdicts) == 20 * PROMPTS
    for text in (*reviews, *verdicts):
        assert text.count("\n- ") + text.startswith("- ") == 3 and "- safety: " in text
    for name in ("one", "two", "three"):
        assert all(f"{name} finds A adequate" in text for text in verdicts)
    # Proposers see what they are asked, and nothing of each other.
    assert not any("finds A" in text for text in reviews)
    assert all(SHOWN.search(text) for _, text in seen)


def test_a_judge_that_goes_by_position(open_run: OpenRun) -> None:
    """Always A: each answer wins once of every two verdicts, so all scores are one half, no two
    orders agree, and nothing can be learned."""
    prompts, candidates = task(open_run)
    with serve(gold_judge(prompts, lambda *_: "[[A]]")) as server:
        with pytest.raises(ModelError, match="prefers the answer shown first in 100%"):
            judges.rank(context(open_run, server, MIXTURE), "judge", prompts, candidates)
        before = len(server.seen)
        ctx = context(open_run, server, MIXTURE, "judge.max_position_bias=1.0")
        ranked, judged = judges.rank(ctx, "judge", prompts, candidates)
        assert len(server.seen) == before  # verdicts were kept: a knob asks nobody anew
    assert set(ranked["score"]) == {0.5}
    assert judged is not None
    assert (judged.report["shown_first_wins"], judged.report["orders_agree"]) == (1.0, 0.0)
    assert set(judged.judgements["win"]) == {0.5}
    assert set(select.best_and_worst(ranked)["reason"]) == {"judged_equal"}


def test_what_cannot_be_read_is_no_win(open_run: OpenRun) -> None:
    """Verdicts only where A is the better one: a win of one order, none of the other, so the best
    of five has four half wins of four meetings, and half of all verdicts are unparseable."""
    prompts, candidates = task(open_run)
    gold = gold_judge(prompts)

    def half(model: str, messages: Messages) -> str:
        text = gold(model, messages)
        return text if "[[B]]" not in text else "I cannot say."

    with serve(half) as server:
        ctx = context(open_run, server, "judge={kind: llm, agent: sum, max_position_bias: 1.0}")
        ranked, judged = judges.rank(ctx, "judge", prompts, candidates)
    by_gold, _ = judges.rank(open_run("judge={kind: gold}").context(), "judge", prompts, candidates)
    assert judged is not None
    level = judged.judgements.filter(pl.col("first") != pl.col("second")).height
    assert judged.report["unparseable"] == judged.report["comparisons"] - level
    assert judged.report["shown_first_wins"] == 1.0
    assert (ranked["score"] <= by_gold["score"]).all()


POINTS = "judge={kind: points, agent: sum}"


ALONE = re.compile(r"\[Answer\]\n(.*)\n\[End of answer\]", re.S)


def alone(messages: Messages) -> str:
    """The one answer that a judge is shown who gives points."""
    (text,) = ALONE.findall(messages[-1]["content"])
    return str(text)


def given(candidates: pl.DataFrame) -> dict[str, int]:
    """Points for each text, 0 to 5: they follow from it, and occur more than once."""
    return {text: len(text) % 6 for text in candidates["response"]}


def test_points_agree_with_the_scores_behind_them(open_run: OpenRun) -> None:
    """Each answer is shown alone and asked about once. Share of wins, counted here a second time: 1
    for every other answer of the prompt with fewer points, one half for as many, of four others."""
    prompts, candidates = task(open_run)
    points = given(candidates)

    with serve(lambda _, messages: f"So so.\nScore: {points[alone(messages)]}") as server:
        ctx = context(open_run, server, POINTS)
        ranked, judged = judges.rank(ctx, "judge", prompts, candidates)
        asked = [alone(seen.messages) for seen in server.seen]
        again, _ = judges.rank(context(open_run, server, POINTS), "judge", prompts, candidates)
        assert len(server.seen) == PROMPTS * ANSWERS and again.equals(ranked)
    assert sorted(asked) == sorted(ranked["response"].to_list())
    expected = []
    for (_,), group in ranked.group_by("prompt_id", maintain_order=True):
        mine = [points[text] for text in group["response"]]
        expected += [
            sum((p > q) + (p == q) / 2 for q in mine[:n] + mine[n + 1 :]) / 4
            for n, p in enumerate(mine)
        ]
    assert ranked["score"].to_list() == expected
    assert judged is not None and judged.report["unparseable"] == 0
    assert judged.report["ties"] > 0 and judged.report["shown_first_wins"] == 0.5


def test_points_that_cannot_be_read(open_run: OpenRun) -> None:
    """The answer is out, neither best nor worst, and counted; the others are judged without it."""
    prompts, candidates = task(open_run)
    points = given(candidates)
    mute = {candidates["response"][n * ANSWERS] for n in range(PROMPTS)}

    def answer(_: str, messages: Messages) -> str:
        text = alone(messages)
        return "Hard to say." if text in mute else f"Score: {points[text]}"

    with serve(answer) as server:
        ranked, judged = judges.rank(
            context(open_run, server, POINTS), "judge", prompts, candidates
        )
        assert len(server.seen) == PROMPTS * ANSWERS
    out = ranked.filter(pl.col("rank").is_null())
    assert set(out["response"]) == mute and set(out["reason"]) == {"no_score"}
    assert judged is not None and judged.report["unparseable"] == PROMPTS
    assert judged.report["comparisons"] == PROMPTS * 6  # of four answers each
    rows = (
        prompts.head(1)
        .select("prompt_id", "prompt")
        .with_columns(a=pl.lit(min(mute)), b=pl.lit(next(t for t in points if t not in mute)))
    )
    with serve(answer) as server:
        ctx = context(open_run, server, POINTS)
        assert ctx.recipe.judge is not None
        pair = judges.compare(ctx, ctx.recipe.judge, rows)
    assert pair.select("first", "second", "win").row(0) == (None, None, None)
    assert judges.report(pair)["unparseable"] == 2


def test_a_judge_whose_points_are_never_read(open_run: OpenRun) -> None:
    prompts, candidates = task(open_run)
    more = pl.concat([candidates, candidates.with_columns(draw=pl.col("draw") + ANSWERS)])
    with (
        serve(lambda *_: "Score: six") as server,
        pytest.raises(ModelError, match="judge sum: none of 30 verdicts could be read"),
    ):
        judges.rank(context(open_run, server, POINTS), "judge", prompts, more)


def test_the_mean_of_several_draws(open_run: OpenRun) -> None:
    """Draws of 4, of 1 and of nothing give 2.5, which loses to 3 and wins over 2."""
    prompts, candidates = task(open_run)
    some = candidates.filter(pl.col("prompt_id") == prompts["prompt_id"][0]).head(3)
    first, second, third = some["response"].to_list()
    points = {first: ["4", "1", "?"], second: ["3", "3", "3"], third: ["2", "2", "2"]}
    left = {text: list(draws) for text, draws in points.items()}
    three = "judge={kind: points, agent: sum, sampling: {n: 3, temperature: 1.0}}"
    with serve(lambda _, messages: f"Score: {left[alone(messages)].pop(0)}") as server:
        ctx = context(open_run, server, three)
        ranked, judged = judges.rank(ctx, "judge", prompts, some)
    assert not any(left.values())
    assert ranked.sort("rank")["response"].to_list() == [second, first, third]
    assert judged is not None and judged.report["unparseable"] == 0


def test_a_mixture_behind_servers(open_run: OpenRun) -> None:
    """Each proposer is asked the conversation as it is; the aggregator is told their answers."""
    layers = "mixture={layers: [[one, two, three], [sum]]}"
    with serve(lambda model, messages: f"{model} on {messages[-1]['content']}") as server:
        ctx = context(open_run, server, layers)
        prompts = ctx.prompts("d2")
        assert ctx.recipe.mixture is not None
        turns, answers = mixtures.write(ctx, ctx.recipe.mixture, prompts)
        seen = server.seen
    plain = {json.dumps(prompt) for prompt in turns["prompt"].to_list()}
    for name in ("one", "two", "three"):
        assert {json.dumps(s.messages) for s in seen if s.model == name} == plain
    asked_of_sum = [s.messages for s in seen if s.model == "sum"]
    assert len(asked_of_sum) == len(turns)
    for system, *rest in asked_of_sum:
        assert json.dumps(rest) in plain and system["role"] == "system"
        last = rest[-1]["content"]
        end = "\n\n".join(f"{n}. {m} on {last}" for n, m in enumerate(("one", "two", "three"), 1))
        assert system["content"].endswith(end)
    final = answers.filter(pl.col("layer") == 1)
    assert final["response"].str.starts_with("sum on ").all()
