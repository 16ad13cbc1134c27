"""The kit of GPU measurements: what is packed, how it is cut, and that a second start goes on."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as kit
from benchmarks.gpu.pack import missing, read_versions, split


def test_what_is_missing_is_pinned_as_installed_here() -> None:
    pins = missing({})
    assert f"polars=={version('polars')}" in pins
    assert f"annotated-types=={version('annotated-types')}" in pins  # a need of a need
    assert not any(pin.startswith("torch==") for pin in pins)


def test_what_serves_is_left_out(tmp_path: Path) -> None:
    """A version inside the bounds, or one that is not known; one outside them does not serve."""
    (tmp_path / "has.txt").write_text(f"polars=={version('polars')}\nPyYAML\ntyper==0.1.0\n")
    names = {pin.partition("==")[0] for pin in missing(read_versions(tmp_path / "has.txt"))}
    assert not {"polars", "pyyaml"} & names and "typer" in names


def test_pieces_make_the_whole(tmp_path: Path) -> None:
    whole = bytes(range(10))
    (tmp_path / "kit").write_bytes(whole)
    split(tmp_path / "kit", tmp_path / "out", 4)
    pieces = sorted((tmp_path / "out").iterdir())
    assert [len(piece.read_bytes()) for piece in pieces] == [4, 4, 2]
    assert b"".join(piece.read_bytes() for piece in pieces) == whole


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "open('log', 'a').write('x')"
    good = [sys.executable, "-c", script]
    parts = {"good": [good], "bad": [[sys.executable, "-c", "raise SystemExit(3)"]]}
    monkeypatch.setattr(kit, "PARTS", parts)
    monkeypatch.setattr(kit, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpu", str(tmp_path / "out")])
    for _ in range(2):
        with pytest.raises(SystemExit, match="not done: bad;"):
            kit.main()
    assert (tmp_path / "log").read_text() == "x"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"good.log", "good.done", "bad.log"}
