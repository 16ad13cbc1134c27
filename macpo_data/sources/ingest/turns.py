"""How a prompt and the two sides of a row fit together, by their turns."""

from __future__ import annotations

from macpo_data.sources.ingest.canonical import Message, Reason, Refusal


def without_lead(
    chosen: list[Message] | None, rejected: list[Message] | None, apart: bool
) -> tuple[list[Message], list[Message] | None, list[Message] | None]:
    """The turns that both sides begin with, and the sides without them.

    Where the prompt is apart and a side begins with the assistant, all of the side is the answer.
    """
    sides = [side for side in (chosen, rejected) if side]
    led = [s for s in sides if not apart or s[0]["role"] != "assistant"]
    if not led:
        return [], chosen, rejected
    if len(led) == 1:
        at = answer(led[0])
        lead = led[0][:at]
    else:
        at = _common(*led)
        lead = led[0][:at]
    rest = [side[at:] if side is not None and any(side is each for each in led) else side
            for side in (chosen, rejected)]  # fmt: skip
    return lead, rest[0], rest[1]


def answer(side: list[Message]) -> int:
    """Where the answer of one conversation begins: behind its last turn that is not its own."""
    at = len(side)
    while at and side[at - 1]["role"] in ("assistant", "tool"):
        at -= 1
    while at < len(side) and side[at]["role"] != "assistant":
        at += 1
    return at


def _common(one: list[Message], other: list[Message]) -> int:
    """Where two conversations part, at a turn of the assistant.

    Raises:
        Refusal: they part before, at what the user or the system says.
    """
    most = min(len(one), len(other)) - 1
    at = next((n for n in range(most) if one[n] != other[n]), most)
    while at and "tool" in (one[at]["role"], other[at]["role"]):
        at -= 1
    others = [side for side in (one, other) if side[at]["role"] != "assistant"]
    if others and not all(at == len(side) - 1 for side in (one, other)):
        raise Refusal(Reason.PROMPT_DIFFERS)
    rest = [*one[at + 1 :], *other[at + 1 :]]
    if any(message["role"] not in ("assistant", "tool") for message in rest):
        raise Refusal(Reason.PROMPT_DIFFERS)
    return at


def joined(prompt: list[Message], lead: list[Message]) -> list[Message]:
    """The longer one of a prompt and of what the sides begin with, which must hold the other.

    Raises:
        Refusal: they ask different questions.
    """
    if not prompt or not lead:
        return prompt or lead
    if prompt[-len(lead) :] == lead:
        return prompt
    if lead[-len(prompt) :] == prompt or lead[: len(prompt)] == prompt:
        return lead
    raise Refusal(Reason.PROMPT_DIFFERS, "the prompt, and what the sides begin with, are different")
