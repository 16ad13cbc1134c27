"""Kills: a command is killed again and again until it ends by itself; nothing may be lost.

Half of the kills come right before a change of the disk, whichever that is, the others at any
moment. After each, what looks finished has to be whole; at the end all has to be as it is after one
undisturbed run.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.attack import store
from benchmarks.attack.command import run


@dataclass(frozen=True)
class Target:
    """A command to kill."""

    name: str
    args: tuple[str, ...]
    starts: str  # "new" place, or the "finished" run
    changes: int  # of the disk, about, in one go
    writes: str = "."  # what it writes, below the place


TARGETS = [
    Target("gen and train", store.WHOLE, "new", 900),
    Target("train", ("train", "--round", "1", "--redo"), "finished", 120),
    Target("eval", ("eval", "--round", "all", "--redo"), "finished", 60),
    Target("report", ("report", "--to", "page.html"), "finished", 8),
    Target("push to a folder", ("push", "--round", "1", "--to", "tree"), "finished", 120, "tree"),
    Target(
        "push another round beside it",
        ("push", "--round", "0", "--to", "tree", "--candidates"),
        "pushed",
        120,
        "tree",
    ),
]


def kills(folder: Path, count: int, seed: int) -> Iterator[str]:
    """Kill each of TARGETS in turn, `count` times in all.

    Yields:
        Each kill as an empty text, and each fault as a line.
    """
    rng = random.Random(seed)
    starts = {"new": store.new_place(folder / "new"), "finished": store.finished(folder / "whole")}
    starts["pushed"] = shutil.copytree(starts["finished"], folder / "pushed")
    run(("push", "--round", "1", "--to", "tree"), starts["pushed"], limit=60)
    undisturbed = {}
    for target in TARGETS:
        place = shutil.copytree(starts[target.starts], folder / "undisturbed" / target.name)
        run(target.args, place, limit=120)
        undisturbed[target.name] = store.content(place)
    kills = trial = 0
    while kills < count:
        target = TARGETS[trial % len(TARGETS)]
        place = shutil.copytree(starts[target.starts], folder / f"trial-{trial}")
        trial += 1
        for fault in _until_it_ends(target, place, rng):
            kills += not fault
            yield fault and f"{target.name}, trial {trial}: {fault}"
            if kills >= count:
                break
        else:
            differs = store.difference(store.content(place), undisturbed[target.name])
            for path in differs:
                yield f"{target.name}, trial {trial}: {path} is not as after one run"
        shutil.rmtree(place)


def _until_it_ends(target: Target, place: Path, rng: random.Random) -> Iterator[str]:
    """Kill a command until it ends by itself; a text for each kill, or what was wrong."""
    for attempt in range(40):
        if attempt == 39:
            die_at = die_after = None
        elif rng.random() < 0.5:
            die_at, die_after = rng.randint(1, max(2, target.changes // 5)), None
        else:
            die_at, die_after = None, rng.uniform(0.05, 1.0)
        ended = run(target.args, place, limit=120, die_at=die_at, die_after=die_after)
        if not ended.was_killed:
            yield from ended.faults()
            if ended.code != 0:
                yield f"exit {ended.code}: {ended.stderr.strip()[-200:]}"
            return
        yield ""
        yield from store.half_done(place)
