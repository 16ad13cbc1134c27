"""How busy the endpoint engine keeps a server: a mixture of four proposers and an aggregator.

1,000 prompts, answers that take a second, and 2 % of the attempts fail: 429, 500, or not JSON.
Kept is the share of the slots that each model has, from its first request to its last one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.rows import row
from macpo_data.generation import mixture
from macpo_data.recipe.recipe import Recipe
from macpo_data.schema import MESSAGES
from macpo_run.rounds import Run
from macpo_run.terminal.progress import progress

SLOTS = 32  # of each model
FAULTS = ("429=0.005", "500=0.01", "garbage=0.005")
PROPOSERS, AGGREGATOR = ("p0", "p1", "p2", "p3"), "aggregator"


@contextmanager
def server(log: Path, latency: float, faults: tuple[str, ...] = FAULTS) -> Iterator[str]:
    """The scripted server in a process of its own; yields its URL."""
    arguments = ["--port", "0", "--latency", str(latency), "--slots", str(SLOTS), "--log", str(log)]
    arguments += [part for fault in faults for part in ("--fault", fault)]
    command = [sys.executable, "-m", "tests.openai_server", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def kept(url: str) -> list[float]:
    """How busy each model was."""
    with urllib.request.urlopen(f"{url}/stats") as answer:
        return list(json.load(answer).values())


def questions(count: int) -> pl.DataFrame:
    """Prompts that can be told apart in whatever holds them."""
    prompts = [[{"role": "user", "content": f"What is <{n}> to you?"}] for n in range(count)]
    rows = {"prompt_id": [str(n) for n in range(count)], "prompt": prompts}
    return pl.DataFrame(rows, schema={"prompt_id": pl.String, "prompt": MESSAGES})


def run_of(url: str, folder: Path, layers: int = 1) -> Run:
    """A run whose proposers, in so many layers, and aggregator are models of that server."""
    agents: dict[str, Any] = {"student": {"role": "student", "base": "world:weak-a"}}
    for name in (*PROPOSERS, AGGREGATOR):
        role = "aggregator" if name == AGGREGATOR else "proposer"
        endpoint = {"base_url": url, "model": name, "concurrency": SLOTS, "timeout": 30}
        agents[name] = {"role": role, "endpoint": endpoint}
    values = {
        "run": "mixture",
        "method": "moaa",
        "rounds": 0,
        "data": {"source": "world"},
        "agents": agents,
        "mixture": {"layers": [list(PROPOSERS)] * layers + [[AGGREGATOR]]},
    }
    return Run(Recipe.model_validate(values), folder, progress, lambda line: None)


def check(answers: pl.DataFrame, seen: list[dict[str, Any]], count: int) -> None:
    """Nothing is lost, and everybody saw just what was meant for them."""
    last = answers.filter(pl.col("layer") == 1)
    assert len(answers) == 5 * count and last["response"].null_count() == 0
    for name in PROPOSERS:
        asked = {s["messages"][-1]["content"] for s in seen if s["model"] == name}
        assert asked == {f"What is <{n}> to you?" for n in range(count)}
    for request in (s for s in seen if s["model"] == AGGREGATOR):
        system, user = request["messages"]
        references = [f"{name} says: {user['content']}" for name in PROPOSERS]
        assert all(text in system["content"] for text in references)
        assert system["content"].count("<") == len(references)


def main() -> None:
    """One run; the lowest and the mean share of the five models."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--latency", type=float, default=1.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "seen.jsonl"
        with server(log, given.latency) as url:
            run = run_of(url, Path(folder))
            begun = time.perf_counter()
            assert run.recipe.mixture
            _, answers = mixture.write(run.context(), run.recipe.mixture, questions(given.prompts))
            seconds = time.perf_counter() - begun
            shares = kept(url)
        seen = [json.loads(line) for line in log.open()]
    check(answers, seen, given.prompts)
    failed = sum(s["outcome"] != "answered" for s in seen)
    row(
        f"endpoints: {given.prompts:,} prompts, 4 proposers and an aggregator, {SLOTS} slots each, "
        f"answers of {given.latency:g} s, {failed / len(seen):.1%} of {len(seen):,} tries failed",
        f"{statistics.mean(shares):.2f} of the possible concurrency kept (lowest model "
        f"{min(shares):.2f}), nothing lost, {len(seen) / seconds:.0f} requests/s",
        "python -m benchmarks.endpoints",
    )


if __name__ == "__main__":
    main()
