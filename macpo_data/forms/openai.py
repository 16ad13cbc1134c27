"""OpenAI's fine-tuning by preferences, and the services that take its form."""

from __future__ import annotations

from typing import Any

from macpo_data.forms.shape import Shape
from macpo_data.forms.trainer import (
    ANY_ROLE,
    SEVERAL,
    TOOLS,
    WANTS_CONVERSATIONS,
    Answer,
    Form,
    Trainer,
    Use,
)
from macpo_data.sources.ingest.canonical import Message, Reason, Row, as_json
from macpo_data.sources.ingest.json_text import Record

# It refuses a message that has other keys.
KEYS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "weight"})
TAKES = frozenset({Reason.TOOL_CALL, Reason.TOOL_RESULT}) | SEVERAL | TOOLS
START = """\
from openai import OpenAI

client = OpenAI()
file = client.files.create(file=open({{ file }}, "rb"), purpose="fine-tune")
"""


def _messages(messages: list[Message] | None) -> list[Message]:
    """Messages with the keys that it knows; the arguments of calls are JSON text."""
    known = [{k: v for k, v in m.items() if k in KEYS} for m in messages or []]
    return [m | {"tool_calls": _calls(m["tool_calls"])} if "tool_calls" in m else m for m in known]


def _calls(calls: Any) -> Any:
    return [_call(call) for call in calls] if isinstance(calls, list) else calls


def _call(call: Any) -> Any:
    """A call with its arguments as JSON text, where they are values."""
    inside = call.get("function") if isinstance(call, dict) else None
    if not isinstance(inside, dict) or isinstance(inside.get("arguments", ""), str):
        return call
    return {**call, "function": {**inside, "arguments": as_json(inside["arguments"])}}


def _tools(row: Row) -> Record:
    return {"tools": row.tools} if row.tools else {}


PREFERENCE = Form(
    record=lambda row: {
        "input": {"messages": _messages(row.prompt), **_tools(row)},
        "preferred_output": _messages(row.chosen),
        "non_preferred_output": _messages(row.rejected),
    }
)
CHAT = Form(
    record=lambda row: {
        "messages": _messages([*row.prompt, *(row.chosen or [])]),
        **_tools(row),
    },
    joins=True,
)


def _reads(shape: Shape) -> Answer:
    if {"input", "preferred_output", "non_preferred_output"} <= shape.kinds.keys():
        return True, 'method: {"type": "dpo"}'
    return False, "wants input.messages, preferred_output and non_preferred_output"


def _fine_tunes(shape: Shape) -> Answer:
    return shape.kinds.get("messages") == "messages", WANTS_CONVERSATIONS


TRAINER = Trainer(
    "openai",
    "OpenAI",
    Use(
        PREFERENCE,
        START
        + """\
dpo = {"hyperparameters": {"beta": {{ beta }}}}
client.fine_tuning.jobs.create(
    training_file=file.id, model="MODEL", method={"type": "dpo", "dpo": dpo}
)""",
        _reads,
        takes=TAKES,
        keys=KEYS,
        roles=ANY_ROLE,
        answer_roles=frozenset({"assistant", "tool"}),
        snippet_file="start.py",
    ),
    Use(
        CHAT,
        START + 'client.fine_tuning.jobs.create(training_file=file.id, model="MODEL")',
        _fine_tunes,
        takes=TAKES,
        keys=KEYS,
        roles=ANY_ROLE,
        snippet_file="start.py",
    ),
)
