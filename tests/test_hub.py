"""Publishing and fetching rounds, against a Hub of our own and in folders."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from hub_case import (
    REPO,
    Macpo,
    error,
    makes_nothing,
    ok,
    relist,
    whole,
)
from hub_server import READER, File, Hub

from benchmarks.attack.hub import attacks
from macpo_data.models.weights import weights_sha256
from macpo_data.sources.ingest.splits import Dataset, open_split


def test_a_folder_is_the_same_tree_as_the_hub(run_cli: Macpo, hub: Hub, tmp_path: Path) -> None:
    ok(run_cli("push", "--round", "1", "--repo", REPO))
    ok(run_cli("push", "--round", "1", "--repo", REPO, "--to", tmp_path / "tree"))
    here = {
        p.relative_to(tmp_path / "tree").as_posix(): p.read_bytes()
        for p in (tmp_path / "tree").rglob("*")
        if p.is_file()
    }
    there = {path: file.content for path, file in hub.dataset(REPO).tree("round-1").items()}
    del there[".gitattributes"]
    assert here == there
    again = ok(run_cli("push", "--round", "1", "--repo", REPO, "--to", tmp_path / "tree"))
    assert again.startswith("kept")


def test_rounds_in_any_order_make_the_same_folder(run_cli: Macpo, tmp_path: Path) -> None:
    for folder, order in {"a": "01", "b": "10"}.items():
        for round_ in order:
            ok(run_cli("push", "--round", round_, "--to", tmp_path / folder))
    files = [
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (tmp_path / "a", tmp_path / "b")
    ]
    assert files[0] == files[1]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("x")
    assert "no tree of macpo" in error(run_cli("push", "--round", "1", "--to", tmp_path / "mine"))


def test_one_commit_one_tag_and_the_second_time_nothing(run_cli: Macpo, hub: Hub) -> None:
    ok(run_cli("push", "--round", "0", "--repo", REPO))
    before = len(hub.dataset(REPO).commits)
    output = ok(run_cli("push", "--round", "1", "--repo", REPO))
    assert f"pushed {REPO} at round-1" in output and f"next: macpo pull {REPO}" in output
    repo = hub.dataset(REPO)
    # One on main, one on the branch whose default is the full form.
    assert len(repo.commits) == before + 2
    assert repo.tags["round-1"] == repo.branches["main"]
    assert all(whole(repo, revision) for revision in ("round-0", "round-1", "main", "full"))
    writes = hub.count("^(POST|PUT|DELETE)")
    commits = len(repo.commits)
    assert "with the same content" in ok(run_cli("push", "--round", "1", "--repo", REPO))
    assert len(repo.commits) == commits and hub.count("^(POST|PUT|DELETE)") == writes


def test_a_changed_recipe_needs_a_tag_of_its_own(run_cli: Macpo, hub: Hub, fake_run: Path) -> None:
    ok(run_cli("push", "--round", "0", "--repo", REPO))
    changed = ["--set", "seed=1"]
    ok(run_cli("run", "--round", "0", *changed))
    refused = error(run_cli("push", "--round", "0", "--repo", REPO, *changed))
    assert "round-0 already, with other content" in refused and "--as round-0.1" in refused
    repo = hub.dataset(REPO)
    tree = repo.tree("main")
    ok(run_cli("push", "--round", "0", "--repo", REPO, "--as", "round-0.1", *changed))
    assert repo.tree("round-0") == tree and whole(repo, "round-0.1") and whole(repo, "full")
    old = {p for p in tree if p.startswith("data/round_0_student/")}
    assert not old & repo.tree("main").keys()  # nothing stale is left


def test_one_learner_alone(run_cli: Macpo, hub: Hub, fake_run: Path) -> None:
    unfinished = ["--set", "labeller=teacher2", "--set", "sampling.top_k=7"]
    refused = error(run_cli("push", "--round", "0", "--repo", REPO, *unfinished))
    assert "incomplete: no dataset for student" in refused and "--learner teacher1" in refused
    assert not hub.repos
    ok(run_cli("push", "--round", "1", "--repo", REPO, "--learner", "student"))
    repo = hub.dataset(REPO)
    assert set(repo.tags) == {"round-1-student"}
    assert not any("teacher" in path for path in repo.tree("main"))
    ok(run_cli("push", "--round", "1", "--repo", REPO))
    assert set(repo.tags) == {"round-1-student", "round-1"} and whole(repo)


def test_pull_on_an_empty_machine_and_train(run_cli: Macpo, hub: Hub, tmp_path: Path) -> None:
    ok(run_cli("push", "--round", "1", "--repo", REPO, "--adapters"))
    assert "adapters" in hub.model(f"{REPO}-adapters").tree("main")["README.md"].content.decode()
    empty = tmp_path / "empty"
    empty.mkdir()
    output = ok(run_cli("pull", REPO, "--round", "1", cwd=empty))
    assert "missing" not in output and "next: macpo train --round 1" in output
    trained = ok(run_cli("train", "--round", "1", cwd=empty))
    assert trained.count("wrote    train round 1") == 4
    again = ok(run_cli("pull", REPO, "--round", "1", cwd=empty))
    assert "pulled" not in again


def test_adapters_that_are_there_are_kept(run_cli: Macpo, hub: Hub) -> None:
    """The second push changes nothing, uploads nothing, and warns of nothing."""
    push = ["push", "--round", "0", "--repo", REPO, "--learner", "student", "--adapters"]
    push += ["--negatives"]
    assert f"pushed 2 adapters in {REPO}-adapters" in ok(run_cli(*push))
    commits, tags = (dict(getattr(hub.model(f"{REPO}-adapters"), n)) for n in ("commits", "tags"))
    uploads = hub.count("PUT /lfs/")
    again = run_cli(*push)
    assert f"kept 2 adapters in {REPO}-adapters" in ok(again) and "modified" not in again.stderr
    repo = hub.model(f"{REPO}-adapters")
    assert (repo.commits, repo.tags) == (commits, tags) and hub.count("PUT /lfs/") == uploads
    for content in (b"[" * 99_999, b'{"x": {}}', b"[1]"):
        repo.add("main", {"adapters.json": File(content, False)}, repo.branches["main"])
        assert "adapters.json is damaged" in error(run_cli(*push))


def test_a_negative_twin_is_pushed_only_where_it_is_asked_for(run_cli: Macpo, hub: Hub) -> None:
    """Round 0 of one learner: a positive policy, and its twin that is trained to answer badly."""
    push = ["push", "--round", "0", "--repo", REPO, "--learner", "student", "--adapters"]
    printed = ok(run_cli(*push))
    assert f"pushed 1 adapter in {REPO}-adapters" in printed
    assert "left out 1 negative twin, trained to answer badly; --negatives pushes it" in printed
    repo = hub.model(f"{REPO}-adapters")
    assert len(repo.tags) == 1 and next(iter(repo.tags)).startswith("student-positive-0-")
    assert not any("negative" in path for path in repo.tree("main"))
    assert "negative" not in repo.tree("main")["adapters.json"].content.decode()
    card = repo.tree("main")["README.md"].content.decode()
    assert "behave badly" not in card and "not-for-all-audiences" not in card

    assert f"pushed 2 adapters in {REPO}-adapters" in ok(run_cli(*push, "--negatives"))
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
    ok(run_cli("push", "--round", "1", "--repo", REPO, "--learner", "student", "--adapters"))
    assert f"`{twin}`" in repo.tree("main")["README.md"].content.decode().split("---\n", 2)[2][:300]


def test_pull_says_how_a_negative_twin_is_pushed(run_cli: Macpo, hub: Hub, tmp_path: Path) -> None:
    """No method trains from one today; what is published may say that it does."""
    ok(run_cli("push", "--round", "0", "--repo", REPO, "--learner", "student"))
    repo, empty = hub.dataset(REPO), tmp_path / "empty"
    empty.mkdir()
    tree = dict(repo.tree("main"))
    path = "macpo/round_0_student/adapters.json"
    starts = json.loads(tree[path].content)
    status = json.loads(ok(run_cli("status", "--json")))
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
    output = ok(run_cli("pull", REPO, "--round", "0", "--revision", commit, cwd=empty))
    (line,) = [line for line in output.split("\n") if line.startswith("missing") and twin in line]
    assert "never pushed (`macpo push --adapters --negatives` does)" in line


def test_pull_says_what_was_never_pushed(run_cli: Macpo, tmp_path: Path) -> None:
    ok(run_cli("push", "--round", "1", "--repo", REPO))
    empty = tmp_path / "empty"
    empty.mkdir()
    output = ok(run_cli("pull", REPO, "--round", "1", "--learner", "student", cwd=empty))
    assert output.count("missing") == 1 and "student-positive-0" in output
    # No training of the run can begin; the next command is one that can.
    assert makes_nothing(run_cli("train", "--round", "1", cwd=empty))
    (following,) = [line for line in output.split("\n") if line.startswith("next: ")]
    words = shlex.split(following)[2:]
    assert words[:2] == ["train", "--dataset"] and words[3:7] == [
        "--base", "world:strong", "--out", "student-1"
    ]  # fmt: skip
    ok(run_cli(*words, cwd=empty))
    trained = json.loads((empty / "student-1/manifest.json").read_text())
    assert trained["rows"] == 12 and trained["base"] == "world:strong"
    assert f"{REPO}-adapters has none at student-positive-0" in output
    assert "no tag round-7; it has round-1" in error(
        run_cli("pull", REPO, "--round", "7", cwd=empty)
    )


def test_the_next_command_after_pull_works_where_something_is_ready(
    run_cli: Macpo, tmp_path: Path
) -> None:
    """Round 0 starts from bases, so that no adapter is needed."""
    ok(run_cli("push", "--round", "0", "--repo", REPO))
    empty = tmp_path / "empty"
    empty.mkdir()
    output = ok(run_cli("pull", REPO, "--round", "0", cwd=empty))
    (following,) = [line for line in output.split("\n") if line.startswith("next: ")]
    assert following == "next: macpo train --round 0"
    assert ok(run_cli("train", "--round", "0", cwd=empty)).count("wrote    train round 0") == 8


def test_what_else_lies_in_a_folder_stays(run_cli: Macpo, tmp_path: Path) -> None:
    """Such as a repository of the person's own, whose refs are folders that may be empty."""
    tree = tmp_path / "tree"
    ok(run_cli("push", "--round", "0", "--to", tree))
    (tree / ".git/refs/heads").mkdir(parents=True)
    (tree / ".git/.x.1.tmp").write_text("mine")
    stale = [tree / "data/.part.7.tmp", tree / ".README.md.7.tmp"]  # by a push that was killed
    for path in stale:
        path.write_text("x")
    (tree / "data/left").mkdir()
    ok(run_cli("push", "--round", "1", "--to", tree))
    assert (tree / ".git/refs/heads").is_dir() and (tree / ".git/.x.1.tmp").is_file()
    assert not any(path.exists() for path in [*stale, tree / "data/left"])


