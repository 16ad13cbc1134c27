"""Two processes in one run, and what kills leave: nothing lost or doubled, both end with the truth.

A lane is a process that runs several commands one after the other, which is faster than a process
for each. All are on the fake engine, slowed where they should meet.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from conftest import OpenRun
from test_kill import tables

from macpo_data.errors import StoreError
from macpo_data.evaluation.policies import trained
from macpo_data.store.store import sha256
from macpo_run.live_status import making

LANE = """
import json, shutil, sys, time
from pathlib import Path
from typer.testing import CliRunner
from macpo.cli import app

def macpo(*words):
    done = CliRunner().invoke(app, [*words, "-r", "recipe.yaml", "--set", "engine.name=fake"])
    error = repr(done.exception) if done.exception else ""
    return {"code": done.exit_code, "out": done.stdout, "err": done.stderr + error}

def slow(module, name, seconds):
    usual = getattr(module, name)
    def waits(*args, **settings):
        time.sleep(seconds)
        return usual(*args, **settings)
    setattr(module, name, waits)

said = []
"""
END = "\nsys.__stdout__.write(json.dumps(said))\n"


@contextmanager
def lane(cwd: Path, code: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", LANE + code + END],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def output_of(process: subprocess.Popen[str]) -> Any:
    """What the commands of a lane said, when they have ended."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out)


def both(cwd: Path, one: str, other: str) -> tuple[Any, Any]:
    """Two lanes at once."""
    with lane(cwd, one) as first, lane(cwd, other) as second:
        return output_of(first), output_of(second)


def finish(open_run: OpenRun, *sets: str) -> Path:
    """The folder of a finished run."""
    with open_run(*sets) as run:
        for round_ in (0, 1):
            assert not run.finish_round(round_).waiting
        return run.store.root


# ---------------------------------------------------------------------------- beside each other

EVAL = """
import macpo_data.evaluation.results as results
from macpo_data.store.locks import of_run
slow(results, "means", 0.3)
for n in range(4):
    with of_run(Path("runs/test"), lambda _: None, alone=True):  # else clean sees half of it
        for kind in ("eval", "rewards"):
            shutil.rmtree(f"runs/test/{kind}", ignore_errors=True)
    done = macpo("eval", "--agents", "student", "--set", "eval.reward=org/judge")
    manifests = [json.loads(p.read_text()) for p in Path("runs/test/eval").glob("*/manifest.json")]
    names = [name for each in manifests for name in each["inputs"]]
    there = [name for name in names if Path("runs/test", name, "manifest.json").is_file()]
    said.append([done, len(manifests), len(names), len(there)])
Path("stop").touch()
"""
CLEAN = """
while not Path("stop").exists():
    said.append(macpo("clean", "--yes", *SETS))
    time.sleep(0.05)
"""


@pytest.mark.parametrize("sets", ['"--set", "eval.reward=org/judge"', ""])
def test_clean_beside_eval(sets: str, open_run: OpenRun, tmp_path: Path) -> None:
    """What eval finished is there, also where clean was called without what eval was told.

    Each evaluation waits inside, with its answers and rewards made and nothing sealed.
    """
    finish(open_run)
    evals, cleans = both(tmp_path, EVAL, CLEAN.replace("*SETS", sets))
    for done, evaluations, inputs, there in evals:
        assert (done["code"], evaluations) == (0, 1), done
        assert inputs == there == 4  # three policies' answers, and their rewards
    assert len(cleans) >= 2
    for done in cleans:
        assert done["code"] == 0, done
        assert "removed" not in done["out"] or "eval/" in done["out"]


TRAIN = """
import macpo_run.policies as policies
slow(policies, "step_facts", 0.2)
said.append(macpo("train", "--round", "0", *WORDS))
"""


def test_redo_beside_train(open_run: OpenRun, tmp_path: Path) -> None:
    """Each adapter is there, whole, as it was; what was there before is aside, each once."""
    with open_run() as run:
        assert not run.finish_round(0).waiting
        names = [run.plan.name(step) for step in run.select("train", 0)]
        before = {name: run.store.content(name) for name in names}
    (usual,), (redone,) = both(
        tmp_path, TRAIN.replace("*WORDS", ""), TRAIN.replace("*WORDS", '"--redo"')
    )
    assert redone["code"] == 0 and redone["out"].count("wrote    train") == 8, redone
    # What is moved aside just now it waits for; if it is in the middle of reading that, it says so.
    if usual["code"] == 0:
        assert usual["out"].count("wrote    train") + usual["out"].count("kept     train") == 8
    else:
        assert "was made anew or removed" in usual["err"] or "not finished" in usual["err"], usual
    with open_run() as run:
        assert all(run.states()[step] == "done" for step in run.select("train", 0))
        assert {name: run.store.content(name) for name in names} == before
        moved = [path.name.rpartition("-")[0] for path in run.store.root.glob("aside/*")]
        assert sorted(f"adapters/{name}" for name in moved) == sorted(names)


