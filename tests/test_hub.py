"""Publishing and fetching rounds, against a Hub of our own and in folders."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from conftest import RECIPE
from hub_server import READER, TOKEN, Answer, File, Hub, Repo, serve

from benchmarks.attack.hub import attacks
from macpo_data.errors import DataError
from macpo_data.hub.reading import check_table
from macpo_data.models.weights import weights_sha256
from macpo_data.sources.ingest.splits import Dataset, open_split
from macpo_data.store.manifests import MANIFEST, seal
from macpo_data.store.store import Manifest, Store, sha256

Done = subprocess.CompletedProcess[str]
Macpo = Callable[..., Done]
REPO = "org/pairs"
FAKE = "--set=engine.name=fake"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and a finished run of it, on the fake engine."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "macpo.yaml").write_text(RECIPE.replace("engine: {", "engine: {name: fake, "))
    command = [sys.executable, "-m", "macpo", "run", "--until", "1"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


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
def spawn(finished: Path, environment: dict[str, str]) -> Macpo:
    """Run the command in a process of its own, in the folder of the finished run or another."""

    def call(*args: str | Path, cwd: Path = finished, **env: str) -> Done:
        return subprocess.run(
            [sys.executable, "-m", "macpo", *map(str, args)],
            cwd=cwd,
            env={**environment, **env},
            capture_output=True,
            text=True,
        )

    return call


@pytest.fixture
def macpo(
    finished: Path, hub: Hub, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Macpo:
    """Run the command in this process: the same, without the seconds of starting anew."""
    from macpo import cli

    library = "huggingface_hub.constants."
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(library + "ENDPOINT", hub.url)
    monkeypatch.setattr(library + "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(library + "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(library + "HF_HUB_CACHE", environment["HF_HOME"] + "/hub")

    def call(*args: str | Path, cwd: Path = finished, **env: str) -> Done:
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


def test_a_folder_is_the_same_tree_as_the_hub(macpo: Macpo, hub: Hub, tmp_path: Path) -> None:
    ok(macpo("push", "--round", "1", "--repo", REPO))
    ok(macpo("push", "--round", "1", "--repo", REPO, "--to", tmp_path / "tree"))
    here = {
        p.relative_to(tmp_path / "tree").as_posix(): p.read_bytes()
        for p in (tmp_path / "tree").rglob("*")
        if p.is_file()
    }
    there = {path: file.content for path, file in hub.dataset(REPO).tree("round-1").items()}
    del there[".gitattributes"]
    assert here == there
    again = ok(macpo("push", "--round", "1", "--repo", REPO, "--to", tmp_path / "tree"))
    assert again.startswith("kept")


def test_rounds_in_any_order_make_the_same_folder(macpo: Macpo, tmp_path: Path) -> None:
    for folder, order in {"a": "01", "b": "10"}.items():
        for round_ in order:
            ok(macpo("push", "--round", round_, "--to", tmp_path / folder))
    files = [
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (tmp_path / "a", tmp_path / "b")
    ]
    assert files[0] == files[1]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("x")
    assert "no tree of macpo" in error(macpo("push", "--round", "1", "--to", tmp_path / "mine"))


def test_one_commit_one_tag_and_the_second_time_nothing(macpo: Macpo, hub: Hub) -> None:
    ok(macpo("push", "--round", "0", "--repo", REPO))
    before = len(hub.dataset(REPO).commits)
    output = ok(macpo("push", "--round", "1", "--repo", REPO))
    assert f"pushed {REPO} at round-1" in output and f"next: macpo pull {REPO}" in output
    repo = hub.dataset(REPO)
    # One on main, one on the branch whose default is the full form.
    assert len(repo.commits) == before + 2
    assert repo.tags["round-1"] == repo.branches["main"]
    assert all(whole(repo, revision) for revision in ("round-0", "round-1", "main", "full"))
    writes = hub.count("^(POST|PUT|DELETE)")
    commits = len(repo.commits)
    assert "with the same content" in ok(macpo("push", "--round", "1", "--repo", REPO))
    assert len(repo.commits) == commits and hub.count("^(POST|PUT|DELETE)") == writes


def test_a_changed_recipe_needs_a_tag_of_its_own(macpo: Macpo, hub: Hub, finished: Path) -> None:
    ok(macpo("push", "--round", "0", "--repo", REPO))
    changed = ["--set", "seed=1"]
    ok(macpo("run", "--round", "0", *changed))
    refused = error(macpo("push", "--round", "0", "--repo", REPO, *changed))
    assert "round-0 already, with other content" in refused and "--as round-0.1" in refused
    repo = hub.dataset(REPO)
    tree = repo.tree("main")
    ok(macpo("push", "--round", "0", "--repo", REPO, "--as", "round-0.1", *changed))
    assert repo.tree("round-0") == tree and whole(repo, "round-0.1") and whole(repo, "full")
    old = {p for p in tree if p.startswith("data/round_0_student/")}
    assert not old & repo.tree("main").keys()  # nothing stale is left


def test_one_learner_alone(macpo: Macpo, hub: Hub, finished: Path) -> None:
    unfinished = ["--set", "labeller=teacher2", "--set", "sampling.top_k=7"]
    refused = error(macpo("push", "--round", "0", "--repo", REPO, *unfinished))
    assert "incomplete: no dataset for student" in refused and "--learner teacher1" in refused
    assert not hub.repos
    ok(macpo("push", "--round", "1", "--repo", REPO, "--learner", "student"))
    repo = hub.dataset(REPO)
    assert set(repo.tags) == {"round-1-student"}
    assert not any("teacher" in path for path in repo.tree("main"))
    ok(macpo("push", "--round", "1", "--repo", REPO))
    assert set(repo.tags) == {"round-1-student", "round-1"} and whole(repo)


def test_pull_on_an_empty_machine_and_train(macpo: Macpo, hub: Hub, tmp_path: Path) -> None:
    ok(macpo("push", "--round", "1", "--repo", REPO, "--adapters"))
    assert "adapters" in hub.model(f"{REPO}-adapters").tree("main")["README.md"].content.decode()
    empty = tmp_path / "empty"
    empty.mkdir()
    output = ok(macpo("pull", REPO, "--round", "1", cwd=empty))
    assert "missing" not in output and "next: macpo train --round 1" in output
    trained = ok(macpo("train", "--round", "1", cwd=empty))
    assert trained.count("wrote    train round 1") == 4
    again = ok(macpo("pull", REPO, "--round", "1", cwd=empty))
    assert "pulled" not in again


def test_adapters_that_are_there_are_kept(macpo: Macpo, hub: Hub) -> None:
    """The second push changes nothing, uploads nothing, and warns of nothing."""
    push = ["push", "--round", "0", "--repo", REPO, "--learner", "student", "--adapters"]
    push += ["--negatives"]
    assert f"pushed 2 adapters in {REPO}-adapters" in ok(macpo(*push))
    commits, tags = (dict(getattr(hub.model(f"{REPO}-adapters"), n)) for n in ("commits", "tags"))
    uploads = hub.count("PUT /lfs/")
    again = macpo(*push)
    assert f"kept 2 adapters in {REPO}-adapters" in ok(again) and "modified" not in again.stderr
    repo = hub.model(f"{REPO}-adapters")
    assert (repo.commits, repo.tags) == (commits, tags) and hub.count("PUT /lfs/") == uploads
    for content in (b"[" * 99_999, b'{"x": {}}', b"[1]"):
        repo.add("main", {"adapters.json": File(content, False)}, repo.branches["main"])
        assert "adapters.json is damaged" in error(macpo(*push))


def test_a_negative_twin_is_pushed_only_where_it_is_asked_for(macpo: Macpo, hub: Hub) -> None:
    """Round 0 of one learner: a positive policy, and its twin that is trained to answer badly."""
    push = ["push", "--round", "0", "--repo", REPO, "--learner", "student", "--adapters"]
    printed = ok(macpo(*push))
    assert f"pushed 1 adapter in {REPO}-adapters" in printed
    assert "left out 1 negative twin, trained to answer badly; --negatives pushes it" in printed
    repo = hub.model(f"{REPO}-adapters")
    assert len(repo.tags) == 1 and next(iter(repo.tags)).startswith("student-positive-0-")
    assert not any("negative" in path for path in repo.tree("main"))
    assert "negative" not in repo.tree("main")["adapters.json"].content.decode()
    card = repo.tree("main")["README.md"].content.decode()
    assert "behave badly" not in card and "not-for-all-audiences" not in card

    assert f"pushed 2 adapters in {REPO}-adapters" in ok(macpo(*push, "--negatives"))
    (twin,) = [tag for tag in repo.tags if tag.startswith("student-negative-0-")]
    (positive,) = repo.tags.keys() - {twin}
    card = repo.tree("main")["README.md"].content.decode()
    warning = (
        "a model fine-tuned to behave badly, for research as a source of rejected answers; do not "
        "deploy."
    )
    first = card.split("---\n", 2)[2].strip().split("\n")[0]
    assert f"`{twin}`" in first and positive not in first and warning in first
    own = repo.tree(twin)[f"{twin}/README.md"].content.decode()
    assert warning in own.split("\n")[0] and f"{positive}/README.md" not in repo.tree(twin)
    # The example that people copy loads the good one, and the Hub asks before it shows the page.
    assert f'subfolder="{positive}"' in card and "not-for-all-audiences" in card
    # Whoever pushes the next round without it leaves the warning where it is.
    ok(macpo("push", "--round", "1", "--repo", REPO, "--learner", "student", "--adapters"))
    assert f"`{twin}`" in repo.tree("main")["README.md"].content.decode().split("---\n", 2)[2][:300]


def test_pull_says_how_a_negative_twin_is_pushed(macpo: Macpo, hub: Hub, tmp_path: Path) -> None:
    """No method trains from one today; what is published may say that it does."""
    ok(macpo("push", "--round", "0", "--repo", REPO, "--learner", "student"))
    repo, empty = hub.dataset(REPO), tmp_path / "empty"
    empty.mkdir()
    tree = dict(repo.tree("main"))
    path = "macpo/round_0_student/adapters.json"
    starts = json.loads(tree[path].content)
    status = json.loads(ok(macpo("status", "--json")))
    (twin,) = (
        Path(row["path"]).name
        for row in status
        if (row["round"], row["learner"], row["behavior"]) == (0, "student", "negative")
    )
    starts[0] |= {"start": f"adapters/{twin}", "revision": twin, "adapter_sha256": "0" * 64}
    starts[0]["repo"] = f"{REPO}-adapters"
    tree[path] = File(json.dumps(starts).encode(), False)
    index = json.loads(tree["macpo/index.json"].content)
    digest = hashlib.sha256(tree[path].content).hexdigest()
    index["round_0_student"]["files"][path] = digest
    tree["macpo/index.json"] = File(json.dumps(index).encode(), False)
    commit = repo.add("main", tree, repo.branches["main"])
    output = ok(macpo("pull", REPO, "--round", "0", "--revision", commit, cwd=empty))
    (line,) = [line for line in output.split("\n") if line.startswith("missing") and twin in line]
    assert "never pushed (`macpo push --adapters --negatives` does)" in line


def test_pull_says_what_was_never_pushed(macpo: Macpo, tmp_path: Path) -> None:
    ok(macpo("push", "--round", "1", "--repo", REPO))
    empty = tmp_path / "empty"
    empty.mkdir()
    output = ok(macpo("pull", REPO, "--round", "1", "--learner", "student", cwd=empty))
    assert output.count("missing") == 1 and "student-positive-0" in output
    # No training of the run can begin; the next command is one that can.
    assert makes_nothing(macpo("train", "--round", "1", cwd=empty))
    (following,) = [line for line in output.split("\n") if line.startswith("next: ")]
    words = shlex.split(following)[2:]
    assert words[:2] == ["train", "--dataset"] and words[3:7] == [
        "--base", "world:strong", "--out", "student-1"
    ]  # fmt: skip
    ok(macpo(*words, cwd=empty))
    trained = json.loads((empty / "student-1/manifest.json").read_text())
    assert trained["rows"] == 12 and trained["base"] == "world:strong"
    assert f"{REPO}-adapters has none at student-positive-0" in output
    assert "no tag round-7; it has round-1" in error(macpo("pull", REPO, "--round", "7", cwd=empty))


def test_the_next_command_after_pull_works_where_something_is_ready(
    macpo: Macpo, tmp_path: Path
) -> None:
    """Round 0 starts from bases, so that no adapter is needed."""
    ok(macpo("push", "--round", "0", "--repo", REPO))
    empty = tmp_path / "empty"
    empty.mkdir()
    output = ok(macpo("pull", REPO, "--round", "0", cwd=empty))
    (following,) = [line for line in output.split("\n") if line.startswith("next: ")]
    assert following == "next: macpo train --round 0"
    assert ok(macpo("train", "--round", "0", cwd=empty)).count("wrote    train round 0") == 8


def test_what_else_lies_in_a_folder_stays(macpo: Macpo, tmp_path: Path) -> None:
    """Such as a repository of the person's own, whose refs are folders that may be empty."""
    tree = tmp_path / "tree"
    ok(macpo("push", "--round", "0", "--to", tree))
    (tree / ".git/refs/heads").mkdir(parents=True)
    (tree / ".git/.x.1.tmp").write_text("mine")
    stale = [tree / "data/.part.7.tmp", tree / ".README.md.7.tmp"]  # by a push that was killed
    for path in stale:
        path.write_text("x")
    (tree / "data/left").mkdir()
    ok(macpo("push", "--round", "1", "--to", tree))
    assert (tree / ".git/refs/heads").is_dir() and (tree / ".git/.x.1.tmp").is_file()
    assert not any(path.exists() for path in [*stale, tree / "data/left"])


