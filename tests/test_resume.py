"""Killed inside a step, watched, and in several processes: the same training."""

from __future__ import annotations

import json
import math
import multiprocessing as mp
import os
import signal
import socket
import subprocess
import sys
import warnings
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml
from conftest import Macpo, OpenRun
from safetensors.torch import load_file

from macpo_data.errors import MacpoError, ModelError
from macpo_data.models.base import Base
from macpo_data.recipe.training import DPO, SFT, Confidence, Lora, Train
from macpo_data.signs.rules import RULES, Sign
from macpo_data.signs.training import WINDOW
from macpo_train.job import Job
from macpo_train.launch import _environment
from macpo_train.train import train
from macpo_train.watch import MARK, last_checkpoint

pytestmark = pytest.mark.slow


def unheard(done: int, total: int, note: str = "") -> None:
    pass


def column(facts: dict[str, Any], name: str) -> list[float]:
    return [row[name] for row in facts["history"]]


@pytest.fixture
def job(dpo_job: Job) -> Job:
    return dpo_job


def train_and_die(job: Job, step: int) -> None:
    """Train, and be killed after the update of that step, before anything is written of it."""

    def report(done: int, total: int, note: str) -> None:
        if done == step and "loss" in note:
            os.kill(os.getpid(), signal.SIGKILL)

    train(report, job)


def weights(job: Job) -> dict[str, torch.Tensor]:
    return load_file(job.out / "adapter_model.safetensors")


@pytest.mark.parametrize("objective", ["dpo", "sft"])
def test_killed_inside_a_step(job: Job, tmp_path: Path, objective: str) -> None:
    """Killed in the second epoch; with accumulation, schedules, and dropout where it acts."""
    settings: SFT | DPO = DPO(epochs=2, learning_rate=1e-3, batch_size=4, reference="previous")
    if objective == "sft":
        settings = SFT(epochs=2, learning_rate=1e-3, batch_size=4)
        job = replace(job, start=None, confidence=Confidence(ramp=1))
    whole = replace(
        job,
        settings=settings,
        out=tmp_path / "whole",
        train=Train(dtype="float32", micro_batch_size=2, save_steps=2),
        lora=Lora(targets=["q_proj", "v_proj"], dropout=0.1),
    )
    killed = replace(whole, out=tmp_path / "killed")
    wanted = train(unheard, whole)
    process = mp.get_context("spawn").Process(target=train_and_die, args=(killed, 7))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    # A checkpoint that the kill left half-written is overlooked.
    (killed.out / "trainer" / "checkpoint-99").mkdir()
    facts = train(unheard, killed)
    assert facts["resumed_from"] == 6 and wanted["resumed_from"] is None
    assert [row["step"] for row in facts["history"]] == list(range(1, 9))
    for name in wanted["history"][0]:
        assert column(facts, name) == pytest.approx(column(wanted, name), abs=1e-6), name
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(killed)[name], weight, atol=1e-6, rtol=1e-5)
    assert {p.name for p in killed.out.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_a_checkpoint_of_other_settings_is_not_taken(tmp_path: Path) -> None:
    for step, identity in ((2, "a"), (10, "a"), (12, "b")):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / MARK).write_text(f'{{"identity": "{identity}"}}')
    (tmp_path / "checkpoint-14").mkdir()
    (tmp_path / "checkpoint-14" / MARK).write_text("{")
    assert last_checkpoint(tmp_path, "a") == tmp_path / "checkpoint-10"
    assert last_checkpoint(tmp_path, "c") is None


@pytest.mark.parametrize("save_steps", [1, None])
def test_nan_keeps_the_last_good_checkpoint(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_steps: int | None
) -> None:
    """Saved by steps, or by the clock, which has always struck here."""
    monkeypatch.setattr("macpo_train.watch.SECONDS", 0.0)
    monkeypatch.setattr("macpo_train.watch.SHARE", 0.0)
    from macpo_train.loss import macpo_loss as usual

    steps = iter(range(100))

    def breaks(*args: Any) -> torch.Tensor:
        return usual(*args) * (math.nan if next(steps) == 2 else 1)

    monkeypatch.setattr("macpo_train.dpo.macpo_loss", breaks)
    saving = replace(job, out=tmp_path / "out", train=Train(dtype="float32", save_steps=save_steps))
    with pytest.raises(ModelError, match=r"loss is nan at step 3 of .*; .*checkpoint-2$"):
        train(unheard, saving)


