"""The vLLM engine against the transformers engine, on a tiny real model: CPU vLLM is enough."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml
from conftest import RECIPE, make_tiny_base
from test_kill import kill_until_done, start

from macpo_data.engines.choose import pick
from macpo_data.engines.protocol import Request, ScoreRequest, Voice
from macpo_data.engines.transformers import TransformersEngine
from macpo_data.errors import ModelError
from macpo_data.loading.load import load_recipe
from macpo_data.models.base import Base, load_model
from macpo_data.models.weights import weights_sha256
from macpo_data.recipe.engine import VLLM, Engine
from macpo_data.recipe.generation import Sampling
from macpo_data.schema import Message
from macpo_data.world.grammar import examples
from macpo_run import rounds, session, training

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed (`make vllm`)", allow_module_level=True)

from macpo_data.engines import vllm as ours
from macpo_data.engines import vllm_settings

GREEDY = Sampling(temperature=0, max_new_tokens=8)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Heads of 32, the smallest that vLLM's CPU attention has."""
    return Base(str(make_tiny_base(tmp_path_factory.mktemp("tiny"), width=64)), None)


@pytest.fixture(scope="module")
def adapters(base: Base, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two adapters of unlike ranks with random weights."""
    from peft import LoraConfig, get_peft_model

    paths = []
    for rank in (4, 12):
        torch.manual_seed(rank)
        config = LoraConfig(r=rank, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model: Any = get_peft_model(load_model(base), config)
        paths.append(str(tmp_path_factory.mktemp("adapter")))
        model.save_pretrained(paths[-1])
    return paths


@pytest.fixture(scope="module")
def engine(base: Base) -> Iterator[ours.VLLMEngine]:
    """One engine for all tests, since a start takes long."""
    engine = ours.VLLMEngine(base, Engine(name="vllm"))
    yield engine
    engine.close()


def voices(adapters: list[str]) -> list[Voice]:
    return [Voice(adapter, "tokenizer", str(adapter)) for adapter in (None, *adapters)]


def prompts(count: int) -> list[list[Message]]:
    return [e.prompt for e in examples("task")[:count]]  # type: ignore[misc]


def test_one_mixed_batch_says_what_transformers_says(
    engine: ours.VLLMEngine, base: Base, adapters: list[str]
) -> None:
    """The bare base and two adapters of unlike ranks side by side, in float32: token for token."""
    requests = [
        Request(voice, prompt, GREEDY, 0, voice.fingerprint)
        for voice in voices(adapters)
        for prompt in prompts(6)
    ]
    got = dict(engine.generate(requests))
    assert got == dict(TransformersEngine(base, Engine()).generate(requests))
    assert len({got[i].text for i in (0, 6, 12)}) == 3  # the adapters are heard
    assert engine._engine and engine._engine.vllm_config.lora_config
    assert engine._engine.vllm_config.lora_config.max_lora_rank == 16
    assert engine.facts()["dtype"] == "float32"


def test_the_seed_decides_and_not_the_batch(engine: ours.VLLMEngine, adapters: list[str]) -> None:
    hot = Sampling(temperature=1, top_p=1, top_k=0, max_new_tokens=8)
    voice = voices(adapters)[1]
    asked = [Request(voice, prompts(1)[0], hot, seed, "a") for seed in (1, 2, 1)]
    alone = dict(engine.generate(asked))
    others = [Request(v, p, hot, 9, "b") for v in voices(adapters) for p in prompts(4)]
    together = dict(engine.generate([*others, *asked]))
    assert alone[0] == alone[2] != alone[1]
    assert [together[len(others) + n] for n in range(3)] == [alone[n] for n in range(3)]


def test_more_prompts_than_a_step_reads(engine: ours.VLLMEngine) -> None:
    """With a seed each; vLLM would split the prompt at the edge, which kills its CPU build."""
    hot = Sampling(temperature=1, top_p=1, top_k=0, max_new_tokens=2)
    voice = Voice(None, "tokenizer", "base")
    texts = [Message(role="user", content=f"{n} {'word ' * 50}") for n in range(200)]
    asked = [Request(voice, [text], hot, n, "a") for n, text in enumerate(texts)]
    assert dict(engine.generate(asked)).keys() == set(range(200))
    length = sum(len(engine._chat(voice).prompt_ids(request.prompt)) for request in asked)
    assert engine._engine
    assert length > 2 * engine._engine.vllm_config.scheduler_config.max_num_batched_tokens


def test_a_prompt_that_is_too_long_is_a_row_and_no_abort(engine: ours.VLLMEngine) -> None:
    """The base holds 256 tokens: prompt and response fit exactly, or are one too many."""
    voice = Voice(None, "tokenizer", "base")
    length = len(engine._chat(voice).prompt_ids(prompts(1)[0]))
    asked = [
        Request(voice, prompts(1)[0], Sampling(max_new_tokens=256 - length + more), 1, "a")
        for more in (0, 1)
    ]
    got = dict(engine.generate(asked))
    assert got[0].text is not None
    assert got[1].finish_reason == "prompt_too_long" and got[1].text is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"use_dora": True}, "DoRA"),
        ({"r": 513}, "rank 513"),
        ({"bias": "all"}, "bias"),
    ],
)
def test_an_adapter_that_vllm_cannot_load_is_refused_before_the_start(
    change: dict[str, Any], why: str, base: Base, adapters: list[str], tmp_path: Path
) -> None:
    shutil.copytree(adapters[0], tmp_path / "adapter")
    file = tmp_path / "adapter/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    engine = ours.VLLMEngine(base, Engine(name="vllm"))
    voice = Voice(str(tmp_path / "adapter"), "tokenizer", "x")
    with pytest.raises(ModelError, match=rf"cannot load the adapter .*{why}.*merge"):
        list(engine.generate([Request(voice, prompts(1)[0], GREEDY, 0, "a")]))
    assert engine._engine is None


def asking(adapters: list[str]) -> list[ScoreRequest]:
    return [
        ScoreRequest(voice, example.prompt, example.chosen, n % 2 == 0, voice.fingerprint)  # type: ignore[arg-type]
        for voice in voices(adapters)
        for n, example in enumerate(examples("task")[:10])
    ]


def test_scores_equal_those_of_a_forward_pass(
    engine: ours.VLLMEngine, base: Base, adapters: list[str]
) -> None:
    """All of them, not only the sample that the engine holds against forward passes itself."""
    requests = asking(adapters)
    long = ScoreRequest(voices(adapters)[0], prompts(1)[0], "word " * 300, True, "long")
    got = dict(engine.score([*requests, long]))
    want = dict(TransformersEngine(base, Engine()).score(requests))
    assert got.pop(len(requests)) is None
    assert got.keys() == want.keys()
    for i, other in want.items():
        score = got[i]
        assert score and other and score.num_tokens == other.num_tokens
        assert score.sum_logprob == pytest.approx(other.sum_logprob, abs=1e-3)
        assert score.eot_logprob == pytest.approx(other.eot_logprob, abs=1e-3)
    # Every second of 10 of each voice leaves 5, which is no more than 8; the long one has no score.
    assert engine.facts()["scoring"].startswith("15 of 31 checked")
    assert engine.scored_under(requests[0].voice)["scorer"] == "vllm"


def test_scores_that_differ_are_told_to_nobody(
    engine: ours.VLLMEngine, adapters: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No float32 sum over other kernels is the same to 1e-30."""
    monkeypatch.setitem(ours.TOLERANCE, "float32", 1e-30)
    scores = engine.score(asking(adapters[:1]))
    with pytest.raises(ModelError, match=r"differ from those of a forward pass.*score\.engine"):
        next(scores)


def test_a_merged_copy_says_nearly_the_same(base: Base, adapters: list[str]) -> None:
    """In bfloat16: its scores pass the check against forward passes on base and adapter."""
    engine = ours.VLLMEngine(base, Engine(name="vllm", adapters="merge"))
    requests = asking(adapters[:1])[10:]
    assert len(dict(engine.score(requests))) == 10
    assert engine.facts()["adapters"] == "merge" and engine.facts()["dtype"] == "bfloat16"
    voice = voices(adapters)[1]
    asked = [Request(voice, prompt, GREEDY, 0, "a") for prompt in prompts(6)]
    got, exact = (dict(e.generate(asked)) for e in (engine, TransformersEngine(base, Engine())))
    assert sum(got[i] == exact[i] for i in exact) >= 3  # rounding may turn a word
    assert engine._engine and engine._engine.vllm_config.lora_config is None
    engine.close()


def test_a_checkpoint_is_served(base: Base, tmp_path: Path) -> None:
    """All weights of a policy, trained here: the same words and scores as transformers has.

    Like all that follows, it closes an engine of its own, and with it all that vLLM has in this
    process: no test behind it may use the shared one.
    """
    from macpo_data.recipe.training import SFT, Lora, Train
    from macpo_train.job import Job
    from macpo_train.train import train

    rows = [{"prompt": p, "chosen": "A good answer.", "chosen_finish_reason": "stop"}
            for p in prompts(16)]  # fmt: skip
    pl.DataFrame(rows).write_parquet(tmp_path / "rows.parquet")
    job = Job(
        dataset=tmp_path / "rows.parquet", column="chosen", base=base, chat_template="tokenizer",
        start=None, out=tmp_path / "checkpoint", settings=SFT(learning_rate=1e-3, batch_size=4),
        lora=Lora(), train=Train(dtype="float32"), finetuning="full",
    )  # fmt: skip
    train(lambda *_: None, job)
    trained, voice = replace(base, checkpoint=str(job.out)), Voice(None, "tokenizer", "trained")
    asked = [Request(voice, prompt, GREEDY, 0, "a") for prompt in prompts(6)]
    wanted = dict(TransformersEngine(trained, Engine()).generate(asked))
    assert wanted != dict(TransformersEngine(base, Engine()).generate(asked))
    with closing(ours.VLLMEngine(trained, Engine(name="vllm"))) as served:
        assert dict(served.generate(asked)) == wanted
        under = served.scored_under(voice)
    assert under["base"] == base.id and under["adapter_sha256"] == weights_sha256(job.out)


def test_cpu_vllm_still_dies_of_two_scored_sequences_with_an_adapter(
    base: Base, adapters: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, vLLM is mended: remove `max_num_seqs` from engines/vllm.py, and this test."""
    import vllm

    own = vllm.EngineArgs

    def several(**options: Any) -> Any:
        return own(**{k: v for k, v in options.items() if k != "max_num_seqs"})

    monkeypatch.setattr(vllm, "EngineArgs", several)
    engine = ours.VLLMEngine(base, Engine(name="vllm"))
    with pytest.raises(RuntimeError, match="einsum"):
        list(engine.score(asking(adapters[:1])))
    engine.close()


def test_cpu_vllm_still_takes_no_adapter_for_the_last_one() -> None:
    """If this fails, vLLM is mended: remove `+ on_cpu` from engines/vllm.py, and this test.

    Slot 1 of two holds ones; a token without adapter has index -1. Right is 0, wrong is 1 * 3.
    """
    from vllm.lora.ops.torch_ops import bgmv_shrink

    weights = torch.stack([torch.zeros(1, 3), torch.ones(1, 3)]).unsqueeze(1)
    out = torch.zeros(1, 1)
    bgmv_shrink(torch.ones(1, 3), weights, out, torch.tensor([-1]))
    assert out.item() == 3


def test_the_recipe_reaches_vllm() -> None:
    hardware = VLLM(
        memory=0.5, tensor_parallel=2, pipeline_parallel=3, max_model_len=99, enforce_eager=False
    )
    settings = Engine(name="vllm", quantization="fp8", vllm=hardware)
    arguments = vllm_settings.engine_arguments(
        vllm_settings.Shape(Base("org/x", "abc"), 2, 16, False), settings, "float16"
    )
    assert arguments["gpu_memory_utilization"] == 0.5 and "kv_cache_memory_bytes" not in arguments
    assert (arguments["tensor_parallel_size"], arguments["pipeline_parallel_size"]) == (2, 3)
    assert arguments["max_model_len"] == 99 and arguments["enforce_eager"] is False
    assert (arguments["quantization"], arguments["dtype"], arguments["revision"]) == (
        "fp8",
        "float16",
        "abc",
    )
    assert (
        arguments["enable_lora"]
        and arguments["max_lora_rank"] == 16
        and arguments["max_loras"] >= 2
    )
    assert arguments["trust_remote_code"] is False


def test_the_engine_that_writes_and_the_one_that_scores() -> None:
    assert pick(Engine(name="vllm")).name == "vllm"
    assert pick(Engine(name="vllm"), "forward").name == "transformers"
    assert pick(Engine(name="transformers"), "vllm").name == "vllm"
    assert pick(Engine(name="fake"), "vllm").name == "fake"


def test_what_vllm_refuses_at_its_start(base: Base) -> None:
    """The reason itself: pydantic, by which vLLM checks, begins with a count of the mistakes."""
    wrong: list[dict[str, Any]] = [{"vllm": VLLM(max_model_len=10**6)}, {"quantization": "foo"}]
    for knobs in wrong:
        small = ours.VLLMEngine(base, Engine.model_validate({"name": "vllm", **knobs}))
        asked = [Request(voices([])[0], prompts(1)[0], GREEDY, 0, "a")]
        with pytest.raises(ModelError, match=r"cannot serve .*; change engine.vllm or") as error:
            list(small.generate(asked))
        assert "validation error" not in str(error.value) and "\n" not in str(error.value)


needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (`make ray`)")


@pytest.mark.slow
@needs_ray
def test_ray_says_what_transformers_says(base: Base, adapters: list[str]) -> None:
    """The bare base and two adapters in one batch, on a cluster of this one machine."""
    from macpo_data.engines.ray import RayEngine

    requests = [
        Request(voice, prompt, GREEDY, 0, voice.fingerprint)
        for voice in voices(adapters)
        for prompt in [*prompts(2), [Message(role="user", content="word " * 400)]]
    ]
    engine = RayEngine(base, Engine(name="ray"))
    got = dict(engine.generate(requests))
    assert got == dict(TransformersEngine(base, Engine()).generate(requests))
    assert engine.facts()["engine"] == "ray"


@pytest.mark.slow
def test_rounds_0_and_1_and_no_engine_beside_a_training(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bases are to be kept loaded, and yet an engine's memory is given back before training."""
    values = yaml.safe_load(RECIPE)
    values["agents"] = {name: values["agents"][name] for name in ("teacher1", "student")}
    for agent in values["agents"].values():
        agent["base"] = base.id
    values["engine"] |= {"name": "vllm", "keep_loaded": 4}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    beside = []

    def fit(*args: Any) -> dict[str, Any]:
        beside.append([p.name for p in multiprocessing.active_children() if "vllm" in p.name])
        return training.fit(*args)

    monkeypatch.setattr(session, "fit", fit)
    recipe = load_recipe(str(tmp_path / "tiny.yaml"))
    with rounds.Run(recipe, tmp_path, lambda _: nullcontext(lambda *_: None), print) as run:
        outcomes = [run.finish_round(0), run.make("gen", 1)]
        assert [p for p in multiprocessing.active_children() if "vllm" in p.name]
        outcomes.append(run.finish_round(1))
        assert {step for outcome in outcomes for step, _ in outcome.wrote} == set(run.plan.steps)
    assert beside == [[]] * 6
    manifests = (tmp_path / "test/samples").glob("*/manifest.json")
    assert {json.loads(m.read_text())["engine"] for m in manifests} == {"vllm"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vllm", pytest.param("ray", marks=needs_ray)])
def test_gen_that_is_killed_loses_and_doubles_no_row(name: str, base: Base, tmp_path: Path) -> None:
    """The kill falls into what round 0's teacher writes for the student; no process is left."""
    values = yaml.safe_load(RECIPE)
    for agent in values["agents"].values():
        agent["base"] = base.id
    values["data"]["d2"]["count"] = 64
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    common = ["--round", "0", "-r", "./tiny.yaml", "--set", f"engine.name={name}"]
    for kind in ("gen", "train"):
        assert start(tmp_path, kind, "--learner", "teacher1", *common).wait(timeout=300) == 0
    pattern = "runs/test/samples/*/shards/*.parquet"
    args = ["gen", "--learner", "student", *common]
    assert kill_until_done(tmp_path, args, pattern, [random.Random(0).randint(1, 30)]) == 1
    for folder in (tmp_path / "runs/test/samples").iterdir():
        rows = pl.concat(pl.read_parquet(f) for f in sorted(folder.glob("shards/*.parquet")))
        assert len(rows) == rows["prompt_id"].n_unique() == 64
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["engine"] == name and manifest["rows"] == 64
    assert len(list((tmp_path / "runs/test/samples").iterdir())) == 2
    # Two agents of a killed Ray look for their cluster for a minute before they end by themselves.
    patience = time.monotonic() + (120 if name == "ray" else 0)
    while left := _working_in(tmp_path):
        assert time.monotonic() < patience, left
        time.sleep(1)


def _working_in(folder: Path) -> list[str]:
    """What processes still work in a folder."""
    processes = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.readlink(process / "cwd") == str(folder):
                processes.append((process / "cmdline").read_text().replace("\0", " "))
    return processes


def test_a_base_with_nan_says_nothing(base: Base, tmp_path: Path) -> None:
    """vLLM samples from NaN without a word; log-probabilities tell."""
    from safetensors.torch import load_file, save_file

    spoilt = shutil.copytree(base.id, tmp_path / "spoilt")
    weights = load_file(spoilt / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = float("nan")
    save_file(weights, spoilt / "model.safetensors", {"format": "pt"})
    bad = ours.VLLMEngine(Base(str(spoilt), None), Engine(name="vllm"))
    voice = Voice(None, "tokenizer", "v")
    try:
        with pytest.raises(ModelError, match=f"logits of {spoilt} are NaN"):
            list(bad.generate([Request(voice, prompts(1)[0], GREEDY, 0, "g")] * 2))
        with pytest.raises(ModelError, match=f"{spoilt}.* are NaN or infinite"):
            list(bad.score([ScoreRequest(voice, prompts(1)[0], "Pear.", True, "g")] * 2))
    finally:
        bad.close()
