"""DPO + SFT: equal to trl's own values, shared or plain, with and without a reference pass."""

from __future__ import annotations

import math
import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import polars as pl
import pytest
import torch
from datasets import Dataset
from transformers import set_seed
from trl import DPOConfig, DPOTrainer

from macpo_data.engines.protocol import ScoreRequest, Voice
from macpo_data.engines.transformers import TransformersEngine
from macpo_data.errors import DataError, ModelError
from macpo_data.models.base import Base, load_chat
from macpo_data.recipe.engine import Engine
from macpo_data.recipe.training import DPO, Lora, Train
from macpo_data.schema import MESSAGES
from macpo_train.adapter import policy
from macpo_train.encode import encode
from macpo_train.job import Job
from macpo_train.loop import training_arguments
from macpo_train.memory import ran_out
from macpo_train.train import train

pytestmark = pytest.mark.slow

LOSSES = get_args(DPO.model_fields["loss"].annotation)


def unheard(done: int, total: int, note: str = "") -> None:
    pass


@pytest.fixture
def job(dpo_job: Job) -> Job:
    return dpo_job


def train_as(job: Job, out: Path, **settings: Any) -> dict[str, Any]:
    """What a training says, with settings of DPO changed."""
    changed = job.settings.model_copy(update=settings)
    return train(unheard, replace(job, settings=changed, out=out))


def column(facts: dict[str, Any], name: str) -> list[float]:
    return [row[name] for row in facts["history"]]


