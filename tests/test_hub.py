"""Publishing and fetching rounds, against a Hub of our own and in folders."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import polars as pl
import pytest
import yaml
from conftest import RECIPE
from hub_server import READER, TOKEN, File, Hub, Repo, serve

from macpo_data.models.base import adapter_sha256
from macpo_data.sources.tables import read_table

Done = subprocess.CompletedProcess[str]
Macpo = Callable[..., Done]
REPO = "org/pairs"
FAKE = "--set=engine.name=fake"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
def spawn(made: Path, environment: dict[str, str]) -> Macpo:
    """Run the command in a process of its own, in the folder of the finished run or another."""

    def call(*args: str | Path, cwd: Path = made, **env: str) -> Done:
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
    made: Path, hub: Hub, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Macpo:
    """Run the command in this process: the same, without the seconds of starting anew."""
    from macpo import cli

    library = "huggingface_hub.constants."
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(library + "ENDPOINT", hub.url)
    monkeypatch.setattr(library + "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(library + "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(library + "HF_HUB_CACHE", environment["HF_HOME"] + "/hub")

    def call(*args: str | Path, cwd: Path = made, **env: str) -> Done:
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
    said = ok(macpo("push", "--round", "1", "--repo", REPO))
    assert f"pushed {REPO} at round-1" in said and f"next: macpo pull {REPO}" in said
    repo = hub.dataset(REPO)
    # One on main, one on the branch whose default is the full form.
    assert len(repo.commits) == before + 2
    assert repo.tags["round-1"] == repo.branches["main"]
    assert all(whole(repo, revision) for revision in ("round-0", "round-1", "main", "full"))
    writes = hub.count("^(POST|PUT|DELETE)")
    commits = len(repo.commits)
    assert "with the same content" in ok(macpo("push", "--round", "1", "--repo", REPO))
    assert len(repo.commits) == commits and hub.count("^(POST|PUT|DELETE)") == writes


def test_a_changed_recipe_needs_a_tag_of_its_own(macpo: Macpo, hub: Hub, made: Path) -> None:
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


def test_one_learner_alone(macpo: Macpo, hub: Hub, made: Path) -> None:
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
    said = ok(macpo("pull", REPO, "--round", "1", cwd=empty))
    assert "missing" not in said and "next: macpo train --round 1" in said
    trained = ok(macpo("train", "--round", "1", cwd=empty))
    assert trained.count("wrote    train round 1") == 4
    again = ok(macpo("pull", REPO, "--round", "1", cwd=empty))
    assert "pulled" not in again


def test_adapters_that_are_there_are_kept(macpo: Macpo, hub: Hub) -> None:
    """The second push changes nothing, uploads nothing, and warns of nothing."""
    push = ["push", "--round", "0", "--repo", REPO, "--learner", "student", "--adapters"]
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


def test_pull_says_what_was_never_pushed(macpo: Macpo, tmp_path: Path) -> None:
    ok(macpo("push", "--round", "1", "--repo", REPO))
    empty = tmp_path / "empty"
    empty.mkdir()
    said = ok(macpo("pull", REPO, "--round", "1", "--learner", "student", cwd=empty))
    assert said.count("missing") == 1 and "student-positive-0" in said
    assert f"{REPO}-adapters has none at student-positive-0" in said
    assert "no tag round-7; it has round-1" in error(macpo("pull", REPO, "--round", "7", cwd=empty))


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


def test_two_pushes_into_one_folder(spawn: Macpo, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(spawn, "push", "--round", n, "--to", tree) for n in "01"]
    assert all(ok(done.result()) for done in both)
    entries = json.loads((tree / "macpo/index.json").read_text())
    assert {entry["round"] for entry in entries.values()} == {0, 1}
    assert all((tree / path).is_file() for entry in entries.values() for path in entry["files"])


@pytest.mark.parametrize(
    ("file", "content", "said"),
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
    macpo: Macpo, tmp_path: Path, file: str, content: str, said: str
) -> None:
    ok(macpo("push", "--round", "0", "--learner", "student", "--to", tmp_path / "tree"))
    (tmp_path / "tree/macpo/round_0_student" / file).write_text(content)
    (tmp_path / "empty").mkdir()
    assert said in error(macpo("pull", tmp_path / "tree", "--round", "0", cwd=tmp_path / "empty"))


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
    said = {
        "pairs": "not what its manifest says",
        "manifest": "not what its manifest says",
        "recipe": "does not lead to",
        "index": "is damaged",
    }
    assert said[what] in refused
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
    assert "does not answer" in error(done)
    hub.fail("POST .*/commit/main", 500, times=99)
    said = error(macpo("push", "--round", "1", "--repo", REPO, "--learner", "student"))
    assert "out of order (status 500)" in said
    assert whole(hub.dataset(REPO)) and not hub.dataset(REPO).tags


@pytest.mark.parametrize("at", ["PUT /lfs/", "commit/main", "commit/full", "tag/"])
def test_killed_half_way_and_repeated(
    made: Path, environment: dict[str, str], macpo: Macpo, hub: Hub, at: str
) -> None:
    """The process is killed while the Hub is silent at one point; then the command is repeated."""
    hub.fail(at, "hang")
    push = ["push", "--round", "1", "--repo", REPO, "--learner", "student"]
    command = [sys.executable, "-m", "macpo", *push]
    process = subprocess.Popen(command, cwd=made, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not hub.count(at) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    repo = hub.dataset(REPO)
    assert whole(repo) and not repo.tags
    ok(macpo(*push))
    assert whole(repo) and whole(repo, "full") and whole(repo, "round-1-student")


def test_two_pushes_at_once(
    spawn: Macpo, macpo: Macpo, hub: Hub, made: Path, tmp_path: Path
) -> None:
    """Two machines push two rounds, or the same one: both come through, and nothing is lost."""
    other = tmp_path / "other"
    shutil.copytree(made, other)
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
    said = error(macpo("push", "--round", "0", "--repo", REPO))
    assert "macpo did not make" in said and set(repo.tree("main")) == {"README.md"}


def test_a_pull_request_has_no_tag_until_it_is_merged(macpo: Macpo, hub: Hub) -> None:
    push = ["push", "--round", "1", "--repo", REPO, "--learner", "student"]
    said = ok(macpo(*push, "--create-pr"))
    repo = hub.dataset(REPO)
    assert (
        "discussions/1" in said and not repo.tags and set(repo.tree("main")) == {".gitattributes"}
    )
    repo.branches["main"] = repo.branches["refs/pr/1"]
    ok(macpo(*push))
    assert repo.tags["round-1-student"] == repo.branches["main"] and whole(repo, "full")


def test_the_hub_is_read_by_load_dataset(
    macpo: Macpo, environment: dict[str, str], tmp_path: Path, made: Path
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
    full = read_table(str(tmp_path / "tree"), "round_1_student_full")
    plain = read_table(str(tmp_path / "tree"), "round_1_student")
    for row, pair in zip(full.to_dicts(), plain.to_dicts(), strict=True):
        for side in ("chosen", "rejected"):
            assert row[side] == pair["prompt"] + pair[side]
            assert [m["role"] for m in row[side]][-2:] == ["user", "assistant"]
            assert pair[side] == [{"role": "assistant", "content": pair[f"{side}_text"]}]
            assert pair[f"{side}_text"] == pair[f"{side}_text"].strip() != ""
    assert "prompt" not in full.columns
    assert not {"messages", "completion", "label"} & set(plain.columns)


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
    whole = [read_table(str(tmp_path / name), "round_1_student") for name in ("tree", "one")]
    assert whole[0].equals(whole[1])


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
        (found,) = folder.glob("runs/test/adapters/student-positive-1-*")
        return adapter_sha256(found)

    assert adapter(here) == adapter(there)
    merged = hub.model(f"{REPO}-merged").tree("main")
    assert "model.safetensors" in merged and "config.json" in merged
