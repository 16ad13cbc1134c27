"""Our own trainer: `macpo train --dataset`, which takes pairs in every form."""

from __future__ import annotations

from macpo_data.forms.shape import Shape
from macpo_data.forms.trainer import PLAIN, TURNS, Answer, Trainer, Use

_TRAIN = (
    "macpo train --dataset {{ place }} --config {{ config }} --base BASE --out DIR"
    "{% if tag %} --revision {{ tag }}{% endif %}"
)
_SFT = "--set objective=sft --set columns.chosen=completion --set columns.rejected=null"


def _fine_tunes(shape: Shape) -> Answer:
    if shape.conversations:
        return False, "wants the prompt apart"
    return True, f"macpo train --dataset, {_SFT}"


TRAINER = Trainer(
    "macpo",
    "macpo",
    Use(PLAIN, _TRAIN, lambda shape: (True, "macpo train --dataset")),
    Use(TURNS, f"{_TRAIN} {_SFT}", _fine_tunes),
)
