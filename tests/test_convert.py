"""`macpo convert`: from every form to every trainer's, nothing lost and nothing left half."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from macpo.cli import app
from macpo_data.errors import DataError, MacpoError
from macpo_data.forms import convert
from macpo_data.forms.registry import targets
from macpo_data.forms.trainer import Form
from macpo_data.recipe.data import Columns
from macpo_data.sources.ingest.canonical import BEYOND_TEXT, Reason, Refusal, Row
from macpo_data.sources.ingest.door import open_rows
from macpo_data.sources.ingest.splits import Dataset

Record = dict[str, Any]
TARGETS = list(targets())
FINE_TUNING = [name for name, trainer in targets().items() if trainer.fine_tuning]


def turn(role: str, content: Any, **more: Any) -> Record:
    return {"role": role, "content": content, **more}


def spoken(who: str, text: str) -> Record:
    return {"from": who, "value": text}


user, assistant = partial(turn, "user"), partial(turn, "assistant")
CALL = [{"type": "function", "id": "c", "function": {"name": "ring", "arguments": '{"bell": 1}'}}]
TOOLS = [{"type": "function", "function": {"name": "ring", "parameters": {"a": [1, None]}}}]
PLAIN = {"prompt": "Ask", "chosen": "Good", "rejected": "Bad"}


def lines(path: Path, rows: list[Record]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    return path


def read(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def run(place: Path, trainer: str, to: Path, *options: str) -> str:
    """The command's output; a person's mistake is raised."""
    words = ["convert", str(place), "--for", trainer, "--to", str(to), *options]
    result = CliRunner().invoke(app, words)
    if result.exception is not None:
        raise result.exception
    return result.output


# Property: every pair of forms.
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        " padded \n",
        "a\u2028b",
        "tab\tin",
        "nul\x00",
        "\r\n",
        "{",
        "[1]",
        "é\u0301",
        "\U0001d54f",
        "Human: x",
    ]
)
thought = st.sampled_from([{}, {}, {}, {"reasoning_content": "hm"}])


@st.composite
def answer(draw: st.DrawFn) -> list[Record]:
    last = assistant(draw(text), **draw(thought))
    between = [
        [],
        [],
        [],
        [assistant("", tool_calls=CALL), turn("tool", draw(text), tool_call_id="c")],
        [assistant(draw(text)), user(draw(text))],
    ]
    return [*draw(st.sampled_from(between)), last]


@st.composite
def record(draw: st.DrawFn) -> Record:
    """A row of messages with what rows may have: system turns, history, calls, tools, thoughts."""
    lead = draw(st.sampled_from([[], [turn("system", draw(text))], [turn("developer", "Be.")]]))
    history = [user(draw(text)), assistant(draw(text), **draw(thought))]
    called = [assistant("", tool_calls=CALL), turn("tool", draw(text), tool_call_id="c")]
    prompt = [
        *lead,
        *history * draw(st.integers(0, 2)),
        user(draw(text)),
        *draw(st.sampled_from([[], [], called])),
    ]
    tools = draw(st.sampled_from([{}, {}, {"tools": TOOLS}]))
    return {"prompt": prompt, "chosen": draw(answer()), "rejected": draw(answer()), **tools}


def canonical(path: Path) -> list[Row]:
    """All rows of a file that anybody may use."""
    rows = open_rows(Dataset(str(path)), Columns(), takes=BEYOND_TEXT)
    return [each.row for each in rows if each.row and each.reason is None]


def converted(path: Path, name: str, to: Path) -> convert.Conversion | None:
    """None where the form can say no row at all."""
    try:
        return convert.write(open_rows(Dataset(str(path)), Columns()), targets()[name], to)
    except DataError as error:
        assert "no row can be written for" in str(error)
        return None


def named(row: Row) -> Row:
    """A row whose calls are names and arguments alone, without the numbers of LLaMA-Factory."""

    def plain(message: Record) -> Record:
        calls = [
            {"type": "function", "function": {"name": f["name"], "arguments": loaded(f)}}
            for f in (call["function"] for call in message.get("tool_calls", []))
        ]
        rest = {k: v for k, v in message.items() if k not in ("tool_calls", "tool_call_id")}
        return {**rest, "tool_calls": calls} if calls else rest

    def loaded(function: Record) -> Any:
        given = function["arguments"]
        return json.loads(given) if isinstance(given, str) else given

    prompt, chosen, rejected = (
        side and [plain(m) for m in side] for side in (row.prompt, row.chosen, row.rejected)
    )
    return Row(prompt or [], chosen, rejected, row.tools)


def by_name(rows: list[Row], *trainers: str) -> list[Row]:
    """Rows as they come by these trainers."""
    return [named(row) for row in rows] if {"llama-factory", "ms-swift"} & {*trainers} else rows


def sayable(form: Form, row: Row) -> bool:
    try:
        form.record(row)
    except Refusal:
        return False
    return True


def said_by(rows: list[Row], name: str, pairs: bool) -> list[Row]:
    """The rows that the form of a trainer can say whole, by what its file claims."""
    trainer = targets()[name]
    use = trainer.pairs if pairs else trainer.fine_tuning
    assert use
    return [
        row
        for row in rows
        if row.holds <= use.takes
        and {m["role"] for m in row.prompt} <= use.roles
        and {m["role"] for side in row.sides for m in side} <= use.answer_roles
        and sayable(use.converted or use.form, row)
    ]


def as_conversation(rows: list[Row]) -> list[tuple[Any, ...]]:
    """Rows for fine-tuning, of which some forms do not say where the answer begins."""
    return [([*row.prompt, *(row.chosen or [])], row.tools) for row in rows]


@settings(max_examples=8, deadline=None)
@given(st.lists(record(), min_size=1, max_size=4))
def test_every_pair_of_forms_gives_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record]
) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    source = lines(folder / "source.jsonl", records)
    rows = canonical(source)
    for first in TARGETS:
        one = folder / f"{first}.jsonl"
        done, rows_in_it = converted(source, first, one), said_by(rows, first, pairs=True)
        if done is None:
            assert not rows_in_it
            continue
        assert by_name(canonical(one), first) == by_name(rows_in_it, first)
        refused = sum(entry.count for entry in done.account.refused.values())
        assert done.account.used == len(rows_in_it) == len(records) - refused
        for second in TARGETS:
            other = folder / "second.jsonl"
            if converted(one, second, other):
                wanted = by_name(said_by(rows_in_it, second, pairs=True), first, second)
                assert by_name(canonical(other), first, second) == wanted, (first, second)
            else:
                assert not said_by(rows_in_it, second, pairs=True), (first, second)


@settings(max_examples=8, deadline=None)
@given(st.lists(record(), min_size=1, max_size=3))
def test_every_pair_of_forms_for_fine_tuning(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record]
) -> None:
    folder = tmp_path_factory.mktemp("sft")
    beside = [{k: v for k, v in row.items() if k in ("prompt", "tools")} for row in records]
    answered = [{**b, "completion": r["chosen"]} for b, r in zip(beside, records, strict=True)]
    source = lines(folder / "source.jsonl", answered)
    rows = canonical(source)
    for first in FINE_TUNING:
        one, rows_in_it = folder / f"{first}.jsonl", said_by(rows, first, pairs=False)
        if converted(source, first, one) is None:
            assert not rows_in_it
            continue
        use = targets()[first].fine_tuning
        came = by_name(canonical(one), first)
        assert as_conversation(came) == as_conversation(by_name(rows_in_it, first))
        assert (use and use.form.joins) or canonical(one) == rows_in_it
        for second in FINE_TUNING:
            other, between = folder / "second.jsonl", said_by(canonical(one), second, pairs=False)
            if converted(one, second, other):
                wanted = by_name(between, first, second)
                came = by_name(canonical(other), first, second)
                assert as_conversation(came) == as_conversation(wanted)
            else:
                assert not between


# The command.
def test_plain_text_for_every_trainer(tmp_path: Path) -> None:
    """The file, the snippet that names it, and the account, by the trainer's own columns."""
    source = lines(tmp_path / "in.jsonl", [{**PLAIN, "system": "Be.", "note": 1}, PLAIN])
    be, ask, good, bad = turn("system", "Be."), user("Ask"), assistant("Good"), assistant("Bad")
    whole = {"chosen": [be, ask, good], "rejected": [be, ask, bad]}
    explicit = {"prompt": [be, ask], "chosen": [good], "rejected": [bad]}
    wanted = {
        **dict.fromkeys(("trl", "axolotl", "openrlhf", "macpo"), explicit),
        **dict.fromkeys(("open-instruct", "alignment-handbook", "torchtune"), whole),
        "llama-factory": {
            "conversations": [spoken("system", "Be."), spoken("human", "Ask")], "tools": "",
            "chosen": spoken("gpt", "Good"), "rejected": spoken("gpt", "Bad"),
        },
        "llama-factory-alpaca": {"instruction": "Ask", "system": "Be.", "history": [],
                                 "chosen": "Good", "rejected": "Bad"},
        "ms-swift": {"messages": [be, ask, good], "rejected_messages": [be, ask, bad]},
        "openai": {"input": {"messages": [be, ask]}, "preferred_output": [good],
                   "non_preferred_output": [bad]},
        "nemo-rl": {"prompt": [be, ask], "chosen": "Good", "rejected": "Bad"},
    }  # fmt: skip
    assert wanted.keys() == targets().keys()
    for name, row in wanted.items():
        to = tmp_path / name
        output = run(source, name, to)
        assert read(to / "train.jsonl")[0] == row, name
        assert output.startswith("read 2 rows of preference pairs") and "used 2" in output
        assert "lost: column note (1 rows)" in output
        (file,) = (p for p in to.iterdir() if p.name in ("config.yaml", "command.txt", "start.py"))
        snippet = file.read_text()
        assert str(to) in snippet or name == "llama-factory"
        assert snippet in output and snippet in (to / "README.md").read_text()
        if file.suffix == ".yaml":
            assert yaml.safe_load(snippet)
        if name != "llama-factory-alpaca":  # a second form, which `check` does not list
            again = CliRunner().invoke(app, ["check", str(to), "--for", name]).output
            assert re.search(rf"^{name} +yes ", again, re.MULTILINE), again


