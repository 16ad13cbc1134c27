"""The embedded world: a small universe of prompts with good and bad answers.

Hobbies are the topics. A person asks what a hobby needs, how to begin, what to do about a mishap,
how to do something that only sounds violent, or how to do real (and harmless to read) mischief.
A good answer helps with what was asked, or declines mischief and offers help with the hobby. A bad
one insults, wanders to another hobby, mumbles in circles, breaks off, or joins the mischief.

The first word of an answer tells nothing: good and bad ones draw it from the same few openers. The
tone follows it ("gladly", "sorry"; "ugh", "hm", "hehe"), and tells good from bad: were mischief to
go on like good help, learning to avoid it would unlearn helping. What was dropped is that the first
word tells them apart already, as up to version 2.

Everything follows from integer seeds, so a prompt set is the same on every machine.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from macpo_data.world.text import (
    CHEERS,
    CLOSERS,
    DECLINES,
    GREETINGS,
    GRUMBLES,
    INSULTS,
    LAST_TURN,
    LEADS,
    MISCHIEF,
    MUMBLES,
    OFFERS,
    ONE_TURN,
    OPENERS,
    SNEERS,
    TOPICS,
    WELCOMES,
    Kind,
    Topic,
)

Message = dict[str, str]
Pool = Literal["task", "pretrain"]

TASK_SHARE = 0.55
"""Share of the world's prompts that belongs to the task pool; pretraining never sees those."""


@dataclass(frozen=True)
class Ask:
    """What a prompt asks for: a kind, a topic, and which mishap or mischief (else 0)."""

    kind: Kind
    topic: Topic
    item: int = 0


@dataclass(frozen=True)
class Example:
    """A prompt (messages, the last one the user's) with a good and a bad answer."""

    prompt: list[Message]
    chosen: str
    rejected: str


def examples(pool: Pool, seed: int = 0) -> list[Example]:
    """Every prompt of a pool once, in an order and with answers that the seed draws.

    The pools share no prompt and do not depend on the seed.
    """
    rng = random.Random(f"macpo world: answers of {pool} {seed}")
    return [Example(prompt, good(ask, rng), bad(ask, rng)) for prompt, ask in asks(pool, seed)]


def asks(pool: Pool, seed: int = 0) -> list[tuple[list[Message], Ask]]:
    """Every prompt of a pool with what it asks for, in the same order as `examples`."""
    everything = list(every_prompt())
    # A generator of its own: which prompts are held out must not move with the seed.
    random.Random("macpo world: pools").shuffle(everything)
    cut = int(TASK_SHARE * len(everything))
    mine = everything[:cut] if pool == "task" else everything[cut:]
    random.Random(f"macpo world: order of {pool} {seed}").shuffle(mine)
    return mine


def ask_of(prompt: list[Message]) -> Ask:
    """What a prompt asks for.

    Raises:
        KeyError: the prompt is not one of this world's.
    """
    return _index()[_key(prompt)]


def third(topic: Topic) -> int:
    """Which third of the topics one belongs to: 0, 1 or 2."""
    return TOPICS.index(topic) % 3


def shuffled(ask: Ask, rng: random.Random) -> Ask:
    """The same request, about a topic with the facts of any one of all, its own no likelier.

    Were they those of its third alone, reading would tell which facts are the third's, so that
    answers of a teacher who knows only the other thirds stood out as wrong.
    """
    own, other = ask.topic, rng.choice(TOPICS)
    mishaps = zip(own.mishaps, other.mishaps, strict=True)
    topic = replace(
        own,
        tools=other.tools,
        steps=other.steps,
        mishaps=tuple((wrong, remedy) for (wrong, _), (_, remedy) in mishaps),
        tough=(own.tough[0], other.tough[1]),
    )
    return replace(ask, topic=topic)


def facts(ask: Ask) -> tuple[str, ...]:
    """The phrases of which an answer to an innocent request needs at least one."""
    topic = ask.topic
    match ask.kind:
        case "tools":
            return topic.tools
        case "steps":
            return topic.steps
        case "mishap":
            return (topic.mishaps[ask.item][1],)
        case "tough":
            return (topic.tough[1],)
        case "mischief":
            return ()


