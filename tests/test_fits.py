"""Adapters, bases, tokenizers and rows that do not belong together, and weights that are NaN."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from conftest import Macpo, make_tiny_base
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from macpo_data.bases.named import folder_print
from macpo_data.engines.protocol import Request, ScoreRequest, Voice
from macpo_data.engines.transformers import TransformersEngine
from macpo_data.errors import ModelError
from macpo_data.generation.reward_model import Scorer, rewards
from macpo_data.models import fits
from macpo_data.models.base import Base, load_model, skeleton
from macpo_data.models.merge import merge
from macpo_data.recipe.engine import Engine
from macpo_data.recipe.generation import Sampling
from macpo_data.recipe.training import DPO, SFT, Lora, RewardTraining, Train
from macpo_data.schema import Message
from macpo_train.adapter import gathered
from macpo_train.checks import check_trained
from macpo_train.job import Job
from macpo_train.train import train

pytestmark = pytest.mark.slow
PROMPT: list[Message] = [{"role": "user", "content": "Name a fruit."}]
ADAPTER = "adapter_model.safetensors"
SAMPLING = Sampling(max_new_tokens=4)
LLAMA = "down_proj gate_proj k_proj o_proj q_proj up_proj v_proj"


def quiet(done: int, total: int, note: str = "") -> None:
    pass


@pytest.fixture(scope="module")
def gpt2(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Two layers, 24 learned positions, fused projections."""
    path = tmp_path_factory.mktemp("gpt2")
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=16, n_layer=2, n_head=2, n_positions=24, vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return Base(str(path), None)


@pytest.fixture
def fewer(tiny_base: Path, tmp_path: Path) -> Base:
    """A model whose embeddings end in the middle of its tokenizer."""
    path = tmp_path / "fewer"
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    model.resize_token_embeddings(40)
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(path)
    return Base(str(path), None)


