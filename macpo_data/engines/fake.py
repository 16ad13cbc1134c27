"""A deterministic engine without a model, to try out a recipe in seconds; no real results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any

from macpo_data.engines.protocol import Completion, Engine, Request, Score, ScoreRequest, Voice
from macpo_data.models.base import Base

_WORDS = ("well", "sure", "first", "then", "water", "light", "stone", "paper", "north", "garden")


def _draw(of: str) -> bytes:
    """64 bytes that follow from a text: a hash is faster than a generator that is seeded anew."""
    return blake2b(of.encode(errors="surrogatepass")).digest()


class FakeEngine(Engine):
    """Words and numbers that follow from the request alone."""

    def __init__(self, base: Base) -> None:
        """Nothing is loaded."""
        self.base = base

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """A few words drawn by the request's seed."""
        for i, request in enumerate(requests):
            draw = _draw(f"{request.seed} {request.voice.fingerprint}")
            length = 3 + draw[0] % 22
            cut = length > request.sampling.max_new_tokens
            length = min(length, request.sampling.max_new_tokens)
            asked = request.prompt[-1]["content"]
            text = " ".join(_WORDS[n % len(_WORDS)] for n in draw[1 : 1 + length])
            if "[[A]]" in asked:  # a judge's
                text = ("[[A]]", "[[B]]")[draw[1] % 2]
            elif "Score: N" in asked:  # one that gives points
                text = f"Score: {draw[1] % 6}"
            yield i, Completion(text, "length" if cut else "stop", length)

    def facts(self) -> dict[str, Any]:
        """Only its name: there is nothing else to say."""
        return {"engine": "fake"}

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[tuple[int, Score | None]]:
        """Each word between -3 and 0 nats, drawn by voice, prompt and response."""
        for i, request in enumerate(requests):
            asked = request.prompt[-1]["content"]
            draw = _draw(f"{request.voice.fingerprint} {asked} {request.response}")
            words = len(request.response.split())
            drawn = draw[1 : 1 + words]  # of a long answer the first words speak for all
            total = -3 * words * sum(drawn) / (255 * len(drawn) or 1)
            yield i, Score(total, words, -draw[0] / 255 if request.finished else 0.0)

    def scored_under(self, voice: Voice) -> dict[str, Any]:
        """No weights stand behind these scores."""
        return {"fake": voice.fingerprint}
