"""The trainer on a tiny real model: losses, labels, references, repeatability."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import golden_curve
import polars as pl
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from macpo_data.errors import DataError, ModelError
from macpo_data.models.base import Base, load_chat, load_model
from macpo_data.models.weights import weights_sha256
from macpo_data.recipe.training import DPO, SFT, Lora, Train
from macpo_data.schema import MESSAGES
from macpo_train.adapter import policy
from macpo_train.encode import encode
from macpo_train.job import Job
from macpo_train.loop import exact, identity, training_arguments
from macpo_train.train import train

pytestmark = pytest.mark.slow


def quiet(done: int, total: int, note: str = "") -> None:
    pass


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pairs of unlike lengths, one cut response among them."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Question {'really ' * (n % 3)}{n}?"}],
            "chosen": "A good answer. " * (1 + n % 4),
            "rejected": "Ugh, no " * (1 + n % 3),
            "chosen_finish_reason": "stop",
            "rejected_finish_reason": "length" if n == 3 else "stop",
        }
        for n in range(10)
    ]
    path = tmp_path_factory.mktemp("data") / "pairs.parquet"
    pl.DataFrame(rows, schema_overrides={"prompt": MESSAGES}).write_parquet(path)
    return path


@pytest.fixture
def job(dataset: Path, tiny_base: Path, tmp_path: Path) -> Job:
    return Job(
        dataset=dataset,
        column="chosen",
        base=Base(str(tiny_base), None),
        chat_template="tokenizer",
        start=None,
        out=tmp_path / "out",
        settings=SFT(epochs=2, learning_rate=1e-2, batch_size=4),
        lora=Lora(targets=["q_proj", "v_proj"]),
        train=Train(dtype="float32"),
    )


@pytest.fixture
def started(job: Job, tmp_path: Path) -> Job:
    """A DPO job that continues an adapter which SFT made."""
    first = replace(job, out=tmp_path / "start")
    train(quiet, first)
    settings = DPO(learning_rate=1e-3, batch_size=4, reference="previous")
    return replace(job, start=first.out, settings=settings)


def test_sft_learns_and_is_repeatable(job: Job, tmp_path: Path) -> None:
    facts = train(quiet, job)
    losses = [row["loss"] for row in facts["history"]]
    assert len(losses) == 2 * 3 and losses[-1] < losses[0]
    again = replace(job, out=tmp_path / "again")
    assert train(quiet, again)["history"] == facts["history"]
    assert weights_sha256(again.out) == weights_sha256(job.out)
    assert {p.name for p in job.out.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_sft_loss_is_on_responses_only(job: Job) -> None:
    """First step's loss against a hand-made token mean over response tokens."""
    whole = replace(job, settings=SFT(epochs=1, learning_rate=1e-9, batch_size=10))
    facts = train(quiet, whole)
    chat = load_chat(job.base, "tokenizer")
    data = encode(pl.read_parquet(job.dataset), chat, ["chosen"], Train())
    model: Any = policy(whole).eval()
    total, count = 0.0, 0
    for prompt, response in zip(data.prompts, data.responses["chosen"], strict=True):
        with torch.no_grad():
            ids = torch.tensor([prompt + response], device=model.device)
            logits = model(ids).logits[0, len(prompt) - 1 : -1]
        total -= logits.log_softmax(-1)[range(len(response)), response].sum().item()
        count += len(response)
    assert facts["history"][0]["loss"] == pytest.approx(total / count, abs=1e-4)


def test_first_step_with_previous_is_ln_2(started: Job) -> None:
    history = train(quiet, started)["history"]
    assert history[0]["dpo"] == pytest.approx(math.log(2), abs=1e-5)
    assert history[0]["margin"] == pytest.approx(0.0, abs=1e-5)
    # The terms are kept apart and add up.
    for row in history:
        assert row["loss"] == pytest.approx(row["dpo"] + 0.2 * row["sft"], abs=1e-4)


def test_reference_base_is_the_network_without_adapter(started: Job) -> None:
    settings = DPO(learning_rate=1e-3, batch_size=4, reference="base")
    based = train(quiet, replace(started, settings=settings))["history"]
    assert abs(based[0]["dpo"] - math.log(2)) > 1e-4


def test_dpo_moves_the_margin_and_only_the_policy(started: Job) -> None:
    assert started.start is not None
    before = weights_sha256(started.start)
    settings = DPO(epochs=6, learning_rate=3e-3, batch_size=5, reference="previous")
    history = train(quiet, replace(started, settings=settings))["history"]
    assert history[-1]["margin"] > 0.01
    assert weights_sha256(started.start) == before
    assert weights_sha256(started.out) != before


