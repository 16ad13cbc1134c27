"""TRL: `trl dpo` and `trl sft`."""

from __future__ import annotations

from macpo_data.forms.shape import Shape
from macpo_data.forms.trainer import PLAIN, TURNS, Answer, Trainer, Use

# Columns by which it takes a dataset for one of another kind.
_MISREAD = ("messages", "completion", "label", "completions")


def _reads(shape: Shape) -> Answer:
    if misread := [name for name in _MISREAD if name in shape.kinds]:
        return False, f"a column named {misread[0]} would be misread"
    if shape.explicit:
        return True, "explicit prompt"
    if shape.implicit:
        return True, "the prompt is inside both sides, and taken out"
    if shape.full:
        return False, "the prompt is there twice: apart, and inside the sides"
    holds = f"prompt is {shape.prompt}, chosen {shape.chosen}, rejected {shape.rejected}"
    return False, f"{holds}; they have to be alike"


TRAINER = Trainer(
    "trl",
    "TRL",
    Use(
        PLAIN,
        "trl dpo --dataset_name {{ place }} --dataset_config {{ config }} "
        "--loss_type sigmoid sft --loss_weights 1.0 {{ gamma }} --beta {{ beta }} "
        "--model_name_or_path BASE --output_dir DIR",
        _reads,
    ),
    Use(
        TURNS,
        "trl sft --dataset_name {{ place }} --dataset_config {{ config }} "
        "--model_name_or_path BASE --output_dir DIR",
        lambda shape: (True, "trl sft"),
    ),
)
