"""Text that a chat template has rendered already, told by the marks of the best-known templates."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from macpo_data.sources.ingest.canonical import Row


@dataclass(frozen=True)
class Marks:
    """How a template begins and ends turns."""

    name: str
    begins: str  # pattern of what opens a turn, or a text
    assistant: str  # pattern of what stands before an answer
    ends: str  # pattern of what closes a turn


def _m(name: str, begins: str, assistant: str, ends: str) -> Marks:
    return Marks(name, begins, assistant, ends)


TEMPLATES = (
    _m("ChatML", r"<\|im_start\|>", r"<\|im_start\|>assistant\n", r"<\|im_end\|>"),
    _m("Llama 3", r"<\|begin_of_text\|>|<\|start_header_id\|>",
       r"<\|start_header_id\|>assistant<\|end_header_id\|>\n\n", r"<\|eot_id\|>|<\|end_of_text\|>"),
    _m("Llama 2 and Mistral", r"(<s>)?\s*\[INST\]", r"\[/INST\] ?", r"\[/INST\]|</s>"),
    _m("Gemma", r"(<bos>)?<start_of_turn>", r"<start_of_turn>model\n", r"<end_of_turn>"),
    _m("Phi and Zephyr", r"<\|(user|system|assistant)\|>\s", r"<\|assistant\|>\n?",
       r"<\|end\|>|<\|endoftext\|>"),
    _m("Command R", r"(<BOS_TOKEN>)?<\|START_OF_TURN_TOKEN\|>",
       r"<\|START_OF_TURN_TOKEN\|><\|CHATBOT_TOKEN\|>", r"<\|END_OF_TURN_TOKEN\|>"),
    # DeepSeek writes its marks with the wide bar and the low block.
    _m("DeepSeek", "<\uff5c(begin\u2581of\u2581sentence|User)\uff5c>", "<\uff5cAssistant\uff5c>",
       "<\uff5cend\u2581of\u2581sentence\uff5c>"),
    _m("Harmony", r"<\|start\|>(system|developer|user|assistant)",
       r"<\|start\|>assistant(<\|channel\|>\w+)?<\|message\|>", r"<\|return\|>"),
    _m("Alpaca", r"(Below is an instruction[^\n]*\n+)?### (Instruction|Input):",
       r"### Response:\n?", r"### Response:"),
    _m("HH-RLHF", r"Human:(?=.*\n\nAssistant:)", r"\n\nAssistant: ?", r"\n\nAssistant:"),
    _m("Vicuna", r"(A chat between[^\n]*? )?USER: (?=.*ASSISTANT:)", r"ASSISTANT: ?",
       r"\bASSISTANT:"),
)  # fmt: skip
_BEGINS = [re.compile(rf"\s*({m.begins})", re.DOTALL) for m in TEMPLATES]
_ENDS = [re.compile(rf"({m.ends})\s*\Z") for m in TEMPLATES]
_PATTERNS = list(zip(TEMPLATES, _BEGINS, _ENDS, strict=True))
# With what a mark may begin and end: most texts are done with after one look.
_FIRST, _LAST = frozenset("<[#BUAH"), frozenset(">]:")
_ANSWER = [re.compile(m.assistant) for m in TEMPLATES]
_TAIL = 40  # characters within which a text's last mark ends
# HTML knows a mark of Llama 2 as the end of what is struck out.
_STRUCK = re.compile(r".<s>", re.DOTALL)


def template(text: str, tokens: Collection[str] = ()) -> str | None:
    r"""The template whose marks a text begins or ends with; None of what only mentions one.

    Args:
        text: a prompt or an answer.
        tokens: the special tokens of a tokenizer, which count as marks as well.

    >>> template("<|im_start|>user\nHello<|im_end|>")
    'ChatML'
    >>> template("What does <|im_end|> mean?")
    """
    stripped = text.strip()
    tail = stripped[-_TAIL:]
    marked = stripped[:1] in _FIRST or stripped[-1:] in _LAST
    for marks, begins, ends in _PATTERNS if marked else ():
        if begins.match(stripped):
            return marks.name
        if ends.search(tail) and not (tail.endswith("</s>") and _STRUCK.search(stripped)):
            return marks.name
    for token in tokens:
        if stripped.startswith(token) or stripped.endswith(token):
            return f"the tokenizer ({token})"
    return None


def rendered(row: Row, tokens: Collection[str] = ()) -> str | None:
    """The template that a row's text was rendered by; None where none was."""
    for text in _texts(row):
        if name := template(text, tokens):
            return name
    return None


def mentions(row: Row) -> bool:
    """Whether a mark stands amid the text of a row."""
    return any("<" in text and _ANY.search(text) for text in _texts(row))


def answer_start(text: str) -> int | None:
    """Where the last answer of a rendered conversation begins; None where no mark says so."""
    ends = [m.end() for pattern in _ANSWER for m in pattern.finditer(text)]
    return max(ends, default=None)


_ANY = re.compile(r"<\|im_(start|end)\|>|<\|(eot_id|start_header_id)\|>|<(start|end)_of_turn>")


def _texts(row: Row) -> Iterator[str]:
    for message in row.messages:
        content: Any = message["content"]
        if isinstance(content, str):
            yield content
