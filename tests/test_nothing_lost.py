"""Every leaf of a row is in what is trained of it, in the account, or the row is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import shared
from hypothesis import given, settings
from hypothesis import strategies as st

from macpo_data.errors import DataError, ModelError
from macpo_data.models.chat import Chat
from macpo_data.models.templates import TEMPLATES
from macpo_data.recipe.data import Columns
from macpo_data.recipe.training import Train
from macpo_data.schema import THOUGHT_KEYS
from macpo_data.sources.ingest.canonical import BEYOND_TEXT, TRAINABLE
from macpo_data.sources.ingest.door import frame, open_rows
from macpo_data.sources.ingest.splits import Source
from macpo_train.encode import encode

Draw = st.DrawFn
ROLES = ("system", "user", "assistant", "tool", "developer")
KEYS = ("name", "mood", "tool_calls", "tool_call_id", "reasoning_content", "images", "weight")
BESIDE = ("system", "tools", "images", "history", "input", "note", "score", "source", "meta")


class Leaves:
    """Texts that stand nowhere else, so that each can be looked for."""

    def __init__(self) -> None:
        self.count = 0

    def new(self) -> str:
        self.count += 1
        return f"leaf{self.count:04d}x"


@st.composite
def value(draw: Draw, leaves: Leaves) -> Any:
    match draw(st.sampled_from(["text", "list", "dict", "none", "calls"])):
        case "text":
            return leaves.new()
        case "list":
            return [leaves.new() for _ in range(draw(st.integers(0, 2)))]
        case "dict":
            return {"a": leaves.new(), "b": [{"c": leaves.new()}]}
        case "calls":
            return [{"type": "function", "function": {"name": leaves.new(), "arguments": {}}}]
    return None


@st.composite
def content(draw: Draw, leaves: Leaves) -> Any:
    match draw(st.sampled_from(["text", "text", "text", "parts", "image", "empty", "none"])):
        case "text":
            return f" {leaves.new()} "
        case "parts":
            return [{"type": "text", "text": leaves.new()}, {"type": "text", "text": leaves.new()}]
        case "image":
            return [{"type": "image", "url": leaves.new()}, {"type": "text", "text": leaves.new()}]
        case "empty":
            return ""
    return None


@st.composite
def message(draw: Draw, leaves: Leaves, tagged: bool, role: str | None = None) -> dict[str, Any]:
    who = role or draw(st.sampled_from(ROLES))
    extra = draw(st.lists(st.sampled_from(KEYS), max_size=2, unique=True))
    more = {key: draw(value(leaves)) for key in extra}
    if tagged:
        names = {"user": "human", "assistant": "gpt", "tool": "observation"}
        return {"from": names.get(who, who), "value": leaves.new(), **more}
    return {"role": who, "content": draw(content(leaves)), **more}


@st.composite
def side(draw: Draw, leaves: Leaves, lead: list[Any], kind: str) -> Any:
    """An answer: text, a message, messages, HH's text, with or without what leads to it."""
    if kind == "text":
        return leaves.new()
    tagged = kind == "tagged"
    roles = draw(st.sampled_from([["assistant"]] * 4 + [["assistant", "tool", "assistant"],
                                 ["assistant", "user", "assistant"], ["user"], []]))  # fmt: skip
    turns = [draw(message(leaves, tagged, role)) for role in roles]
    if kind == "message" and turns:
        return turns[0]
    whole = [*lead, *turns] if draw(st.booleans()) else turns
    return json.dumps(whole) if kind == "spelt" else whole


@st.composite
def record(draw: Draw) -> dict[str, Any]:
    """A row of one of many forms, and things beside it."""
    leaves = Leaves()
    kind = draw(st.sampled_from(["text", "messages", "message", "tagged", "spelt"]))
    tagged = kind == "tagged"
    lead = [draw(message(leaves, tagged, role)) for role in draw(st.sampled_from(
        [["user"], ["system", "user"], ["user", "assistant", "user"], []]))]  # fmt: skip
    prompt = leaves.new() if kind == "text" else json.dumps(lead) if kind == "spelt" else lead
    one, two = draw(side(leaves, lead, kind)), draw(side(leaves, lead, kind))
    whole = {"messages": lead, "tools": draw(value(leaves)), "parallel_tool_calls": leaves.new()}
    row: dict[str, Any] = draw(st.sampled_from([
        {"prompt": prompt, "chosen": one, "rejected": two},
        {"chosen": one, "rejected": two},
        {"conversations": prompt, "chosen": one, "rejected": two},
        {"instruction": prompt, "chosen": one, "rejected": two},
        {"query": prompt, "response": one, "rejected_response": two},
        {"messages": one, "rejected_response": two},
        {"messages": one, "rejected_messages": two},
        {"input": whole, "preferred_output": one, "non_preferred_output": two},
        {"prompt": prompt, "completion": one},
        {"messages": one},
        {"prompt": prompt},
        {"context": lead, "completions": [
            {"rank": n, "completion": each, "by": leaves.new()} for n, each in enumerate(
                [one, two, leaves.new()])]},
        {"chosen": f"\n\nHuman: {leaves.new()}\n\nAssistant: {leaves.new()}",
         "rejected": f"\n\nHuman: {leaves.new()}\n\nAssistant: {leaves.new()}"},
    ]))  # fmt: skip
    beside = draw(st.lists(st.sampled_from(BESIDE), max_size=3, unique=True))
    return {**{name: draw(value(leaves)) for name in beside}, **row}


