"""What all benchmarks share: repeats, medians, and a row for RESULTS.md."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable

from macpo_data.models.base import gpus
from macpo_data.versions import versions


def peak_mib() -> float:
    """The most memory that was in use: of the GPU since `forget_peak`, else of this process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / (1 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_peak() -> None:
    """Begin anew; a process's own peak cannot be forgotten."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def clock() -> float:
    """Seconds, all work of the GPU done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


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
    cards = [card.split(",")[0] for card in gpus()]
    hardware = ", ".join([*cards, f"{os.cpu_count()} cores {platform.machine()}"])
    installed = versions()["versions"]
    tested = " ".join(f"{name} {installed[name]}" for name in ("torch", "transformers", "polars"))
    cells = [what, result, f"`{command}`", hardware, tested, time.strftime("%Y-%m-%d"), commit]
    print("| " + " | ".join(cells) + " |")