def test_a_link_in_a_folder_that_is_pushed_to_is_not_followed(
    run_cli: Macpo, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/.staging").symlink_to(tmp_path / "mine")
    done = run_cli("push", "--round", "0", "--to", tmp_path / "tree")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{tmp_path}/tree/.staging is a link, and not followed; remove it" in done.stderr
    assert list((tmp_path / "mine").iterdir()) == []


def test_files_without_an_end_beside_a_tree_are_not_read(run_cli: Macpo, tmp_path: Path) -> None:
    run_cli("push", "--round", "0", "--to", tmp_path / "tree")
    done = run_cli("pull", tmp_path / "tree", "--round", "0", "--recipe-to", "/dev/zero")
    assert done.returncode == 1 and "/dev/zero is another one; choose" in done.stderr
    os.truncate(tmp_path / "tree/macpo/index.json", 1 << 40)
    done = run_cli("push", "--round", "0", "--to", tmp_path / "tree")
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
    run_cli: Macpo, tmp_path: Path, file: str, content: str, message: str
) -> None:
    ok(run_cli("push", "--round", "0", "--learner", "student", "--to", tmp_path / "tree"))
    (tmp_path / "tree/macpo/round_0_student" / file).write_text(content)
    (tmp_path / "empty").mkdir()
    assert message in error(
        run_cli("pull", tmp_path / "tree", "--round", "0", cwd=tmp_path / "empty")
    )


