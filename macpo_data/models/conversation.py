"""Rows that are more than text, as token ids: calls, tools and their results, thoughts.

A chat template writes them, and what it does not write is found out, so that nothing that a row
holds vanishes. Of an answer of several messages, what the assistant wrote is learned; the results
of tools between are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from macpo_data.models.chat import Chat, shared_length
from macpo_data.outside import OutsideError, parse_json
from macpo_data.schema import CALL_KEYS, THOUGHT_KEYS, WHOLE

Message = dict[str, Any]
_OTHER = "\ue002"  # in place of a text, to see whether the template writes it


class Unsayable(Exception):
    """A chat template does not write all that a row holds; the reason is its text."""


@dataclass(frozen=True)
class Ids:
    """A response."""

    ids: list[int]
    read_only: tuple[int, ...] = ()  # places in it of tokens that others wrote


@dataclass(frozen=True)
class _Piece:
    text: str  # rendered, with holes
    learned: bool  # the assistant wrote it


@dataclass(frozen=True)
class RowIds:
    """A prompt and its responses."""

    prompt: list[int]
    sides: list[Ids]
    cuts_thoughts: bool  # the template leaves out thoughts of the prompt's earlier turns


def table_ids(
    chat: Chat,
    table: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    finished: Sequence[Sequence[bool]],
    numbers: Sequence[int] | None = None,
) -> list[RowIds | Unsayable]:
    """Rows as token ids, as they are trained.

    Args:
        chat: tokenizer and template.
        table: rows of prompt, responses, and `schema.WHOLE` where some are more than text.
        columns: names of the responses.
        finished: for each of these, whether the response of each row ends by itself.
        numbers: of the rows, for errors; None counts from 0.

    Returns:
        For each row its ids, or what the chat template does not write of it.

    Raises:
        ModelError: the template refuses a row, or takes more than it may.
    """
    rows: dict[int, RowIds | Unsayable] = {}
    for n, row in enumerate(table):
        if row.get(WHOLE) is not None:
            values = parse_json(row[WHOLE])
            asked, tools = values["prompt"], values["tools"]
            sides = [values[column] for column in columns]
            number = numbers[n] if numbers else n
            try:
                prompt, answers = conversation_ids(chat, asked, sides, tools, number)
                rows[n] = RowIds(prompt, answers, _cuts_thoughts(chat, asked, tools))
            except Unsayable as error:
                rows[n] = error
    plain = [n for n in range(len(table)) if n not in rows]
    prompts, responses = chat.row_ids(
        [table[n]["prompt"] for n in plain],
        [[table[n][column] for n in plain] for column in columns],
        [[ends[n] for n in plain] for ends in finished],
        [numbers[n] for n in plain] if numbers else plain,
    )
    for n, prompt, *sides in zip(plain, prompts, *responses, strict=True):
        rows[n] = RowIds(
            prompt, [Ids(ids) for ids in sides], _cuts_thoughts(chat, table[n]["prompt"])
        )
    return [rows[n] for n in range(len(table))]


def conversation_ids(
    chat: Chat,
    prompt: list[Message],
    sides: Sequence[list[Message]],
    tools: Any = None,
    number: int | None = None,
) -> tuple[list[int], list[Ids]]:
    """Token ids of a prompt and of each answer to it, as the chat template writes them.

    Args:
        chat: tokenizer and template.
        prompt: messages with all their keys.
        sides: answers, each of one or more messages, the first and the last the assistant's.
        tools: JSON schemas of what it may call.
        number: of the row, for errors.

    Raises:
        Unsayable: the template leaves out something that the row holds, or does not keep the prompt
            before the answer.
        ModelError: the template refuses the row, or takes more than it may.
    """
    listed = _tools(tools)
    prompt, *sides = (
        chat.without_markup([_calls_as_wanted(chat, m) for m in each]) for each in (prompt, *sides)
    )
    listed = chat.without_markup(listed)
    (before,) = chat.renderer.texts([prompt], True, None if number is None else [number], listed)
    starts, answers = [], []
    for side in sides:
        start, pieces = _pieces(chat, prompt, side, listed, before)
        starts.append(start)
        answers.append(pieces)
    if len(set(starts)) > 1:
        raise Unsayable("the chat template writes another prompt before each answer")
    text = starts[0]
    opened = chat.opened(before)[len(text) :]
    if opened.strip() and all(pieces[0].text.startswith(opened) for pieces in answers):
        text += opened
        answers = [[_Piece(p[0].text.removeprefix(opened), learned=True), *p[1:]] for p in answers]
    (prompt_ids,) = chat.all_text_ids([text])
    return prompt_ids, [_ids(chat, text, pieces) for pieces in answers]


def _ids(chat: Chat, before: str, pieces: list[_Piece]) -> Ids:
    """The pieces of an answer, each tokenised behind the one before it."""
    ids: list[int] = []
    read_only: list[int] = []
    for piece in pieces:
        own = chat.ids_behind(before, piece.text)
        if not piece.learned:
            read_only += range(len(ids), len(ids) + len(own))
        ids += own
        before = piece.text or before
    if not chat.is_special(ids[-1]):  # a call may end by a mark of its own
        ids.append(chat.eot_id)
    return Ids(ids, tuple(read_only))


def _pieces(
    chat: Chat, prompt: list[Message], answer: list[Message], tools: Any, before: str
) -> tuple[str, list[_Piece]]:
    """The text up to an answer, and the answer in pieces by who wrote them."""
    (full,) = chat.renderer.texts([[*prompt, *answer]], False, tools=tools)
    if lost := _lost(chat, prompt, answer, tools, full):
        raise Unsayable(f"the chat template does not write {lost}")
    at = shared_length(before, full)
    rest = before[at:]
    begun = rest.strip() and rest == chat.begun
    if rest.strip() and not begun:
        raise Unsayable("the chat template changes the prompt when an answer follows")
    starts = [at, *_later_starts(chat, prompt, answer, tools, full, at)]
    end_mark = str(chat.tokenizer.convert_ids_to_tokens(chat.eot_id))
    pieces: list[_Piece] = []
    for n, start in enumerate(starts):
        limit = starts[n + 1] if n + 1 < len(starts) else len(full)
        end = full.find(end_mark, start, limit)
        if end < 0 and limit < len(full):
            raise Unsayable("the chat template does not mark where a message of an answer ends")
        end = len(full.removesuffix(chat.tail)) if end < 0 else end + len(end_mark)
        written = full[start:end]
        if begun and n == 0:
            written = chat.behind(written, True)
        pieces.append(_Piece(written, learned=True))
        if limit < len(full):
            pieces.append(_Piece(full[end:limit], learned=False))
    return before if begun else full[:at], pieces


def _later_starts(
    chat: Chat, prompt: list[Message], answer: list[Message], tools: Any, full: str, first: int
) -> list[int]:
    """Where in a text each later message of the assistant begins.

    Where the template writes an answer's first messages as it writes them before a next one, the
    text up to each is the beginning of the whole. Other templates leave out empty thoughts of all
    messages but the last; there the words that ask the assistant to speak show the places.
    """
    places = [n for n, message in enumerate(answer) if n and message["role"] == "assistant"]
    if not places:
        return []
    starts = [
        len(text)
        for n in places
        for text in chat.renderer.texts([[*prompt, *answer[:n]]], True, tools=tools)
        if full.startswith(text)
    ]
    if len(starts) == len(places):
        return starts
    ask = chat.generation_prompt
    starts = []
    at = full.find(ask, first) if ask else -1
    while at >= 0:
        starts.append(at + len(ask))
        at = full.find(ask, starts[-1])
    if len(starts) != len(places):
        raise Unsayable("the chat template does not tell the messages of an answer apart")
    return starts


def _lost(
    chat: Chat, prompt: list[Message], answer: list[Message], tools: Any, full: str
) -> str | None:
    """What a template leaves out of the text: it stays the same when that is another.

    Thoughts of the prompt's earlier turns are left out by many, and by intent.
    """
    whole = [*prompt, *answer]
    for at, what, other in _others(whole, len(prompt)):
        if chat.renderer.renders([*whole[:at], other, *whole[at + 1 :]], tools) == full:
            return what
    if tools and chat.renderer.renders(whole) == full:
        return "the tools that are offered"
    return None


def _cuts_thoughts(chat: Chat, prompt: Sequence[Message], tools: Any = None) -> bool:
    """Whether the chat template leaves out a thought of an earlier turn, as many do by intent."""
    others = [[*prompt[:at], bare, *prompt[at + 1 :]] for at, message in enumerate(prompt)
              if (bare := _without_thoughts(message)) != message]  # fmt: skip
    if not others:
        return False
    full = chat.renderer.renders(chat.without_markup(prompt), tools)
    return any(chat.renderer.renders(chat.without_markup(each), tools) == full for each in others)


def _without_thoughts(message: Mapping[str, Any]) -> Message:
    """A message without its thoughts: those with a key of their own, and that in its text."""
    bare = {key: value for key, value in message.items() if key not in THOUGHT_KEYS}
    _, end, rest = str(message["content"]).partition("</think>")
    return bare | {"content": rest.lstrip()} if end and message["role"] == "assistant" else bare


def _others(whole: list[Message], prompt_length: int) -> Iterator[tuple[int, str, Message]]:
    """Each message with something else in place of one thing that it says."""
    for at, message in enumerate(whole):
        if message["content"]:
            yield at, f"what the role {message['role']} says", message | {"content": _OTHER}
        bare = _without_thoughts(message)
        if at >= prompt_length and bare["content"] != message["content"]:
            yield at, "thoughts", bare
        for keys, what in ((CALL_KEYS, "calls of tools"), (THOUGHT_KEYS, "thoughts")):
            for key in keys if what != "thoughts" or at >= prompt_length else ():
                if message.get(key):
                    rest = {k: v for k, v in message.items() if k != key}
                    yield at, f"{what} ({key})", rest


def _calls_as_wanted(chat: Chat, message: Message) -> Message:
    """A message whose calls have their arguments as the template wants them.

    Data have them as JSON text, as OpenAI's servers give them. Templates that write text as it is
    want it so; the others would quote it, and get its value.
    """
    calls = message.get("tool_calls")
    if not isinstance(calls, list) or chat.renderer.wants_argument_text:
        return message
    return message | {"tool_calls": [_parsed(call) for call in calls]}


def _parsed(call: Any) -> Any:
    if not isinstance(call, Mapping):
        return call
    inner = call.get("function")
    if isinstance(inner, Mapping):
        return {**call, "function": _parsed(inner)}
    arguments = call.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        return {**call, "arguments": parse_json(arguments)}
    except OutsideError:
        return call


def _tools(tools: Any) -> list[Any] | None:
    """Tools as a list of JSON schemas."""
    if not tools:
        return None
    listed = tools if isinstance(tools, list) else [tools]
    try:
        listed = [parse_json(each) if isinstance(each, str) else each for each in listed]
    except OutsideError:
        raise Unsayable("its tools are no JSON") from None
    if not all(isinstance(each, dict) for each in listed):
        raise Unsayable("its tools are no JSON schemas")
    return listed
