"""Signs of failure in a training: its last steps compared with its first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from macpo_data.signs.rules import ENOUGH, Sign, Signs, beside, sign

HARDLY = 0.05  # of DPO's margin: with a beta of 0.1 half a nat apart, of answers of many nats
WINDOW = 5  # steps of a training whose mean is looked at, so that one batch raises no alarm

Reference = Literal["base", "previous", "initial"]  # of DPO; initial: the policy of round 0


def of_training(
    history: Sequence[Mapping[str, float]],
    start: Mapping[str, Sign] = {},
    reference: Reference = "previous",
) -> Signs:
    """Signs in the last steps of a training, against its first.

    Args:
        history: metrics by step, so far.
        start: signs of the training that made the policy from which this one starts.
        reference: of DPO.
    """
    if len(history) < WINDOW:
        return {}

    def mean(name: str, steps: int) -> float:
        return sum(row[name] for row in history[-steps:]) / steps

    first = history[0]
    if "chosen_shift" not in first:
        # With the confidence loss the whole is a mixture whose weights change.
        name = "weak" if "weak" in first else "loss"
        # One batch says little of the next few: at first it is the hardest of some that counts.
        hardest = max(row[name] for row in history[:WINDOW])
        before = hardest if len(history) < ENOUGH else first[name]
        return {"loss": sign("loss", mean(name, WINDOW), before)}
    signs: Signs = {}
    for name in ("chosen_shift", "rejected_shift"):
        # The differences to the first step add up over the rounds, whatever the reference. Against
        # the policy of round 0 the first step itself says what was before, on these very pairs.
        earlier = start[name]["value"] if name in start else None
        if reference == "initial":
            earlier = first[name]
        # As in a CUSUM (Page 1954), a rise before makes up for no fall now.
        signs[name] = sign(name, mean(name, WINDOW) - first[name] + min(earlier or 0.0, 0), earlier)
    values = {"reward_margin": mean("margin", WINDOW)}
    if len(history) >= ENOUGH:
        values["accuracy"] = mean("accuracy", ENOUGH)
    return signs | beside(values, {}, {})


def hardly_moved(history: Sequence[Mapping[str, float]]) -> bool:
    """Whether DPO ended with the two answers about as likely as the reference finds them.

    >>> hardly_moved([{"margin": 0.0}, {"margin": 0.003}]), hardly_moved([{"loss": 2.0}])
    (True, False)
    """
    return "margin" in history[-1] and abs(history[-1]["margin"]) < HARDLY
