"""A client for one OpenAI-compatible server: requests, loading of adapters, error messages."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError, field_validator

from macpo_data.engines.protocol import Request, Voice
from macpo_data.errors import ModelError, plain
from macpo_data.models.weights import weights_sha256
from macpo_data.outside import OutsideError, parse_json
from macpo_data.recipe.agents import Endpoint
from macpo_data.retry_after import retry_after
from macpo_data.server_answers import Body, TooLong

if TYPE_CHECKING:
    from httpx2 import AsyncClient
    from openai import APIStatusError, AsyncOpenAI

ANSWER_BYTES = 16 * 1024 * 1024  # a million tokens have some 4 MB
SEEDS = 2**31  # some servers take 32 bits with a sign
_PASSES = (408, 409, 425, 429)
_REFUSED = {401: "does not take the key", 403: "forbids it", 404: "knows no such model or path"}
_TOO_LONG = re.compile(r"context.{0,9}(length|window|size)|maximum model length|prompt is too long")
_WINDOW = re.compile(r"context (?:length|window|size)\D{0,16}(\d+)")


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class Usage(BaseModel):
    """Tokens that a server read and made."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @field_validator("*", mode="before")
    @classmethod
    def _plausible(cls, value: Any) -> int:
        """A count that is none takes nothing away from the answer beside it."""
        return value if isinstance(value, int) and 0 <= value < 2**40 else 0


class Answer(BaseModel):
    """What is read of a chat completion."""

    choices: list[_Choice] = Field(min_length=1)
    usage: Usage | None = None


class Trouble(Exception):
    """An attempt that gave no answer."""

    def __init__(self, why: str, passes: bool = True, wait: float = 0.0) -> None:
        """`passes`: it may be asked again; the server asks to wait `wait` seconds, or for ever."""
        self.why, self.passes, self.wait = why, passes, wait


class PromptTooLong(Trouble):
    """The prompt does not fit into the server's context."""


@dataclass
class Line:
    """One endpoint during one call: requests still to send, and the outcome of the others."""

    endpoint: Endpoint
    client: AsyncOpenAI
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)  # one adapter after another
    loaded: dict[str, float] = field(default_factory=dict)  # when, by time.monotonic, by its name
    todo: deque[int] = field(default_factory=deque)
    total: int = 0
    whole: int = 0  # with the rows of earlier runs, of which `max_failed` is a share
    done: int = 0
    attempts: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    repeated: Counter[str] = field(default_factory=Counter)  # why, and how often
    failed: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    asked_to_wait: float = 0.0  # the longest wait that the server asked for, seconds; may be inf
    waits_until: float = 0.0  # by time.monotonic, where the server asked for it

    def __str__(self) -> str:
        return f"{self.endpoint.model} at {self.endpoint.base_url}"


async def attempt(line: Line, request: Request, spoilt: int) -> Answer:
    """Ask once.

    Args:
        line: the server.
        request: what to ask.
        spoilt: how many empty answers came before; each asks with another seed.

    Raises:
        Trouble: there is no answer.
        ModelError: there will be none to any request.
    """
    from httpx2 import Response
    from openai import APIConnectionError, APIStatusError

    body = _body(line.endpoint, request, spoilt)
    begun = time.monotonic()
    try:
        async with asyncio.timeout(line.endpoint.timeout):
            # `chat.completions.create` would walk through all its types at each request.
            response = await line.client.post("/chat/completions", cast_to=Response, body=body)
        return Answer.model_validate(parse_json(response.content))
    except TimeoutError:
        raise Trouble("timeout") from None
    except APIConnectionError:
        raise Trouble("no connection") from None
    except TooLong:
        raise Trouble("an answer without an end") from None
    except (ValidationError, OutsideError):
        raise Trouble("not a chat completion") from None
    except APIStatusError as error:
        if error.status_code == 404 and request.voice.adapter:
            await _load(line, request.voice, begun)
            raise Trouble("adapter not loaded yet") from None
        raise _refusal(line, error, body) from None


def _adapter_name(voice: Voice) -> str:
    """What a server calls an adapter that was trained here; other weights have another name."""
    return f"macpo-{voice.fingerprint}-{_weights(str(voice.adapter))}"


def _weights(adapter: str) -> str:
    weights = Path(adapter) / "adapter_model.safetensors"
    return _hashed(adapter, weights.stat().st_mtime_ns)


@cache
def _hashed(adapter: str, changed: int) -> str:
    return weights_sha256(Path(adapter))[:8]


