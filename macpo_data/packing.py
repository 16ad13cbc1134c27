"""Log-probabilities of responses, one prompt and one response per sequence.

The seam for sequences that share a prompt between its answers: scoring and training both come here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Rows whose logits exist at once are chosen so that these many float32 numbers do.
MAX_LOGITS = 1 << 28


def response_logprobs(
    model: Any, prompts: Sequence[list[int]], responses: Sequence[list[int]], pad_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of every response token given its prompt and the tokens before it.

    Sequences are padded on the left, so that all responses end in the last column and the model
    makes logits for the last columns only.

    Args:
        model: a causal language model of transformers, with or without peft.
        prompts: token ids, B lists.
        responses: token ids, B lists, none longer than R.
        pad_id: any token; it is masked.

    Returns:
        (B, R) log-probabilities in nats, 0 where there is no response token, and the (B, R) mask of
        response tokens. Both are right-aligned: a response of r tokens fills the last r columns.
    """
    import torch

    device = model.device
    rows = [[*p, *r] for p, r in zip(prompts, responses, strict=True)]
    width = max(len(row) for row in rows)
    tail = max(1, max(len(r) for r in responses))
    ids = torch.tensor([[pad_id] * (width - len(row)) + row for row in rows])
    attention = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    mask = torch.tensor([[False] * (tail - len(r)) + [True] * len(r) for r in responses])
    ids, attention, mask = ids.to(device), attention.to(device), mask.to(device)
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    logits = model(
        input_ids=ids,
        attention_mask=attention,
        position_ids=positions,
        use_cache=False,
        logits_to_keep=tail + 1,
    ).logits[:, :-1]
    labels = ids[:, -tail:]
    logprobs = -torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), reduction="none"
    ).view_as(labels)
    return logprobs.masked_fill(~mask, 0.0), mask
