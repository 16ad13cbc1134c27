"""MACPO through vLLM's own server: adapters are loaded as they are trained, and kills lose nothing.

What a server said is held against the same weights in the transformers engine, token for token.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any

import polars as pl
import pytest
import yaml
from conftest import RECIPE, make_tiny_base, no_progress
from test_kill import kill_until_done, matching, start

from benchmarks.vllm_server import VLLMServer, serve_base
from macpo_data.engines import openai
from macpo_data.engines.protocol import Request, Voice
from macpo_data.engines.transformers import TransformersEngine
from macpo_data.errors import ModelError
from macpo_data.generation import mixture as mixtures
from macpo_data.loading.load import load_recipe
from macpo_data.models.base import Base
from macpo_data.recipe.agents import Endpoint
from macpo_data.recipe.engine import Engine
from macpo_data.recipe.generation import Mixture, Sampling
from macpo_data.schema import Message
from macpo_run.rounds import Run

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed (`make vllm`)", allow_module_level=True)

AGENTS = ("teacher1", "teacher2", "student")
PROMPTS = 48  # of D2
GREEDY = Sampling(temperature=0, max_new_tokens=12)
STUDENT = ["--round", "0", "--learner", "student", "-r", "recipe.yaml"]
SHARDS = "runs/test/samples/*/shards/*.parquet"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Heads of 32, the smallest that vLLM's CPU attention has."""
    return Base(str(make_tiny_base(tmp_path_factory.mktemp("tiny"), width=64)), None)


