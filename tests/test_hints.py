"""Every hint is true: the commands and options that messages name are there, and can be copied."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
from conftest import Macpo

from macpo.cli import app
from macpo_data.errors import did_you_mean, lead_to_run, of_run

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("macpo", "macpo_data", "macpo_run", "macpo_train")
# Seeds and places in which the program's name is no command.
NO_COMMANDS = {"world", "prompts", "pretraining", "batches", "at", "process", "does", "made",
               "did", "anew"}  # fmt: skip
# Options of other programs that messages and snippets name; a trainer's form is its own matter.
OTHERS = {"--config_file", "--query-gpu", "--format", "--standalone", "--nproc-per-node",
          "--always", "--no-deps", "--dirty", "--abbrev", "--exclude", "--enable-lora"}  # fmt: skip


@cache
def commands() -> dict[str, Any]:
    """Every command of the program by its name."""
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def options(command: str) -> set[str]:
    """What a command takes."""
    return {"--help"}.union(*(parameter.opts for parameter in commands()[command].params))


def all_options() -> set[str]:
    """What any command takes, and the program itself."""
    return {"--version"}.union(*(options(name) for name in commands()))


@cache
def texts() -> list[tuple[str, str, bool]]:
    """Every text of the source that is no docstring: where, its words, whether `of_run` gets it.

    What an f-string puts in stands as {}.
    """
    literals = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text("utf-8"))
            where = path.relative_to(ROOT).as_posix()
            literals += [(where, text, kept) for text, kept in _texts(tree)]
    return literals


def _texts(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    skipped: set[int] = set()
    kept: set[int] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for first in body if isinstance(body, list) else ():
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                skipped.add(id(first.value))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "of_run":
            kept |= {id(inside) for inside in ast.walk(node)}
        if isinstance(node, ast.JoinedStr):
            parts = (part for part in node.values if isinstance(part, ast.Constant))
            skipped |= {id(part) for part in parts}
            skipped |= {
                id(spec) for part in node.values if isinstance(part, ast.FormattedValue)
                and part.format_spec for spec in ast.walk(part.format_spec)
            }  # fmt: skip
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.JoinedStr):
            pieces = (str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
            yield "".join(pieces), id(node) in kept
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value, id(node) in kept


NAMED = re.compile(r"\bmacpo ([a-z_]+)((?: +(?:[^\s`;()]+))*)")


def named() -> list[tuple[str, str, list[str]]]:
    """(where, command, its options) of every command that a text names, `of_run` or spelt out."""
    rows = []
    for where, text, kept in texts():
        for command, rest in NAMED.findall(f"macpo {text}" if kept else text):
            if command not in NO_COMMANDS:
                rows.append((where, command, re.findall(r"(?<![\w-])--[a-z][\w-]*", rest)))
    return rows


def test_commands_that_texts_name_are_there() -> None:
    rows = named()
    assert len(rows) > 40 and {"gen", "run", "status", "eval"} <= {c for _, c, _ in rows}
    assert [row for row in rows if row[1] not in commands()] == []


def test_options_of_commands_that_texts_name_are_there() -> None:
    wrong = [(w, c, o) for w, c, given in named() for o in given if o not in options(c)]
    assert wrong == []


def test_options_that_texts_name_are_there() -> None:
    wrong = set()
    for where, text, _ in texts():
        if where.startswith("macpo_data/forms/"):
            continue
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", text):
            if option not in all_options() | OTHERS:
                wrong.add((where, option))
    assert wrong == set()


HELP = ("macpo/cli.py", "macpo/options.py", "macpo/teaching.py")  # before any run is named


def test_commands_on_a_run_keep_its_options() -> None:
    """A message builds them by `of_run`, or adds the run's options itself."""
    on_a_run = {name for name in commands() if {"--runs", "--recipe", "--set"} <= options(name)}
    assert {"gen", "train", "run", "eval", "status", "show", "report", "clean"} <= on_a_run
    bare = []
    for where, text, kept in texts():
        if kept or where in HELP:
            continue
        for command, rest in NAMED.findall(text):
            standalone = "--dataset" in rest or "--import" in rest
            if command in on_a_run and not standalone and "{}" not in text[text.index(command) :]:
                bare.append((where, text[:90]))
    # What explains a command in prose, and a sign of which no run is known when it is written.
    prose = {"macpo_data/evaluation/verdict.py", "macpo_data/signs/rules.py",
             "macpo_data/hub/arrivals.py"}  # fmt: skip
    assert [row for row in bare if row[0] not in prose] == []