def trls(job: Job, model: Any = None, reference: Any = None, **config: Any) -> list[float]:
    """The losses of trl's own trainer, with its own reference pass, on the same token ids.

    Args:
        job: the training.
        model: to train; None for the job's adapter on its base.
        reference: a second model; None where an adapter needs none.
        config: of DPOConfig.
    """

    class Plain(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    chat = load_chat(job.base, "tokenizer")
    data = encode(pl.read_parquet(job.dataset), chat, ["chosen", "rejected"], job.train)
    rows = {"prompt_ids": data.prompts}
    rows |= {f"{side}_ids": ids for side, ids in data.responses.items()}
    set_seed(job.seed)
    trainer = Plain(
        model=policy(job) if model is None else model,
        ref_model=reference,
        args=DPOConfig(**training_arguments(job, len(data.prompts)), beta=0.1, **config),
        train_dataset=Dataset.from_dict(rows),
        processing_class=chat.tokenizer,
    )
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_shared_equals_plain(job: Job, tmp_path: Path, checkpointing: bool) -> None:
    """Every step's terms, through the optimiser."""
    facts = []
    for shared in (True, False):
        settings = job.train.model_copy(
            update={"shared_prompt": shared, "gradient_checkpointing": checkpointing}
        )
        facts.append(train_as(replace(job, train=settings), tmp_path / str(shared)))
    assert facts[0]["shared_prompt"] is True
    assert facts[1]["shared_prompt"] == "train.shared_prompt is off"
    for name in ("loss", "dpo", "sft", "chosen_logprob", "rejected_logprob", "grad_norm"):
        assert column(facts[0], name) == pytest.approx(column(facts[1], name), abs=2e-4), name


def test_gamma_0_is_trls_dpo(job: Job, tmp_path: Path) -> None:
    ours = column(train_as(job, tmp_path / "out", gamma=0.0), "loss")
    assert len(ours) == 4
    assert ours == pytest.approx(trls(job), abs=2e-4)


@pytest.mark.parametrize("loss", [name for name in LOSSES if name not in ("sigmoid", "none")])
def test_losses_are_trls(job: Job, tmp_path: Path, loss: str) -> None:
    """Step by step through the optimiser, of chosen and rejected of different lengths."""
    lengths = pl.read_parquet(job.dataset).select(pl.col("chosen", "rejected").str.len_chars())
    assert (lengths["chosen"] != lengths["rejected"]).any()  # ipo is a mean over tokens
    ours = train_as(job, tmp_path / "out", gamma=0.0, loss=loss)
    theirs = trls(job, loss_type=[loss])
    assert column(ours, "loss") == pytest.approx(theirs, rel=2e-4, abs=2e-4)
    assert column(ours, "dpo") == pytest.approx(theirs, rel=2e-4, abs=2e-4)


def test_without_a_contrast_the_sft_term_is_all(job: Job, tmp_path: Path) -> None:
    """The loss is gamma times the term that stands beside DPO as well, and nothing else."""
    alone = train_as(job, tmp_path / "alone", loss="none", gamma=1.0)
    beside = train_as(job, tmp_path / "beside", gamma=1.0)
    assert column(alone, "sft")[0] == pytest.approx(column(beside, "sft")[0], abs=1e-5)
    assert column(alone, "loss") == pytest.approx(column(alone, "sft"), abs=1e-6)
    assert column(alone, "dpo") == [0.0] * 4
    assert column(alone, "sft")[-1] < column(alone, "sft")[0]


@pytest.mark.parametrize("loss", ["sigmoid", "hinge"])
def test_the_first_step_against_the_policy_of_round_0(
    job: Job, tmp_path: Path, loss: Literal["sigmoid", "hinge"]
) -> None:
    """By hand, from log-probabilities that the engine gives under either policy."""
    train_as(job, tmp_path / "round1")
    settings = job.settings.model_copy(
        update={"reference": "initial", "loss": loss, "batch_size": 16, "beta": 0.5}
    )
    later = replace(job, start=tmp_path / "round1", reference=job.start, settings=settings)
    sums = []
    for adapter in (later.start, later.reference):
        frame = pl.read_parquet(scored(replace(job, start=adapter), tmp_path)[0])
        sums += [frame[f"{s}_sum_logprob"] + frame[f"{s}_eot_logprob"] for s in SIDES]
    chosen, rejected, chosen_before, rejected_before = (torch.tensor(s.to_list()) for s in sums)
    margin = 0.5 * ((chosen - chosen_before) - (rejected - rejected_before))
    assert margin.abs().max() > 0.01  # the two policies differ
    each = torch.relu(1 - margin) if loss == "hinge" else torch.log1p(torch.exp(-margin))
    computed = train_as(later, tmp_path / "computed")
    assert column(computed, "dpo")[0] == pytest.approx(each.mean().item(), abs=1e-4)
    assert computed["reference_logprobs"]["of"] == "initial"
    assert computed["reference_logprobs"]["computed"] == 32

    # The same with the scores that were made before training, and no pass of its own.
    path, under = scored(replace(job, start=later.reference), tmp_path)
    given = train_as(replace(later, scores=path, scored_under=under), tmp_path / "given")
    assert given["reference_logprobs"]["stored"] == 32
    assert column(given, "loss") == pytest.approx(column(computed, "loss"), abs=1e-4)
    # In its first round that policy is where it starts.
    first = replace(later, start=job.start, reference=None)
    assert column(train_as(first, tmp_path / "first", gamma=0.0), "dpo")[0] == pytest.approx(
        1.0 if loss == "hinge" else math.log(2), abs=1e-4
    )


SIDES = ("chosen", "rejected")


def scored(job: Job, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The dataset with the scores that generation makes under the starting adapter."""
    engine = TransformersEngine(job.base, Engine())
    voice = Voice(str(job.start), "tokenizer", str(job.start))
    frame = pl.read_parquet(job.dataset)
    for side in ("chosen", "rejected"):
        requests = [
            ScoreRequest(voice, r["prompt"], r[side], r[f"{side}_finish_reason"] == "stop", "a")
            for r in frame.iter_rows(named=True)
        ]
        scores = dict(engine.score(requests))
        for name in ("sum_logprob", "num_tokens", "eot_logprob"):
            values = [getattr(scores[i], name) for i in range(len(frame))]
            frame = frame.with_columns(pl.Series(f"{side}_{name}", values))
    path = folder / "pairs.parquet"
    frame.write_parquet(path)
    return path, engine.scored_under(voice)


def test_scores_of_generation_are_the_reference(job: Job, tmp_path: Path) -> None:
    """They spare the reference pass where everything matches, and only there."""
    path, under = scored(job, tmp_path)
    known = replace(job, dataset=path, scored_under=under)
    stored = train_as(known, tmp_path / "stored")
    counts = {"stored": 32, "cached": 0, "computed": 0}
    assert counts.items() <= stored["reference_logprobs"].items()
    computed = train_as(job, tmp_path / "computed")
    assert computed["reference_logprobs"]["computed"] == 32
    assert column(stored, "loss") == pytest.approx(column(computed, "loss"), abs=1e-4)
    assert column(stored, "dpo")[0] == pytest.approx(0.693147, abs=1e-4)
    # Another dtype, another adapter, or the base as reference: not these scores.
    for other in ({**under, "dtype": "bfloat16"}, {**under, "adapter_sha256": "0"}):
        facts = train_as(replace(known, scored_under=other), tmp_path / "other")
        assert facts["reference_logprobs"]["stored"] == 0
    based = train_as(known, tmp_path / "based", reference="base")
    assert based["reference_logprobs"]["stored"] == 0


def test_in_bfloat16_the_first_step_is_ln_2(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computed in the same numbers as the policy: exact where a batch holds the same rows.

    Without autocast, which is how an engine scores, bfloat16's rounding is left.
    """
    halved = replace(job, train=Train(dtype="bfloat16"))
    facts = train_as(halved, tmp_path / "same", batch_size=16)
    assert column(facts, "dpo")[0] == pytest.approx(math.log(2), abs=1e-6)
    monkeypatch.setattr("macpo_train.reference.sharded", lambda: True)
    rounded = train_as(halved, tmp_path / "other", batch_size=16)
    assert 1e-5 < abs(column(rounded, "dpo")[0] - math.log(2)) < 1e-3


def test_a_cut_row_is_scored_anew(job: Job, tmp_path: Path) -> None:
    path, under = scored(job, tmp_path)
    chat = load_chat(job.base, "tokenizer")
    whole = encode(pl.read_parquet(path), chat, ["chosen", "rejected"], job.train)
    short = job.train.model_copy(update={"max_length": whole.longest - 1, "max_truncated": 1.0})
    facts = train_as(replace(job, dataset=path, scored_under=under, train=short), tmp_path / "out")
    assert facts["rows_cut"] > 0
    assert facts["reference_logprobs"]["computed"] == 2 * facts["rows_cut"]
    assert facts["reference_logprobs"]["stored"] == 32 - 2 * facts["rows_cut"]


def test_a_reference_is_computed_once(job: Job, tmp_path: Path) -> None:
    """Cached by the tokens and by whose log-probabilities they are."""
    kept = replace(job, cache=tmp_path / "reference")
    first = train_as(kept, tmp_path / "first", reference="base")
    second = train_as(kept, tmp_path / "second", reference="base")
    assert first["reference_logprobs"]["computed"] == 32
    assert second["reference_logprobs"]["cached"] == 32
    assert second["reference_logprobs"]["computed"] == 0
    assert first["history"] == second["history"]
    other = train_as(kept, tmp_path / "third", reference="previous")
    assert other["reference_logprobs"]["computed"] == 32
    assert len(list((tmp_path / "reference").iterdir())) == 2


@pytest.mark.parametrize("truncation", ["keep_start", "keep_end", "drop"])
def test_truncation(job: Job, truncation: Literal["keep_start", "keep_end", "drop"]) -> None:
    """Eight rows around a limit, and what each policy does with them."""
    chat = load_chat(job.base, "tokenizer")
    frame = pl.DataFrame(
        [
            {
                "prompt": [{"role": "user", "content": "a b c " * n}],
                "chosen": "x " * m,
                "rejected": "y",
            }
            for n, m in [(1, 1), (2, 2), (9, 2), (9, 9), (2, 40), (40, 1), (40, 40), (90, 30)]
        ],
        schema_overrides={"prompt": MESSAGES},
    )
    columns = ["chosen", "rejected"]
    settings = Train(max_length=48, truncation=truncation, max_truncated=1.0)
    whole = encode(frame, chat, columns, Train(max_length=10_000))
    data = encode(frame, chat, columns, settings)
    assert data.longest <= 48
    sizes = [
        (len(p), len(r)) for p, r in zip(whole.prompts, whole.responses["chosen"], strict=True)
    ]
    fitting = [n for n, (p, r) in enumerate(sizes) if p + r <= 48]
    kept = {
        "keep_start": [n for n, (p, _) in enumerate(sizes) if p < 48],
        "keep_end": [n for n, (_, r) in enumerate(sizes) if r < 48],
        "drop": fitting,
    }[truncation]
    assert data.rows == kept and 0 < len(fitting) < 8
    assert (data.cut, data.dropped) == (len(set(kept) - set(fitting)), 8 - len(kept))
    for at, row in enumerate(data.rows):
        prompt, chosen = whole.prompts[row], whole.responses["chosen"][row]
        if truncation == "keep_end":
            assert data.responses["chosen"][at] == chosen
            assert prompt[-len(data.prompts[at]) :] == data.prompts[at]
        else:
            assert data.prompts[at] == prompt
            assert chosen[: len(data.responses["chosen"][at])] == data.responses["chosen"][at]
    with pytest.raises(DataError, match=r"rows exceed .* allows 5%; the longest has"):
        encode(frame, chat, columns, settings.model_copy(update={"max_truncated": 0.05}))


def test_refusals_are_one_line(job: Job, tmp_path: Path) -> None:
    out = replace(job, out=tmp_path / "out")
    empty = tmp_path / "empty.parquet"
    pl.read_parquet(job.dataset).clear().write_parquet(empty)
    bare = shutil.copytree(job.base.source, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    cases: list[tuple[Job, str]] = [
        (replace(out, dataset=empty), "the dataset has no rows"),
        (replace(out, base=Base(str(bare), None)), "has no chat template"),
        (replace(out, scored_under={"template_sha256": "0"}), "another chat template"),
        (replace(out, start=tmp_path), "no adapter in"),
        (
            replace(out, train=Train(dtype="float32", report_to="wandb")),
            "report_to=wandb needs its package",
        ),
        (
            replace(out, train=Train(dtype="float32", launcher=str(tmp_path / "none.yaml"))),
            "cannot read train.launcher",
        ),
        (replace(out, train=Train(dtype="float32", micro_batch_size=3)), "no multiple of"),
    ]
    if not torch.cuda.is_available():
        cases.append((replace(out, train=Train(quantization="nf4")), "nf4 needs a GPU"))
    for wrong, message in cases:
        with pytest.raises((DataError, ModelError), match=message) as caught:
            train(unheard, wrong)
        assert "\n" not in str(caught.value)


def test_an_adapter_of_another_base(job: Job, tmp_path: Path) -> None:
    assert job.start is not None
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/other"}')
    wrong = replace(job, start=tmp_path, base=Base("org/mine", None), out=tmp_path / "out")
    from macpo_data.models.fits import check_adapter

    assert wrong.start
    with pytest.raises(ModelError, match="was made for org/other, not for org/mine"):
        check_adapter(wrong.start, wrong.base)


BOUNDED = """
import pickle, resource, sys
from pathlib import Path
from macpo_train import train

usual = train.policy

def bounded(job):
    model = usual(job)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    room = used + int(sys.argv[2]) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    return model

train.policy = bounded
train.train(lambda *_: None, pickle.loads(Path(sys.argv[1]).read_bytes()))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_too_little_memory_says_what_would_fit(job: Job, tmp_path: Path) -> None:
    """A process with room for some rows, but not for all 32 at once."""
    rows = pl.read_parquet(job.dataset)
    long = pl.concat([rows] * (32 // len(rows) + 1))[:32].with_columns(
        chosen=pl.lit("so the lantern hums on " * 12), rejected=pl.lit("the kettle is blue " * 12)
    )
    long.write_parquet(tmp_path / "long.parquet")
    settings = DPO(batch_size=32, reference="base")
    wide = replace(job, dataset=tmp_path / "long.parquet", settings=settings, out=tmp_path / "out")
    (tmp_path / "job").write_bytes(pickle.dumps(wide))
    # One thread and one arena: each more reserves addresses that nobody uses.
    alone = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    script = [sys.executable, "-c", BOUNDED, str(tmp_path / "job"), "40"]
    done = subprocess.run(script, capture_output=True, text=True, env=alone)
    output = done.stderr.strip().split("\n")[-1]
    match = re.search(r"memory ran out with 32 .* train\.micro_batch_size=(\d+) \(as tried", output)
    assert match and int(match[1]) < 32, done.stderr[-2000:]


def test_every_word_for_memory_that_ran_out() -> None:
    """The second is how CUDA itself says it, seen on a card that another process had filled."""
    for words in ("[enforce fail] can't allocate memory", "CUDA error: out of memory\nSearch for"):
        assert ran_out(RuntimeError(words))
    assert ran_out(torch.OutOfMemoryError()) and ran_out(MemoryError())
    assert not ran_out(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not ran_out(ValueError("CUDA error: out of memory"))


def test_rslora_scales_otherwise(job: Job, tmp_path: Path) -> None:
    begin = replace(job, start=None)
    plain = train_as(begin, tmp_path / "plain", reference="base")
    ranked = train_as(
        replace(begin, lora=Lora(targets=["q_proj", "v_proj"], rslora=True)),
        tmp_path / "rs",
        reference="base",
    )
    assert '"use_rslora": true' in (tmp_path / "rs" / "adapter_config.json").read_text()
    assert column(plain, "loss")[0] == column(ranked, "loss")[0]
    assert column(plain, "loss")[-1] != column(ranked, "loss")[-1]
