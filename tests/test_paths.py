"""Paths that cannot be what they have to be, full and read-only disks: one line, nothing lost."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest
from conftest import Macpo, OpenRun

from macpo.failing import one_line_errors
from macpo_data.errors import StoreError
from macpo_data.store.store import atomic, write_json, write_parquet

FAKE = ["--set", "engine.name=fake"]
Done = subprocess.CompletedProcess[str]


@pytest.fixture
def finished(open_run: OpenRun) -> Path:
    """The folder of all runs, with one that is finished."""
    with open_run() as run:
        for round_ in (0, 1):
            run.finish_round(round_)
        return run.store.root.parent


def one_line(done: Done) -> str:
    """The error that a command ended with."""
    assert done.returncode == 1, done
    error = [line for line in done.stderr.splitlines() if not line.endswith(" s")]
    assert len(error) == 1 and error[0].startswith("error: "), done.stderr
    return error[0]


# ---------------------------------------------------------------------------- paths


def test_a_link_that_leads_nowhere(macpo: Macpo, recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to("nowhere")
    error = one_line(macpo("gen", "--round", "0", "-r", recipe_file, fake=True))
    assert "a link that leads nowhere (runs)" in error
    assert not (tmp_path / "nowhere").exists()


def test_paths_that_cannot_be(
    macpo: Macpo, recipe_file: Path, finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "occupied").mkdir()
    recipe = ["-r", str(recipe_file)]

    def error(*args: str | Path) -> str:
        return one_line(macpo(*args))

    assert "Too many levels" in error("status", *recipe, "--runs", "loop")
    grid = ["--grid", "dpo.beta=0.1,0.2"]
    assert "(/proc/x" in error("sweep", *recipe, *FAKE, *grid, "--runs", "/proc/x")
    assert "(/proc/" in error("init", "--to", "/proc/x.yaml")
    pushed = ["push", "--round", "0", *recipe, *FAKE, "--to"]
    assert "a link that leads nowhere (dangling)" in error(*pushed, "dangling")
    fitted = ["train", "--dataset", "x.jsonl", "--base", "world:strong", "--out"]
    assert "dangling is a link that leads nowhere" in error(*fitted, "dangling")
    sheet = ["--export", "human", "--against", "student-base", "--agents", "student", "--round"]
    assert "loop/x.csv" in error("eval", *recipe, *FAKE, *sheet, "1", "--to", "loop/x.csv")
    shutil.rmtree(finished / "test/.locks")
    (finished / "test/.locks").write_text("")
    assert ".locks)" in error("eval", *recipe, *FAKE)
    assert not (tmp_path / "nowhere").exists()


def test_too_few_files_may_be_open(recipe_file: Path, finished: Path, tmp_path: Path) -> None:
    """An evaluation holds a lock for each policy, which is more than this."""
    code = "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (16, 16)); import macpo.cli as c; "
    done = subprocess.run(
        [sys.executable, "-c", f"{code} c.main()", "eval", "-r", str(recipe_file), *FAKE],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert "Too many open files" in one_line(done)


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (OSError(28, ""), "No space left on device"),
        (OSError(24, "", "a"), "Too many open files (a)"),
        (OSError(116, "", b"a"), "Stale file handle (a)"),
        (FileNotFoundError("No such file (os error 2): a"), "No such file or directory (a)"),
    ],
)
def test_what_the_system_refuses_is_no_bug(
    error: OSError, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise error
    assert str(ended.value).startswith(f"error: {what}; mend that")


@pytest.mark.parametrize("error", [OSError(9, "Bad file descriptor"), OSError("something")])
def test_what_nobody_outside_can_mend_is_a_bug(
    error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(OSError), one_line_errors():
        raise error


# ---------------------------------------------------------------------------- outputs


def make_link(path: Path) -> None:
    path.symlink_to("target")
    (path.parent / "target").write_text("kept")


MAKE: dict[str, Callable[[Path], None]] = {
    "a folder": Path.mkdir,
    "a link": make_link,
    "a pipe": os.mkfifo,
}


@pytest.mark.parametrize("kind", MAKE)
def test_only_regular_files_are_written(
    kind: str, macpo: Macpo, recipe_file: Path, finished: Path, tmp_path: Path
) -> None:
    MAKE[kind](tmp_path / "out")
    before = (tmp_path / "out").lstat()
    error = one_line(macpo("report", "-r", recipe_file, *FAKE, "--to", "out"))
    assert f"out is {kind}, and only a file can be written" in error
    after = (tmp_path / "out").lstat()
    assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino)
    if kind == "a link":
        assert (tmp_path / "target").read_text() == "kept"
    assert not list(tmp_path.glob(".out*"))


def test_a_device_is_no_place_for_a_page(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="/dev/null is a device"), atomic(Path("/dev/null")):
        raise AssertionError
    assert Path("/dev/null").is_char_device()


def test_a_recipe_goes_through_no_link(macpo: Macpo, tmp_path: Path) -> None:
    (tmp_path / "macpo.yaml").symlink_to("elsewhere.yaml")
    assert "macpo.yaml is a link" in one_line(macpo("init"))
    (tmp_path / "macpo.yaml").unlink()
    (tmp_path / "macpo.schema.json").symlink_to("elsewhere.json")
    assert "macpo.schema.json is a link" in one_line(macpo("init"))
    assert [path.name for path in tmp_path.iterdir()] == ["macpo.schema.json"]


# ---------------------------------------------------------------------------- full disks


def test_the_errno_is_kept(tmp_path: Path) -> None:
    """Of a file that may not grow, as of a full disk: whatever is written, and its own name."""
    frame = pl.DataFrame({"n": range(100_000)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError) as table:
            write_parquet(tmp_path / "pairs.parquet", frame)
        with pytest.raises(OSError) as text:
            write_json(tmp_path / "a.json", ["x" * 100] * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for error, name in ((table.value, "pairs.parquet"), (text.value, "a.json")):
        assert (error.errno, error.filename) == (27, str(tmp_path / name))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_names_the_place(finished: Path, tmp_path: Path) -> None:
    """As a limit on the length of files does: the system says no name when a write fails."""
    commands = [
        ["push", "--round", "1", "-r", "recipe.yaml", *FAKE, "--to", "tree"],
        ["convert", "rows.jsonl", "--for", "trl", "--to", "trl"],
    ]
    row = {"prompt": "q", "chosen": "a" * 3000, "rejected": "b"}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 4)
    for command in commands:
        limited = ["sh", "-c", 'ulimit -f 1; exec "$@"', "sh", sys.executable, "-m", "macpo"]
        done = subprocess.run([*limited, *command], cwd=tmp_path, capture_output=True, text=True)
        assert re.search(rf"File too large \(\S*{command[-1]}", one_line(done))
        whole = subprocess.run([*limited[-3:], *command], cwd=tmp_path, capture_output=True)
        assert whole.returncode == 0, whole.stderr


# ---------------------------------------------------------------------------- read-only disks

MOUNT = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
UNSHARE = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
# Several commands in one process, which is faster.
COMMANDS = """
import json, sys
from typer.testing import CliRunner
from macpo.cli import app
runs = [CliRunner().invoke(app, args) for args in json.loads(sys.argv[1])]
said = [[r.exit_code, r.stdout, r.stderr, str(r.exception)] for r in runs]
sys.__stdout__.write(json.dumps(said))
"""


class Run(NamedTuple):
    """What a command printed."""

    code: int
    stdout: str
    stderr: str
    error: str


def call(runs: Path, *commands: str, read_only: bool) -> list[Run]:
    """Run commands beside the folder of all runs, which on demand not even root can write to."""
    recipe = ["-r", "recipe.yaml", *FAKE]
    words = [sys.executable, "-c", COMMANDS, json.dumps([c.split() + recipe for c in commands])]
    mounted = [*UNSHARE, "sh", "-c", MOUNT, str(runs)]
    if read_only:
        if subprocess.run([*mounted, "true"], capture_output=True).returncode:
            pytest.skip("nothing can be mounted here")
        assert subprocess.run([*mounted, "touch", runs / "x"], capture_output=True).returncode
    done = subprocess.run(
        [*(mounted if read_only else []), *words], cwd=runs.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [Run(*each) for each in json.loads(done.stdout)]


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_on_a_read_only_disk(finished: Path, tmp_path: Path) -> None:
    """It is shown, evaluated, reported and pushed elsewhere; what is not there cannot be made."""
    commands = ["status", "show --round 1", "eval", "gen --round 1", "train --round 1"]
    call(finished, "eval", read_only=False)
    usual, before = call(finished, *commands, read_only=False), files(finished)
    pushes = [f"push --round 1 --to {name}" for name in ("one", "two")]
    *others, some, page, pushed, seed, refused = call(
        finished,
        *commands,
        "eval --round 1",
        "report --to page.html",
        pushes[0],
        "gen --round 0 --set seed=3",
        f"report --to {finished.name}/page.html",
        read_only=True,
    )
    assert [(run.code, run.stdout) for run in others] == [(run.code, run.stdout) for run in usual]
    assert {run.code for run in (*others, some, page, pushed)} == {0}
    assert (tmp_path / "page.html").stat().st_size > 100_000
    assert (
        "cannot be written; name another folder with --runs" in seed.stderr
        and files(finished) == before
    )

    assert f"'{finished.name}/page.html'" in refused.error  # and not the temporary beside it

    # The evaluation of one round was not there; it is summed up from the answers, and not kept.
    assert f"{finished.name}/test is read-only: this evaluation is not kept" in some.stderr
    kept, _ = call(finished, "eval --round 1", pushes[1], read_only=False)
    assert scores(some) == scores(kept) and len(scores(kept)) == 4
    one, two = ({p.relative_to(to): p.read_bytes() for p in files(to)}
                for to in (tmp_path / "one", tmp_path / "two"))  # fmt: skip
    assert one == two


def scores(run: Run) -> list[str]:
    """The lines of the table."""
    return [line for line in run.stdout.splitlines() if "-positive-" in line and line[0] != "!"]


@pytest.mark.parametrize(
    "words",
    [
        ["check", "pairs.jsonl"],
        ["init", "--data", "pairs.jsonl", "--to", "own.yaml"],
        ["status", "--set", 'data={"source": "pairs", "path": "./pairs.jsonl"}'],
        ["run", "--set", 'data={"source": "pairs", "path": "./pairs.jsonl"}'],
    ],
)
def test_a_pipe_in_place_of_data_is_not_waited_for(
    words: list[str], recipe_file: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pairs.jsonl")
    more = [] if words[0] in ("check", "init") else ["-r", str(recipe_file)]
    done = subprocess.run(
        [sys.executable, "-m", "macpo", *words, *more],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert "Traceback" not in done.stderr
    assert words[0] == "status" or done.returncode == 1, done.stdout