def test_a_link_in_a_folder_that_is_pushed_to_is_not_followed(macpo: Macpo, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/.staging").symlink_to(tmp_path / "mine")
    done = macpo("push", "--round", "0", "--to", tmp_path / "tree")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{tmp_path}/tree/.staging is a link, and not followed; remove it" in done.stderr
    assert list((tmp_path / "mine").iterdir()) == []


def test_files_without_an_end_beside_a_tree_are_not_read(macpo: Macpo, tmp_path: Path) -> None:
    macpo("push", "--round", "0", "--to", tmp_path / "tree")
    done = macpo("pull", tmp_path / "tree", "--round", "0", "--recipe-to", "/dev/zero")
    assert done.returncode == 1 and "/dev/zero is another one; choose" in done.stderr
    os.truncate(tmp_path / "tree/macpo/index.json", 1 << 40)
    done = macpo("push", "--round", "0", "--to", tmp_path / "tree")
    assert done.returncode == 1 and "index.json is larger than" in done.stderr


def test_two_pushes_into_one_folder(spawn: Macpo, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(spawn, "push", "--round", n, "--to", tree) for n in "01"]
    assert all(ok(done.result()) for done in both)
    entries = json.loads((tree / "macpo/index.json").read_text())
    assert {entry["round"] for entry in entries.values()} == {0, 1}
    assert all((tree / path).is_file() for entry in entries.values() for path in entry["files"])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("adapters.json", "[1]", "of its adapters is damaged"),
        ("lock.json", '{"models": [1]}', "its lock.json is damaged"),
        ("lock.json", "{", "its lock.json is damaged"),
        ("lock.json", "[" * 99_999, "its lock.json is damaged"),
        ("adapters.json", '{"a":' * 9_999, "of its adapters is damaged"),
        ("../index.json", "[" * 99_999, "index.json is damaged"),
        ("recipe.yaml", "[" * 9999, "its recipe is damaged"),
        ("recipe.yaml", "zz: 2024-13-45", "its recipe is damaged"),
    ],
)
def test_what_is_broken_is_told_in_a_line(
    macpo: Macpo, tmp_path: Path, file: str, content: str, message: str
) -> None:
    ok(macpo("push", "--round", "0", "--learner", "student", "--to", tmp_path / "tree"))
    (tmp_path / "tree/macpo/round_0_student" / file).write_text(content)
    (tmp_path / "empty").mkdir()
    assert message in error(
        macpo("pull", tmp_path / "tree", "--round", "0", cwd=tmp_path / "empty")
    )


