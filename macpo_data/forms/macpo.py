"""Our own trainer: `macpo train --dataset`, which takes pairs in every form."""

from __future__ import annotations

from macpo_data.forms.trainer import (
    PAIR_OF_TEXTS,
    PLAIN,
    TEXT,
    TURNS,
    AsText,
    Trainer,
    templated_use,
)

_TRAIN = (
    "macpo train --dataset {{ place }} {% if config %}--config {{ config }} {% endif %}"
    "--base BASE --out DIR"
    "{% if tag %} --revision {{ tag }}{% endif %}"
)
_SFT = "--set objective=sft --set columns.chosen=completion --set columns.rejected=null"
_AS_TEXT = "--set chat_template=none"

TRAINER = Trainer(
    "macpo",
    "macpo",
    # That a row can be used at all is told by the rows themselves: `sources.usable.why_none`.
    templated_use(
        PLAIN,
        _TRAIN,
        lambda shape: (True, "macpo train --dataset"),
        as_text=AsText(PAIR_OF_TEXTS, f"{_TRAIN} {_AS_TEXT}"),
    ),
    templated_use(
        TURNS,
        f"{_TRAIN} {_SFT}",
        lambda shape: (True, "macpo train --dataset --set objective=sft"),
        as_text=AsText(TEXT, f"{_TRAIN} {_SFT} {_AS_TEXT}"),
    ),
)
