"""Axolotl: a YAML file with a list of datasets."""

from __future__ import annotations

from macpo_data.forms.shape import Shape
from macpo_data.forms.trainer import (
    CONVERSATIONS,
    PLAIN,
    WANTS_CONVERSATIONS,
    Answer,
    Trainer,
    Use,
)


def _reads(shape: Shape) -> Answer:
    if not shape.apart:
        return False, "chat_template.default wants the prompt apart"
    readable = {shape.chosen, shape.rejected} <= {"text", "messages", "message"}
    return readable, f"type: chat_template.default, field_messages: {shape.columns.prompt}"


def _fine_tunes(shape: Shape) -> Answer:
    if shape.conversations:
        return True, "type: chat_template, field_messages: messages"
    return False, WANTS_CONVERSATIONS


TRAINER = Trainer(
    "axolotl",
    "axolotl",
    Use(
        PLAIN,
        """\
rl: dpo
datasets:
  - path: {{ place }}
    name: {{ config }}
    split: train
{% if tag %}
    revision: {{ tag }}
{% endif %}
    type: chat_template.default
    field_messages: prompt
    field_chosen: chosen
    field_rejected: rejected""",
        _reads,
    ),
    Use(
        CONVERSATIONS,
        """\
datasets:
  - path: {{ place }}
    name: {{ config }}
    split: train
    type: chat_template
    field_messages: messages""",
        _fine_tunes,
    ),
)