@pytest.mark.parametrize("what", ["pairs", "manifest", "recipe", "index"])
def test_what_was_tampered_with_is_not_kept(run_cli: Macpo, tmp_path: Path, what: str) -> None:
    tree, empty = tmp_path / "tree", tmp_path / "empty"
    empty.mkdir()
    ok(run_cli("push", "--round", "1", "--learner", "student", "--to", tree))
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
    refused = error(run_cli("pull", tree, "--round", "1", cwd=empty))
    messages = {
        "pairs": "not what its manifest says",
        "manifest": "not what its manifest says",
        "recipe": "does not lead to",
        "index": "is damaged",
    }
    assert messages[what] in refused
    assert not list(empty.glob("runs/*/data/*"))


def test_a_recipe_that_is_there_is_not_overwritten(run_cli: Macpo, tmp_path: Path) -> None:
    ok(run_cli("push", "--round", "1", "--learner", "student", "--to", tmp_path / "tree"))
    (tmp_path / "macpo.yaml").write_text("mine")
    refused = error(run_cli("pull", tmp_path / "tree", "--round", "1", cwd=tmp_path))
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
def test_what_passes_is_waited_for(run_cli: Macpo, hub: Hub, faults: dict[str, int | str]) -> None:
    for pattern, what in faults.items():
        hub.fail(pattern, what)
    ok(run_cli("push", "--round", "1", "--repo", REPO, "--learner", "student"))
    repo = hub.dataset(REPO)
    assert not any(fault.times for fault in hub.faults)
    assert set(repo.tags) == {"round-1-student"}
    assert whole(repo) and whole(repo, "full") and whole(repo, "round-1-student")
    # What was lost on the way back is not done twice.
    assert len(repo.commits) == 3


