"""What an installation puts into an environment, and that nothing of a person's gets in its way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not (find_spec("pip") and find_spec("setuptools")), reason="needs pip and setuptools"
)

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("macpo", "macpo_data", "macpo_run", "macpo_train")
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
OFFLINE = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation")


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints; none of our own folders is on its path."""
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_checkout(*folders: str) -> set[str]:
    """The files in some folders of the repository."""
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in paths if path.suffix != ".pyc"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, since building leaves files behind."""
    copy = tmp_path_factory.mktemp("checkout") / "macpo"
    left_out = (".*", "__pycache__", "build", "dist", "runs", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*left_out))
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as a package index would get it."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", *OFFLINE, "-w", folder, ".", cwd=checkout)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources, likewise."""
    folder = tmp_path_factory.mktemp("sdist")
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    run(sys.executable, "-c", code, cwd=checkout)
    (path,) = folder.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module", params=["wheel", "sdist", "editable"])
def environment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment's programs, with macpo; what it needs, it sees in this one."""
    folder = tmp_path_factory.mktemp(request.param)
    run(sys.executable, "-m", "venv", "--without-pip", "own", cwd=folder)
    (packages,) = folder.glob("own/lib/python*/site-packages")
    (packages / "needed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python = folder / "own" / "bin" / "python"
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python, "install", *OFFLINE]
    if request.param == "editable":
        run(*pip, "-e", request.getfixturevalue("checkout"), cwd=folder)
    else:
        run(*pip, request.getfixturevalue(request.param), cwd=folder)
    return python.parent


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """A person's folder, in which the names of our repository's top are theirs."""
    (tmp_path / "cli.py").write_text("raise SystemExit('the wrong cli')\n")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "__init__.py").write_text("raise SystemExit('the wrong recipes')\n")
    (tmp_path / "recipes" / "quickstart.yaml").write_text("run: theirs\n")
    return tmp_path


def test_the_wheel_has_all_of_our_packages_and_no_other_name(wheel: Path) -> None:
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert {name.split("/")[0] for name in names} == {*PACKAGES}
    ours, recipes = in_checkout(*PACKAGES), in_checkout("recipes")
    shipped = {f"macpo/{name}" for name in recipes if name.endswith((".yaml", ".json"))}
    assert names == ours | shipped


def test_the_sources_make_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "pip", "wheel", *OFFLINE, "-w", tmp_path, sdist, cwd=tmp_path)
    (again,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert one.namelist() == other.namelist()


def test_only_our_names_can_be_imported(environment: Path, tmp_path: Path) -> None:
    names = ("cli", "recipes", *PACKAGES)
    code = f"from importlib.util import find_spec\nprint(*(n for n in {names} if find_spec(n)))"
    assert run(environment / "python", "-c", code, cwd=tmp_path).split() == [*PACKAGES]


@pytest.mark.parametrize("module", [False, True])
def test_a_persons_own_cli_and_recipes_are_left_alone(
    environment: Path, crowded: Path, module: bool
) -> None:
    program: tuple[str | Path, ...] = (environment / "macpo",)
    if module:
        program = (environment / "python", "-m", "macpo")
    assert run(*program, "--version", cwd=crowded).startswith("macpo ")
    run(*program, "init", "quickstart", "--to", "mine.yaml", cwd=crowded)
    _, *ours = (ROOT / "recipes" / "quickstart.yaml").read_text("utf-8").splitlines()
    _, *copied = (crowded / "mine.yaml").read_text("utf-8").splitlines()  # the first names a schema
    assert copied == ours
    assert "usage: macpo [options]" in run(*program, "--help", cwd=crowded).lower()


def test_an_installed_command_makes_a_round(environment: Path, tmp_path: Path) -> None:
    small = ("--set", "engine.name=fake", "--set", "data.limit=12")
    run(environment / "macpo", "run", "--round", "0", *small, cwd=tmp_path)
    steps = json.loads(run(environment / "macpo", "status", "--json", *small, cwd=tmp_path))
    assert {step["state"] for step in steps if step["round"] == 0} == {"done"}


def test_a_script_can_ask_for_the_version(environment: Path, crowded: Path) -> None:
    printed = run(environment / "macpo", "--version", cwd=crowded).split()[1]
    code = "import macpo\nprint(macpo.__version__)"
    assert run(environment / "python", "-c", code, cwd=crowded).strip() == printed
