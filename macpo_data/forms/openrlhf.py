"""OpenRLHF: it names no configuration, and so reads the default one."""

from __future__ import annotations

from macpo_data.forms.shape import Shape
from macpo_data.forms.trainer import PLAIN, Answer, Trainer, Use


def _reads(shape: Shape) -> Answer:
    if shape.sides == "messages" and (shape.explicit or shape.implicit):
        return True, "--data.apply_chat_template, the default configuration only"
    return False, "wants lists of messages, the prompt apart or inside both"


TRAINER = Trainer(
    "openrlhf",
    "OpenRLHF (reads the default configuration)",
    Use(
        PLAIN,
        "--data.dataset {{ place }} --data.apply_chat_template --data.prompt_key prompt "
        "--data.chosen_key chosen --data.rejected_key rejected",
        _reads,
    ),
)
