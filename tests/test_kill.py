"""SIGKILL at random moments: nothing half-written looks done, and resume gives the same bytes."""

from __future__ import annotations

import glob
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from macpo_data.models.weights import weights_sha256


def start(cwd: Path, *args: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "macpo", *args],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def matching(cwd: Path, pattern: str) -> list[str]:
    """What matches while another process writes and removes: `Path.glob` fails on a lost folder."""
    return glob.glob(pattern, root_dir=cwd, recursive=True, include_hidden=True)


def kill_until_done(cwd: Path, args: list[str], pattern: str, counts: list[int]) -> int:
    """Run a command, killing it when so many files match; then let it finish. Returns the kills."""
    rng = random.Random(str(args))
    kills = 0
    for count in counts:
        process = start(cwd, *args)
        while process.poll() is None and len(matching(cwd, pattern)) < count:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        if process.poll() is None:
            # Only the parent: its workers have to notice by themselves.
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    done = start(cwd, *args)
    assert done.wait(timeout=300) == 0
    return kills


def tables(runs: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(runs)): p.read_bytes()
        for pattern in ("*/data/round-*/pairs.parquet", "*/data/round-*/candidates.parquet")
        for p in sorted(runs.glob(pattern))
    }


def test_gen_on_the_fake_engine(recipe_file: Path, tmp_path: Path) -> None:
    args = ["run", "--until", "1", "-r", str(recipe_file), "--set", "engine.name=fake"]
    args += ["--set", "engine.shard_size=2"]
    assert start(tmp_path, *args, "--runs", "whole").wait(timeout=120) == 0
    whole = tables(tmp_path / "whole")
    pattern = "killed/test/**/*.parquet"
    total = len(matching(tmp_path, pattern.replace("killed", "whole")))
    counts = sorted(random.Random(0).sample(range(1, total), 8))
    assert kill_until_done(tmp_path, [*args, "--runs", "killed"], pattern, counts) >= 6
    assert tables(tmp_path / "killed") == whole and len(whole) == 16


@pytest.mark.slow
def test_gen_on_the_transformers_engine(tiny_recipe: Path, tmp_path: Path) -> None:
    """Kills fall into the writing of the teachers' and the student's samples and the scoring."""
    sets = ["--set", "engine.shard_size=2", "--set", "data.d2.count=16"]
    common = ["-r", str(tiny_recipe), *sets]
    assert start(tmp_path, "run", "--round", "0", *common, "--runs", "a").wait(timeout=300) == 0
    subprocess.run(["cp", "-r", "a", "b"], cwd=tmp_path, check=True)
    pattern = "b/test/s*/*/shards/*.parquet"
    before = len(list(tmp_path.glob(pattern)))
    gen = ["gen", "--round", "1", *common]
    assert start(tmp_path, *gen, "--runs", "a").wait(timeout=300) == 0
    after = len(list(tmp_path.glob(pattern.replace("b/", "a/"))))
    counts = sorted(random.Random(1).sample(range(before + 1, after), 3))
    assert kill_until_done(tmp_path, [*gen, "--runs", "b"], pattern, counts) >= 2
    whole = tables(tmp_path / "a")
    assert tables(tmp_path / "b") == whole and any("round-1-student" in name for name in whole)


@pytest.mark.slow
def test_a_killed_train_repeated_gives_the_same_adapter(tiny_recipe: Path, tmp_path: Path) -> None:
    common = ["-r", str(tiny_recipe)]
    assert start(tmp_path, "gen", "--round", "0", *common, "--runs", "a").wait(timeout=120) == 0
    for copy in ("b", "c"):
        subprocess.run(["cp", "-r", "a", copy], cwd=tmp_path, check=True)
    train = ["train", "--round", "0", "--learner", "teacher1", *common]
    assert start(tmp_path, *train, "--runs", "a").wait(timeout=300) == 0
    # First while the positive policy trains, then when its weights are there without a manifest.
    pattern = "b/test/adapters/*"
    assert kill_until_done(tmp_path, [*train, "--runs", "b"], pattern, [1]) == 1
    weights = "c/test/adapters/*/adapter_model.safetensors"
    assert kill_until_done(tmp_path, [*train, "--runs", "c"], weights, [1]) == 1

    def adapters(runs: str) -> dict[str, str]:
        manifests = (tmp_path / runs).glob("*/adapters/*/manifest.json")
        return {p.parent.name: weights_sha256(p.parent) for p in manifests}

    assert adapters("a") == adapters("b") == adapters("c") and len(adapters("a")) == 2


