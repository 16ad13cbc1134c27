"""A deterministic engine without a model, to try out a recipe in seconds; no real results."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from macpo_data.engines.protocol import Completion, Engine, Request, Score, ScoreRequest, Voice
from macpo_data.models.base import Base

_WORDS = ("well", "sure", "first", "then", "water", "light", "stone", "paper", "north", "garden")


class FakeEngine(Engine):
    """Words and numbers that follow from the request alone."""

    def __init__(self, base: Base) -> None:
        """Nothing is loaded."""
        self.base = base

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """A few words, some of them the prompt's, drawn by the request's seed.

        A judge that looks for the prompt's topic thus finds better and worse answers.
        """
        for i, request in enumerate(requests):
            rng = random.Random(f"{request.seed} {request.voice.fingerprint}")
            length = rng.randint(3, 24)
            cut = length > request.sampling.max_new_tokens
            length = min(length, request.sampling.max_new_tokens)
            asked = request.prompt[-1]["content"]
            words = [*_WORDS, *(word for word in asked.split()[:32] if word.isalpha())]
            text = " ".join(rng.choices(words, k=length)) + ("" if cut else ".")
            if "[[A]]" in asked:  # a judge's
                text = rng.choice(("[[A]]", "[[B]]"))
            elif "Score: N" in asked:  # one that gives points
                text = f"Score: {rng.randint(0, 5)}"
            yield i, Completion(text, "length" if cut else "stop", length)

    def facts(self) -> dict[str, Any]:
        """Only its name: there is nothing else to say."""
        return {"engine": "fake"}

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[tuple[int, Score | None]]:
        """Each word between -3 and 0 nats, drawn by voice, prompt and response."""
        for i, request in enumerate(requests):
            rng = random.Random(
                f"{request.voice.fingerprint} {request.prompt[-1]['content']} {request.response}"
            )
            words = len(request.response.split())
            total = -3 * sum(rng.random() for _ in range(words))
            yield i, Score(total, words, -rng.random() if request.finished else 0.0)

    def scored_under(self, voice: Voice) -> dict[str, Any]:
        """No weights stand behind these scores."""
        return {"fake": voice.fingerprint}
