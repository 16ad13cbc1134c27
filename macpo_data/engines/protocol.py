"""The interface of all inference engines, and their requests and results.

An engine serves one base with any of its adapters. It is given all requests at once and yields
results in the order that suits it, so that it can batch as it likes; requests of different groups
never share a batch, so that a group gives the same text whatever else is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from macpo_data.models.base import Base, load_chat
from macpo_data.models.chat import Chat
from macpo_data.recipe.agents import Endpoint
from macpo_data.recipe.generation import Sampling
from macpo_data.schema import Message

FinishReason = Literal["stop", "length", "prompt_too_long", "failed"]


@dataclass(frozen=True)
class Voice:
    """A policy made concrete on its base."""

    adapter: str | None  # folder of a peft adapter
    chat_template: str
    fingerprint: str
    endpoint: Endpoint | None = None  # the server that speaks for it, in place of local weights


@dataclass(frozen=True)
class Request:
    """Ask a voice for one response."""

    voice: Voice
    prompt: list[Message]
    sampling: Sampling
    seed: int
    group: str  # requests of one group may share a batch
    of: int = 0  # rows that its endpoint has to answer in all, earlier runs included


@dataclass(frozen=True)
class Completion:
    """One response, stripped; None where nothing was written."""

    text: str | None
    finish_reason: FinishReason
    num_tokens: int  # made, with the end-of-turn token
    billed: tuple[int, int] | None = None  # tokens that an endpoint read and made, retries included


@dataclass(frozen=True)
class ScoreRequest:
    """Ask how likely a voice finds a given response."""

    voice: Voice
    prompt: list[Message]
    response: str
    finished: bool  # the end-of-turn token is scored as well
    group: str  # as in Request


@dataclass(frozen=True)
class Score:
    """Log-likelihood of a response in nats, as in schema.SCORES."""

    sum_logprob: float  # over its tokens, without the end of turn
    num_tokens: int  # likewise
    eot_logprob: float  # of the end of turn; 0 where the response has none


class Engine(Protocol):
    """Writes and scores with one base."""

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Yield (index of the request, its completion), each once, in any order."""

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[tuple[int, Score | None]]:
        """Yield (index, score), None where prompt and response do not fit into the model."""

    def scored_under(self, voice: Voice) -> dict[str, Any]:
        """Everything on which a voice's scores depend; empty for one that scores nothing."""
        return {}

    def listen(self, waiting: Callable[[], None], say: Callable[[str], None]) -> None:
        """Take what to call now and then while nothing comes, and what prints a line."""
        return None

    def note(self) -> str:
        """What a person who waits wants to know beside the count; may be empty."""
        return ""

    def facts(self) -> dict[str, Any]:
        """What manifests say of the engine: name, device, dtype, hashes of the templates used."""


class Chats:
    """The chat of each voice on a base, loaded once per template."""

    def __init__(self, base: Base) -> None:
        """Nothing is loaded yet."""
        self._base = base
        self._by_template: dict[str, Chat] = {}

    def __call__(self, voice: Voice) -> Chat:
        """How a voice's messages become token ids."""
        name = voice.chat_template
        if name not in self._by_template:
            self._by_template[name] = load_chat(self._base, name)
        return self._by_template[name]

    @property
    def sha256(self) -> dict[str, str]:
        """The hash of every template that was used."""
        return {name: chat.sha256 for name, chat in self._by_template.items()}


def completion(chat: Chat, ids: Sequence[int]) -> Completion:
    """Cut at the first stop token; without one the token limit cut the response."""
    stops = set(chat.stop_ids)
    end = next((n for n, token in enumerate(ids) if token in stops), None)
    if end is None:
        return Completion(chat.decode(ids), "length", len(ids))
    return Completion(chat.decode(ids[:end]), "stop", end + 1)
