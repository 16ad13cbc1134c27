"""Chat templates at work, within bounds: conversations as text, or one line that says why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from macpo_data.errors import MacpoError, ModelError, TemplateRefusal, first_line, plain
from macpo_data.models.bounds import MEMORY, OutOfBounds, bounded, longest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Conversation = Sequence[Mapping[str, Any]]  # messages, with all their keys
BATCH = 1000  # texts that are made and tokenised at once: what comes with their ids takes memory
SHOWN = 200  # characters of what a template says, in an error


@dataclass(frozen=True)
class Renderer:
    """A chat template, and the tokenizer by which it is rendered."""

    tokenizer: PreTrainedTokenizerBase
    template: str  # Jinja
    name: str  # for errors

    def texts(
        self,
        conversations: Sequence[Conversation],
        asks: bool,
        rows: Sequence[int] | None = None,
        tools: Any = None,
    ) -> list[str]:
        """Conversations as text.

        Args:
            conversations: messages with all their keys.
            asks: whether the assistant is asked to speak behind the last of them.
            rows: their numbers, for errors.
            tools: JSON schemas of what it may call, a list.

        Raises:
            ModelError: the template refuses one, or takes more than it may.
        """
        texts: list[str] = []
        for at in range(0, len(conversations), BATCH):
            batch = conversations[at : at + BATCH]
            done, error = self._attempt([batch], asks, tools)
            if error is not None:
                numbers = rows and rows[at : at + BATCH]
                raise self._refusal(error, batch, asks, numbers)
            texts += done
        return texts

    def _attempt(
        self,
        batches: Sequence[Sequence[Conversation]],
        asks: bool,
        tools: Any = None,
    ) -> tuple[list[str], BaseException | None]:
        """Render batch by batch, within one bound: the texts, and what ended it too early."""
        texts: list[str] = []
        try:
            beside = len(repr(tools)) if tools else 0
            sizes = [sum(beside + _length(p) for p in batch) for batch in batches]
            with bounded(sum(sizes)):
                for batch, size in zip(batches, sizes, strict=True):
                    texts += self._apply(batch, asks, size, tools)
        except MacpoError:  # somebody pressed Ctrl-C
            raise
        # A template is somebody's program, and may raise whatever there is.
        except (Exception, OutOfBounds) as error:
            return texts, error
        return texts, None

    def _apply(
        self,
        conversations: Sequence[Conversation],
        asks: bool,
        size: int,
        tools: Any,
    ) -> list[str]:
        """Render conversations of so many characters; no text may be much longer than its own."""
        texts: list[str] = self.tokenizer.apply_chat_template(
            [[dict(m) for m in messages] for messages in conversations],
            tools=tools,
            chat_template=self.template,
            add_generation_prompt=asks,
            tokenize=False,
        )
        for text in texts:
            text.encode()  # half a character, which a template can write, no tokenizer reads
        if sum(map(len, texts)) > longest(size):  # one by one takes time, and is seldom needed
            for messages, text in zip(conversations, texts, strict=True):
                read = _length(messages) + (len(repr(tools)) if tools else 0)
                if len(text) > longest(read):
                    raise OutOfBounds(f"of {read:,} characters it makes {len(text):,}")
        return texts

    def _refusal(
        self,
        error: BaseException,
        conversations: Sequence[Conversation],
        asks: bool,
        rows: Sequence[int] | None,
        ours: bool = False,
    ) -> ModelError:
        """Say in one line which template fails and why, and on which row and role, if any."""
        at = 0
        if len(conversations) > 1:
            each, alone = self._attempt([[p] for p in conversations], asks)
            at, error = (len(each), alone) if alone else (at, error)
        role = None
        if not ours and not isinstance(error, OutOfBounds | MemoryError):
            role = self._refused_role(conversations[at], asks)
        where = f" refuses the role {role}" if role else " fails"
        if not ours and conversations[at]:
            row = "" if rows is None else f"row {rows[at]}, "
            first = conversations[at][0]
            where += f" ({row}{first['role']}: {_cut(first['content'], 40)!r})"
        mend = "take such turns out, or choose" if role else "mend it, or choose"
        message = plain(f"{self.name}{where}: {_reason(error)}; {mend} another chat_template")
        if role:
            return TemplateRefusal(message, role, plain(_reason(error)))
        return ModelError(message)

    def _refused_role(self, messages: Conversation, asks: bool) -> str | None:
        """The role without whose turns a prompt can be rendered; None where that is not told."""
        for role in sorted({str(m["role"]) for m in messages} - {"user"}):
            rest = [m for m in messages if m["role"] != role]
            if rest and self._attempt([[rest]], asks)[1] is None:
                return role
        return None

    def trial(self, conversation: Conversation, asks: bool) -> str:
        """A conversation of our own as text, to learn the template's conventions.

        Raises:
            ModelError: the template fails.
        """
        texts, error = self._attempt([[conversation]], asks)
        if error is not None:
            raise self._refusal(error, [conversation], asks, None, ours=True)
        return texts[0]

    def renders(self, conversation: Conversation, tools: Any = None) -> str | None:
        """A conversation as text; None where the template refuses it."""
        texts, error = self._attempt([[conversation]], False, tools)
        return None if error else texts[0]

    @cached_property
    def wants_argument_text(self) -> bool:
        """Whether the arguments of a call are to be JSON text, which is written as it is.

        Most templates make JSON of their value, and would quote a text once more. One that does not
        would write the value as Python shows it, or refuses it.
        """
        value = {"a": "b"}
        called = {"name": "f", "arguments": value}
        call = {"type": "function", "id": "call00000", "function": called}
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        return str(value) in (self.renders(turns) or str(value))


def _length(messages: Conversation) -> int:
    """Characters of messages, and of what else they hold."""
    return sum(len(m["content"] if len(m) == 2 else repr(m)) for m in messages)


def _cut(text: str, length: int) -> str:
    """The beginning of a text."""
    return text if len(text) <= length else text[:length] + "..."


def _reason(error: BaseException) -> str:
    """What a template raised, in a few words."""
    from jinja2 import TemplateError, TemplateSyntaxError

    match error:
        case MemoryError():
            return f"it takes more than {MEMORY >> 30} GiB of memory"
        case TemplateSyntaxError():
            return f"line {error.lineno}: {_cut(first_line(error), SHOWN)}"
        case TemplateError() | OutOfBounds():
            return _cut(first_line(error), SHOWN)
    return f"{_cut(first_line(error), SHOWN)} ({type(error).__name__})"
