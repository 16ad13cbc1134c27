"""From a record to a canonical row: a reader for each form, and how prompt and sides fit together.

A reader raises Refusal where a record cannot become a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from macpo_data.outside import OutsideError, parse_json
from macpo_data.sources.ingest import marks
from macpo_data.sources.ingest.canonical import Message, Reason, Refusal, Row
from macpo_data.sources.ingest.detect import MEDIA, Form, Layout
from macpo_data.sources.ingest.json_text import Record
from macpo_data.sources.ingest.messages import Kind, dialogue, kind, messages
from macpo_data.sources.ingest.turns import answer, joined, without_lead

_TEXT_KEYS = ("text", "response", "answer", "content", "completion", "output", "generation")
_TIES = {"", "none", "tie", "tie (bothbad)", "both", "bothbad", "both_bad", "neither", "equal",
         "draw", "-1"}  # fmt: skip


def read(record: Record, layout: Layout) -> Row:
    """A record as a row.

    Raises:
        Refusal: it cannot be one, with the reason.
    """
    try:
        return _READERS[layout.form](record, layout)
    except RecursionError:
        raise Refusal(Reason.NOT_OF_THE_FORM, "it is nested too deeply") from None


def _pair(record: Record, layout: Layout) -> Row:
    """A prompt and two sides, each of which may bring its prompt with it."""
    return _row(record, layout, _prompt(record, layout), *_sides(record, layout))


def _implicit(record: Record, layout: Layout) -> Row:
    """Two whole conversations, or one."""
    return _row(record, layout, None, *_sides(record, layout))


def _sides(record: Record, layout: Layout) -> tuple[list[Message] | None, list[Message] | None]:
    """Both sides as messages; one of them may be missing."""
    names = (layout.chosen, layout.rejected)
    if not any(name in record for name in names if name):
        raise Refusal(Reason.NOT_OF_THE_FORM, f"no column {', '.join(filter(None, names))}")
    chosen, rejected = (_column(record, layout, name, "assistant") for name in names)
    return chosen, rejected


def _told_twice(record: Record, layout: Layout) -> Row:
    """A conversation, and another text or messages in place of its last message."""
    whole = _column(record, layout, layout.chosen, "assistant") or []
    at = len(whole) - 1 if whole else 0
    rejected = _column(record, layout, layout.rejected, "assistant")
    return _row(record, layout, whole[:at], whole[at:], rejected)


def _openai(record: Record, layout: Layout) -> Row:
    """OpenAI's: the prompt and the tools are inside `input`."""
    inside = record.get(layout.prompt or "")
    if not isinstance(inside, dict) or "messages" not in inside:
        raise Refusal(Reason.NOT_OF_THE_FORM, f"column {layout.prompt} has no messages")
    if odd := sorted(inside.keys() - {"messages", "tools", "parallel_tool_calls"}):
        raise Refusal(Reason.NOT_OF_THE_FORM, f"{layout.prompt} has {', '.join(odd)} beside")
    prompt = messages(inside["messages"], "input.messages", Kind.MESSAGES, "user",
                      strip=layout.strip)  # fmt: skip
    chosen, rejected = (_column(record, layout, name, "assistant") for name in
                        (layout.chosen, layout.rejected))  # fmt: skip
    row = _row(record, layout, prompt, chosen, rejected)
    parallel = "parallel_tool_calls"
    own = _tools(inside.get("tools"), "input.tools")
    if own and row.tools and own != row.tools:
        raise Refusal(Reason.NOT_OF_THE_FORM, f"{layout.prompt}.tools and {layout.tools} differ")
    return replace(
        row,
        tools=own or row.tools,
        unread=(f"{layout.prompt}.{parallel}",) if inside.get(parallel) is not None else (),
    )


def _dialogues(record: Record, layout: Layout) -> Row:
    """HH's raw text in both sides."""
    sides: list[list[Message] | None] = []
    for name in (layout.chosen, layout.rejected):
        text = record.get(name or "")
        if text is not None and not isinstance(text, str):
            raise Refusal(Reason.NOT_OF_THE_FORM, f"column {name} is no text")
        sides.append(dialogue(text) if text else [])
    chosen, rejected = sides
    if chosen and rejected and chosen[:-1] != rejected[:-1]:
        raise Refusal(Reason.PROMPT_DIFFERS)
    return _row(record, layout, None, chosen, rejected)


