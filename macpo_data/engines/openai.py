"""The endpoint engine: sends requests to OpenAI-compatible servers, several at a time.

Messages go over the wire, so the server's chat template counts. What may pass is asked again after
a growing pause: 429, 5xx, a timeout, a lost connection, an answer that is none. A request that
fails for good is a row without a response; too many of them, or a refused key, stop the call.
"""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from macpo_data.engines.endpoint import Line, PromptTooLong, Trouble, Usage, attempt, client_of
from macpo_data.engines.protocol import (
    Completion,
    Engine,
    FinishReason,
    Request,
    Score,
    ScoreRequest,
)
from macpo_data.errors import ModelError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

PAUSE = 1.0  # seconds before the first repetition; each further one doubles it
MAX_PAUSE = 60.0
MAX_WAIT = 600.0  # seconds, whatever a server asks for
LONG_WAIT = 10.0  # seconds from which on a wait is said as a line
LOOK = 1.0  # seconds without an answer after which the waits are shown


class OpenAIEngine(Engine):
    """Writes by asking; each endpoint has at most its `concurrency` of requests under way."""

    def __init__(self) -> None:
        """A thread for the event loop, so that Ctrl-C reaches the caller and no request."""
        self._loop = asyncio.new_event_loop()
        self._clients: dict[str, AsyncOpenAI] = {}
        self._lines: list[Line] = []
        self._waiting: Callable[[], None] = lambda: None
        self._say: Callable[[str], None] = lambda line: None
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
        long: set[int] = set()  # the lines whose long wait was said
        try:
            while True:
                try:
                    answer = answers.get(timeout=LOOK)
                except Empty:
                    self._waiting()
                    continue
                finally:
                    self._say_long_waits(long)
                if answer is None:
                    break
                yield answer
            asking.result()
        finally:
            asking.cancel()

    def listen(self, waiting: Callable[[], None], say: Callable[[str], None]) -> None:
        """Servers may ask to wait for minutes."""
        self._waiting, self._say = waiting, say

    def _say_long_waits(self, already: set[int]) -> None:
        """Say once of each server, by its number, that it asks to wait for long."""
        for n, line in enumerate(self._lines):
            if n not in already and line.asked_to_wait >= LONG_WAIT:
                already.add(n)
                self._say(f"{line} asks to wait {_seconds(line.asked_to_wait)}")

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[tuple[int, Score | None]]:
        """No endpoint tells how likely it finds a given response."""
        if requests:
            raise ModelError("an endpoint cannot score; give the agent a base with local weights")
        return iter(())

    def note(self) -> str:
        """Tokens, money spent and still to spend where prices are given, and who asks to wait."""
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
        now = time.monotonic()
        waits = (
            f", waiting {line.waits_until - now:.0f} s for {line}"
            for line in self._lines
            if line.waits_until > now
        )
        return f", {tokens:,} tokens{money}{''.join(waits)}"

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

    def _line_up(self, requests: Sequence[Request]) -> list[Line]:
        """Each endpoint with its requests. All keys are looked up before any request is sent."""
        lines: dict[str, Line] = {}
        for i, request in enumerate(requests):
            endpoint = request.voice.endpoint
            assert endpoint, f"{request.voice} has no endpoint"
            key = endpoint.model_dump_json()
            if key not in lines:
                if key not in self._clients:
                    self._clients[key] = client_of(endpoint)
                lines[key] = Line(endpoint, self._clients[key])
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
    line: Line, requests: Sequence[Request], answered: Callable[[tuple[int, Completion]], None]
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


async def _ask(line: Line, request: Request) -> Completion:
    """One response. The slot waits out the pauses, so that a server in trouble is asked less."""
    tokens_in = tokens_out = spoilt = 0
    for tried in range(line.endpoint.retries + 1):
        line.attempts += 1
        try:
            answer = await attempt(line, request, spoilt)
            usage, choice = answer.usage or Usage(), answer.choices[0]
            tokens_in += usage.prompt_tokens
            tokens_out += usage.completion_tokens
            line.tokens_in += usage.prompt_tokens
            line.tokens_out += usage.completion_tokens
            if choice.finish_reason == "content_filter":
                raise Trouble("content_filter", passes=False)
            if text := (choice.message.content or "").strip():
                reason: FinishReason = "length" if choice.finish_reason == "length" else "stop"
                return Completion(text, reason, usage.completion_tokens, (tokens_in, tokens_out))
            if choice.finish_reason == "length":
                why = "no answer within max_new_tokens, thinking included; raise it"
                raise Trouble(why, passes=False)
            spoilt += 1  # the same seed may well give the same again
            raise Trouble("empty answer")
        except PromptTooLong:
            return Completion(None, "prompt_too_long", 0, (tokens_in, tokens_out))
        except Trouble as trouble:
            if not trouble.passes or tried == line.endpoint.retries:
                line.failed[trouble.why] += 1
                break
            line.repeated[trouble.why] += 1
            pause = min(PAUSE * 2**tried, MAX_PAUSE) * random.uniform(0.5, 1)
            if wait := min(trouble.wait, MAX_WAIT):
                line.asked_to_wait = max(line.asked_to_wait, trouble.wait)
                line.waits_until = max(line.waits_until, time.monotonic() + wait)
            await asyncio.sleep(max(pause, wait))
    return Completion(None, "failed", 0, (tokens_in, tokens_out))


def _seconds(asked: float) -> str:
    """A wait that a server asks for, and the bound where it is longer."""
    words = "for ever" if math.isinf(asked) else f"{asked:,.0f} s"
    if asked <= MAX_WAIT:
        return words
    return f"{words}; it is asked again after {MAX_WAIT:.0f} s, the longest wait there is"