def texts(value: Any) -> Iterator[str]:
    """The leaves in a value, those in JSON text as well."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    elif isinstance(value, str):
        for word in value.replace('"', " ").split():
            if word.startswith("leaf"):
                yield word[:9]


def unaccounted(row: dict[str, Any], takes: frozenset[Any]) -> set[str]:
    """The leaves of a row that is used, and that nothing speaks of."""
    try:
        rows = open_rows(Source("x", iter([[row]])), Columns(), takes=takes)
        (judged,) = rows
    except DataError:
        return set()
    if judged.reason is not None:
        assert rows.account.refused[judged.reason].count == 1
        return set()
    assert judged.row
    named = rows.account.unread_columns
    lost = set()
    whole = judged.row.as_json()
    for name, value in row.items():
        if name not in named:
            inner = (f"{name}.", f"{name} between")
            partly = any(key.startswith(inner) for key in named)
            lost |= {leaf for leaf in texts(value) if leaf not in whole and not partly}
    if not takes:
        # What is written for the trainer is role and content: other keys are named.
        kept = json.dumps([[m["role"], m["content"]] for m in judged.row.messages])
        keys = {key for m in judged.row.messages for key in m} - {"role", "content"}
        assert keys <= rows.account.unread_keys.keys()
        assert all(isinstance(m["content"], str) for m in judged.row.messages), kept
    return lost


def untrained(row: dict[str, Any], chat: Chat) -> set[str]:
    """The leaves of a row that is trained, which neither its text nor the account has."""
    try:
        rows = open_rows(Source("x", iter([[row]])), Columns(), takes=TRAINABLE)
        table = frame(iter(rows))
    except DataError:
        return set()
    if table["reason"][0] is not None or table["chosen"][0] is None:
        return set()
    sides = [side for side in ("chosen", "rejected") if table[side][0] is not None]
    try:
        data = encode(table, chat, sides, Train(max_length=100_000))
    except (DataError, ModelError):
        return set()  # of one row: both sides are the same, or the template does not write it
    text = "".join(chat.tokenizer.decode([*data.prompts[0], *data.responses[s][0]]) for s in sides)
    account = rows.account
    named = account.unread_columns
    (judged,) = open_rows(Source("x", iter([[row]])), Columns(), takes=TRAINABLE)
    assert judged.row
    may_miss = [m[key] for m in judged.row.messages for key in account.unread_keys if key in m]
    if data.without_thoughts:
        may_miss += [m.get(key) for m in judged.row.prompt for key in THOUGHT_KEYS]
    excused = set(texts(may_miss))
    lost = set()
    for name, value in row.items():
        inner = (f"{name}.", f"{name} between")
        if name not in named and not any(key.startswith(inner) for key in named):
            lost |= {leaf for leaf in texts(value) if leaf not in text} - excused
    return lost


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared("tokenizers/gpt2"))


ALL = """{{ tools | tojson }}{% for m in messages %}<<{{ m.role }}:
{%- if m.role == 'assistant' %}{{ m.content }}{% for k, v in m.items() if k != 'content' %}{{ k }}
{{- v | tojson }}{% endfor %}{% else %}{{ m | tojson }}{% endif %}>>{% endfor %}
{%- if add_generation_prompt %}<<assistant:{% endif %}"""


@pytest.mark.parametrize("template", [ALL, TEMPLATES["chatml"]], ids=["all", "chatml"])
def test_no_leaf_is_lost_in_the_trained_text(template: str, tokenizer: Any) -> None:
    """By a template that writes all there is, and by one that writes role and content alone."""
    chat = Chat(tokenizer, template)

    @settings(max_examples=100, deadline=None)
    @given(record())
    def holds(row: dict[str, Any]) -> None:
        assert untrained(row, chat) == set()

    holds()


@settings(max_examples=200, deadline=None)
@given(record())
def test_no_leaf_is_lost_where_all_is_taken(row: dict[str, Any]) -> None:
    assert unaccounted(row, BEYOND_TEXT) == set()


@settings(max_examples=200, deadline=None)
@given(record())
def test_no_leaf_is_lost_where_text_alone_is_taken(row: dict[str, Any]) -> None:
    assert unaccounted(row, frozenset()) == set()
