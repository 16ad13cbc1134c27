"""Rows that are more than text: what is trained of them, by templates that people use.

trl brings the chat templates of many families, and of some a variant that marks what the assistant
writes; both are the measure here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import trl
from conftest import shared
from typer.testing import CliRunner

from macpo.cli import app
from macpo_data.errors import DataError, ModelError
from macpo_data.models.chat import Chat
from macpo_data.models.conversation import Unsayable, conversation_ids
from macpo_data.models.templates import make_chat
from macpo_data.recipe.training import Train
from macpo_data.schema import MESSAGES
from macpo_train.encode import encode
from macpo_train.loss import learned

Row = dict[str, Any]
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
MARK = re.compile(r"<[|\uff5c][^|<>]+[|\uff5c]>")
# Writes all that there is, with a mark for each thing.
TOOLS = """{% if tools %}<|tools|>
{%- for t in tools %}{{ t.function.name }}{% endfor %}<|end|>{% endif %}
{%- for m in messages %}<|{{ m.role }}|>
{%- if m.reasoning_content %}(({{ m.reasoning_content }})){% endif %}{{ m.content }}
{%- for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments | tojson }}]
{%- endfor %}
{%- if m.mood %}~{{ m.mood }}{% endif %}<|end|>{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""
# Writes an empty thought into an answer without one, and takes thoughts from earlier turns.
EMPTY = """{%- for m in messages %}{%- set own = m.content %}{{- '<|' + m.role + '|>' }}
{%- if m.role == 'assistant' and not loop.last %}{%- set own = own.split('</think>')[-1].lstrip() %}
{%- elif m.role == 'assistant' and '</think>' not in own %}{{ '<think>\n\n</think>\n\n' }}
{%- endif %}
{{- own + '<|end|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
# Begins a thought in the prompt, and takes it from every answer, the last one too.
BEGUN = """{%- for m in messages %}{{- '<|' + m.role + '|>' }}
{{- m.content.split('</think>')[-1].lstrip() + '<|end|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"""


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> Row:
    return {"role": "assistant", "content": text, **more}


def result(text: str) -> Row:
    return {"role": "tool", "content": text, "name": "depth", "tool_call_id": "call00001"}


def call(lake: int, *, as_text: bool = True) -> list[Row]:
    arguments = json.dumps({"lake": lake}) if as_text else {"lake": lake}
    function = {"name": "depth", "arguments": arguments}
    return [{"type": "function", "id": "call00001", "function": function}]


ASKED = [user("How deep is lake 3?")]
OFFERED = [{"type": "function", "function": {"name": "depth", "description": "Of a lake.",
            "parameters": {"type": "object", "required": ["lake"], "properties": {
                "lake": {"type": "integer", "description": "which"}}}}}]  # fmt: skip
ANSWER = [assistant("", tool_calls=call(3)), result("4 m"), assistant("It is 4 m deep.")]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """gpt2's, with the marks of turns that templates write."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared("tokenizers/gpt2"))
    texts = [path.read_text("utf-8") for path in TEMPLATES.glob("*.jinja")] + [TOOLS]
    marks = sorted({mark for text in texts for mark in MARK.findall(text)})
    more = ["<|tool|>", "<|user|>", "<|assistant|>", "<|end|>", "<|system|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": sorted({*marks, *more})})
    return tokenizer


def chat_of(tokenizer: Any, template: str) -> Chat:
    """By one of trl's templates, or by one of ours."""
    own = "{" in template
    text = template if own else (TEMPLATES / f"{template}.jinja").read_text("utf-8")
    return Chat(tokenizer, text, "ours" if own else template)


def texts(
    chat: Chat, prompt: list[Row], answer: list[Row], tools: Any = None
) -> tuple[str, list[tuple[str, bool]]]:
    """The prompt's text, and the answer's in pieces: text, and whether it is learned."""
    ids, (side,) = conversation_ids(chat, prompt, [answer], tools)
    pieces: list[tuple[str, bool]] = []
    for at, token in enumerate(side.ids):
        is_learned = at not in side.read_only
        if not pieces or pieces[-1][1] != is_learned:
            pieces.append(("", is_learned))
        pieces[-1] = (pieces[-1][0] + chat.tokenizer.decode([token]), is_learned)
    return chat.tokenizer.decode(ids), pieces


def test_calls_results_and_tools_are_in_the_text(tokenizer: Any) -> None:
    prompt, pieces = texts(chat_of(tokenizer, TOOLS), ASKED, ANSWER, OFFERED)
    assert prompt == "<|tools|>depth<|end|><|user|>How deep is lake 3?<|end|><|assistant|>"
    assert pieces == [
        ('[depth {"lake": 3}]<|end|>', True),
        ("<|tool|>4 m<|end|><|assistant|>", False),
        ("It is 4 m deep.<|end|>", True),
    ]


@pytest.mark.parametrize(
    ("more", "written"),
    [
        ({"tool_calls": call(3)}, 'Well.[depth {"lake": 3}]<|end|>'),
        ({"tool_calls": call(3, as_text=False)}, 'Well.[depth {"lake": 3}]<|end|>'),
        ({"reasoning_content": "Hm."}, "((Hm.))Well.<|end|>"),
        ({"mood": "glad"}, "Well.~glad<|end|>"),
        ({"tool_call_id": "x"}, "Well.<|end|>"),
    ],
)
def test_a_message_keeps_its_keys(tokenizer: Any, more: Row, written: str) -> None:
    _, pieces = texts(chat_of(tokenizer, TOOLS), ASKED, [assistant("Well.", **more)])
    assert pieces == [(written, True)]


def test_marks_that_somebody_spelt_stay_text(tokenizer: Any) -> None:
    chat = chat_of(tokenizer, TOOLS)
    arguments = {
        "type": "function",
        "function": {"name": "<|user|>", "arguments": {"a": "<|end|>"}},
    }
    answer = [assistant("", tool_calls=[arguments]), result("<|assistant|>"), assistant("<|end|>")]
    _, (side,) = conversation_ids(chat, ASKED, [answer])
    assert side.ids.count(chat.eot_id) == 3  # one for each message
    assert side.ids.count(tokenizer.convert_tokens_to_ids("<|assistant|>")) == 1
    assert tokenizer.convert_tokens_to_ids("<|user|>") not in side.ids


def test_a_plain_answer_has_the_ids_that_it_has_elsewhere(tokenizer: Any) -> None:
    """Of every template that can be read at all: a key that it does not know changes nothing."""
    count = 0
    for path in sorted(TEMPLATES.glob("*.jinja")):
        try:
            chat = chat_of(tokenizer, path.stem)
        except ModelError:
            continue
        prompt, (side,) = conversation_ids(chat, ASKED, [[assistant("It is.", odd="x")]])
        prompts, ((ids,),) = chat.row_ids([ASKED], [["It is."]], [[True]])
        assert (prompt, side.ids, side.read_only) == (prompts[0], ids, ()), path.stem
        count += 1
    assert count > 50


@pytest.mark.parametrize(
    ("family", "answer"),
    [
        (family, answer)
        for family in ("qwen3", "qwen2_5", "qwen3_instruct_2507", "qwen3_5_think", "llama3", "lfm2")
        for answer in ([assistant("It is.")], [assistant("It is."), assistant("Very.")])
    ]
    + [
        (family, answer)
        for family in ("qwen3", "qwen2_5", "qwen3_instruct_2507")
        for answer in (ANSWER, [assistant("I look.", tool_calls=call(3))],
                       [*ANSWER[:2], *ANSWER])
    ]
    + [("qwen3", [assistant("It is.", reasoning_content="Lakes are.")])],
)  # fmt: skip
def test_what_is_learned_is_what_the_assistant_wrote(
    tokenizer: Any, family: str, answer: list[Row]
) -> None:
    """trl's own variant of the template marks it; an empty thought is read, white space is left."""
    chat = chat_of(tokenizer, f"{family}_training")
    tools = OFFERED if answer[0].get("tool_calls") else None
    _, pieces = texts(chat, ASKED, answer, tools)
    parsed = json.loads(json.dumps([*ASKED, *answer]))
    for message in parsed:
        for each in message.get("tool_calls", []):
            each["function"]["arguments"] = {"lake": 3}
    marked = tokenizer.apply_chat_template(
        parsed, tools=tools, chat_template=chat.template, tokenize=True,
        return_assistant_tokens_mask=True, return_dict=True,
    )  # fmt: skip
    spans: list[str] = []
    before = 0
    for token, is_marked in zip(marked["input_ids"], marked["assistant_masks"], strict=True):
        if is_marked and not before:
            spans.append("")
        if is_marked:
            spans[-1] += tokenizer.decode([token])
        before = is_marked
    learned_text = "".join(text for text, is_learned in pieces if is_learned)
    assert _bare(learned_text) == _bare("".join(spans))


def _bare(text: str) -> str:
    """Without empty thoughts, which may stand in the prompt, and white space between messages."""
    return re.sub(r"\s+", "", re.sub(r"(<think>)?\s*</think>", "", text))


@pytest.mark.parametrize(
    ("template", "answer", "tools", "reason"),
    [
        ("qwen2_5", [assistant("It is.", reasoning_content="Hm.")], None,
         "does not write thoughts (reasoning_content)"),
        ("phi3", [assistant("", tool_calls=call(3))], None,
         "does not write calls of tools (tool_calls)"),
        ("phi3", [assistant("It is.")], OFFERED, "does not write the tools that are offered"),
        ("llama3_1", [assistant("I look.", tool_calls=call(3))], None,
         "does not write what the role assistant says"),
        (BEGUN, [assistant("It is.", reasoning_content="Hm.")], None,
         "does not write thoughts (reasoning_content)"),
        # Text that looks like a mark is looked for as well.
        ("llama3_1", [assistant("<p>I look.</p>", tool_calls=call(3))], None,
         "does not write what the role assistant says"),
        (BEGUN, [assistant("<think>\nHm.\n</think>\n\nIt is.", odd="x")], None,
         "does not write thoughts"),
        (TOOLS, [assistant("It is.")], ["no JSON"], "its tools are no JSON"),
    ],
)  # fmt: skip
def test_what_a_template_leaves_out_is_named(
    tokenizer: Any, template: str, answer: list[Row], tools: Any, reason: str
) -> None:
    with pytest.raises(Unsayable, match=re.escape(reason)):
        conversation_ids(chat_of(tokenizer, template), ASKED, [answer], tools)


THOUGHT = "<think>\nThree and three.\n</think>\n\nSix."


@pytest.mark.parametrize(
    ("template", "sides", "prompt", "written"),
    [
        (EMPTY, ["Six."], "<|assistant|><think>\n\n</think>\n\n", ["Six.<|end|>"]),
        (EMPTY, [THOUGHT], "<|assistant|>", [f"{THOUGHT}<|end|>"]),
        (EMPTY, [THOUGHT, "No."], "<|assistant|>",
         [f"{THOUGHT}<|end|>", "<think>\n\n</think>\n\nNo.<|end|>"]),
        (BEGUN, ["Six."], "<|assistant|><think>\n", ["\n</think>\n\nSix.<|end|>"]),
        (BEGUN, [THOUGHT, "No."], "<|assistant|><think>\n",
         ["Three and three.\n</think>\n\nSix.<|end|>", "\n</think>\n\nNo.<|end|>"]),
        ("qwen3_5_think", [THOUGHT], "<think>\n", ["Three and three.\n</think>\n\nSix.<|im_end|>"]),
        ("nemotron_3_nano", ["Six."], "<think></think>", ["Six.<|im_end|>"]),
    ],
)  # fmt: skip
def test_there_is_one_thought_and_it_is_the_answers_own(
    tokenizer: Any, template: str, sides: list[str], prompt: str, written: list[str]
) -> None:
    chat = chat_of(tokenizer, template)
    ends = [[True]] * len(sides)
    (ids,), responses = chat.row_ids([[user("Double 3.")]], [[side] for side in sides], ends)
    assert tokenizer.decode(ids).endswith(prompt)
    assert [tokenizer.decode(own) for (own,) in responses] == written
    words = "begins a thought" if template is BEGUN else "writes an empty thought"
    assert words in str(chat.thought_rule) and chat_of(tokenizer, TOOLS).thought_rule is None


def test_a_thought_that_the_prompt_began_comes_back(tokenizer: Any) -> None:
    """What is written behind a begun thought is kept as a whole one, and has the same ids again."""
    chat = chat_of(tokenizer, BEGUN)
    ids = [*tokenizer("Three.\n</think>\n\nSix.")["input_ids"], chat.eot_id]
    text = chat.decode(ids)
    assert text == "<think>\nThree.\n</think>\n\nSix."
    assert chat.response_ids(text, True) == ids


def table(rows: list[Row]) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "prompt": [{"role": m["role"], "content": m["content"]} for m in row["prompt"]],
                "chosen": "", "rejected": "", "whole": json.dumps({"tools": None} | row),
            }
            for row in rows
        ],
        schema={"prompt": MESSAGES, "chosen": pl.String, "rejected": pl.String, "whole": pl.String},
    )  # fmt: skip