def test_token_normalisation_equals_trl(started: Job) -> None:
    """With `token`, losses equal those of trl's own [sigmoid, sft] on the same rows."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    settings = DPO(
        learning_rate=1e-3, batch_size=5, reference="previous", sft_normalization="token"
    )
    ours_job = replace(started, settings=settings)
    ours = train(quiet, ours_job)["history"]

    chat = load_chat(started.base, "tokenizer")
    data = encode(pl.read_parquet(started.dataset), chat, ["chosen", "rejected"], Train())
    rows = {
        "prompt_ids": data.prompts,
        "chosen_ids": data.responses["chosen"],
        "rejected_ids": data.responses["rejected"],
    }

    class Plain(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    from transformers import set_seed

    set_seed(started.seed)
    trainer = Plain(
        model=policy(ours_job),
        args=DPOConfig(
            **training_arguments(ours_job, 10),
            beta=0.1,
            loss_type=["sigmoid", "sft"],
            loss_weights=[1.0, 0.2],
        ),
        train_dataset=Dataset.from_dict(rows),
        processing_class=chat.tokenizer,
    )
    trainer.train()
    theirs = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert [row["loss"] for row in ours] == pytest.approx(theirs, abs=2e-4)


@pytest.mark.parametrize("normalization", ["response", "token"])
def test_accumulation_gives_the_same_adapter(
    started: Job, tmp_path: Path, normalization: Literal["response", "token"]
) -> None:
    """However a batch is cut: 10 rows in steps of 8 and 2, whole and in parts of 4, 4 and 2."""
    settings = DPO(
        epochs=2, learning_rate=1e-3, batch_size=8, sft_normalization=normalization, gamma=1.0
    )
    whole = replace(started, settings=settings, out=tmp_path / "w")
    parts = replace(whole, train=Train(dtype="float32", micro_batch_size=4), out=tmp_path / "p")
    ragged = replace(whole, train=Train(dtype="float32", micro_batch_size=1), out=tmp_path / "r")
    histories = [train(quiet, job)["history"] for job in (whole, parts, ragged)]
    weights = [load_file(job.out / "adapter_model.safetensors") for job in (whole, parts, ragged)]
    for other, matrices in zip(histories[1:], weights[1:], strict=True):
        for ours, theirs in zip(histories[0], other, strict=True):
            assert theirs == pytest.approx(ours, abs=1e-4)
        for name, matrix in weights[0].items():
            torch.testing.assert_close(matrices[name], matrix, atol=1e-5, rtol=1e-3)


def begun(job: Job, folder: Path, **config: Any) -> Job:
    """A job that goes on from an adapter which somebody else's code made."""
    model = load_model(job.base, "float32")
    get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **config)).save_pretrained(folder)
    settings = DPO(learning_rate=1e-2, batch_size=4, reference="base")
    return replace(job, start=folder, settings=settings)


def test_a_pattern_of_modules_stays_one(job: Job, tmp_path: Path) -> None:
    pattern = r".*self_attn\.(q|v)_proj"
    foreign = begun(job, tmp_path / "pattern", target_modules=pattern)
    train(quiet, foreign)
    config = json.loads((foreign.out / "adapter_config.json").read_text())
    assert config["target_modules"] == pattern
    policy(replace(foreign, start=foreign.out))  # and it can be loaded again


def test_a_head_that_is_trained_moves(job: Job, tmp_path: Path) -> None:
    """By an adapter that trains it whole; a shared prompt gives what the plain path gives."""
    config = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    foreign = begun(job, tmp_path / "head", **config)
    plain = foreign.train.model_copy(update={"shared_prompt": False})
    twice = train(quiet, replace(foreign, train=plain, out=tmp_path / "plain"))
    facts = train(quiet, foreign)
    assert facts["shared_prompt"] is True and twice["shared_prompt"] is not True
    for ours, theirs in zip(facts["history"], twice["history"], strict=True):
        assert ours == pytest.approx(theirs, abs=2e-4)
    before = load_file(tmp_path / "head" / "adapter_model.safetensors")
    after = load_file(foreign.out / "adapter_model.safetensors")
    (head,) = (name for name in after if "lm_head" in name)
    assert not torch.equal(before[head], after[head])


def test_an_adapter_that_leaves_out_layers(job: Job, tmp_path: Path) -> None:
    foreign = begun(job, tmp_path / "half", target_modules=["q_proj"])
    file = tmp_path / "half" / "adapter_model.safetensors"
    save_file({n: w for n, w in load_file(file).items() if "layers.1." not in n}, file)
    with pytest.raises(ModelError, match=r"lacks 2 matrices .*layers\.1\..*another base"):
        train(quiet, foreign)


def test_a_checkpoint_is_of_one_template(job: Job, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages[0].content }}")
    one = replace(job, chat_template=str(tmp_path / "t.jinja"))
    before = identity(one)
    (tmp_path / "t.jinja").write_text("{{ messages[-1].content }}")
    assert identity(one) != before


