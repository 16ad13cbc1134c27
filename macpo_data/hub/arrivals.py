"""Brings published results into a store: each is checked aside, and takes its name whole.

Nothing of what is fetched is believed before it is checked: bytes are compared with the hashes of a
sealed manifest, and that with what the round says of it. A kill leaves nothing or what was checked.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from macpo_data import hub_client
from macpo_data.errors import DataError, HubError, StoreError, first_line
from macpo_data.hub.adapters import is_twin
from macpo_data.hub.index import Entry
from macpo_data.hub.reading import (
    TABLES,
    WEIGHTS,
    Read,
    check_table,
    most_of,
    repository,
    under,
)
from macpo_data.models.weights import CONFIG, weights_sha256
from macpo_data.outside import JSON_BYTES, OutsideError, parse_object, read_bytes
from macpo_data.plan import CHECKPOINTS, Plan
from macpo_data.store.manifests import (
    MANIFEST,
    AdapterManifest,
    AnyManifest,
    DatasetManifest,
    read_manifest,
)
from macpo_data.store.store import Store, naming, sha256

# Raises StoreError or DataError where a result, whose files lie in a folder, is not what was
# promised.
Check = Callable[[AnyManifest, Path], None]
# Of a model as transformers saves it, with its tokenizer.
_OF_MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.(safetensors|json|jinja|txt|model)")
_MOST_FILES = 1000


class Start(BaseModel):
    """An adapter from which a round is trained, or to which it is held."""

    model_config = ConfigDict(strict=True, frozen=True)

    trains: str
    needs: Literal["start", "reference"]
    start: str  # its name in the run, or the bare base
    adapter_sha256: str | None
    repo: str | None
    revision: str | None


def dataset(store: Store, result: str, entry: Entry, read: Read, name: str) -> str:
    """Bring a round's dataset for one learner here, as the index says that it is."""
    promised = entry["facts"]["manifest"]

    def check(manifest: AnyManifest, place: Path) -> None:
        if manifest.content != promised["content"]:
            raise StoreError("it is another one than the index says")
        if not isinstance(manifest, DatasetManifest) or not {"inputs", "summary"} <= {
            *manifest.model_fields_set
        }:
            raise StoreError("its manifest says less than every dataset's")
        for file in TABLES.keys() & {path.name for path in place.iterdir()}:
            rows = check_table((place / file).read_bytes(), file)
            if file == "pairs.parquet" and rows != manifest.summary.pairs:
                raise StoreError(f"{file} has {rows} rows, not {manifest.summary.pairs}")

    folder = f"macpo/{name}/{result}"
    listed = {file: sha for file in (MANIFEST, *TABLES)
              if (sha := entry["files"].get(f"{folder}/{file}"))}  # fmt: skip
    source = under(read, folder)
    return _put(store, result, source, ["pairs.parquet"], list(TABLES), check, listed)


def adapter(plan: Plan, store: Store, start: Start) -> list[str]:
    """Fetch an adapter that a training needs, and say so; nothing for a bare base."""
    name, promised = start.start, start.adapter_sha256
    trained = {plan.name(s) for s in plan.steps if s.makes}
    # A start on the bare base, or the result of the training before on the same dataset.
    if promised is None or name not in trained:
        return []

    def check(manifest: AnyManifest, place: Path) -> None:
        if name.startswith(f"{CHECKPOINTS}/"):
            _check_code(place, bases)
        own = manifest.adapter_sha256 if isinstance(manifest, AdapterManifest) else None
        try:
            of_bytes = weights_sha256(place)
        except (OSError, ValueError, TypeError) as error:
            raise StoreError(f"it is no policy ({first_line(error)})") from None
        if {own, of_bytes} != {promised}:
            raise StoreError("it is another one than the round says")

    bases = {agent.base for agent in plan.recipe.agents.values()}
    repo, at = start.repo, start.revision
    role = "is held to it" if start.needs == "reference" else "starts from it"
    missing = f"missing  {store.path(name)}: {start.trains} {role}"
    does = f"`macpo push --adapters{' --negatives' if is_twin(plan, name) else ''}`"
    if repo is None and not store.is_done(name):
        return [f"{missing}; it was never pushed ({does} does)"]

    def read(file: str, most: int) -> bytes | None:
        source = repository(hub_client.check_repo(str(repo)), "model", str(at))
        return source(f"{Path(name).name}/{file}", most)

    try:
        if name.startswith(f"{CHECKPOINTS}/"):
            return [_put(store, name, read, [CONFIG], None, check)]
        return [_put(store, name, read, list(WEIGHTS), list(WEIGHTS), check)]
    except HubError:
        raise
    except Exception as error:
        if hub_client.status_of(error) not in (401, 403, 404):
            raise
        return [
            f"{missing}; {repo} has none at {at}, it was never pushed ({does} does) or is private"
        ]


