"""A small part of the campaign in benchmarks/attack; `make attack` runs all of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("part", "share"),
    [("kills", 0.05), ("stores", 0.02), ("rounds", 0.03), ("recipes", 0.05), ("texts", 1)],
)
def test_nothing_gives_way(part: str, share: float) -> None:
    command = [sys.executable, "-m", "benchmarks.attack", part, "--share", str(share)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    attempts = int(ended.stdout.split("|")[2].split()[0].replace(",", ""))
    assert attempts >= 3
