"""Losses against values derived by hand."""

from __future__ import annotations

import math

import pytest
import torch

from macpo_train.loss import (
    confidence_weight,
    confident_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    macpo_loss,
    sft_loss,
)


def test_dpo_by_hand() -> None:
    """One pair.

    log-ratios: chosen -10 - (-12) = 2, rejected -9 - (-8) = -1; with beta 0.5 the rewards are 1
    and -0.5, their difference 1.5, and -log sigmoid(1.5) = log(1 + e^-1.5) = 0.2014133.
    """
    loss, chosen, rejected = dpo_loss(
        torch.tensor([-10.0]),
        torch.tensor([-9.0]),
        torch.tensor([-12.0]),
        torch.tensor([-8.0]),
        0.5,
    )
    assert chosen.item() == pytest.approx(1.0)
    assert rejected.item() == pytest.approx(-0.5)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1.5)), abs=1e-6)
    assert loss.item() == pytest.approx(0.2014133, abs=1e-6)


def test_dpo_is_ln_2_where_policy_and_reference_agree() -> None:
    x, y = torch.tensor([-3.0, -7.0]), torch.tensor([-5.0, -1.0])
    loss, _, _ = dpo_loss(x, y, x, y, 0.1)
    torch.testing.assert_close(loss, torch.full((2,), math.log(2)))


def test_sft_normalisations_by_hand() -> None:
    """Two responses: (-1, -3) and (-6).

    response: mean of (2, 6) = 4; token: (1 + 3 + 6) / 3 = 10/3.
    """
    logprobs = torch.tensor([[-1.0, -3.0], [0.0, -6.0]])
    mask = torch.tensor([[True, True], [False, True]])
    assert sft_loss(logprobs, mask, "response").item() == pytest.approx(4.0)
    assert sft_loss(logprobs, mask, "token").item() == pytest.approx(10 / 3)


def test_macpo_loss_adds_gamma_times_sft() -> None:
    dpo = torch.tensor([1.0, 3.0])
    assert macpo_loss(dpo, torch.tensor(5.0), 0.2).item() == pytest.approx(3.0)
    assert macpo_loss(dpo, torch.tensor(math.nan), 0.0).item() == pytest.approx(2.0)


def test_label_smoothing_by_hand() -> None:
    """One pair with rewards 1 and -0.5, so h = 1.5, and e = 0.1.

    0.9 * log(1 + e^-1.5) + 0.1 * log(1 + e^1.5) = 0.9 * 0.2014133 + 0.1 * 1.7014133 = 0.3514133.
    """
    loss, _, _ = dpo_loss(
        torch.tensor([-10.0]),
        torch.tensor([-9.0]),
        torch.tensor([-12.0]),
        torch.tensor([-8.0]),
        0.5,
        label_smoothing=0.1,
    )
    assert loss.item() == pytest.approx(0.3514133, abs=1e-6)


def test_hinge_by_hand() -> None:
    """Three pairs with beta 0.5 and margins of 3, 2 and -1 nats: 1 - 1.5 < 0, 1 - 1, 1 + 0.5."""
    policy_chosen = torch.tensor([-10.0, -10.0, -10.0], requires_grad=True)
    rejected = torch.tensor([-9.0, -9.0, -9.0])
    before = torch.tensor([-12.0, -12.0, -12.0]), torch.tensor([-8.0, -9.0, -12.0])
    loss = hinge_loss(policy_chosen, rejected, *before, 0.5)
    assert loss.tolist() == pytest.approx([0.0, 0.0, 1.5])
    torch.autograd.backward(loss.sum())
    assert policy_chosen.grad is not None
    assert policy_chosen.grad.tolist() == pytest.approx([0.0, 0.0, -0.5])  # apart is apart


def test_ipo_by_hand() -> None:
    """One pair of 4 and 2 tokens with beta 0.5, so that the margin per token is to be 1.

    log-ratios: chosen -10 + 12 = 2, over 4 tokens 0.5; rejected -9 + 8 = -1, over 2 tokens -0.5.
    The margin is 1 and the loss 0; with the sums it would be (3 - 1)^2 = 4. With beta 0.25 the
    margin is to be 2: (1 - 2)^2 = 1.
    """
    policy = torch.tensor([-10.0]), torch.tensor([-9.0])
    before = torch.tensor([-12.0]), torch.tensor([-8.0])
    tokens = torch.tensor([4]), torch.tensor([2])
    assert ipo_loss(*policy, *before, *tokens, beta=0.5).tolist() == pytest.approx([0.0])
    assert ipo_loss(*policy, *before, *tokens, beta=0.25).tolist() == pytest.approx([1.0])


def test_confidence_by_hand() -> None:
    """Two tokens of a vocabulary of three; softmax of (ln 1, ln 2, ln 5) is (1, 2, 5) / 8.

    First label 1: weak -ln(2/8) = 1.3862944, own -ln(5/8) = 0.4700036. Second label 2: both
    0.4700036. With a = 0.25: 0.75 * 1.3862944 + 0.25 * 0.4700036 = 1.1572217.
    """
    logits = torch.tensor([[1.0, 2.0, 5.0]] * 2).log()
    loss, weak, own = confident_loss(logits, torch.tensor([1, 2]), 0.25)
    assert weak.tolist() == pytest.approx([1.3862944, 0.4700036])
    assert own.tolist() == pytest.approx([0.4700036, 0.4700036])
    assert loss.tolist() == pytest.approx([1.1572217, 0.4700036])
    plain, _, _ = confident_loss(logits, torch.tensor([1, 2]), 0.0)
    torch.testing.assert_close(plain, weak)


def test_no_gradient_flows_through_the_hardened_target() -> None:
    """That of cross-entropy with a fixed target t is p - t: a mixture of both targets here.

    p = (1, 2, 5) / 8, label 0, hardened 2, a = 0.25: p - (0.75, 0, 0.25).
    """
    logits = torch.tensor([[1.0, 2.0, 5.0]]).log().requires_grad_()
    loss, weak, own = confident_loss(logits, torch.tensor([0]), 0.25)
    assert not weak.requires_grad and not own.requires_grad
    torch.autograd.backward(loss.sum())
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([[1 / 8 - 0.75, 2 / 8, 5 / 8 - 0.25]]))


def test_the_weight_of_the_confidence_rises_and_stays() -> None:
    """To 0.6 within the first 4 of 20 steps."""
    weights = [confidence_weight(step, 20, 0.6, 0.2) for step in (0, 2, 4, 19)]
    assert weights == pytest.approx([0.0, 0.3, 0.6, 0.6])
    assert confidence_weight(0, 20, 0.6, 0.0) == 0.6


def test_spin_has_its_papers_loss() -> None:
    """Chen et al. 2024, eq. 4.7: log(1 + exp(-t)), t of the label's gain over the opponent's.

    With lambda 0.1, by hand: gains of 0.1 * (-4 + 5) and 0.1 * (-3 + 1), so t is 0.1 + 0.2 = 0.3.
    """
    labels, answers = torch.tensor([-4.0]), torch.tensor([-3.0])  # under the policy that is trained
    before = torch.tensor([-5.0]), torch.tensor([-1.0])  # under the opponent
    each, *_ = dpo_loss(labels, answers, *before, beta=0.1)
    loss = macpo_loss(each, torch.tensor(7.0), gamma=0.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.3)))
