"""What all benchmarks share: repeats, medians, and a row for RESULTS.md."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable

from macpo_data.generate import versions


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The median time of a piece of work."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def row(what: str, result: str, command: str) -> None:
    """Print a line for the table in RESULTS.md."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    hardware = f"{os.cpu_count()} cores {platform.machine()}"
    found = versions()["versions"]
    said = " ".join(f"{name} {found[name]}" for name in ("torch", "transformers", "polars"))
    cells = [what, result, f"`{command}`", hardware, said, time.strftime("%Y-%m-%d"), commit]
    print("| " + " | ".join(cells) + " |")
