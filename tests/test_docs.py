"""The documents: their commands run, what is generated is current, and links lead somewhere.

A command is a line that begins with `macpo` in a block marked `sh`. It is run in a folder of its
own section, on the fake engine with twelve prompts a part, beside a finished run of the quickstart
and a `pairs.jsonl`. What needs the Hub, a GPU or a model is parsed alone, so that its options
exist; a comment above its block says why. So are commands inside sentences.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import keys_page
from macpo.cli import app
from macpo_data.errors import MacpoError
from macpo_data.loading.load import shipped
from macpo_data.recipe.agents import Agent
from macpo_data.recipe.launcher import read_launcher
from macpo_data.recipe.recipe import Recipe
from macpo_run import names
from macpo_run.sweep.study import shipped as studies

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- (?P<kind>not run|files): (?P<about>[^\n]*) -->\n)?^```(?P<language>\w*)\n"
    r"(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
# On the fake engine, and small; what is looked at has to be what was made.
SMALL = ["--set", "engine.name=fake", "--set", "data.limit=12"]
ON_A_RUN = {"gen", "train", "run", "sweep", "status", "eval", "show", "report", "push", "clean"}
NETWORK = re.compile(r"\borg/|--repo\b|\bhh_\w+\b.* --on")
ENDLESS = "--watch"
JUDGES = {"doctor"}  # its exit code says what is missing on this machine
SECTIONS = {*Recipe.model_fields}


@dataclass(frozen=True)
class Command:
    """A command of a document."""

    page: str
    section: int
    words: tuple[str, ...]
    runs: bool
    files: str  # that its block wants, as `name = kind, ...`

    def __str__(self) -> str:
        return " ".join(self.words)


def split(line: str) -> Iterator[tuple[str, ...]]:
    """The commands of a line, without its comment."""
    words: list[str] = []
    for word in [*shlex.split(line, comments=True), ";"]:
        if word == ";":
            if words and words[0] == "macpo":
                yield tuple(words[1:])
            words = []
        else:
            words.append(word)


def commands(page: Path) -> Iterator[Command]:
    """Those of its blocks, in order, then those inside its sentences."""
    text = page.read_text("utf-8")
    name = page.relative_to(ROOT).as_posix()
    for block in BLOCK.finditer(text):
        if block["language"] != "sh":
            continue
        section = len(re.findall(r"^#+ ", BLOCK.sub("", text[: block.start()]), re.MULTILINE))
        files = block["about"] if block["kind"] == "files" else ""
        for line in block["text"].replace("\\\n", " ").splitlines():
            for words in split(line):
                reaches = NETWORK.search(" ".join(words)) or ENDLESS in words
                runs = block["kind"] != "not run" and not reaches
                yield Command(name, section, words, runs, files or "")
    for sentence in re.findall(r"`macpo ([^`]+)`", BLOCK.sub("", text)):
        if "TAB" not in sentence and "COMMAND" not in sentence:
            for words in split(f"macpo {' '.join(sentence.split())}"):
                yield Command(name, -1, words, False, "")


ALL = [command for page in PAGES for command in commands(page)]


def sections() -> Iterator[Any]:
    """The commands that run, by page and section."""
    grouped: dict[tuple[str, int], list[Command]] = {}
    for command in ALL:
        if command.runs:
            grouped.setdefault((command.page, command.section), []).append(command)
    for (page, _), group in grouped.items():
        yield pytest.param(group, id=f"{page}: {group[0]}")


# ---------------------------------------------------------------------------- what they stand on


def pairs(path: Path, prompt: str, chosen: str, rejected: str, start: int = 0) -> None:
    rows = [
        {
            prompt: f"How do I do thing {n}?",
            chosen: f"Take step {n}, then rest.",
            rejected: f"No {n}.",
        }
        for n in range(start, start + 24)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def provide(name: str, kind: str) -> None:
    """Write a file that a document takes for granted."""
    path = Path(name)
    match kind:
        case "none":  # a name that the section shall write itself
            assert not path.exists()
        case "pairs":
            pairs(path, "prompt", "chosen", "rejected", 100)
        case "question, best, worst" | "columns":
            pairs(path, "question", "best", "worst")
        case "rendered":
            row = {f: f"<|im_start|>user\n{t}<|im_end|>\n" for f, t in
                   {"prompt": "Q", "chosen": "A", "rejected": "B"}.items()}  # fmt: skip
            path.write_text(json.dumps(row) + "\n")
        case "recipe":
            CliRunner().invoke(app, ["init", "quickstart", "--to", name], catch_exceptions=False)
        case "study":
            text = (ROOT / "docs" / "methods.md").read_text("utf-8")
            (study,) = (b["text"] for b in BLOCK.finditer(text) if "primary:" in b["text"])
            path.write_text(study)
        case "alpaca":
            path.write_text(json.dumps([{"instruction": "How?", "dataset": "own"}]))
        case _:
            raise AssertionError(f"a document wants {name} = {kind}, which nobody writes")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of the quickstart, and preference data."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = CliRunner().invoke(app, ["run", "--until", "2", *SMALL])
        assert done.exit_code == 0, done.output
        pairs(folder / "pairs.jsonl", "prompt", "chosen", "rejected")
    return folder


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    shutil.copytree(finished, folder)
    shutil.copytree(ROOT / "examples", folder / "examples")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(typer, "launch", lambda url: 0)
    return folder


def small(words: tuple[str, ...]) -> list[str]:
    """A command with what makes it quick; a sweep is planned and not made."""
    name = words[0]
    if name == "train" and "--dataset" in words:
        return [*words, *SMALL[:2]]
    if name == "sweep":
        return [*words, *SMALL, *([] if "--dry-run" in words else ["--dry-run"])]
    return [*words, *SMALL] if name in ON_A_RUN else [*words]


# ---------------------------------------------------------------------------- the commands


@pytest.mark.parametrize("group", sections())
@pytest.mark.usefixtures("here")
def test_commands_run(group: list[Command]) -> None:
    """One after the other, as somebody does who reads the section from its top."""
    for files in dict.fromkeys(command.files for command in group if command.files):
        for each in re.findall(r"(\S+) = ([^=]+)(?:, (?=\S+ =)|$)", files):
            provide(*each)
    for command in group:
        done = CliRunner().invoke(app, small(command.words))
        expected = (0, 1) if command.words[0] in JUDGES else (0,)
        assert done.exit_code in expected, f"macpo {command}\n{done.output}\n{done.exception!r}"


def parser(name: str) -> Any:
    """A command as its words are parsed; of an option alone, the program."""
    group: Any = typer.main.get_command(app)
    if name.startswith("-"):
        return group
    parser_ = group.get_command(
        group.make_context("macpo", ["--help"], resilient_parsing=True), name
    )
    assert parser_ is not None, f"macpo has no command {name}"
    return parser_


@pytest.mark.parametrize("command", [c for c in ALL if not c.runs], ids=str)
def test_options_exist(command: Command) -> None:
    """In a block a whole command, which is parsed; in a sentence there may be but a part of one."""
    name, *rest = command.words
    parser_ = parser(name)
    if command.section >= 0 and not name.startswith("-"):
        parser_.make_context(name, rest)
    known = {option for each in parser_.params for option in each.opts} | {"--help"}
    assert {word for word in command.words if word.startswith("--")} <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_exist(page: Path) -> None:
    """Those that are set on a command line, or named as `section.key`."""
    text = page.read_text("utf-8")
    written = set(re.findall(r"--set ([\w.]+)=|`([a-z_]+\.[a-z_.]+)(?:[=:][^`]*)?`", text))
    keys = {one or other for one, other in written}
    keys = {
        key
        for key in keys
        if key.partition(".")[0] in SECTIONS and not key.endswith((".md", ".jsonl"))
    }
    assert {key for key in keys if not is_key(key)} == set()


def is_key(key: str) -> bool:
    """Whether a recipe, or the settings of a training, have it; or it is a section of theirs."""
    if key.startswith("agents."):
        return key.split(".")[-1] in Agent.model_fields
    known = [*names.keys()]
    return key in known or any(each.startswith(f"{key}.") for each in known)


def test_most_commands_are_run() -> None:
    """A block that is not run says why, in few words that come again."""
    reasons = {block["about"] for page in PAGES for block in BLOCK.finditer(page.read_text("utf-8"))
               if block["kind"] == "not run"}  # fmt: skip
    assert reasons <= {
        "other programs", "the Hub", "models of the Hub", "data and models of the Hub",
        "a tokenizer of the Hub", "several GPUs", "a cluster", "sheets that people filled",
        "writes into the home folder", "a model of the fake engine has no weights",
    }  # fmt: skip
    in_blocks = [command for command in ALL if command.section >= 0]
    assert sum(command.runs for command in in_blocks) > 60


# ---------------------------------------------------------------------------- what is generated


def test_the_page_of_keys_is_current() -> None:
    """`python -m benchmarks.keys_page` writes it anew."""
    assert keys_page.PAGE.read_text("utf-8") == keys_page.page()


@pytest.mark.parametrize(
    ("page", "listed"),
    [("recipes.md", shipped), ("methods.md", studies)],
    ids=["recipes", "studies"],
)
def test_all_that_is_shipped_is_listed(page: str, listed: Callable[[], list[str]]) -> None:
    cells = re.findall(r"^\| (`[^|]*`) \|", (ROOT / "docs" / page).read_text("utf-8"), re.MULTILINE)
    assert set(listed()) <= {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_the_method_of_the_documents_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe_file: Path
) -> None:
    """`developing.md` shows a whole method; it is made on the fake engine."""
    from macpo_data import methods
    from macpo_data.methods import registry

    text = (ROOT / "docs" / "developing.md").read_text("utf-8")
    (code,) = (b["text"] for b in BLOCK.finditer(text) if "METHOD = " in b["text"])
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "of_the_documents.py").write_text(code)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path / "more")])
    registry.methods.cache_clear()
    try:
        done = CliRunner().invoke(
            app, ["run", "--until", "1", "-r", str(recipe_file), "--runs", str(tmp_path / "runs"),
                  "--set", "method=mine", "--set", "engine.name=fake"],
        )  # fmt: skip
    finally:
        registry.methods.cache_clear()
    assert done.exit_code == 0, done.output


# ---------------------------------------------------------------------------- form


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 6 * 1024


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_lead_somewhere(page: Path) -> None:
    """On GitHub; the site's own are checked by `make docs`."""
    text = BLOCK.sub("", page.read_text("utf-8"))
    places = re.findall(r"\]\(\s*([^)\s]+)\s*\)|(?:src|srcset|href)=\"([^\"]+)\"", text)
    for place in (one or other for one, other in places):
        if re.match(r"https?:|#", place):
            continue
        path, _, anchor = place.partition("#")
        target = (page.parent / path).resolve()
        assert target.is_file(), f"{page.name}: {place}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
            assert anchor in {keys_page.slug(heading) for heading in headings}, place


def test_the_scripts_of_the_examples_can_run() -> None:
    """Their shell is bash's, and macpo's words in them are its own."""
    for script in (ROOT / "examples" / "slurm").iterdir():
        subprocess.run(["bash", "-n", script], check=True)
        text = script.read_text("utf-8").replace("\\\n", " ").replace('"$ROUND"', "1")
        typed = re.findall(r"\bmacpo ((?:gen|train|status)\b[^;'\n]*)", text)
        assert typed
        for name, *rest in (line.replace("}", "").split() for line in typed):
            parser(name).make_context(name, rest)


def test_the_examples_are_read() -> None:
    config = read_launcher(str(ROOT / "examples" / "fsdp.yaml"))
    assert (config.distributed_type, config.num_processes) == ("FSDP", 8)
    with pytest.raises(MacpoError):
        read_launcher(str(ROOT / "examples" / "none.yaml"))
