"""Calls of tools as name and arguments, for trainers that have a turn of its own for each."""

from __future__ import annotations

from typing import Any

from macpo_data.outside import OutsideError, parse_json
from macpo_data.sources.ingest.canonical import Message, Reason, Refusal
from macpo_data.sources.ingest.json_text import Record


def calls(message: Message) -> list[Record]:
    """The calls of a message as {name, arguments}, the arguments as values; none of most messages.

    Raises:
        Refusal: one of them has no name, or its arguments are no JSON object.
    """
    whole = message.get("tool_calls") or message.get("function_call") or []
    return [_named(call) for call in (whole if isinstance(whole, list) else [whole])]


def _named(call: Any) -> Record:
    inside = call.get("function", call) if isinstance(call, dict) else None
    name = inside.get("name") if isinstance(inside, dict) else None
    if not isinstance(inside, dict) or not isinstance(name, str):
        raise Refusal(Reason.TOOL_CALL, "a call of a tool has no name")
    arguments = inside.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments)
        except OutsideError:
            arguments = None
    if not isinstance(arguments, dict):
        raise Refusal(Reason.TOOL_CALL, f"the arguments of a call of {name} are no JSON object")
    return {"name": name, "arguments": arguments}
