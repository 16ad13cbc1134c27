"""Supervised fine-tuning on responses, with trl's SFTTrainer, packing, and confidence loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from macpo_data.models.chat import Chat
from macpo_data.models.worker import Report
from macpo_data.recipe.training import SFT, Confidence
from macpo_train.encode import Encoded
from macpo_train.job import Job
from macpo_train.loop import exact, hold, own_rows, run, shard, training_arguments
from macpo_train.loss import confidence_weight, confident_loss
from macpo_train.watch import say

METRICS = {
    "loss": "loss",
    "loss/weak": "weak",
    "loss/own": "own",
    "confidence": "confidence",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
}
IGNORED = -100  # the label of a token that carries no loss


class Trainer(SFTTrainer):  # type: ignore[misc]
    """trl's trainer, with every row counted once and, where it is asked for, a loss of ours."""

    collate: Callable[[list[dict[str, Any]]], dict[str, Any]]
    confidence: Confidence | None
    _metrics: dict[str, Any]

    def get_batch_samples(self, *args: Any) -> tuple[list[dict[str, Any]], Any]:
        """Lay out a step's rows, and count the tokens of those that are its own."""
        held, _ = super().get_batch_samples(*args)
        own_rows(self, held)
        batches = [self.collate(batch["rows"]) for batch in held]
        for batch, rows in zip(batches, held, strict=True):
            if not rows["count"]:
                batch["labels"].fill_(IGNORED)
        return batches, self._get_num_items_in_batch(batches, self.args.device)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """Cross-entropy by trl, or the confidence loss; either is a mean over a step's tokens."""
        if self.confidence is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")[:, 1:]
        mask = labels != IGNORED
        # All logits of a micro batch exist at once: each is needed for both parts.
        logits = model(**inputs, use_cache=False).logits[:, :-1][mask]
        step, steps = self.state.global_step, self.state.max_steps
        weight = confidence_weight(step, steps, self.confidence.weight, self.confidence.ramp)
        terms = torch.stack(confident_loss(logits, labels[mask], weight)).sum(1)
        # The mean over processes is taken later, the sum over micro batches here.
        terms = terms * self.args.world_size / num_items_in_batch
        means = self.accelerator.gather(terms.detach()[None]).mean(0)
        means = means * self.current_gradient_accumulation_steps  # trl logs the mean over them
        for name, value in zip(("loss/weak", "loss/own"), means[1:].tolist(), strict=True):
            self._metrics["train"][name].append(value)
        self._metrics["train"]["confidence"].append(weight)
        return terms[0]


def train_sft(report: Report, job: Job, model: Any, chat: Chat, data: Encoded) -> dict[str, Any]:
    """Minimise the cross-entropy of response tokens; the prompt's tokens carry no loss.

    With `job.confidence`, part of it is the cross-entropy with the policy's own predictions.

    Returns:
        For the manifest, one row per optimiser step among it.
    """
    assert isinstance(job.settings, SFT)
    (responses,), (read_only,) = data.responses.values(), data.read_only.values()
    pairs = list(zip(data.prompts, responses, strict=True))
    labels = [[IGNORED] * len(p) + r for p, r in pairs]
    for (prompt, _), row, places in zip(pairs, labels, read_only, strict=True):
        for at in places:
            row[len(prompt) + at] = IGNORED
    dataset = Dataset.from_dict(
        {
            "input_ids": [[*p, *r] for p, r in pairs],
            "labels": labels,
        }
    )
    padded = why_not_packed(model.eval()) if job.settings.packing else "sft.packing is off"
    if padded and job.settings.packing:
        say(f"sequences are padded, not packed: {padded}")
    collator = None if padded else partial(pack, limit=job.train.max_length, pad_id=chat.pad_id)

    def make(watch: Any) -> Trainer:
        with exact(model):
            trainer = Trainer(
                model=model,
                args=SFTConfig(**training_arguments(job, len(pairs))),
                train_dataset=dataset,
                processing_class=chat.tokenizer,
                data_collator=collator,
                callbacks=[watch],
            )
        trainer.collate, trainer.data_collator = trainer.data_collator, hold
        trainer.confidence = job.confidence
        # Both losses are means over a step's tokens, whatever the model's own can do.
        trainer.model_accepts_loss_kwargs = True
        if job.confidence and trainer.aux_loss_enabled:
            say("the load-balancing loss of its experts is left out")
        shard(trainer)
        return trainer

    return {**run(report, job, METRICS, make), "packed": padded or True}


def pack(rows: list[dict[str, list[int]]], limit: int, pad_id: int) -> dict[str, torch.Tensor]:
    """Lay a micro batch's sequences end to end, in as few rows as first-fit finds.

    transformers keeps the sequences of a row apart where their positions start again and no mask is
    given; padding stands at position 0. No sequence's first token, which is its prompt's, has a
    label: the one before it belongs to another.

    Returns:
        (B, L) input_ids, position_ids and labels, L at most `limit`.
    """
    fill = {"input_ids": pad_id, "position_ids": 0, "labels": IGNORED}
    rows = [row | {"position_ids": [*range(len(row["input_ids"]))]} for row in rows]
    bins: list[list[dict[str, list[int]]]] = []
    for row in sorted(rows, key=lambda row: -len(row["input_ids"])):
        fits = (b for b in bins if sum(len(r["input_ids"]) for r in [*b, row]) <= limit)
        if (bin_ := next(fits, None)) is None:
            bins.append(bin_ := [])
        bin_.append(row)
    width = max(sum(len(row["input_ids"]) for row in bin_) for bin_ in bins)

    def lay(name: str, rest: int) -> torch.Tensor:
        lines = [[n for row in bin_ for n in row[name]] for bin_ in bins]
        return torch.tensor([line + [rest] * (width - len(line)) for line in lines])

    return {name: lay(name, rest) for name, rest in fill.items()}


def why_not_packed(model: Any) -> str | None:
    """Try sequences in one row against each alone; None if the model keeps them apart."""
    top = model.config.get_text_config().vocab_size
    draw = torch.Generator().manual_seed(0)
    alone = [torch.randint(top, (1, n), generator=draw).to(model.device) for n in (7, 4, 9)]
    positions = [torch.arange(ids.shape[1], device=model.device)[None] for ids in alone]
    try:
        with torch.no_grad():
            wanted = torch.cat([model(input_ids=ids).logits for ids in alone], 1)
            rows, at = torch.cat(alone, 1), torch.cat(positions, 1)
            logits = model(input_ids=rows, position_ids=at, use_cache=False).logits
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return f"it cannot read such a row ({type(error).__name__})"
    off = (wanted.log_softmax(-1) - logits.log_softmax(-1)).abs().mean().item()
    allowed = 1e-4 if model.dtype == torch.float32 else 0.05
    return None if off <= allowed else f"log-probabilities differ by {off:.2g}"