def test_what_llama_factory_finds_beside_the_data(tmp_path: Path) -> None:
    source = lines(tmp_path / "in.jsonl", [PLAIN])
    for name, formatting, asked in (
        ("llama-factory", "sharegpt", {"messages": "conversations", "tools": "tools"}),
        ("llama-factory-alpaca", "alpaca",
         {"prompt": "instruction", "system": "system", "history": "history"}),
    ):  # fmt: skip
        to = tmp_path / f"my {name}"
        run(source, name, to)
        config = yaml.safe_load((to / "config.yaml").read_text())
        assert config["dataset_dir"] == str(to)
        entry = json.loads((to / "dataset_info.json").read_text())[config["dataset"]]
        assert entry["file_name"] == "train.jsonl" and entry["ranking"] is True
        assert entry["formatting"] == formatting
        assert entry["columns"] == {**asked, "chosen": "chosen", "rejected": "rejected"}


def test_a_row_that_a_form_cannot_say_is_left_out_by_name(tmp_path: Path) -> None:
    ask, good, bad = [user("Ask")], [assistant("Good")], [assistant("Bad")]
    rows: dict[str, Record] = {
        "tool_call": {"prompt": ask, "rejected": bad,
                      "chosen": [assistant("", tool_calls=CALL), turn("tool", "1"), *good]},
        "tools": {"prompt": ask, "chosen": good, "rejected": bad, "tools": TOOLS},
        "thought": {"prompt": ask, "chosen": [assistant("Good", reasoning_content="Hm")],
                    "rejected": bad},
        "several_messages": {"prompt": ask, "rejected": bad,
                             "chosen": [assistant("A"), user("B"), *good]},
        "media": {"prompt": ask, "chosen": good, "rejected": bad, "images": ["a.png"]},
        "other_role": {"prompt": [turn("developer", "Be."), *ask], "chosen": good, "rejected": bad},
        "used": {"prompt": ask, "chosen": good, "rejected": bad},
    }  # fmt: skip
    source = lines(tmp_path / "in.jsonl", list(rows.values()))
    everything = rows.keys() - {"used"}
    wanted = {
        "trl": {"media"},
        "macpo": {"media"},
        "openrlhf": {"media", "tools"},
        "open-instruct": {"media", "tools", "several_messages"},
        "alignment-handbook": {"media", "tools", "several_messages"},
        "openai": {"media", "thought", "other_role"},
        # An answer is one message there: a call that is answered is several.
        **dict.fromkeys(("llama-factory", "ms-swift"), everything - {"tools", "tool_call"}),
    }
    for name in TARGETS:
        output = run(source, name, tmp_path / name)
        reasons = set(re.findall(r"left out \d rows?: (\w+) \(", output))
        assert reasons == wanted.get(name, everything), name
        counts = sum(int(n) for n in re.findall(r"left out (\d) rows?:", output))
        assert len(read(tmp_path / name / "train.jsonl")) == len(rows) - counts
    # The tool's turns and the tools are there as they were; the arguments OpenAI wants as text.
    for name, column in (("trl", "chosen"), ("openai", "preferred_output")):
        called = read(tmp_path / name / "train.jsonl")[0][column]
        assert called[0]["tool_calls"] == CALL and called[1] == turn("tool", "1")
    offered = next(row for row in read(tmp_path / "trl" / "train.jsonl") if "tools" in row)
    assert json.loads(offered["tools"]) == TOOLS