@pytest.mark.slow
def test_a_killed_train_on_a_dataset_goes_on(
    pairs_file: Path, tiny_base: Path, tmp_path: Path
) -> None:
    """From its checkpoint and with its reference; other settings begin anew."""
    train = ["train", "--dataset", str(pairs_file), "--base", str(tiny_base)]
    sets = ["dpo.epochs=8", "dpo.batch_size=2", "train.save_steps=2"]
    train += [word for each in sets for word in ("--set", each)]
    process = start(tmp_path, *train, "--out", "killed")
    while not matching(tmp_path, ".killed.partial/adapter/trainer/checkpoint-*/macpo.json"):
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists()
    subprocess.run(["cp", "-r", ".killed.partial", ".other.partial"], cwd=tmp_path, check=True)
    for out, more in {"killed": [], "other": ["--set", "dpo.beta=0.5"]}.items():
        assert start(tmp_path, *train, *more, "--out", out).wait(timeout=300) == 0
        assert not (tmp_path / f".{out}.partial").exists()
    assert start(tmp_path, *train, "--out", "whole").wait(timeout=300) == 0
    killed, other, whole = (
        json.loads((tmp_path / out / "manifest.json").read_text())
        for out in ("killed", "other", "whole")
    )
    assert killed["resumed_from"] >= 2 and killed["reference_logprobs"]["cached"] == 32
    assert other["resumed_from"] is None and whole["resumed_from"] is None
    assert killed["adapter_sha256"] == whole["adapter_sha256"] != other["adapter_sha256"]
    of_killed, of_whole = (
        (tmp_path / out / "adapter_model.safetensors").read_bytes() for out in ("killed", "whole")
    )
    assert of_killed == of_whole


@pytest.mark.slow
def test_a_worker_dies_with_its_parent(tiny_recipe: Path, tmp_path: Path) -> None:
    process = start(tmp_path, "run", "--round", "0", "-r", str(tiny_recipe))
    children: list[int] = []
    deadline = time.monotonic() + 60
    while not children and time.monotonic() < deadline:
        time.sleep(0.2)
        children = children_of(process.pid)
    assert children
    time.sleep(1)
    children = children_of(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(alive(pid) for pid in children)


@pytest.mark.slow
def test_an_interrupt_of_the_parent_alone_ends_the_pretraining(tmp_path: Path) -> None:
    """As `kill -INT` sends it: no process of the bases hears of it, and the parent only waits."""
    out = (tmp_path / "out").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "macpo", "run", "--round", "0", "-r", "quickstart"],
        cwd=tmp_path, env={**os.environ, "MACPO_CACHE": str(tmp_path / "cache")},
        stdout=out, stderr=out,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while b"prompts," not in (tmp_path / "out").read_bytes() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert (tmp_path / "out").read_text().splitlines()[-1].startswith("error: interrupted")


def test_two_processes_on_one_step_wait_for_each_other(recipe_file: Path, tmp_path: Path) -> None:
    args = ["run", "--until", "1", "-r", str(recipe_file), "--set", "engine.name=fake"]
    both = [start(tmp_path, *args) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert start(tmp_path, *args, "--runs", "alone").wait(timeout=120) == 0
    assert tables(tmp_path / "runs") == tables(tmp_path / "alone")


def children_of(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    if not listed.exists():
        pytest.skip("this system does not list the children of a process")
    return [int(child) for child in listed.read_text().split()]


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
    except FileNotFoundError:
        return False
