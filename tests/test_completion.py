"""A shell completes commands, options and names; --help teaches by examples and lists."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from macpo.cli import app
from macpo.teaching import EXAMPLES, LISTS
from macpo_data.loading.load import load_recipe
from macpo_run import names


def asked(shell: str, line: str) -> dict[str, str]:
    """The environment in which a shell asks what may follow a line."""
    if shell == "bash":
        words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    else:
        words = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    return {**words, "_MACPO_COMPLETE": f"complete_{shell}"}


def as_a_shell(**env: str) -> str:
    """What the command says to a shell, in a terminal that is narrow."""
    code = "import sys; sys.argv = ['macpo']; from macpo.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env=os.environ | {"COLUMNS": "60"} | env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("macpo sw", {"sweep"}),
        ("macpo run --unt", {"--until"}),
        ("macpo run --recipe moaa_q", {"moaa_quickstart"}),
        ("macpo init hh_he", {"hh_helpful", "hh_helpful_release"}),
        ("macpo sweep primary_", {"primary_start"}),
        ("macpo convert x --for llama", {"llama-factory", "llama-factory-alpaca"}),
        ("macpo run --on H100", {"H100-80GB"}),
        ("macpo run --set dpo.be", {"dpo.beta="}),
        ("macpo eval --export al", {"alpaca_eval"}),
    ],
)
def test_names_are_offered(line: str, expected: set[str]) -> None:
    done = CliRunner().invoke(app, [], prog_name="macpo", env=asked("bash", line))
    assert set(done.stdout.split()) == expected


@pytest.mark.parametrize(
    ("shell", "name"), [("bash", r"^(\S+)$"), ("zsh", r'^"([^"]+)":'), ("fish", r"^(\S+)\t")]
)
def test_each_shell_is_offered_whole_lines(shell: str, name: str) -> None:
    """A meaning that is longer than the terminal is wide makes no second name."""
    text = as_a_shell(**asked(shell, "macpo run --recipe quick"))
    lines = text.removeprefix("_arguments '*: :((").splitlines()
    recipes = {name for name in names.recipes() if name.startswith("quick")}
    assert {match[1] for line in lines if (match := re.search(name, line))} == recipes
    assert len(lines) == len(recipes)


def test_bash_reads_the_script() -> None:
    ask = f"{as_a_shell(_MACPO_COMPLETE='source_bash')}\ncomplete -p macpo"
    done = subprocess.run(["bash", "--norc", "-c", ask], capture_output=True, text=True)
    assert done.stdout.strip() == "complete -o default -F _macpo_completion macpo", done.stderr


def test_keys_that_are_offered_are_keys() -> None:
    keys = names.keys()
    assert keys["dpo.beta"] == "How strongly the policy is held to the reference."
    assert {"data.d1.count", "judge.kind", "eval.sampling.n", "sampling.temperature"} <= set(keys)
    recipe = load_recipe("quickstart").model_dump()
    for key in keys:
        section, _, _ = key.partition(".")
        assert section in recipe


def test_every_command_has_examples() -> None:
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]
    assert {*EXAMPLES} == {"macpo", *commands}
    assert "macpo run --until 2" in CliRunner().invoke(app, ["--help"]).output


@pytest.mark.parametrize("command", LISTS)
def test_help_lists_names(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"]).output
    heading, known = LISTS[command]
    assert f" {heading} " in shown and len(known()) > 10
    for name in known():
        assert re.search(rf"• {name}:", shown), name
