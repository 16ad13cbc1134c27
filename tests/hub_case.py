"""What tests of publishing and fetching share: a finished run, a Hub of our own, the command."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from conftest import RECIPE
from hub_server import READER, TOKEN, Hub, Repo, serve

from macpo_data.store.manifests import MANIFEST, seal
from macpo_data.store.store import Manifest, Store, sha256

Done = subprocess.CompletedProcess[str]
Macpo = Callable[..., Done]
REPO = "org/pairs"
FAKE = "--set=engine.name=fake"


def run_fake(folder: Path, *words: str) -> Path:
    """Write the recipe into a folder, and run it there on the fake engine."""
    (folder / "macpo.yaml").write_text(RECIPE.replace("engine: {", "engine: {name: fake, "))
    command = [sys.executable, "-m", "macpo", "run", *words]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def fake_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and a finished run of it, on the fake engine."""
    return run_fake(tmp_path_factory.mktemp("made"), "--until", "1")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as running:
        yield running


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """What makes the libraries talk to that Hub, with caches of their own."""
    return {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_TOKEN": TOKEN,
        "MACPO_HUB_TIMEOUT": "2",
        "MACPO_HUB_PAUSE": "0.2",
    }


@pytest.fixture
def spawn(fake_run: Path, environment: dict[str, str]) -> Macpo:
    """Run the command in a process of its own, in the folder of the finished run or another."""

    def call(*args: str | Path, cwd: Path = fake_run, **env: str) -> Done:
        return subprocess.run(
            [sys.executable, "-m", "macpo", *map(str, args)],
            cwd=cwd,
            env={**environment, **env},
            capture_output=True,
            text=True,
        )

    return call


@pytest.fixture
def run_cli(
    fake_run: Path, hub: Hub, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Macpo:
    """Run the command in this process: the same, without the seconds of starting anew."""
    from macpo import cli

    library = "huggingface_hub.constants."
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(library + "ENDPOINT", hub.url)
    monkeypatch.setattr(library + "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(library + "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(library + "HF_HUB_CACHE", environment["HF_HOME"] + "/hub")

    def call(*args: str | Path, cwd: Path = fake_run, **env: str) -> Done:
        out, err = io.StringIO(), io.StringIO()
        code: int | str | None = 0
        with monkeypatch.context() as here:
            here.chdir(cwd)
            here.setattr(sys, "argv", ["macpo", *map(str, args)])
            here.setattr(library + "HF_HUB_OFFLINE", "HF_HUB_OFFLINE" in env)
            for name, value in {**environment, **env}.items():
                here.setenv(name, value)
            with redirect_stdout(out), redirect_stderr(err):
                try:
                    cli.main()
                except SystemExit as end:
                    code = end.code
        if isinstance(code, str):
            err.write(code + "\n")
            code = 1
        return subprocess.CompletedProcess(args, code or 0, out.getvalue(), err.getvalue())

    return call


def ok(done: Done) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def error(done: Done) -> str:
    last = done.stderr.strip().split("\n")[-1]
    assert done.returncode == 1 and last.startswith("error: "), done.stderr
    assert "Traceback" not in done.stderr
    assert TOKEN not in done.stdout + done.stderr and READER not in done.stdout + done.stderr
    return last


def makes_nothing(done: Done) -> bool:
    """Whether a command could make nothing."""
    return done.returncode == 1 and "waiting" in done.stdout and "wrote" not in done.stdout


def whole(repo: Repo, revision: str = "main") -> bool:
    """Whether the index of a revision and its files agree, with nothing besides."""
    tree = repo.tree(revision)
    if "macpo/index.json" not in tree:
        return set(tree) == {".gitattributes"}
    index = json.loads(tree["macpo/index.json"].content)
    files = {path: sha for entry in index.values() for path, sha in entry["files"].items()}
    common = {"README.md", "dataset_info.json", "macpo/index.json", ".gitattributes"}
    return set(tree) == files.keys() | common and all(
        tree[path].sha256 == sha for path, sha in files.items()
    )


def reseal(store: Store, name: str, change: Callable[[Path], None]) -> Manifest:
    """Change a result's files, and seal it as if it had always been so."""
    facts = store.manifest(name) or {}
    change(store.path(name))
    # Its inputs are not in this store, so they are added behind its back.
    own = store.finish(name, {k: v for k, v in facts.items() if k not in ("seal", "inputs")})
    own |= {"inputs": facts["inputs"]}
    own["seal"] = seal(own)
    (store.path(name) / MANIFEST).write_text(json.dumps(own))
    return own


def relist(tree: Path) -> None:
    """Let the index list the files as they are."""
    index = json.loads((tree / "macpo/index.json").read_text())
    files = index["round_1_student"]["files"]
    files |= {path: sha256(tree / path) for path in files if (tree / path).is_file()}
    (tree / "macpo/index.json").write_text(json.dumps(index))
