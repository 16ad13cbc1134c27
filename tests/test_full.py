"""All weights trained: equal to trl's own training, in one process or two, killed or not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from test_dpo import trls
from transformers import AutoModelForCausalLM, set_seed
from trl import SFTConfig, SFTTrainer

from macpo_data.engines.protocol import ScoreRequest, Voice
from macpo_data.engines.transformers import TransformersEngine
from macpo_data.errors import ModelError
from macpo_data.models.base import Base, load_chat, load_model, voice_identity
from macpo_data.models.weights import is_checkpoint, weights_sha256
from macpo_data.recipe.engine import Engine
from macpo_data.recipe.training import DPO, SFT, Train
from macpo_train import launch
from macpo_train.encode import encode
from macpo_train.job import Job
from macpo_train.loop import training_arguments
from macpo_train.train import train

pytestmark = pytest.mark.slow
LAUNCHED = """
compute_environment: LOCAL_MACHINE
distributed_type: {kind}
use_cpu: true
num_machines: 1
machine_rank: 0
num_processes: 2
main_process_port: 0
"""
FSDP = "fsdp_config: {fsdp_version: 2, fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP}\n"


def unheard(done: int, total: int, note: str = "") -> None:
    pass


def column(facts: dict[str, Any], name: str) -> list[float]:
    return [row[name] for row in facts["history"]]


@pytest.fixture
def sft(dpo_job: Job, tmp_path: Path) -> Job:
    """Fine-tuning of all weights from the base."""
    settings = SFT(epochs=1, learning_rate=1e-3, batch_size=4)
    return replace(
        dpo_job, start=None, settings=settings, finetuning="full", out=tmp_path / "checkpoint"
    )


@pytest.fixture
def dpo(sft: Job, tmp_path: Path) -> Job:
    """Preference training that goes on from it."""
    train(unheard, sft)
    settings = DPO(learning_rate=1e-4, batch_size=4, reference="previous")
    return replace(sft, start=sft.out, settings=settings, out=tmp_path / "dpo")


@pytest.mark.parametrize("packing", [False, True])
def test_sft_is_trls(sft: Job, packing: bool) -> None:
    """Step by step through the optimiser."""
    settings = sft.settings.model_copy(update={"packing": packing})
    ours = train(unheard, replace(sft, settings=settings))
    assert (ours["packed"] is True) == packing
    chat = load_chat(sft.base, "tokenizer")
    data = encode(pl.read_parquet(sft.dataset), chat, ["chosen"], sft.train)
    rows = zip(data.prompts, data.responses["chosen"], strict=True)
    pairs = [{"input_ids": p + r, "labels": [-100] * len(p) + r} for p, r in rows]
    set_seed(sft.seed)
    trainer = SFTTrainer(
        model=load_model(sft.base, "float32"),
        args=SFTConfig(**training_arguments(sft, len(pairs))),
        train_dataset=Dataset.from_list(pairs),
        processing_class=chat.tokenizer,
    )
    trainer.train()
    theirs = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert column(ours, "loss") == pytest.approx(theirs, abs=2e-4)


@pytest.mark.parametrize("shared", [True, False])
def test_gamma_0_is_trls_dpo(dpo: Job, shared: bool) -> None:
    """With its own pass of a second model, which ours never loads."""
    settings = dpo.settings.model_copy(update={"gamma": 0.0})
    train_ = dpo.train.model_copy(update={"shared_prompt": shared})
    ours = train(unheard, replace(dpo, settings=settings, train=train_))
    assert ours["shared_prompt"] == (shared or "train.shared_prompt is off")
    model, frozen = (
        AutoModelForCausalLM.from_pretrained(dpo.start, dtype="float32") for _ in range(2)
    )
    losses = column(ours, "loss")
    assert losses[0] == pytest.approx(0.6931, abs=1e-4) and losses[-1] < losses[0]
    assert losses == pytest.approx(trls(dpo, model, frozen), abs=2e-4)


def test_a_checkpoint_is_a_model_of_transformers(sft: Job) -> None:
    """With its tokenizer, in the numbers of the recipe; and nothing else is left there."""
    facts = train(unheard, replace(sft, train=Train(dtype="bfloat16")))
    base = load_model(sft.base, "float32")
    assert facts["trainable_parameters"] == base.num_parameters()
    assert facts["dtype"] == "bfloat16" and facts["finetuning"] == "full"
    assert is_checkpoint(sft.out) and not (sft.out / "trainer").exists()
    saved = AutoModelForCausalLM.from_pretrained(sft.out)
    assert saved.dtype == torch.bfloat16
    moved = [
        name for name, weight in base.named_parameters()
        if not torch.equal(weight.bfloat16(), saved.get_parameter(name))
    ]  # fmt: skip
    assert len(moved) == len(list(base.named_parameters()))
    chat = load_chat(Base(str(sft.out), None), "tokenizer")
    assert chat.sha256 == load_chat(sft.base, "tokenizer").sha256


def test_small_steps_are_kept_in_bfloat16(sft: Job) -> None:
    """Of weights that were themselves bfloat16, most would stay where they are."""
    settings = SFT(epochs=8, learning_rate=1e-5, batch_size=4)
    train(unheard, replace(sft, settings=settings, train=Train(dtype="bfloat16")))
    base, trained = (load_model(Base(str(f), None), "bfloat16") for f in (sft.base.id, sft.out))
    halved = [w for w in load_model(sft.base, "bfloat16").parameters() if w.dim() == 2]
    optimizer = torch.optim.AdamW(halved, lr=1e-5, weight_decay=0.0)
    for _ in range(32):
        for w in halved:
            w.grad = torch.ones_like(w)
        optimizer.step()
    whole = [w for w in trained.parameters() if w.dim() == 2]
    start = [w for w in base.parameters() if w.dim() == 2]

    def moved(weights: list[torch.Tensor]) -> float:
        apart = [(a != b).float().mean().item() for a, b in zip(start, weights, strict=True)]
        return float(sum(apart) / len(apart))

    kept, lost = moved(whole), moved(halved)
    assert kept > 0.8 and lost < 0.55, (kept, lost)


@pytest.mark.parametrize("reference", ["base", "initial"])
def test_other_references_need_no_second_model(dpo: Job, tmp_path: Path, reference: str) -> None:
    """Their log-probabilities are those of their own weights, and training begins where it did."""
    other = replace(dpo, settings=SFT(learning_rate=1e-2, batch_size=4), out=tmp_path / "other")
    train(unheard, other)
    settings = dpo.settings.model_copy(update={"reference": reference})
    held_to = other.out if reference == "initial" else None
    job = replace(dpo, settings=settings, reference=held_to)
    facts = train(unheard, job)
    of = other.out if held_to else Path(dpo.base.id)
    frozen = AutoModelForCausalLM.from_pretrained(of, dtype="float32")
    own = AutoModelForCausalLM.from_pretrained(dpo.start, dtype="float32")
    chat = load_chat(dpo.base, "tokenizer")
    data = encode(pl.read_parquet(dpo.dataset), chat, ["chosen", "rejected"], dpo.train)

    def total(model: Any, at: int, side: str) -> float:
        prompt, answer = data.prompts[at], data.responses[side][at]
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        return float(logits.log_softmax(-1)[range(len(answer)), answer].sum().item())

    shift = [total(own, at, "chosen") - total(frozen, at, "chosen") for at in range(16)]
    assert max(map(abs, shift)) > 0.01
    history = facts["history"][0]
    mean = sum(shift) / 16
    assert facts["reference_logprobs"]["computed"] == 32
    assert history["chosen_shift"] == pytest.approx(mean, abs=5 * max(map(abs, shift)))
    whole = train(unheard, replace(job, settings=settings.model_copy(update={"batch_size": 16}),
                                   out=tmp_path / "whole"))  # fmt: skip
    assert whole["history"][0]["chosen_shift"] == pytest.approx(mean, abs=1e-3)


def test_scores_of_generation_are_the_reference(dpo: Job, tmp_path: Path) -> None:
    """Of the checkpoint, as the engine that loads it has made them."""
    base = replace(dpo.base, checkpoint=str(dpo.start))
    engine = TransformersEngine(base, Engine(dtype="float32"))
    voice = Voice(None, "tokenizer", "x")
    table = pl.read_parquet(dpo.dataset)
    for side in ("chosen", "rejected"):
        rows = zip(table["prompt"], table[side], table[f"{side}_finish_reason"], strict=True)
        requests = [ScoreRequest(voice, list(p), r, f == "stop", "x") for p, r, f in rows]
        scores = dict(engine.score(requests))
        values = [scores[i] for i in range(len(requests))]
        table = table.with_columns(
            pl.Series(f"{side}_{name}", [getattr(v, name) for v in values])
            for name in ("sum_logprob", "num_tokens", "eot_logprob")
        )
    table.write_parquet(tmp_path / "scored.parquet")
    job = replace(dpo, dataset=tmp_path / "scored.parquet", scored_under=engine.scored_under(voice))
    facts = train(unheard, job)
    assert facts["reference_logprobs"]["stored"] == 32
    assert facts["history"][0]["dpo"] == pytest.approx(0.6931, abs=1e-4)
    chat = load_chat(dpo.base, "tokenizer")
    of_base = voice_identity(dpo.base, chat, None, torch.float32)
    assert engine.scored_under(voice)["adapter_sha256"] == weights_sha256(sft_of(dpo))
    assert of_base["adapter_sha256"] is None


def sft_of(job: Job) -> Path:
    assert job.start is not None
    return job.start


@pytest.mark.parametrize("kind", ["MULTI_CPU", "FSDP"])
def test_two_processes_are_one_training(
    dpo: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    config = tmp_path / "two.yaml"
    config.write_text(LAUNCHED.format(kind=kind) + (FSDP if kind == "FSDP" else ""))
    if kind == "FSDP":
        usual = launch._command
        script = str(Path(__file__).with_name("cpu_fsdp.py"))
        monkeypatch.setattr(launch, "_command", lambda config: [*usual(config), script])
    one = train(unheard, replace(dpo, out=tmp_path / "one"))
    launched = dpo.train.model_copy(update={"launcher": str(config)})
    two = train(unheard, replace(dpo, train=launched, out=tmp_path / "two"))
    assert (two["processes"], two["sharded"]) == (2, kind == "FSDP")
    for ours, theirs in zip(one["history"], two["history"], strict=True):
        assert theirs == pytest.approx(ours, abs=2e-4)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-5, rtol=1e-3)


def test_a_killed_training_goes_on(dpo: Job, tmp_path: Path) -> None:
    """In the middle of the step's training, from weights and moments; the bytes are the same."""
    settings = dpo.settings.model_copy(update={"epochs": 2.0})
    saving = dpo.train.model_copy(update={"save_steps": 2})
    job = replace(dpo, settings=settings, train=saving, out=tmp_path / "killed")

    class Killed(Exception):
        pass

    def die(done: int, total: int, note: str = "") -> None:
        if done == 5 and "loss" in note:
            raise Killed

    with pytest.raises(Killed):
        train(die, job)
    facts = train(unheard, job)
    assert facts["resumed_from"] == 4 and len(facts["history"]) == 8
    whole = train(unheard, replace(job, out=tmp_path / "whole"))
    assert column(whole, "loss") == column(facts, "loss")
    assert weights_sha256(job.out) == weights_sha256(tmp_path / "whole")


def test_what_does_not_fit_is_one_line(dpo: Job, dpo_job: Job, tmp_path: Path) -> None:
    other = json.loads((sft_of(dpo) / "config.json").read_text())
    (sft_of(dpo) / "config.json").write_text(json.dumps(other | {"_name_or_path": "org/other"}))
    with pytest.raises(ModelError, match="was trained from org/other, not from"):
        train(unheard, dpo)
    with pytest.raises(ModelError, match="is an adapter, and full fine-tuning starts from"):
        train(unheard, replace(dpo, start=dpo_job.start))
    assert not psutil.Process().children(recursive=True) or not dpo.out.exists()
