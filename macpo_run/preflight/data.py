"""Whether the output can be written, and what is read is on this disk: adapters, pins, sources."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from macpo_data.errors import MacpoError
from macpo_data.models.weights import ADAPTER_FILES, CONFIG
from macpo_data.outside import parse_json, read_bytes
from macpo_data.plan import CHECKPOINTS, Plan, Step
from macpo_data.recipe.data import ReleaseData
from macpo_data.recipe.recipe import Recipe
from macpo_data.sources.files import is_local
from macpo_data.sources.parts import read_parts
from macpo_data.sources.places import all_paths
from macpo_data.store.store import Store
from macpo_run.preflight.finding import Checks, Health
from macpo_run.preflight.models import on_hub

SMALL = 50 << 20  # bytes of local data that are read to see whether there are enough rows


def existing(path: Path) -> Path:
    """The nearest folder above that is there."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())


def writable(root: Path, option: str = "--runs") -> Iterator[Health]:
    """Whether a folder can be written to; `option` is where a person names another one."""
    there = existing(root)
    mend = f"name another folder with {option}"
    if not there.is_dir():
        yield Health("problem", "output", f"{there} is a file", mend)
    elif not os.access(there, os.W_OK | os.X_OK):
        yield Health("problem", "output", f"{there} cannot be written", mend)


def policies(plan: Plan, store: Store, steps: Sequence[Step]) -> Checks:
    """What earlier steps trained and these ones go on from: that its files are there."""
    makers = {m for step in steps for p in step.policies if (m := plan.maker(p))}
    folders = [store.path(plan.name(maker)) for maker in makers if store.is_done(plan.name(maker))]
    return {f"policy {folder}": partial(_policy, folder) for folder in folders}


def _policy(folder: Path) -> Iterator[Health]:
    is_full = folder.parent.name == CHECKPOINTS
    what = "checkpoint" if is_full else "adapter"
    names = [CONFIG] if is_full else ADAPTER_FILES
    missing = [name for name in names if not (folder / name).is_file()]
    if is_full and not any(folder.glob("*.safetensors")):
        missing.append("its weights")
    if missing:
        yield Health(
            "problem", what, f"{folder} lacks {', '.join(missing)}",
            "restore it, or train it anew with --redo",
        )  # fmt: skip


def pinned(root: Path) -> dict[str, dict[str, Any]]:
    """What lock.json pins; nothing where it is not there or cannot be read."""
    try:
        pins = parse_json(read_bytes(root / "lock.json"))
        return {"models": pins.get("models", {}), "data": pins.get("data", {})}
    except (OSError, ValueError, AttributeError):
        return {"models": {}, "data": {}}


def sources(recipe: Recipe, root: Path) -> Checks:
    """The datasets that prompts are drawn from, and test sets that are kept out."""
    pins = pinned(root)["data"]
    paths = dict.fromkeys([*all_paths(recipe.data), *recipe.select.test_sets])
    if isinstance(recipe.data, ReleaseData):  # a folder, some MB of JSON
        del paths[recipe.data.path]
    far = [path for path in paths if not is_local(path)]
    revision = getattr(recipe.data, "revision", "main")
    checks: Checks = {
        f"hub dataset {path}": partial(_dataset, path, revision)
        for path in far
        if not any(key.startswith(f"{path}@") for key in pins)
    }
    if isinstance(recipe.data, ReleaseData):
        checks |= {f"data {recipe.data.path} {recipe.seed}": partial(_rows, recipe)}
    near = [path for path in paths if is_local(path)]
    files = [Path(path).expanduser() for path in near]
    if not near:
        return checks
    missing = [path for path, file in zip(near, files, strict=True) if not file.is_file()]
    small = sum(file.stat().st_size for file in files if file.is_file()) <= SMALL
    if missing or far or not small:
        return checks | {f"data {path}": partial(_file, path) for path in near}
    return checks | {f"data {near} {recipe.seed}": partial(_rows, recipe)}


def _file(path: str) -> Iterator[Health]:
    file = Path(path).expanduser()
    if not file.is_file():
        what = f"{path} is a folder; name its files" if file.is_dir() else f"no file {path}"
        yield Health("problem", "data", what, "check data.path, which starts at this folder")
    elif not os.access(file, os.R_OK):
        yield Health("problem", "data", f"{path} cannot be read", f"chmod +r {path}")


def _rows(recipe: Recipe) -> Iterator[Health]:
    """Local files hold rows enough: all parts are drawn, as the first step draws them."""
    try:
        read_parts(recipe.data, recipe.seed)
    except MacpoError as error:
        yield Health("problem", "data", str(error))


def _dataset(path: str, revision: str) -> Iterator[Health]:
    yield on_hub(path, revision, "dataset", lambda _: None)