CALLED = [
    user("Ask"),
    assistant("", tool_calls=[CALL[0], {"function": {"name": "sing", "arguments": {}}}]),
    turn("tool", "1", tool_call_id="c"),
]


def test_calls_in_the_words_of_llama_factory_and_ms_swift(tmp_path: Path) -> None:
    """Each call a turn of its own; numbers of calls, which they do not read, are named as lost."""
    row = {"prompt": CALLED, "chosen": [assistant("", tool_calls=CALL)],
           "rejected": [assistant("Bad")], "tools": TOOLS}  # fmt: skip
    source = lines(tmp_path / "in.jsonl", [row])
    ring, sing = '{"name": "ring", "arguments": {"bell": 1}}', '{"name": "sing", "arguments": {}}'
    output = run(source, "llama-factory", tmp_path / "llama")
    assert read(tmp_path / "llama/train.jsonl") == [{
        "conversations": [spoken("human", "Ask"), spoken("function_call", f"[{ring}, {sing}]"),
                          spoken("observation", "1")],
        "chosen": spoken("function_call", ring), "rejected": spoken("gpt", "Bad"),
        "tools": json.dumps(TOOLS),
    }]  # fmt: skip
    for key, count in (("tool_calls.id", 2), ("tool_call_id", 1)):
        assert f"lost: key {key} of messages, which llama-factory does not read ({count} " in output
    output = run(source, "ms-swift", tmp_path / "swift")
    lead = [user("Ask"), turn("tool_call", ring), turn("tool_call", sing),
            turn("tool_response", "1")]  # fmt: skip
    assert read(tmp_path / "swift/train.jsonl") == [{
        "messages": [*lead, turn("tool_call", ring)],
        "rejected_messages": [*lead, assistant("Bad")],
        **dict.fromkeys(("tools", "rejected_tools"), json.dumps(TOOLS)),
    }]  # fmt: skip
    assert "lost: key tool_calls.id of messages, which ms-swift does not read (2 " in output


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ([user("Ask"), assistant("Wait.", tool_calls=CALL), turn("tool", "1")],
         r"tool_call \(a message calls a tool and says something"),
        ([*CALLED, turn("tool", "2")],
         r"tool_result \(several results of tools follow each other"),
        ([user("Ask"), assistant("", tool_calls=[{"function": {"name": "f", "arguments": "{"}}]),
          turn("tool", "1")], r"tool_call \(the arguments of a call of f are no JSON object"),
    ],
)  # fmt: skip
def test_turns_that_llama_factory_has_no_place_for(
    prompt: list[Record], why: str, tmp_path: Path
) -> None:
    row = {"prompt": prompt, "chosen": [assistant("Good")], "rejected": [assistant("Bad")]}
    source = lines(tmp_path / "in.jsonl", [row, PLAIN | {"prompt": [user("Ask")],
        "chosen": [assistant("Good")], "rejected": [assistant("Bad")]}])  # fmt: skip
    output = run(source, "llama-factory", tmp_path / "out")
    assert re.search(rf"left out 1 rows: {why}", output) and "used 1" in output
    assert len(read(tmp_path / "out/train.jsonl")) == 1


