"""Axolotl: a YAML file with a list of datasets."""

from __future__ import annotations

from macpo_data.forms.shape import Shape
from macpo_data.forms.trainer import (
    CONVERSATIONS,
    PAIR_OF_TEXTS,
    PLAIN,
    RENDERED_AGAIN,
    SEVERAL,
    TOOLS,
    WANTS_CONVERSATIONS,
    Answer,
    AsText,
    Form,
    Trainer,
    Use,
)
from macpo_data.sources.ingest.canonical import Reason, Refusal, Row
from macpo_data.sources.ingest.json_text import Record

_TAGS = (
    "message_property_mappings: {role: from, content: value}, "
    "roles: {user: [human], assistant: [gpt], system: [system]}"
)


def _reads(shape: Shape) -> Answer:
    if lost := shape.loses():  # it takes role and content of a message, and the last one of a side
        return False, lost
    if shape.rendered:
        plain = shape.usual and shape.texts
        return (True, "type: passthrough") if plain else (False, RENDERED_AGAIN)
    messages = f"type: chat_template.default, field_messages: {shape.columns.prompt}"
    messages += shape.keys("field_")
    if shape.apart and {shape.chosen, shape.rejected} <= {"text", "messages", "message"}:
        return True, messages
    if shape.full:
        return True, f"type: chat_template.argilla_chat{shape.keys('field_')}"
    if shape.in_prompt and shape.prompt == shape.sides == "tagged":
        return True, f"{messages}, {_TAGS}"
    return False, "wants all of the prompt in one column, or whole conversations in both sides"


def _fine_tunes(shape: Shape) -> Answer:
    if shape.conversations:
        return True, "type: chat_template, field_messages: messages"
    return False, WANTS_CONVERSATIONS


# What stands before an answer where axolotl looks for it, by its text: a message of its own, and
# the names of roles.
_BEFORE = ("[[dummy_message]]", "user", "assistant")


def _pair(row: Row) -> Record:
    for side in row.sides:
        if any(side[0]["content"] in words for words in _BEFORE):
            why = (
                "axolotl finds an answer by its text, and this one's stands in its own words before"
            )
            raise Refusal(Reason.OTHER_CONTENT, why)
    return PLAIN.record(row)


TRAINER = Trainer(
    "axolotl",
    "axolotl",
    Use(
        PLAIN,
        """\
rl: dpo
datasets:
  - path: {{ place }}
{% if config %}
    name: {{ config }}
{% endif %}
    split: train
{% if tag %}
    revision: {{ tag }}
{% endif %}
    type: chat_template.default
    field_messages: prompt
    field_chosen: chosen
    field_rejected: rejected""",
        _reads,
        converted=Form(record=_pair),
        as_text=AsText(
            PAIR_OF_TEXTS,
            """\
rl: dpo
datasets:
  - path: {{ place }}
    split: train
    type: passthrough""",
        ),
    ),
    Use(
        CONVERSATIONS,
        """\
datasets:
  - path: {{ place }}
{% if config %}
    name: {{ config }}
{% endif %}
    split: train
    type: chat_template
    field_messages: messages""",
        _fine_tunes,
        takes=frozenset({Reason.TOOL_CALL, Reason.TOOL_RESULT}) | SEVERAL | TOOLS,
    ),
)
