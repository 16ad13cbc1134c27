"""What is looked at before the first step, and once more before an adapter is written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macpo_data.errors import ModelError
from macpo_data.models import fits
from macpo_data.models.chat import Chat
from macpo_data.models.weights import ADAPTER_FILES
from macpo_data.outside import parse_object, read_bytes
from macpo_data.recipe.training import DPO
from macpo_train.encode import Encoded
from macpo_train.job import Job

if TYPE_CHECKING:
    import torch


def check_start(job: Job) -> None:
    """Compare the weights that a training starts from, and is held to, with its base.

    Raises:
        ModelError: some are of another base, or cannot be trained on in this way.
    """
    policies = [policy for policy in dict.fromkeys([job.start, job.reference]) if policy]
    if job.finetuning == "full":
        for checkpoint in policies:
            fits.check_checkpoint(checkpoint, job.base)
        return
    for adapter in policies:
        _note(fits.check_adapter(adapter, job.base, job.another_base))
        fits.check_weights(adapter)
    if job.start is not None and isinstance(job.settings, DPO):
        _check_preferences(job.start)


def _check_preferences(start: Path) -> None:
    """Refuse an adapter that trains biases: beside it peft allows no second one."""
    bias = parse_object(read_bytes(start / ADAPTER_FILES[0])).get("bias", "none")
    if bias != "none":
        raise ModelError(
            f"adapter {start} trains biases too (bias={bias}), and preference training holds a "
            "second adapter beside it, which peft allows without biases alone; start from an "
            "adapter with bias=none, or fine-tune with objective=sft"
        )


def check_model(job: Job, model: Any, chat: Chat, data: Encoded) -> None:
    """Compare tokens, lengths and `lora.targets` with what the base has.

    Args:
        job: the training.
        model: the base, with weights or without.
        chat: its tokenizer.
        data: the rows.

    Raises:
        ModelError: one does not fit.
    """
    rows = [data.prompts, *data.responses.values()]
    fits.check_ids(model, job.base, chat, (row for part in rows for row in part))
    _note(fits.check_positions(model, job.base, data.longest))
    if job.start is None and job.finetuning == "lora":
        _, missing = fits.lora_targets(
            model, job.base, job.lora.targets, head_is_read=isinstance(job.settings, DPO)
        )
        if missing:
            _note(f"lora.targets: {job.base.id} has no {' or '.join(missing)}")


def check_trained(weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Refuse to write what is no adapter.

    Raises:
        ModelError: a weight is NaN or infinite.
    """
    if bad := fits.not_finite(weights):
        raise ModelError(
            f"the training ended with NaN or infinite weights in {bad}, and nothing was written; "
            "lower the learning rate, or set train.dtype=float32"
        )


def _note(line: str | None) -> None:
    if line:
        from macpo_train.watch import say  # imports transformers

        say(line)
