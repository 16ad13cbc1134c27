"""Runs whose policies are checkpoints of all weights: made, thinned, published, refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Literal

import polars as pl
import pytest
import yaml
from conftest import Macpo, OpenRun
from hub_server import TOKEN, serve
from transformers import AutoModelForCausalLM

from macpo_data.errors import RecipeError, StoreError
from macpo_data.loading.load import load_recipe
from macpo_data.models.weights import weights_sha256
from macpo_data.plan import Policy
from macpo_run.cleaning import old_checkpoints
from macpo_run.rounds import Run

FULL = "train.finetuning=full"
KINDS: tuple[Literal["gen", "train"], ...] = ("gen", "train", "gen", "train")
OPTIONS = ["--recipe", "quickstart", "--set", "engine.name=fake", "--set", FULL]
OPTIONS += ["--set", "data.d1.count=14", "--set", "data.d2.count=12", "--set", "data.test.count=6"]
OPTIONS += ["--set", "data.probe.count=2", "--set", "select.on_filter=count"]


def finish(run: Run, rounds: int = 1) -> Run:
    for round_ in range(rounds + 1):
        for kind in KINDS:
            run.make(kind, round_)
    return run


def test_whose_weights_are_trained(open_run: OpenRun) -> None:
    """By agent; older results keep their names, and a change of one agent is that agent's alone."""
    lora, full = open_run(), open_run(FULL)
    student = open_run("agents.student.finetuning=full")
    steps = [step for step in lora.plan.steps if step.kind == "train"]
    assert all(lora.plan.name(step).startswith("adapters/") for step in steps)
    assert all(full.plan.name(step).startswith("checkpoints/") for step in steps)
    assert not {lora.plan.fingerprint(s) for s in steps} & {full.plan.fingerprint(s) for s in steps}
    same = {s.learner for s in steps if s.round == 0 and lora.plan.name(s) == student.plan.name(s)}
    assert same == {"teacher1", "teacher2", "teacher3"}
    base = Policy("student")
    assert lora.plan.policy_fingerprint(base) == student.plan.policy_fingerprint(base)
    assert lora.plan.reward_name != full.plan.reward_name
    assert lora.plan.reward_name == open_run("reward.finetuning=lora").plan.reward_name


