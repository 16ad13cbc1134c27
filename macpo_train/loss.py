"""Loss functions of log-probabilities, without side effects; all values in nats."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import logsigmoid, nll_loss, relu


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


def hinge_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
) -> Tensor:
    """A hinge on the margin of DPO's rewards, in place of its sigmoid.

    max(0, 1 - beta * [(log pi(y+|x) - log ref(y+|x)) - (log pi(y-|x) - log ref(y-|x))])

    SLiC's calibration loss (Zhao et al. 2023) on log-probabilities that the reference's are taken
    off, as in RSO (Liu et al. 2024): a pair that is apart by 1 / beta nats has no gradient.

    Args:
        policy_chosen: (B,) log-probability of each chosen response, summed over its tokens.
        policy_rejected: (B,) likewise.
        reference_chosen: (B,) likewise, under the reference.
        reference_rejected: (B,) likewise.
        beta: how strongly the policy is held to the reference.

    Returns:
        The (B,) losses.
    """
    margin = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    return relu(1 - beta * margin)


def ipo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    chosen_tokens: Tensor,
    rejected_tokens: Tensor,
    beta: float,
) -> Tensor:
    """Identity preference optimisation (Azar et al. 2023, eq. 17): the margin goes to 1 / (2 beta).

    (h - 1 / (2 beta))^2,  h = (log pi(y+|x) - log ref(y+|x)) - (log pi(y-|x) - log ref(y-|x))

    The paper's log-probabilities are sums. Here each side is a mean over its tokens, as in trl,
    whose authors had this confirmed by those of the paper: so length does not set the scale.

    Args:
        policy_chosen: (B,) log-probability of each chosen response, summed over its tokens.
        policy_rejected: (B,) likewise.
        reference_chosen: (B,) likewise, under the reference.
        reference_rejected: (B,) likewise.
        chosen_tokens: (B,) how many tokens each chosen response has.
        rejected_tokens: (B,) likewise.
        beta: the paper's tau.

    Returns:
        The (B,) losses.
    """
    chosen = (policy_chosen - reference_chosen) / chosen_tokens.clamp(min=1)
    rejected = (policy_rejected - reference_rejected) / rejected_tokens.clamp(min=1)
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def learned(
    logprobs: Tensor, mask: Tensor, read_only: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and mask without the tokens that are read and not learned.

    Args:
        logprobs: (B, R) of responses, right-aligned, 0 outside the mask.
        mask: (B, R) response tokens.
        read_only: places in each of the B responses.
    """
    if not any(read_only):
        return logprobs, mask
    mask = mask.clone()
    for row, places in enumerate(read_only):
        first = mask.shape[1] - int(mask[row].sum())
        mask[row, [first + at for at in places]] = False
    return logprobs * mask, mask


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


def confident_loss(logits: Tensor, labels: Tensor, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """Auxiliary confidence loss on weak labels (Burns et al. 2023, section 4.3, appendix A.4).

    (1 - a) * CE(f(x), weak label) + a * CE(f(x), t(f(x)))

    t hardens the student's own prediction, and no gradient flows through it. There t is a threshold
    on a binary prediction that keeps the classes of a batch in balance. MACPO, whose baseline this
    is, does not say what it becomes in generation: here, at each response token, the one that the
    student finds most likely; a vocabulary has no balance to keep.

    Args:
        logits: (T, V) that predict T response tokens.
        labels: (T,) those tokens, as the weak supervisor wrote them.
        weight: a, see `confidence_weight`.

    Returns:
        The (T,) losses, and their (T,) parts: cross-entropy with the label, and with the hardened.
    """
    logprobs = logits.float().log_softmax(1)
    hardened = logits.argmax(1)
    weak, own = (nll_loss(logprobs, target, reduction="none") for target in (labels, hardened))
    return (1 - weight) * weak + weight * own, weak.detach(), own.detach()


def confidence_weight(step: int, steps: int, highest: float, ramp: float) -> float:
    """The weight of the confidence loss: from 0 it rises linearly, and then stays.

    Args:
        step: optimiser steps made.
        steps: all that there will be.
        highest: a_max; in its source 0.75 for large students, 0.5 for small ones.
        ramp: share of the steps in which it rises; in its source 0.2.
    """
    return highest * min(1.0, step / (ramp * steps)) if ramp else highest


def macpo_loss(dpo: Tensor, sft: Tensor, gamma: float) -> Tensor:
    """DPO + gamma * SFT on the chosen responses (MACPO), a scalar, from (B,) and a scalar."""
    return dpo.mean() + gamma * sft if gamma else dpo.mean()
