"""Fine-tuning with the confidence loss, for real: its parts, its weight, how batches are cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from macpo_data.recipe.training import SFT, Confidence, Lora, Train
from macpo_train.job import Job
from macpo_train.train import train

pytestmark = pytest.mark.slow
HALF = Confidence(weight=0.5, ramp=0.5)


@pytest.fixture(scope="module")
def job(dpo_job: Job) -> Job:
    """Sixteen rows in steps of 6, 6 and 4, twice."""
    settings = SFT(epochs=2, learning_rate=1e-2, batch_size=6)
    return replace(dpo_job, start=None, settings=settings, confidence=HALF)


def curves(job: Job, out: Path, packing: bool = False, **settings: Any) -> dict[str, list[float]]:
    """The columns of a training's history."""
    sft = job.settings.model_copy(update={"packing": packing})
    train_ = Train(dtype="float32", max_length=128, **settings)
    facts = train(lambda *_: None, replace(job, settings=sft, train=train_, out=out))
    assert facts["packed"] is True or not packing
    return {name: [row[name] for row in facts["history"]] for name in facts["history"][0]}


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def whole(job: Job, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, curves(job, out)


def test_the_parts_add_up_and_the_weight_rises(whole: tuple[Path, dict[str, Any]]) -> None:
    """Within the first half of six steps: 0, 1/6, 1/3, and then 1/2."""
    _, actual = whole
    assert actual["confidence"] == pytest.approx([0, 1 / 6, 1 / 3, 1 / 2, 1 / 2, 1 / 2])
    mixed = [
        (1 - a) * weak + a * own
        for a, weak, own in zip(actual["confidence"], actual["weak"], actual["own"], strict=True)
    ]
    assert actual["loss"] == pytest.approx(mixed, abs=1e-5)
    assert all(own < weak for own, weak in zip(actual["own"], actual["weak"], strict=True))


def test_without_weight_it_is_cross_entropy(
    job: Job, tmp_path: Path, whole: tuple[Path, dict[str, Any]]
) -> None:
    """That of trl; with weight it is another training, from the second step on."""
    plain = curves(replace(job, confidence=None), tmp_path / "plain")
    assert "weak" not in plain
    nothing = curves(replace(job, confidence=Confidence(weight=0)), tmp_path / "nothing")
    for name in ("loss", "grad_norm"):
        assert nothing[name] == pytest.approx(plain[name], rel=1e-4), name
    assert nothing["weak"] == pytest.approx(plain["loss"], rel=1e-4)
    out, half = whole
    assert half["grad_norm"][0] == pytest.approx(plain["grad_norm"][0], rel=1e-4)
    assert half["grad_norm"][1] != pytest.approx(plain["grad_norm"][1], rel=1e-2)
    ours, theirs = weights(out), weights(tmp_path / "plain")
    assert not any(torch.allclose(ours[name], theirs[name]) for name in ours if "lora_B" in name)


def test_all_weight_makes_a_policy_surer_of_itself(job: Job, tmp_path: Path) -> None:
    """Labels then teach nothing: its own cross-entropy falls, and that with them does not."""
    able = Lora(targets=["o_proj", "down_proj"])
    only = replace(job, lora=able, confidence=Confidence(weight=1, ramp=0))
    actual = curves(only, tmp_path / "only")
    assert actual["loss"] == pytest.approx(actual["own"])
    fell = {name: actual[name][0] - actual[name][-1] for name in ("own", "weak")}
    assert fell["own"] > 0.05 > fell["weak"], actual


@pytest.mark.parametrize(
    "how",
    [
        {"micro_batch_size": 2},
        {"packing": True, "micro_batch_size": 3, "gradient_checkpointing": True},
    ],
)
def test_however_it_is_cut(
    job: Job, tmp_path: Path, whole: tuple[Path, dict[str, Any]], how: dict[str, Any]
) -> None:
    """Each token counts alike: the same parts at every step, the same adapter."""
    out, wanted = whole
    actual = curves(job, tmp_path / "cut", **how)
    for name in wanted:
        assert actual[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-5), name
    matrices = weights(tmp_path / "cut")
    for name, matrix in weights(out).items():
        torch.testing.assert_close(matrices[name], matrix, atol=1e-4, rtol=1e-3)


def test_a_model_that_is_not_told_the_number_of_tokens(
    job: Job, tmp_path: Path, whole: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Gemma 4 is not, by its own word: the loss is a mean over a step's tokens all the same."""
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "accepts_loss_kwargs", False, raising=False)
    actual = curves(job, tmp_path / "out", micro_batch_size=2)
    assert actual["loss"] == pytest.approx(whole[1]["loss"], abs=1e-4)
