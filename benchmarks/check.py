"""`macpo check` of 100,000 and 1,000,000 pairs, with a test set: its time, and its peak memory.

Each size runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import time
from multiprocessing.queues import Queue
from pathlib import Path

import polars as pl

from benchmarks.rows import row
from macpo_data.forms import check
from macpo_data.recipe.data import Columns
from macpo_data.schema import MESSAGES
from macpo_data.sources.ingest.canonical import TRAINABLE
from macpo_data.sources.ingest.door import open_rows
from macpo_data.sources.ingest.splits import Dataset

SIZES = (100_000, 1_000_000)
PART = 50_000  # rows made at once
TESTS = 1_000


def pairs_file(path: Path, rows: int) -> None:
    """So many pairs as messages, of about 300 characters a side; one prompt of ten comes again."""
    import pyarrow.parquet as pq

    writer = None
    for at in range(0, rows, PART):
        n = pl.int_range(at, min(at + PART, rows))
        text = pl.concat_str(pl.lit("an answer of some length, number "), n, pl.lit(". "))
        asked = pl.format("Question {} about a matter of some weight?", n - n % 10 // 9)
        columns = {"prompt": asked} | {
            side: text.repeat_by(8).list.join(f"{word} ")
            for side, word in (("chosen", "good"), ("rejected", "bad"))
        }
        turns = {
            name: pl.concat_list(
                pl.struct(role=pl.lit("user" if name == "prompt" else "assistant"), content=value)
            ).cast(MESSAGES)
            for name, value in columns.items()
        }
        table = pl.select(value.alias(name) for name, value in turns.items()).to_arrow()
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None
    writer.close()


def _resident() -> float:
    """MiB of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def _measure(path: Path, queue: Queue[tuple[float, float, int]]) -> None:
    tests = pl.Series([f"Question {n} about a matter of some weight?" for n in range(TESTS)])
    start, begun = _resident(), time.perf_counter()
    rows = open_rows(Dataset(str(path)), Columns(), takes=TRAINABLE)
    again = "the prompt occurred before"
    listed = {each.what: each.count for each in check.findings(rows, tests=[tests])}
    check.readings(rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    queue.put((time.perf_counter() - begun, peak - start, listed[again]))


def main() -> None:
    """A row for each size."""
    context = multiprocessing.get_context("spawn")
    for size in map(int, sys.argv[1:]) if sys.argv[1:] else SIZES:
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "pairs.parquet"
            pairs_file(path, size)
            queue: Queue[tuple[float, float, int]] = context.Queue()
            process = context.Process(target=_measure, args=(path, queue))
            process.start()
            seconds, above, again = queue.get()
            process.join()
        assert again == size // 10, again
        result = (
            f"{seconds:.1f} s, {1e6 * seconds / size:.0f} us a row; peak {above:,.0f} MiB above"
        )
        row(f"check {size:,} pairs against {TESTS:,} test prompts", f"{result} the start",
            "python -m benchmarks.check")  # fmt: skip


if __name__ == "__main__":
    main()
