"""DPO + gamma * SFT, in the frame of trl's DPOTrainer.

trl keeps the loop, the logging and the devices. Ours are the token ids (the same as in generation
and scoring), the reference's log-probabilities (made once, before the first step) and the loss.
"""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from macpo_data.chat import Chat
from macpo_data.packing import response_logprobs
from macpo_data.recipe import DPO
from macpo_train.loss import dpo_loss, macpo_loss, sft_loss
from macpo_train.train import Encoded, Job, Report, callback, quiet, training_arguments

METRICS = {
    "loss": "loss",
    "loss/dpo": "dpo",
    "loss/sft": "sft",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "logps/chosen": "chosen_logprob",
    "logps/rejected": "rejected_logprob",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
}
SIDES = ("chosen", "rejected")


class Trainer(DPOTrainer):  # type: ignore[misc]
    """trl's trainer on token ids, with MACPO's loss."""

    settings: DPO
    pad_id: int

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """The rows are tokenised already."""
        return dataset

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> torch.Tensor:
        rows = inputs["rows"]
        logprobs, mask = response_logprobs(
            model,
            [row["prompt_ids"] for _ in SIDES for row in rows],
            [row[f"{side}_ids"] for side in SIDES for row in rows],
            self.pad_id,
        )
        chosen, rejected = logprobs.sum(1).chunk(2)
        reference = {
            side: torch.tensor([row[f"reference_{side}"] for row in rows], device=chosen.device)
            for side in SIDES
        }
        settings = self.settings
        dpo, chosen_reward, rejected_reward = dpo_loss(
            chosen, rejected, reference["chosen"], reference["rejected"], settings.beta
        )
        half = len(rows)
        sft = sft_loss(logprobs[:half], mask[:half], settings.sft_normalization)
        margin = chosen_reward - rejected_reward
        for name, value in {
            "loss/dpo": dpo.mean(),
            "loss/sft": sft,
            "rewards/margins": margin.mean(),
            "rewards/accuracies": (margin > 0).float().mean(),
            "logps/chosen": chosen.mean(),
            "logps/rejected": rejected.mean(),
        }.items():
            self._metrics["train"][name].append(value.item())
        return macpo_loss(dpo, sft, settings.gamma)


def train_dpo(
    report: Report, job: Job, model: Any, chat: Chat, data: Encoded
) -> list[dict[str, float]]:
    """Continue a policy against a frozen reference.

    `reference: previous` is the policy as it starts here; `base` is the network without adapter.

    Returns:
        One row per optimiser step.
    """
    settings = job.settings
    assert isinstance(settings, DPO)
    columns: dict[str, list[Any]] = {"prompt_ids": data.prompts}
    columns |= {f"{side}_ids": data.responses[side] for side in SIDES}
    columns |= {
        f"reference_{side}": values
        for side, values in reference_logprobs(report, job, model, chat, data).items()
    }
    history: list[dict[str, float]] = []
    trainer = Trainer(
        model=model,
        args=DPOConfig(**training_arguments(job, len(data.prompts)), beta=settings.beta),
        train_dataset=Dataset.from_dict(columns),
        processing_class=chat.tokenizer,
        data_collator=lambda rows: {"rows": rows},
        callbacks=[callback(report, history, METRICS)],
    )
    trainer.settings = settings
    trainer.pad_id = chat.pad_id
    # trl keeps a copy of the starting adapter for its own reference pass, which is not needed here.
    if "ref" in trainer.model.peft_config:
        trainer.model.delete_adapter("ref")
    quiet(trainer)
    trainer.train()
    return history


def reference_logprobs(
    report: Report, job: Job, model: Any, chat: Chat, data: Encoded
) -> dict[str, list[float]]:
    """Log-probability of each response under the reference, summed over its tokens."""
    from contextlib import nullcontext

    settings = job.settings
    assert isinstance(settings, DPO)
    rows = len(data.prompts)
    size = job.train.micro_batch_size or settings.batch_size
    found: dict[str, list[float]] = {side: [0.0] * rows for side in SIDES}
    order = sorted(
        range(rows), key=lambda i: len(data.prompts[i]) + len(data.responses["chosen"][i])
    )
    model.eval()
    silent = model.disable_adapter() if settings.reference == "base" else nullcontext()
    with torch.no_grad(), silent:
        for at in range(0, rows, size):
            batch = order[at : at + size]
            report(at, rows, "reference")
            for side in SIDES:
                logprobs, _ = response_logprobs(
                    model,
                    [data.prompts[i] for i in batch],
                    [data.responses[side][i] for i in batch],
                    chat.pad_id,
                )
                for i, value in zip(batch, logprobs.sum(1).tolist(), strict=True):
                    found[side][i] = value
    return found
