"""macpo's mixture against distilabel's MixtureOfAgentsLLM on one server and the same prompts.

Two layers of four proposers, then the aggregator. Right is a request that holds each answer of the
layer before once, and nothing else of others. distilabel lives in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

BUILD = Path("build/distilabel")
PACKAGES = ["distilabel[openai]==1.5.3", "requests"]  # which it needs and does not ask for
PROPOSERS, AGGREGATOR = ("p0", "p1", "p2", "p3"), "aggregator"
BATCH = 50  # prompts per step of a distilabel pipeline, unless somebody sets it


def theirs(url: str, count: int, batch: int) -> None:
    """Runs in distilabel's environment; prints the seconds."""
    from distilabel.models import MixtureOfAgentsLLM, OpenAILLM

    def model(name: str) -> Any:
        settings = {"max_new_tokens": 2048, "temperature": 0.7}
        return OpenAILLM(model=name, base_url=url, api_key="none", generation_kwargs=settings)

    mixture = MixtureOfAgentsLLM(
        aggregator_llm=model(AGGREGATOR), proposers_llms=[model(p) for p in PROPOSERS], rounds=2
    )
    mixture.load()
    prompts = [[{"role": "user", "content": f"What is <{n}> to you?"}] for n in range(count)]
    begun = time.perf_counter()
    for at in range(0, count, batch):
        settings = mixture.get_generation_kwargs()
        mixture.generate_outputs(inputs=prompts[at : at + batch], **settings)
    print(time.perf_counter() - begun)


def ours(url: str, count: int, folder: Path) -> float:
    """Seconds of the same by macpo, with all its files."""
    from benchmarks.endpoints import questions, run_of
    from macpo_data.generation import mixture

    run = run_of(url, folder, layers=2)
    assert run.recipe.mixture
    begun = time.perf_counter()
    mixture.write(run.context(), run.recipe.mixture, questions(count))
    return time.perf_counter() - begun


def environment() -> Path:
    """Distilabel's own Python, installed once."""
    python = BUILD / "bin" / "python"
    if not python.exists():
        venv.create(BUILD, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return python


def right(seen: list[dict[str, Any]]) -> float:
    """Share of the requests to later layers that hold just what the layer before wrote."""
    later = [s["messages"] for s in seen if s["messages"][0]["role"] == "system"]
    good = 0
    for system, user in later:
        references = [f"{name} says: {user['content']}" for name in PROPOSERS]
        text = system["content"]
        good += text.count("<") == len(references) and all(
            text.count(each) == 1 for each in references
        )
    return good / len(later)


def main() -> None:
    """Each on a fresh server; a row for both."""
    from benchmarks.endpoints import server
    from benchmarks.rows import row

    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--latency", type=float, default=1.0)
    given = parser.parse_args()
    python = environment()
    results = {}
    for who, batch in (("macpo", 0), ("distilabel", BATCH), ("distilabel at once", given.prompts)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            log = folder / "seen.jsonl"
            with server(log, given.latency, ()) as url:
                if batch:
                    command = [str(python), "-W", "ignore", __file__, url, given.prompts, batch]
                    out = subprocess.run(
                        [str(c) for c in command], stdout=subprocess.PIPE, text=True, check=True
                    )
                    seconds = float(out.stdout)
                else:
                    seconds = ours(url, given.prompts, folder)
            seen = [json.loads(line) for line in log.open()]
        results[who] = f"{who} {len(seen) / seconds:.0f} requests/s, {right(seen):.0%} right"
    row(
        f"mixtures: {given.prompts} prompts, two layers of 4 proposers and an aggregator, 32 slots "
        f"each, answers of {given.latency:g} s; distilabel 1.5.3, batches of {BATCH}, and at once",
        "; ".join(results.values()),
        "make distilabel",
    )


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1].startswith("http"):
        theirs(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
