"""Answers that go round in loops, made from people's answers.

No person writes them, small models often do; whoever learns from people's pairs alone may take
them for good ones.
"""

from __future__ import annotations

import re
from random import Random

WORDS = 16
"""The shortest answer that a loop is made from."""


def loop(answer: str, random: Random) -> tuple[str, str] | None:
    """The beginning of an answer, and a loop of as many words made from it; None of a short answer.

    Both have as many words and are cut there, so that neither tells them apart. The loop begins
    like the answer, or at once; then a sentence or a few words come again and again. In half of
    the loops one place in it has another word of the answer each time.

    >>> answer = "I will not help with that. Please ask a friend or a nurse. They know more."
    >>> loop(answer, Random(0))[1]
    'I will not They know more. They know more. They know more. They know more. They'
    """
    words = answer.split()
    if len(words) < WORDS:
        return None
    length = min(len(words), random.randint(WORDS, 60))
    piece = random.choice(_pieces(answer, words, random))
    place = random.randrange(len(piece)) if random.random() < 0.5 else None
    going = words[: random.randint(0, length // 3)]
    while len(going) < length:
        turn = list(piece)
        if place is not None:
            turn[place] = random.choice(words)
        going += turn
    return " ".join(words[:length]), " ".join(going[:length])


def _pieces(answer: str, words: list[str], random: Random) -> list[list[str]]:
    """What may come again: each sentence of 2 to 12 words, and one run of words."""
    sentences = (sentence.split() for sentence in re.split(r"(?<=[.!?])\s+", answer))
    size = random.randint(2, 6)
    start = random.randint(0, len(words) - size)
    return [*(s for s in sentences if 2 <= len(s) <= 12), words[start : start + size]]
