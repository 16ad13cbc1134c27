"""Damages: files of a run or of a published round are spoilt, one at a time, and then read.

A command may refuse what is damaged in one line, or make it anew; it may not end in a traceback,
hang, or use it in silence: where it ends well, its page or tree is as without the damage.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.attack import store
from benchmarks.attack.command import Ended, run
from macpo_data.store.manifests import MANIFEST, seal

JUNK: tuple[Any, ...] = (
    None,
    0,
    -1,
    1.5,
    True,
    "",
    "\x1b[31m\u202e",
    [],
    {},
    [[]],
    {"a": None},
    10**30,
)


def _cut(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(max(1, path.stat().st_size)))


def _flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))


def _noise(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(rng.randrange(1, 5000)))


def _empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def _deep(path: Path, rng: random.Random) -> None:
    path.write_bytes(b'{"a":' * 100_000 + b"1" + b"}" * 100_000)


def _huge(path: Path, rng: random.Random) -> None:
    os.truncate(path, 1 << 31)  # sparse: two GiB of zeros


def _gone(path: Path, rng: random.Random) -> None:
    path.unlink()


def _folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _loop(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _dangling(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _other(path: Path, rng: random.Random) -> None:
    """Another file of the same name in its place."""
    others = [p for p in path.parents[2].rglob(path.name) if p != path and p.is_file()]
    if others:
        shutil.copyfile(rng.choice(others), path)


def _edited(path: Path, rng: random.Random) -> None:
    """Another value somewhere in JSON, under a seal that is right; any other file becomes noise."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        return _noise(path, rng)
    at = value
    while isinstance(at, dict | list) and at:
        key = rng.choice(sorted(at) if isinstance(at, dict) else range(len(at)))
        if not isinstance(at[key], dict | list) or not at[key] or rng.random() < 0.3:
            at[key] = rng.choice(JUNK)
            break
        at = at[key]
    if path.name == MANIFEST and isinstance(value, dict):
        value["seal"] = seal(value)
    path.write_text(json.dumps(value), "utf-8")


def _rows(path: Path, rng: random.Random) -> None:
    """A parquet file of other columns; of another file, noise."""
    if path.suffix != ".parquet":
        return _noise(path, rng)
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"\x1b[31mx": [1, 2], "prompt": [None, None]}), path)


Damage = Callable[[Path, random.Random], None]
DAMAGES: list[Damage] = [
    _cut, _flip, _noise, _empty, _deep, _huge, _gone, _folder, _loop, _dangling, _other, _edited,
    _edited, _edited, _rows,
]  # fmt: skip

READERS = [
    ("status",),
    ("show", "--round", "1"),
    ("report", "--to", "page.html"),
    ("push", "--round", "1", "--to", "tree"),
    ("push", "--round", "0", "--to", "tree", "--candidates"),
    ("eval", "--round", "all"),
    ("clean",),
    ("gen", "--round", "2", "--dry-run"),
    ("diff", "runs/test/data/{data}/pairs.parquet", "tree"),
    ("run", "--until", "1"),
]


def damaged_stores(folder: Path, count: int, seed: int) -> Iterator[str]:
    """Spoil a file of a finished run and let each of READERS read it, `count` times.

    Yields:
        Each reading as an empty text, and each fault as a line.
    """
    rng = random.Random(seed)
    whole = store.finished(folder / "whole")
    run(READERS[3], whole, limit=60)
    named = next(p.name for p in sorted((whole / "runs/test/data").glob("round-1-student-*")))
    readers = [tuple(word.format(data=named) for word in args) for args in READERS]
    files = [p.relative_to(whole) for p in sorted(whole.glob("runs/test/**/*"))]
    files = [p for p in files if (whole / p).is_file() and ".locks" not in p.parts]
    undisturbed = {args: _made(whole, folder / "once", args)[1] for args in readers}
    for trial in range(count):
        file, damage = rng.choice(files), rng.choice(DAMAGES)
        spoilt = shutil.copytree(whole, folder / "spoilt")
        damage(spoilt / file, rng)
        # Reading by one command may mend it, so each gets its own copy.
        for args in readers:
            ended, shown = _made(spoilt, folder / "once", args)
            where = f"{trial}: {file}, {damage.__name__[1:]}: macpo {' '.join(args)}"
            yield from (f"{where}: {fault}" for fault in ended.faults())
            if ended.code == 0 and shown != undisturbed[args]:
                yield f"{where}: used in silence, {store.difference(shown, undisturbed[args])[:3]}"
            yield ""
        shutil.rmtree(spoilt)


