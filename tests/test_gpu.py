"""What only a GPU shows: half precision, four bits, FSDP on CUDA, memory given back."""

from __future__ import annotations

import copy
import gc
import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from conftest import make_tiny_base
from peft import PeftModel
from safetensors.torch import load_file
from test_packing import with_lora
from transformers import LlamaConfig, LlamaForCausalLM

from macpo_data.engines.protocol import Request, ScoreRequest, Voice
from macpo_data.engines.transformers import TransformersEngine
from macpo_data.models.base import Base, load_chat, load_model
from macpo_data.models.logprobs import answer_logprobs, why_not_shared
from macpo_data.models.merge import merge
from macpo_data.planning.hardware import here
from macpo_data.recipe.engine import Engine
from macpo_data.recipe.generation import Sampling
from macpo_data.recipe.training import DPO, Train
from macpo_data.schema import Message
from macpo_train.job import Job
from macpo_train.train import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
# Lengths as of short and long dialogues; multiples of what kernels like, and others.
PROMPT_LENGTHS = (700, 384, 5)
ANSWER_LENGTHS = ((60, 211), (128, 1, 90), (40, 17))
VOCABULARY = 1000
FSDP = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
num_machines: 1
machine_rank: 0
num_processes: 1
main_process_port: 0
fsdp_config: {fsdp_version: 2, fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP}
"""


def unheard(done: int, total: int, note: str = "") -> None:
    pass


def llama(dtype: torch.dtype = torch.float32) -> Any:
    """Of several heads, two of which share keys; wide enough that a wrong mask shows."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.08,
    )
    return LlamaForCausalLM(config).eval().to("cuda", dtype)


def texts(seed: int = 0) -> tuple[list[list[int]], list[list[list[int]]]]:
    draw = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> list[int]:
        return [int(n) for n in torch.randint(VOCABULARY, (count,), generator=draw)]

    answers = [[tokens(n) for n in own] for own in ANSWER_LENGTHS]
    return [tokens(n) for n in PROMPT_LENGTHS], answers


def logprobs(model: Any, shared: bool) -> torch.Tensor:
    with torch.no_grad():
        return answer_logprobs(model, *texts(), 0, shared=shared)[0]


def test_values_in_float32() -> None:
    model = llama()
    torch.testing.assert_close(logprobs(model, True), logprobs(model, False), atol=2e-4, rtol=1e-4)
    assert why_not_shared(model) is None


def test_values_in_bfloat16() -> None:
    """As far from float32 as the plain path is, and no further."""
    exact = logprobs(llama(), False)
    model = llama(torch.bfloat16)
    shared, plain = ((logprobs(model, way) - exact).abs().mean().item() for way in (True, False))
    assert 0 < shared < 1.5 * plain
    assert why_not_shared(model) is None


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients(dtype: torch.dtype, checkpointing: bool) -> None:
    """Of a loss in which every token has its own upstream gradient."""
    torch.manual_seed(1)
    base = with_lora(llama(), checkpointing=False)
    exact = gradients(base, shared=False)
    model = copy.deepcopy(base)
    model.get_base_model().to(dtype)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    shared, plain = (gradients(model, shared=way) for way in (True, False))
    allowed = 1e-3 if dtype == torch.float32 else 1.5 * distance(plain, exact)
    assert distance(shared, exact) < allowed


def gradients(model: Any, shared: bool) -> torch.Tensor:
    model.zero_grad()
    values, _ = answer_logprobs(model, *texts(), 0, shared=shared)
    torch.autograd.backward(torch.tanh(values.sum(1) / 500).sum() + (values**2).mean())
    trained = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(trained) == 16
    return torch.cat([grad.float().flatten() for grad in trained])


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.fixture
def gpu_job(dpo_job: Job, tmp_path: Path) -> Job:
    """DPO from a new adapter, on a base whose matrices are wide enough for four bits."""
    base = Base(str(make_tiny_base(tmp_path / "base", width=128)), None)
    return replace(dpo_job, base=base, start=None, out=tmp_path / "out")