@pytest.mark.parametrize(("asked", "message"), [("3600", "3,600 s"), ("inf", "for ever")])
def test_a_hub_that_asks_for_a_long_wait_is_named(
    run_cli: Macpo, hub: Hub, asked: str, message: str
) -> None:
    """Nobody looks at a silent command for an hour; the next one goes on."""
    push = ["push", "--round", "1", "--repo", REPO, "--learner", "student"]
    hub.retry_after = asked
    hub.fail("POST .*/commit/main", 429)
    begun = time.monotonic()
    assert f"the Hub at 127.0.0.1 asks to wait {message} before" in error(run_cli(*push))
    assert time.monotonic() - begun < 20 and not hub.dataset(REPO).tags
    ok(run_cli(*push))
    assert whole(hub.dataset(REPO), "round-1-student")


def test_a_file_out_of_reach_is_not_one_that_is_missing(
    run_cli: Macpo, hub: Hub, tmp_path: Path
) -> None:
    """Of which a push would write a card without the earlier rounds."""
    ok(run_cli("push", "--round", "0", "--repo", REPO))
    hub.fail("(HEAD|GET) .*/resolve/", 403, times=99)
    assert "has no right" in error(run_cli("pull", REPO, "--round", "0", cwd=tmp_path))
    assert "has no right" in error(run_cli("push", "--round", "1", "--repo", REPO))
    assert set(hub.dataset(REPO).tags) == {"round-0"} and whole(hub.dataset(REPO))