def test_a_row_that_cannot_be_said_is_left_out_and_counted(tokenizer: Any) -> None:
    chat = chat_of(tokenizer, "qwen2_5")
    good = {"prompt": ASKED, "chosen": ANSWER, "rejected": [assistant("Very deep.")]}
    bad = good | {"chosen": [assistant("It is.", reasoning_content="Hm.")]}
    data = encode(table([good, bad, good]), chat, ["chosen", "rejected"], Train())
    assert (data.rows, data.cut, data.dropped, data.same) == ([0, 2], 0, 0, 0)
    reason = "the chat template does not write thoughts (reasoning_content)"
    assert data.unsayable == {reason: 1} and list(data.account()) == [
        f"1 rows are left out: {reason}"
    ]
    with pytest.raises(DataError, match=r"no row can be trained: .*thoughts .*\(2 rows\)"):
        encode(table([bad, bad]), chat, ["chosen"], Train())


def test_pairs_that_are_the_same_after_the_cut_are_left_out(tokenizer: Any) -> None:
    chat = make_chat(tokenizer, "alpaca", "gpt2")
    rows = {
        "prompt": [[user("Count.")]] * 3,
        "chosen": ["one two three four", "one two three", "a"],
        "rejected": ["one two three five", "b", "one two three"],
    }
    room = len(chat.prompt_ids([user("Count.")])) + 3
    settings = Train(max_length=room, max_truncated=1, truncation="keep_start")
    data = encode(pl.DataFrame(rows), chat, ["chosen", "rejected"], settings)
    assert (data.rows, data.same) == ([1, 2], 1)
    assert "1 pairs are left out: their sides are the same, as written and cut" in list(
        data.account()
    )


