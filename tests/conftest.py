"""Shared fixtures: tiny real models made on the spot, and recipes on them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

if TYPE_CHECKING:
    from macpo_run.rounds import Run
    from macpo_train.job import Job

# Tiny models are fastest on one thread, and two processes then never fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

pytest_plugins = ["hub_case"]  # fixtures of those that publish and fetch

SHARED = Path(__file__).resolve().parents[1].parent / "shared"

RECIPE = """
run: test
rounds: 1
data:
  source: world
  d1: {count: 14}
  probe: {count: 2}
  d2: {count: 12}
  test: {count: 6}
  noise: 0.25
agents:
  teacher1: {role: teacher, base: "world:weak-a"}
  teacher2: {role: teacher, base: "world:weak-b"}
  teacher3: {role: teacher, base: "world:weak-a"}
  student: {role: student, base: "world:strong"}
sampling: {max_new_tokens: 12}
select: {on_filter: count}
sft: {epochs: 1, learning_rate: 1.0e-2, batch_size: 4}
negative: {epochs: 1, learning_rate: 1.0e-2, batch_size: 4}
dpo: {learning_rate: 1.0e-3, batch_size: 4, reference: previous}
train: {dtype: float32}
engine: {batch_size: 4, shard_size: 4, keep_loaded: 4}
"""


def shared(path: str) -> Path:
    """A real file beside the project, or a skip that says which is missing."""
    path_there = SHARED / path
    if not path_there.exists():
        pytest.skip(f"{path} is not beside the project")
    return path_there


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """A small recipe on the embedded world."""
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with the world's tokenizer."""
    return make_tiny_base(tmp_path_factory.mktemp("tiny"))


def make_tiny_base(path: Path, width: int = 32) -> Path:
    """Write it, with two heads; the same weights every time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from macpo_train.pretrain import train_tokenizer

    tokenizer = train_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pairs of unlike lengths, some of several turns, one cut by the token limit."""
    import polars as pl

    from macpo_data.schema import MESSAGES

    rows: list[dict[str, object]] = []
    for n in range(16):
        turns = [{"role": "user", "content": f"Question {'really ' * (n % 3)}{n}?"}]
        if n % 4 == 0:
            turns += [{"role": "assistant", "content": "Say more."}, turns[0]]
        rows.append(
            {
                "prompt": turns,
                "chosen": "A good answer. " * (1 + n % 4),
                "rejected": "Ugh, no " * (1 + n % 3),
                "chosen_finish_reason": "stop",
                "rejected_finish_reason": "length" if n == 3 else "stop",
            }
        )
    path = tmp_path_factory.mktemp("data") / "pairs.parquet"
    pl.DataFrame(rows, schema_overrides={"prompt": MESSAGES}).write_parquet(path)
    return path


@pytest.fixture(scope="session")
def dpo_job(pairs_file: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A DPO job that continues an adapter which SFT made."""
    from macpo_data.models.base import Base
    from macpo_data.recipe.training import DPO, SFT, Lora, Train
    from macpo_train.job import Job
    from macpo_train.train import train

    first = Job(
        dataset=pairs_file,
        column="chosen",
        base=Base(str(tiny_base), None),
        chat_template="tokenizer",
        start=None,
        out=tmp_path_factory.mktemp("start") / "adapter",
        settings=SFT(epochs=1, learning_rate=1e-2, batch_size=4),
        lora=Lora(targets=["q_proj", "v_proj"]),
        train=Train(dtype="float32"),
    )
    train(lambda *_: None, first)
    settings = DPO(learning_rate=1e-3, batch_size=4, reference="previous")
    return replace(first, start=first.out, settings=settings)


@pytest.fixture
def tiny_recipe(tmp_path: Path, tiny_base: Path) -> Path:
    """The small recipe with all agents on the tiny base."""
    values = yaml.safe_load(RECIPE)
    for agent in values["agents"].values():
        agent["base"] = str(tiny_base)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


Macpo = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def macpo(tmp_path: Path) -> Macpo:
    """Run the command as a person does, in a folder of its own."""

    def call(
        *args: str | Path, fake: bool = False, cwd: Path = tmp_path
    ) -> subprocess.CompletedProcess[str]:
        extra = ["--set", "engine.name=fake"] if fake else []
        return subprocess.run(
            [sys.executable, "-m", "macpo", *map(str, args), *extra],
            cwd=cwd,
            capture_output=True,
            text=True,
        )

    return call


@contextmanager
def no_progress(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """Progress that nobody watches."""
    yield lambda done, total, note: None


OpenRun = Callable[..., "Run"]


@pytest.fixture
def open_run(recipe_file: Path, tmp_path: Path) -> OpenRun:
    """A run on the fake engine, with settings laid over the recipe."""
    from macpo_data.loading.load import load_recipe
    from macpo_run.rounds import Run

    def call(*sets: str, file: Path = recipe_file, fake: bool = True) -> Run:
        engine = ["engine.name=fake"] if fake else []
        recipe = load_recipe(str(file), [*engine, *sets])
        return Run(recipe, tmp_path / "runs", no_progress, lambda line: None)

    return call