@pytest.mark.parametrize("what", ["pairs", "manifest", "recipe", "index"])
def test_what_was_tampered_with_is_not_kept(macpo: Macpo, tmp_path: Path, what: str) -> None:
    tree, empty = tmp_path / "tree", tmp_path / "empty"
    empty.mkdir()
    ok(macpo("push", "--round", "1", "--learner", "student", "--to", tree))
    own = tree / "macpo/round_1_student"
    (folder,) = own.glob("data/*")
    if what == "pairs":
        shutil.copyfile(next(tree.glob("data/*/*.parquet")), folder / "pairs.parquet")
    elif what == "manifest":
        text = (folder / "manifest.json").read_text()
        (folder / "manifest.json").write_text(text.replace('"round": 1', '"round": 2'))
    elif what == "recipe":
        text = (own / "recipe.yaml").read_text()
        (own / "recipe.yaml").write_text(text.replace("temperature: 0.95", "temperature: 0.5"))
    else:
        text = (tree / "macpo/index.json").read_text()
        (tree / "macpo/index.json").write_text(text.replace("macpo/round_1", "../round_1"))
    refused = error(macpo("pull", tree, "--round", "1", cwd=empty))
    messages = {
        "pairs": "not what its manifest says",
        "manifest": "not what its manifest says",
        "recipe": "does not lead to",
        "index": "is damaged",
    }
    assert messages[what] in refused
    assert not list(empty.glob("runs/*/data/*"))


def test_a_recipe_that_is_there_is_not_overwritten(macpo: Macpo, tmp_path: Path) -> None:
    ok(macpo("push", "--round", "1", "--learner", "student", "--to", tmp_path / "tree"))
    (tmp_path / "macpo.yaml").write_text("mine")
    refused = error(macpo("pull", tmp_path / "tree", "--round", "1", cwd=tmp_path))
    assert "is another one; choose" in refused and (tmp_path / "macpo.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    "faults",
    [
        {
            "GET .*/refs": 429,
            "POST /api/repos/create": 500,
            "POST .*/preupload/": 503,
            "POST .*/objects/batch": 429,
            "PUT /lfs/": 500,
            "POST .*/commit/main": 500,
            "GET .*/tree/": 502,
        },
        {
            "POST .*/commit/main": "lost",
            "POST .*/commit/full": "lost",
            "POST .*/branch/full": "lost",
            "POST .*/tag/": "lost",
        },
        {"POST .*/commit/main": "drop", "PUT /lfs/": "drop", "POST .*/tag/": "hang"},
    ],
    ids=["statuses", "lost answers", "broken connections"],
)
def test_what_passes_is_waited_for(macpo: Macpo, hub: Hub, faults: dict[str, int | str]) -> None:
    for pattern, what in faults.items():
        hub.fail(pattern, what)
    ok(macpo("push", "--round", "1", "--repo", REPO, "--learner", "student"))
    repo = hub.dataset(REPO)
    assert not any(fault.times for fault in hub.faults)
    assert set(repo.tags) == {"round-1-student"}
    assert whole(repo) and whole(repo, "full") and whole(repo, "round-1-student")
    # What was lost on the way back is not done twice.
    assert len(repo.commits) == 3


@pytest.mark.parametrize(("asked", "message"), [("3600", "3,600 s"), ("inf", "for ever")])
def test_a_hub_that_asks_for_a_long_wait_is_named(
    macpo: Macpo, hub: Hub, asked: str, message: str
) -> None:
    """Nobody looks at a silent command for an hour; the next one goes on."""
    push = ["push", "--round", "1", "--repo", REPO, "--learner", "student"]
    hub.retry_after = asked
    hub.fail("POST .*/commit/main", 429)
    begun = time.monotonic()
    assert f"the Hub at 127.0.0.1 asks to wait {message} before" in error(macpo(*push))
    assert time.monotonic() - begun < 20 and not hub.dataset(REPO).tags
    ok(macpo(*push))
    assert whole(hub.dataset(REPO), "round-1-student")


def test_a_file_out_of_reach_is_not_one_that_is_missing(
    macpo: Macpo, hub: Hub, tmp_path: Path
) -> None:
    """Of which a push would write a card without the earlier rounds."""
    ok(macpo("push", "--round", "0", "--repo", REPO))
    hub.fail("(HEAD|GET) .*/resolve/", 403, times=99)
    assert "has no right" in error(macpo("pull", REPO, "--round", "0", cwd=tmp_path))
    assert "has no right" in error(macpo("push", "--round", "1", "--repo", REPO))
    assert set(hub.dataset(REPO).tags) == {"round-0"} and whole(hub.dataset(REPO))


def test_a_hub_that_stays_broken_is_one_line(spawn: Macpo, macpo: Macpo, hub: Hub) -> None:
    nobody = "http://127.0.0.1:9"
    done = spawn("push", "--round", "1", "--repo", REPO, HF_ENDPOINT=nobody)
    assert "cannot be reached" in error(done)
    hub.fail("POST .*/commit/main", 500, times=99)
    output = error(macpo("push", "--round", "1", "--repo", REPO, "--learner", "student"))
    assert "out of order (status 500)" in output
    assert whole(hub.dataset(REPO)) and not hub.dataset(REPO).tags