def test_a_hub_that_stays_broken_is_one_line(spawn: Macpo, run_cli: Macpo, hub: Hub) -> None:
    nobody = "http://127.0.0.1:9"
    done = spawn("push", "--round", "1", "--repo", REPO, HF_ENDPOINT=nobody)
    assert "cannot be reached" in error(done)
    hub.fail("POST .*/commit/main", 500, times=99)
    output = error(run_cli("push", "--round", "1", "--repo", REPO, "--learner", "student"))
    assert "out of order (status 500)" in output
    assert whole(hub.dataset(REPO)) and not hub.dataset(REPO).tags


@pytest.mark.parametrize("at", ["PUT /lfs/", "commit/main", "commit/full", "tag/"])
def test_killed_half_way_and_repeated(
    fake_run: Path, environment: dict[str, str], run_cli: Macpo, hub: Hub, at: str
) -> None:
    """The process is killed while the Hub is silent at one point; then the command is repeated."""
    hub.fail(at, "hang")
    push = ["push", "--round", "1", "--repo", REPO, "--learner", "student"]
    command = [sys.executable, "-m", "macpo", *push]
    process = subprocess.Popen(command, cwd=fake_run, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not hub.count(at) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    repo = hub.dataset(REPO)
    assert whole(repo) and not repo.tags
    ok(run_cli(*push))
    assert whole(repo) and whole(repo, "full") and whole(repo, "round-1-student")


@pytest.mark.slow
def test_pushes_that_are_disturbed_leave_no_half_round(tmp_path: Path) -> None:
    """A seeded part of `make attack`: cut off, left alone and killed at some of their requests."""
    rows = list(attacks(tmp_path, limit=6, workers=2))
    assert len(rows) == 6 and [row for row in rows if row.problems] == []


def test_two_pushes_at_once(
    spawn: Macpo, run_cli: Macpo, hub: Hub, fake_run: Path, tmp_path: Path
) -> None:
    """Two machines push two rounds, or the same one: both come through, and nothing is lost."""
    other = tmp_path / "other"
    shutil.copytree(fake_run, other)
    ok(run_cli("push", "--round", "0", "--repo", REPO, "--learner", "student"))
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
    spawn: Macpo, run_cli: Macpo, hub: Hub, fake_run: Path, tmp_path: Path
) -> None:
    """Each has read the repository before any of them commits, so two of the commits are late."""
    ok(run_cli("push", "--round", "1", "--repo", REPO, "--learner", "student"))
    pushes = [["0", "--learner", "teacher1"], ["0", "--learner", "teacher2"], ["1"]]
    together, arrived = threading.Barrier(len(pushes)), itertools.count()

    def meet(line: str, headers: Any) -> None:
        if line.endswith("/preupload/main") and next(arrived) < len(pushes):
            together.wait(60)

    hub.bend = meet
    with ThreadPoolExecutor(len(pushes)) as pool:
        runs = [tmp_path / f"machine-{n}" for n in range(len(pushes))]
        for run in runs:
            shutil.copytree(fake_run, run)
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


def test_a_commit_in_between_is_noticed(run_cli: Macpo, hub: Hub) -> None:
    hub.fail("POST .*/commit/main", 412)
    done = run_cli("push", "--round", "1", "--repo", REPO, "--learner", "student")
    assert "looking again" in done.stderr and "pushed" in ok(done)


