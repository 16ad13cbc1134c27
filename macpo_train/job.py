"""The description of one training: all of its inputs and settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from macpo_data.models.base import Base
from macpo_data.recipe.training import (
    DPO,
    SFT,
    Confidence,
    Finetuning,
    Lora,
    RewardTraining,
    Train,
)
from macpo_data.signs.rules import Signs


@dataclass(frozen=True)
class Job:
    """One training: what `macpo_train` needs to know, and nothing about rounds or stores."""

    dataset: Path  # parquet with prompt, chosen, rejected and their finish reasons
    column: str  # SFT: chosen or rejected; the others use both
    base: Base
    chat_template: str
    start: Path | None  # adapter or checkpoint to continue; None: the base
    out: Path
    settings: SFT | DPO | RewardTraining
    lora: Lora
    train: Train
    finetuning: Finetuning = "lora"
    confidence: Confidence | None = None  # SFT: trust the policy's own predictions as well
    lr_scale: float = 1.0
    seed: int = 0
    fake: bool = False  # write a placeholder, for trying a recipe's logic
    scored_under: dict[str, Any] | None = None  # what the dataset's scores depend on, if known
    reference: Path | None = None  # dpo.reference=initial: that policy; None: it is `start`
    scores: Path | None = None  # in the dataset's columns, where other scores are the reference's
    cache: Path | None = None  # where log-probabilities of references are kept; None: nowhere
    logs: Path | None = None  # where tensorboard's files go; None: beside `out`
    another_base: bool | None = None  # take adapters that name another one; None: nobody can say
    name: str = ""  # of the curves; empty: that of `out`
    start_signs: Signs = field(default_factory=dict)  # of the training that made `start`, if known
