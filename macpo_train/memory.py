"""Out-of-memory errors: recognises them, and finds a batch size that would fit."""

from __future__ import annotations

import gc
from typing import Any

import torch

from macpo_data.models.chat import Chat
from macpo_data.models.logprobs import answer_logprobs
from macpo_data.recipe.training import RewardTraining
from macpo_train import ranks
from macpo_train.encode import Encoded
from macpo_train.job import Job

# What other parts of torch say: its allocator for CPUs, and CUDA where it is asked directly.
OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that no memory is left; torch has a class for one kind only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
    )


def would_fit(job: Job, model: Any, chat: Chat, data: Encoded) -> str:
    """What to do about it: the largest parts of a batch for which there is room, as tried here.

    Several processes, or a reward model, do not try: they are told the next smaller ones. The model
    is None where it was not even loaded.
    """
    if model is None:
        return f"memory ran out while {job.base.id} was loaded; name a smaller base"
    batch, processes = job.settings.batch_size, ranks.count()
    micro = min(job.train.micro_batch_size or batch, batch // processes)
    smaller = [n for n in range(micro // 2, 0, -1) if batch % (n * processes) == 0]
    tries = processes == 1 and not isinstance(job.settings, RewardTraining)
    fits = next((n for n in smaller if not tries or _fits(job, model, chat, data, n)), None)
    advice = [f"a train.max_length below {data.longest}"]
    if fits is not None:
        tried = " (as tried on the longest rows)" if tries else ""
        advice = [f"train.micro_batch_size={fits}{tried}"]
    if not job.train.gradient_checkpointing:
        advice.append("train.gradient_checkpointing=true")
    return (
        f"memory ran out with {micro} rows of up to {data.longest} tokens per forward pass; "
        f"set {' or '.join(advice)}"
    )


def _fits(job: Job, model: Any, chat: Chat, data: Encoded, count: int) -> bool:
    """Whether there is room for so many of the longest rows, forward and backward."""
    release()
    answers = list(zip(*data.responses.values(), strict=True))
    lengths = [len(p) + max(map(len, own)) for p, own in zip(data.prompts, answers, strict=True)]
    rows = sorted(range(len(lengths)), key=lambda i: -lengths[i])[:count]
    shared = job.train.shared_prompt and len(data.responses) > 1
    prompts = [data.prompts[i] for i in rows]
    try:
        logprobs, _ = answer_logprobs(
            model.train(), prompts, [answers[i] for i in rows], chat.pad_id, shared
        )
        torch.autograd.backward(logprobs.sum())
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        return False
    finally:
        model.zero_grad(set_to_none=True)
    return True


def release() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