def test_mistakes_are_one_line_and_no_token_is_shown(
    run_cli: Macpo, spawn: Macpo, hub: Hub
) -> None:
    push = ["push", "--round", "1"]
    assert "where to?" in error(run_cli(*push))
    assert "no repository id" in error(run_cli(*push, "--repo", "a/b/c"))
    assert "no repository id" in error(run_cli(*push, "--repo", "../x"))
    assert "is no tag" in error(run_cli(*push, "--repo", REPO, "--as", "a b"))
    assert "no valid token" in error(run_cli(*push, "--repo", REPO, HF_TOKEN=""))
    assert "no right" in error(spawn(*push, "--repo", REPO, HF_TOKEN=READER))
    assert "no right" in error(run_cli(*push, "--repo", "closed/pairs"))
    assert not hub.repos
    assert "no such repository" in error(run_cli("pull", "org/nothing", "--round", "1"))
    offline = run_cli(*push, "--repo", REPO, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in error(offline)


def test_another_dataset_is_left_alone(run_cli: Macpo, hub: Hub) -> None:
    ok(run_cli("push", "--round", "1", "--repo", REPO, "--learner", "student", "--private"))
    repo = hub.dataset(REPO)
    assert repo.private
    tree = repo.tree("main")
    repo.add("main", {"README.md": tree["README.md"]}, repo.branches["main"])
    output = error(run_cli("push", "--round", "0", "--repo", REPO))
    assert "macpo did not make" in output and set(repo.tree("main")) == {"README.md"}


def test_a_pull_request_has_no_tag_until_it_is_merged(run_cli: Macpo, hub: Hub) -> None:
    push = ["push", "--round", "1", "--repo", REPO, "--learner", "student"]
    output = ok(run_cli(*push, "--create-pr"))
    repo = hub.dataset(REPO)
    assert (
        "discussions/1" in output and not repo.tags and set(repo.tree("main")) == {".gitattributes"}
    )
    repo.branches["main"] = repo.branches["refs/pr/1"]
    ok(run_cli(*push))
    assert repo.tags["round-1-student"] == repo.branches["main"] and whole(repo, "full")


def test_the_hub_is_read_by_load_dataset(
    run_cli: Macpo, environment: dict[str, str], tmp_path: Path, fake_run: Path
) -> None:
    """By configuration, by tag, and on the branch whose default is the full form."""
    ok(run_cli("push", "--round", "0", "--repo", REPO))
    ok(run_cli("push", "--round", "1", "--repo", REPO, "--candidates"))
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
    run_cli: Macpo, hub: Hub, tmp_path: Path
) -> None:
    """open-instruct and alignment-handbook: chosen and rejected as whole conversations.

    open-instruct names no configuration, so the branch `full` has to have that form as default.
    NeMo-RL's BinaryPreferenceDataset: a prompt, and both sides as text.
    """
    ok(run_cli("push", "--round", "1", "--repo", REPO, "--learner", "student"))
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
    ok(run_cli("push", "--round", "1", "--learner", "student", "--to", tmp_path / "tree"))
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