SWEEP = """
said.append(macpo("sweep", "--grid", "dpo.beta=0.1,0.2", "--until", "1"))
"""
RUN = """
said.append(macpo("run", "--until", "1"))
"""


def test_sweep_beside_run(open_run: OpenRun, tmp_path: Path) -> None:
    """The first variant is the recipe itself: its steps are made once, and both know of all."""
    (swept,), (run_,) = both(tmp_path, SWEEP, RUN)
    assert (swept["code"], run_["code"]) == (0, 0), (swept, run_)
    assert "dpo.beta=0.2" in swept["out"] and "next: macpo report" in run_["out"]
    runs = tmp_path / "runs"
    assert not list(runs.glob("test/aside/*"))
    runs.rename(tmp_path / "together")
    with open_run() as run:
        for round_ in (0, 1):
            run.finish_round(round_)
    alone, together = tables(runs), tables(tmp_path / "together")
    assert alone.items() <= together.items() and len(alone) == 16


def test_three_pushes_into_one_folder(open_run: OpenRun, tmp_path: Path) -> None:
    """Of three runs, so that no lock of a run keeps them apart."""
    codes = []
    for seed in (1, 2, 3):
        finish(open_run, f"run=run{seed}", f"seed={seed}")
        words = ["push", "--to", "hub", "--round", str(seed % 2), "--set", f"run=run{seed}"]
        words += ["--set", f"seed={seed}", "--learner", "student" if seed == 3 else "teacher1"]
        codes.append(f"said.append(macpo(*{words}))")
    with ExitStack() as stack:
        lanes = [stack.enter_context(lane(tmp_path, code)) for code in codes]
        pushes = [output_of(each)[0] for each in lanes]
    assert [push["out"] for push in pushes] == ["wrote  hub\n"] * 3, pushes
    index = json.loads((tmp_path / "hub/macpo/index.json").read_text())
    assert index.keys() == {"round_1_teacher1", "round_0_teacher1", "round_1_student"}
    for name, entry in index.items():
        for file, sha in entry["files"].items():
            assert sha256(tmp_path / "hub" / file) == sha, (name, file)
    card = (tmp_path / "hub/README.md").read_text()
    assert all(name in card for name in index)
    assert not list(tmp_path.glob("hub/.*"))


def test_what_changed_under_a_step_seals_nothing(open_run: OpenRun) -> None:
    """As where --redo makes a parent anew while a step reads it."""
    with open_run() as run:
        run.make("gen", 0)
        (parent,) = run.select("gen", 0, "teacher1")
        step = run.select("train", 0, "teacher1")[0]
        facts: dict[str, Any] = {
            "inputs": {run.plan.name(parent): run.store.content(run.plan.name(parent))}
        }
        facts |= {"adapter_sha256": "0"}
        folder = run.store.clear(run.plan.name(step))
        run.store.aside(run.plan.name(parent))
        with pytest.raises(StoreError, match="was made anew or removed while adapters/teacher1"):
            run.store.finish(run.plan.name(step), facts)
        assert not list(folder.iterdir())


# ---------------------------------------------------------------------------- what clean offers


def clean(tmp_path: Path, *words: str) -> str:
    with lane(tmp_path, f"said.append(macpo('clean', *{words}))") as process:
        (done,) = output_of(process)
    assert done["code"] == 0, done
    return str(done["out"])