def test_bfloat16_trains_as_float32_does(gpu_job: Job, tmp_path: Path) -> None:
    exact = train(unheard, replace(gpu_job, out=tmp_path / "exact"))
    half = replace(gpu_job, out=tmp_path / "half", train=Train(dtype="bfloat16"))
    facts = train(unheard, half)
    assert facts["shared_prompt"] is True
    for ours, theirs in zip(facts["history"], exact["history"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.03)
    kinds = {weight.dtype for weight in load_file(half.out / "adapter_model.safetensors").values()}
    assert kinds == {torch.float32}


def test_full_weights(gpu_job: Job, tmp_path: Path) -> None:
    """In bfloat16 as in float32, also with an eight-bit optimiser; memory is given back."""
    full = replace(gpu_job, finetuning="full")
    exact = train(unheard, replace(full, train=Train(dtype="float32"), out=tmp_path / "exact"))
    before = held()
    kinds: list[Any] = ["adamw", *(["adamw_8bit"] if find_spec("bitsandbytes") else [])]
    for kind in kinds:
        half = replace(full, out=tmp_path / kind, train=Train(dtype="bfloat16", optimizer=kind))
        facts = train(unheard, half)
        assert facts["shared_prompt"] is True and facts["finetuning"] == "full"
        for ours, theirs in zip(facts["history"], exact["history"], strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.05)
        weights = load_file(half.out / "model.safetensors").values()
        assert {weight.dtype for weight in weights} == {torch.bfloat16}
        assert held() - before < 1 << 20


def test_auto_is_bfloat16_on_a_card_that_has_it(gpu_job: Job, tmp_path: Path) -> None:
    """The plan of this machine says the same."""
    facts = train(unheard, replace(gpu_job, out=tmp_path / "auto", train=Train(dtype="auto")))
    expected = "bfloat16" if torch.cuda.get_device_capability() >= (8, 0) else "float32"
    assert facts["dtype"] == expected == Train(dtype="auto").on(bfloat16=here().bfloat16).dtype


def test_the_plain_path_trains_in_bfloat16(gpu_job: Job, tmp_path: Path) -> None:
    """Where padding stood before the prompts, one batch in eight had a gradient that was nan."""
    rows = pl.read_parquet(gpu_job.dataset)
    longer: pl.Expr = pl.col("chosen").str.repeat_by(pl.int_range(pl.len()) % 5 + 1).list.join(" ")
    rows.with_columns(longer).write_parquet(tmp_path / "uneven.parquet")
    plain = Train(dtype="bfloat16", shared_prompt=False, max_truncated=1.0)
    facts = train(unheard, replace(gpu_job, dataset=tmp_path / "uneven.parquet", train=plain))
    assert len(facts["history"]) == 4
    assert all(math.isfinite(row["grad_norm"]) for row in facts["history"])


def test_four_bits_train_and_merge(gpu_job: Job, tmp_path: Path) -> None:
    """The base is read in four bits, the adapter keeps its digits, and merges into a whole base."""
    pytest.importorskip("bitsandbytes")
    quarter = Train(dtype="bfloat16", quantization="nf4")
    job = replace(gpu_job, train=quarter, settings=DPO(learning_rate=5e-3, batch_size=4, epochs=2))
    facts = train(unheard, job)
    losses = [row["loss"] for row in facts["history"]]
    assert losses[-1] < losses[0]
    model = load_model(job.base, "bfloat16", "nf4")
    assert {type(m).__name__ for m in model.modules()} >= {"Linear4bit"}
    merge(unheard, job.base, job.out, tmp_path / "merged")
    merged = load_model(Base(str(tmp_path / "merged"), None), "bfloat16")
    tuned = PeftModel.from_pretrained(load_model(job.base, "bfloat16"), str(job.out))
    ids = torch.arange(40, device="cuda")[None]
    with torch.no_grad():
        ours, theirs = merged(ids).logits, tuned(ids).logits
        with tuned.disable_adapter():
            without = tuned(ids).logits
    off, moved = (ours - theirs).abs().mean(), (without - theirs).abs().mean()
    assert off < 0.1 * moved


def test_memory_is_given_back(gpu_job: Job, tmp_path: Path) -> None:
    before = held()
    for number in range(2):
        train(unheard, replace(gpu_job, out=tmp_path / f"out{number}"))
        assert held() - before < 1 << 20


def held() -> int:
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated()


def test_sharded_in_one_process(gpu_job: Job, tmp_path: Path) -> None:
    """FSDP as accelerate starts it on GPUs; with one process it must be the plain training."""
    config = tmp_path / "fsdp.yaml"
    config.write_text(FSDP)
    alone = train(unheard, replace(gpu_job, out=tmp_path / "alone"))
    launched = Train(dtype="float32", launcher=str(config))
    together = train(unheard, replace(gpu_job, train=launched))
    assert (alone["sharded"], together["sharded"]) == (False, True)
    for ours, theirs in zip(together["history"], alone["history"], strict=True):
        assert ours == pytest.approx(theirs, abs=2e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_engine(gpu_job: Job, dtype: Any) -> None:
    """Greedy answers are those of a bare `generate`, and scores those of a bare forward pass."""
    engine = TransformersEngine(gpu_job.base, Engine(batch_size=4, dtype=dtype))
    voice = Voice(None, "tokenizer", "base")
    prompt: list[Message] = [{"role": "user", "content": "How are you?"}]
    sampling = Sampling(temperature=0, max_new_tokens=8)
    written = dict(engine.generate([Request(voice, prompt, sampling, 0, "all")] * 2))
    chat = load_chat(gpu_job.base, "tokenizer")
    model = load_model(gpu_job.base, dtype)
    ids = torch.tensor([chat.prompt_ids(prompt)], device="cuda")
    bare = model.generate(
        ids, do_sample=False, max_new_tokens=8, eos_token_id=chat.stop_ids, pad_token_id=chat.pad_id
    )
    text = chat.tokenizer.decode(bare[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert [written[i].text for i in range(2)] == [text, text]
    scores = dict(engine.score([ScoreRequest(voice, prompt, "Very well.", True, "all")] * 3))
    answer = torch.tensor([chat.response_ids("Very well.", True)], device="cuda")
    with torch.no_grad():
        logits = model(torch.cat([ids, answer], 1)).logits[:, ids.shape[1] - 1 : -1].float()
    each = logits.log_softmax(2).gather(2, answer[:, :, None]).flatten()
    score = scores[0]
    assert score is not None and engine.facts()["dtype"] == dtype
    allowed = 1e-3 if dtype == "float32" else 0.3
    assert score.sum_logprob + score.eot_logprob == pytest.approx(each.sum().item(), abs=allowed)
