"""Trains a reward model on preference pairs, with trl's RewardTrainer."""

from __future__ import annotations

import shutil
from typing import Any

from datasets import Dataset
from trl import RewardConfig, RewardTrainer

from macpo_data.errors import ModelError
from macpo_data.models.base import load_classifier
from macpo_data.models.chat import Chat
from macpo_data.models.worker import Report
from macpo_data.recipe.training import RewardTraining
from macpo_train.adapter import save_adapter, sharded, with_adapter
from macpo_train.encode import Encoded
from macpo_train.job import Job
from macpo_train.loop import run, training_arguments

METRICS = {
    "loss": "loss",
    "accuracy": "accuracy",
    "margin": "reward_margin",
    "mean_reward": "reward",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
}


def classifier(job: Job) -> Any:
    """The base with a new head of one output; unless all of it is trained, with an adapter.

    Raises:
        ModelError: the base cannot be loaded, or has no matrix of `lora.targets`.
    """
    assert isinstance(job.settings, RewardTraining)
    # Small steps would be lost in the few digits of bfloat16, where all weights are trained.
    is_full = job.finetuning == "full"
    model = load_classifier(job.base, "float32" if is_full else job.train.dtype, new_head=True)
    if is_full:
        return model
    # Of this task peft trains the head as well, and saves it with the adapter; in as few digits as
    # the base has, unlike the adapter.
    model = with_adapter(model, job, "SEQ_CLS")
    for weights in model.parameters():
        if weights.requires_grad:
            weights.data = weights.data.float()
    return model


def train_reward(report: Report, job: Job, model: Any, chat: Chat, data: Encoded) -> dict[str, Any]:
    """Minimise -log sigmoid(reward of chosen - reward of rejected).

    Returns:
        For the manifest, one row per optimiser step among it.

    Raises:
        ModelError: the processes are to shard it.
    """
    if sharded():
        raise ModelError("a reward model is not sharded; use distributed_type: MULTI_GPU")
    sides = {
        f"{side}_ids": [p + r for p, r in zip(data.prompts, data.responses[side], strict=True)]
        for side in ("chosen", "rejected")
    }

    def make(watch: Any) -> RewardTrainer:
        return RewardTrainer(
            model=model,
            args=RewardConfig(**training_arguments(job, len(data.prompts))),
            train_dataset=Dataset.from_dict(sides),
            processing_class=chat.tokenizer,
            callbacks=[watch],
        )

    return run(report, job, METRICS, make)


def save(model: Any, job: Job, chat: Chat) -> None:
    """Write the adapter with its head, or the whole classifier with its tokenizer."""
    if job.finetuning == "lora":
        return save_adapter(model, job.base, job.out)
    model.save_pretrained(job.out)
    chat.tokenizer.chat_template = chat.template
    chat.tokenizer.save_pretrained(job.out)
    shutil.rmtree(job.out / "trainer", ignore_errors=True)