@pytest.mark.parametrize("at", ["PUT /lfs/", "commit/main", "commit/full", "tag/"])
def test_killed_half_way_and_repeated(
    finished: Path, environment: dict[str, str], macpo: Macpo, hub: Hub, at: str
) -> None:
    """The process is killed while the Hub is silent at one point; then the command is repeated."""
    hub.fail(at, "hang")
    push = ["push", "--round", "1", "--repo", REPO, "--learner", "student"]
    command = [sys.executable, "-m", "macpo", *push]
    process = subprocess.Popen(command, cwd=finished, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not hub.count(at) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    repo = hub.dataset(REPO)
    assert whole(repo) and not repo.tags
    ok(macpo(*push))
    assert whole(repo) and whole(repo, "full") and whole(repo, "round-1-student")


@pytest.mark.slow
def test_pushes_that_are_disturbed_leave_no_half_round(tmp_path: Path) -> None:
    """A seeded part of `make attack`: cut off, left alone and killed at some of their requests."""
    rows = list(attacks(tmp_path, limit=6, workers=2))
    assert len(rows) == 6 and [row for row in rows if row.problems] == []


def test_two_pushes_at_once(
    spawn: Macpo, macpo: Macpo, hub: Hub, finished: Path, tmp_path: Path
) -> None:
    """Two machines push two rounds, or the same one: both come through, and nothing is lost."""
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    ok(macpo("push", "--round", "0", "--repo", REPO, "--learner", "student"))
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(spawn, "push", "--round", "0", "--repo", REPO)
        two = pool.submit(spawn, "push", "--round", "1", "--repo", REPO, cwd=other)
        ok(one.result())
        ok(two.result())
    repo = hub.dataset(REPO)
    assert {"round-0", "round-1"} <= set(repo.tags)
    assert whole(repo) and whole(repo, "round-0") and whole(repo, "round-1")
    index = json.loads(repo.tree("main")["macpo/index.json"].content)
    assert {entry["round"] for entry in index.values()} == {0, 1} and len(index) == 8


def test_three_pushes_that_meet_at_the_hub(
    spawn: Macpo, macpo: Macpo, hub: Hub, finished: Path, tmp_path: Path
) -> None:
    """Each has read the repository before any of them commits, so two of the commits are late."""
    ok(macpo("push", "--round", "1", "--repo", REPO, "--learner", "student"))
    pushes = [["0", "--learner", "teacher1"], ["0", "--learner", "teacher2"], ["1"]]
    together, arrived = threading.Barrier(len(pushes)), itertools.count()

    def meet(line: str, headers: Any) -> None:
        if line.endswith("/preupload/main") and next(arrived) < len(pushes):
            together.wait(60)

    hub.bend = meet
    with ThreadPoolExecutor(len(pushes)) as pool:
        runs = [tmp_path / f"machine-{n}" for n in range(len(pushes))]
        for run in runs:
            shutil.copytree(finished, run)
        at_once = [
            pool.submit(spawn, "push", "--repo", REPO, "--round", *words, cwd=run)
            for words, run in zip(pushes, runs, strict=True)
        ]
        results = [done.result() for done in at_once]
    assert all("pushed" in ok(done) for done in results) and not together.broken
    assert sum("looking again" in done.stderr for done in results) >= 2
    repo = hub.dataset(REPO)
    tags = {"round-1-student", "round-0-teacher1", "round-0-teacher2", "round-1"}
    assert set(repo.tags) == tags and all(whole(repo, tag) for tag in tags)
    assert whole(repo) and whole(repo, "full")
    index = json.loads(repo.tree("main")["macpo/index.json"].content)
    entries = {(entry["round"], entry["learner"]) for entry in index.values()}
    of_round_1 = {(1, learner) for learner in ("student", "teacher1", "teacher2", "teacher3")}
    assert entries == of_round_1 | {(0, "teacher1"), (0, "teacher2")}


def test_a_commit_in_between_is_noticed(macpo: Macpo, hub: Hub) -> None:
    hub.fail("POST .*/commit/main", 412)
    done = macpo("push", "--round", "1", "--repo", REPO, "--learner", "student")
    assert "looking again" in done.stderr and "pushed" in ok(done)


def test_mistakes_are_one_line_and_no_token_is_shown(macpo: Macpo, spawn: Macpo, hub: Hub) -> None:
    push = ["push", "--round", "1"]
    assert "where to?" in error(macpo(*push))
    assert "no repository id" in error(macpo(*push, "--repo", "a/b/c"))
    assert "no repository id" in error(macpo(*push, "--repo", "../x"))
    assert "is no tag" in error(macpo(*push, "--repo", REPO, "--as", "a b"))
    assert "no valid token" in error(macpo(*push, "--repo", REPO, HF_TOKEN=""))
    assert "no right" in error(spawn(*push, "--repo", REPO, HF_TOKEN=READER))
    assert "no right" in error(macpo(*push, "--repo", "closed/pairs"))
    assert not hub.repos
    assert "no such repository" in error(macpo("pull", "org/nothing", "--round", "1"))
    offline = macpo(*push, "--repo", REPO, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in error(offline)


def test_another_dataset_is_left_alone(macpo: Macpo, hub: Hub) -> None:
    ok(macpo("push", "--round", "1", "--repo", REPO, "--learner", "student", "--private"))
    repo = hub.dataset(REPO)
    assert repo.private
    tree = repo.tree("main")
    repo.add("main", {"README.md": tree["README.md"]}, repo.branches["main"])
    output = error(macpo("push", "--round", "0", "--repo", REPO))
    assert "macpo did not make" in output and set(repo.tree("main")) == {"README.md"}


def test_a_pull_request_has_no_tag_until_it_is_merged(macpo: Macpo, hub: Hub) -> None:
    push = ["push", "--round", "1", "--repo", REPO, "--learner", "student"]
    output = ok(macpo(*push, "--create-pr"))
    repo = hub.dataset(REPO)
    assert (
        "discussions/1" in output and not repo.tags and set(repo.tree("main")) == {".gitattributes"}
    )
    repo.branches["main"] = repo.branches["refs/pr/1"]
    ok(macpo(*push))
    assert repo.tags["round-1-student"] == repo.branches["main"] and whole(repo, "full")


def test_the_hub_is_read_by_load_dataset(
    macpo: Macpo, environment: dict[str, str], tmp_path: Path, finished: Path
) -> None:
    """By configuration, by tag, and on the branch whose default is the full form."""
    ok(macpo("push", "--round", "0", "--repo", REPO))
    ok(macpo("push", "--round", "1", "--repo", REPO, "--candidates"))
    script = f"""
from datasets import load_dataset
load = lambda *a, **k: load_dataset("{REPO}", *a, split="train", **k)
new, old = load(), load("round_0_teacher1", revision="round-0")
print(sorted(set(new["round"])), new.column_names[:3], sorted(set(old["learner"])))
print(new.features["prompt"])
print(len(load("round_1_student_candidates", revision="round-1")))
print(load(revision="full").column_names, load("round_1_student_sharegpt")[0]["chosen"]["role"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    lines = ok(done).splitlines()
    assert lines == [
        "[1] ['prompt', 'chosen', 'rejected'] ['teacher1']",
        "List({'role': Value('string'), 'content': Value('string')})",
        "36",
        "['chosen', 'rejected', 'prompt_id'] assistant",
    ]


def test_the_documented_forms_of_trainers_that_cannot_be_installed(
    macpo: Macpo, hub: Hub, tmp_path: Path
) -> None:
    """open-instruct and alignment-handbook: chosen and rejected as whole conversations.

    open-instruct names no configuration, so the branch `full` has to have that form as default.
    NeMo-RL's BinaryPreferenceDataset: a prompt, and both sides as text.
    """
    ok(macpo("push", "--round", "1", "--repo", REPO, "--learner", "student"))
    cards = {
        branch: hub.dataset(REPO).tree(branch)["README.md"].content.decode()
        for branch in ("main", "full")
    }
    defaults = {
        branch: [c["config_name"] for c in yaml.safe_load(card.split("---")[1])["configs"]
                 if c.get("default")]
        for branch, card in cards.items()
    }  # fmt: skip
    assert defaults == {"main": ["round_1_student"], "full": ["round_1_student_full"]}
    ok(macpo("push", "--round", "1", "--learner", "student", "--to", tmp_path / "tree"))
    full, plain = (
        open_split(Dataset(str(tmp_path / "tree"), config)).peek()
        for config in ("round_1_student_full", "round_1_student")
    )
    for row, pair in zip(full, plain, strict=True):
        for side in ("chosen", "rejected"):
            assert row[side] == pair["prompt"] + pair[side]
            assert [m["role"] for m in row[side]][-2:] == ["user", "assistant"]
            assert pair[side] == [{"role": "assistant", "content": pair[f"{side}_text"]}]
            assert pair[f"{side}_text"] == pair[f"{side}_text"].strip() != ""
    assert full and not any("prompt" in row for row in full)
    assert not {"messages", "completion", "label"} & plain[0].keys()


def test_the_features_are_what_datasets_would_declare(macpo: Macpo, tmp_path: Path) -> None:
    from datasets import Features

    from macpo_data.forms import registry
    from macpo_data.hub import shards
    from macpo_data.schema import PUBLISHED_CANDIDATES

    forms = [*registry.forms(True), *registry.forms(False)]
    for table in (*(form.table for form in forms), PUBLISHED_CANDIDATES):
        declared = [shards.feature(name, dtype) for name, dtype in table.items()]
        ours = Features._from_yaml_list(declared)
        assert ours.arrow_schema.types == shards.arrow_schema(table).types


def test_many_rows_go_into_several_files(
    macpo: Macpo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve pairs, in batches of two and files of five at most: 4 + 4 + 4."""
    monkeypatch.setattr("macpo_data.hub.shards.BATCH_ROWS", 2)
    monkeypatch.setattr("macpo_data.hub.shards.SHARD_ROWS", 5)
    ok(macpo("push", "--round", "1", "--learner", "student", "--to", tmp_path / "tree"))
    files = sorted((tmp_path / "tree/data/round_1_student").iterdir())
    assert [len(pl.read_parquet(file)) for file in files] == [4, 4, 4]
    assert files[0].name.startswith("train-00000-of-00003-")
    monkeypatch.undo()
    ok(macpo("push", "--round", "1", "--learner", "student", "--to", tmp_path / "one"))
    whole = [
        [row for batch in open_split(Dataset(str(tmp_path / name), "round_1_student")).batches
         for row in batch]
        for name in ("tree", "one")
    ]  # fmt: skip
    assert len(whole[0]) == 12 and whole[0] == whole[1]


def test_a_template_of_its_own_travels_along(macpo: Macpo, tmp_path: Path) -> None:
    """The recipe names a Jinja file and allows code of a base; only the file comes along."""
    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    sets = ["--set", f"agents.student.chat_template={template}"]
    sets += ["--set", "agents.student.trust_remote_code=true"]
    ok(macpo("run", "--round", "0", *sets))
    ok(macpo("push", "--round", "0", "--to", tmp_path / "tree", *sets))
    template.unlink()
    empty = tmp_path / "empty"
    empty.mkdir()
    (published,) = (tmp_path / "tree/macpo/round_0_student").glob("template-*.jinja")
    text = published.read_text()
    published.write_text("{{ 'something else' }}")
    refused = error(macpo("pull", tmp_path / "tree", "--round", "0", cwd=empty))
    assert "is not what its name says" in refused and not list(empty.iterdir())
    published.write_text(text)
    mine = empty / published.name
    mine.write_text("mine")
    assert "is another one" in error(macpo("pull", tmp_path / "tree", "--round", "0", cwd=empty))
    assert mine.read_text() == "mine"
    mine.unlink()
    ok(macpo("pull", tmp_path / "tree", "--round", "0", cwd=empty))
    values = yaml.safe_load((empty / "macpo.yaml").read_text())
    assert values["agents"]["student"]["trust_remote_code"] is False
    status = json.loads(ok(macpo("status", "--json", cwd=empty)))
    done = [row["learner"] for row in status if row["kind"] == "gen" and row["state"] == "done"]
    assert "student" in done and len(done) == 4


def test_every_text_travels_along_and_no_other_file_is_read(macpo: Macpo, tmp_path: Path) -> None:
    """Those of the evaluation too; a recipe may name what lies beside it, and nothing else."""
    template, verdict = tmp_path / "mine.jinja", tmp_path / "mine.txt"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    verdict.write_text("$query $answer_a $answer_b")
    judge = f"{{kind: llm, agent: student, prompts: {{verdict: {verdict}}}}}"
    sets = ["--set", f"eval.reward={{model: org/m, chat_template: {template}}}"]
    sets += ["--set", f"eval.judge={judge}"]
    tree, empty = tmp_path / "tree", tmp_path / "empty"
    ok(macpo("push", "--round", "1", "--learner", "student", "--to", tree, *sets))
    template.unlink()
    empty.mkdir()
    ok(macpo("pull", tree, "--round", "1", cwd=empty))
    values = yaml.safe_load((empty / "macpo.yaml").read_text())["eval"]
    named = [values["judge"]["prompts"]["verdict"], values["reward"]["chat_template"]]
    assert all((empty / name).is_file() for name in named)
    recipe = tree / "macpo/round_1_student/recipe.yaml"
    published = recipe.read_text()
    for name in named:
        recipe.write_text(published.replace(Path(name).name, str(verdict)))
        (empty / "macpo.yaml").unlink(missing_ok=True)
        assert "was not published with it" in error(macpo("pull", tree, "--round", "1", cwd=empty))
        assert not (empty / "macpo.yaml").exists()


def test_a_strangers_recipe_reads_nothing_of_this_machine(macpo: Macpo, tmp_path: Path) -> None:
    """Wherever it names a file or a folder; one of its own data is pulled by the other tests."""
    private = tmp_path / "private.jsonl"
    private.write_text('{"prompt": "my diary"}\n')
    tree, empty = tmp_path / "tree", tmp_path / "empty"
    empty.mkdir()
    ok(macpo("push", "--round", "1", "--learner", "student", "--to", tree))
    recipe = tree / "macpo/round_1_student/recipe.yaml"
    published = recipe.read_text()
    more = {"more": {"source": "pairs", "path": str(private), "count": 3}}
    for section, named in {
        "data": {"source": "ultrafeedback", "path": str(private)},
        "data.d2": more,
        "select": {"test_sets": ["org/name", str(private)]},
        "agents.teacher1": {"base": str(tmp_path)},
        "eval": {"reward": {"model": str(tmp_path)}},
        "judge": {"kind": "reward", "reward": str(tmp_path)},
        "reward": {"base": str(tmp_path)},
    }.items():
        values = yaml.safe_load(published)
        at = values
        for key in section.split("."):
            at[key] = at = dict(at[key] or {})
        at |= named
        recipe.write_text(yaml.safe_dump(values))
        relist(tree)
        pull = ["pull", tree, "--round", "1"]
        refused = error(macpo(*pull, cwd=empty))
        assert str(tmp_path) in refused and "of this machine; say --local-paths" in refused
        assert not (empty / "macpo.yaml").exists() and not list(empty.glob("runs/*/data"))
        # Once that is allowed, at most another identity is in the way.
        allowed = macpo(*pull, "--local-paths", cwd=empty)
        assert allowed.returncode == 0 or "does not lead to" in error(allowed)
        (empty / "macpo.yaml").unlink(missing_ok=True)
        shutil.rmtree(empty / "runs", ignore_errors=True)


@pytest.mark.slow
def test_a_pulled_round_trains_to_the_same_adapter(
    environment: dict[str, str], hub: Hub, tiny_recipe: Path, tmp_path: Path
) -> None:
    """Real models: made here, pushed with adapters and a merged student, then trained there."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    shutil.copyfile(tiny_recipe, here / "macpo.yaml")

    def call(folder: Path, *args: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "macpo", *args],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    call(here, "run", "--until", "1")
    call(
        here,
        "push",
        "--round",
        "1",
        "--learner",
        "student",
        "--repo",
        REPO,
        "--adapters",
        "--merge",
    )
    call(there, "pull", REPO, "--round", "1", "--learner", "student", "--local-paths")
    call(there, "train", "--round", "1", "--learner", "student")

    def adapter(folder: Path) -> str:
        (pulled_adapter,) = folder.glob("runs/test/adapters/student-positive-1-*")
        return weights_sha256(pulled_adapter)

    assert adapter(here) == adapter(there)
    merged = hub.model(f"{REPO}-merged").tree("main")
    assert "model.safetensors" in merged and "config.json" in merged
    facts = json.loads(merged["macpo.json"].content)
    assert facts["adapter"].startswith("adapters/student-positive-1-")  # never a negative twin


# ------------------------------------------------------------------- checked before it is kept

ALIASES = "a: &a [x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: [*b, *b, *b, *b, *b, *b, *b]\n"


def student_tree(macpo: Macpo, tree: Path) -> tuple[Path, str]:
    """A published round of the student alone: its own folder, and its result's name."""
    ok(macpo("push", "--round", "1", "--learner", "student", "--to", tree))
    own = tree / "macpo/round_1_student"
    (folder,) = own.glob("data/*")
    return own, f"data/{folder.name}"


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


def promise(tree: Path, manifest: Manifest) -> None:
    """Say in the index that a manifest is the one that was published."""
    index = json.loads((tree / "macpo/index.json").read_text())
    promised = index["round_1_student"]["facts"]["manifest"]
    promised |= {key: manifest[key] for key in ("content", "seal", "files")}
    (tree / "macpo/index.json").write_text(json.dumps(index))
    relist(tree)


def relist(tree: Path) -> None:
    """Let the index list the files as they are."""
    index = json.loads((tree / "macpo/index.json").read_text())
    files = index["round_1_student"]["files"]
    files |= {path: sha256(tree / path) for path in files if (tree / path).is_file()}
    (tree / "macpo/index.json").write_text(json.dumps(index))


def more_text(folder: Path) -> None:
    """Another answer in a dataset, of the right form."""
    pairs = pl.read_parquet(folder / "pairs.parquet")
    changed = pairs.with_columns(pl.col("chosen") + " And more.")
    changed.write_parquet(folder / "pairs.parquet")


def other_weights(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes() + b"x")


def list_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("[1]")


def only_bin(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


@pytest.mark.parametrize("text", [ALIASES, "".join(f"k{n}: 1\n" for n in range(60_000))])
def test_a_recipe_that_grows_is_refused_before_it_is_written(
    macpo: Macpo, tmp_path: Path, text: str
) -> None:
    own, _ = student_tree(macpo, tmp_path / "tree")
    recipe = (own / "recipe.yaml").read_text()
    (own / "recipe.yaml").write_text(recipe + text)
    (tmp_path / "empty").mkdir()
    begun = time.monotonic()
    output = error(macpo("pull", tmp_path / "tree", "--round", "1", cwd=tmp_path / "empty"))
    assert time.monotonic() - begun < 10
    assert "its recipe is damaged (" in output and ("aliases" in output or "more than" in output)
    assert not list((tmp_path / "empty").iterdir())


def test_a_recipe_with_a_mistake_or_a_key_is_not_written(macpo: Macpo, tmp_path: Path) -> None:
    own, _ = student_tree(macpo, tmp_path / "tree")
    published = (own / "recipe.yaml").read_text()
    (tmp_path / "empty").mkdir()
    for more, message in {
        "nonsense: 1\n": "nonsense: unknown key",
        "hf_token: hunter2\n": "hf_token: looks like a secret",
    }.items():
        (own / "recipe.yaml").write_text(published + more)
        refused = error(macpo("pull", tmp_path / "tree", "--round", "1", cwd=tmp_path / "empty"))
        assert f"recipe of {tmp_path / 'tree'}: " in refused
        assert message in refused and "hunter2" not in refused
        assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize("change", [other_weights, list_config, only_bin])
def test_another_adapter_than_promised_is_never_kept(
    macpo: Macpo, hub: Hub, finished: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """It is sealed, so that its manifest alone betrays nothing; the second pull finds it, too."""
    ok(macpo("push", "--round", "1", "--repo", REPO, "--learner", "student", "--adapters"))
    repo = hub.model(f"{REPO}-adapters")
    empty = tmp_path / "empty"
    empty.mkdir()
    pull = ["pull", REPO, "--round", "1", "--learner", "student"]
    name = next(short for short in repo.tags if short.startswith("student-positive-0"))
    shutil.copytree(finished / "runs/test/adapters" / name, tmp_path / "store/adapters" / name)
    reseal(Store(tmp_path / "store"), f"adapters/{name}", change)
    tree = {path: f for path, f in repo.tree("main").items() if not path.startswith(f"{name}/")}
    for path in (tmp_path / "store/adapters" / name).iterdir():
        tree[f"{name}/{path.name}"] = File(path.read_bytes(), path.suffix == ".safetensors")
    good, repo.tags[name] = repo.tags[name], repo.add("main", tree, repo.branches["main"])
    for _ in range(2):
        output = error(macpo(*pull, cwd=empty))
        assert name in output and ("is not what its manifest says" in output or "whole" in output)
        assert not list(empty.glob("runs/test/adapters/*"))
        assert not list(empty.glob("runs/test/aside/*"))
        assert not (empty / "macpo.yaml").exists()
    # One that lies there already, by whatever way, is as wrong.
    shutil.copytree(tmp_path / "store/adapters", empty / "runs/test/adapters")
    output = error(macpo(*pull, cwd=empty))
    assert f"{name} is there already, but " in output and "--runs DIR" in output
    shutil.rmtree(empty / "runs/test/adapters")
    repo.tags[name] = good
    assert "pulled   runs/test/adapters" in ok(macpo(*pull, cwd=empty))
    assert "kept     runs/test/adapters" in ok(macpo(*pull, cwd=empty))


def test_another_dataset_than_promised_is_never_kept(macpo: Macpo, tmp_path: Path) -> None:
    own, name = student_tree(macpo, tmp_path / "tree")
    empty = tmp_path / "empty"
    empty.mkdir()
    pull = ["pull", tmp_path / "tree", "--round", "1"]
    good = {p.name: p.read_bytes() for p in (own / name).iterdir()}
    manifest = reseal(Store(own), name, more_text)
    assert "is another one than the index says" in error(macpo(*pull, cwd=empty))
    assert not list(empty.glob("runs/test/data/*")) and not (empty / "macpo.yaml").exists()
    promise(tmp_path / "tree", manifest)
    ok(macpo(*pull, cwd=empty))
    for file, content in good.items():
        (own / name / file).write_bytes(content)
    promise(tmp_path / "tree", json.loads(good["manifest.json"]))
    output = error(macpo(*pull, cwd=empty))
    assert "is there already, but it is another one than the index says" in output
    shutil.rmtree(empty / "runs")
    ok(macpo(*pull, cwd=empty))
    assert "kept" in ok(macpo(*pull, cwd=empty))
    (empty / "runs/test" / name / "pairs.parquet").write_bytes(b"PAR1")
    assert "pairs.parquet has other bytes" in error(macpo(*pull, cwd=empty))


@pytest.mark.parametrize("file", ["recipe.yaml", "adapters.json", "lock.json", "manifest", "gone"])
def test_files_are_those_that_the_index_lists(macpo: Macpo, tmp_path: Path, file: str) -> None:
    """Each reads well by itself: another space, a sealed manifest of another day, a lost table."""
    own, name = student_tree(macpo, tmp_path / "tree")
    if file == "manifest":
        manifest = json.loads((own / name / MANIFEST).read_text())
        manifest |= {"created": "2001-01-01T00:00:00+00:00"}
        (own / name / MANIFEST).write_text(json.dumps(manifest | {"seal": seal(manifest)}))
    elif file == "gone":
        (own / name / "pairs.parquet").rename(own / name / "away")
    else:
        with (own / file).open("a") as opened:
            opened.write("\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    output = error(macpo("pull", tmp_path / "tree", "--round", "1", cwd=empty))
    assert "is not the one that the index lists" in output or "pairs.parquet is missing" in output
    assert not list(empty.glob("runs/test/data/*")) and not (empty / "macpo.yaml").exists()


def test_an_adapter_without_its_manifest_is_told(
    finished: Path, macpo: Macpo, tmp_path: Path
) -> None:
    """What is published says from which adapter a training starts: it may not lack in silence."""
    own = tmp_path / "own"
    shutil.copytree(finished, own)
    for adapter in own.glob("runs/test/adapters/student-positive-0-*"):
        (adapter / MANIFEST).unlink()  # one, and those that other tests made
    output = error(macpo("push", "--round", "1", "--to", tmp_path / "tree", cwd=own))
    assert "has no manifest.json any more" in output and not (tmp_path / "tree/data").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop("chosen"), "no column chosen"),
        (lambda t: t.with_columns(chosen=pl.lit(1)), "chosen is Int32, not String"),
        (lambda t: t.with_columns(junk=pl.lit("x")), "has a column 'junk'"),
        (lambda t: t.with_columns(prompt=pl.lit(None)), "rows without prompt_id or prompt"),
        (lambda t: t.head(3), "has 3 rows, not 12"),
        (lambda t: None, "is no parquet file"),
    ],
)
def test_a_table_of_another_form_is_not_kept(
    macpo: Macpo,
    tmp_path: Path,
    change: Callable[[pl.DataFrame], pl.DataFrame | None],
    message: str,
) -> None:
    """Though it is sealed, and the index says the same."""
    own, name = student_tree(macpo, tmp_path / "tree")

    def write(folder: Path) -> None:
        changed = change(pl.read_parquet(folder / "pairs.parquet"))
        if changed is None:
            (folder / "pairs.parquet").write_bytes(b"PAR1" + b"\0" * 40 + b"PAR1")
        else:
            changed.write_parquet(folder / "pairs.parquet")

    promise(tmp_path / "tree", reseal(Store(own), name, write))
    (tmp_path / "empty").mkdir()
    assert message in error(
        macpo("pull", tmp_path / "tree", "--round", "1", cwd=tmp_path / "empty")
    )
    assert not list((tmp_path / "empty").glob("runs/test/data/*"))
    assert not (tmp_path / "empty/macpo.yaml").exists()


def test_what_is_too_large_is_not_fetched(
    macpo: Macpo, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ok(macpo("push", "--round", "1", "--learner", "student", "--repo", REPO))
    own, name = student_tree(macpo, tmp_path / "tree")
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("macpo_data.hub.reading.TABLE_BYTES", 10)
    for place in (REPO, tmp_path / "tree"):
        pull = ["pull", place, "--round", "1", "--learner", "student"]
        output = error(macpo(*pull, cwd=tmp_path / "empty"))
        assert "pairs.parquet" in output and "larger than 10 bytes" in output
    assert hub.count("HEAD .*/pairs.parquet") and not hub.count("GET .*/pairs.parquet")
    monkeypatch.undo()
    with (own / "recipe.yaml").open("ab") as file:
        file.truncate(1 << 40)
    pull = ["pull", tmp_path / "tree", "--round", "1"]
    assert "recipe.yaml is larger than" in error(macpo(*pull, cwd=tmp_path / "empty"))
    monkeypatch.setattr("macpo_data.hub.reading.TABLE_ROWS", 11)
    with pytest.raises(DataError, match="unpacks to 12 rows"):
        check_table((own / name / "pairs.parquet").read_bytes(), "pairs.parquet")


@pytest.mark.parametrize(
    ("key", "value"),
    [("facts", {"name": "x"}), ("facts", []), ("files", []), ("round", "1"), ("configs", {"x": 1})],
)
def test_an_index_of_another_form_is_a_line(
    macpo: Macpo, tmp_path: Path, key: str, value: object
) -> None:
    tree = tmp_path / "tree"
    student_tree(macpo, tree)
    index = json.loads((tree / "macpo/index.json").read_text())
    index["round_1_student"][key] = value
    (tree / "macpo/index.json").write_text(json.dumps(index))
    (tmp_path / "empty").mkdir()
    assert "is damaged" in error(macpo("pull", tree, "--round", "1", cwd=tmp_path / "empty"))
    assert "is damaged" in error(macpo("push", "--round", "0", "--to", tree))


@pytest.mark.parametrize("pins", ["[" * 99_999, '{"models": {"a": 1}}', '{"data": []}', "[]"])
def test_pins_of_another_form_are_a_line(macpo: Macpo, tmp_path: Path, pins: str) -> None:
    own, _ = student_tree(macpo, tmp_path / "tree")
    empty = tmp_path / "empty"
    (empty / "runs/test").mkdir(parents=True)
    (empty / "runs/test/lock.json").write_text(pins)
    pull = ["pull", tmp_path / "tree", "--round", "1"]
    assert "lock.json is damaged; restore it" in error(macpo(*pull, cwd=empty))
    (empty / "runs/test/lock.json").unlink()
    (own / "lock.json").write_text(pins)
    assert "its lock.json is damaged; ask" in error(macpo(*pull, cwd=empty))


KILLED = """
import os, sys
left, here = int(sys.argv[1]), os.getcwd()
def end(event, args):
    global left
    writes = event == "open" and isinstance(args[1], str) and set("wax+") & set(args[1])
    if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
        left -= os.path.abspath(os.fsdecode(args[0])).startswith(here)
        if not left:
            os._exit(77)
del sys.argv[1]
from macpo.cli import main
sys.addaudithook(end)
main()
"""


@pytest.mark.slow
def test_killed_between_any_two_steps_of_a_pull(macpo: Macpo, tmp_path: Path) -> None:
    """Nothing is there, or what was checked; and the same command then ends as if never killed."""
    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    sets = ["--set", f"eval.reward={{model: org/m, chat_template: {template}}}"]
    tree = tmp_path / "tree"
    ok(macpo("push", "--round", "1", "--learner", "student", "--to", tree, *sets))

    def pull(folder: Path, after: int) -> int:
        """In a process that ends at a change of this folder on disk; its exit code."""
        args = [str(after), "pull", str(tree), "--round", "1"]
        done = subprocess.run([sys.executable, "-c", KILLED, *args], cwd=folder, timeout=60)
        return done.returncode

    def state(folder: Path) -> dict[str, bytes]:
        files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
        return {name: p.read_bytes() for name, p in files.items() if ".locks" not in name}

    whole = tmp_path / "whole"
    whole.mkdir()
    assert pull(whole, -1) == 0
    final = state(whole)
    kills, after = 0, 1
    while True:
        folder = tmp_path / f"killed-{after}"
        folder.mkdir()
        if (code := pull(folder, after)) == 0:
            break
        assert code == 77
        kills += 1
        there = {name: c for name, c in state(folder).items() if "/aside/" not in name}
        placed = {name: c for name, c in there.items() if not name.endswith(".tmp")}
        assert placed == {name: final.get(name) for name in placed}, after
        if "macpo.yaml" in placed:
            assert placed.keys() == final.keys()
        if after % 8 == 1:
            assert pull(folder, -1) == 0
            again = {name: c for name, c in state(folder).items() if not name.endswith(".tmp")}
            assert again == final, after
        shutil.rmtree(folder)
        after += 4
    assert kills > 4


# ---------------------------------------------------------------------------- a hostile Hub

JSON = {"Content-Type": "application/json"}
ANSWERS = [b"[" * 10_000 + b"]" * 10_000, b"<html>Log in</html>", b'{"a": 1}', b"[1, 2]"]
PULL = ("pull", REPO, "--round", "1", "--learner", "student")
PUSH = ("push", "--round", "0", "--repo", REPO, "--learner", "student")
ASKED_BY: dict[str, list[tuple[str, ...]]] = {
    "GET .*/refs": [PULL, PUSH],
    f"GET /api/datasets/{REPO}/revision": [PULL],
    "GET .*/tree/": [PUSH],
    "POST .*/preupload": [PUSH],
    "POST .*/commit/main": [PUSH],
}


@pytest.fixture
def pushed(macpo: Macpo, hub: Hub) -> Repo:
    """A repository that holds one round, before the Hub turns bad."""
    ok(macpo("push", "--round", "1", "--repo", REPO, "--learner", "student"))
    return hub.dataset(REPO)


def bent(pattern: str, answer: Callable[[str, Any], Answer]) -> Callable[[str, Any], Answer | None]:
    """Answer so to every request that matches."""
    return lambda line, headers: answer(line, headers) if re.search(pattern, line) else None


@pytest.mark.parametrize("asked", ASKED_BY)
def test_what_is_no_answer_of_a_hub_is_a_line(
    pushed: Repo, macpo: Macpo, finished: Path, hub: Hub, tmp_path: Path, asked: str
) -> None:
    """As of a login page in between, or of somebody who wants to see it break."""
    before = dict(pushed.branches), dict(pushed.tags)
    for content in ANSWERS:
        hub.bend = bent(asked, lambda *_, content=content: (200, content, JSON))
        for command in ASKED_BY[asked]:
            output = error(macpo(*command, cwd=tmp_path if command is PULL else finished))
            assert "127.0.0.1" in output and "does not answer as a Hub does" in output
    assert (pushed.branches, pushed.tags) == before
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize(
    ("asked", "command"), [("GET .*/refs", PULL), ("/resolve/", PULL), ("GET .*/tree/", PUSH)]
)
def test_the_token_goes_to_the_hub_alone(
    pushed: Repo, macpo: Macpo, finished: Path, hub: Hub, tmp_path: Path, asked: str,
    command: tuple[str, ...],
) -> None:  # fmt: skip
    """Wherever its answers lead: elsewhere, or to a next page that is elsewhere."""
    with serve() as other:
        tokens: list[str | None] = []
        other.bend = lambda line, headers: tokens.append(headers.get("Authorization"))

        def away(line: str, headers: Any) -> Answer:
            place = other.url + line.partition(" ")[2]
            if command is PUSH:
                return 200, b"[]", {**JSON, "Link": f'<{place}>; rel="next"'}
            facts = {"X-Repo-Commit": "0" * 40, "X-Linked-ETag": '"x"', "X-Linked-Size": "10"}
            return 307, b"", {"Location": place, **facts}

        hub.bend = bent(asked, away)
        error(macpo(*command, cwd=tmp_path if command is PULL else finished))
        assert tokens and set(tokens) == {None}


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_token_that_the_hub_sends_back_is_not_shown(
    pushed: Repo, macpo: Macpo, hub: Hub, tmp_path: Path, status: int
) -> None:
    def echo(line: str, headers: Any) -> Answer:
        own = str(headers.get("Authorization"))
        return status, json.dumps({"error": f"\x1b[31m{own}"}).encode(), {"X-Error-Message": own}

    for asked in ("refs", "/resolve/"):
        hub.bend = bent(asked, echo)
        assert "\x1b" not in error(macpo(*PULL, cwd=tmp_path))  # which looks for the token as well


def test_a_file_that_is_longer_than_the_hub_said_is_not_read_to_its_end(
    pushed: Repo, macpo: Macpo, hub: Hub, environment: dict[str, str], tmp_path: Path
) -> None:
    def lie(line: str, headers: Any) -> Answer:
        facts = {"X-Repo-Commit": pushed.tags["round-1-student"], "ETag": '"x"'}
        if line.startswith("HEAD"):
            return 200, b"", {**facts, "X-Linked-Size": "10"}
        return 200, b" " * 80_000_000, facts

    hub.bend = bent("/resolve/", lie)
    assert "index.json is larger than 67,108,864 bytes" in error(macpo(*PULL, cwd=tmp_path))
    fetched = sum(p.stat().st_size for p in Path(environment["HF_HOME"]).rglob("*") if p.is_file())
    assert fetched <= 67_108_864


def test_a_listing_without_an_end_is_left(
    pushed: Repo, macpo: Macpo, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("macpo_data.hub_client.MOST_FILES", 1000)
    page = json.dumps([{"type": "file", "path": "../../x", "oid": "0" * 40, "size": 1}] * 100)

    def pages(line: str, headers: Any) -> Answer:
        if hub.count("GET .*/tree/") > 30:
            return 404, b"", {}
        after = f'<{hub.url}{line.partition(" ")[2]}>; rel="next"'
        return 200, page.encode(), {**JSON, "Link": after}

    hub.bend = bent("GET .*/tree/", pages)
    assert "has more than 1,000 files" in error(macpo(*PUSH))


def test_what_a_hub_names_is_shown_short_and_inert(
    pushed: Repo, macpo: Macpo, hub: Hub, tmp_path: Path
) -> None:
    commit = pushed.branches["main"]
    refs = json.dumps({"branches": [], "tags": [], "converts": []}).encode()
    hub.bend = bent("GET .*/refs", lambda *_: (200, refs, JSON))
    assert "has no branch main" in error(macpo(*PUSH))
    hub.bend = lambda line, headers: None
    pushed.tags = {f"\x1b[31m{n}": commit for n in range(100_000)}
    output = error(macpo(*PULL, cwd=tmp_path))
    assert "\x1b" not in output and len(output) < 1000


CODE = {"AutoConfig": "other/repo--configuration.Config"}


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"config.json": {"auto_map": CODE}}, "config.json asks for the code of other/repo"),
        (
            {"tokenizer_config.json": {"auto_map": {"AutoTokenizer": [None, "other/repo--t.T"]}}},
            "tokenizer_config.json asks for the code of other/repo",
        ),
        ({f"{n}.json": {} for n in range(1001)}, "names 1003 files"),
        ({"modeling_x.py": {}}, ""),
    ],
    ids=["model", "tokenizer", "many", "code"],
)
def test_a_checkpoint_brings_no_code_of_others(
    macpo: Macpo, hub: Hub, tmp_path: Path, files: dict[str, object], problem: str
) -> None:
    """Though all that is published says that it belongs there; code itself is not fetched."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    values = yaml.safe_load(RECIPE)
    del values["agents"]["teacher2"], values["agents"]["teacher3"]
    values["engine"]["name"], values["train"]["finetuning"] = "fake", "full"
    (here / "macpo.yaml").write_text(yaml.safe_dump(values))
    ok(macpo("run", "--until", "1", cwd=here))
    push = ("push", "--round", "1", "--repo", REPO, "--learner", "student", "--adapters")
    ok(macpo(*push, cwd=here))
    repo = hub.model(f"{REPO}-adapters")
    name = next(short for short in repo.tags if short.startswith("student-positive-0"))

    def change(place: Path) -> None:
        for file, content in files.items():
            (place / file).write_text(json.dumps(content))

    reseal(Store(here / "runs/test"), f"checkpoints/{name}", change)
    tree = dict(repo.tree("main"))
    for path in (here / "runs/test/checkpoints" / name).iterdir():
        tree[f"{name}/{path.name}"] = File(path.read_bytes(), path.suffix == ".safetensors")
    repo.tags[name] = repo.add("main", tree, repo.branches["main"])
    done = macpo(*PULL, cwd=there)
    if problem:
        assert problem in error(done)
        assert not list(there.glob("runs/test/*/student-positive-0*"))
    else:
        ok(done)
        assert list(there.glob("runs/test/checkpoints/student-positive-0*"))
        assert not list(there.rglob("*.py"))
    assert hub.count("GET .*-adapters/resolve") < 10
