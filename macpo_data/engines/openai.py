"""The endpoint engine: OpenAI-compatible servers, all endpoints of a call side by side.

Messages go over the wire, so the server's chat template counts. What may pass is asked again after
a growing pause: 429, 5xx, a timeout, a lost connection, an answer that is none. A request that
fails for good is a row without a response; too many of them, or a refused key, stop the call.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError, field_validator

from macpo_data.engines.protocol import (
    Completion,
    Engine,
    FinishReason,
    Request,
    Score,
    ScoreRequest,
    Voice,
)
from macpo_data.errors import ModelError, plain
from macpo_data.models.base import adapter_sha256
from macpo_data.recipe import Endpoint
from macpo_data.waiting import retry_after

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

PAUSE = 1.0  # seconds before the first repetition; each further one doubles it
MAX_PAUSE, MAX_RETRY_AFTER = 60.0, 600.0
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


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @field_validator("*", mode="before")
    @classmethod
    def _plausible(cls, value: Any) -> int:
        """A count that is none takes nothing away from the answer beside it."""
        return value if isinstance(value, int) and 0 <= value < 2**40 else 0


class _Answer(BaseModel):
    """What is read of a chat completion."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


class _Trouble(Exception):
    """An attempt that gave no answer."""

    def __init__(self, why: str, passes: bool = True, wait: float = 0.0) -> None:
        self.why, self.passes, self.wait = why, passes, wait


@dataclass
class _Line:
    """One endpoint during one call: what is still to be asked, and what became of the rest."""

    endpoint: Endpoint
    client: AsyncOpenAI
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)  # one adapter after another
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

    def __str__(self) -> str:
        return f"{self.endpoint.model} at {self.endpoint.base_url}"


class OpenAIEngine(Engine):
    """Writes by asking; each endpoint has at most its `concurrency` of requests under way."""

    def __init__(self) -> None:
        """A thread for the event loop, so that Ctrl-C reaches the caller and no request."""
        self._loop = asyncio.new_event_loop()
        self._clients: dict[str, AsyncOpenAI] = {}
        self._lines: list[_Line] = []
        threading.Thread(target=self._loop.run_forever, name="endpoints", daemon=True).start()

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """In the order of the requests as far as answers come in it, so that shards fill up.

        Raises:
            ModelError: a key is missing or refused, or too many requests failed for good.
        """
        self._lines = self._line_up(requests)
        answers: SimpleQueue[tuple[int, Completion] | None] = SimpleQueue()
        asking = asyncio.run_coroutine_threadsafe(self._ask_all(requests, answers.put), self._loop)
        asking.add_done_callback(lambda _: answers.put(None))
        try:
            while (answer := answers.get()) is not None:
                yield answer
            asking.result()
        finally:
            asking.cancel()

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[tuple[int, Score | None]]:
        """No endpoint tells how likely it finds a given response."""
        if requests:
            raise ModelError("an endpoint cannot score; give the agent a base with local weights")
        return iter(())

    def note(self) -> str:
        """Tokens, and where prices are given, money spent and still to spend."""
        tokens = sum(line.tokens_in + line.tokens_out for line in self._lines)
        spent = to_spend = 0.0
        priced = False
        for line in self._lines:
            cost = line.endpoint.cost(line.tokens_in, line.tokens_out)
            if cost is not None:
                priced = True
                spent += cost
                to_spend += cost / max(line.done, 1) * (line.total - line.done)
        money = f", cost {spent:.2f}, about {to_spend:.2f} to come" if priced else ""
        return f", {tokens:,} tokens{money}"

    def facts(self) -> dict[str, Any]:
        """What became of the requests of this call, by endpoint."""
        names = [str(line) for line in self._lines]
        lines = {
            # Endpoints may differ in `extra` alone.
            (name if names.count(name) == 1 else f"{name}, {n}"): {
                **({"extra": line.endpoint.extra} if line.endpoint.extra else {}),
                "attempts": line.attempts,
                "repeated": dict(line.repeated),
                "failed": dict(line.failed),
                "seconds": round(line.seconds, 2),
            }
            for n, (name, line) in enumerate(zip(names, self._lines, strict=True), start=1)
        }
        return {"engine": "openai", "endpoints_with_others": lines}

    def _line_up(self, requests: Sequence[Request]) -> list[_Line]:
        """Each endpoint with its requests. All keys are looked up before anything is asked."""
        lines: dict[str, _Line] = {}
        for i, request in enumerate(requests):
            endpoint = request.voice.endpoint
            assert endpoint, f"{request.voice} has no endpoint"
            key = endpoint.model_dump_json()
            if key not in lines:
                if key not in self._clients:
                    self._clients[key] = _client(endpoint)
                lines[key] = _Line(endpoint, self._clients[key])
            lines[key].todo.append(i)
            lines[key].total += 1
            lines[key].whole = max(lines[key].total, request.of)
        return list(lines.values())

    async def _ask_all(
        self, requests: Sequence[Request], answered: Callable[[tuple[int, Completion]], None]
    ) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for line in self._lines:
                    for _ in range(min(line.endpoint.concurrency, line.total)):
                        group.create_task(_work(line, requests, answered))
        except* ModelError as stopped:
            raise stopped.exceptions[0] from None