def _check_code(place: Path, bases: set[str]) -> None:
    """Who allows the code of a base allows no other repository's, which a checkpoint may name.

    Raises:
        StoreError: it asks for other code.
    """
    for file in sorted(place.glob("*config.json")):
        try:
            code = parse_object(read_bytes(file)).get("auto_map", {})
        except OutsideError as error:
            raise StoreError(f"{file.name} is {error}") from None
        for name in code.values() if isinstance(code, dict) else [code]:
            for each in name if isinstance(name, list) else [name]:
                repo, stranger, _ = str(each).partition("--")
                if stranger and repo not in bases:
                    raise StoreError(f"{file.name} asks for the code of {repo}")


def _put(
    store: Store,
    name: str,
    read: Read,
    needed: list[str],
    files: list[str] | None,
    check: Check,
    listed: Mapping[str, str] | None = None,
) -> str:
    """Bring one result into the store, whole and checked or not at all.

    Args:
        store: where to.
        name: of the result.
        read: its files where it was published.
        needed: files without which it is nothing.
        files: those that are read of it; None for all of a checkpoint's that its manifest names.
        check: compares it with what was promised.
        listed: the sha256 of each of its files, where an index lists them.
    """
    with store.lock(name):
        if manifest := store.typed(name, AnyManifest):
            try:
                _verify(manifest, store.path(name), needed, files)
                check(manifest, store.path(name))
            except (StoreError, DataError) as error:
                raise HubError(
                    f"{store.path(name)} is there already, but {error}; pull into another folder "
                    "with --runs DIR, or move it away"
                ) from None
            return f"kept     {store.path(name)}"
        # Where `macpo clean` finds what a kill leaves.
        staged = store.root / "aside" / f"pull-{name.replace('/', '-')}"
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        try:
            manifest = _fetch(read, name, staged, files)
            _verify(manifest, staged, needed, files)
            check(manifest, staged)
            for file, digest in (listed or {}).items():
                if not (staged / file).is_file() or sha256(staged / file) != digest:
                    raise StoreError(f"{file} is not the one that the index lists")
            staged.replace(store.clear(name))
        except (StoreError, DataError) as error:
            raise HubError(
                f"{name} is not what its manifest says, and was not kept: {error}; ask who "
                "published it"
            ) from None
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return f"pulled   {store.path(name)}"


def _fetch(read: Read, name: str, to: Path, files: list[str] | None) -> AnyManifest:
    """Write a published result into a folder; what its manifest says."""
    content = read(MANIFEST, JSON_BYTES)
    if content is None:
        raise HubError(f"{name} was not published whole; ask who published it")
    try:
        _, manifest = read_manifest(content, name, to / MANIFEST)
    except StoreError:
        raise StoreError("its manifest was edited, cut short or is another result's") from None
    if manifest.name != name or manifest.fingerprint is None:
        raise StoreError("its manifest does not say whose it is")
    for file in _read_of(manifest, files):
        data = read(file, most_of(file)) if file in manifest.files else None
        if data is not None:
            with naming(to / file):
                (to / file).write_bytes(data)
    with naming(to / MANIFEST):
        (to / MANIFEST).write_bytes(content)
    return manifest


def _read_of(manifest: AnyManifest, files: list[str] | None) -> list[str]:
    """The files that are read of a result: no path, and nothing that is code."""
    if files is None:
        files = [file for file in sorted(manifest.files) if _OF_MODEL.fullmatch(file)]
        if len(files) > _MOST_FILES:
            raise StoreError(f"its manifest names {len(files)} files")
    return files


def _verify(
    manifest: AnyManifest, folder: Path, needed: list[str], files: list[str] | None
) -> None:
    """Compare the files of a result, of which some need not be there, with its manifest."""
    files = _read_of(manifest, files)
    if missing := [file for file in needed if file not in files]:
        raise StoreError(f"{missing[0]} is missing: it is not whole")
    for file in files:
        path = folder / file
        if not path.is_file():
            if file in needed or file.endswith(".safetensors"):
                raise StoreError(f"{file} is missing: it is not whole")
        elif sha256(path) != manifest.files.get(file):
            raise StoreError(f"{file} has other bytes")