def test_clean_says_what_the_recipe_reaches_without_set(open_run: OpenRun, tmp_path: Path) -> None:
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    recipe["engine"]["name"] = "fake"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    root = finish(open_run)
    whole = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*.parquet")}
    lines = clean(tmp_path, "--set", "dpo.beta=0.3").splitlines()
    listed, after = lines[:-1], lines[-1]
    assert all(line.endswith("  (the recipe reaches it without --set)") for line in listed)
    assert "data/round-1-teacher1" in "".join(listed) and "data/round-0" not in "".join(listed)
    assert "clean --yes" in after and "--set dpo.beta=0.3" in after
    assert {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*.parquet")} == whole


def test_clean_says_what_belongs_to_the_ceiling(open_run: OpenRun, tmp_path: Path) -> None:
    """An evaluation that measured it together with the others is only read where it is on."""
    with open_run("eval.ceiling=true") as run:
        run.finish_round(0)
        (joint,) = run.evaluate(trained(run.plan, run.store)).paths
    with open_run() as run:
        (own,) = run.evaluate(trained(run.plan, run.store)).paths
    lines = clean(tmp_path).splitlines()[:-1]
    assert sorted(line.split()[3].split("/")[2] for line in lines) == [
        "adapters", "data", "eval", "samples",
    ]  # fmt: skip
    assert all(line.endswith("  (the recipe reaches it with eval.ceiling=true)") for line in lines)
    assert any(joint.name in line for line in lines) and own.name not in "".join(lines)
    assert "every result" in clean(tmp_path, "--set", "eval.ceiling=true")


def test_a_folder_of_a_round_that_no_run_has_keeps_clean_from_nothing(
    open_run: OpenRun, tmp_path: Path
) -> None:
    stray = finish(open_run) / "data/round-99999999-student-abcdef01"
    stray.mkdir()
    listed, after = clean(tmp_path).splitlines()
    assert stray.name in listed and "clean --yes" in after


# ---------------------------------------------------------------------------- what kills leave


def ended() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_clean_removes_what_kills_left(open_run: OpenRun, tmp_path: Path) -> None:
    root = finish(open_run)
    note = root / ".progress" / socket.gethostname()
    dead = {root / f".lock.json.{ended()}.tmp", Path(f"{note}-{ended()}.json")}
    alive = {root / f".lock.json.{os.getpid()}.tmp", Path(f"{note}-{os.getpid()}.json")}
    for path in dead | alive:
        path.write_text("{}")
    listed = clean(tmp_path)
    assert all(f"left by a kill  {p.relative_to(tmp_path)}" in listed for p in dead)
    assert listed.count("left by") == 2 and "next:" in listed
    assert clean(tmp_path, "--yes").count("removed") == 2
    assert not any(path.exists() for path in dead) and all(path.exists() for path in alive)


def test_a_number_that_was_given_away_again_tells_nothing(tmp_path: Path) -> None:
    """A note of an hour ago whose process has the number of this one, which began later."""
    path = tmp_path / f"{socket.gethostname()}-{os.getpid()}.json"
    note = {"host": socket.gethostname(), "pid": os.getpid(), "begun": time.time()}
    path.write_text(json.dumps(note | {"what": "training", "done": 1, "of": 2, "note": ""}))
    assert len(making(tmp_path)) == 1
    then = psutil.Process().create_time() - 3600
    os.utime(path, (then, then))
    assert making(tmp_path) == []


def test_a_killed_evaluation_is_no_old_result(open_run: OpenRun) -> None:
    with open_run() as run:
        run.finish_round(0)
        (path,) = run.evaluate(trained(run.plan, run.store)).paths
        (path / "manifest.json").unlink()
        (path / ".table.parquet.1.tmp").write_text("")
        assert run.evaluate(trained(run.plan, run.store)).paths == [path]
        assert not (run.store.root / "aside").exists()
        assert {p.name for p in path.iterdir()} == {
            "manifest.json", "judgements.parquet", "responses.parquet", "table.parquet",
        }  # fmt: skip
        # A finished one that was damaged is kept aside.
        (path / "table.parquet").write_bytes(b"")
        run.evaluate(trained(run.plan, run.store))
        assert [p.name.startswith(path.name) for p in run.store.root.glob("aside/*")] == [True]


def test_a_resumed_result_holds_no_half_written_file(open_run: OpenRun) -> None:
    with open_run() as run:
        run.finish_round(0)
        (step,) = run.select("gen", 0, "student")
        (samples,) = run.store.root.glob("samples/teacher1-positive-0-d2-*")
        for folder in (samples, run.path(step)):
            (folder / "manifest.json").unlink()
        (samples / "shards/.00001.parquet.1.tmp").write_text("")
        run.make("gen", 0)
        assert (samples / "manifest.json").is_file() and not list(samples.rglob("*.tmp"))
