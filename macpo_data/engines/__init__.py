"""What runs a model to write and to score.

An engine serves one base with any of its adapters. It is given all requests at once and yields
results in the order that suits it, so that it can batch as it likes; requests of different groups
never share a batch, so that a group gives the same text whatever else is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, Protocol

from macpo_data.chat import Chat
from macpo_data.errors import ModelError
from macpo_data.models import ENDPOINTS, Base, gpus, load_chat
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
    of: int = 0  # rows that its endpoint is asked for in all, earlier runs included


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
        """Everything on which a voice's scores depend; empty for one that scores nothing."""
        return {}

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


def pick(settings: Settings, scorer: str | None = None) -> Settings:
    """The settings with the name of the engine that will write, or with a scorer, score.

    Raises:
        ModelError: it is not installed.
    """
    name, has_vllm = settings.name, find_spec("vllm") is not None
    if name == "auto":
        name = "vllm" if has_vllm and gpus() else "transformers"
    if scorer and name != "fake":
        name = "vllm" if scorer == "vllm" else "transformers"
    if name == "ray" and find_spec("ray") is None:
        raise ModelError("Ray is not installed: pip install 'ray[data]', or set engine.name=vllm")
    if name in ("vllm", "ray") and not has_vllm:
        raise ModelError(
            "vLLM is not installed: `macpo doctor` says which version fits; or set "
            "engine.name=transformers and score.engine=forward"
        )
    if settings.quantization and name == "transformers" and scorer is None:
        raise ModelError(
            f"engine.quantization={settings.quantization} needs vLLM; set engine.name=vllm, or "
            "leave it out"
        )
    return settings.model_copy(update={"name": name})


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
        elif settings.name == "vllm":
            from macpo_data.engines.vllm import VLLMEngine

            _open[key] = VLLMEngine(base, settings)
        elif settings.name == "ray":
            from macpo_data.engines.ray import RayEngine

            _open[key] = RayEngine(base, settings)
        else:
            from macpo_data.engines.transformers import TransformersEngine

            _open[key] = TransformersEngine(base, settings)
    return _open[key]
