"""Score K responses to each prompt in one pass, against one sequence per response.

Both run in turn on the same requests: real prompts of several turns, responses drawn from the same
data. The scores have to agree.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.models import dialogues, save_base
from benchmarks.rows import row
from macpo_data.engines import ScoreRequest, Voice
from macpo_data.engines.transformers import TransformersEngine
from macpo_data.models import Base
from macpo_data.recipe import Engine


def main() -> None:
    """One row for each K."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    frame = dialogues(asked.prompts)
    texts = frame["chosen"].to_list() + frame["rejected"].to_list()
    with tempfile.TemporaryDirectory() as folder:
        base = Base(str(save_base(Path(folder))), None)
        engines = [
            TransformersEngine(base, Engine(batch_size=24, dtype="float32", shared_prompt=shared))
            for shared in (True, False)
        ]
        for answers in (3, 8):
            requests = [
                ScoreRequest(
                    Voice(None, "tokenizer", "base"),
                    prompt,
                    texts[(n + 7 * k) % len(texts)],
                    True,
                    "group",
                )
                for n, prompt in enumerate(frame["prompt"].to_list())
                for k in range(answers)
            ]
            seconds: list[list[float]] = [[], []]
            for repeat in range(asked.repeats + 1):
                found = []
                for engine, times in zip(engines, seconds, strict=True):
                    begun = time.perf_counter()
                    found.append(dict(engine.score(requests)))
                    if repeat:  # the first warms up
                        times.append(time.perf_counter() - begun)
            pairs = [(found[0][i], found[1][i]) for i in range(len(requests))]
            apart = max(abs(a.sum_logprob - b.sum_logprob) for a, b in pairs if a and b)
            ratios = [plain / shared for shared, plain in zip(*seconds, strict=True)]
            row(
                f"score {answers} responses to each of {asked.prompts} HH prompts of several "
                f"turns, shared prompt against plain, median of {asked.repeats}",
                f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f}), "
                f"{len(requests) / statistics.median(seconds[0]):.1f} responses/s, "
                f"largest difference {apart:.1e} nats",
                "python -m benchmarks.scoring",
            )


if __name__ == "__main__":
    main()