def test_what_cannot_be_is_said_at_once(open_run: OpenRun, macpo: Macpo, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nf4 keeps a base in four bits beside its adapter"):
        load_recipe("quickstart", [FULL, "train.quantization=nf4"])
    own = ["agents.student.finetuning=full", "train.quantization=nf4"]
    with pytest.raises(RecipeError, match=r"agents\.student\.finetuning=full trains the base"):
        load_recipe("quickstart", own)
    pl.DataFrame({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}).write_parquet(
        tmp_path / "pairs.parquet"
    )
    words = ["train", "--dataset", "pairs.parquet", "--base", "world:strong", "--out", "out"]
    for option, more in (("--init", []), ("--reference", ["--set", "dpo.reference=initial"])):
        done = macpo(*words, option, "somewhere", *more, "--set", FULL, fake=True)
        assert done.returncode == 1
        assert f"{option}: it names an adapter, and train.finetuning=full" in done.stderr
        assert "Traceback" not in done.stderr
    done = macpo(*words, "--set", FULL, "--set", "train.optimizer=adamw_8bit")
    assert done.returncode == 1 and "train.optimizer=adamw_8bit needs a GPU" in done.stderr


def test_a_disk_without_room_for_checkpoints(
    macpo: Macpo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before the first step, of three rounds of whole models."""
    usage = "import shutil\nfrom collections import namedtuple\n"
    usage += "U = namedtuple('U', 'total used free')\n"
    usage += "shutil.disk_usage = lambda path: U(10**12, 10**12 - 10**7, 10**7)\n"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(usage)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{os.environ.get('PYTHONPATH', '')}")
    done = macpo(
        "run", "--until", "3", "--recipe", "quickstart", "--set", FULL, "--set", "rounds=3"
    )
    assert done.returncode == 1 and "0.0 GB free at" in done.stderr
    assert "GB needed" in done.stderr and not list(tmp_path.glob("runs/*/data"))


def test_old_rounds_are_thinned_and_nothing_breaks(open_run: OpenRun, macpo: Macpo) -> None:
    run = finish(open_run(FULL, "rounds=2"), 2)
    names = old_checkpoints([run])
    short = sorted(name.partition("/")[2].rpartition("-")[0] for name in names)
    agents = ("student", "teacher1", "teacher2", "teacher3")
    # The newest positive policies and all negative ones still write.
    assert short == [f"{agent}-positive-{round_}" for agent in agents for round_ in (0, 1)]
    for name in names:
        run.store.thin(name)
    assert old_checkpoints([run]) == []
    states = run.states()
    assert {state for step, state in states.items()} == {"done"}
    more = open_run(FULL, "rounds=3")
    for kind in KINDS:
        more.make(kind, 3)
    assert set(more.states().values()) == {"done"}
    first = next(s for s in run.plan.steps if s.makes == Policy("student", "positive", 0))
    with pytest.raises(StoreError, match=r"removed by clean --checkpoints; macpo train --round 0"):
        run.store.verify(run.plan.name(first))
    assert json.loads((run.path(first) / "manifest.json").read_text())["adapter_sha256"]


def test_clean_lists_then_removes(macpo: Macpo, tmp_path: Path) -> None:
    done = macpo("run", "--until", "2", *OPTIONS)
    assert done.returncode == 0, done.stderr
    listed = macpo("clean", "--checkpoints", *OPTIONS)
    assert "earlier round" in listed.stdout and "macpo clean --checkpoints --yes" in listed.stdout
    kept = sorted(tmp_path.glob("runs/quickstart/checkpoints/*/model.safetensors"))
    assert macpo("clean", "--yes", *OPTIONS).returncode == 0
    assert kept == sorted(tmp_path.glob("runs/quickstart/checkpoints/*/model.safetensors"))
    removed = macpo("clean", "--checkpoints", "--yes", *OPTIONS)
    assert removed.returncode == 0, removed.stderr
    assert len(list(tmp_path.glob("runs/quickstart/checkpoints/*/model.safetensors"))) < len(kept)
    for command in (["status"], ["eval"], ["report"], ["push", "--round", "1", "--to", "tree"]):
        done = macpo(*command, *OPTIONS)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_round_of_whole_models_travels(
    macpo: Macpo, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real models: made here, pushed, pulled, and trained there to the same bytes."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    values = yaml.safe_load(tiny_recipe.read_text())
    del values["agents"]["teacher2"], values["agents"]["teacher3"]
    values["train"] |= {"finetuning": "full"}
    values["agents"]["teacher1"]["finetuning"] = "lora"
    (here / "macpo.yaml").write_text(yaml.safe_dump(values, sort_keys=False))

    def call(folder: Path, *args: str) -> str:
        done = macpo(*args, cwd=folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with serve() as hub:
        own = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        own |= {"HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN}
        for name, value in own.items():
            monkeypatch.setenv(name, value)
        call(here, "run", "--until", "1")
        (checkpoint,) = here.glob("runs/test/checkpoints/student-positive-1-*")
        assert len(list(here.glob("runs/test/adapters/teacher1-*"))) == 3
        whole = AutoModelForCausalLM.from_pretrained(checkpoint)
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        assert manifest["trainable_parameters"] == whole.num_parameters()
        assert manifest["history"][0]["dpo"] == pytest.approx(0.6931, abs=1e-4)
        assert manifest["reference_logprobs"]["stored"] > 0
        words = ["--round", "1", "--learner", "student"]
        call(here, "push", *words, "--repo", "org/pairs", "--adapters", "--merge")
        call(here, "push", *words, "--to", "tree", "--merge")
        call(there, "pull", "org/pairs", *words, "--local-paths")
        call(there, "train", *words)
        (again,) = there.glob("runs/test/checkpoints/student-positive-1-*")
        assert weights_sha256(again) == weights_sha256(checkpoint)
        card = hub.model("org/pairs-adapters").tree("main")["README.md"].content.decode()
        assert "AutoModelForCausalLM" in card and "under the licence of that base" in card
        merged = hub.model("org/pairs-merged").tree("main")
        assert {"model.safetensors", "config.json", "tokenizer.json"} <= merged.keys()
        assert "manifest.json" not in merged
    one = AutoModelForCausalLM.from_pretrained(here / "tree-merged")
    assert all((a == b).all() for a, b in zip(one.parameters(), whole.parameters(), strict=True))
    # A published checkpoint is a base like any other.
    pairs = next(here.glob("runs/test/data/round-1-student-*")) / "pairs.parquet"
    out = call(there, "train", "--dataset", str(pairs), "--base", str(here / "tree-merged"),
               "--out", "further", "--set", FULL, "--set", "train.max_length=256")  # fmt: skip
    assert out is not None and (there / "further" / "model.safetensors").is_file()
    shutil.rmtree(there)