def test_a_command_is_led_to_the_open_run() -> None:
    lead_to_run(" --runs there", ["seed=1"])
    try:
        assert of_run("gen --round 1") == "macpo gen --round 1 --runs there"
    finally:
        lead_to_run("")
    assert of_run("status") == "macpo status"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("studnet", " (did you mean student?)"),
        ("xyz", ""),
        ("teacher", " (did you mean teacher_1?)"),
    ],
)
def test_nearest_names(written: str, meant: str) -> None:
    assert did_you_mean(written, ["teacher_1", "student"]) == meant


def test_mistyped_names_are_answered_with_the_nearest(
    macpo: Macpo, recipe_file: Path, tmp_path: Path
) -> None:
    common = ("-r", recipe_file)

    def error(*args: str | Path, fake: bool = False) -> str:
        done = macpo(*args, fake=fake)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done
        return done.stderr

    assert "did you mean student?" in error("gen", "--round", "0", "--learner", "studnet", *common)
    assert "did you mean quickstart?" in error("status", "-r", "quickstrat")
    assert "did you mean baselines?" in error("sweep", "baseline")
    assert "did you mean teacher1?" in error("eval", "--agents", "techer1", *common, fake=True)
    nobody = ("--set", "eval.judge={kind: llm, agent: studnet}")
    assert "'studnet' is no agent (did you mean student?)" in error("status", *common, *nobody)
    (tmp_path / "rows.jsonl").write_text('{"question": "a", "good": "b", "bad": "c"}\n')
    names = "prompt=qestion,chosen=good,rejected=bad"
    assert "did you mean question?" in error("check", "rows.jsonl", "--columns", names)
    assert "did you mean prompt?" in error("check", "rows.jsonl", "--columns", "promt=question")
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    assert "did you mean trl?" in error("check", "pairs.jsonl", "--for", "trll")
    assert macpo("gen", "--round", "0", *common, fake=True).returncode == 0
    where = error("show", "--round", "0", "--where", "chosn = ''", "--learner", "teacher1", *common,
                  fake=True)  # fmt: skip
    assert "did you mean chosen?" in where


def test_what_is_missing_says_where_it_was_looked_for(macpo: Macpo, recipe_file: Path) -> None:
    """A wrong --runs, a run of another name and what --set changed; the command is whole."""
    common = ("-r", recipe_file)
    there = macpo("show", "--round", "1", *common, "--runs", "nowhere").stderr
    assert "there is no folder nowhere: is --runs right?" in there
    assert f"run `macpo gen --round 1 --recipe {recipe_file} --runs nowhere`" in there
    assert macpo("gen", "--round", "0", *common, fake=True).returncode == 0
    other = macpo("show", "--round", "0", *common, "--set", "run=other").stderr
    assert "runs has no run other, only test" in other
    changed = macpo("show", "--round", "1", *common, "--set", "seed=3", fake=True).stderr
    assert (
        "a recipe that --set changed (seed=3, engine.name=fake) has results of its own" in changed
    )
    unmeasured = macpo("eval", *common, "--set", "seed=3", fake=True).stderr
    assert "no such policy is trained yet (round all); a recipe that --set changed" in unmeasured
    status = macpo("status", *common, "--runs", "nowhere")
    assert (
        status.returncode == 0 and "there is no folder nowhere: is --runs right?" in status.stderr
    )
    assert macpo("status", *common, fake=True).stderr == ""


def test_a_round_too_many_is_answered_with_the_round_that_was_asked_for(
    macpo: Macpo, recipe_file: Path
) -> None:
    common = ("-r", recipe_file)
    few = macpo("run", "--until", "7", *common).stderr
    assert "no round 7: this recipe has rounds 0..1; for more say --set rounds=7" in few
    many = macpo("run", "--until", "1000000", *common).stderr
    assert "no round 1000000: this recipe has rounds 0..1; a recipe may have 500 at most" in many
