"""Install each trainer's package apart, and let its own code read what macpo renders.

    python -m tests.conformance.run [TRAINER ...]

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
}  # fmt: skip


def main() -> None:
    """Render a small run, then read it with each."""
    with tempfile.TemporaryDirectory() as folder:
        tree = render(Path(folder))
        failed = [name for name in sys.argv[1:] or PACKAGES if not read(name, tree)]
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


def read(name: str, tree: Path) -> bool:
    """Install a package if it is not there, and run its reader in a process of its own."""
    target = BUILD / name
    if not target.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
        if subprocess.run([*pip, *PACKAGES[name]], check=False).returncode:
            print(f"{name}: does not install here")
            return False
    environment = {**os.environ, "PYTHONPATH": f"{target}:{ROOT}", "HF_HUB_OFFLINE": "1"}
    environment |= {"HF_HOME": str(tree.parent / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, str(Path(__file__).with_name("readers.py")), name, str(tree)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout.strip() if done.returncode == 0 else f"{name}: {done.stderr[-2000:]}")
    return done.returncode == 0


if __name__ == "__main__":
    main()
