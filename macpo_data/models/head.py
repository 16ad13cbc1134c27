"""Log-probabilities of target tokens from hidden states, in chunks, to bound the logits' memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    Head = Callable[[torch.Tensor], torch.Tensor]

# So many float32 logits exist at once: 128 MiB. Smaller pieces keep a GPU waiting.
CHUNK_LOGITS = 1 << 25


@contextmanager
def in_place_of_logits(causal: Any, sources: torch.Tensor, targets: torch.Tensor) -> Iterator[None]:
    """For a moment, a model's forward gives log-probabilities in place of logits.

    Args:
        causal: a causal language model of transformers.
        sources: (T,), where in the flattened rows the predicting tokens stand.
        targets: (T,), the tokens to predict.
    """
    from transformers.modeling_outputs import CausalLMOutput

    def forward(**inputs: Any) -> Any:
        hidden = causal.base_model(**inputs).last_hidden_state.flatten(0, 1)
        matrix = causal.get_output_embeddings()
        rows = max(1, CHUNK_LOGITS // matrix.weight.shape[0])
        trained = any(weights.requires_grad for weights in matrix.parameters())
        values = target_logprobs(hidden[sources], targets, _head(causal), rows, trained)
        return CausalLMOutput(logits=values)

    usual = vars(causal).get("forward")
    causal.forward = forward
    try:
        yield
    finally:
        del causal.forward
        if usual is not None:
            causal.forward = usual


def _head(causal: Any) -> Head:
    """Hidden states to logits as the model's own forward does it."""
    import torch

    config = causal.config.get_text_config()
    matrix = causal.get_output_embeddings()
    cap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0

    def head(hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = matrix(hidden).float()
        if scale != 1.0:
            logits = logits * scale
        return torch.tanh(logits / cap) * cap if cap else logits

    return head


def target_logprobs(
    hidden: torch.Tensor, targets: torch.Tensor, head: Head, rows: int, trained: bool = False
) -> torch.Tensor:
    """Log-probabilities of (T,) targets from (T, H) hidden states, `rows` logits at a time.

    A token's log-probability depends on its own hidden state only, so that its gradient is known
    up to a factor as soon as its logits are: they are never needed again. Where the head itself is
    `trained`, each piece's logits are computed once more in the backward pass.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    def logprobs(states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return -torch.nn.functional.cross_entropy(head(states), labels, reduction="none")

    def pieces(states: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return zip(torch.split(states, rows), torch.split(targets, rows), strict=True)

    class Chunked(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, hidden: torch.Tensor) -> torch.Tensor:
            values: list[torch.Tensor] = []
            slopes: list[torch.Tensor] = []
            for states, labels in pieces(hidden):
                with torch.enable_grad():
                    states = states.detach().requires_grad_()
                    value = logprobs(states, labels)
                    slopes += torch.autograd.grad(value.sum(), states)
                values.append(value.detach())
            ctx.save_for_backward(torch.cat(slopes))
            return torch.cat(values)

        @staticmethod
        def backward(ctx: Any, upstream: torch.Tensor) -> torch.Tensor:
            slopes: torch.Tensor = ctx.saved_tensors[0]
            return (upstream[:, None] * slopes).to(slopes.dtype)

    if torch.is_grad_enabled() and trained:
        parts = pieces(hidden)
        return torch.cat([checkpoint(logprobs, *each, use_reentrant=False) for each in parts])
    if torch.is_grad_enabled() and hidden.requires_grad:
        chunked: torch.Tensor = Chunked.apply(hidden)  # type: ignore[no-untyped-call]
        return chunked
    return torch.cat([logprobs(states, labels) for states, labels in pieces(hidden)])