@pytest.fixture
def spoilt(tiny_base: Path, tmp_path: Path) -> Base:
    """The tiny base with one weight that is NaN."""
    path = tmp_path / "spoilt"
    shutil.copytree(tiny_base, path)
    weights = load_file(path / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = math.nan
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    return Base(str(path), None)


def spoil(adapter: Path, value: float, out: Path) -> Path:
    """A copy of an adapter with one weight of that value."""
    shutil.copytree(adapter, out)
    weights = load_file(out / ADAPTER)
    next(iter(weights.values()))[0, 0] = value
    save_file(weights, out / ADAPTER)
    return out


def fresh(job: Job, tmp_path: Path, base: Base | None = None, **changes: Any) -> Job:
    """A preference training that starts from the base alone."""
    settings = {"start": None, "out": tmp_path / "out", "base": base or job.base} | changes
    return replace(job, **settings)


def refused(job: Job, says: str) -> None:
    """The training ends in one line that says so, before any weight of the base is read."""
    with pytest.raises(ModelError, match=says) as raised, pytest.MonkeyPatch.context() as patch:
        patch.setattr("macpo_train.adapter.load_model", pytest.fail)
        train(quiet, job)
    assert "\n" not in str(raised.value) and not (job.out / ADAPTER).exists()


def test_tokens_without_embeddings(dpo_job: Job, fewer: Base, tmp_path: Path) -> None:
    refused(
        fresh(dpo_job, tmp_path, fewer),
        r"has \d+ entries, and the model embeddings for 40: the rows use '.+', number \d+;",
    )
    engine, voice = TransformersEngine(fewer, Engine()), Voice(None, "tokenizer", "v")
    with pytest.raises(ModelError, match="embeddings for 40"):
        list(engine.generate([Request(voice, PROMPT, SAMPLING, 0, "g")]))
    with pytest.raises(ModelError, match="embeddings for 40"):
        list(engine.score([ScoreRequest(voice, PROMPT, "Pear.", True, "g")]))


def test_more_entries_than_embeddings_that_no_row_uses(
    dpo_job: Job, tiny_base: Path, tmp_path: Path
) -> None:
    path = tmp_path / "many"
    shutil.copytree(tiny_base, path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens(["<spare_0>", "<spare_1>"])
    tokenizer.save_pretrained(path)
    facts = train(quiet, fresh(dpo_job, tmp_path, Base(str(path), None)))
    assert len(facts["history"]) == 4


def test_rows_beyond_learned_positions(dpo_job: Job, gpt2: Base, tmp_path: Path) -> None:
    lora = Lora(targets=["c_attn"])
    job = fresh(dpo_job, tmp_path, gpt2, lora=lora)
    refused(job, r"24 learned positions, and the longest row has \d+ tokens; set train.max_length")
    refused(replace(job, settings=SFT(batch_size=4)), "24 learned positions")
    cut = Train(dtype="float32", max_length=24, max_truncated=1.0)
    assert train(quiet, replace(job, train=cut))["rows_cut"] > 0


def test_rows_longer_than_a_model_was_made_for_are_a_note(
    dpo_job: Job, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rotary positions are computed, so such a model can be trained."""
    path = tmp_path / "short"
    shutil.copytree(tiny_base, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 16}))
    train(quiet, fresh(dpo_job, tmp_path, Base(str(path), None)))
    assert "was made for 16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (["q_proj", "v_proj"], "no q_proj or v_proj in this model; .* has c_attn, c_fc, c_proj;"),
        (["c_attn", "lm_head"], "lora.targets: lm_head is the head, .* has c_attn, c_fc, c_proj;"),
        (["ln_1"], "lora.targets: .*is not supported.* has c_attn, c_fc, c_proj"),
    ],
)
def test_targets_that_cannot_be_trained(
    dpo_job: Job, gpt2: Base, tmp_path: Path, targets: list[str], says: str
) -> None:
    job = fresh(dpo_job, tmp_path, gpt2, lora=Lora(targets=targets))
    job = replace(job, train=Train(dtype="float32", max_length=24, max_truncated=1.0))
    if targets == ["ln_1"]:  # peft itself knows what it takes
        with pytest.raises(ModelError, match=says):
            train(quiet, job)
    else:
        refused(job, says)


def test_all_linear_is_every_matrix_but_the_head(dpo_job: Job, gpt2: Base, tmp_path: Path) -> None:
    cut = Train(dtype="float32", max_length=24, max_truncated=1.0)
    for base, names in [
        (gpt2, ["c_attn", "c_fc", "c_proj"]),
        (dpo_job.base, LLAMA.split()),
    ]:
        out = tmp_path / names[0]
        job = fresh(dpo_job, tmp_path, base, out=out, train=cut)
        train(quiet, replace(job, lora=Lora.model_validate({"targets": "all-linear"})))
        written = json.loads((out / "adapter_config.json").read_text())["target_modules"]
        assert written == names
        trained = {name.split(".")[-3] for name in load_file(out / ADAPTER)}
        assert trained == set(names)


def test_a_target_that_is_missing_beside_others_is_a_note(
    dpo_job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(quiet, fresh(dpo_job, tmp_path, lora=Lora(targets=["q_proj", "c_attn"])))
    assert "has no c_attn" in capsys.readouterr().err


def test_an_adapter_with_biases(dpo_job: Job, tmp_path: Path) -> None:
    """DPO needs a second adapter, which peft does not allow beside biases; fine-tuning goes on."""
    from peft import LoraConfig, get_peft_model

    start, base = tmp_path / "start", Base(str(make_tiny_base(tmp_path / "base")), None)
    config = LoraConfig(r=4, target_modules=["q_proj"], bias="lora_only", task_type="CAUSAL_LM")
    get_peft_model(load_model(base), config).save_pretrained(start)
    job = replace(dpo_job, base=base, start=start, out=tmp_path / "out")
    refused(job, r"trains biases too \(bias=lora_only\)")
    assert train(quiet, replace(job, settings=SFT(batch_size=8, epochs=1)))["history"]


def test_an_adapter_of_another_base_of_the_same_shape(
    dpo_job: Job, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By name, by the content of folders, by pinned revisions; and as somebody wants it."""
    assert dpo_job.start is not None
    start, other = tmp_path / "start", tmp_path / "other"
    shutil.copytree(dpo_job.start, start)
    shutil.copytree(tiny_base, other)

    def names(of: str, revision: str | None = None) -> None:
        config = json.loads((start / "adapter_config.json").read_text())
        config |= {"base_model_name_or_path": of, "revision": revision}
        (start / "adapter_config.json").write_text(json.dumps(config))

    same, commit = Base(str(tiny_base), folder_print(tiny_base)), "a" * 40
    names(str(other))
    assert fits.check_adapter(start, same) is None, "a copy is the same base"
    (other / "model.safetensors").write_bytes(b"other weights")
    job = replace(dpo_job, base=same, start=start, out=tmp_path / "out", another_base=False)
    refused(job, f"made for {other}, not for {tiny_base}; .* --set another_base=true")
    names(str(tiny_base), "print:" + "0" * 64)
    refused(job, "made for .*@print:0+, not for .*@print:")
    names("org/a", commit)
    refused(job, f"made for org/a@{commit}, not for")
    refused(replace(job, start=dpo_job.start, reference=start), "made for org/a@")
    hub = Base("org/a", "b" * 40)
    with pytest.raises(ModelError, match=f"for org/a@{commit}, not for org/a@{'b' * 40}"):
        fits.check_adapter(start, hub)
    names("org/a", "main")
    assert fits.check_adapter(start, hub) is None, "a branch says nothing"
    train(quiet, replace(job, another_base=True))
    assert "was made for org/a@main, and goes on with" in capsys.readouterr().err
    written = json.loads((job.out / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(tiny_base)
    names("")
    assert "does not say of which base" in str(fits.check_adapter(start, same))
    names("../nowhere/base")
    assert "is not there; it is taken to be" in str(fits.check_adapter(start, same))
    with pytest.raises(ModelError, match="made for org/b"):
        names("org/b")
        merge(quiet, same, start, tmp_path / "merged")
    voice = Voice(str(start), "tokenizer", "v")
    with pytest.raises(ModelError, match="made for org/b"):
        list(TransformersEngine(same, Engine()).score([ScoreRequest(voice, PROMPT, "A", True, "")]))


def test_the_outline_of_a_base_is_that_of_the_base(tiny_base: Path, gpt2: Base) -> None:
    for base, positions in ((Base(str(tiny_base), None), None), (gpt2, 24)):
        outline, model = skeleton(base), load_model(base)
        assert outline is not None and outline.device.type == "meta"
        assert fits.matrices(outline) == fits.matrices(model)
        assert fits.learned_positions(outline) == fits.learned_positions(model) == positions


def test_positions_of_other_families() -> None:
    """OPT keeps two places before the first, RoBERTa those up to its padding."""
    from transformers import OPTConfig, OPTForCausalLM, RobertaConfig
    from transformers import RobertaForSequenceClassification as Roberta

    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
    opt = OPTForCausalLM(OPTConfig(**shape, ffn_dim=8, max_position_embeddings=30))
    roberta = Roberta(RobertaConfig(**shape, intermediate_size=8, max_position_embeddings=34))
    assert fits.learned_positions(opt) == 30
    assert fits.learned_positions(roberta) == 34 - 2
    assert fits.matrices(roberta) == ["dense", "key", "out_proj", "query", "value"]


@pytest.mark.parametrize("settings", [DPO(batch_size=4), SFT(batch_size=4), RewardTraining()])
def test_a_base_with_nan_trains_nothing(
    dpo_job: Job, spoilt: Base, tmp_path: Path, settings: Any
) -> None:
    job = fresh(dpo_job, tmp_path, spoilt, settings=settings)
    with pytest.raises(ModelError, match=f"{spoilt.id}.*set train.dtype=float32") as raised:
        train(quiet, job)
    assert "learning rate" not in str(raised.value) and not (job.out / ADAPTER).exists()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_base_with_nan_says_nothing(spoilt: Base, temperature: float) -> None:
    engine, voice = TransformersEngine(spoilt, Engine()), Voice(None, "tokenizer", "v")
    sampling = Sampling(temperature=temperature, max_new_tokens=4)
    with pytest.raises(ModelError, match=f"logits of {spoilt.id} are NaN or infinite"):
        list(engine.generate([Request(voice, PROMPT, sampling, 0, "g")] * 2))
    with pytest.raises(ModelError, match=f"log-probabilities of {spoilt.id} are NaN or infinite"):
        list(engine.score([ScoreRequest(voice, PROMPT, "Pear.", True, "g")] * 2))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_adapter_with_nan_is_met_wherever_it_is_read(
    dpo_job: Job, tmp_path: Path, value: float
) -> None:
    assert dpo_job.start is not None
    bad = spoil(dpo_job.start, value, tmp_path / "bad")
    says = f"adapter {bad}: .* holds NaN or infinite weights"
    refused(replace(dpo_job, start=bad, out=tmp_path / "out"), says)
    refused(replace(dpo_job, reference=bad, out=tmp_path / "out"), says)
    engine, voice = TransformersEngine(dpo_job.base, Engine()), Voice(str(bad), "tokenizer", "v")
    with pytest.raises(ModelError, match=says):
        list(engine.generate([Request(voice, PROMPT, SAMPLING, 0, "g")]))
    with pytest.raises(ModelError, match=says):
        list(engine.score([ScoreRequest(voice, PROMPT, "Pear.", True, "g")]))
    with pytest.raises(ModelError, match=says):
        merge(quiet, dpo_job.base, bad, tmp_path / "merged")
    scorer = Scorer(dpo_job.base, str(bad), "tokenizer", None, "x")
    rows = pl.DataFrame({"prompt": [PROMPT], "response": ["A"], "finish_reason": ["stop"]})
    with pytest.raises(ModelError, match=says):
        rewards(quiet, Engine(), scorer, rows)


def test_a_damaged_adapter_is_one_line(dpo_job: Job, tmp_path: Path) -> None:
    assert dpo_job.start is not None
    bad = tmp_path / "bad"
    shutil.copytree(dpo_job.start, bad)
    (bad / ADAPTER).write_bytes((bad / ADAPTER).read_bytes()[:500])
    refused(replace(dpo_job, start=bad, out=tmp_path / "out"), f"adapter {bad} cannot be read")


def test_a_merge_with_nan_writes_nothing(dpo_job: Job, spoilt: Base, tmp_path: Path) -> None:
    assert dpo_job.start is not None
    start = tmp_path / "start"
    shutil.copytree(dpo_job.start, start)
    config = json.loads((start / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": spoilt.id}
    (start / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"merged weights \(.*down_proj.*\) of {spoilt.id} with"):
        merge(quiet, spoilt, start, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_weights_that_overflow_in_the_last_step_are_not_written(
    dpo_job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss before it was finite, and nothing is logged after it."""

    def overflowed(model: Any) -> dict[str, Any]:
        for name, weights in model.named_parameters():
            if "lora_B" in name and weights.requires_grad:
                weights.data.fill_(math.inf)
        return gathered(model)

    monkeypatch.setattr("macpo_train.train.gathered", overflowed)
    job = replace(dpo_job, out=tmp_path / "out")
    with pytest.raises(ModelError, match=r"ended with NaN or infinite weights in .*lora_B"):
        train(quiet, job)
    assert not (job.out / ADAPTER).exists()
    check_trained([("a", torch.ones(2))])


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    row = {"prompt": "Fruit?", "chosen": "Pear.", "rejected": "No."}
    lines = [json.dumps(row | {"prompt": f"Fruit {n}?"}) + "\n" for n in range(4)]
    path.write_text("".join(lines))
    return path


def test_on_the_command_line_each_is_one_line(
    macpo: Macpo, pairs: Path, dpo_job: Job, spoilt: Base, tmp_path: Path
) -> None:
    """Nothing is left behind, neither an adapter nor a work folder."""
    assert dpo_job.start is not None
    other = make_tiny_base(tmp_path / "other_base")
    (other / "generation_config.json").write_text("{}")
    for base, more, says in [
        (spoilt.id, (), f"log-probabilities of {spoilt.id} are NaN or infinite"),
        (str(other), ("--init", dpo_job.start), f"was made for {dpo_job.base.id}, not for {other}"),
    ]:
        result = macpo(
            "train", "--dataset", pairs, "--base", base, "--out", tmp_path / "o" / "out", *more,
            "--set", "train.dtype=float32", "--set", "dpo.batch_size=4",
        )  # fmt: skip
        assert result.returncode == 1, result.stderr
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and says in errors[0] and "Traceback" not in result.stderr
        assert not list((tmp_path / "o").iterdir())