def _made(place: Path, copy: Path, args: tuple[str, ...]) -> tuple[Ended, dict[str, str]]:
    """Run a command in a copy of a place: how it ended, and what it published or showed."""
    shutil.copytree(place, copy, symlinks=True)
    try:
        ended = run(args, copy)
        if args[0] == "push":
            return ended, store.content(copy / "tree")
        shown = {"stdout": ended.stdout} if args[0] in ("show", "diff") else {}
        return ended, shown
    finally:
        shutil.rmtree(copy)


PULLERS = [
    ("pull", "tree", "--round", "1"),
    ("pull", "tree", "--round", "1", "--learner", "student"),
    ("check", "tree"),
    ("train", "--dataset", "tree", "--base", "world:strong", "--out", "adapter", "--set",
     "engine.name=fake"),
    ("push", "--round", "0", "--to", "tree"),
]  # fmt: skip


def damaged_rounds(folder: Path, count: int, seed: int) -> Iterator[str]:
    """Spoil a file of a published round and let each of PULLERS read it, `count` times.

    Yields:
        Each reading as an empty text, and each fault as a line.
    """
    rng = random.Random(seed)
    whole = store.finished(folder / "whole")
    run(("push", "--round", "1", "--to", "tree", "--candidates"), whole, limit=60)
    place = folder / "place"
    place.mkdir()
    shutil.copytree(whole / "tree", place / "tree")
    files = [p.relative_to(place) for p in sorted(place.rglob("*")) if p.is_file()]
    undisturbed = {args: _pulled(place, whole, folder / "once", args)[1] for args in PULLERS}
    for trial in range(count):
        file, damage = rng.choice(files), rng.choice(DAMAGES)
        spoilt = shutil.copytree(place, folder / "spoilt")
        damage(spoilt / file, rng)
        for args in PULLERS:
            ended, shown = _pulled(spoilt, whole, folder / "once", args)
            where = f"{trial}: {file}, {damage.__name__[1:]}: macpo {' '.join(args)}"
            yield from (f"{where}: {fault}" for fault in ended.faults())
            if ended.code == 0 and shown != undisturbed[args]:
                yield f"{where}: used in silence, {store.difference(shown, undisturbed[args])[:3]}"
            # Of a round that it refused, other learners' datasets may be here, each whole.
            if args[0] == "pull" and not shown.items() <= undisturbed[args].items():
                yield f"{where}: left {store.difference(shown, undisturbed[args])[:3]}"
            yield ""
        shutil.rmtree(spoilt)


def _pulled(
    place: Path, whole: Path, copy: Path, args: tuple[str, ...]
) -> tuple[Ended, dict[str, str]]:
    """Run a command beside a copy of a published round: how it ended, and what it brought."""
    shutil.copytree(place, copy, symlinks=True)
    try:
        if args[0] == "push":
            shutil.copytree(whole / "runs", copy / "runs")
            shutil.copyfile(whole / "macpo.yaml", copy / "macpo.yaml")
        ended = run(args, copy)
        if args[0] == "pull":
            shown = store.content(copy / "runs") if (copy / "runs").exists() else {}
            shown = {path: sha for path, sha in shown.items() if not path.endswith("lock.json")}
            if (copy / "macpo.yaml").exists():
                shown |= {"macpo.yaml": (copy / "macpo.yaml").read_text("utf-8")}
            return ended, shown
        if args[0] == "train":
            weights = copy / "adapter" / "adapter_model.safetensors"
            return ended, {"adapter": weights.read_bytes().hex()} if weights.exists() else {}
        return ended, {}
    finally:
        shutil.rmtree(copy)
