"""The report of 5,000 pairs as long as real ones: its size, and how long a browser takes."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

from benchmarks.rows import row, seconds
from macpo_data.loading.load import load_recipe
from macpo_data.report.collect import Source, collect
from macpo_data.report.page import page
from macpo_data.schema import prompt_id
from macpo_data.store.store import write_parquet
from macpo_run.rounds import Run
from macpo_run.terminal.progress import progress

CHROMIUM = "chromium"
PAIRS = 5000
# Characters, about the means of HH-RLHF's harmless half.
PROMPT, ANSWER = 500, 250
SMALL = ("engine.name=fake", "data.d1.count=12", "data.d2.count=12", "data.test.count=12")


def big_run(folder: Path, rows: int = PAIRS) -> Source:
    """A run of the fake engine whose student has very many pairs in round 1."""
    with Run(load_recipe("quickstart", list(SMALL)), folder, progress, lambda line: None) as run:
        for each in range(2):
            run.finish_round(each)
        step = next(s for s in run.select("gen", 1, "student"))
        name = run.plan.name(step)
        manifest = run.store.manifest(name) or {}
        pairs, candidates = (run.store.read(name, f"{f}.parquet") for f in ("pairs", "candidates"))
        run.store.aside(name)
        place = run.store.clear(name)
        prompts = [[{"role": "user", "content": _text(n, "asks", PROMPT)}] for n in range(rows)]
        ids = pl.Series([prompt_id(prompt) for prompt in prompts])  # type: ignore[arg-type]
        long = pairs.sample(rows, with_replacement=True, seed=0).with_columns(
            prompt_id=ids, prompt=pl.Series(prompts, dtype=pairs.schema["prompt"]),
            chosen=_texts(rows, "good"), rejected=_texts(rows, "bad"),
        )  # fmt: skip
        others = [
            candidates.sample(rows, with_replacement=True, seed=n).with_columns(
                prompt_id=ids, response=_texts(rows, f"other {n}"), selected=pl.lit(False)
            )
            for n in range(2)
        ]
        write_parquet(place / "pairs.parquet", long)
        write_parquet(place / "candidates.parquet", pl.concat(others))
        run.store.finish(name, manifest)
        return Source("quickstart", run.plan, run.store)


def _text(n: int, word: str, chars: int) -> str:
    """Words that are no one else's, with what has to be escaped now and then."""
    return (f"{word} {n} <b>&amp; " + f"{word}{n} " * chars)[:chars]


def _texts(rows: int, word: str) -> pl.Series:
    return pl.Series([_text(n, word, ANSWER) for n in range(rows)])


def opened(path: Path, executable: str) -> float:
    """Seconds from the address to the drawn first screen, in a browser that is already there."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        sheet = browser.new_page()
        sheet.goto("about:blank")
        begun = time.perf_counter()
        sheet.goto(path.as_uri())
        sheet.wait_for_selector("html[data-ready]", state="attached")
        spent = time.perf_counter() - begun
        browser.close()
    return spent


def main() -> None:
    """Rows of making it and of opening it."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "report.html"
        source = big_run(Path(place))
        spent = seconds(lambda: path.write_text(page(collect([source])), "utf-8"), 1)
        shown = len(collect([source])["pairs"])
        size = path.stat().st_size / 1e6
        result = f"{spent:.1f} s; {size:.1f} MB; {shown:,} pairs shown"
        row(f"report of {PAIRS:,} pairs, written", result, "python -m benchmarks.report")
        executable = shutil.which(CHROMIUM)
        if executable is None:
            sys.exit("no chromium: opening it was not measured")
        times = sorted(opened(path, executable) for _ in range(5))
        result = f"{times[2]:.2f} s to the first screen ({times[0]:.2f} to {times[-1]:.2f})"
        row(f"report of {PAIRS:,} pairs, opened", result, "python -m benchmarks.report")


if __name__ == "__main__":
    main()
