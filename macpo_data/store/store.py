"""The store: paths of results on disk. Nothing is overwritten; a manifest is written last.

A result is a folder. It is done when its `manifest.json` is there, which holds the sha256 of each
of its files, of the results it was made from, and of itself, so that an edit is noticed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import polars as pl

from macpo_data.errors import StoreError, of_run
from macpo_data.outside import open_bytes
from macpo_data.plan import MEASURED, Plan, Step, round_of
from macpo_data.recipe.section import digest
from macpo_data.store import locks
from macpo_data.store.manifests import MANIFEST as MANIFEST
from macpo_data.store.manifests import MAX_BYTES, AnyManifest, read_manifest, seal

Manifest = dict[str, Any]
M = TypeVar("M", bound=AnyManifest)
State = Literal["done", "ready", "waiting", "stale"]


THINNED = "thinned.json"  # beside the manifest of a checkpoint whose weights were removed

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def check_output(path: Path) -> None:
    """Refuse to write where no regular file can come to stand, before the work is done.

    A link is refused as well: whoever made it would lose either it or the file behind it.

    Raises:
        StoreError: a folder, a link, a device or a pipe is there.
    """
    try:
        kind = stat.S_IFMT(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if kind != stat.S_IFREG:
        what = _KINDS.get(kind, "a device")
        raise StoreError(f"{path} is {what}, and only a file can be written; choose another name")


def holds(path: Path, content: bytes) -> bool:
    """Whether a file has this content. One of another size is not read: it may have no end."""
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling to write to; it takes the name `path` when all went well.

    Raises:
        StoreError: something that is no regular file is there.
    """
    check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)  # as a person knows it
        raise
    finally:
        with suppress(OSError):  # a read-only disk refuses it too, and would name the temporary
            temporary.unlink()


@contextmanager
def naming(place: Path) -> Iterator[None]:
    """Name a file or folder in what the system refuses: of a full disk, it does not say which."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(place)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON that a person can read and a diff can show."""
    with atomic(path) as temporary:
        temporary.write_text(
            json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False), "utf-8"
        )