async def _load(line: Line, voice: Voice, missed: float) -> None:
    """Have vLLM's server load an adapter; also anew, where the server was started anew.

    Args:
        line: the server.
        voice: who has the adapter.
        missed: when the request was sent that did not find it, by time.monotonic.

    Raises:
        ModelError: it will not.
    """
    from httpx2 import Response
    from openai import APIConnectionError, APIStatusError

    name = _adapter_name(voice)
    body = {"lora_name": name, "lora_path": str(Path(str(voice.adapter)).resolve())}
    try:
        async with line.loading, asyncio.timeout(line.endpoint.timeout):
            if line.loaded.get(name, 0.0) < missed:  # else for another request, in the meantime
                await line.client.post("/load_lora_adapter", cast_to=Response, body=body)
                line.loaded[name] = time.monotonic()
    except (TimeoutError, APIConnectionError):
        return  # the request is asked again in any case
    except APIStatusError as error:
        # An adapter that its engine cannot load is a 500 of vLLM's as well.
        passes = error.status_code >= 500 and "add_lora method failed" not in error.message
        if "already" in error.message:
            line.loaded[name] = time.monotonic()
            return
        if passes:
            return
        if error.status_code in (401, 403):
            raise _refusal(line, error, body) from None
        raise ModelError(
            f"{line} does not load the adapter {voice.adapter}: {_words(line, error)}; start it by "
            "`vllm serve --enable-lora` with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True where it sees "
            "that folder, or set endpoint.adapters=local"
        ) from None


def _refusal(line: Line, error: APIStatusError, body: dict[str, Any]) -> Trouble | ModelError:
    """What an HTTP status means for the request, or for all of them."""
    status, named = error.status_code, line.endpoint.api_key_env
    if status in _REFUSED:
        return ModelError(
            f"the server {_REFUSED[status]} (HTTP {status}): {line}, asked with "
            f"{f'the key in {named}' if named else 'no key'}; see to base_url, model and "
            "api_key_env of that endpoint"
        )
    if status in _PASSES or status >= 500:
        return Trouble(f"HTTP {status}", wait=retry_after(error.response.headers))
    if _TOO_LONG.search(error.message):
        room = body.get("max_completion_tokens") or body.get("max_tokens") or 0
        # Servers name the answer's tokens for a long prompt as well; these fit beside none.
        if (window := _WINDOW.search(error.message)) and room >= int(window[1]):
            return ModelError(
                f"max_new_tokens {room} leaves no room for a prompt in the {window[1]} tokens of "
                f"{line}; set it lower"
            )
        return PromptTooLong("prompt too long", passes=False)
    return Trouble(f"HTTP {status}: {_words(line, error)}", passes=False)


def _words(line: Line, error: APIStatusError) -> str:
    """A server's words in a line, without the key, which some repeat."""
    words = plain(" ".join(error.message.split()))
    return (words.replace(line.client.api_key, "***") if line.endpoint.api_key_env else words)[:200]


def _body(endpoint: Endpoint, request: Request, spoilt: int) -> dict[str, Any]:
    """A request as it is sent. OpenAI's own API knows no top_k: 0 leaves it out."""
    body = {
        "model": _adapter_name(request.voice) if request.voice.adapter else endpoint.model,
        "messages": request.prompt,
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        "top_k": request.sampling.top_k or None,
        "max_tokens": request.sampling.max_new_tokens,
        "seed": (request.seed + spoilt) % SEEDS,
        **endpoint.extra,
    }
    return {name: value for name, value in body.items() if value is not None}


def _bounded_client() -> AsyncClient:
    """The library's own HTTP client, which reads no answer without an end."""
    from openai import DefaultAsyncHttpxClient

    class Bounded(DefaultAsyncHttpxClient):
        async def send(self, request: Any, *, stream: bool = False, **settings: Any) -> Any:
            response = await super().send(request, stream=True, **settings)
            if stream:
                return response
            body = Body(ANSWER_BYTES)
            try:
                async for part in response.aiter_bytes():
                    body.add(part)
            finally:
                await response.aclose()
            return body.whole(response)

    return Bounded()


def client_of(endpoint: Endpoint) -> AsyncOpenAI:
    """A client with the endpoint's own key, or none, whatever else the environment holds.

    Raises:
        ModelError: the key is not there.
    """
    from openai import AsyncOpenAI

    key = os.environ.get(endpoint.api_key_env or "", "").strip()
    if endpoint.api_key_env and not (key and key.isascii() and key.isprintable()):
        raise ModelError(
            f"no key for {endpoint.model} at {endpoint.base_url}: set {endpoint.api_key_env} in "
            "the environment"
        )
    client = AsyncOpenAI(
        base_url=endpoint.base_url,
        api_key=key or "none",
        max_retries=0,
        timeout=None,
        http_client=_bounded_client(),
    )
    client.organization = client.project = None  # from the environment, for another server
    return client