async def _work(
    line: _Line, requests: Sequence[Request], answered: Callable[[tuple[int, Completion]], None]
) -> None:
    """One of the slots of an endpoint: request after request.

    Raises:
        ModelError: too many failed for good.
    """
    begun = time.monotonic()
    while line.todo:
        i = line.todo.popleft()
        completion = await _ask(line, requests[i])
        line.done += 1
        line.seconds = max(line.seconds, time.monotonic() - begun)
        answered((i, completion))
        if line.failed.total() > line.endpoint.max_failed * line.whole:
            often, _ = line.failed.most_common(1)[0]
            raise ModelError(
                f"{line.failed.total()} of {line.whole} requests to {line} failed for good, more "
                f"than max_failed {line.endpoint.max_failed:g} allows; most often: {often}. See to "
                "the server, then run it again: what was answered stays"
            )


async def _ask(line: _Line, request: Request) -> Completion:
    """One response. The slot waits out the pauses, so that a server in trouble is asked less."""
    tokens_in = tokens_out = spoilt = 0
    for attempt in range(line.endpoint.retries + 1):
        line.attempts += 1
        try:
            answer = await _attempt(line, request, spoilt)
            usage, choice = answer.usage or _Usage(), answer.choices[0]
            tokens_in += usage.prompt_tokens
            tokens_out += usage.completion_tokens
            line.tokens_in += usage.prompt_tokens
            line.tokens_out += usage.completion_tokens
            if choice.finish_reason == "content_filter":
                raise _Trouble("content_filter", passes=False)
            if text := (choice.message.content or "").strip():
                reason: FinishReason = "length" if choice.finish_reason == "length" else "stop"
                return Completion(text, reason, usage.completion_tokens, (tokens_in, tokens_out))
            if choice.finish_reason == "length":
                why = "no answer within max_new_tokens, thinking included; raise it"
                raise _Trouble(why, passes=False)
            spoilt += 1  # the same seed may well give the same again
            raise _Trouble("empty answer")
        except _Trouble as trouble:
            if trouble.why == "prompt_too_long":
                return Completion(None, "prompt_too_long", 0, (tokens_in, tokens_out))
            if not trouble.passes or attempt == line.endpoint.retries:
                line.failed[trouble.why] += 1
                break
            line.repeated[trouble.why] += 1
            pause = min(PAUSE * 2**attempt, MAX_PAUSE) * random.uniform(0.5, 1)
            await asyncio.sleep(max(pause, trouble.wait))
    return Completion(None, "failed", 0, (tokens_in, tokens_out))


