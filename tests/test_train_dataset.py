"""`macpo train --dataset` through the command line: what it needs, counts, and says."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Macpo
from typer.testing import CliRunner, Result

from macpo.cli import app
from macpo_data.loading.load import load_settings
from macpo_data.planning import hardware
from macpo_data.recipe.agents import Agent
from macpo_data.recipe.training import Train
from macpo_data.sources.ingest.splits import Dataset
from macpo_run.preflight import room
from macpo_run.preflight.needs import look
from macpo_run.preflight.standalone import needs

KEY = "sk-proj-" + "a8Kq2Zr9Xw4Bv7Nm1Tc6"  # of no service, in the shape of one
ROW = {"prompt": "Fruit?", "chosen": "Pear.", "rejected": "No."}
Call = Callable[..., Result]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write(tmp_path / "pairs.jsonl", [ROW | {"prompt": f"Fruit {n}?"} for n in range(8)])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model as it looks from outside, which nothing loads."""
    config = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "vocab_size": 100}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    return folder


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """The command in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def invoke(*args: str | Path) -> Result:
        done = CliRunner().invoke(app, ["train", "--dataset", *map(str, args)])
        assert done.exception is None or isinstance(done.exception, Exception | SystemExit)
        return done

    return invoke


def errors(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error: ")]


def manifest(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return values


# ---------------------------------------------------------------------------- numbers


def test_auto_is_the_default_where_no_recipe_is() -> None:
    """Whatever else of the section is set; a recipe's own default stays."""
    for sets in (None, ["train.max_length=64"], ["train={max_length: 64}"]):
        assert load_settings(sets).train.dtype == "auto"
    assert load_settings(["train.dtype=bfloat16"]).train.dtype == "bfloat16"
    assert load_settings(["dpo={beta: 0.5}"]).dpo.reference == "previous"
    assert Train().dtype == "bfloat16"


def test_auto_by_the_device() -> None:
    auto = Train(dtype="auto", max_length=7)
    assert auto.on(bfloat16=True) == Train(dtype="bfloat16", max_length=7)
    assert auto.on(bfloat16=False) == Train(dtype="float32", max_length=7)
    exact = Train(dtype="float32")
    assert exact.on(bfloat16=True) is exact


@pytest.mark.parametrize(
    ("on", "same", "other"),
    [("1xA100-80GB", "bfloat16", "float32"), ("2xCPU-99GB", "float32", "bfloat16")],
)
def test_the_plan_takes_what_the_named_hardware_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on: str, same: str, other: str
) -> None:
    monkeypatch.chdir(tmp_path)

    def plan(dtype: str) -> str:
        command = ["run", "--until", "1", "--dry-run", "-r", "hh_helpful", "--on", on]
        done = CliRunner().invoke(app, [*command, "--set", f"train.dtype={dtype}"])
        assert done.exit_code == 0, done.output
        return done.stdout

    assert plan("auto") == plan(same) != plan(other)


@pytest.mark.slow
def test_it_counts_what_it_trains_on_in_numbers_that_the_machine_has(
    macpo: Macpo, tiny_base: Path, tmp_path: Path
) -> None:
    """Of twelve pairs two are cut, one is the same after the cut, and two find no room."""
    long = "Pear " * 60
    rows = [ROW | {"prompt": f"Fruit {n}?"} for n in range(7)]
    rows += [ROW | {"prompt": f"Long {n}?", "chosen": long} for n in range(2)]
    rows += [ROW | {"prompt": "Same?", "chosen": long + "a", "rejected": long + "b"}]
    rows += [ROW | {"prompt": f"{n} {long}"} for n in range(2)]
    write(tmp_path / "rows.jsonl", rows)
    done = macpo(
        "train", "--dataset", "rows.jsonl", "--base", tiny_base, "--out", "out",
        "--set", "train.max_length=40", "--set", "train.max_truncated=1.0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    for line in (
        "training: train.dtype=auto is float32 here, on a CPU",
        "training: 2 of 9 rows are cut to train.max_length",
        "training: 2 rows are left out: they do not fit into train.max_length",
        "training: 1 pairs are left out: their sides are the same, as written and cut",
    ):
        assert lines.count(line) == 1, done.stderr
    facts = manifest(tmp_path / "out")
    assert facts["dtype"] == "float32" and facts["settings"]["train"]["dtype"] == "auto"
    counts = ("rows_read", "rows", "rows_cut", "rows_dropped_too_long", "rows_same_after_cut")
    assert [facts[name] for name in counts] == [12, 9, 2, 2, 1]


# ---------------------------------------------------------------------------- before the first step


