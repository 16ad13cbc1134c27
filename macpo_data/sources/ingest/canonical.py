"""The canonical row: a prompt and its answers as whole messages, and what may be wrong with it.

A message keeps every field that it came with. What a trainer of plain text cannot say of a row is
told by `holds`, so that nobody shortens it in silence.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from macpo_data import schema

# role and content, and whatever else it came with: tool_calls, name, reasoning_content, ...
Message = dict[str, Any]


class Reason(StrEnum):
    """Why a row cannot be used. Its value is what manifests count it under."""

    PROMPT_DIFFERS = "prompt_differs"
    SYSTEM_DIFFERS = "system_differs"
    EMPTY_PROMPT = "empty_prompt"
    NO_PREFERENCE = "no_preference"
    EMPTY_CHOSEN = "empty_chosen"
    EMPTY_REJECTED = "empty_rejected"
    SAME_SIDES = "same_sides"
    NOT_ALTERNATING = "not_alternating"
    NO_ANSWER = "no_answer"
    RENDERED = "rendered"
    # What the row holds beside text, where its reader takes text alone.
    TOOL_CALL = "tool_call"
    TOOL_RESULT = "tool_result"
    TOOLS = "tools"
    MEDIA = "media"
    THOUGHT = "thought"
    SEVERAL_MESSAGES = "several_messages"
    OTHER_CONTENT = "other_content"
    OTHER_ROLE = "other_role"
    # Rows that are not of their file's form; too many of them, and the form is another.
    NOT_OF_THE_FORM = "not_of_the_form"
    NO_HUMAN_TURN = "no_human_turn"


WORDS = {
    Reason.PROMPT_DIFFERS: "chosen and rejected answer different prompts",
    Reason.SYSTEM_DIFFERS: "there are two different system turns",
    Reason.EMPTY_PROMPT: "the prompt is empty, or one of its turns",
    Reason.NO_PREFERENCE: "neither side is preferred",
    Reason.EMPTY_CHOSEN: "chosen is empty, or one of its messages",
    Reason.EMPTY_REJECTED: "rejected is empty, or one of its messages",
    Reason.SAME_SIDES: "chosen and rejected are the same",
    Reason.NOT_ALTERNATING: "roles are not in order: user, assistant, ..., user, and an answer",
    Reason.NO_ANSWER: "a side is missing",
    Reason.RENDERED: "text is rendered already: it holds a chat template's marks",
    Reason.TOOL_CALL: "a message calls a tool, and text alone would lose it",
    Reason.TOOL_RESULT: "a message of the role tool, and text alone would lose it",
    Reason.TOOLS: "tools are offered, and text alone would lose them",
    Reason.MEDIA: "an image, sound or video belongs to it, and text alone would lose it",
    Reason.THOUGHT: "a message has a thought of its own, and text alone would lose it",
    Reason.SEVERAL_MESSAGES: "an answer is several messages, and one alone would lose the others",
    Reason.OTHER_CONTENT: "a content is no text",
    Reason.OTHER_ROLE: "a message has a role that is not known there",
    Reason.NOT_OF_THE_FORM: "the row is of another form than the file's other rows",
    Reason.NO_HUMAN_TURN: "the text does not begin with a Human turn",
}
# Those by which a row is of another form than its file's.
ODD = frozenset({Reason.NOT_OF_THE_FORM, Reason.NO_HUMAN_TURN})
# What a row may hold beside plain text. A reader of rows names those of these that it can say.
BEYOND_TEXT = frozenset(
    {
        Reason.TOOL_CALL,
        Reason.TOOL_RESULT,
        Reason.TOOLS,
        Reason.MEDIA,
        Reason.THOUGHT,
        Reason.SEVERAL_MESSAGES,
        Reason.OTHER_CONTENT,
    }
)
# What macpo's trainer can say of these, where the chat template does. Others are left out.
TRAINABLE = BEYOND_TEXT - {Reason.MEDIA, Reason.OTHER_CONTENT}
# Keys of messages by what they hold; each other key beside role and content is only named.
KEYS = {
    Reason.TOOL_CALL: schema.CALL_KEYS,
    Reason.THOUGHT: schema.THOUGHT_KEYS,
    Reason.MEDIA: ("images", "image", "audio", "audios", "video", "videos", "files"),
    Reason.TOOLS: ("tools", "functions"),
}
_LETTERS = {"system": "s", "developer": "s", "user": "u", "assistant": "a", "tool": "t"}
# A prompt ends where an answer belongs: behind the user, or behind a tool's result.
_PROMPT = re.compile(r"s?(u(at+)*a)*u(at+)*")


class Refusal(Exception):
    """A row that cannot be read, with the reason."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        """Keep the reason; the detail says what of this row, where the reason does not."""
        super().__init__(detail or WORDS[reason])
        self.reason, self.detail = reason, detail or WORDS[reason]


@dataclass(frozen=True, slots=True)
class Row:
    """One row in the one form."""

    prompt: list[Message]
    chosen: list[Message] | None  # None: the dataset has no such side
    rejected: list[Message] | None = None
    tools: Any = None  # JSON value: what the assistant may call
    media: Mapping[str, Any] = field(default_factory=dict)  # columns of images, sounds or videos
    unread: tuple[str, ...] = ()  # what else the record says, and this leaves out

    @property
    def sides(self) -> list[list[Message]]:
        """Its answers."""
        return [side for side in (self.chosen, self.rejected) if side is not None]

    @property
    def messages(self) -> Iterator[Message]:
        """All of its messages."""
        yield from self.prompt
        for side in self.sides:
            yield from side

    @property
    def holds(self) -> set[Reason]:
        """What it holds beside text: of BEYOND_TEXT."""
        held = {Reason.MEDIA} if self.media else set()
        if self.tools:
            held.add(Reason.TOOLS)
        if any(len(side) > 1 for side in self.sides):
            held.add(Reason.SEVERAL_MESSAGES)
        for message in self.messages:
            if message["role"] == "tool":
                held.add(Reason.TOOL_RESULT)
            if not isinstance(message["content"], str):
                held.add(_other(message["content"]))
            if len(message) > 2:
                held |= {what for what, keys in KEYS.items() if any(map(message.get, keys))}
        return held

    @property
    def prompt_id(self) -> str:
        """Identify its prompt: as `schema.prompt_id`, and by all fields where there are more."""
        if not Row(self.prompt, None).holds:
            return schema.prompt_id(self.prompt)  # type: ignore[arg-type]  # they are plain
        return hashlib.sha256(as_json(self.prompt).encode()).hexdigest()

    @property
    def whole(self) -> str | None:
        """All of it as JSON, as `schema.WHOLE` has it; None where it is text and nothing more."""
        if not self.holds and all(len(message) == 2 for message in self.messages):
            return None
        values = {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected}
        return as_json(values | {"tools": self.tools})

    def as_json(self) -> str:
        """All of it, for a person to read."""
        values = {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected}
        more = {"tools": self.tools} if self.tools else {}
        return as_json(values | more | ({"media": self.media} if self.media else {}))


def as_json(value: Any) -> str:
    """JSON of any value of a record, with text for what JSON has no word for."""
    return json.dumps(value, ensure_ascii=False, sort_keys=False, default=str)


def text(messages: list[Message] | None) -> str | None:
    """The text of an answer: of its messages' contents what is text."""
    if messages is None:
        return None
    return "\n\n".join(m["content"] for m in messages if isinstance(m["content"], str))


