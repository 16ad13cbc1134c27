"""Run parts of the measurements on a machine with a GPU; see README.md here."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
BIG = ("--dtype", "bfloat16", "--size")
OWN = ("shared", "plain", "shared, reference computed")
TRL = ("trl dpo, its defaults", "trl dpo, precomputed", "trl dpo, precomputed, liger")
WHOLE = ("training", "--warmup", "--micro", "8", "--variants")


def macpo(*words: str) -> list[str]:
    """A command of the program, in this checkout."""
    return [sys.executable, "cli.py", *words]


def bench(name: str, *words: str) -> list[str]:
    """A benchmark."""
    return [sys.executable, "-m", f"benchmarks.{name}", *words]


def pytest(*words: str) -> list[str]:
    """Some tests."""
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]


PARTS: dict[str, list[list[str]]] = {
    "facts": [["nvidia-smi"], [sys.executable, "-m", "benchmarks.gpu", "--bounds"]],
    "tests": [pytest("tests/test_gpu.py", "--tb=short")],
    "suite": [pytest("-n", "12", "--dist", "loadfile", "--tb=short")],
    "quickstart": [macpo("run", "--recipe", "quickstart", "--until", "2")],
    "moaa": [macpo("run", "--recipe", "moaa_quickstart", "--until", "1")],
    "scoring": [bench("scoring", *BIG, "0.5b")],
    "generating": [bench("generating", *BIG, "0.5b")],
    "sharing": [bench("sharing", *BIG, "0.5b", "--prompts", "128", "512", "2048", "4096")],
    "training": [bench(*WHOLE, *OWN, *TRL, *BIG, "0.5b", "--pairs", "128")],
    "scoring-3b": [bench("scoring", *BIG, "3b", "--repeats", "2")],
    "training-3b": [
        bench(*WHOLE, *OWN[:1], *TRL, *BIG, "3b", "--pairs", "128", "--repeats", "1"),
    ],
}


def main() -> None:
    """Run the named parts in order, each unless it is done; exit 1 where one failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--limit", type=float, default=1e9, help="begin no part after so many s")
    parser.add_argument("--bounds", action="store_true", help="only print the versions")
    asked = parser.parse_args()
    if asked.bounds:
        return print_bounds()
    if asked.out is None or (unknown := set(asked.parts) - PARTS.keys()):
        parser.error("say a folder for the results" if asked.out is None else f"no part {unknown}")
    asked.out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    failed = []
    for part in asked.parts or PARTS:
        log, mark = asked.out / f"{part}.log", asked.out / f"{part}.done"
        if mark.exists():
            continue
        if time.monotonic() - begun > asked.limit:
            failed.append(f"{part} (no time left)")
            continue
        start = time.monotonic()
        codes = []
        with log.open("w") as file:
            for command in PARTS[part]:
                try:
                    done = subprocess.run(command, stdout=file, stderr=file, cwd=ROOT, env=env())
                    codes.append(done.returncode)
                except OSError as error:  # no such program here
                    file.write(f"{error}\n")
                    codes.append(127)
        took = time.monotonic() - start
        if any(codes):
            failed.append(part)
        else:
            mark.write_text(f"{took:.0f} s\n")
        print(f"{part}: {took:.0f} s, {'failed' if any(codes) else 'done'}", flush=True)
        rows = [line for line in log.read_text(errors="replace").splitlines() if line[:2] == "| "]
        print("\n".join(rows), flush=True)
    if failed:
        sys.exit(f"not done: {', '.join(failed)}; see their logs in {asked.out}")


def env() -> dict[str, str]:
    """Nothing asks the network, and the checkout counts as installed."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    offline = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": paths}
    return {**os.environ, **offline}


def print_bounds() -> None:
    """Which versions are there, and which of them pyproject.toml does not allow."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in sorted(project["dependencies"]):
        need = Requirement(line)
        try:
            number = version(need.name)
        except PackageNotFoundError:
            print(f"{need.name}: absent, {need.specifier} is asked for")
            continue
        fits = need.specifier.contains(number, prereleases=True)
        print(f"{need.name} {number}" + ("" if fits else f": outside {need.specifier}"))


if __name__ == "__main__":
    main()
