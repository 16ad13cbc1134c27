"""SFT with several examples to a row: the same loss and gradients as each alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from macpo_data.recipe.training import SFT, Train
from macpo_train.job import Job
from macpo_train.sft import IGNORED, pack, why_not_packed
from macpo_train.train import train

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 4}),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {"head_dim": 8, "sliding_window": 4}),
}


def example(prompt: list[int], response: list[int]) -> dict[str, list[int]]:
    return {"input_ids": prompt + response, "labels": [IGNORED] * len(prompt) + response}


def test_a_row_by_hand() -> None:
    """5 and 3 tokens fit a row of 8; the 4 go into the next, and are filled up with 4."""
    rows = [example([1, 2], [3]), example([4], [5, 6, 7]), example([8, 9, 10], [11, 12])]
    packed = pack(rows, 8, 0)
    off = IGNORED
    assert packed["input_ids"].tolist() == [[8, 9, 10, 11, 12, 1, 2, 3], [4, 5, 6, 7, 0, 0, 0, 0]]
    assert packed["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 0, 0, 0, 0]]
    assert packed["labels"].tolist() == [
        [off, off, off, 11, 12, off, off, 3],
        [off, 5, 6, 7, off, off, off, off],
    ]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_nothing_is_lost_and_no_row_is_too_long(sizes: list[tuple[int, int]]) -> None:
    rows = [example([100 + n] * p, [n + 1] * r) for n, (p, r) in enumerate(sizes)]
    packed = pack(rows, 18, 0)
    assert packed["input_ids"].shape[1] <= 18
    tokens = packed["input_ids"].flatten()
    labels = packed["labels"].flatten()
    assert sorted(tokens[tokens > 0].tolist()) == sorted(n for r in rows for n in r["input_ids"])
    answers = sorted(n + 1 for n, (_, r) in enumerate(sizes) for _ in range(r))
    assert sorted(labels[labels != IGNORED].tolist()) == answers
    # No two rows could have been one.
    filled = (packed["input_ids"] > 0).sum(1).tolist()
    assert len(filled) == 1 or sum(sorted(filled)[:2]) > 18


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_loss_and_gradients_as_each_alone(family: str) -> None:
    """A sum over tokens of a packed batch against a forward pass for each of its sequences."""
    config, kind, more = FAMILIES[family]
    torch.manual_seed(0)
    model = kind(config(**SMALL, **more)).eval()
    draw = torch.Generator().manual_seed(1)
    rows = [
        example(torch.randint(61, (p,), generator=draw).tolist(), [n + 1] * r)
        for n, (p, r) in enumerate([(5, 3), (2, 7), (9, 1), (3, 3)])
    ]

    def sums(batches: list[dict[str, torch.Tensor]]) -> tuple[float, dict[str, torch.Tensor]]:
        model.zero_grad()
        total = torch.zeros(())
        for batch in batches:
            rows, at, labels = batch["input_ids"], batch["position_ids"], batch["labels"][:, 1:]
            # With a cache, positions would not tell sequences apart; trl turns it off as well.
            logits = model(input_ids=rows, position_ids=at, use_cache=False).logits[:, :-1]
            total = total + torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
            )
        torch.autograd.backward(total)
        return total.item(), {n: p.grad.clone() for n, p in model.named_parameters()}

    alone = sums([pack([row], 99, 0) for row in rows])
    together = sums([pack(rows, 22, 0)])
    assert pack(rows, 22, 0)["input_ids"].shape[0] == 2
    assert together[0] == pytest.approx(alone[0], rel=1e-5)
    for name, gradient in alone[1].items():
        torch.testing.assert_close(together[1][name], gradient, atol=2e-4, rtol=1e-4)
    assert why_not_packed(model) is None


def test_a_model_that_mixes_the_sequences_is_seen() -> None:
    """Here the positions do not reach the mask: every token sees all before it in its row."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL)).eval()
    usual = model.forward

    def mixes(input_ids: torch.Tensor, **inputs: Any) -> Any:
        return usual(input_ids, attention_mask=torch.ones_like(input_ids), **inputs)

    model.forward = mixes
    assert "log-probabilities differ" in str(why_not_packed(model))


@pytest.mark.slow
def test_a_packed_training_is_the_padded_one(dpo_job: Job, tmp_path: Path) -> None:
    """Step by step; a step holds as many examples as without packing."""
    settings = SFT(epochs=2, learning_rate=1e-2, batch_size=8)
    padded = replace(dpo_job, start=None, settings=settings, out=tmp_path / "padded")
    padded = replace(padded, train=Train(dtype="float32", max_length=128))
    packing = settings.model_copy(update={"packing": True})
    packed = replace(padded, settings=packing, out=tmp_path / "packed")
    halves = Train(dtype="float32", max_length=128, micro_batch_size=4)
    cut = replace(packed, train=halves, out=tmp_path / "cut")
    facts = {job.out.name: train(lambda *_: None, job) for job in (padded, packed, cut)}
    assert [facts[n]["packed"] for n in facts] == ["sft.packing is off", True, True]
    wanted = facts["padded"]["history"]
    assert len(wanted) == 4
    for name in ("packed", "cut"):
        for term in ("loss", "grad_norm"):
            curve = [row[term] for row in facts[name]["history"]]
            assert curve == pytest.approx([row[term] for row in wanted], rel=1e-4), (name, term)
