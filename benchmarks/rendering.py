"""Select, write, render and load 1,000,000 pairs, against building the same rows in memory.

Each way runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.rows import row
from macpo_data.hub.index import config_name
from macpo_data.hub.tree import assemble, render_step
from macpo_data.loading.load import load_recipe
from macpo_data.methods.registry import make_plan
from macpo_data.plan import Plan, Step
from macpo_data.schema import MESSAGES, PAIRS
from macpo_data.store.store import Store

ROWS = 1_000_000
PART = 50_000  # rows made at once, so that making them takes no memory worth speaking of


def pairs_file(path: Path) -> None:
    """A million pairs, of about 330 characters a side, written part by part."""
    import pyarrow.parquet as pq

    writer = None
    for at in range(0, ROWS, PART):
        ids = pl.DataFrame({"n": pl.int_range(at, at + PART, eager=True)})
        text = pl.concat_str(pl.lit("an answer of some length, number "), pl.col("n"), pl.lit(". "))
        asked = pl.struct(role=pl.lit("user"), content=pl.format("Question {}?", "n"))
        values: dict[str, pl.Expr] = {
            "prompt_id": pl.format("{}", pl.col("n").hash()),
            "prompt": pl.concat_list(asked).cast(MESSAGES),
            "chosen": text.repeat_by(8).list.join("good "),
            "rejected": text.repeat_by(8).list.join("bad "),
        }
        for side in ("chosen", "rejected"):
            values |= {
                f"{side}_{name}": pl.lit("x") for name in ("agent", "policy", "finish_reason")
            }
            number = pl.col("n").cast(pl.Float64) % 97 + 1
            names = ("sum_logprob", "eot_logprob", "perplexity")
            values |= {f"{side}_{name}": number for name in names}
            values[f"{side}_num_tokens"] = pl.col("n") % 97 + 1
        part = ids.select(values[name].cast(dtype).alias(name) for name, dtype in PAIRS.items())
        table = part.to_arrow()
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None
    writer.close()


def stored(folder: Path) -> tuple[Plan, Store, Step]:
    """A store that holds them as the student's dataset of round 1."""
    recipe = load_recipe("quickstart", ["engine.name=fake"])
    plan, store = make_plan(recipe), Store(folder / "run")
    step = next(
        s for s in plan.steps if (s.kind, s.round, s.learner) == ("gen", 1, recipe.students[0])
    )
    target = store.clear(plan.name(step))
    shutil.copyfile(folder / "pairs.parquet", target / "pairs.parquet")
    counts: dict[str, Any] = {"pairs": ROWS, "prompts": ROWS, "candidates": 0}
    counts |= {f"{what}_by_reason": {} for what in ("dropped", "caught")}
    counts["chosen_by_agent"] = {"x": ROWS}
    facts = {
        "versions": {},
        "python": "",
        "method": "macpo",
        "fingerprint": plan.fingerprint(step),
        "reads": {},
    }
    store.finish(plan.name(step), {**facts, "summary": counts})
    return plan, store, step


def ours(folder: Path) -> None:
    """Render all configurations, the card and the index."""
    plan, store, step = stored(folder)
    to = folder / "tree"
    to.mkdir()
    entry = render_step(plan, store, step, to)
    for path, content in assemble({config_name(1, step.learner): entry}, None).items():
        (to / path).write_bytes(content)


def one_config(folder: Path) -> None:
    """Only the main configuration: what `theirs` makes."""
    from macpo_data.hub.provenance import writers
    from macpo_data.hub.rows import published
    from macpo_data.hub.shards import Shards, batches
    from macpo_data.schema import PUBLISHED

    plan, store, step = stored(folder)
    shards, known = Shards(folder / "one", "pairs", PUBLISHED), writers(plan, store)
    for pairs in batches(folder / "pairs.parquet"):
        shards.write(published(pairs, step, known))
    shards.close()


def theirs(folder: Path) -> None:
    """The rows of the main configuration as a list, to a Dataset, to parquet."""
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    rows = pl.read_parquet(folder / "pairs.parquet").to_dicts()
    for each in rows:
        each["chosen_text"], each["rejected_text"] = each["chosen"], each["rejected"]
        for side in ("chosen", "rejected"):
            each[side] = [{"role": "assistant", "content": each[side]}]
    Dataset.from_list(rows).to_parquet(str(folder / "theirs.parquet"))


def load(folder: Path) -> None:
    """What a trainer does first: load_dataset from the folder, and a look at every prompt_id."""
    from datasets import load_dataset
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    (name,) = json.loads((folder / "tree/macpo/index.json").read_text())
    rows = load_dataset(str(folder / "tree"), name, split="train", cache_dir=str(folder / "cache"))
    assert len(rows) == ROWS and len(rows.with_format("arrow")[:]["prompt_id"]) == ROWS


def selecting(folder: Path) -> None:
    """Lowest perplexity of 1,000,000 candidates, paired and written."""
    from benchmarks.selecting import frames
    from macpo_data.generation import select
    from macpo_data.recipe.generation import Select
    from macpo_data.store.store import write_parquet

    prompts, candidates, rejected = frames()
    ranked = select.by_perplexity(candidates, rejected, Select())
    write_parquet(folder / "selected.parquet", select.pair(prompts, ranked, rejected)[0])


def measured(work: Callable[[Path], None], folder: Path) -> tuple[float, float]:
    """Seconds and peak MiB of a piece of work, alone in a process."""
    context = multiprocessing.get_context("spawn")
    queue: Queue[tuple[float, float]] = context.Queue()
    process = context.Process(target=_measure, args=(work, folder, queue))
    process.start()
    process.join()
    if process.exitcode:
        raise EOFError
    return queue.get()


def _measure(work: Callable[[Path], None], folder: Path, queue: Queue[tuple[float, float]]) -> None:
    begun = time.perf_counter()
    work(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    queue.put((time.perf_counter() - begun, peak))


def main() -> None:
    """A row for each."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pairs_file(folder / "pairs.parquet")
        tasks = {
            "render 1,000,000 pairs: three configurations, card, index": ours,
            "render 1,000,000 pairs: the main configuration alone": one_config,
            "the same rows by Dataset.from_list and to_parquet": theirs,
            "load_dataset of the rendered 1,000,000 pairs": load,
            "select, pair and write from 1,000,000 candidates": selecting,
        }
        for what, work in tasks.items():
            try:
                seconds, peak = measured(work, folder)
                result = f"{seconds:.1f} s; peak {peak:,.0f} MiB"
            except EOFError:
                result = "ran out of memory"
            row(what, result, "python -m benchmarks.rendering")


if __name__ == "__main__":
    main()