async def _attempt(line: _Line, request: Request, spoilt: int) -> _Answer:
    """Ask once.

    Raises:
        _Trouble: there is no answer.
        ModelError: there will be none to any request.
    """
    from httpx2 import Response
    from openai import APIConnectionError, APIStatusError

    body = _body(line.endpoint, request, spoilt)
    try:
        async with asyncio.timeout(line.endpoint.timeout):
            # `chat.completions.create` would walk through all its types at each request.
            response = await line.client.post("/chat/completions", cast_to=Response, body=body)
        return _Answer.model_validate_json(response.content)
    except TimeoutError:
        raise _Trouble("timeout") from None
    except APIConnectionError:
        raise _Trouble("no connection") from None
    except ValidationError:
        raise _Trouble("not a chat completion") from None
    except APIStatusError as error:
        if error.status_code == 404 and request.voice.adapter:
            await _load(line, request.voice)
            raise _Trouble("adapter not loaded yet") from None
        raise _refusal(line, error, body) from None


def _adapter_name(voice: Voice) -> str:
    """What a server calls an adapter that was trained here; other weights have another name."""
    return f"macpo-{voice.fingerprint}-{_weights(str(voice.adapter))}"


def _weights(adapter: str) -> str:
    weights = Path(adapter) / "adapter_model.safetensors"
    return _hashed(adapter, weights.stat().st_mtime_ns)


@cache
def _hashed(adapter: str, changed: int) -> str:
    return adapter_sha256(Path(adapter))[:8]


async def _load(line: _Line, voice: Voice) -> None:
    """Have vLLM's server load an adapter; also anew, where the server was started anew.

    Raises:
        ModelError: it will not.
    """
    from httpx2 import Response
    from openai import APIConnectionError, APIStatusError

    body = {"lora_name": _adapter_name(voice), "lora_path": str(Path(str(voice.adapter)).resolve())}
    try:
        async with line.loading, asyncio.timeout(line.endpoint.timeout):
            await line.client.post("/load_lora_adapter", cast_to=Response, body=body)
    except (TimeoutError, APIConnectionError):
        return  # the request is asked again in any case
    except APIStatusError as error:
        # An adapter that its engine cannot load is a 500 of vLLM's as well.
        passes = error.status_code >= 500 and "add_lora method failed" not in error.message
        if passes or "already" in error.message:
            return
        if error.status_code in (401, 403):
            raise _refusal(line, error, body) from None
        raise ModelError(
            f"{line} does not load the adapter {voice.adapter}: {_said(line, error)}; start it by "
            "`vllm serve --enable-lora` with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True where it sees "
            "that folder, or set endpoint.adapters=local"
        ) from None


def _refusal(line: _Line, error: APIStatusError, body: dict[str, Any]) -> _Trouble | ModelError:
    """What an HTTP status means for the request, or for all of them."""
    status, named = error.status_code, line.endpoint.api_key_env
    if status in _REFUSED:
        return ModelError(
            f"the server {_REFUSED[status]} (HTTP {status}): {line}, asked with "
            f"{f'the key in {named}' if named else 'no key'}; see to base_url, model and "
            "api_key_env of that endpoint"
        )
    if status in _PASSES or status >= 500:
        return _Trouble(f"HTTP {status}", wait=retry_after(error.response.headers, MAX_RETRY_AFTER))
    if _TOO_LONG.search(error.message):
        room = body.get("max_completion_tokens") or body.get("max_tokens") or 0
        # Servers name the answer's tokens for a long prompt as well; these fit beside none.
        if (window := _WINDOW.search(error.message)) and room >= int(window[1]):
            return ModelError(
                f"max_new_tokens {room} leaves no room for a prompt in the {window[1]} tokens of "
                f"{line}; set it lower"
            )
        return _Trouble("prompt_too_long", passes=False)
    return _Trouble(f"HTTP {status}: {_said(line, error)}", passes=False)


def _said(line: _Line, error: APIStatusError) -> str:
    """A server's words in a line, without the key, which some repeat."""
    said = plain(" ".join(error.message.split()))
    return (said.replace(line.client.api_key, "***") if line.endpoint.api_key_env else said)[:200]


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


def _client(endpoint: Endpoint) -> AsyncOpenAI:
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
        base_url=endpoint.base_url, api_key=key or "none", max_retries=0, timeout=None
    )
    client.organization = client.project = None  # from the environment, for another server
    return client
