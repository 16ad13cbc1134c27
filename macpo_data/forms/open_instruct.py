"""open-instruct: it names no configuration, so that a branch has the full form as default."""

from __future__ import annotations

from macpo_data.forms.shape import Shape
from macpo_data.forms.trainer import (
    ANY_ROLE,
    COMMAND,
    FULL,
    RENDERED_AGAIN,
    TEMPLATED,
    WANTS_FULL,
    Answer,
    Trainer,
    Use,
)


def _reads(shape: Shape) -> Answer:
    if lost := shape.loses(*TEMPLATED):
        return False, lost
    if shape.rendered:
        return False, RENDERED_AGAIN
    if shape.full:
        return True, "whole conversations"
    return False, WANTS_FULL


TRAINER = Trainer(
    "open-instruct",
    "open-instruct (the branch whose default is the full form)",
    Use(
        FULL,
        "--mixer_list {% if config %}{{ place }} 1.0 --dataset_revision full{% else %}"
        "{{ file }} 1.0{% endif %}",
        _reads,
        takes=TEMPLATED,
        keys=None,
        roles=ANY_ROLE,
        snippet_file=COMMAND,
    ),
)
