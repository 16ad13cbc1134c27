"""The losses as pure functions of log-probabilities; nats throughout."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7).

    -log sigmoid(beta * [(log pi(y+|x) - log ref(y+|x)) - (log pi(y-|x) - log ref(y-|x))])

    With label smoothing e (conservative DPO, Mitchell 2023), a pair counts as swapped with
    probability e: (1 - e) * -log sigmoid(h) + e * -log sigmoid(-h).

    Args:
        policy_chosen: (B,) log-probability of each chosen response, summed over its tokens.
        policy_rejected: (B,) likewise.
        reference_chosen: (B,) likewise, under the reference.
        reference_rejected: (B,) likewise.
        beta: how strongly the policy is held to the reference.
        label_smoothing: share of pairs whose labels are wrong.

    Returns:
        The (B,) losses and the (B,) rewards beta * (log pi - log ref) of chosen and of rejected.
    """
    chosen = beta * (policy_chosen - reference_chosen)
    rejected = beta * (policy_rejected - reference_rejected)
    margin = chosen - rejected
    loss = -logsigmoid(margin)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * logsigmoid(-margin)
    return loss, chosen.detach(), rejected.detach()


def sft_loss(logprobs: Tensor, mask: Tensor, normalization: str) -> Tensor:
    """Mean negative log-likelihood of responses, a scalar.

    Args:
        logprobs: (B, R) log-probabilities, 0 outside the mask.
        mask: (B, R) response tokens.
        normalization: `response` is the mean over the batch of each response's mean over its
            tokens; `token` is the mean over all response tokens, where long responses weigh more.
    """
    lengths = mask.sum(1).clamp(min=1)
    if normalization == "token":
        return -logprobs.sum() / lengths.sum()
    return -(logprobs.sum(1) / lengths).mean()


def macpo_loss(dpo: Tensor, sft: Tensor, gamma: float) -> Tensor:
    """DPO + gamma * SFT on the chosen responses (MACPO), a scalar, from (B,) and a scalar."""
    return dpo.mean() + gamma * sft if gamma else dpo.mean()
