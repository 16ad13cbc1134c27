"""`python -m benchmarks.attack [PART ...]`: attacks the program and prints a row for each part.

The exit status is 1 where anything went wrong; each fault is printed as it is met. Everything is
drawn from the seed, so that a fault can be met again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.attack import damages, hub, kills, recipes, words
from benchmarks.attack.command import imported
from benchmarks.rows import row

Faults = Iterator[str]  # an empty text for each attempt, a line for each fault
# What it attempts, how often in the whole campaign, and how: in a folder, so often, from a seed.
PARTS: dict[str, tuple[str, int, Callable[[Path, int, int], Faults]]] = {
    "kills": ("kills over gen, train, eval, report, push", 320, kills.kills),
    "stores": ("files of a run damaged, each read by 10 commands", 100, damages.damaged_stores),
    "rounds": ("files of a published round damaged, read by 5", 100, damages.damaged_rounds),
    "hub": ("pushes to a Hub cut off, left alone or killed at each request", 504, hub.disturbed),
    "recipes": ("damaged recipes over all shipped ones", 320, recipes.damaged_recipes),
    "texts": ("commands on hostile texts", 1, lambda folder, _count, _seed: words.texts(folder)),
    "secrets": ("secrets in recipes", 1, lambda folder, _, seed: words.secrets(folder, seed)),
    "templates": ("chat templates that fail", 1, lambda folder, *_: words.templates(folder)),
}


def attack(part: str, share: float, seed: int) -> tuple[int, list[str]]:
    """Run a part of the campaign, or a share of it.

    Returns:
        How many attempts there were, and what went wrong.
    """
    _, count, faults_of = PARTS[part]
    folder = Path(tempfile.mkdtemp(prefix=f"attack-{part}-"))
    attempts, faults = 0, []
    try:
        for fault in faults_of(folder, max(1, round(count * share)), seed):
            attempts += not fault
            if fault:
                faults.append(fault)
                print(f"{part}: {fault}", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return attempts, faults


def main() -> None:
    """Parse the command line and attack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the attempts")
    options = parser.parse_args()
    imported()
    failed = False
    for part in options.parts or PARTS:
        began = time.monotonic()
        attempts, faults = attack(part, options.share, options.seed)
        failed = failed or bool(faults)
        minutes = (time.monotonic() - began) / 60
        row(
            f"attack: {PARTS[part][0]}, seed {options.seed}",
            f"{attempts:,} attempts, {len(faults)} faults, {minutes:.1f} min",
            f"python -m benchmarks.attack {part}",
        )
    sys.exit(failed)


if __name__ == "__main__":
    main()