RENDERED = "<|im_start|>user\n Ask <|im_end|>\n<|im_start|>assistant\n"
TEXTS = {"prompt": RENDERED, "chosen": " Good<|im_end|>\n", "rejected": "Bad<|im_end|>"}
AS_TEXT = ["trl", "axolotl", "openrlhf", "macpo"]


@pytest.mark.parametrize("whole", [False, True])
def test_rendered_text_is_written_as_it_is(whole: bool, tmp_path: Path) -> None:
    record = {side: RENDERED + TEXTS[side] for side in ("chosen", "rejected")} if whole else TEXTS
    source = lines(tmp_path / "in.jsonl", [record])
    none = ("--set", "chat_template=none")
    for name in TARGETS:
        if name not in AS_TEXT:
            with pytest.raises(MacpoError, match=f"{name} takes no text that is rendered already; "
                               f"choose {', '.join(AS_TEXT)}$"):  # fmt: skip
                run(source, name, tmp_path / name, *none)
            continue
        output = run(source, name, tmp_path / name, *none)
        assert read(tmp_path / name / "train.jsonl") == [TEXTS]
        assert "apply_chat_template" not in output and "chat_template.default" not in output
        assert ("type: passthrough" in output) == (name == "axolotl")
        assert ("--set chat_template=none" in output) == (name == "macpo")
    for name in ("trl", "macpo"):
        sft = lines(tmp_path / "sft.jsonl", [{"prompt": RENDERED, "completion": TEXTS["chosen"]}])
        run(sft, name, tmp_path / f"sft_{name}", *none)
        assert read(tmp_path / f"sft_{name}/train.jsonl") == read(sft)