def test_the_length_that_is_advised_would_do(job: Job) -> None:
    """Ten rows of unlike lengths; a tenth may be cut."""
    chat = load_chat(job.base, "tokenizer")
    frame = pl.read_parquet(job.dataset)
    with pytest.raises(DataError, match="would do") as refused:
        encode(frame, chat, ["chosen"], Train(max_length=4, max_truncated=0.1))
    advised = re.search(r"max_length=(\d+) would do", str(refused.value))
    assert advised
    encode(frame, chat, ["chosen"], Train(max_length=int(advised[1]), max_truncated=0.1))


def test_truncation_is_counted_and_nothing_vanishes(job: Job) -> None:
    chat = load_chat(job.base, "tokenizer")
    frame = pl.read_parquet(job.dataset)
    whole = encode(frame, chat, ["chosen", "rejected"], Train())
    assert whole.cut == whole.dropped == 0
    # The response that the token limit cut carries no end-of-turn.
    ends = [ids[-1] == chat.eot_id for ids in whole.responses["rejected"]]
    assert ends == [n != 3 for n in range(10)] and all(
        ids[-1] == chat.eot_id for ids in whole.responses["chosen"]
    )
    longest = max(len(p) for p in whole.prompts)
    short = encode(frame, chat, ["chosen"], Train(max_length=longest, max_truncated=1))
    assert short.dropped == sum(len(p) == longest for p in whole.prompts) > 0
    assert len(short.prompts) + short.dropped == 10 and short.cut > 0
    with pytest.raises(DataError, match=r"10 of 10 rows exceed train\.max_length=3"):
        encode(frame, chat, ["chosen"], Train(max_length=3, max_truncated=1))


def test_an_adapter_of_another_base_is_refused(job: Job, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    train(quiet, job)
    weights = job.out / "adapter_model.safetensors"
    save_file({k: torch.zeros(8, 64) for k in load_file(weights)}, weights)
    with pytest.raises(ModelError, match="does not fit"):
        train(quiet, replace(job, start=job.out, out=tmp_path / "o2"))


def test_a_loss_that_is_not_finite_stops(job: Job) -> None:
    """The first step is made with whole weights, and leaves some that are far too large."""
    settings = SFT(epochs=2, learning_rate=1e38, batch_size=4)
    says = f"the (loss|grad_norm) is (nan|inf) at step 2 of {job.base.id}; lower the learning rate"
    with pytest.raises(ModelError, match=says):
        train(quiet, replace(job, settings=settings))
    assert not (job.out / "adapter_model.safetensors").exists()


def test_tensorboard_gets_the_curve(job: Job, tmp_path: Path) -> None:
    """Its files hold the losses of the history."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = Train(dtype="float32", report_to="tensorboard")
    facts = train(quiet, replace(job, train=settings, logs=tmp_path / "logs"))
    events = EventAccumulator(str(tmp_path / "logs" / job.out.name))
    events.Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx([row["loss"] for row in facts["history"]])


def test_lora_targets_that_are_not_there(job: Job) -> None:
    with pytest.raises(ModelError, match=r"lora\.targets"):
        train(quiet, replace(job, lora=Lora(targets=["nothing"])))


def test_golden_curve(tmp_path: Path) -> None:
    """Twenty steps as they were recorded; the first DPO term is ln 2."""
    golden = json.loads(golden_curve.PATH.read_text("utf-8"))["curve"]
    assert golden["dpo"][0] == pytest.approx(math.log(2), abs=1e-6)
    assert len(golden["loss"]) == 20 and golden["loss"][-1] < golden["loss"][0]
    for term, values in golden_curve.curve(tmp_path).items():
        assert values == pytest.approx(golden[term], abs=2e-3, rel=2e-3), term


def test_a_constant_rate_has_a_warmup_too(job: Job) -> None:
    """5 of 10 steps: transformers' own constant would begin at the peak."""
    held = Train(scheduler="constant", warmup=0.5, dtype="float32")
    facts = train(quiet, replace(job, train=held, settings=SFT(epochs=10, batch_size=10)))
    rates = [row["learning_rate"] for row in facts["history"]]
    assert rates[0] < rates[2] < rates[5] == rates[9] == SFT().learning_rate


def test_what_is_trained_keeps_its_digits(job: Job) -> None:
    """As trl rounds it beside a quantised base, which needs a GPU."""
    model = policy(job)
    trained = {n: p.clone() for n, p in model.named_parameters() if p.requires_grad}
    with exact(model):
        for weights in model.parameters():
            if weights.requires_grad:
                weights.data = weights.data.to(torch.bfloat16)
    for name, weights in model.named_parameters():
        if name in trained:
            assert weights.dtype == torch.float32 and weights.equal(trained[name])
