"""Install each trainer's package apart, and let its own code read what macpo renders.

    python -m tests.conformance.run [TRAINER ...]
    python -m tests.conformance.run forms [TRAINER ...]     # check's verdicts: forms.py
    python -m tests.conformance.run converted [TRAINER ...] # what convert writes: converted.py

Packages go without their dependencies into a folder of their own under build/conformance; torch,
transformers and datasets come from this environment. What a package imports and its data code does
not need is left out or stood in for, as the table says. It takes minutes and the package index.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "conformance"
PACKAGES = {
    "llamafactory": ["llamafactory==0.9.5", "omegaconf", "antlr4-python3-runtime==4.9.3", "av"],
    "torchtune": [
        "torchtune==0.6.1", "omegaconf", "antlr4-python3-runtime==4.9.3", "tiktoken", "kagglehub",
        "sentencepiece", "blobfile", "pillow",
    ],
    "openrlhf": ["openrlhf==0.11.2", "pylatexenc"],
    "axolotl": ["axolotl==0.19.0", "colorama", "addict"],
    "alignment_handbook": ["alignment-handbook==0.3.0"],
    "ms_swift": ["ms-swift==4.6.0", "pillow", "addict", "dacite", "json-repair"],
}  # fmt: skip
# What is compared, and for whom there is nothing to compare.
MODULES: dict[str, set[str]] = {
    # What is published trl's own command reads in a test, and ms-swift does not read.
    "readers": {"trl", "ms_swift"},
    "forms": {"ms_swift"},  # it goes by the names of columns alone
    "converted": set(),
}


def main() -> None:
    """Render a small run and read it with each; then the forms that people bring, and convert's."""
    words = sys.argv[1:]
    parts = [word for word in words if word in MODULES] or [*MODULES]
    names = [word for word in words if word not in MODULES]
    failed = []
    for part in parts:
        with tempfile.TemporaryDirectory() as folder:
            place = render(Path(folder)) if part == "readers" else Path(folder)
            wanted = [name for name in names or ["trl", *PACKAGES] if name not in MODULES[part]]
            failed += [
                f"{part} {name}" for name in wanted if not read(name, part, place, Path(folder))
            ]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def render(folder: Path) -> Path:
    """A round of the fake engine in the form of the Hub."""
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import RECIPE

    (folder / "macpo.yaml").write_text(RECIPE.replace("engine: {", "engine: {name: fake, "))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for words in ("run --until 1", "push --round 1 --learner student --to tree"):
        command = [sys.executable, "-m", "macpo", *words.split()]
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return folder / "tree"


def read(name: str, module: str, folder: Path, home: Path) -> bool:
    """Install a package if it is not there, and run its reader in a process of its own."""
    target = BUILD / name
    if name in PACKAGES and not target.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
        if subprocess.run([*pip, *PACKAGES[name]], check=False).returncode:
            print(f"{name}: does not install here")
            return False
    # Ours first: a package may bring a folder of that name.
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT}/tests:{target}",
        "HF_HUB_OFFLINE": "1",
    }
    environment |= {"HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-m", f"conformance.{module}", name, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout.strip() or f"{name}: {done.stderr[-2000:]}")
    if done.returncode and done.stdout.strip():
        print(done.stderr[-2000:])
    return done.returncode == 0


if __name__ == "__main__":
    main()
