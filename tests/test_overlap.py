"""Decontamination and near-duplicates: what is dropped, what is kept, and why."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
from conftest import OpenRun, shared

from macpo_data.recipe.generation import Select
from macpo_data.schema import MESSAGES, prompt_id
from macpo_data.sources.overlap import excluded, texts

TEST = "How many eggs does a hen lay in one week of spring when it is warm?"


def prompts(*texts: str) -> pl.DataFrame:
    messages = [[{"role": "user", "content": text}] for text in texts]
    ids = [prompt_id(m) for m in messages]  # type: ignore[arg-type]
    frame = pl.DataFrame(
        {"prompt_id": ids, "prompt": messages}, schema_overrides={"prompt": MESSAGES}
    )
    return frame


def reasons(texts: list[str], tests: list[str], settings: Select) -> list[str | None]:
    """The reason for each prompt, in order."""
    asked = prompts(*texts)
    excluded_ = excluded(asked, [pl.Series(tests)] if tests else [], settings)
    return asked.join(excluded_, on="prompt_id", how="left", maintain_order="left")[
        "reason"
    ].to_list()


def test_exact_after_normalisation_and_by_runs_of_words() -> None:
    """The test prompt has 15 words: 8 runs of 8 words, of which half are needed."""
    texts = [
        "  how many EGGS does a hen lay, in one week of spring when it is warm ",
        "Please tell me: how many eggs does a hen lay in one week of spring?",  # 12 words: 5 runs
        "How many eggs does a hen lay in the winter, when it is cold?",  # 8 words: 1 run
        "How many eggs?",
        "Name three rivers.",
    ]
    want = ["in_test_set", "overlaps_test_set", None, None, None]
    assert reasons(texts, [TEST, "Name", ""], Select(test_sets=["x"])) == want
    strict = Select(test_sets=["x"], ngram_share=1.0)
    assert reasons(texts, [TEST], strict) == ["in_test_set", None, None, None, None]
    loose = Select(test_sets=["x"], ngram_share=0.1)
    assert reasons(texts, [TEST], loose)[2] == "overlaps_test_set"


def test_runs_do_not_cross_prompts() -> None:
    """The last words of one prompt and the first of the next are no run."""
    words = TEST.split()
    texts = [" ".join(words[:7]), " ".join(words[7:])]
    assert reasons(texts, [TEST], Select(test_sets=["x"], ngram_share=0.1)) == [
        None,
        "overlaps_test_set",
    ]


def test_near_duplicates_keep_the_first() -> None:
    long = (
        "Write a short letter to my landlord about the broken heating in the kitchen since Monday"
    )
    texts = [long, long + " please", "Write a poem about heating", long.upper() + "!", "Hi", "Hi?"]
    want = [None, "near_duplicate", None, "near_duplicate", None, "near_duplicate"]
    assert reasons(texts, [], Select(near_duplicates=0.8)) == want
    assert reasons(texts, [], Select()) == [None] * 6


def test_the_forms_of_test_sets() -> None:
    assert texts([[{"question": "a"}]]) is not None
    turns = texts([[{"turns": ["a", "b"]}]])
    assert turns is not None and turns.to_list() == ["a b"]
    system = {"role": "system", "content": "S"}
    chat = texts([[{"prompt": [system, {"role": "user", "content": "A  b"}]}], [{"prompt": None}]])
    assert chat is not None and chat.to_list() == ["A  b", ""]
    assert texts([[{"x": 1}]]) is None
    for name in ("mt_bench_questions.jsonl", "arena_hard_v0.1_questions.parquet"):
        from macpo_data.sources.ingest.files import read_file

        real = texts(read_file(str(shared(f"data/{name}"))))
        assert real is not None and real.str.len_chars().min() > 5  # type: ignore[operator]


def test_switched_off_it_changes_no_fingerprint(open_run: OpenRun) -> None:
    assert set(Select().identity()) == {
        "keep", "max_perplexity", "on_filter", "min_chars", "max_chars", "truncated",
        "max_repetition", "same_as_rejected",
    }  # fmt: skip
    plain, on = open_run(), open_run("select.near_duplicates=0.9")
    for one, other in zip(plain.plan.steps, on.plan.steps, strict=True):
        assert plain.plan.fingerprint(one) != on.plan.fingerprint(other)


def test_in_a_round_the_dropped_keep_their_reason(open_run: OpenRun, tmp_path: Path) -> None:
    """Two prompts of D1 and two of D2 stand in a test set; nobody learns from them."""
    with open_run() as run:
        contaminated = {
            part: run.context().prompts(part)["prompt"].to_list()[:2] for part in ("d1", "d2")
        }
    rows = [{"prompt": prompt} for part in contaminated.values() for prompt in part]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with open_run(f"select.test_sets=[{tmp_path}/test.jsonl]") as run:
        run.finish_round(0)
        run.finish_round(1)
        for step in run.plan.steps:
            if step.kind != "gen":
                continue
            summary = run.store.verify(run.plan.name(step))["summary"]
            dropped = run.store.read(run.plan.name(step), "dropped.parquet")
            pairs = run.store.read(run.plan.name(step), "pairs.parquet")
            caught = dropped.filter(pl.col("reason").str.contains("test_set"))
            assert len(caught) >= 2 and summary["pairs"] <= 10, str(step)
            assert "in_test_set" in summary["dropped_by_reason"]
            assert not set(caught["prompt_id"]) & set(pairs["prompt_id"])
