"""Select and pair 1,000,000 candidates: filters, lowest perplexity per prompt, join."""

from __future__ import annotations

import random
import resource

import polars as pl

from benchmarks.rows import row, seconds
from macpo_data.generation import select
from macpo_data.recipe.generation import Select
from macpo_data.schema import CANDIDATES, MESSAGES, SAMPLES, SCORES

PROMPTS, WRITERS = 250_000, 4


def frames() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Prompts, four candidates each of about 500 characters, and a rejected response each."""
    rng = random.Random(0)
    words = [f"word{n} " for n in range(1000)]
    bodies = ["".join(rng.choices(words, k=65)) for _ in range(2000)]
    ids = [f"{n:064x}" for n in range(PROMPTS)]
    message = pl.Series([[{"role": "user", "content": "What now?"}]], dtype=MESSAGES)
    prompts = pl.DataFrame({"prompt_id": ids}).with_columns(
        prompt=message.new_from_index(0, PROMPTS)
    )

    def samples(writers: int) -> pl.DataFrame:
        rows = PROMPTS * writers
        text = pl.Series(bodies).sample(rows, with_replacement=True, seed=writers)
        return pl.DataFrame(
            {
                "prompt_id": pl.Series(ids).sample(rows, with_replacement=True, seed=7)
                if writers > 1
                else pl.Series(ids),
                "agent": [f"teacher{n % writers}" for n in range(rows)],
                "policy": ["0" * 8] * rows,
                "draw": [0] * rows,
                "response": text,
                "finish_reason": rng.choices(["stop", "length"], weights=[9, 1], k=rows),
                "repetition": [rng.random() for _ in range(rows)],
                "sum_logprob": [-100 * rng.random() for _ in range(rows)],
                "num_tokens": [100] * rows,
                "eot_logprob": [-0.1] * rows,
                "perplexity": [1 + 30 * rng.random() for _ in range(rows)],
            },
            schema={**SAMPLES, **SCORES},
        )

    return prompts, samples(WRITERS), samples(1)


def peak_mib() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Five runs; the memory is what they add to that of the input."""
    prompts, candidates, rejected = frames()
    before = peak_mib()
    settings = Select(max_perplexity=30.0, max_chars=4000, max_repetition=0.9)

    def work() -> tuple[pl.DataFrame, pl.DataFrame]:
        ranked = select.by_perplexity(candidates, rejected, settings)
        assert set(ranked.columns) == set(CANDIDATES)
        return select.pair(prompts, ranked, rejected)

    median = seconds(work, 5)
    pairs, dropped = work()
    row(
        f"select and pair {len(candidates):,} candidates, median of 5",
        f"{median:.2f} s ({len(pairs):,} pairs, {len(dropped):,} dropped); "
        f"peak {peak_mib():,.0f} MiB, {peak_mib() - before:,.0f} above the input's",
        "python -m benchmarks.selecting",
    )


if __name__ == "__main__":
    main()