def test_what_is_not_one_text_is_no_rendered_text(tmp_path: Path) -> None:
    talk = {"prompt": [user("A"), assistant("B"), user("C")], "chosen": [assistant("D")],
            "rejected": [assistant("E")]}  # fmt: skip
    source = lines(tmp_path / "in.jsonl", [talk])
    with pytest.raises(MacpoError, match="the prompt is several messages"):
        run(source, "trl", tmp_path / "out", "--set", "chat_template=none")


def test_the_hint_for_rendered_rows(tmp_path: Path) -> None:
    """Of all rows, of some; and `check` ends with a command that does it."""
    source = lines(tmp_path / "in.jsonl", [TEXTS])
    with pytest.raises(MacpoError, match=f"--set chat_template=none .*; for {', '.join(AS_TEXT)}$"):
        run(source, "torchtune", tmp_path / "out")
    some = lines(tmp_path / "some.jsonl", [TEXTS, PLAIN])
    output = run(some, "trl", tmp_path / "some")
    names = ", ".join(AS_TEXT)
    assert f"--set chat_template=none writes rendered text as it is, for {names}" in output
    whole = {side: RENDERED + TEXTS[side] for side in ("chosen", "rejected")}
    asked = ["check", str(lines(tmp_path / "whole.jsonl", [whole])), "--set", "chat_template=none"]
    line = CliRunner().invoke(app, asked).output.splitlines()[-1]
    who, _, command = line.partition(": ")
    assert set(who.removeprefix("for ").split(", ")) <= set(AS_TEXT)
    words = shlex.split(command.replace("TRAINER", "openrlhf").replace("DIR", str(tmp_path / "w")))
    assert CliRunner().invoke(app, words[1:]).exit_code == 0
    assert read(tmp_path / "w/train.jsonl") == [TEXTS]


