"""Chat templates and tokenisation: one function for generation, scoring and training.

A prompt is rendered by its chat template and tokenised whole; a response is tokenised after it, so
that the prompt's ids are a prefix of prompt + response whatever the tokenizer would merge. What
people or models wrote is never read as markup: a special token spelt in a message stays text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from macpo_data.errors import ModelError, plain
from macpo_data.models.rendering import BATCH, Renderer
from macpo_data.schema import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Stands for a response, and for a special token spelt in a message, while a template renders.
_HOLE = "\ue000{}\ue001"
_TAG = re.compile(r"<\w+>")  # the mark that begins a thought
_BEGUN = re.compile(rf"{_TAG.pattern}\s*\Z")


@dataclass
class Chat:
    """A tokenizer with its chat template."""

    tokenizer: PreTrainedTokenizerBase
    template: str  # Jinja
    name: str = "this chat template"  # for errors
    is_rendered: bool = False  # messages are rendered text: a special token in them is one
    eot_id: int = field(init=False)  # ends the assistant's turn
    # What the template puts between prompt and response: words, such as an empty thought, which
    # are read and never written; or white space, which the response begins with.
    opening: str = field(init=False, default="")
    # The mark of a thought with which the prompt ends. Where there is an opening, it ends it.
    begun: str = field(init=False, default="")
    generation_prompt: str = field(init=False, default="")  # what asks the assistant to speak
    _thought: str = field(init=False, default="<think>")  # the mark that begins one
    renderer: Renderer = field(init=False)
    tail: str = field(init=False)  # what the template puts behind a response
    _unrepeated: int = 0  # characters at the prompt's end that it leaves out before `opening`
    _lead: str = ""
    _anchor: str = field(init=False)  # the prompt's last character
    _bos: list[int] = field(init=False)
    _holes: dict[str, str] = field(init=False)  # special token: what stands for it in messages
    _token: re.Pattern[str] = field(init=False)  # any special token
    _hole: re.Pattern[str] = field(init=False)  # any hole

    def __post_init__(self) -> None:
        """Ask the template and the tokenizer for their conventions once."""
        tokenizer = self.tokenizer
        user_turn: list[Message] = [{"role": "user", "content": "a"}]
        hole = _HOLE.format("r")
        self.renderer = Renderer(tokenizer, self.template, self.name)
        prompt = self.renderer.trial(user_turn, True)
        full = self.renderer.trial([*user_turn, {"role": "assistant", "content": hole}], False)
        before, _, tail = full.partition(hole)
        asked = self.renderer.trial(user_turn, False)
        self.generation_prompt = prompt.removeprefix(asked) if prompt.startswith(asked) else ""
        if begun := _BEGUN.search(prompt):
            self.begun = begun.group()
            self._thought = self.begun.strip()
        at = shared_length(prompt, before)
        rest, between = prompt[at:], before[at:]  # where the two go apart
        if hole not in full or (rest.strip() and (rest != self.begun or between.strip())):
            raise ModelError(
                f"{plain(self.name)} does not put the prompt before the response unchanged; "
                "choose another agents.X.chat_template"
            )
        if between.strip():
            self.opening, self._unrepeated = between, len(rest)
        else:
            self._lead = before[len(prompt) :]
        if not begun and (tag := _TAG.search(self.opening)):
            self._thought = tag.group()
        self._anchor = (prompt + self.opening)[-1:]
        self.tail = tail
        # Not every token that a tokenizer has for turns is among those that it names.
        added = {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        special_ids = added.keys() | set(tokenizer.all_special_ids)
        special = [i for i in self._encode(tail) if i in special_ids]
        eot = special[0] if special else tokenizer.eos_token_id
        if eot is None:
            raise ModelError(
                "the tokenizer has no end-of-turn and no eos token; choose another base"
            )
        self.eot_id = int(eot)
        adds_bos = tokenizer.bos_token_id is not None and (
            list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id]
        )
        self._bos = [int(tokenizer.bos_token_id)] if adds_bos else []
        tokens = filter(None, {*added.values(), *tokenizer.all_special_tokens})
        ordered = sorted(tokens, key=lambda token: (-len(token), token))
        self._holes = {token: _HOLE.format(f"t{n}") for n, token in enumerate(ordered)}
        self._token, self._hole = _any_of(self._holes), _any_of(self._holes.values())

    @property
    def sha256(self) -> str:
        """Identify the template, 64 hex digits."""
        return hashlib.sha256((self.template + self.opening).encode()).hexdigest()

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end a response."""
        eos = self.tokenizer.eos_token_id
        return sorted({self.eot_id} | ({int(eos)} if eos is not None else set()))

    @property
    def pad_id(self) -> int:
        """A token for padding; it is masked wherever it stands."""
        pad = self.tokenizer.pad_token_id
        return self.eot_id if pad is None else int(pad)

    @property
    def thought_rule(self) -> str | None:
        """What becomes of answers with and without a thought, where the template speaks of them."""
        if self._thought in self.opening or (self.begun and self.opening):
            return (
                "the chat template writes an empty thought before an answer without one: it is "
                "read with the prompt, and an answer's own thought stands in its place"
            )
        if self.begun:
            return (
                "the chat template begins a thought in the prompt: an answer's own goes on there, "
                "and one without a thought ends it, empty"
            )
        return None

    def is_special(self, token_id: int) -> bool:
        """Whether a token is a mark, and no text."""
        return str(self.tokenizer.convert_ids_to_tokens(token_id)) in self._holes

    def thinks(self, text: str) -> bool:
        """Whether a response begins with a thought of its own."""
        return text.lstrip().startswith(self._thought)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a prompt up to where the assistant begins, with at most one BOS."""
        return self.all_prompt_ids([messages])[0]

    def all_prompt_ids(
        self,
        prompts: Sequence[Sequence[Message]],
        rows: Sequence[int] | None = None,
        unopened: Collection[int] = (),
    ) -> list[list[int]]:
        """`prompt_ids` of each prompt, in one call of the tokenizer, which is faster.

        Args:
            prompts: messages of each.
            rows: their numbers, for errors; None counts from 0.
            unopened: which of them end before `opening`.

        Raises:
            ModelError: the template refuses a prompt, or takes more than it may.
        """
        if rows is None and len(prompts) > 1:
            rows = range(len(prompts))
        safe = [
            [{"role": m["role"], "content": self.without_markup(m["content"])} for m in prompt]
            for prompt in prompts
        ]
        texts = self.renderer.texts(safe, True, rows)
        return self.all_text_ids(
            [text if n in unopened else self.opened(text) for n, text in enumerate(texts)]
        )

    def opened(self, prompt: str) -> str:
        """A rendered prompt, and what the template writes before a response without a thought."""
        return prompt[: len(prompt) - self._unrepeated] + self.opening if self.opening else prompt

    def row_ids(
        self,
        prompts: Sequence[Sequence[Message]],
        sides: Sequence[Sequence[str]],
        finished: Sequence[Sequence[bool]],
        rows: Sequence[int] | None = None,
    ) -> tuple[list[list[int]], list[list[list[int]]]]:
        """Token ids of prompts, and of one or more responses to each.

        A response's own thought stands in place of the empty one that the template would write.

        Args:
            prompts: messages of each.
            sides: for each side, a response to each prompt.
            finished: whether each of them ends by itself.
            rows: their numbers, for errors; None counts from 0.

        Returns:
            The prompts' ids, and for each side the ids of its responses.

        Raises:
            ModelError: the template refuses a prompt, or takes more than it may.
        """
        unopened = set()
        if self.opening:
            unopened = {n for side in sides for n, text in enumerate(side) if self.thinks(text)}
        responses = [
            self.all_response_ids(
                [
                    self.opening + text if n in unopened and not self.thinks(text) else text
                    for n, text in enumerate(side)
                ],
                ends,
            )
            for side, ends in zip(sides, finished, strict=True)
        ]
        return self.all_prompt_ids(prompts, rows, unopened), responses

    def all_text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of prompts that are rendered with holes in place of what somebody spelt."""
        ids = self._encode_all(texts)
        for n, text in enumerate(texts):
            if self._hole.search(text):
                ids[n] = self._encode_around(text)
        return [
            each if each[: len(self._bos)] == self._bos else [*self._bos, *each] for each in ids
        ]

    def ids_behind(self, before: str, text: str) -> list[int]:
        """Token ids of a rendered text, with holes, as it stands behind another."""
        anchor, whole = self._pieces(before[-1:]), self._pieces(before[-1:] + text)
        if whole[: len(anchor)] == anchor:
            return whole[len(anchor) :]
        return self._pieces(text)

    def _pieces(self, text: str) -> list[int]:
        return self._encode_around(text) if self._hole.search(text) else self._encode(text)

    def response_ids(self, text: str, finished: bool) -> list[int]:
        """Token ids of a response; the end-of-turn token is the last one if it was finished."""
        return self.all_response_ids([text], [finished])[0]

    def all_response_ids(self, texts: Sequence[str], finished: Sequence[bool]) -> list[list[int]]:
        """`response_ids` of each response, in one call of the tokenizer, which is faster."""
        plain_text = not self.is_rendered
        texts = [self.behind(*each) for each in zip(texts, finished, strict=True)]
        anchor = self._encode(self._anchor, text_only=plain_text)
        # Tokenised behind the prompt's last character, as it would stand there; where the two
        # merge into one token, alone.
        ids = self._encode_all([self._anchor + self._lead + t for t in texts], text_only=plain_text)
        merged = [n for n, each in enumerate(ids) if each[: len(anchor)] != anchor]
        ids = [each[len(anchor) :] for each in ids]
        alone = self._encode_all([self._lead + texts[n] for n in merged], text_only=plain_text)
        for n, each in zip(merged, alone, strict=True):
            ids[n] = each
        return [
            [*each, self.eot_id] if is_finished and not self._has_end(each) else each
            for each, is_finished in zip(ids, finished, strict=True)
        ]

    def behind(self, text: str, is_finished: bool) -> str:
        """A response as it goes on where the prompt has begun a thought.

        Its own thought goes on there. One without a thought ends it, empty; so it stands where the
        policy would write it.
        """
        if not self.begun:
            return text
        if self.thinks(text):
            rest = text.lstrip().removeprefix(self._thought)
            return rest.removeprefix(self.begun.removeprefix(self._thought))
        end = self._thought.replace("<", "</")
        ends_it = is_finished and not self.opening and end not in text
        return f"\n{end}\n\n{text}" if ends_it else text

    def _has_end(self, ids: list[int]) -> bool:
        """Whether rendered text brings the mark that ends it: last, but for one piece of space."""
        return self.is_rendered and any(
            token in self._holes for token in self.tokenizer.convert_ids_to_tokens(ids[-2:])
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a response, without the end-of-turn token and surrounding white space.

        A thought that the prompt began belongs to it.
        """
        text = str(
            self.tokenizer.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        ).strip()
        return self.begun + text if text and not self.opening else text

    def without_markup(self, value: Any) -> Any:
        """Any JSON value with a hole in place of each special token that somebody spelt."""
        if isinstance(value, dict):
            return {self.without_markup(k): self.without_markup(v) for k, v in value.items()}
        if isinstance(value, list):
            return [self.without_markup(each) for each in value]
        if isinstance(value, str) and not self.is_rendered and self._token.search(value):
            for token, hole in self._holes.items():
                value = value.replace(token, hole)
        return value

    def _encode(self, text: str, *, text_only: bool = False) -> list[int]:
        return self._encode_all([text], text_only=text_only)[0]

    def _encode_all(self, texts: Sequence[str], *, text_only: bool = False) -> list[list[int]]:
        ids: list[list[int]] = []
        for at in range(0, len(texts), BATCH):
            encoded = self.tokenizer(
                list(texts[at : at + BATCH]),
                add_special_tokens=False,
                split_special_tokens=text_only,
                return_attention_mask=False,
            )
            ids += encoded["input_ids"]
        return ids

    def _encode_around(self, text: str) -> list[int]:
        """Tokenise the template's special tokens as such, and those that stand in holes as text."""
        ids: list[int] = []
        for piece in self._token.split(text):
            if piece in self._holes:
                ids.append(int(self.tokenizer.convert_tokens_to_ids(piece)))
            elif piece:
                for token, hole in self._holes.items():
                    piece = piece.replace(hole, token)
                ids += self._encode(piece, text_only=True)
        return ids


def shared_length(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _any_of(words: Collection[str]) -> re.Pattern[str]:
    """A pattern for any of these words, the first where several would do; of none, for nothing."""
    return re.compile("(" + "|".join(map(re.escape, words)) + ")" if words else r"(?!)")
