"""Values of columns as messages, in each of the ways in which people write conversations."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from macpo_data.outside import OutsideError, parse_json
from macpo_data.sources.ingest.canonical import KEYS, Message, Reason, Refusal

_ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
_CALLS = ("function_call", "tool_call")  # turns of LLaMA-Factory and of ms-swift
_MEANING = frozenset(key for keys in KEYS.values() for key in keys)
_HUMAN = re.compile(r"\s*Human:")
_TURN = re.compile(r"\n\n(Human|Assistant):")


class Kind(StrEnum):
    """What a column holds."""

    TEXT = "text"
    MESSAGES = "messages"  # a list of {role, content}
    MESSAGE = "message"  # one such
    TAGGED = "tagged"  # one or more {from, value}
    SPELT = "spelt"  # text that is JSON of messages
    OTHER = "other"
    MISSING = "missing"


READABLE = frozenset({Kind.TEXT, Kind.MESSAGES, Kind.MESSAGE, Kind.TAGGED, Kind.SPELT})


def kind(value: Any) -> Kind | None:
    """What a value is; None where it is nothing, which may stand in any column."""
    if value is None or value == [] or value == "":
        return None
    if isinstance(value, str):
        return Kind.SPELT if spelt(value) is not None else Kind.TEXT
    inner = [value] if isinstance(value, dict) else value
    if not isinstance(inner, list) or not all(isinstance(each, dict) for each in inner):
        return Kind.OTHER
    if all("role" in each for each in inner):
        return Kind.MESSAGE if isinstance(value, dict) else Kind.MESSAGES
    return Kind.TAGGED if all({"from", "value"} <= each.keys() for each in inner) else Kind.OTHER


def kind_of(values: Iterable[Any]) -> Kind:
    """What most values of a column are."""
    counts = Counter(each for value in values if (each := kind(value)) is not None)
    return counts.most_common(1)[0][0] if counts else Kind.MISSING


def spelt(text: str) -> Any:
    """Messages, or one, of a text that is their JSON; None of any other text."""
    if text[:1] not in ("[", "{") or text[-1:] not in ("]", "}"):
        return None
    try:
        value = parse_json(text)
    except OutsideError:
        return None
    inner = [value] if isinstance(value, dict) else value
    if not inner or not all(isinstance(each, dict) for each in inner):
        return None
    return value if all(map(_is_turn, inner)) else None


def _is_turn(value: dict[str, Any]) -> bool:
    """Whether it is a message, and not data of an answer that happens to be JSON."""
    if {"role", "content"} <= value.keys():
        return value["role"] in ("system", "developer", "user", "assistant", "tool")
    return {"from", "value"} <= value.keys() and isinstance(value["from"], str)


def messages(value: Any, column: str, wanted: Kind, role: str, *, strip: bool) -> list[Message]:
    """A value as messages.

    Args:
        value: of a record.
        column: its name, for the reason.
        wanted: what the column's other values are.
        role: of the one message that a text is.
        strip: without white space around contents.

    Raises:
        Refusal: the value is none, or of another kind than the column's others.
    """
    if value is None or value == []:
        return []
    own = kind(value) or Kind.TEXT
    if Kind.SPELT in (own, wanted) and own != wanted:
        own = Kind.TEXT if wanted == Kind.TEXT else own  # text that happens to be JSON stays text
    if own not in READABLE:
        raise Refusal(Reason.NOT_OF_THE_FORM, f"column {column} is {_words(value)}")
    mixed = own != wanted and {own, wanted} & {Kind.TEXT, Kind.SPELT}
    if mixed and wanted != Kind.MISSING and value != "":
        raise Refusal(Reason.NOT_OF_THE_FORM, f"column {column} mixes text and message lists")
    if own == Kind.TEXT:
        return [{"role": role, "content": value.strip() if strip else value}]
    listed = spelt(value) if own == Kind.SPELT else value
    turns = listed if isinstance(listed, list) else [listed]
    read: list[Message] = []
    for turn in turns:
        message = _message(turn, column, strip)
        if (
            read
            and read[-1]["role"] == "assistant"
            and turn.get("role", turn.get("from")) in _CALLS
        ):
            # What it says, or calls beside, is the same message.
            read[-1]["tool_calls"] = [*read[-1].get("tool_calls", []), *message["tool_calls"]]
        else:
            read.append(message)
    return read


def _message(turn: dict[str, Any], column: str, strip: bool) -> Message:
    """One message, by the usual names of its keys; what is null or empty is not there."""
    turn = {k: v for k, v in turn.items() if v or (v is not None and k not in _MEANING)}
    role = turn.pop("role", None)
    if role is None and "from" in turn:
        speaker = turn.pop("from")
        role = _ROLES.get(speaker, speaker) if isinstance(speaker, str) else None
        turn["content"] = turn.pop("value", "")
    if not isinstance(role, str):
        raise Refusal(Reason.NOT_OF_THE_FORM, f"a message in column {column} has no role")
    if role in _CALLS:
        return _call(turn, column)
    role = "tool" if role == "tool_response" else role
    content = _content(turn.pop("content", ""))
    if strip and isinstance(content, str):
        content = content.strip()
    return {"role": role, "content": content, **turn}


def _content(content: Any) -> Any:
    """A content; parts that are text, and nothing else, become one."""
    if not isinstance(content, list):
        return content
    parts = [{"text": part} if isinstance(part, str) else part for part in content]
    if not all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in parts):
        return content
    if any(p.keys() - {"type", "text"} or p.get("type", "text") != "text" for p in parts):
        return content
    return "".join(part["text"] for part in parts)


def _call(turn: dict[str, Any], column: str) -> Message:
    """A turn that is a call, whose content is JSON of one call or several."""
    try:
        value = parse_json(str(turn.pop("content", "")))
    except OutsideError:
        value = None
    calls = value if isinstance(value, list) else [value]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        raise Refusal(Reason.NOT_OF_THE_FORM, f"a call in column {column} is no JSON of a call")
    listed = [{"type": "function", "function": call} for call in calls]
    return {"role": "assistant", "content": "", "tool_calls": listed, **turn}


def is_dialogue(text: Any) -> bool:
    """Whether a text begins as HH's do."""
    return isinstance(text, str) and _HUMAN.match(text) is not None


def dialogue(text: str) -> list[Message]:
    """Take HH's "Human: ... Assistant: ..." text apart.

    Raises:
        Refusal: it does not begin with a turn of either.
    """
    before, *turns = _TURN.split("\n\n" + text.lstrip())
    if before.strip():
        raise Refusal(Reason.NO_HUMAN_TURN)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[who], "content": text.strip()}
        for who, text in zip(turns[::2], turns[1::2], strict=True)
    ]


def _words(value: Any) -> str:
    """What a value is that is neither text nor messages."""
    if isinstance(value, bool):
        return "true or false, no text"
    if isinstance(value, int | float):
        return "a number, no text"
    return "neither text nor messages; it must be text or a list of {role, content}"