def test_a_cut_answer_keeps_the_places_that_are_left(tokenizer: Any) -> None:
    chat = chat_of(tokenizer, TOOLS)
    prompt, (side,) = conversation_ids(chat, ASKED, [ANSWER])
    row = {"prompt": ASKED, "chosen": ANSWER}
    size = len(prompt) + side.read_only[1] + 1
    cut = Train(max_length=size, max_truncated=1, truncation="keep_start")
    data = encode(table([row]), chat, ["chosen"], cut)
    assert data.read_only == {"chosen": [side.read_only[:2]]}


def test_what_is_read_only_carries_no_loss() -> None:
    """Right-aligned: the second response has two tokens, in the last two columns."""
    mask = torch.tensor([[True, True, True], [False, True, True]])
    logprobs = torch.tensor([[-1.0, -2.0, -4.0], [0.0, -8.0, -16.0]])
    values, left = learned(logprobs, mask, [(1,), (0,)])
    assert values.tolist() == [[-1, 0, -4], [0, 0, -16]]
    assert left.tolist() == [[True, False, True], [False, False, True]]
    assert learned(logprobs, mask, [(), ()]) == (logprobs, mask)


@pytest.mark.slow
def test_training_on_calls(tiny_base: Path, tmp_path: Path) -> None:
    """Through the command line; the first log-probabilities are those of the learned tokens."""
    from macpo_data.models.base import Base, load_model, load_tokenizer
    from macpo_data.models.logprobs import response_logprobs

    row = {
        "prompt": ASKED,
        "chosen": ANSWER,
        "rejected": [assistant("Very deep.")],
        "tools": OFFERED,
    }
    template = TOOLS.replace("<|end|>", "<|im_end|>")  # which the tokenizer has
    (tmp_path / "calls.jsonl").write_text(f"{json.dumps(row)}\n" * 2, "utf-8")
    (tmp_path / "tools.jinja").write_text(template, "utf-8")
    sets = [f"chat_template={tmp_path / 'tools.jinja'}", "dpo.batch_size=2", "dpo.epochs=1",
            "train.dtype=float32"]  # fmt: skip
    options = [word for each in sets for word in ("--set", each)]
    words = ["train", "--dataset", tmp_path / "calls.jsonl", "--base", tiny_base,
             "--out", tmp_path / "out", *options]  # fmt: skip
    ran = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    facts = json.loads((tmp_path / "out/manifest.json").read_text("utf-8"))
    base = Base(str(tiny_base), None)
    chat = Chat(load_tokenizer(base), template)
    prompt, (chosen,) = conversation_ids(chat, ASKED, [ANSWER], OFFERED)
    assert chosen.read_only
    with torch.no_grad():
        values, _ = response_logprobs(load_model(base, "float32"), [prompt], [chosen.ids], 0)
    wanted = sum(v for at, v in enumerate(values[0].tolist()) if at not in chosen.read_only)
    assert facts["history"][0]["chosen_logprob"] == pytest.approx(wanted, abs=1e-3)
