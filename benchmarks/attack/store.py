"""A small run on the fake engine to attack, and what must be true of it afterwards."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from benchmarks.attack.command import run
from macpo_data.store.manifests import MANIFEST

RECIPE = """
run: test
rounds: 1
data:
  source: world
  d1: {count: 10}
  probe: {count: 2}
  d2: {count: 10}
  test: {count: 6}
agents:
  teacher_1: {role: teacher, base: "world:weak-a"}
  teacher_2: {role: teacher, base: "world:weak-b"}
  student: {role: student, base: "world:strong"}
sampling: {max_new_tokens: 12}
select: {on_filter: count}
engine: {name: fake, shard_size: 4}
"""
WHOLE = ("run", "--until", "1")  # the command that finishes it
# Of no meaning for what a run holds: locks, notes of progress, what was moved aside.
_ASIDE = (".locks", ".lock.json.lock", "aside", ".progress", "logs")
# Of a manifest: when and how fast, not what.
_VOLATILE = ("created", "seal", "seconds", "seconds_with_others")


def new_place(folder: Path) -> Path:
    """A folder with the recipe in it, where commands take it by default."""
    folder.mkdir(parents=True)
    (folder / "macpo.yaml").write_text(RECIPE, "utf-8")
    return folder


def finished(folder: Path) -> Path:
    """The same with a finished run.

    Raises:
        RuntimeError: the run did not end well, undisturbed.
    """
    ended = run(WHOLE, new_place(folder), limit=120)
    if ended.code != 0:
        raise RuntimeError(f"the undisturbed run failed: {ended.stderr}")
    return folder


def half_done(root: Path) -> list[str]:
    """Results below a folder that look finished and are not what their manifests say."""
    wrong = []
    for path in root.glob(f"**/runs/*/*/*/{MANIFEST}"):
        if {"aside", "macpo"} & {*path.parts}:
            continue
        try:
            files = json.loads(path.read_bytes())["files"]
        except (ValueError, KeyError, TypeError):
            wrong.append(f"{path.parent.name}: its manifest is damaged")
            continue
        for name, sha in files.items():
            file = path.parent / name
            if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != sha:
                wrong.append(f"{path.parent.name}: {name} is not whole")
    return wrong


def content(root: Path) -> dict[str, str]:
    """Everything that a folder holds, by path: a hash of what it says."""
    files = (p for p in sorted(root.rglob("*")) if p.is_file() or p.is_symlink())
    return {
        str(path.relative_to(root)): _hash(path)
        for path in files
        if not {*_ASIDE} & {*path.relative_to(root).parts}
    }


def _hash(path: Path) -> str:
    data = path.read_bytes() if path.is_file() else b"no file"
    if path.name == MANIFEST and "tree" not in path.parts:
        data = json.dumps(_lasting(json.loads(data)), sort_keys=True).encode()
    if path.name == "evaluations.txt":  # a time and a name in each line
        data = b" ".join(sorted(line.split()[-1] for line in data.splitlines()))
    return hashlib.sha256(data).hexdigest()


def _lasting(value: object) -> object:
    """A manifest without what differs from one run to the next."""
    if isinstance(value, dict):
        return {k: _lasting(v) for k, v in value.items() if k not in _VOLATILE}
    return [_lasting(each) for each in value] if isinstance(value, list) else value


def difference(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Paths that only one of two folders has, or that differ."""
    return sorted(path for path in one.keys() | other.keys() if one.get(path) != other.get(path))
