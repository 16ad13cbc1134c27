"""What a command needs is looked at before its first step: all problems at once, and no others."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import RECIPE, Macpo, OpenRun
from hub_server import READER, Repo, serve
from typer.testing import CliRunner, Result

from macpo.cli import app
from macpo_data.planning import hardware
from macpo_run.commands.before import needs_of
from macpo_run.preflight import room
from macpo_run.preflight.finding import Health
from macpo_run.preflight.needs import look

GIB = 1 << 30
Call = Callable[..., Result]


def trained(folder: Path) -> list[Path]:
    """What a run made, whatever of it."""
    return list((folder / "runs").rglob("adapter_model.safetensors"))


def errors(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error: ")]


def write(path: Path, **changes: Any) -> Path:
    """The small recipe with some of its sections in other words."""
    path.write_text(yaml.safe_dump(yaml.safe_load(RECIPE) | changes, sort_keys=False))
    return path


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """The command in this process, in a folder of its own, where vLLM is not installed."""
    monkeypatch.chdir(tmp_path)
    hidden = "macpo_data.engines.choose.find_spec"
    monkeypatch.setattr(hidden, lambda n: None if n == "vllm" else find_spec(n))

    def invoke(*args: str | Path, fake: bool = False) -> Result:
        extra = ["--set", "engine.name=fake"] if fake else []
        done = CliRunner().invoke(app, [*map(str, args), *extra])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return invoke


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("engine.name=vllm", "vLLM is not installed"),
        ("agents.student.base=./nowhere", "no model in ./nowhere"),
    ],
)
def test_what_is_missing_is_found_before_any_training(
    call: Call, recipe_file: Path, tmp_path: Path, setting: str, problem: str
) -> None:
    """Six trainings came before either was noticed."""
    done = call("run", "--until", "0", "-r", recipe_file, "--set", setting)
    assert done.exit_code == 1 and not trained(tmp_path)
    assert len(errors(done.stderr)) == 1 and problem in done.stderr


def test_all_problems_are_said_at_once(call: Call, tmp_path: Path) -> None:
    """Engine, base, source, key, server and launcher, in one go and in seconds."""
    values = yaml.safe_load(RECIPE)
    server = {"base_url": "http://127.0.0.1:9/v1", "model": "m"}
    values["agents"] |= {
        "student": {"role": "student", "base": "./nowhere"},
        "one": {"role": "proposer", "endpoint": server | {"api_key_env": "NO_SUCH_KEY"}},
        "two": {"role": "aggregator", "endpoint": server},
    }
    values |= {
        "data": {"source": "pairs", "path": "./none.jsonl", "d1": {"count": 9}, "d2": {"count": 9},
                 "test": {"count": 2}},
        "mixture": {"layers": [["one"], ["two"]]},
        "engine": {"name": "vllm"},
        "train": {"launcher": "./no.yaml"},
    }  # fmt: skip
    recipe = write(tmp_path / "r.yaml", **values)
    done = call("run", "--until", "1", "-r", recipe)
    lines = errors(done.stderr)
    assert done.exit_code == 1 and not trained(tmp_path)
    for words in (
        "vLLM is not installed",
        "no model in ./nowhere",
        "no file ./none.jsonl",
        "NO_SUCH_KEY is not set; export NO_SUCH_KEY=",
        "http://127.0.0.1:9/v1 does not answer",
        "cannot read train.launcher ./no.yaml",
    ):
        assert sum(words in line for line in lines) == 1, (words, done.stderr)
    assert len(lines) == 6


def test_only_what_is_still_to_be_made_needs_anything(
    call: Call, recipe_file: Path, tmp_path: Path
) -> None:
    """A finished run goes through where its base, its engine and its data are gone."""
    assert call("run", "--until", "0", "-r", recipe_file, fake=True).exit_code == 0
    values = yaml.safe_load(RECIPE)
    again = call(
        "gen", "--round", "0", "-r", recipe_file, "--set", "engine.keep_loaded=1", fake=True
    )
    assert again.exit_code == 0 and "error" not in again.stderr
    values["train"] = {"dtype": "float32", "launcher": "./gone.yaml"}  # a knob: the results stay
    recipe = write(tmp_path / "gone.yaml", **values)
    done = call("run", "--until", "0", "-r", recipe, fake=True)
    assert done.exit_code == 0, done.stderr


def test_gen_needs_no_more_than_its_steps(call: Call, recipe_file: Path, tmp_path: Path) -> None:
    """Round 0 of the teachers is written from people's answers: no model has to be there."""
    sets = ["--set", "agents.student.base=./nowhere", "--set", "engine.name=vllm"]
    done = call("gen", "--round", "0", "-r", recipe_file, *sets)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("wrote") == 3