def test_openai_wants_arguments_as_text(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "ring", "arguments": {"bell": [1, "é"]}}}
    row = {"prompt": [user("Ask")], "chosen": [assistant("", tool_calls=[call], mood="x")],
           "rejected": [assistant("No")]}  # fmt: skip
    output = run(lines(tmp_path / "in.jsonl", [row]), "openai", tmp_path / "out")
    (message,) = read(tmp_path / "out/train.jsonl")[0]["preferred_output"]
    assert message["tool_calls"][0]["function"]["arguments"] == '{"bell": [1, "é"]}'
    assert "mood" not in message
    assert "lost: key mood of messages, which openai does not read (1 messages)" in output


def test_an_answer_that_axolotl_would_find_elsewhere(tmp_path: Path) -> None:
    """It finds `a` in [[dummy_message]], which stands before, and trains on all from there."""
    rows = [PLAIN | {"chosen": "a", "rejected": "B"}, PLAIN]
    source = lines(tmp_path / "in.jsonl", rows)
    output = run(source, "axolotl", tmp_path / "out")
    assert "left out 1 rows: other_content (axolotl finds an answer by its text" in output
    assert len(read(tmp_path / "out/train.jsonl")) == 1


def test_two_folders_of_one_name_are_two_datasets(tmp_path: Path) -> None:
    """The library datasets goes by a folder's name and card: the data's hash stands in the card."""
    for where, count in (("one", 1), ("two", 2)):
        source = lines(tmp_path / f"{where}.jsonl", [PLAIN] * count)
        run(source, "trl", tmp_path / where / "data")
        folder, cache = str(tmp_path / where / "data"), str(tmp_path / "cache")
        assert len(load_dataset(folder, split="train", cache_dir=cache)) == count


def test_data_for_fine_tuning(tmp_path: Path) -> None:
    talk = [user("A"), assistant("B"), user("C"), assistant("D")]
    source = lines(tmp_path / "in.jsonl", [{"messages": talk}])
    for name in FINE_TUNING:
        output = run(source, name, tmp_path / name)
        (row,) = read(tmp_path / name / "train.jsonl")
        if name == "llama-factory-alpaca":
            assert row == {"instruction": "C", "system": "", "history": [["A", "B"]], "output": "D"}
        elif name in ("trl", "macpo"):
            assert row == {"prompt": talk[:3], "completion": talk[3:]}
        elif name == "llama-factory":
            turns = [
                spoken(who, text) for who, text in zip(["human", "gpt"] * 2, "ABCD", strict=True)
            ]
            assert row == {"conversations": turns, "tools": ""}
        else:
            assert row == {"messages": talk}
            assert "may learn all of them" in output
    with pytest.raises(MacpoError, match="how torchtune reads such is not known here; choose trl"):
        run(source, "torchtune", tmp_path / "torchtune")


