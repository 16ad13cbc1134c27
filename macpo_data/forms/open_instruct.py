"""open-instruct: it names no configuration, so that a branch has the full form as default."""

from __future__ import annotations

from macpo_data.forms.trainer import FULL, Trainer, Use, reads_full

TRAINER = Trainer(
    "open-instruct",
    "open-instruct (the branch whose default is the full form)",
    Use(FULL, "--mixer_list {{ place }} 1.0 --dataset_revision full", reads_full),
)