def test_the_features_are_what_datasets_would_declare(run_cli: Macpo, tmp_path: Path) -> None:
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
    run_cli: Macpo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve pairs, in batches of two and files of five at most: 4 + 4 + 4."""
    monkeypatch.setattr("macpo_data.hub.shards.BATCH_ROWS", 2)
    monkeypatch.setattr("macpo_data.hub.shards.SHARD_ROWS", 5)
    ok(run_cli("push", "--round", "1", "--learner", "student", "--to", tmp_path / "tree"))
    files = sorted((tmp_path / "tree/data/round_1_student").iterdir())
    assert [len(pl.read_parquet(file)) for file in files] == [4, 4, 4]
    assert files[0].name.startswith("train-00000-of-00003-")
    monkeypatch.undo()
    ok(run_cli("push", "--round", "1", "--learner", "student", "--to", tmp_path / "one"))
    whole = [
        [row for batch in open_split(Dataset(str(tmp_path / name), "round_1_student")).batches
         for row in batch]
        for name in ("tree", "one")
    ]  # fmt: skip
    assert len(whole[0]) == 12 and whole[0] == whole[1]


def test_a_template_of_its_own_travels_along(run_cli: Macpo, tmp_path: Path) -> None:
    """The recipe names a Jinja file and allows code of a base; only the file comes along."""
    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    sets = ["--set", f"agents.student.chat_template={template}"]
    sets += ["--set", "agents.student.trust_remote_code=true"]
    ok(run_cli("run", "--round", "0", *sets))
    ok(run_cli("push", "--round", "0", "--to", tmp_path / "tree", *sets))
    template.unlink()
    empty = tmp_path / "empty"
    empty.mkdir()
    (published,) = (tmp_path / "tree/macpo/round_0_student").glob("template-*.jinja")
    text = published.read_text()
    published.write_text("{{ 'something else' }}")
    refused = error(run_cli("pull", tmp_path / "tree", "--round", "0", cwd=empty))
    assert "is not what its name says" in refused and not list(empty.iterdir())
    published.write_text(text)
    mine = empty / published.name
    mine.write_text("mine")
    assert "is another one" in error(run_cli("pull", tmp_path / "tree", "--round", "0", cwd=empty))
    assert mine.read_text() == "mine"
    mine.unlink()
    ok(run_cli("pull", tmp_path / "tree", "--round", "0", cwd=empty))
    values = yaml.safe_load((empty / "macpo.yaml").read_text())
    assert values["agents"]["student"]["trust_remote_code"] is False
    status = json.loads(ok(run_cli("status", "--json", cwd=empty)))
    done = [row["learner"] for row in status if row["kind"] == "gen" and row["state"] == "done"]
    assert "student" in done and len(done) == 4


def test_every_text_travels_along_and_no_other_file_is_read(run_cli: Macpo, tmp_path: Path) -> None:
    """Those of the evaluation too; a recipe may name what lies beside it, and nothing else."""
    template, verdict = tmp_path / "mine.jinja", tmp_path / "mine.txt"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    verdict.write_text("$query $answer_a $answer_b")
    judge = f"{{kind: llm, agent: student, prompts: {{verdict: {verdict}}}}}"
    sets = ["--set", f"eval.reward={{model: org/m, chat_template: {template}}}"]
    sets += ["--set", f"eval.judge={judge}"]
    tree, empty = tmp_path / "tree", tmp_path / "empty"
    ok(run_cli("push", "--round", "1", "--learner", "student", "--to", tree, *sets))
    template.unlink()
    empty.mkdir()
    ok(run_cli("pull", tree, "--round", "1", cwd=empty))
    values = yaml.safe_load((empty / "macpo.yaml").read_text())["eval"]
    named = [values["judge"]["prompts"]["verdict"], values["reward"]["chat_template"]]
    assert all((empty / name).is_file() for name in named)
    recipe = tree / "macpo/round_1_student/recipe.yaml"
    published = recipe.read_text()
    for name in named:
        recipe.write_text(published.replace(Path(name).name, str(verdict)))
        (empty / "macpo.yaml").unlink(missing_ok=True)
        assert "was not published with it" in error(
            run_cli("pull", tree, "--round", "1", cwd=empty)
        )
        assert not (empty / "macpo.yaml").exists()


def test_a_strangers_recipe_reads_nothing_of_this_machine(run_cli: Macpo, tmp_path: Path) -> None:
    """Wherever it names a file or a folder; one of its own data is pulled by the other tests."""
    private = tmp_path / "private.jsonl"
    private.write_text('{"prompt": "my diary"}\n')
    tree, empty = tmp_path / "tree", tmp_path / "empty"
    empty.mkdir()
    ok(run_cli("push", "--round", "1", "--learner", "student", "--to", tree))
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
        refused = error(run_cli(*pull, cwd=empty))
        assert str(tmp_path) in refused and "of this machine; say --local-paths" in refused
        assert not (empty / "macpo.yaml").exists() and not list(empty.glob("runs/*/data"))
        # Once that is allowed, at most another identity is in the way.
        allowed = run_cli(*pull, "--local-paths", cwd=empty)
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
