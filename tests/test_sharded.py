"""FSDP over two CPU processes, started by `accelerate launch`: the same training as in one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from macpo_data.errors import ModelError
from macpo_data.recipe.training import DPO, Train
from macpo_train import launch
from macpo_train.job import Job
from macpo_train.train import train

pytestmark = pytest.mark.slow
CONFIG = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
use_cpu: true
num_machines: 1
machine_rank: 0
num_processes: 2
main_process_port: 0
fsdp_config: {fsdp_version: 2, fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP}
"""


def unheard(done: int, total: int, note: str = "") -> None:
    pass


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An accelerate config whose processes shard on CPUs."""
    path = tmp_path / "fsdp.yaml"
    path.write_text(CONFIG)
    usual = launch._command
    script = str(Path(__file__).with_name("cpu_fsdp.py"))
    monkeypatch.setattr(launch, "_command", lambda config: [*usual(config), script])
    return str(path)


def assert_same(one: Job, two: Job, alone: dict[str, Any], together: dict[str, Any]) -> None:
    assert (alone["sharded"], together["sharded"], together["processes"]) == (False, True, 2)
    for ours, theirs in zip(alone["history"], together["history"], strict=True):
        assert theirs == pytest.approx(ours, abs=2e-4)
    for name, weight in weights(one).items():
        torch.testing.assert_close(weights(two)[name], weight, atol=1e-5, rtol=1e-4)


def weights(job: Job) -> dict[str, torch.Tensor]:
    return load_file(job.out / "adapter_model.safetensors")


def test_dpo_is_the_same_training(dpo_job: Job, tmp_path: Path, config: str) -> None:
    """Prompts are shared, activations computed twice; the reference pass runs on the shards."""
    train_ = Train(dtype="float32", gradient_checkpointing=True)
    one = replace(dpo_job, train=train_, out=tmp_path / "one")
    launched = train_.model_copy(update={"launcher": config})
    two = replace(one, train=launched, out=tmp_path / "two")
    alone, together = train(unheard, one), train(unheard, two)
    assert_same(one, two, alone, together)
    assert together["reference_logprobs"]["computed"] == 32
    assert together["shared_prompt"] is True
    assert {p.name for p in two.out.iterdir()} == {p.name for p in one.out.iterdir()}


def test_a_killed_training_goes_on(dpo_job: Job, tmp_path: Path, config: str) -> None:
    """From shards of adapter and optimiser, here on the plain path, with the base as reference."""
    settings = DPO(epochs=2, learning_rate=1e-3, batch_size=4)
    train_ = Train(dtype="float32", shared_prompt=False, save_steps=2)
    one = replace(dpo_job, settings=settings, train=train_, out=tmp_path / "one")
    launched = train_.model_copy(update={"launcher": config})
    two = replace(one, train=launched, out=tmp_path / "two")

    def die(done: int, total: int, note: str = "") -> None:
        if done == 5 and "loss" in note:
            for child in psutil.Process().children(recursive=True):
                if "macpo_train.process" in child.cmdline():
                    child.kill()

    with pytest.raises(ModelError, match=r"ended .* before the training did"):
        train(die, two)
    together = train(unheard, two)
    assert together["resumed_from"] == 4
    assert_same(one, two, train(unheard, one), together)


def test_what_is_not_sharded_says_so(
    dpo_job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate itself would train on without a word, the whole model in each process."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ModelError, match="accelerate shards on GPUs only"):
        train(unheard, replace(dpo_job, out=tmp_path / "out"))