def test_all_that_is_missing_is_said_at_once(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data, base, both adapters, output, packages and settings; nothing is left behind."""
    hidden = "macpo_run.preflight.running.find_spec"
    monkeypatch.setattr(hidden, lambda n: None if n == "peft" else find_spec(n))
    (tmp_path / "file").write_text("")
    (tmp_path / "half").mkdir()
    (tmp_path / "half/adapter_config.json").write_text("{}")
    before = sorted(tmp_path.iterdir())
    done = call(
        "none.jsonl", "--base", "./nowhere", "--init", "./half", "--reference", "./gone",
        "--out", "file/out", "--set", "train.quantization=nf4",
    )  # fmt: skip
    lines = errors(done.stderr)
    for words in (
        "none.jsonl",
        "no model in ./nowhere",
        "no adapter in ./half: a folder with adapter_config.json and adapter_model.safetensors",
        "no adapter in ./gone",
        "file is a file; name another folder with --out",
        "train.quantization=nf4 needs a GPU",
        "peft is not installed",
    ):
        assert sum(words in line for line in lines) == 1, (words, done.stderr)
    assert done.exit_code == 1 and len(lines) == 7
    assert sorted(tmp_path.iterdir()) == before


def test_what_does_not_fit_is_found_before_it_trains(
    call: Call, pairs: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with 1 GiB and a byte, and on a full disk."""
    small = hardware.Hardware("1xCPU-1GB", 1, False, 2**30 + 1.0, 2**30 + 1.0, 1e11, 2e10)
    monkeypatch.setattr(hardware, "here", lambda: small)
    full = SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=0))
    monkeypatch.setattr(room, "shutil", full)
    done = call(pairs, "--base", base, "--out", "out")
    lines = errors(done.stderr)
    assert done.exit_code == 1 and len(lines) == 2, done.stderr
    assert "memory: train: about 1.0 GiB of 1.0 free" in lines[0]
    assert "disk: 0.0 GB free" in lines[1] and "--out" in lines[1]
    assert not (tmp_path / "out").exists()


def test_long_rows_that_would_not_fit_are_a_warning(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the data may be short; weights alone need a few kilobytes here."""
    small = hardware.Hardware("1xCPU-1GB", 1, False, 1.1 * 2**30, 1.1 * 2**30, 1e11, 2e10)
    monkeypatch.setattr(hardware, "here", lambda: small)
    agent = Agent(role="student", base=str(base))
    checks = needs(load_settings(None), Dataset("org/name"), agent, tmp_path / "out", {})
    (line,) = look(checks | {"base": list, "disk": list})
    assert line.status == "warning" and "rows of train.max_length=1024 tokens" in line.detail
    assert "train.micro_batch_size=" in line.mend


def test_an_adapter_of_another_base_is_found_before_it_trains(
    call: Call, pairs: Path, base: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    values = {"base_model_name_or_path": "org/other", "revision": None}
    (adapter / "adapter_config.json").write_text(json.dumps(values))
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    done = call(pairs, "--base", base, "--init", adapter, "--out", "out")
    (line,) = errors(done.stderr)
    assert f"was made for org/other, not for {base}" in line
    assert "another_base=true" in line


@pytest.mark.parametrize("place", ["DATA", "--base", "--init", "--reference", "--out", "--config"])
def test_a_key_where_a_name_belongs_is_refused(
    call: Call, pairs: Path, tmp_path: Path, place: str
) -> None:
    """Before it stands in a manifest; the message does not repeat it."""
    options = {"DATA": str(pairs), "--base": "base", "--out": "out"} | {place: KEY}
    words = [word for name, value in options.items() if name != "DATA" for word in (name, value)]
    done = call(options["DATA"], *words, "--set", "engine.name=fake")
    (line,) = errors(done.stderr + done.stdout) or [str(done.exception)]
    assert done.exit_code == 1 and KEY not in done.output + line
    name = "dataset" if place == "DATA" else place.removeprefix("--")
    assert f"{name}: looks like a secret" in line
    assert not list(tmp_path.rglob("manifest.json"))


# ---------------------------------------------------------------------------- targets and kinds


@pytest.mark.slow
def test_targets_by_their_names(macpo: Macpo, pairs: Path, tiny_base: Path, tmp_path: Path) -> None:
    """An unknown one lists those that there are; all-linear takes them all."""
    names = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    train = ["train", "--dataset", pairs, "--base", tiny_base, "--out", "out"]
    done = macpo(*train, "--set", "lora.targets=c_attn")
    (line,) = errors(done.stderr)
    assert done.returncode == 1 and "no c_attn in this model" in line and f"has {names}" in line
    assert not (tmp_path / "out").exists()
    done = macpo(*train, "--set", "lora.targets=all-linear")
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert ", ".join(config["target_modules"]) == names


def test_unpaired_data_are_refused_by_name(call: Call, tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}?", "completion": "a", "label": n % 2 == 0} for n in range(4)]
    data = write(tmp_path / "kto.jsonl", rows)
    done = call(data, "--base", "base", "--out", "out", "--set", "engine.name=fake")
    (line,) = errors(done.stderr)
    assert done.exit_code == 1 and "unpaired" in line.lower()
    assert not (tmp_path / "out").exists()
