"""TRL: `trl dpo` and `trl sft`."""

from __future__ import annotations

from macpo_data.forms.shape import Shape
from macpo_data.forms.trainer import (
    PAIR_OF_TEXTS,
    PLAIN,
    RENDERED_AGAIN,
    TEXT,
    TURNS,
    Answer,
    AsText,
    Trainer,
    templated_use,
)
from macpo_data.sources.ingest.canonical import TRAINABLE

# It looks at any one of the columns it knows to tell whether a row is text or messages.
_LOOKED_AT = ("messages", "completion")


def _reads(shape: Shape) -> Answer:
    if lost := shape.loses(*TRAINABLE):
        return False, lost
    if not shape.usual:
        return False, "wants the columns prompt, chosen and rejected by these names"
    conversational = shape.chosen == "messages"
    for name in _LOOKED_AT:
        if name in shape.kinds and (shape.kinds[name] == "messages") != conversational:
            return False, f"a column named {name} would be misread"
    if shape.rendered and conversational:
        return False, RENDERED_AGAIN
    if shape.explicit:
        return True, "explicit prompt"
    if shape.implicit:
        return True, "the prompt is inside both sides, and taken out"
    if shape.full:
        return False, "the prompt is there twice: apart, and inside the sides"
    if shape.prompt == shape.sides and shape.apart is False:
        return False, "wants all of the prompt in the column prompt, and the answers alone"
    holds = f"prompt is {shape.prompt}, chosen {shape.chosen}, rejected {shape.rejected}"
    return False, f"{holds}; they have to be alike"


def _fine_tunes(shape: Shape) -> Answer:
    if {"prompt", "completion"} <= shape.kinds.keys():
        return True, "trl sft"
    if {"messages", "conversations"} & shape.kinds.keys() and shape.prompt == "missing":
        return True, "trl sft"
    return False, "wants prompt and completion, or messages, by these names"


_DPO = (
    "trl dpo --dataset_name {{ place }} "
    "{% if config %}--dataset_config {{ config }} {% endif %}"
    "--loss_type sigmoid sft --loss_weights 1.0 {{ gamma }} --beta {{ beta }} "
    "--model_name_or_path BASE --output_dir DIR"
)
_SFT = (
    "trl sft --dataset_name {{ place }} "
    "{% if config %}--dataset_config {{ config }} {% endif %}"
    "--model_name_or_path BASE --output_dir DIR"
)
TRAINER = Trainer(
    "trl",
    "TRL",
    templated_use(
        PLAIN,
        _DPO,
        _reads,
        as_text=AsText(PAIR_OF_TEXTS, _DPO),
    ),
    templated_use(
        TURNS,
        _SFT,
        _fine_tunes,
        as_text=AsText(TEXT, _SFT),
    ),
)