@pytest.fixture(scope="module")
def server(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    """With room for the nine policies of rounds 0 and 1."""
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with serve_base(base.id, 9, log) as running:
        yield running


@pytest.fixture(scope="module")
def trained(server: VLLMServer, base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at the point where the teacher's two adapters are to write for the student."""
    folder = tmp_path_factory.mktemp("trained")
    values = yaml.safe_load(RECIPE)
    values["agents"] = {name: values["agents"][name] for name in AGENTS}
    for agent in values["agents"].values():
        agent["base"] = base.id
        agent["endpoint"] = {"base_url": server.url, "model": "base", "adapters": "load"}
        agent["endpoint"] |= {"concurrency": 4, "retries": 400, "max_failed": 0}
    values["data"]["d2"]["count"] = PROMPTS
    values["sampling"] = GREEDY.model_dump()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    for kind in ("gen", "train"):
        teacher = ["--round", "0", "--learner", "teacher1", "-r", "recipe.yaml"]
        assert start(folder, kind, *teacher).wait(timeout=300) == 0
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def check(folder: Path, base: Base, parts: dict[str, int]) -> dict[str, Any]:
    """So many sample sets of each part; each holds each prompt once, with what its weights say.

    Returns:
        Their manifests by policy and part. A last character that is cut is left out by vLLM.
    """
    manifests, requests, written = {}, [], []
    for part, count in parts.items():
        folders = sorted((folder / "runs/test/samples").glob(f"*-{part}-*"))
        assert len(folders) == count
        (file,) = folder.glob(f"runs/test/data/prompts-*/{part}.parquet")
        prompts = pl.read_parquet(file).select("prompt_id", "prompt")
        for path in folders:
            manifest = json.loads((path / "manifest.json").read_text())
            manifests[f"{manifest['policy']} {part}"] = manifest
            rows = pl.concat(pl.read_parquet(f) for f in sorted(path.glob("shards/*.parquet")))
            assert sorted(rows["prompt_id"]) == sorted(prompts["prompt_id"])
            voice = Voice(str(folder / "runs/test" / manifest["adapter"]), "tokenizer", path.name)
            asked = rows.join(prompts, on="prompt_id", maintain_order="left")["prompt"]
            requests += [Request(voice, prompt, GREEDY, 0, path.name) for prompt in asked]
            written += [text.rstrip("\ufffd") for text in rows["response"]]
    answers = dict(TransformersEngine(base, Engine()).generate(requests))
    assert written == [str(answers[i].text).rstrip("\ufffd") for i in range(len(requests))]
    assert len(set(written)) > len(manifests)
    return manifests


def test_gen_that_is_killed_asks_only_for_the_rest(copy: Path, base: Base) -> None:
    """Round 0's teacher writes for the student; the server outlives those who ask it."""
    assert kill_until_done(copy, ["gen", *STUDENT], SHARDS, [2, 9]) >= 1
    first = check(copy, base, {"d2": 2})["teacher1-negative-0 d2"]
    (line,) = first["endpoints_with_others"].values()
    assert 0 < line["attempts"] < 2 * PROMPTS  # both adapters' answers are asked for together


def test_a_server_that_is_killed_and_comes_back(
    copy: Path, server: VLLMServer, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on by itself: the new server is told of the adapter that it does not know."""
    monkeypatch.setattr(openai, "MAX_PAUSE", 2.0)
    monkeypatch.chdir(copy)

    ended = Event()

    def restart() -> None:
        while len(matching(copy, SHARDS)) < 6 and not ended.is_set():
            time.sleep(0.002)
        server.kill()
        server.start()

    with (
        Run(load_recipe("recipe.yaml"), copy / "runs", no_progress, print) as run,
        ThreadPoolExecutor(1) as pool,
    ):
        restarted = pool.submit(restart)
        try:
            run.make("gen", 0, "student")
        finally:
            ended.set()
        restarted.result()
    first = check(copy, base, {"d2": 2})["teacher1-negative-0 d2"]
    (line,) = first["endpoints_with_others"].values()
    assert line["repeated"]["no connection"] >= 4 and not line["failed"]
    assert line["repeated"]["adapter not loaded yet"] >= 1


def test_rounds_0_and_1(copy: Path, base: Base) -> None:
    """Two teachers' adapters side by side, then student against teachers; all are evaluated."""
    assert start(copy, "run", "--until", "1", "-r", "recipe.yaml").wait(timeout=300) == 0
    manifests = check(copy, base, {"d2": 6, "test": 9})
    assert {m["engine"] for m in manifests.values()} == {"openai"}


def test_a_mixture_behind_one_server(
    trained: Path, server: VLLMServer, base: Base, tmp_path: Path
) -> None:
    """MoAA's SFT data: the aggregator reads what two adapters of the same server propose.

    As in `check`, a last character that is cut is left out by vLLM.
    """
    adapters = sorted((trained / "runs/test/adapters").iterdir())
    proposers = {"one": adapters[0], "two": adapters[1]}
    for name, adapter in proposers.items():
        server.load(name, adapter)
    (tmp_path / "merge.txt").write_text("Merge these: $answers")
    at = {"base_url": server.url, "max_failed": 0}
    agents: dict[str, dict[str, Any]] = {
        name: {"role": "proposer", "endpoint": at | {"model": name}} for name in proposers
    }
    agents["sum"] = {"role": "aggregator", "endpoint": at | {"model": "base"}}
    agents["student"] = {"role": "student", "base": base.id}
    mixture = Mixture(
        layers=[["one", "two"], ["sum"]], prompt=str(tmp_path / "merge.txt"), sampling=GREEDY
    )
    values = yaml.safe_load(RECIPE) | {"method": "moaa", "agents": agents}
    values |= {"mixture": mixture.model_dump(), "judge": {"kind": "gold"}}
    values["sampling"] |= {"n": 2}
    (tmp_path / "moaa.yaml").write_text(yaml.safe_dump(values))
    recipe = load_recipe(str(tmp_path / "moaa.yaml"))
    with Run(recipe, tmp_path / "runs", no_progress, print) as run:
        run.make("gen", 0)
        dataset = run.store.path(run.plan.name(run.plan.steps[0]))
    rows = pl.read_parquet(dataset / "pairs.parquet").select("prompt", "chosen")

    def exact(adapter: Path | None, prompts: list[list[Message]]) -> list[str]:
        voice = Voice(str(adapter) if adapter else None, "tokenizer", str(adapter))
        asked = [Request(voice, prompt, GREEDY, 0, "a") for prompt in prompts]
        answers = dict(TransformersEngine(base, Engine()).generate(asked))
        return [str(answers[i].text).rstrip("\ufffd") for i in range(len(asked))]

    proposals = [exact(adapter, rows["prompt"].to_list()) for adapter in adapters[:2]]
    merged = [
        mixtures.aggregation(mixture, prompt, list(answers))
        for prompt, *answers in zip(rows["prompt"], *proposals, strict=True)
    ]
    written = [text.rstrip("\ufffd") for text in rows["chosen"]]
    assert written == exact(None, merged) != exact(None, rows["prompt"].to_list())


@pytest.mark.parametrize(
    ("change", "why"), [({"r": 64}, "rank 64 is greater"), ({"use_dora": True}, "DoRA")]
)
def test_an_adapter_that_the_server_cannot_load_is_one_line(
    change: dict[str, Any], why: str, trained: Path, server: VLLMServer, tmp_path: Path
) -> None:
    adapter = next((trained / "runs/test/adapters").iterdir())
    shutil.copytree(adapter, tmp_path / "adapter")
    file = tmp_path / "adapter/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    at = Endpoint(base_url=server.url, model="base", adapters="load")
    voice = Voice(str(tmp_path / "adapter"), "tokenizer", f"x{why[:4]}", at)
    asked = Request(voice, [{"role": "user", "content": "Hello"}], GREEDY, 0, "a")
    with pytest.raises(ModelError, match=rf"does not load the adapter .*{why}") as refused:
        list(openai.OpenAIEngine().generate([asked] * 8))
    assert "\n" not in str(refused.value)
