"""What runs a model to write and to score.

An engine serves one base with any of its adapters. It is given all requests at once and yields
results in the order that suits it, so that it can batch as it likes; requests of different groups
never share a batch, so that a group gives the same text whatever else is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from macpo_data.models import ENDPOINTS, Base
from macpo_data.recipe import Endpoint, Sampling
from macpo_data.recipe import Engine as Settings
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
    group: str


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
    finished: bool
    group: str


@dataclass(frozen=True)
class Score:
    """Log-likelihood of a response; nats. See schema.SCORES."""

    sum_logprob: float
    num_tokens: int
    eot_logprob: float


class Engine(Protocol):
    """Writes and scores with one base."""

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Yield (index of the request, its completion), each once, in any order."""

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[tuple[int, Score | None]]:
        """Yield (index, score), None where prompt and response do not fit into the model."""

    def scored_under(self, voice: Voice) -> dict[str, Any]:
        """Everything on which a voice's scores depend; equal values, equal scores."""

    def note(self) -> str:
        """What a person who waits wants to know beside the count; may be empty."""

    def facts(self) -> dict[str, Any]:
        """What manifests say of the engine: name, device, dtype, hashes of the templates used."""


_open: dict[tuple[str, Base], Engine] = {}


def open_engine(settings: Settings, base: Base) -> Engine:
    """The engine of a base, loaded once per process."""
    key = (settings.name, base)
    if key not in _open:
        if settings.name == "fake":
            from macpo_data.engines.fake import FakeEngine

            _open[key] = FakeEngine(base)
        elif base == ENDPOINTS:
            from macpo_data.engines.openai import OpenAIEngine

            _open[key] = OpenAIEngine()
        else:
            from macpo_data.engines.transformers import TransformersEngine

            _open[key] = TransformersEngine(base, settings)
    return _open[key]