def _other(content: Any) -> Reason:
    """What a content is that is no text."""
    kinds = {part.get("type") for part in content if isinstance(part, dict)} if (
        isinstance(content, list)
    ) else set()  # fmt: skip
    return Reason.MEDIA if kinds - {"text", None} else Reason.OTHER_CONTENT


def _is_empty(message: Message) -> bool:
    """Whether a message says nothing: no content, and nothing of meaning beside it.

    That a tool gave nothing back is a result.
    """
    if message["content"] or message["role"] == "tool":
        return False
    return not any(message.get(key) for keys in KEYS.values() for key in keys)


def fault(row: Row) -> Reason | None:
    """The first reason for which a row is of no use, whoever reads it."""
    if not row.prompt or any(map(_is_empty, row.prompt)):
        return Reason.EMPTY_PROMPT
    for side, reason in (
        (row.chosen, Reason.EMPTY_CHOSEN),
        (row.rejected, Reason.EMPTY_REJECTED),
    ):
        if side is not None and (not side or any(map(_is_empty, side))):
            return reason
    if row.chosen is not None and row.chosen == row.rejected:
        return Reason.SAME_SIDES
    letters = "".join(_LETTERS.get(m["role"], "?") for m in row.prompt)
    ends = [side[at]["role"] for side in row.sides for at in (0, -1)]
    if not _PROMPT.fullmatch(letters) or set(ends) - {"assistant"}:
        return Reason.NOT_ALTERNATING
    return None
