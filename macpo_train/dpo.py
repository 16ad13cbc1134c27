"""DPO with an SFT term (DPO + gamma * SFT), on top of trl's DPOTrainer.

trl keeps the loop, the logging, the devices and the checkpoints. Ours are the token ids (the same
as in generation and scoring), the reference's log-probabilities (known before the first step), the
reading of chosen and rejected behind one prompt, and the losses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOConfig, DPOTrainer
from trl.trainer import dpo_trainer

from macpo_data.models.chat import Chat
from macpo_data.models.logprobs import answer_logprobs, why_not_shared, window
from macpo_data.models.worker import Report
from macpo_data.recipe.training import DPO
from macpo_train.encode import Encoded
from macpo_train.job import Job
from macpo_train.loop import exact, hold, own_rows, run, shard, training_arguments
from macpo_train.loss import dpo_loss, hinge_loss, ipo_loss, learned, macpo_loss, sft_loss
from macpo_train.reference import SIDES, reference_logprobs
from macpo_train.watch import say

METRICS = {
    "loss": "loss",
    "loss/dpo": "dpo",
    "loss/sft": "sft",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "logps/chosen": "chosen_logprob",
    "logps/rejected": "rejected_logprob",
    "shift/chosen": "chosen_shift",
    "shift/rejected": "rejected_shift",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
}


class Trainer(DPOTrainer):  # type: ignore[misc]
    """trl's trainer on token ids, with our losses."""

    settings: DPO
    pad_id: int
    shared: bool
    _metrics: dict[str, Any]

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """The rows are tokenised already."""
        return dataset

    def get_batch_samples(self, *args: Any) -> tuple[list[dict[str, Any]], None]:
        """Weigh the micro batches of a step so that however it is cut, each row counts alike."""
        batches, _ = super().get_batch_samples(*args)
        rows = own_rows(self, batches)
        for batch in batches:
            own = batch["rows"][: batch["count"]]
            batch["tokens"] = sum(len(r["chosen_ids"]) - len(r["chosen_read_only"]) for r in own)
        tokens = torch.tensor([sum(batch["tokens"] for batch in batches)])
        tokens = self.accelerator.gather(tokens.to(self.accelerator.device)).sum().item()
        # The mean over micro batches and processes is taken later.
        parts = len(batches) * self.args.world_size
        for batch in batches:
            batch["weight"] = batch["count"] * parts / rows
            batch["token_weight"] = batch["tokens"] * parts / tokens
        return batches, None

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Tensor:
        rows, settings, weight = inputs["rows"], self.settings, inputs["weight"]
        logprobs, mask = answer_logprobs(
            model,
            [row["prompt_ids"] for row in rows],
            [[row[f"{side}_ids"] for side in SIDES] for row in rows],
            self.pad_id,
            self.shared,
        )
        places = [row[f"{side}_read_only"] for row in rows for side in SIDES]
        logprobs, mask = learned(logprobs, mask, places)
        # trl's order: first all chosen, then all rejected.
        logprobs, mask = (torch.cat([x[0::2], x[1::2]]) for x in (logprobs, mask))
        chosen, rejected = logprobs.sum(1).chunk(2)
        reference = (
            torch.tensor([row["reference_chosen"] for row in rows], device=chosen.device),
            torch.tensor([row["reference_rejected"] for row in rows], device=chosen.device),
        )
        chosen_tokens, rejected_tokens = mask.sum(1).chunk(2)
        each, margin = self._preferences(
            (chosen, rejected, *reference), (chosen_tokens, rejected_tokens)
        )
        half = len(rows)
        sft = sft_loss(logprobs[:half], mask[:half], settings.sft_normalization)
        by_token = settings.sft_normalization == "token"
        dpo, sft = each.mean() * weight, sft * (inputs["token_weight"] if by_token else weight)
        metrics = {
            "loss/dpo": dpo,
            "loss/sft": sft,
            "rewards/margins": margin.mean() * weight,
            "rewards/accuracies": (margin > 0).float().mean() * weight,
            "logps/chosen": chosen.mean() * weight,
            "logps/rejected": rejected.mean() * weight,
            "shift/chosen": (chosen - reference[0]).mean() * weight,
            "shift/rejected": (rejected - reference[1]).mean() * weight,
        }
        means = torch.stack([value.detach() for value in metrics.values()])
        means = self.accelerator.gather(means[None]).mean(0)
        for name, value in zip(metrics, means.tolist(), strict=True):
            self._metrics["train"][name].append(value)
        return macpo_loss(dpo, sft, settings.gamma)

    def _preferences(
        self, pair: tuple[Tensor, Tensor, Tensor, Tensor], tokens: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The loss of each pair, and the margin between its rewards, both (B,).

        Args:
            pair: (B,) log-probabilities of chosen and of rejected, then both under the reference.
            tokens: (B,) of chosen and (B,) of rejected.
        """
        settings, beta = self.settings, self.settings.beta
        each, chosen_reward, rejected_reward = dpo_loss(*pair, beta, settings.label_smoothing)
        match settings.loss:
            case "hinge":
                each = hinge_loss(*pair, beta)
            case "ipo":
                each = ipo_loss(*pair, *tokens, beta)
            case "none":
                each = torch.zeros_like(each)
        return each, chosen_reward - rejected_reward


def train_dpo(report: Report, job: Job, model: Any, chat: Chat, data: Encoded) -> dict[str, Any]:
    """Continue a policy against a frozen reference.

    `reference: previous` is the policy as it starts here; `initial` is `job.reference`; `base` is
    the network without adapter.

    Returns:
        For the manifest, one row per optimiser step among it.
    """
    settings = job.settings
    assert isinstance(settings, DPO)
    arguments = training_arguments(job, len(data.prompts))
    facts: dict[str, Any] = {}
    columns: dict[str, list[Any]] = {"prompt_ids": data.prompts}
    columns |= {f"{side}_ids": data.responses[side] for side in SIDES}
    columns |= {f"{side}_read_only": data.read_only[side] for side in SIDES}

    def make(watch: Any) -> Trainer:
        with exact(model), without_reference():
            trainer = Trainer(
                model=model,
                args=DPOConfig(**arguments),
                train_dataset=Dataset.from_dict(columns),
                processing_class=chat.tokenizer,
                data_collator=hold,
                callbacks=[watch],
            )
        trainer.settings, trainer.pad_id = settings, chat.pad_id
        trainer.aux_loss_enabled = False
        if getattr(model.config.get_text_config(), "router_aux_loss_coef", None):
            say("the load-balancing loss of its experts is left out")
        # trl keeps a copy of the starting adapter for its own reference pass, which is not needed
        # here, and with which a checkpoint would be resumed from the wrong weights.
        if "ref" in getattr(trainer.model, "peft_config", {}):
            trainer.model.delete_adapter("ref")
        shard(trainer)
        plain = why_plain(job, model, data)
        if plain:
            say(f"chosen and rejected each read their prompt: {plain}")
        trainer.shared = not plain
        reference, origin = reference_logprobs(report, job, model, chat, data, trainer.shared)
        held_to = settings.reference if job.start or settings.reference != "previous" else "base"
        say(
            f"log-probabilities of the reference ({held_to}): {origin['stored']} from "
            f"generation, {origin['cached']} from the cache, {origin['computed']} computed"
        )
        reference_columns = {f"reference_{side}": values for side, values in reference.items()}
        trainer.train_dataset = Dataset.from_dict(columns | reference_columns)
        facts.update(shared_prompt=plain or True, reference_logprobs=origin)
        return trainer

    return {**run(report, job, METRICS, make), **facts}


@contextmanager
def without_reference() -> Iterator[None]:
    """Keep trl from loading the base once more as a reference, where all weights are trained."""
    usual = dpo_trainer.create_model_from_path
    dpo_trainer.create_model_from_path = lambda *_, **__: None
    try:
        yield
    finally:
        dpo_trainer.create_model_from_path = usual


def why_plain(job: Job, model: Any, data: Encoded) -> str | None:
    """Why chosen and rejected do not share their prompt; None if they do."""
    if not job.train.shared_prompt:
        return "train.shared_prompt is off"
    limit = window(model)
    if limit and data.longest > limit:
        return f"sequences of {data.longest} tokens exceed the attention window of {limit}"
    return why_not_shared(model.eval())
