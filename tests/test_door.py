"""Preference data in every form that people bring: what would be trained, or the one line why not.

All goes through the command line, on the fake engine; what is compared is the text that is trained.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from macpo.cli import app
from macpo_data.errors import MacpoError
from macpo_data.store.store import write_parquet
from macpo_run import standalone

Row = dict[str, Any]
Text = tuple[list[tuple[str, str]], str | None, str | None]  # prompt, chosen, rejected
N = 8

datasets.disable_progress_bars()


def user(text: Any, **more: Any) -> Row:
    return {"role": "user", "content": text, **more}


def assistant(text: Any, **more: Any) -> Row:
    return {"role": "assistant", "content": text, **more}


def spoken(who: str, text: str) -> Row:
    return {"from": who, "value": text}


def plain(i: int) -> Row:
    return {"prompt": f"Ask {i}", "chosen": f"Good {i}", "rejected": "Bad"}


def lines(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Text]]:
    """`macpo train --dataset`; the text of the rows that it hands to the trainer."""
    frames: list[pl.DataFrame] = []

    def watched(path: Path, frame: pl.DataFrame) -> None:
        frames.append(frame)
        write_parquet(path, frame)

    monkeypatch.setattr(standalone, "write_parquet", watched)

    def run(place: Path, *options: str) -> list[Text]:
        frames.clear()
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        result = _run("train", "--dataset", str(place), "--base", "b", "--out", str(out),
                      "--set", "engine.name=fake", *options)  # fmt: skip
        run.account = result.output  # type: ignore[attr-defined]
        (frame,) = frames
        run.whole = frame["whole"].to_list()  # type: ignore[attr-defined]
        return [
            ([(m["role"], m["content"]) for m in row["prompt"]], row["chosen"], row["rejected"])
            for row in frame.iter_rows(named=True)
        ]

    return run


def _run(*arguments: str) -> Any:
    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, MacpoError):
        raise result.exception
    # What is looked at before the first step is told a line each, and nothing is raised.
    for line in result.stderr.splitlines():
        if line.startswith("error: "):
            raise MacpoError(line.removeprefix("error: "))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def check(place: Path, *options: str) -> Any:
    return _run("check", str(place), *options)


def refusal(command: Callable[..., Any], place: Path, *options: str) -> str:
    """What a command says that refuses."""
    with pytest.raises(MacpoError) as caught:
        command(place, *options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


CALL = [{"type": "function", "function": {"name": "ring", "arguments": {"bell": 1}}}]
Q: list[tuple[str, str]] = [("user", "Ask 0")]
PLAIN: Text = (Q, "Good 0", "Bad")

# Each form as a row by its number, and the text of row 0 that is to be trained.
FORMS: dict[str, tuple[Callable[[int], Row], Text]] = {
    "text": (plain, PLAIN),
    "messages": (lambda i: {"prompt": [user(f"Ask {i}")], "chosen": [assistant(f"Good {i}")],
                            "rejected": [assistant("Bad")]}, PLAIN),
    "whole conversations": (lambda i: {"chosen": [user(f"Ask {i}"), assistant(f"Good {i}")],
                                       "rejected": [user(f"Ask {i}"), assistant("Bad")]}, PLAIN),
    "one message each": (lambda i: {"messages": [user(f"Ask {i}")], "rejected": assistant("Bad"),
                                    "chosen": assistant(f"Good {i}")}, PLAIN),
    "parts": (lambda i: {"prompt": [user([{"type": "text", "text": f"Ask {i}"}])],
                         "chosen": [assistant([{"type": "text", "text": f"Good {i}"}])],
                         "rejected": [assistant("Bad")]}, PLAIN),
    "messages as JSON text": (lambda i: {"prompt": json.dumps([user(f"Ask {i}")]),
                                         "chosen": json.dumps([assistant(f"Good {i}")]),
                                         "rejected": json.dumps([assistant("Bad")])}, PLAIN),
    "answers that are JSON": (lambda i: {**plain(i), "chosen": '{"role": "x", "content": "y"}'
                                         if i == 0 else "z"},
                              (Q, '{"role": "x", "content": "y"}', "Bad")),
    "alpaca": (lambda i: {"instruction": f"Ask {i}", "input": "of it" if i == 0 else "",
                          "chosen": f"Good {i}", "rejected": "Bad"},
               ([("user", "Ask 0\nof it")], "Good 0", "Bad")),
    "alpaca with history": (lambda i: {"instruction": f"Ask {i}", "system": "Be.",
                                       "history": [["Hi", "Ho"]], "chosen": f"Good {i}",
                                       "rejected": "Bad"},
                            ([("system", "Be."), ("user", "Hi"), ("assistant", "Ho"), *Q],
                             "Good 0", "Bad")),
    "sharegpt": (lambda i: {"conversations": [spoken("human", f"Ask {i}")],
                            "chosen": spoken("gpt", f"Good {i}"), "rejected": spoken("gpt", "Bad")},
                 PLAIN),
    "axolotl intel": (lambda i: {"system": "Be.", "question": f"Ask {i}", "chosen": f"Good {i}",
                                 "rejected": "Bad"}, ([("system", "Be."), *Q], "Good 0", "Bad")),
    "axolotl argilla": (lambda i: {"instruction": f"Ask {i}", "chosen_response": f"Good {i}",
                                   "rejected_response": "Bad"}, PLAIN),
    "ms-swift": (lambda i: {"query": f"Ask {i}", "response": f"Good {i}",
                            "rejected_response": "Bad"}, PLAIN),
    "ms-swift messages": (lambda i: {"messages": [user(f"Ask {i}"), assistant(f"Good {i}")],
                                     "rejected_response": "Bad"}, PLAIN),
    "ms-swift two": (lambda i: {"messages": [user(f"Ask {i}"), assistant(f"Good {i}")],
                                "rejected_messages": [user(f"Ask {i}"), assistant("Bad")]}, PLAIN),
    "openai": (lambda i: {"input": {"messages": [user(f"Ask {i}")], "tools": []},
                          "preferred_output": [assistant(f"Good {i}")],
                          "non_preferred_output": [assistant("Bad")]}, PLAIN),
    "nemo": (lambda i: {"context": [user(f"Ask {i}")], "completions": [
        {"rank": 1, "completion": [assistant("Bad")]},
        {"rank": 0, "completion": [assistant(f"Good {i}")]}]}, PLAIN),
    "hh": (lambda i: {"chosen": f"\n\nHuman: Ask {i}\n\nAssistant: Good {i}",
                      "rejected": f"\n\nHuman: Ask {i}\n\nAssistant: Bad"}, PLAIN),
    "prompt said twice": (lambda i: {"prompt": f"Ask {i}", "chosen": [user(f"Ask {i}"),
                          assistant(f"Good {i}")], "rejected": [user(f"Ask {i}"),
                          assistant("Bad")]}, PLAIN),
    "system in the prompt alone": (
        lambda i: {"prompt": [{"role": "system", "content": "Be."}, user(f"Ask {i}")],
                   "chosen": [user(f"Ask {i}"), assistant(f"Good {i}")],
                   "rejected": [user(f"Ask {i}"), assistant("Bad")]},
        ([("system", "Be."), *Q], "Good 0", "Bad")),
    "history in the prompt alone": (
        lambda i: {"prompt": [user("Hi"), assistant("Ho"), user(f"Ask {i}")],
                   "chosen": [user(f"Ask {i}"), assistant(f"Good {i}")],
                   "rejected": [user(f"Ask {i}"), assistant("Bad")]},
        ([("user", "Hi"), ("assistant", "Ho"), *Q], "Good 0", "Bad")),
    "history in the sides alone": (
        lambda i: {"prompt": f"Ask {i}",
                   "chosen": [user("Hi"), assistant("Ho"), user(f"Ask {i}"),
                              assistant(f"Good {i}")],
                   "rejected": [user("Hi"), assistant("Ho"), user(f"Ask {i}"), assistant("Bad")]},
        ([("user", "Hi"), ("assistant", "Ho"), *Q], "Good 0", "Bad")),
    "a column of systems": (lambda i: {**plain(i), "system": "Be."},
                            ([("system", "Be."), *Q], "Good 0", "Bad")),
    "an answer that is JSON": (lambda i: {**plain(i), "chosen": '{"role": "x", "content": "y"}'},
                               (Q, '{"role": "x", "content": "y"}', "Bad")),
    "a thought in the text": (lambda i: {**plain(i), "chosen": "<think>\nHm.\n</think>\n\nYes."},
                              (Q, "<think>\nHm.\n</think>\n\nYes.", "Bad")),
    "a mark is mentioned": (lambda i: {**plain(i), "prompt": f"What means <|im_end|> in {i}?"},
                            ([("user", "What means <|im_end|> in 0?")], "Good 0", "Bad")),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_every_form_becomes_its_text(
    name: str, train: Callable[..., list[Text]], tmp_path: Path
) -> None:
    make, first = FORMS[name]
    path = lines(tmp_path / "rows.jsonl", [make(i) for i in range(N)])
    rows = train(path)
    assert len(rows) == N and rows[0] == first
    assert "macpo" in check(path).output


# Columns that have to be named, with the option that the hint prints.
SCORED: Row = {"instruction": "Ask 0", "completions": [
    {"response": "Fair", "overall_score": 5}, {"response": "Bad", "overall_score": "1.5"},
    {"response": "Good 0", "overall_score": 9}]}  # fmt: skip
NAMED: dict[str, tuple[Row, str, Text]] = {
    "other names": (
        {"question": "Ask 0", "response_j": "Good 0", "response_k": "Bad"},
        "prompt=question,chosen=response_j,rejected=response_k", PLAIN,
    ),
    "scores inside": (SCORED, "prompt=instruction,answers=completions,score=overall_score", PLAIN),
    "scores beside": (
        {"prompt": "Ask 0", "generations": ["Bad", "Good 0", "Fair"], "ratings": [1, 3, 2]},
        "prompt=prompt,answers=generations,score=ratings", PLAIN,
    ),
    "ranks": (
        {"prompt": "Ask 0", "answers": [{"answer": "Good 0", "rank": 1},
                                        {"answer": "Bad", "rank": 7}]},
        "prompt=prompt,answers=answers,score=-rank", PLAIN,
    ),
    "a label by number": (
        {"prompt": "Ask 0", "response_0": "Bad", "response_1": "Good 0", "better_response_id": 1},
        "prompt=prompt,first=response_0,second=response_1,label=better_response_id", PLAIN,
    ),
    "conversations and a label": (
        {"conversation_a": [user("Ask 0"), assistant("Bad")], "winner": "b",
         "conversation_b": [user("Ask 0"), assistant("Good 0")]},
        "first=conversation_a,second=conversation_b,label=winner", PLAIN,
    ),
    "a label by letter": (
        {"prompt": "Ask 0", "answer_a": "Good 0", "answer_b": "Bad", "winner": "model_a"},
        "prompt=prompt,first=answer_a,second=answer_b,label=winner", PLAIN,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_hints_work_as_they_are_printed(
    name: str, train: Callable[..., list[Text]], tmp_path: Path
) -> None:
    row, columns, first = NAMED[name]
    path = lines(tmp_path / "rows.jsonl", [row] * 2)
    for command in (train, check):
        assert f"--columns {columns}" in refusal(command, path)
    assert train(path, "--columns", columns) == [first] * 2
    assert check(path, "--columns", columns).exit_code == 0


def test_columns_are_named_one_way_or_refused(
    train: Callable[..., list[Text]], tmp_path: Path
) -> None:
    path = lines(tmp_path / "rows.jsonl", [{"q": "Ask 0", "a b": "Good 0", "bad": "Bad"}])
    assert "--columns 'prompt=q,chosen=a b,rejected=bad'" in refusal(check, path)
    assert train(path, "--columns", "prompt=q,chosen=a b,rejected=bad") == [PLAIN]
    sets = ("columns.prompt=q", "columns.chosen=a b", "columns.rejected=bad")
    assert train(path, *(word for each in sets for word in ("--set", each))) == [PLAIN]
    for wrong in ("prompt", "prompt=", "nobody=q", "=q", ""):
        assert "--columns prompt=question" in refusal(check, path, "--columns", wrong)
    assert "no column z" in refusal(check, path, "--columns", "prompt=z")
    # A label that names neither answer says nothing, and is not guessed.
    shp = [{"prompt": "Ask 0", "ref_A": "x", "ref_B": "y", "labels": i % 2} for i in range(4)]
    path = lines(tmp_path / "shp.jsonl", shp)
    named = ("--columns", "first=ref_A,second=ref_B,label=labels")
    assert "the label 0 names neither ref_A nor ref_B" in refusal(train, path, *named)


OTHER_KINDS: dict[str, tuple[Row, str]] = {
    "unpaired": ({"prompt": "q", "completion": "a", "label": True}, "is unpaired preference"),
    "kto_tag": ({"messages": [user("q"), assistant("a")], "label": 0}, "is unpaired preference"),
    "stepwise": ({"prompt": "q", "completions": ["a", "b"], "labels": [True, False]}, "stepwise"),
    "prompts": ({"prompt": "q"}, "is prompts alone"),
    "fine-tuning": ({"prompt": "q", "completion": "a"}, "objective=sft trains on its answers"),
    "conversation": ({"messages": [user("q"), assistant("a")]}, "objective=sft trains on"),
    "whole text": ({"chosen": "Q: x\nA: y", "rejected": "Q: x\nA: z"}, "add a column of prompts"),
    "no rows": ({}, "it holds no row"),
    "another": ({"x": 1, "y": "z"}, "a preference dataset has columns of prompts"),
}


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_other_kinds_are_told_by_name(
    name: str, train: Callable[..., list[Text]], tmp_path: Path
) -> None:
    row, words = OTHER_KINDS[name]
    assert words in refusal(train, lines(tmp_path / "rows.jsonl", [row] * 2 if row else []))


def test_fine_tuning_takes_answers_alone(train: Callable[..., list[Text]], tmp_path: Path) -> None:
    sft = ("--set", "objective=sft")
    talk = [user("Ask 0"), assistant("Good 0")]
    tagged = [spoken("human", "Ask 0"), spoken("gpt", "Good 0")]
    rows: list[Row] = [
        {"prompt": "Ask 0", "completion": "Good 0"},
        {"messages": talk},
        {"conversations": tagged},
        {"instruction": "Ask 0", "input": "", "output": "Good 0"},
    ]
    for row in rows:
        assert train(lines(tmp_path / "rows.jsonl", [row]), *sft) == [(Q, "Good 0", None)]
    assert train(lines(tmp_path / "rows.jsonl", [plain(0)]), *sft) == [PLAIN]
    unpaired = lines(tmp_path / "kto.jsonl", [{"prompt": "q", "completion": "a", "label": False}])
    columns = ("--columns", "chosen=completion,rejected=null")
    assert "unpaired" in refusal(train, unpaired, *sft, *columns)


# What a chat template may say beside text: the trainer gets it whole.
WHOLE: dict[str, Row] = {
    "a call": {"chosen": [assistant("One moment.", tool_calls=CALL)]},
    "a call alone": {"chosen": [assistant("", tool_calls=CALL)], "rejected": [assistant(
        "", tool_calls=[{"type": "function", "function": {"name": "wave"}}])]},
    "a tool's result": {"prompt": [user("q"), assistant("x", tool_calls=CALL),
                        {"role": "tool", "content": "12"}]},
    "tools": {"tools": json.dumps(CALL)},
    "a thought": {"chosen": [assistant("Yes.", reasoning_content="Hm.")]},
    "several messages": {"chosen": [assistant("To?"), user("Yes."), assistant("Go.")]},
    "a key": {"chosen": [assistant("Yes.", mood="glad")]},
}  # fmt: skip
# What it cannot say: it is left out by name.
RICH: dict[str, tuple[Row, str]] = {
    "a tool's bare result": ({"prompt": [user("q"), assistant("x"),
                              {"role": "tool", "content": [{"a": 1}]}]}, "other_content"),
    "images": ({"images": ["boat.png"]}, "media"),
    "an image inside": ({"prompt": [user([{"type": "image"}, {"type": "text", "text": "q"}])]},
                        "media"),
}  # fmt: skip
BASE: Row = {"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]}


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_more_than_text_is_trained_whole(
    name: str, train: Callable[..., list[Text]], tmp_path: Path
) -> None:
    row = {**BASE, **WHOLE[name]}
    path = lines(tmp_path / "rows.jsonl", [row, BASE])
    assert len(train(path)) == 2
    first, second = train.whole  # type: ignore[attr-defined]
    tools = json.loads(row["tools"]) if "tools" in row else None
    assert json.loads(first) == {**BASE, **WHOLE[name], "tools": tools} and second is None
    assert "left out" not in train.account  # type: ignore[attr-defined]
    shown = check(path).output
    assert "are the same" not in shown and "is empty" not in shown


@pytest.mark.parametrize("name", RICH)
def test_what_text_would_lose_is_left_out_by_name(
    name: str, train: Callable[..., list[Text]], tmp_path: Path
) -> None:
    more, reason = RICH[name]
    path = lines(tmp_path / "rows.jsonl", [{**BASE, **more}, BASE])
    assert len(train(path)) == 1
    assert f"left out 1 rows: {reason} (" in train.account  # type: ignore[attr-defined]
    alone = lines(tmp_path / "alone.jsonl", [{**BASE, **more}])
    assert reason in refusal(train, alone)
    shown = check(alone).output
    assert "the same" not in shown and "is empty" not in shown


def test_what_nobody_reads_is_named(train: Callable[..., list[Text]], tmp_path: Path) -> None:
    row = {**BASE, "prompt": [user("q", mood="sad")], "note": "x", "empty": None}
    path = lines(tmp_path / "rows.jsonl", [row] * 2)
    assert len(train(path)) == 2
    account: str = train.account  # type: ignore[attr-defined]
    assert "columns that nobody reads: note\n" in account
    assert "keys of messages that only a chat template may read: mood\n" in account
    shown = " ".join(check(path).output.split())
    assert "column note: nobody reads it" in shown and "key mood of messages" in shown


CHATML = "<|im_start|>user\nAsk 0<|im_end|>\n<|im_start|>assistant\n"
RENDERED = {
    "ChatML": {"prompt": CHATML, "chosen": "Good 0<|im_end|>\n", "rejected": "Bad<|im_end|>\n"},
    "a last mark": {**plain(0), "chosen": "Good 0<|im_end|>"},
    "Llama 3": {**plain(0), "prompt": "<|start_header_id|>user<|end_header_id|>\n\nAsk<|eot_id|>"},
    "Llama 2": {**plain(0), "prompt": "<s>[INST] Ask [/INST]"},
    "Gemma": {**plain(0), "prompt": "<start_of_turn>user\nAsk<end_of_turn>\n"},
    "Alpaca": {**plain(0), "prompt": "### Instruction:\nAsk\n\n### Response:\n"},
    "HH-RLHF": {**plain(0), "prompt": "\n\nHuman: Ask\n\nAssistant:"},
    "Vicuna": {**plain(0), "prompt": "USER: Ask ASSISTANT:"},
}


@pytest.mark.parametrize("name", RENDERED)
def test_rendered_text_is_told(name: str, train: Callable[..., list[Text]], tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", [RENDERED[name]])
    assert "rendered already" in refusal(train, path)
    assert "--set chat_template=none" in refusal(train, path)
    assert "rendered already" in " ".join(check(path).output.split())
    row = RENDERED[name]
    # As it is: nothing is stripped.
    expected = [([("user", row["prompt"])], row["chosen"], row["rejected"])]
    assert train(path, "--set", "chat_template=none") == expected


def test_rendered_conversations(train: Callable[..., list[Text]], tmp_path: Path) -> None:
    rows = [{side: f"{CHATML}{side}<|im_end|>\n" for side in ("chosen", "rejected")}]
    path = lines(tmp_path / "rows.jsonl", rows)
    assert "ChatML; --set chat_template=none" in refusal(check, path)
    expected = [([("user", CHATML)], "chosen<|im_end|>\n", "rejected<|im_end|>\n")]
    assert train(path, "--set", "chat_template=none") == expected


def test_struck_out_text_is_no_mark(train: Callable[..., list[Text]], tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", [{**plain(0), "chosen": "It costs <s>9</s>"}])
    assert train(path) == [(Q, "It costs <s>9</s>", "Bad")]


def test_questions_that_differ_are_refused(
    train: Callable[..., list[Text]], tmp_path: Path
) -> None:
    ask = [user("Name a port.")]
    apart = {"prompt": ask, "chosen": [user("Name a knot."), assistant("Bowline.")],
             "rejected": [user("Name a knot."), assistant("None.")]}  # fmt: skip
    twice = {"chosen": [user("x"), assistant("a")], "rejected": [user("y"), assistant("b")]}
    systems = {**plain(0), "system": "Be.", "prompt": [{"role": "system", "content": "No."},
               user("Ask 0")]}  # fmt: skip
    for row, words in ((apart, "prompt_differs"), (twice, "prompt_differs"),
                       (systems, "system_differs")):  # fmt: skip
        assert words in refusal(train, lines(tmp_path / "rows.jsonl", [row]))


def test_odd_rows_are_judged_singly(train: Callable[..., list[Text]], tmp_path: Path) -> None:
    make, _ = FORMS["hh"]
    rows = [make(i) for i in range(50)]
    odd = {side: "A note." + rows[0][side] for side in rows[0]}
    rows[23] = odd
    assert len(train(lines(tmp_path / "one.jsonl", rows))) == 49
    assert "left out 1 rows: no_human_turn" in train.account  # type: ignore[attr-defined]
    assert "first is row 23" in train.account  # type: ignore[attr-defined]
    many = [odd if i % 5 == 3 else row for i, row in enumerate(rows)]
    assert "10 of 50 rows" in refusal(train, lines(tmp_path / "many.jsonl", many))


def test_two_forms_in_one_file(train: Callable[..., list[Text]], tmp_path: Path) -> None:
    pairs = [plain(i) for i in range(6)]
    for other in ({"prompt": [user("x")], "chosen": [assistant("y")], "rejected": [assistant("z")]},
                  {"instruction": "x", "output": "y"},
                  {"prompt": "x", "completion": "y"}):  # fmt: skip
        message = refusal(train, lines(tmp_path / "rows.jsonl", [*pairs, other, other]))
        assert "2 of 8 rows do not fit the form" in message


# ---------------------------------------------------------------------------- files

GOOD = [json.dumps(plain(i)) for i in range(N)]


def swapped(at: int, text: str) -> str:
    return "\n".join([*GOOD[:at], text, *GOOD[at + 1 :]]) + "\n"


READABLE: dict[str, bytes] = {
    "lines.jsonl": "\n".join(GOOD).encode(),
    "blank.jsonl": "\n\n".join(GOOD).encode(),
    "windows.jsonl": codecs.BOM_UTF8 + "\r\n".join(GOOD).encode(),
    "joined.jsonl": swapped(4, "\ufeff" + GOOD[4]).encode(),
    "utf16.jsonl": "\n".join(GOOD).encode("utf-16"),
    "array.json": json.dumps([plain(i) for i in range(N)]).encode(),
    "indented.json": json.dumps([plain(i) for i in range(N)], indent=2).encode(),
    "stream.json": "\n".join(json.dumps(plain(i), indent=2) for i in range(N)).encode(),
    "wrapped.json": json.dumps({"version": 1, "data": [plain(i) for i in range(N)]}).encode(),
    "lines.jsonl.gz": gzip.compress("\n".join(GOOD).encode()),
    "lines.jsonl.zst": bytes(pa.Codec("zstd").compress("\n".join(GOOD).encode(), asbytes=True)),
    "nan.jsonl": "\n".join(line[:-1] + ', "score": NaN}' for line in GOOD).encode(),
    "rows.csv": ("prompt,chosen,rejected\r\n" + "".join(
        f'"Ask {i}",Good {i},Bad\r\n' for i in range(N))).encode(),
    "semicolons.csv": ("prompt;chosen;rejected\n" + "".join(
        f"Ask {i};Good {i};Bad\n" for i in range(N))).encode(),
    "rows.tsv": ("prompt\tchosen\trejected\n" + "".join(
        f"Ask {i}\tGood {i}\tBad\n" for i in range(N))).encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", READABLE)
def test_every_kind_of_file(name: str, train: Callable[..., list[Text]], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(READABLE[name])
    rows = train(tmp_path / name)
    assert rows == [([("user", f"Ask {i}")], f"Good {i}", "Bad") for i in range(N)]


BROKEN: dict[str, tuple[bytes, str]] = {
    "high.jsonl": (swapped(4, GOOD[4].replace("Good", "\\ud83d")).encode(), "line 5: \\ud83d with"),
    "low.jsonl": (swapped(4, GOOD[4].replace("Good", "\\ude00")).encode(), "line 5: \\ude00 with"),
    "comma.jsonl": (swapped(4, GOOD[4][:-1] + ",}").encode(), "line 5: a comma before }"),
    "latin.jsonl": (swapped(2, GOOD[2].replace("Good", "P\u00eache")).encode("latin-1"),
                    "line 3: it is no UTF-8 (byte 0xea; Latin-1 perhaps)"),
    "cut.jsonl": ("\n".join(GOOD)[:-25].encode(), "line 8: it is cut off"),
    "twice.jsonl": (swapped(4, '{"prompt": "a", "prompt": "b"}').encode(),
                    "line 5: 'prompt' is named twice"),
    "number.jsonl": (swapped(4, "7").encode(), "line 5: it holds a number, not an object"),
    "comma.json": (b'[{"prompt": "a"},\n]', "line 2: a comma before ]"),
    "cut.json": (json.dumps([plain(0)]).encode()[:-1], "line 1: the file is cut off"),
    "deep.jsonl": (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "more.csv": (b"prompt,chosen,rejected\na,b,c\na,b,c,d\n", "line 3: it has 4 fields"),
    "twice.csv": (b"prompt,chosen,prompt\na,b,c\n", "the column prompt is named twice"),
    "quote.csv": (b'prompt,chosen,rejected\n"a,b,c\n', "line 2"),
    "latin.csv": ("prompt,chosen,rejected\nP\u00eache,b,c\n".encode("latin-1"), "no UTF-8"),
    "empty.csv": (b"", "it holds no row"),
    "empty.json": (b"[]", "it holds no row"),
    "zip.parquet": (b"PK\x03\x04" * 9, "it is damaged"),
    "cut.jsonl.zst": (READABLE["lines.jsonl.zst"][:-9], "cut.jsonl.zst"),
    "cut.jsonl.gz": (READABLE["lines.jsonl.gz"][:-9], "it is cut short"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_told_by_line(name: str, tmp_path: Path) -> None:
    content, words = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    message = refusal(check, tmp_path / name)
    assert words in message and name in message and "anew" not in message


def test_a_large_file_passes_through_a_small_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Callable[..., list[Text]]
) -> None:
    """Whatever stands at the edge of what is read at once, the rows are the same."""
    monkeypatch.setattr("macpo_data.sources.ingest.json_text.WINDOW", 7)
    odd = {**plain(0), "chosen": "\U0001f600 \u00e9 \\u12", "score": [-1.5e3, True, None, 12345]}
    for dump in (json.dumps([odd, odd]), json.dumps([odd, odd], indent=1),
                 json.dumps([odd, odd], ensure_ascii=False)):  # fmt: skip
        (tmp_path / "rows.json").write_text(dump, "utf-8")
        assert train(tmp_path / "rows.json") == [(Q, "\U0001f600 \u00e9 \\u12", "Bad")] * 2


def test_strings_of_any_encoding(train: Callable[..., list[Text]], tmp_path: Path) -> None:
    columns = {
        "prompt": pa.array(["Ask 0"], pa.large_string()),
        "chosen": pa.array(["Good 0"]).dictionary_encode(),
        "rejected": pa.array(["Bad"], pa.string_view()),
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    assert train(tmp_path / "rows.parquet") == [PLAIN]


def test_fields_that_only_other_rows_have_are_not_there(
    train: Callable[..., list[Text]], tmp_path: Path
) -> None:
    """A table gives every message the fields of all; null, they are no calls."""
    rows = [BASE, {**BASE, "chosen": [assistant("x", tool_calls=CALL)]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert [chosen for _, chosen, _ in train(tmp_path / "rows.parquet")] == ["a", "x"]
    first, second = train.whole  # type: ignore[attr-defined]
    assert first is None and json.loads(second)["chosen"][0]["tool_calls"] == CALL


def test_a_column_that_is_late(train: Callable[..., list[Text]], tmp_path: Path) -> None:
    rows = [plain(0)] * 2500 + [{**plain(0), "system": "Be."}]
    texts = train(lines(tmp_path / "rows.jsonl", rows))
    assert len(texts) == 2501 and texts[0] == PLAIN
    assert texts[-1] == ([("system", "Be."), *Q], "Good 0", "Bad")


# ---------------------------------------------------------------------------- splits


def shard(
    path: Path, rows: list[Row], order: tuple[str, ...] = ("prompt", "chosen", "rejected")
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows).select(order), path)


def test_splits_are_named_and_never_joined(
    train: Callable[..., list[Text]], tmp_path: Path
) -> None:
    folder = tmp_path / "splits"
    names = ("test_prefs", "train_gen", "train_prefs", "train_sft")
    for name in names:
        rows = [{**plain(0), "prompt": name}]
        shard(folder / "data" / f"{name}-00000-of-00001.parquet", rows)
    for command in (train, check):
        assert f"choose --split {', '.join(names)}" in refusal(command, folder)
    assert train(folder, "--split", "train_prefs")[0][0] == [("user", "train_prefs")]
    listed = "".join(f"  - split: {n}\n    path: data/{n}-*\n" for n in names[2:])
    card = f"---\nconfigs:\n- config_name: default\n  data_files:\n{listed}---\n"
    (folder / "README.md").write_text(card)
    assert "choose --split train_prefs, train_sft" in refusal(train, folder)
    assert train(folder, "--split", "train_sft")[0][0] == [("user", "train_sft")]
    assert check(folder, "--split", "train_sft").exit_code == 0
    assert "no file for the split nope" in refusal(check, folder, "--split", "nope")


def test_folders_that_are_splits(train: Callable[..., list[Text]], tmp_path: Path) -> None:
    for name, count in (("train", 3), ("validation", 2)):
        shard(tmp_path / "a" / "data" / name / "0000.parquet", [plain(i) for i in range(count)])
    assert len(train(tmp_path / "a")) == 3
    assert len(train(tmp_path / "a", "--split", "validation")) == 2
    for name in ("dev", "test"):
        lines(tmp_path / "a" / f"{name}.jsonl", [plain(0)])
    (tmp_path / "a" / "data" / "train" / "0000.parquet").unlink()
    assert "choose --split dev, test, validation" in refusal(train, tmp_path / "a").replace(
        "validation, dev, test", "dev, test, validation"
    )


def test_what_datasets_saved(train: Callable[..., list[Text]], tmp_path: Path) -> None:
    both = {"train": [plain(i) for i in range(4)], "test": [plain(9)]}
    saved = {name: datasets.Dataset.from_list(rows) for name, rows in both.items()}
    saved["train"].save_to_disk(tmp_path / "one")
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "two")
    for folder in ("one", "two"):
        assert len(train(tmp_path / folder)) == 4
    assert train(tmp_path / "two", "--split", "test") == [([("user", "Ask 9")], "Good 9", "Bad")]
    (tmp_path / "one" / "state.json").write_text("{}")
    assert "a folder of save_to_disk" in refusal(check, tmp_path / "one")


def test_shards_are_joined_by_names(train: Callable[..., list[Text]], tmp_path: Path) -> None:
    shard(tmp_path / "a" / "part-0.parquet", [plain(0)])
    order = ("rejected", "source", "prompt", "chosen")
    shard(tmp_path / "a" / "part-1.parquet", [{**plain(0), "source": "late"}], order)
    assert train(tmp_path / "a") == [PLAIN] * 2
    account: str = train.account  # type: ignore[attr-defined]
    assert "part-1.parquet has other columns than part-0.parquet: more source" in account


def test_one_file_has_no_splits(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", [plain(0)])
    assert "--split: not read of a file" in refusal(check, path, "--split", "test")
    assert check(path, "--split", "train").exit_code in (0, 1)


def test_tables_keep_their_quotes(train: Callable[..., list[Text]], tmp_path: Path) -> None:
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["prompt", "chosen", "rejected"], ["Ask 0", 'a "b",\nc', "Bad"]]
        )
    assert train(tmp_path / "rows.csv") == [(Q, 'a "b",\nc', "Bad")]