def _whole_texts(record: Record, layout: Layout) -> Row:
    """Rendered conversations: the prompt ends where the marks say that the answer begins."""
    halves: list[tuple[str, str]] = []
    for name in (layout.chosen, layout.rejected):
        text = record.get(name or "")
        at = marks.answer_start(text) if isinstance(text, str) else None
        if not isinstance(text, str) or at is None:
            raise Refusal(Reason.NOT_OF_THE_FORM, f"column {name} has no mark where answers begin")
        halves.append((text[:at], text[at:]))
    (prompt, chosen), (other, rejected) = halves
    if prompt != other:
        raise Refusal(Reason.PROMPT_DIFFERS)
    answers = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
    return _row(record, layout, [{"role": "user", "content": prompt}], *answers)


def _scored(record: Record, layout: Layout) -> Row:
    """The best of several answers against the worst, by a score."""
    listed = record.get(layout.answers or "")
    if not isinstance(listed, list):
        raise Refusal(Reason.NOT_OF_THE_FORM, f"column {layout.answers} is no list of answers")
    score = layout.score or ""
    name, sign = score.removeprefix("-"), -1 if score.startswith("-") else 1
    beside = record.get(name)
    scored: list[tuple[float, Any]] = []
    for at, each in enumerate(listed):
        inside = each.get(name) if isinstance(each, dict) else None
        if inside is None and isinstance(beside, list) and at < len(beside):
            inside = beside[at]
        number = _number(inside)
        if number is not None:
            scored.append((sign * number, each))
    if not scored and listed:
        raise Refusal(Reason.NOT_OF_THE_FORM, f"no answer has a score {name}")
    scores = [number for number, _ in scored]
    if len(scored) < 2 or min(scores) == max(scores):
        raise Refusal(Reason.NO_PREFERENCE)
    best, worst = scored[scores.index(max(scores))][1], scored[scores.index(min(scores))][1]
    sides = [_answer_of(each, layout, name) for each in (best, worst)]
    row = _row(record, layout, _prompt(record, layout), *sides)
    between = f"{layout.answers} between the best and the worst"
    return replace(row, unread=(between,) if len(listed) > 2 else ())


def _answer_of(each: Any, layout: Layout, score: str) -> list[Message]:
    """The answer in an entry of a list of answers; what else the entry says goes with it."""
    column = layout.answers or ""
    if not isinstance(each, dict) or ("role" in each and "content" in each):
        return _as_answer(each, column, layout)
    key = next((key for key in _TEXT_KEYS if isinstance(each.get(key), str | list)), None)
    if key is None:
        raise Refusal(
            Reason.NOT_OF_THE_FORM, f"an answer in {column} has none of {', '.join(_TEXT_KEYS)}"
        )
    answer = _as_answer(each[key], column, layout)
    rest = {k: v for k, v in each.items() if k not in (key, score) and v is not None}
    if rest and answer:
        taken = answer[-1].keys()
        answer[-1] |= {f"{column}.{k}" if k in taken else k: v for k, v in rest.items()}
    return answer


def _labelled(record: Record, layout: Layout) -> Row:
    """Two answers, and a label that names the better one by the end of its column's name."""
    names = (layout.first or "", layout.second or "")
    if not any(name in record for name in names):
        raise Refusal(Reason.NOT_OF_THE_FORM, f"no column {', '.join(names)}")
    label = record.get(layout.label or "")
    better = _better(label, *names)
    if better is None:
        raise Refusal(Reason.NO_PREFERENCE)
    order = names if better == 0 else names[::-1]
    chosen, rejected = (_column(record, layout, name, "assistant") for name in order)
    return _row(record, layout, _prompt(record, layout), chosen, rejected)


def _better(label: Any, first: str, second: str) -> int | None:
    """Which of two answers a label names: 0, 1, or None where it prefers neither.

    Raises:
        Refusal: it names none of them.
    """
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    word = "" if label is None else str(label).strip().lower()
    if word in _TIES or label is None or label != label:
        return None
    shared = 0
    while first[shared : shared + 1] == second[shared : shared + 1] != "":
        shared += 1
    for at, name in enumerate((first, second)):
        end = name[shared:].lower()
        mark = end.strip("_- ")
        if word in {name.lower(), mark, f"model_{mark}", f"response_{mark}"}:
            return at
    raise Refusal(Reason.NO_PREFERENCE, f"the label {label!r} names neither {first} nor {second}")


def _fine_tuning(record: Record, layout: Layout) -> Row:
    """A prompt and an answer, or a conversation that ends in one."""
    if layout.chosen not in record:
        raise Refusal(Reason.NOT_OF_THE_FORM, f"no column {layout.chosen}")
    whole = _column(record, layout, layout.chosen, "assistant")
    prompt = _prompt(record, layout) if layout.prompt else []
    if whole and (layout.prompt is None or whole[0]["role"] != "assistant"):
        at = answer(whole)
        return _row(record, layout, joined(prompt, whole[:at]), whole[at:], None)
    return _row(record, layout, prompt, whole, None)


