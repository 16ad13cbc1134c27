"""Supervised fine-tuning on responses, with trl's SFTTrainer."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from macpo_data.chat import Chat
from macpo_train.encode import Encoded
from macpo_train.loop import run, training_arguments
from macpo_train.train import Job, Report

METRICS = {"loss": "loss", "grad_norm": "grad_norm", "learning_rate": "learning_rate"}


def train_sft(report: Report, job: Job, model: Any, chat: Chat, data: Encoded) -> dict[str, Any]:
    """Minimise the cross-entropy of response tokens; the prompt's tokens carry no loss.

    Returns:
        For the manifest, one row per optimiser step among it.
    """
    (responses,) = data.responses.values()
    pairs = list(zip(data.prompts, responses, strict=True))
    dataset = Dataset.from_dict(
        {
            "input_ids": [[*p, *r] for p, r in pairs],
            "completion_mask": [[0] * len(p) + [1] * len(r) for p, r in pairs],
        }
    )

    def make(watch: Any) -> SFTTrainer:
        return SFTTrainer(
            model=model,
            args=SFTConfig(**training_arguments(job, len(pairs)), completion_only_loss=True),
            train_dataset=dataset,
            processing_class=chat.tokenizer,
            callbacks=[watch],
        )

    return run(report, job, METRICS, make)
