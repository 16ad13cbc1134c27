"""One prompt, all its answers: the shared path equals the plain one in values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from macpo_data.models.head import target_logprobs
from macpo_data.models.logprobs import (
    answer_logprobs,
    pack,
    response_logprobs,
    shared_logprobs,
    why_not_shared,
    window,
)

SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # so that a wrong mask shows
}
KINDS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": None},
    "Qwen2": {},
    "Qwen3": {},
    "Gemma": {},
    "Gemma2": {"query_pre_attn_scalar": 8, "sliding_window": 64, "final_logit_softcapping": 5.0},
    "Granite": {"logits_scaling": 4.0},
}


def tiny(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **KINDS[kind], **changes})
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def tokens(count: int, seed: int) -> list[int]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(60, (count,), generator=draw).tolist()


# Prompts of unlike lengths, the longest as of several turns; unlike numbers of answers.
PROMPTS = [tokens(9, 1), tokens(40, 2), tokens(1, 3)]
ANSWERS = [
    [tokens(4, 4), tokens(11, 5)],
    [tokens(3, 6), tokens(1, 7), tokens(6, 8)],
    [tokens(8, 9)],
]


def with_lora(model: Any, checkpointing: bool) -> Any:
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    tuned = get_peft_model(model, config)
    if checkpointing:
        tuned.gradient_checkpointing_enable({"use_reentrant": False})
        tuned.enable_input_require_grads()
    return tuned.train()


def test_layout_by_hand() -> None:
    packed = pack([[10, 11], [20]], [[[1, 2], [3]], [[4]]], pad_id=0)
    assert packed.ids.tolist() == [[10, 11, 1, 2, 3], [20, 4, 0, 0, 0]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 2], [0, 1, 0, 0, 0]]
    assert packed.parts.tolist() == [[0, 0, 1, 1, 2], [0, 1, -1, -1, -1]]
    assert packed.sources.tolist() == [1, 2, 1, 5]
    assert packed.targets.tolist() == [1, 2, 3, 4]
    assert packed.mask.tolist() == [[True, True], [False, True], [False, True]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_values(kind: str, attention: str) -> None:
    model = tiny(kind, attn_implementation=attention)
    with torch.no_grad():
        plain, mask = answer_logprobs(model, PROMPTS, ANSWERS, 0, shared=False)
        shared, shared_mask = answer_logprobs(model, PROMPTS, ANSWERS, 0, shared=True)
    assert torch.equal(mask, shared_mask)
    torch.testing.assert_close(shared, plain, atol=1e-5, rtol=1e-5)
    assert why_not_shared(model) is None


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_with_lora(kind: str, checkpointing: bool) -> None:
    """Of a loss that is no plain sum, so that every token has its own upstream gradient."""
    model = with_lora(tiny(kind), checkpointing)
    losses_and_gradients: list[tuple[float, dict[str, torch.Tensor]]] = []
    for together in (False, True):
        model.zero_grad()
        logprobs, _ = answer_logprobs(model, PROMPTS, ANSWERS, 0, shared=together)
        loss = torch.tanh(logprobs.sum(1) / 50).sum() + (logprobs**2).mean()
        torch.autograd.backward(loss)
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        losses_and_gradients.append((loss.item(), grads))
    (plain_loss, plain), (shared_loss, shared) = losses_and_gradients
    assert shared_loss == pytest.approx(plain_loss, rel=1e-5)
    assert plain.keys() == shared.keys() and len(plain) == 8
    for name, grad in plain.items():
        scale = grad.abs().max().item()
        torch.testing.assert_close(shared[name], grad, atol=2e-5 * scale + 1e-7, rtol=1e-4)


def test_chunks_do_not_matter() -> None:
    """Seven rows in chunks of three, against all at once and against autograd itself."""
    torch.manual_seed(0)
    matrix, targets = torch.nn.Linear(8, 20), torch.randint(20, (7,))
    weights = torch.rand(7)
    grads, values = [], []
    for how in (3, 7, None):
        torch.manual_seed(1)
        hidden = torch.randn(7, 8, requires_grad=True)
        if how is None:
            logits = matrix(hidden).log_softmax(-1)
            each = logits.gather(1, targets[:, None])[:, 0]
        else:
            each = target_logprobs(hidden, targets, matrix, how)
        torch.autograd.backward((each * weights).sum())
        assert hidden.grad is not None
        grads.append(hidden.grad)
        values.append(each.detach())
    for other in (1, 2):
        torch.testing.assert_close(values[0], values[other])
        torch.testing.assert_close(grads[0], grads[other])


def test_no_logits_of_the_prompt() -> None:
    """The head sees as many rows as there are response tokens, and no more."""
    model = tiny("Llama")
    rows = []
    model.lm_head.register_forward_hook(lambda m, args, out: rows.append(args[0].shape[:-1]))
    shared_logprobs(model, PROMPTS, ANSWERS, 0)
    assert [tuple(shape) for shape in rows] == [(sum(len(a) for own in ANSWERS for a in own),)]
    assert "forward" not in vars(model)


def test_a_sliding_window_takes_the_plain_path() -> None:
    """A window that no sequence reaches changes nothing; a shorter one would be overlooked."""
    assert window(tiny("Mistral")) is None and window(tiny("Qwen2", sliding_window=8)) is None
    model = tiny("Mistral", sliding_window=16)
    assert why_not_shared(model) is None and window(model) == 16
    with torch.no_grad():
        plain, _ = answer_logprobs(model, PROMPTS, ANSWERS, 0, shared=False)
        shared, _ = answer_logprobs(model, PROMPTS, ANSWERS, 0, shared=True)
    assert (plain - shared).abs().max() > 1e-3


def test_a_model_whose_answers_would_see_each_other_is_found_out() -> None:
    """A recurrent model has no mask: what stands between is in its state."""
    torch.manual_seed(0)
    config = transformers.MambaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1)
    assert why_not_shared(transformers.MambaForCausalLM(config).eval()) is not None


def test_an_unknown_head_is_found_out() -> None:
    """A model that does something else with its logits than the shared path knows."""
    model = tiny("Llama")
    model.register_forward_hook(lambda m, args, out: setattr(out, "logits", out.logits * 1.5))
    assert "differ by" in str(why_not_shared(model))


def test_an_empty_answer_has_no_tokens() -> None:
    model = tiny("Llama")
    with torch.no_grad():
        logprobs, mask = shared_logprobs(model, [[1, 2]], [[[], [3]]], 0)
        alone, _ = response_logprobs(model, [[1, 2]], [[3]], 0)
    assert mask.tolist() == [[False], [True]] and logprobs[0].item() == 0
    torch.testing.assert_close(logprobs[1:], alone)
