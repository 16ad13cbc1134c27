"""Pack what a machine without network lacks: the tested versions of packages, and the inputs.

See README.md here. The parcels are pieces of one archive, each small enough to be carried alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from benchmarks.models import DATA, FILES, SHARED

# Beside macpo's own needs: its tests', and what some parts measure with.
EXTRAS = ("pytest", "pytest-xdist", "hypothesis")
ALONE = ("liger-kernel", "bitsandbytes")  # without their needs, which are torch and its like
# The machine's own, with everything that depends on its CUDA; figures are drawn elsewhere.
LEFT_OUT = ("torch", "triton", "vl-convert-python", "playwright")
PLATFORMS = ("manylinux_2_28", "manylinux_2_24", "manylinux_2_17", "manylinux2014", "manylinux1")
INPUTS = (*(DATA / name for name in FILES), SHARED / "tokenizers" / "mistral-7b")


def main() -> None:
    """Write the parcels and say what is in them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--has", type=Path, help="what the machine has, as `pip list` freezes it")
    parser.add_argument("--python", default="3.12", help="the machine's")
    parser.add_argument("--cuda", default="130", help="the machine's, without the point")
    parser.add_argument("--limit", type=int, default=60, help="MiB of a parcel")
    asked = parser.parse_args()
    has = read_versions(asked.has) if asked.has else {}
    pins = missing(has)
    print("packed:", *pins)
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder) / "site"
        download(pins, site, asked.python)
        prune(site, asked.cuda)
        archive = Path(folder) / "kit.tar.xz"
        with tarfile.open(archive, "w:xz") as tar:
            tar.add(site, "site")
            for path in INPUTS:
                tar.add(path, Path("shared") / path.relative_to(SHARED))
        split(archive, asked.out, asked.limit << 20)
    for parcel in sorted(asked.out.iterdir()):
        print(f"{parcel}  {parcel.stat().st_size / (1 << 20):.1f} MiB")


def read_versions(path: Path) -> dict[str, str]:
    """Versions by name, of lines `name==version`; the version may be missing."""
    pairs = (line.strip().partition("==") for line in path.read_text().splitlines())
    return {canonicalize_name(name): number for name, _, number in pairs if name}


def missing(has: dict[str, str]) -> list[str]:
    """The needs of macpo, and theirs, that the machine cannot serve, pinned as installed here."""
    bounds: dict[str, list[Requirement]] = {}
    waiting = [Requirement(line) for line in [*(requires("macpo") or []), *EXTRAS]]
    while waiting:
        need = waiting.pop()
        name = canonicalize_name(need.name)
        if name in LEFT_OUT or (need.marker and not need.marker.evaluate({"extra": ""})):
            continue
        new = name not in bounds
        bounds.setdefault(name, []).append(need)
        if new:
            waiting += [Requirement(line) for line in requires(name) or []]

    def serves(name: str) -> bool:
        number = has.get(name)
        return number == "" or (
            number is not None and all(Version(number) in each.specifier for each in bounds[name])
        )

    pinned = [f"{name}=={version(name)}" for name in sorted(bounds) if not serves(name)]
    return pinned + [name for name in ALONE if name not in has]


def download(pins: list[str], site: Path, python: str) -> None:
    """Unpack the wheels for that machine, nothing of which is run here."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    for platform in PLATFORMS:
        command += ["--platform", f"{platform}_x86_64"]
    subprocess.run([*command, "--target", str(site), *pins], check=True)


def prune(site: Path, cuda: str) -> None:
    """Remove bitsandbytes' libraries for other cards: nine tenths of it."""
    for path in (site / "bitsandbytes").glob("libbitsandbytes_*.so"):
        if path.stem.removeprefix("libbitsandbytes_") not in (f"cuda{cuda}", "cpu"):
            path.unlink()


def split(archive: Path, out: Path, size: int) -> None:
    """Cut a file into numbered pieces."""
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob(f"{archive.name}.*"):
        old.unlink()
    with archive.open("rb") as file:
        number = 0
        while piece := file.read(size):
            (out / f"{archive.name}.{number:02}").write_bytes(piece)
            number += 1


if __name__ == "__main__":
    main()
