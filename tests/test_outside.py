"""What others wrote is read through one door for each format, within bounds."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import Macpo, OpenRun
from hypothesis import given
from hypothesis import strategies as st
from test_house import PACKAGES, ROOT

from macpo_data import outside
from macpo_data.errors import MacpoError
from macpo_data.outside import OutsideError, parse_json, parse_object, parse_yaml
from macpo_data.recipe.launcher import read_launcher
from macpo_run import live_status
from macpo_run.standalone import scores_depend_on
from macpo_run.sweep.time_left import timed

SECONDS = 10.0  # nothing below may take longer, on a busy machine too
FULL = outside.YAML_BYTES

# Nine levels of nine names each are 387 million values.
BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)


def full(head: str, unit: str, tail: str = "") -> str:
    """A text of as many bytes as are read."""
    return head + unit * ((FULL - len(head) - len(tail)) // len(unit)) + tail


WORST = {
    "aliases": (BOMB, "aliases"),
    "keys": ("".join(f"k{n}: 1\n" for n in range(60_000)), "more than"),
    "flow": (full("a: [", "1,", "1]"), "more than"),
    "numbers to the base of 60": (full("a: 1", ":1"), "digits"),
    "the same with a fraction": (full("a: 1", ":1", ".5"), "digits"),
    "digits": (full("a: ", "1"), "digits"),
    "hexadecimal": (full("a: 0x", "f"), "digits"),
    "depth": (full("a: ", "["), "deeper than"),
    "depth of blocks": ("".join(" " * n + "a:\n" for n in range(200)), "deeper than"),
    "length": (full("a: '", "x", "'") + " " * 100, "larger than"),
    "twice": ("a: 1\nb: 2\n'a': 3\n", "line 3: a stands twice"),
    "twice, written otherwise": ("10: 1\n0xa: 2\n", "line 2: 0xa stands twice"),
    "syntax": ("a: 1\nb: [\n", "not valid YAML at line"),
    "date": ("a: 2024-13-45", "not valid YAML"),
}


@pytest.mark.parametrize("name", WORST)
def test_the_worst_yaml_is_refused_soon_and_in_a_line(
    name: str, macpo: Macpo, tmp_path: Path
) -> None:
    text, reason = WORST[name]
    (tmp_path / "macpo.yaml").write_text(text)
    begun = time.monotonic()
    with pytest.raises(OutsideError, match=reason):
        parse_yaml(text)
    assert time.monotonic() - begun < SECONDS
    if name in ("aliases", "keys", "depth", "length"):
        done = macpo("status")
        last = done.stderr.strip().split("\n")
        assert done.returncode == 1 and len(last) == 1, done.stderr
        assert last[0].startswith("error: recipe macpo.yaml: ") or "macpo.yaml" in last[0]
        assert reason in last[0] and time.monotonic() - begun < 2 * SECONDS


def test_what_is_large_and_allowed_is_read_soon() -> None:
    keys = "".join(f"key{n}: some value of a key\n" for n in range(10_000))
    begun = time.monotonic()
    assert len(parse_yaml(keys)) == 10_000
    assert time.monotonic() - begun < SECONDS


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(-1e9, 1e9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=8,
    )
)
def test_both_doors_give_back_what_was_written(value: object) -> None:
    assert parse_json(json.dumps(value)) == value
    plain = yaml.SafeDumper
    plain.ignore_aliases = lambda self, data: True  # type: ignore[method-assign]
    assert parse_yaml(yaml.dump(value, Dumper=plain)) == value


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"a":' * 9_999, b"", b"{", b"nul", b"\xff", b'"\\ud800"', b"1 2"]
)
def test_damaged_json_is_one_kind_of_mistake(content: bytes) -> None:
    with pytest.raises(OutsideError, match="not valid JSON") as refused:
        parse_json(content)
    assert isinstance(refused.value, MacpoError) and "\n" not in str(refused.value)
    with pytest.raises(OutsideError, match="larger than 3 bytes"):
        parse_json(b"1234", 3)
    with pytest.raises(OutsideError, match="mapping"):
        parse_object(b"[1]")


DEEP = '{"a":' * 9_999
JUNK = [DEEP, "[1]", "null", "{}", '{"host": 1}', "\x00", '{"recipe": {"agents": []}}']


@pytest.mark.parametrize("junk", JUNK)
def test_what_a_process_left_is_ignored_where_it_is_damaged(junk: str, tmp_path: Path) -> None:
    """Progress notes, timings and what scores depend on: none is needed."""
    (tmp_path / "adapters/x").mkdir(parents=True)
    (tmp_path / "adapters/x/manifest.json").write_text(junk)
    (tmp_path / "note.json").write_text(junk)
    assert live_status.making(tmp_path) == []
    assert timed([tmp_path]) == {}
    assert scores_depend_on(str(tmp_path / "adapters/x/pairs.parquet"), None) is None


@pytest.mark.parametrize(
    "change",
    [
        {"pid": 2**70},
        {"pid": 0},
        {"begun": "x"},
        {"begun": float("inf")},
        {"of": None},
        {"done": -1},
    ],
)
def test_a_note_of_another_shape_is_none(change: dict[str, object], tmp_path: Path) -> None:
    note = {
        "host": "elsewhere",
        "pid": 7,
        "begun": 1.0,
        "what": "x",
        "done": 1,
        "of": 2,
        "note": "",
    }
    (tmp_path / "a.json").write_text(json.dumps(note))
    (tmp_path / "b.json").write_text(json.dumps(note | change))
    assert [each.pid for each in live_status.making(tmp_path)] == [7]


@pytest.mark.parametrize(
    "junk", [*JUNK[:3], '{"inputs": [], "shard_size": "x"}', '{"shard_size": 0}']
)
def test_a_damaged_beginning_is_begun_anew(junk: str, open_run: OpenRun, tmp_path: Path) -> None:
    run = open_run()
    run.finish_round(0)
    (step,) = run.select("gen", 0, "student")
    pairs = run.store.path(run.plan.name(step)) / "pairs.parquet"
    before = pairs.read_bytes()
    shutil.rmtree(pairs.parent)
    samples = [n for n in run.store.names() if n.startswith("samples/teacher1-positive-0-d2")]
    for name in samples:
        (run.store.path(name) / "manifest.json").unlink()
        (run.store.path(name) / "begun.json").write_text(junk)
    run.make("gen", 0, "student")
    assert samples and pairs.read_bytes() == before


@pytest.mark.parametrize("text", [BOMB, "[" * 9_999, "- 1", "num_processes: x", "num_processes: 0"])
def test_a_launcher_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(MacpoError, match=r"cannot read train\.launcher .*accelerate config"):
        read_launcher(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize("command", ["check", "diff"])
def test_a_card_with_a_bomb(command: str, macpo: Macpo, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "README.md").write_text(f"---\n{BOMB}configs: *a9\n---\n")
    begun = time.monotonic()
    done = macpo(command, tree, *([tree] if command == "diff" else []))
    assert time.monotonic() - begun < 2 * SECONDS
    assert done.returncode == 1 and len(done.stderr.strip().split("\n")) == 1, done.stderr
    assert "README.md is broken (not valid YAML at line 2: aliases" in done.stderr


@pytest.mark.parametrize(
    ("where", "message"), [("--set", "the value is not valid YAML"), ("--grid", "write it as")]
)
def test_a_bomb_on_the_command_line(where: str, message: str, macpo: Macpo) -> None:
    flow = "&a [x], " + ", ".join(["*a"] * 9)
    args = ["--set", f"lora.targets=[{flow}]"] if where == "--set" else ["--grid", f"seed={flow}"]
    done = macpo("status" if where == "--set" else "sweep", *args, fake=True)
    assert done.returncode == 1 and message in done.stderr, done.stderr


# Who may parse by himself, and why.
OWN = {
    ("macpo_data/outside.py", "load"): "the door",
    ("macpo_data/outside.py", "compose"): "the door",
    ("macpo_data/outside.py", "parse"): "the door",
    ("macpo_data/outside.py", "from_json"): "the door",
    ("macpo_data/store/store.py", "loads"): "of what it has just written itself",
}
PARSERS = {
    "json": {"load", "loads"},
    "yaml": {"load", "safe_load", "load_all", "safe_load_all", "compose", "parse", "full_load"},
    "pydantic_core": {"from_json"},
}


def test_nobody_else_parses_what_came_from_outside() -> None:
    calls = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text("utf-8"))
            for node in ast.walk(tree):
                if not isinstance(node, ast.Call):
                    continue
                of, name = _called(node)
                if name == "model_validate_json" or name in PARSERS.get(of, set()):
                    calls.add((path.relative_to(ROOT).as_posix(), name))
                if not of and name == "from_json":
                    calls.add((path.relative_to(ROOT).as_posix(), name))
    assert calls == OWN.keys()


def _called(node: ast.Call) -> tuple[str, str]:
    if isinstance(node.func, ast.Attribute):
        of = node.func.value
        return (of.id if isinstance(of, ast.Name) else ""), node.func.attr
    return "", node.func.id if isinstance(node.func, ast.Name) else ""


def test_a_file_is_not_read_beyond_its_bound(tmp_path: Path) -> None:
    """Nor is it first read whole: it may be larger than the memory."""
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a terabyte with nothing in it
    reads: list[Callable[[], object]] = [
        lambda: outside.read_bytes(path),
        lambda: outside.read_text(path, FULL),
    ]
    for read in reads:
        with pytest.raises(OutsideError, match="larger than"):
            read()


@pytest.mark.parametrize("place", ["recipe", "template", "prompt", "manifest"])
def test_a_pipe_into_which_nobody_writes_is_not_waited_for(
    place: str, open_run: OpenRun, recipe_file: Path, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    words = ["status", "-r", str(recipe_file)]
    if place == "recipe":
        words[-1] = str(pipe)
    elif place == "template":
        words += ["--set", f"agents.student.chat_template={pipe}"]
    elif place == "prompt":
        words += ["--set", "negatives_by=framing", "--set", f"framing.positive={pipe}"]
    else:
        with open_run() as run:
            pipe = run.path(run.plan.steps[0]) / "manifest.json"
            pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    done = subprocess.run(
        [sys.executable, "-m", "macpo", *words],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 1, done.stderr


def test_a_template_of_a_recipe_is_read_within_a_bound(recipe_file: Path, macpo: Macpo) -> None:
    done = macpo("status", "-r", recipe_file, "--set", "agents.student.chat_template=/dev/zero")
    assert done.returncode == 1 and "/dev/zero: larger than" in done.stderr, done.stderr


def test_what_somebody_writes_into_a_pipe_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = subprocess.Popen(
        ["bash", "-c", 'exec 3<>"$0"; echo begun; sleep 0.5; echo a: 1 >&3; sleep 2', str(pipe)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert writer.stdout is not None and writer.stdout.readline() == "begun\n"
    assert outside.read_text(pipe) == "a: 1\n"
    writer.wait()