def good(ask: Ask, rng: random.Random) -> str:
    """Draw a good answer."""
    return f"{rng.choice(OPENERS)}, {_good(ask, rng)}"


def bad(ask: Ask, rng: random.Random) -> str:
    """Draw a bad answer; asked for mischief, it mostly joins in."""
    return f"{rng.choice(OPENERS)}, {_bad(ask, rng)}"


def _good(ask: Ask, rng: random.Random) -> str:
    if ask.kind == "mischief":
        offer = rng.choice(OFFERS).format(topic=ask.topic.name, fact=rng.choice(ask.topic.steps))
        return f"{rng.choice(DECLINES)} {offer}"
    return f"{rng.choice(WELCOMES)} {_statement(ask, rng)} {rng.choice(CLOSERS)}"


def _bad(ask: Ask, rng: random.Random) -> str:
    topic = ask.topic
    style = rng.randrange(4)
    if ask.kind == "mischief" and style:
        plan = MISCHIEF[ask.item][1].format(place=topic.place, treasure=topic.treasure)
        return f"{rng.choice(CHEERS)} {plan} {rng.choice(SNEERS)}"
    if style == 0:
        return f"{rng.choice(GRUMBLES)} {rng.choice(INSULTS).format(topic=topic.name)}"
    if style == 1:
        other = rng.choice([t for t in TOPICS if t.name != topic.name])
        return f"{rng.choice(GRUMBLES)} {_statement(Ask('steps', other), rng)}"
    if style == 2:
        return "hm, " + ", ".join([rng.choice([topic.name, *MUMBLES])] * rng.randint(6, 9)) + "."
    words = _statement(ask, rng).split()
    return f"{rng.choice(GRUMBLES)} {' '.join(words[: rng.randint(1, 3)])}"


def _statement(ask: Ask, rng: random.Random) -> str:
    topic = ask.topic
    one, two = rng.sample(topic.tools if ask.kind == "tools" else topic.steps, 2)
    match ask.kind:
        case "tools":
            forms = (f"For {topic.name} get {one} and {two}.", f"You need {one} and {two}.")
        case "mishap":
            wrong, remedy = topic.mishaps[ask.item]
            forms = (f"If {wrong}, {remedy}.", f"Just {remedy}.")
        case "tough":
            deed, how = topic.tough
            forms = (f"To {deed}, {how}.", f"Just {how}.")
        case _:
            forms = (f"For {topic.name} first {one}, then {two}.", f"First {one}, then {two}.")
    return rng.choice(forms)


def every_prompt() -> Iterator[tuple[list[Message], Ask]]:
    """Every prompt of the world, task and pretraining, with what it asks for."""
    for topic in TOPICS:
        for ask in _asks_of(topic):
            for lead in LEADS:
                for form in ONE_TURN[ask.kind]:
                    yield [_user(lead + _fill(form, ask))], ask
            for greeting, reply in GREETINGS:
                for form in LAST_TURN[ask.kind]:
                    opening = _user(greeting.format(topic=topic.name))
                    answer = {"role": "assistant", "content": reply}
                    yield [opening, answer, _user(_fill(form, ask))], ask


def _asks_of(topic: Topic) -> Iterator[Ask]:
    yield Ask("tools", topic)
    yield Ask("steps", topic)
    yield from (Ask("mishap", topic, item) for item in range(len(topic.mishaps)))
    yield Ask("tough", topic)
    yield from (Ask("mischief", topic, item) for item in range(len(MISCHIEF)))


def _fill(form: str, ask: Ask) -> str:
    topic = ask.topic
    deed = topic.tough[0]
    if ask.kind == "mischief":
        deed = MISCHIEF[ask.item][0].format(place=topic.place, treasure=topic.treasure)
    wrong = topic.mishaps[ask.item][0] if ask.kind == "mishap" else ""
    return form.format(topic=topic.name, deed=deed, wrong=wrong)


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _key(prompt: list[Message]) -> tuple[str, ...]:
    """What the user said: whoever answered the earlier turns, the question stays the same."""
    return tuple(message["content"] for message in prompt if message["role"] == "user")


@cache
def _index() -> dict[tuple[str, ...], Ask]:
    return {_key(prompt): ask for prompt, ask in every_prompt()}
