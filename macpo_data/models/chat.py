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
from typing import TYPE_CHECKING

from macpo_data.errors import ModelError
from macpo_data.recipe.agents import NAMED_TEMPLATES, read_template
from macpo_data.schema import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SYSTEM = "{% if messages[0].role == 'system' %}{{ messages[0].content + %s }}{% endif %}"
TEMPLATES = {
    "vicuna": _SYSTEM.replace("%s", "' '") + "{% for m in messages %}"
    "{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
    "{% elif m.role == 'assistant' %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    "alpaca": _SYSTEM.replace("%s", "'\n\n'") + "{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '### Instruction:\n' + m.content + '\n\n### Response:\n' }}"
    "{% elif m.role == 'assistant' %}{{ m.content + eos_token + '\n\n' }}{% endif %}"
    "{% endfor %}",
    "chatml": "{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
}
# Stands for a response, and for a special token spelt in a message, while a template renders.
_HOLE = "\ue000{}\ue001"
BATCH = 1000  # texts that are tokenised at once: what comes with their ids takes memory


@dataclass
class Chat:
    """A tokenizer with its chat template."""

    tokenizer: PreTrainedTokenizerBase
    template: str  # Jinja
    eot_id: int = field(init=False)  # ends the assistant's turn
    # What the template puts between prompt and response: words, such as an empty thought, which
    # are read and never written; or white space, which the response begins with.
    _opening: str = field(init=False, default="")
    _lead: str = field(init=False)
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
        prompt = self._render(user_turn, True)
        full = self._render([*user_turn, {"role": "assistant", "content": hole}], False)
        if not full.startswith(prompt.rstrip()) or hole not in full:
            raise ModelError(
                "this chat template does not put the prompt before the response unchanged; "
                "choose another agents.X.chat_template"
            )
        before, _, tail = full.partition(hole)
        between = before[len(prompt) :]
        self._opening, self._lead = (between, "") if between.strip() else ("", between)
        self._anchor = (prompt + self._opening)[-1:]
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
        return hashlib.sha256((self.template + self._opening).encode()).hexdigest()

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

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a prompt up to where the assistant begins, with at most one BOS."""
        return self.all_prompt_ids([messages])[0]

    def all_prompt_ids(self, prompts: Sequence[Sequence[Message]]) -> list[list[int]]:
        """`prompt_ids` of each prompt, in one call of the tokenizer, which is faster."""
        texts = [
            text + self._opening
            for text in self._render_all([self._without_markup(p) for p in prompts], True)
        ]
        ids = self._encode_all(texts)
        for n, text in enumerate(texts):
            if self._hole.search(text):
                ids[n] = self._encode_around(text)
        return [
            each if each[: len(self._bos)] == self._bos else [*self._bos, *each] for each in ids
        ]

    def response_ids(self, text: str, finished: bool) -> list[int]:
        """Token ids of a response; the end-of-turn token is the last one if it was finished."""
        return self.all_response_ids([text], [finished])[0]

    def all_response_ids(self, texts: Sequence[str], finished: Sequence[bool]) -> list[list[int]]:
        """`response_ids` of each response, in one call of the tokenizer, which is faster."""
        anchor = self._encode(self._anchor, text_only=True)
        # Tokenised behind the prompt's last character, as it would stand there; where the two
        # merge into one token, alone.
        ids = self._encode_all([self._anchor + self._lead + t for t in texts], text_only=True)
        merged = [n for n, each in enumerate(ids) if each[: len(anchor)] != anchor]
        ids = [each[len(anchor) :] for each in ids]
        alone = self._encode_all([self._lead + texts[n] for n in merged], text_only=True)
        for n, each in zip(merged, alone, strict=True):
            ids[n] = each
        ends = [[self.eot_id] if is_finished else [] for is_finished in finished]
        return [[*each, *end] for each, end in zip(ids, ends, strict=True)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a response, without the end-of-turn token and surrounding white space."""
        return str(
            self.tokenizer.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        ).strip()

    def _without_markup(self, messages: Sequence[Message]) -> list[Message]:
        """Messages with a hole in place of each special token that somebody spelt."""
        safe: list[Message] = []
        for message in messages:
            content = message["content"]
            if self._token.search(content):
                for token, hole in self._holes.items():
                    content = content.replace(token, hole)
            safe.append({"role": message["role"], "content": content})
        return safe

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        return self._render_all([messages], add_generation_prompt)[0]

    def _render_all(
        self, prompts: Sequence[Sequence[Message]], add_generation_prompt: bool
    ) -> list[str]:
        if not prompts:
            return []
        texts = self.tokenizer.apply_chat_template(
            [[dict(m) for m in messages] for messages in prompts],
            chat_template=self.template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )
        return list(map(str, texts))

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


def _any_of(words: Collection[str]) -> re.Pattern[str]:
    """A pattern for any of these words, the first where several would do; of none, for nothing."""
    return re.compile("(" + "|".join(map(re.escape, words)) + ")" if words else r"(?!)")


def make_chat(tokenizer: PreTrainedTokenizerBase, chat_template: str, base: str) -> Chat:
    """Give a tokenizer the template that a recipe asks for.

    Args:
        tokenizer: of the base.
        chat_template: `tokenizer` (its own), `vicuna`, `alpaca`, `chatml`, or a Jinja file.
        base: as people call it, for errors.

    Raises:
        ModelError: the tokenizer has no template of its own, or lacks the template's tokens.
    """
    if chat_template == "tokenizer":
        own = tokenizer.chat_template
        if not isinstance(own, str):
            raise ModelError(
                f"the tokenizer of {base} has no chat template of its own; set "
                f"agents.X.chat_template to one of {', '.join(NAMED_TEMPLATES[1:])} or a Jinja file"
            )
        return Chat(tokenizer, own)
    if chat_template == "chatml" and "<|im_end|>" not in tokenizer.get_vocab():
        raise ModelError(
            f"the tokenizer of {base} has no <|im_end|> token, which chat_template chatml needs; "
            "use vicuna or alpaca"
        )
    return Chat(tokenizer, TEMPLATES.get(chat_template) or read_template(chat_template))