def test_a_checkpoint_asks_no_hub(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor warns of it: an adapter names its base as people call it, which may be no folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base").symlink_to(job.base.id)
    first = replace(
        job,
        base=Base("~/base", None),
        start=None,
        out=tmp_path / "first",
        settings=SFT(learning_rate=1e-2, batch_size=4),
    )
    train(unheard, first)
    saving = replace(
        first,
        start=first.out,
        out=tmp_path / "second",
        settings=job.settings,
        train=Train(dtype="float32", save_steps=1),
    )
    asked: list[str] = []
    peft_saving = import_module("peft.utils.save_and_load")
    monkeypatch.setattr(
        peft_saving, "check_file_exists_on_hf_hub", lambda base, _: asked.append(base)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(unheard, saving)
    assert not asked


def test_two_processes_give_the_same_curve(job: Job, tmp_path: Path) -> None:
    """Started by macpo from an accelerate config, with gloo; same global batch.

    The last of three steps has three rows: one process gets two of them, and no second twice.
    """
    pl.read_parquet(job.dataset)[:11].write_parquet(tmp_path / "odd.parquet")
    job = replace(job, dataset=tmp_path / "odd.parquet")
    config = tmp_path / "two.yaml"
    config.write_text("distributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 2\n")
    settings = job.settings.model_copy(update={"reference": "base"})
    one = replace(job, settings=settings, out=tmp_path / "one")
    two = replace(one, out=tmp_path / "two", train=Train(dtype="float32", launcher=str(config)))
    heard: list[str] = []
    alone = train(unheard, one)
    together = train(lambda done, total, note: heard.append(note), two)
    assert (alone["processes"], together["processes"]) == (1, 2)
    for name in ("loss", "dpo", "sft", "chosen_logprob", "margin", "accuracy", "grad_norm"):
        assert column(together, name) == pytest.approx(column(alone, name), abs=2e-4), name
    for name, weight in weights(one).items():
        torch.testing.assert_close(weights(two)[name], weight, atol=1e-4, rtol=1e-3)
    assert heard and "pairs/s" in heard[-1] and "margin" in heard[-1]


@pytest.mark.parametrize("confidence", [None, Confidence()])
def test_two_processes_fine_tune_alike(
    job: Job, tmp_path: Path, confidence: Confidence | None
) -> None:
    """Of the one row of the last step one process gets it, and the other nothing that counts."""
    pl.read_parquet(job.dataset)[:9].write_parquet(tmp_path / "odd.parquet")
    config = tmp_path / "two.yaml"
    config.write_text("distributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 2\n")
    settings = SFT(epochs=2, learning_rate=1e-2, batch_size=4, packing=confidence is not None)
    one = replace(job, dataset=tmp_path / "odd.parquet", settings=settings, confidence=confidence)
    one = replace(one, start=None, out=tmp_path / "one")
    two = replace(one, out=tmp_path / "two", train=Train(dtype="float32", launcher=str(config)))
    alone, together = train(unheard, one), train(unheard, two)
    for name in alone["history"][0]:
        assert column(together, name) == pytest.approx(column(alone, name), abs=2e-4), name
    for name, weight in weights(one).items():
        torch.testing.assert_close(weights(two)[name], weight, atol=1e-4, rtol=1e-3)


def test_processes_that_somebody_else_started(
    pairs_file: Path, tiny_base: Path, tmp_path: Path
) -> None:
    """As Slurm does it: the command itself twice, told by the environment which one it is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "macpo", "train", "--dataset", str(pairs_file)]
    command += ["--base", str(tiny_base), "--set", "train.dtype=float32", "--out"]

    def process(out: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, out],
            cwd=tmp_path,
            env={**os.environ, **env},
            text=True,
            stdout=subprocess.PIPE,
        )

    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [process("two", RANK=rank, LOCAL_RANK=rank, **shared) for rank in ("0", "1")]
    outputs = [each.communicate(timeout=300)[0] for each in both]
    assert [each.returncode for each in both] == [0, 0]
    assert outputs[0].startswith("wrote    two\n") and outputs[1] == ""
    assert process("one").wait(timeout=300) == 0
    alone, together = (
        json.loads((tmp_path / out / "manifest.json").read_text()) for out in ("one", "two")
    )
    assert (alone["processes"], together["processes"]) == (1, 2)
    assert column(together, "loss") == pytest.approx(column(alone, "loss"), abs=2e-4)
    assert not list(tmp_path.glob(".*.partial"))


def test_several_processes_neither_redo_nor_write(
    open_run: OpenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would move the result of the other aside."""
    with open_run() as run:
        run.make("gen", 0)
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(MacpoError, match="several processes only train"):
            run.make("gen", 0, redo=True)
        assert len(run.make("gen", 0).kept) == 3


@pytest.mark.parametrize("use_cpu", [True, False])
def test_processes_on_the_cpu_see_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_cpu: bool
) -> None:
    """On a machine with one GPU, the second of two would have asked for another."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    config = tmp_path / "two.yaml"
    config.write_text(f"use_cpu: {str(use_cpu).lower()}\nnum_processes: 2\n")
    assert _environment(str(config))["CUDA_VISIBLE_DEVICES"] == ("" if use_cpu else "0")


def test_a_mistake_in_another_process_is_one_line(job: Job, tmp_path: Path) -> None:
    config = tmp_path / "two.yaml"
    config.write_text("use_cpu: true\nnum_processes: 1\n")
    wrong = Train(dtype="float32", launcher=str(config), max_length=3)
    with pytest.raises(Exception, match="16 of 16 rows exceed"):
        train(unheard, replace(job, out=tmp_path / "out", train=wrong))


def test_a_sign_is_told_once_and_kept(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here even a rise counts as a fall."""
    strict = RULES["chosen_shift"]._replace(low=1e9)
    monkeypatch.setitem(RULES, "chosen_shift", strict)
    settings = job.settings.model_copy(update={"epochs": 2})
    facts = train(unheard, replace(job, settings=settings, out=tmp_path / "out"))
    assert [name for name, sign in facts["signs"].items() if sign["crossed"]] == ["chosen_shift"]
    assert capsys.readouterr().err.count("become less likely") == 1


def test_a_fall_of_earlier_rounds_is_told_at_once(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The start had fallen by 99 nats: it is told as soon as there are enough steps."""
    fallen = Sign(value=-99.0, before=None, line=-15.0, crossed=True)
    settings = job.settings.model_copy(update={"epochs": 2})
    begun = replace(job, start_signs={"rejected_shift": fallen}, settings=settings)
    facts = train(unheard, replace(begun, out=tmp_path / "out"))
    sign, shift = facts["signs"]["rejected_shift"], column(facts, "rejected_shift")
    change = sum(shift[-WINDOW:]) / WINDOW - shift[0]
    assert sign["value"] == pytest.approx(change - 99, rel=1e-4) and sign["before"] == -99
    (line,) = [row for row in capsys.readouterr().err.splitlines() if "collapse" in row]
    assert f"step {WINDOW}: the rejected responses collapse: nats -" in line
    assert "(-99 before, line -15)" in line


def test_falls_add_up_in_the_rounds_of_a_run(open_run: OpenRun, tiny_recipe: Path) -> None:
    """Round 2 goes on from what the manifest of round 1 says, six steps each."""
    values = yaml.safe_load(tiny_recipe.read_text())
    values["agents"] = {name: values["agents"][name] for name in ("teacher1", "student")}
    tiny_recipe.write_text(yaml.safe_dump(values, sort_keys=False))
    sets = ("rounds=2", "frozen_teachers=true", "dpo.epochs=2")
    with open_run(*sets, file=tiny_recipe, fake=False) as run:
        for round_ in range(3):
            assert not run.finish_round(round_).waiting
        steps = [run.select("train", round_, "student")[0] for round_ in range(3)]
        tuned, *trained = (run.store.manifest(run.plan.name(step)) or {} for step in steps)
    assert set(tuned["signs"]) <= {"loss"}
    earlier: dict[str, float] = {}
    for manifest in trained:
        for name in ("chosen_shift", "rejected_shift"):
            shift = column(manifest, name)
            assert len(shift) == 6 and abs(shift[0]) < 1e-4  # the reference is the start
            total = sum(shift[-WINDOW:]) / WINDOW - shift[0] + min(earlier.get(name, 0.0), 0.0)
            sign = manifest["signs"][name]
            assert sign["value"] == pytest.approx(total, rel=1e-3, abs=1e-6)
            assert sign["before"] == earlier.get(name)
            earlier[name] = sign["value"]


def test_a_round_needs_no_reference_pass(open_run: OpenRun, tiny_recipe: Path) -> None:
    """The learner scored both sides when the round was written; nothing of it is computed again."""
    values = yaml.safe_load(tiny_recipe.read_text())
    values["agents"] = {name: values["agents"][name] for name in ("teacher1", "student")}
    tiny_recipe.write_text(yaml.safe_dump(values, sort_keys=False))
    with open_run("train.save_steps=1", file=tiny_recipe, fake=False) as run:
        run.finish_round(0)
        run.make("gen", 1, "student")
        (step,) = run.select("train", 1, "student")
        # Begun once before, and killed: what is left there is no adapter.
        (run.path(step) / "trainer" / "checkpoint-1").mkdir(parents=True)
        run.make("train", 1, "student")
        manifest = run.store.manifest(run.plan.name(step))
    assert manifest is not None
    known = manifest["reference_logprobs"]
    assert known["computed"] == known["cached"] == 0 and known["stored"] > 0
    assert known["of"] == "previous" and manifest["shared_prompt"] is True
    assert manifest["history"][0]["dpo"] == pytest.approx(math.log(2), abs=1e-5)
    assert set(manifest["files"]) == {"adapter_config.json", "adapter_model.safetensors"}


def test_a_training_needs_no_engine(macpo: Macpo, tiny_recipe: Path) -> None:
    """What was written elsewhere is trained on where no vLLM or Ray is installed."""
    options = ["--round", "0", "--learner", "teacher1", "-r", tiny_recipe]
    assert macpo("gen", *options).returncode == 0
    done = macpo("train", *options, "--set", "engine.name=ray")
    assert done.returncode == 0, done.stderr
