"""ms-swift: a conversation that ends in the better answer, and one that ends in the worse one."""

from __future__ import annotations

from collections.abc import Iterator

from macpo_data.forms.calls import calls
from macpo_data.forms.shape import Shape
from macpo_data.forms.trainer import (
    CALLS,
    COMMAND,
    SEVERAL,
    TOOLS,
    WANTS_CONVERSATIONS,
    Answer,
    Form,
    Trainer,
    Use,
    with_tools,
)
from macpo_data.sources.ingest.canonical import Message, Reason, as_json

_BOTH_TOOLS = ("tools", "rejected_tools")


def _turns(messages: list[Message]) -> list[Message]:
    """Messages with its roles: each call of a tool is a turn of its own, and each result."""
    return [turn for message in messages for turn in _of(message)]


def _of(message: Message) -> Iterator[Message]:
    role, content, listed = message["role"], message["content"], calls(message)
    if content or not listed:
        yield {"role": "tool_response" if role == "tool" else role, "content": content}
    yield from ({"role": "tool_call", "content": as_json(call)} for call in listed)


# In place of a `rejected_response`, which replaces all that follows the last turn of the user, a
# call and its result as well. All rows have the same columns: it drops those that lack one. Beside
# `rejected_messages` it takes no tools for the rejected side but those of their own column.
REJECTED_MESSAGES = Form(
    record=lambda row: {
        "messages": _turns([*row.prompt, *(row.chosen or [])]),
        "rejected_messages": _turns([*row.prompt, *(row.rejected or [])]),
        **({name: as_json(row.tools) for name in _BOTH_TOOLS} if row.tools else {}),
    }
)
TALKS = Form(
    record=lambda row: with_tools({"messages": _turns([*row.prompt, *(row.chosen or [])])}, row),
    joins=True,
)
TOOLED = frozenset({Reason.TOOL_CALL, Reason.TOOL_RESULT}) | TOOLS
_PAIRS = (
    {"messages", "rejected_response"},
    {"messages", "rejected_messages"},
    {"query", "response", "rejected_response"},
)


def _reads(shape: Shape) -> Answer:
    there = next((names for names in _PAIRS if names <= shape.kinds.keys()), None)
    if there:
        return True, f"swift rlhf, the columns {', '.join(sorted(there))}"
    return False, "wants messages and rejected_response, or query, response and rejected_response"


def _fine_tunes(shape: Shape) -> Answer:
    return ("messages" in shape.kinds), WANTS_CONVERSATIONS


TRAINER = Trainer(
    "ms-swift",
    "ms-swift",
    Use(
        REJECTED_MESSAGES,
        "swift rlhf --rlhf_type dpo --dataset {{ file }} --beta {{ beta }} --rpo_alpha {{ gamma }} "
        "--model BASE --output_dir DIR",
        _reads,
        takes=TOOLED,
        keys=CALLS,
        calls_whole=False,
        snippet_file=COMMAND,
    ),
    Use(
        TALKS,
        "swift sft --dataset {{ file }} --model BASE --output_dir DIR",
        _fine_tunes,
        takes=TOOLED | SEVERAL,
        keys=CALLS,
        calls_whole=False,
        snippet_file=COMMAND,
    ),
)