def write_parquet(path: Path, frame: pl.DataFrame) -> None:
    """Write a frame; the same frame gives the same bytes."""
    content = io.BytesIO()  # polars does not always say which of the system's errors it met
    frame.write_parquet(content, compression="zstd")
    with atomic(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def sha256(path: Path) -> str:
    """Hash a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Store:
    """The results of one run, by the names that its plan gives them."""

    def __init__(self, root: Path, say: Callable[[str], None] = lambda line: None) -> None:
        """`root` is runs/<run>; `say` prints a line where a person has to wait."""
        self.root = root
        self.say = say

    def path(self, name: str) -> Path:
        """Where a result lives."""
        return self.root / name

    def manifest(self, name: str) -> Manifest | None:
        """The manifest of a finished result, None if it is not finished.

        Raises:
            StoreError: the manifest was edited or truncated, or is another result's.
        """
        manifest = self._read(name)
        return manifest and manifest[0]

    def typed(self, name: str, kind: type[M]) -> M | None:
        """The same as the model of its kind.

        Raises:
            StoreError: the manifest was edited or truncated, or is of another kind.
        """
        manifest = self._read(name)
        if manifest is None:
            return None
        if not isinstance(manifest[1], kind):
            raise StoreError(
                f"{self.path(name)} is no result of this kind; run `{of_run('status')}`"
            )
        return manifest[1]

    def _read(self, name: str) -> tuple[Manifest, AnyManifest] | None:
        path = self.path(name) / MANIFEST
        try:
            with open_bytes(path) as file:
                content = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        return read_manifest(content, name, path)

    def is_done(self, name: str) -> bool:
        """Whether a result is finished."""
        return self.typed(name, AnyManifest) is not None

    def content(self, name: str) -> str | None:
        """The sha256 over a finished result's files, None if it is not finished."""
        manifest = self.typed(name, AnyManifest)
        return None if manifest is None else manifest.content

    def read(self, name: str, file: str) -> pl.DataFrame:
        """Read a table of a finished result, after checking its bytes.

        Raises:
            StoreError: the result is missing, or the file is not as it was written.
        """
        self.verify(name, file)
        return pl.read_parquet(self.path(name) / file)

    def verify(self, name: str, *files: str) -> Manifest:
        """Check that the named files (or all) of a result are as they were written."""
        manifest = self.manifest(name)
        if manifest is None:
            raise StoreError(f"{self.path(name)} is not finished; run `{of_run('status')}`")
        for file in files or manifest["files"]:
            path = self.path(name) / file
            if not path.is_file() or sha256(path) != manifest["files"].get(file):
                mend = of_run(f"{_maker(name, file)} --redo")
                thinned = self.is_thinned(name)
                what = "was removed by clean --checkpoints" if thinned else "is damaged or missing"
                raise StoreError(f"{path} {what}; {mend} makes the result anew")
        return manifest

    def is_thinned(self, name: str) -> bool:
        """Whether a checkpoint's weights were removed, to whom its manifest still testifies."""
        return (self.path(name) / THINNED).is_file()

    def thin(self, name: str) -> None:
        """Remove a checkpoint's weights, and keep what its manifest says of them."""
        write_json(self.path(name) / THINNED, {"removed": "by clean --checkpoints"})
        for path in self.path(name).glob("*.safetensors"):
            path.unlink()

    def finish(self, name: str, manifest: Manifest) -> Manifest:
        """Seal a result: hash its files, then write its manifest.

        Raises:
            StoreError: what it was made from is not what it was when that began.
        """
        folder = self.path(name)
        for parent, content in manifest.get("inputs", {}).items():
            if str(self.content(parent)) != content:  # an export may read no prompts of the run
                raise StoreError(
                    f"{self.path(parent)} was made anew or removed while {name} was made from it; "
                    "run the same command again"
                )
        for left in folder.rglob(".*.tmp"):  # by a process that was killed
            left.unlink()
        files = {
            str(p.relative_to(folder)): sha256(p)
            for p in sorted(folder.rglob("*"))
            if p.is_file() and p.name != MANIFEST and not p.name.endswith(".tmp")
        }
        content = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        facts = {**manifest, "files": files, "content": content, "created": created, "name": name}
        sealed: Manifest = json.loads(json.dumps(facts))  # tuples as the lists that are read back
        sealed["seal"] = seal(sealed)
        write_json(folder / MANIFEST, sealed)
        return sealed

    def aside(self, name: str) -> Path | None:
        """Move a result out of the way; say where to, None if there was none."""
        folder = self.path(name)
        if not folder.exists():
            return None
        target = self.root / "aside" / f"{folder.name}-{time.time_ns()}"
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)
        return target

    def begin(self, name: str) -> Path:
        """An empty folder for a result; a finished one that stands there is moved aside."""
        if (self.path(name) / MANIFEST).exists():
            self.aside(name)
        return self.clear(name)

    def clear(self, name: str) -> Path:
        """An empty folder for a result that was begun and not finished."""
        folder = self.path(name)
        if folder.is_symlink():  # what lies behind it was put elsewhere by a person
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        return folder

    def lock(self, name: str) -> AbstractContextManager[None]:
        """Keep other processes off a result. Waits for them, and says so."""
        return locks.of_result(self.root, name, self.say)

    def in_use(self) -> AbstractContextManager[None]:
        """Keep `alone` waiting while this process makes results of the run; others may as well."""
        return locks.of_run(self.root, self.say, alone=False)

    def alone(self) -> AbstractContextManager[None]:
        """Wait until no process makes results of the run, and let none begin."""
        return locks.of_run(self.root, self.say, alone=True)

    def beside(self) -> str:
        """Where nothing was made yet: that, and which runs there are in its place."""
        runs = self.root.parent
        if self.root.is_dir() or (os.path.lexists(runs) and not runs.is_dir()):
            return ""  # what it is in place of a folder is said where it is read
        if not runs.is_dir():
            return f"; there is no folder {runs}: is --runs right?"
        others = sorted(path.name for path in runs.iterdir() if (path / "data").is_dir())
        listed = f", only {', '.join(others)}" if others else ""
        return f"; {runs} has no run {self.root.name}{listed}"

    def names(self) -> list[str]:
        """All results and beginnings of results, and what was moved aside."""
        kinds = ["data", "samples", "answers", "scores", "rewards", "adapters", "checkpoints"]
        kinds += ["reward", "eval", "probe", "aside"]
        folders = [path for kind in kinds for path in self.root.glob(f"{kind}/*")]
        return sorted(str(p.relative_to(self.root)) for p in folders if p.is_dir())