def test_a_sweep_looks_at_all_its_variants(call: Call, recipe_file: Path, tmp_path: Path) -> None:
    done = call(
        "sweep", "-r", recipe_file, "--grid", "agents.student.base=world:strong,./one,./two"
    )
    assert done.exit_code == 1 and not trained(tmp_path)
    assert [line for line in errors(done.stderr) if "./one" in line]
    assert [line for line in errors(done.stderr) if "./two" in line]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "config.json").write_text("{}"), "its config.json tells no"),
        (lambda f: (f / "config.json").write_text("{"), "cannot read its config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "has no weights as *.safetensors"),
        (lambda f: [p.unlink() for p in f.glob("*token*")], "has no tokenizer"),
        (lambda f: [p.unlink() for p in f.glob("chat_template*")], "brings no chat template"),
    ],
)
def test_a_base_that_cannot_be_read(
    tiny_base: Path, tmp_path: Path, open_run: OpenRun, spoil: Any, words: str
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    tokenizer = json.loads((base / "tokenizer_config.json").read_text())
    if "template" in words and tokenizer.pop("chat_template", None):
        (base / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    spoil(base)
    run = open_run(f"agents.student.base={base}", fake=False)
    problems = [f.detail for f in health_of(run) if f.status == "problem"]
    assert len(problems) == 1 and words in problems[0]


def health_of(run: Any) -> list[Health]:
    return look(needs_of(run, run.plan.steps))


def test_gated_and_missing_repositories(
    macpo: Macpo, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that a page shows and does not give, a repository without any, one that is not."""
    named = ("teacher1.base=org/gated", "teacher2.base=org/bin", "student.base=org/nowhere")
    bases = [word for each in named for word in ("--set", f"agents.{each}")]
    with serve() as hub:
        for name in ("gated", "bin"):
            hub.repos["models", f"org/{name}"] = repo = Repo(gated=name == "gated")
            repo.add("main", {}, None)
        from hub_server import File

        hub.repos["models", "org/bin"].add("main", {"config.json": File(b"{}", False)}, None)
        for name, value in (("ENDPOINT", hub.url), ("TOKEN", READER), ("HUB_OFFLINE", "0")):
            monkeypatch.setenv(f"HF_{name}", value)
        done = macpo("run", "--until", "0", "-r", recipe_file, *bases)
    assert done.returncode == 1 and not trained(tmp_path) and READER not in done.stderr
    lines = errors(done.stderr)
    assert any("org/gated" in line and "accept its licence" in line for line in lines)
    assert len(lines) == 3, done.stderr
    assert any("org/bin" in line and "no weights as *.safetensors" in line for line in lines)
    assert any("org/nowhere" in line and "no such repository" in line for line in lines)


def test_data_with_too_few_rows(tmp_path: Path, call: Call) -> None:
    """Said with what else is missing, before the first step."""
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    data = {"source": "pairs", "path": "./pairs.jsonl", "d1": {"count": 5}, "d2": {"count": 5},
            "test": {"count": 1}}  # fmt: skip
    recipe = write(tmp_path / "r.yaml", data=data)
    done = call("run", "--until", "0", "-r", recipe, "--set", "agents.student.base=./nowhere")
    lines = errors(done.stderr)
    assert len(lines) == 2 and any("asks for 5 rows" in line for line in lines)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_that_cannot_be_written(call: Call, recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    done = call("run", "--until", "0", "-r", recipe_file, "--runs", "locked/runs", fake=True)
    assert done.exit_code == 1 and "locked cannot be written" in done.stderr


def test_a_machine_that_is_too_small(
    open_run: OpenRun, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory and disk of a few bytes hold nothing; a quarter more than there is, is a warning."""
    run = open_run(f"agents.student.base={tiny_base}", fake=False)
    assert not [f for f in health_of(run) if f.what in ("memory", "disk")]
    usual = hardware.here()
    one_gib = hardware.Hardware("1xCPU-1GB", 1, False, GIB, GIB + 1000, 1e11, 2e10)
    monkeypatch.setattr(hardware, "here", lambda: one_gib)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    problems = {f.what: f for f in health_of(run) if f.status == "problem"}
    assert {"memory", "disk"} <= problems.keys()
    assert "train student" in " ".join(f.detail for f in health_of(run))
    assert "0.0 GB free" in problems["disk"].detail and "--runs" in problems["disk"].mend
    need = max(f.way.peak for f in room._fits(run.plan, _voices(run), usual))
    close = hardware.Hardware("1xCPU-1GB", 1, False, GIB, GIB + 0.9 * need, 1e11, 2e10)
    monkeypatch.setattr(hardware, "here", lambda: close)
    memory = [f.status for f in health_of(run) if f.what == "memory"]
    assert "warning" in memory and "problem" not in memory


def _voices(run: Any) -> Any:
    from macpo_run.preflight.voices import voices_of

    return voices_of(run.plan, run.plan.steps, False)


def test_looking_takes_no_time_where_nothing_is_asked(open_run: OpenRun) -> None:
    """The fake engine and the embedded world, whatever else runs here: processor time."""
    for fake in (True, False):
        run = open_run(fake=fake)
        health_of(run)  # imports
        begun = time.process_time()
        assert not [f for f in health_of(run) if f.status == "problem"]
        assert time.process_time() - begun < 0.1


def test_doctor_shows_the_same_list(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sets = ["--set", "agents.student.base=./nowhere", "--set", "train.launcher=./no.yaml"]
    doctor = CliRunner().invoke(app, ["doctor", "-r", str(recipe_file), "--json", *sets])
    run = CliRunner().invoke(app, ["run", "--until", "1", "-r", str(recipe_file), *sets])
    lines = [
        f"{f['detail']}; {f['mend']}" for f in json.loads(doctor.stdout) if f["status"] == "problem"
    ]
    assert len(lines) == 2 and doctor.exit_code == run.exit_code == 1
    for problem in lines:
        assert problem in run.stderr