def _prompts(record: Record, layout: Layout) -> Row:
    """A prompt alone."""
    if layout.prompt not in record:
        raise Refusal(Reason.NOT_OF_THE_FORM, f"no column {layout.prompt}")
    return _row(record, layout, _prompt(record, layout), None, None)


_READERS: dict[Form, Callable[[Record, Layout], Row]] = {
    Form.EXPLICIT: _pair,
    Form.ALPACA: _pair,
    Form.IMPLICIT: _implicit,
    Form.TOLD_TWICE: _told_twice,
    Form.OPENAI: _openai,
    Form.HH: _dialogues,
    Form.WHOLE_TEXT: _whole_texts,
    Form.SCORED: _scored,
    Form.RANKED: _scored,
    Form.LABELLED: _labelled,
    Form.FINE_TUNING: _fine_tuning,
    Form.PROMPTS: _prompts,
}


def _column(record: Record, layout: Layout, name: str | None, role: str) -> list[Message] | None:
    """A column as messages; None where the dataset has no such column."""
    if name is None:
        return None
    return messages(record.get(name), name, layout.kind(name), role, strip=layout.strip)


def _as_answer(value: Any, column: str, layout: Layout) -> list[Message]:
    return messages(value, column, kind(value) or Kind.TEXT, "assistant", strip=layout.strip)


def _prompt(record: Record, layout: Layout) -> list[Message]:
    """The prompt, with Alpaca's second half."""
    prompt = _column(record, layout, layout.prompt, "user") or []
    more = record.get(layout.input or "")
    if isinstance(more, str) and more.strip() and prompt and layout.kind(layout.prompt) == "text":
        prompt[-1]["content"] = f"{prompt[-1]['content']}\n{more.strip()}"
    elif more and not (isinstance(more, str) and not more.strip()):
        raise Refusal(Reason.NOT_OF_THE_FORM, f"column {layout.input} does not fit the prompt")
    return prompt


def _history(value: Any, layout: Layout) -> list[Message]:
    """Earlier turns: pairs of a question and an answer, or messages."""
    if value in (None, "", []):
        return []
    if isinstance(value, list) and all(
        isinstance(p, list) and len(p) == 2 and all(isinstance(t, str) for t in p) for p in value
    ):
        roles = ("user", "assistant")
        return [
            {"role": role, "content": text.strip() if layout.strip else text}
            for pair in value
            for role, text in zip(roles, pair, strict=True)
        ]
    return messages(value, layout.history or "", Kind.MESSAGES, "user", strip=layout.strip)


def _row(
    record: Record,
    layout: Layout,
    prompt: list[Message] | None,
    chosen: list[Message] | None,
    rejected: list[Message] | None,
) -> Row:
    """Prompt and sides as a row: the prompt once, behind earlier turns; tools and media beside."""
    apart = prompt is not None and (layout.prompt is not None or bool(prompt))
    lead, chosen, rejected = without_lead(chosen, rejected, apart)
    whole = joined(prompt or [], lead)
    history = _history(record.get(layout.history or ""), layout)
    if whole[: len(history)] != history:
        whole = [*history, *whole]
    media = {name: record[name] for name in MEDIA if record.get(name)}
    tools = _tools(record.get(layout.tools or ""), layout.tools or "")
    return Row(_with_system(whole, record, layout), chosen, rejected, tools, media)


def _with_system(prompt: list[Message], record: Record, layout: Layout) -> list[Message]:
    value = record.get(layout.system or "")
    if value in (None, "", []):
        return prompt
    if not isinstance(value, str):
        raise Refusal(Reason.NOT_OF_THE_FORM, f"column {layout.system} is no text")
    turn: Message = {"role": "system", "content": value.strip() if layout.strip else value}
    if not turn["content"]:
        return prompt
    if prompt and prompt[0]["role"] == "system":
        if prompt[0] != turn:
            raise Refusal(Reason.SYSTEM_DIFFERS)
        return prompt
    return [turn, *prompt]


def _tools(value: Any, column: str) -> Any:
    """Tools as a JSON value; None where there are none."""
    if isinstance(value, str) and value.strip():
        try:
            value = parse_json(value)
        except OutsideError:
            raise Refusal(Reason.NOT_OF_THE_FORM, f"column {column} is no JSON") from None
    return value or None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