def _maker(name: str, file: str) -> str:
    """The command that makes a result, after `macpo`: `run` and others find damages as well."""
    kind, _, own = name.partition("/")
    if kind == "reward":
        return "train --reward"
    if kind in ("adapters", "checkpoints"):
        return f"train --round {own.split('-')[-2]}"
    round_ = round_of(name)
    measured = any(f"-{part}-" in own or file == f"{part}.parquet" for part in MEASURED)
    if kind in ("eval", "rewards") or (measured and round_ is None):
        return "eval"
    return f"gen --round {round_ or 0 if kind == 'data' else 'N'}"


class Shards:
    """The rows of a result in files of `size` rows: what a kill may cost, and what resume reads."""

    def __init__(self, folder: Path, ids: list[str], size: int) -> None:
        """`ids` name the rows in the order in which they are made."""
        self.folder = folder / "shards"
        self.size = size
        self.spans = [range(at, min(at + size, len(ids))) for at in range(0, len(ids), size)]
        self.files = [
            self.folder / f"{n:05d}-{digest([ids[i] for i in span])}.parquet"
            for n, span in enumerate(self.spans)
        ]  # named by what they hold, so that none is taken for another

    def missing(self) -> list[int]:
        """The shards that are still to be made. One that was cut short is among them."""
        return [shard for shard in range(len(self.files)) if not self.has(shard)]

    def has(self, shard: int) -> bool:
        """Whether a shard is there with all its rows."""
        path = self.files[shard]
        if not path.is_file():
            return False
        try:
            rows = pl.scan_parquet(path).select(pl.len()).collect().item()
        except pl.exceptions.PolarsError:
            return False
        return bool(rows == len(self.spans[shard]))

    def write(self, shard: int, frame: pl.DataFrame) -> None:
        """Write a shard whole."""
        write_parquet(self.files[shard], frame)


def inputs(plan: Plan, store: Store, step: Step) -> dict[str, str]:
    """What a step is made from: the content of its parents' results.

    Raises:
        StoreError: a parent is not finished.
    """
    names = [plan.name(parent) for parent in plan.parents(step)]
    if step.kind == "gen" or step.objective == "reward":
        names.append(plan.prompts_name)
    contents = {name: store.content(name) for name in names}
    if missing := [name for name, content in contents.items() if content is None]:
        raise StoreError(f"{step}: {', '.join(missing)} is not finished; run `{of_run('status')}`")
    return {name: str(content) for name, content in contents.items()}


def states(plan: Plan, store: Store) -> dict[Step, State]:
    """The state of every step. Reads manifests only: no network, no model.

    A done step is stale where a parent has other content than the one it was made from, or is
    itself stale. A damaged manifest counts as stale too: it has to be made anew.
    """
    state_of: dict[Step, State] = {}
    for step in plan.steps:
        parents = plan.parents(step)
        try:
            manifest = store.typed(plan.name(step), AnyManifest)
            made_from = manifest.inputs if manifest else {}
            fresh = all(store.content(n) in (c, None) for n, c in made_from.items())
        except StoreError:
            state_of[step] = "stale"
            continue
        if manifest is not None:
            stale = not fresh or any(state_of[parent] == "stale" for parent in parents)
            state_of[step] = "stale" if stale else "done"
        else:
            ready = all(state_of[parent] == "done" for parent in parents)
            state_of[step] = "ready" if ready else "waiting"
    return state_of
