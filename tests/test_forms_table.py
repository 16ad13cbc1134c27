"""docs/forms.md says what macpo does with each form; each cell is what the command does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from macpo.cli import app
from macpo_data.forms.registry import targets

PAGE = Path(__file__).resolve().parents[1] / "docs/forms.md"
HEAD = ["form", "who uses it", "example row", "check", "train", "convert"]


def table() -> list[dict[str, str]]:
    """The rows of the page's table, by the names of its columns."""
    first = PAGE.read_text("utf-8").partition("\n| form |")[2].partition("\n\n")[0]
    lines = f"| form |{first}".splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    head, _, *rows = cells
    assert head == HEAD
    return [dict(zip(head, row, strict=True)) for row in rows]


def invoke(*words: str) -> tuple[bool, str]:
    """Whether a command went well, and what it said, its refusal too."""
    result = CliRunner().invoke(app, list(words))
    shown = " ".join(result.output.split())
    return result.exit_code == 0, shown if isinstance(result.exception, SystemExit | None) else (
        f"{shown} {result.exception}"
    )


def checked(place: str, options: list[str]) -> str:
    """The trainers that read it as it is, or why `check` refuses."""
    _, output = invoke("check", place, *options)
    if refused := re.search(r" is (unpaired preference|stepwise supervision|token ids)", output):
        return f"refused: {refused[1]}"
    names = [name for name in targets() if re.search(rf" {name} yes ", output)]
    return ", ".join(names) if names else "no trainer"


def trained(place: str, options: list[str], out: Path) -> str:
    words = ["--base", "b", "--out", str(out), "--set", "engine.name=fake"]
    fit, _ = invoke("train", "--dataset", place, *options, *words)
    return "yes" if fit else "no"


def converted(place: str, options: list[str], to: Path) -> str:
    """For whom it is written: all, some, or nobody."""
    written = [n for n in targets() if invoke("convert", place, *options, "--for", n, "--to",
                                              str(to / n))[0]]  # fmt: skip
    if len(written) == len(targets()):
        return "all"
    return ", ".join(written) or "none"


@pytest.mark.parametrize("row", table(), ids=lambda row: row["form"])
def test_each_cell_is_what_the_command_does(row: dict[str, str], tmp_path: Path) -> None:
    example, *named = re.findall(r"`([^`]+)`", row["example row"])
    options = named[0].split(" ") if named else []
    rows = [json.loads(example.replace('"Q', f'"Q{i} ')) for i in range(4)]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f"{json.dumps(each)}\n" for each in rows))
    fine_tuning = row["who uses it"].startswith("fine-tuning")
    more = ["--set", "objective=sft", "--set", "columns.rejected=null"] if fine_tuning else []
    if fine_tuning and '"completion"' in example:
        more += ["--set", "columns.chosen=completion"]
    assert checked(str(path), options) == row["check"]
    assert trained(str(path), [*options, *more], tmp_path / "out") == row["train"]
    assert converted(str(path), options, tmp_path) == row["convert"]


def test_what_each_target_takes() -> None:
    """The second table, against what the trainers' files say."""
    second = PAGE.read_text("utf-8").partition("| target |")[2]
    lines = re.findall(r"^\| ([\w-]+) \| ([a-z, -]+) \|$", second, re.MULTILINE)
    assert dict(lines) == {
        name: ", ".join(sorted(str(each).replace("_", " ") for each in trainer.pairs.takes)) or "-"
        for name, trainer in targets().items()
    }