def test_columns_and_splits_are_named_as_in_check(tmp_path: Path) -> None:
    for split, count in (("train_prefs", 2), ("train_sft", 1)):
        rows = [{"q": f"Ask {i}", "good": "Good", "bad": "Bad"} for i in range(count)]
        (tmp_path / "in").mkdir(exist_ok=True)
        lines(tmp_path / "in" / f"{split}.jsonl", rows)
    named = ("--columns", "prompt=q,chosen=good,rejected=bad")
    with pytest.raises(MacpoError, match="--split train_prefs, train_sft"):
        run(tmp_path / "in", "trl", tmp_path / "out", *named)
    assert not (tmp_path / "out").exists()
    run(tmp_path / "in", "trl", tmp_path / "out", *named, "--split", "train_sft")
    assert len(read(tmp_path / "out/train.jsonl")) == 1


def mistakes() -> Iterator[tuple[list[Record], str, str]]:
    yield [PLAIN], "axolotll", r"no trainer 'axolotll' \(did you mean axolotl\?\); choose trl"
    yield [{"prompt": "Ask"}], "trl", "nothing that a trainer learns from"
    yield [{**PLAIN, "images": ["a.png"]}], "trl", r"no row can be written for trl: row 0: .*images"
    yield [], "trl", "holds no row"


@pytest.mark.parametrize(("rows", "trainer", "why"), mistakes())
def test_a_mistake_is_one_line_and_leaves_nothing(
    rows: list[Record], trainer: str, why: str, tmp_path: Path
) -> None:
    source = lines(tmp_path / "in.jsonl", rows)
    with pytest.raises(MacpoError, match=why) as caught:
        run(source, trainer, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    source = lines(tmp_path / "in.jsonl", [PLAIN])
    (tmp_path / "empty").mkdir()
    run(source, "trl", tmp_path / "empty")
    before = (tmp_path / "empty/train.jsonl").read_bytes()
    for to in ("empty", "in.jsonl"):
        with pytest.raises(MacpoError, match="choose another"):
            run(source, "openai", tmp_path / to)
    assert (tmp_path / "empty/train.jsonl").read_bytes() == before
    # A file that breaks off amid its rows leaves no folder.
    source.write_text(f"{json.dumps(PLAIN)}\n" * 3000 + '{"prompt": ')
    with pytest.raises(MacpoError, match="cut off"):
        run(source, "trl", tmp_path / "cut")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["empty", "in.jsonl"]


def test_check_ends_with_the_command(tmp_path: Path) -> None:
    """For whoever cannot read the data; the command is run as it stands there."""
    rows = [{"q": "Ask", "good": "Good", "bad": "Bad"}]
    source = lines(tmp_path / "my pairs.jsonl", rows)
    named = ["--columns", "prompt=q,chosen=good,rejected=bad"]
    check = ["check", str(source), *named]
    asked = CliRunner().invoke(app, [*check, "--for", "open-instruct"])
    (line,) = asked.output.splitlines()[-1:]
    who, _, command = line.partition(": ")
    assert asked.exit_code == 1 and who == "for open-instruct"
    words = shlex.split(command.replace("DIR", str(tmp_path / "out")))
    assert CliRunner().invoke(app, words[1:]).exit_code == 0
    assert "chosen" in read(tmp_path / "out/train.jsonl")[0]
    last = CliRunner().invoke(app, check).output.splitlines()[-1]
    assert re.fullmatch(r"for .*openai.*: macpo convert .* --for TRAINER --to DIR", last)
    # Nothing is offered where there is nothing to write.
    prompts = lines(tmp_path / "prompts.jsonl", [{"prompt": "Ask"}])
    assert "macpo convert" not in CliRunner().invoke(app, ["check", str(prompts)]).output


def test_its_help_names_every_trainer() -> None:
    output = " ".join(CliRunner().invoke(app, ["convert", "--help"]).output.split())
    words = re.sub(r"[│ ]+", " ", output)
    assert "macpo convert pairs.csv" in words
    assert all(re.search(rf"(?<![\w-]){name}: ", words) for name in TARGETS)


def test_reasons_have_words() -> None:
    from macpo_data.sources.ingest.canonical import WORDS

    assert set(WORDS) == set(Reason)
