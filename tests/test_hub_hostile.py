"""A Hub that means no good: what it answers is a line, and no token leaves."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import RECIPE
from hub_case import (
    REPO,
    Macpo,
    error,
    ok,
    reseal,
)
from hub_server import Answer, File, Hub, Repo, serve

from macpo_data.store.store import Store

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
def pushed(run_cli: Macpo, hub: Hub) -> Repo:
    """A repository that holds one round, before the Hub turns bad."""
    ok(run_cli("push", "--round", "1", "--repo", REPO, "--learner", "student"))
    return hub.dataset(REPO)


def bent(pattern: str, answer: Callable[[str, Any], Answer]) -> Callable[[str, Any], Answer | None]:
    """Answer so to every request that matches."""
    return lambda line, headers: answer(line, headers) if re.search(pattern, line) else None


@pytest.mark.parametrize("asked", ASKED_BY)
def test_what_is_no_answer_of_a_hub_is_a_line(
    pushed: Repo, run_cli: Macpo, fake_run: Path, hub: Hub, tmp_path: Path, asked: str
) -> None:
    """As of a login page in between, or of somebody who wants to see it break."""
    before = dict(pushed.branches), dict(pushed.tags)
    for content in ANSWERS:
        hub.bend = bent(asked, lambda *_, content=content: (200, content, JSON))
        for command in ASKED_BY[asked]:
            output = error(run_cli(*command, cwd=tmp_path if command is PULL else fake_run))
            assert "127.0.0.1" in output and "does not answer as a Hub does" in output
    assert (pushed.branches, pushed.tags) == before
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize(
    ("asked", "command"), [("GET .*/refs", PULL), ("/resolve/", PULL), ("GET .*/tree/", PUSH)]
)
def test_the_token_goes_to_the_hub_alone(
    pushed: Repo, run_cli: Macpo, fake_run: Path, hub: Hub, tmp_path: Path, asked: str,
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
        error(run_cli(*command, cwd=tmp_path if command is PULL else fake_run))
        assert tokens and set(tokens) == {None}


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_token_that_the_hub_sends_back_is_not_shown(
    pushed: Repo, run_cli: Macpo, hub: Hub, tmp_path: Path, status: int
) -> None:
    def echo(line: str, headers: Any) -> Answer:
        own = str(headers.get("Authorization"))
        return status, json.dumps({"error": f"\x1b[31m{own}"}).encode(), {"X-Error-Message": own}

    for asked in ("refs", "/resolve/"):
        hub.bend = bent(asked, echo)
        assert "\x1b" not in error(
            run_cli(*PULL, cwd=tmp_path)
        )  # which looks for the token as well


def test_a_file_that_is_longer_than_the_hub_said_is_not_read_to_its_end(
    pushed: Repo, run_cli: Macpo, hub: Hub, environment: dict[str, str], tmp_path: Path
) -> None:
    def lie(line: str, headers: Any) -> Answer:
        facts = {"X-Repo-Commit": pushed.tags["round-1-student"], "ETag": '"x"'}
        if line.startswith("HEAD"):
            return 200, b"", {**facts, "X-Linked-Size": "10"}
        return 200, b" " * 80_000_000, facts

    hub.bend = bent("/resolve/", lie)
    assert "index.json is larger than 67,108,864 bytes" in error(run_cli(*PULL, cwd=tmp_path))
    fetched = sum(p.stat().st_size for p in Path(environment["HF_HOME"]).rglob("*") if p.is_file())
    assert fetched <= 67_108_864


def test_a_listing_without_an_end_is_left(
    pushed: Repo, run_cli: Macpo, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("macpo_data.hub_client.MOST_FILES", 1000)
    page = json.dumps([{"type": "file", "path": "../../x", "oid": "0" * 40, "size": 1}] * 100)

    def pages(line: str, headers: Any) -> Answer:
        if hub.count("GET .*/tree/") > 30:
            return 404, b"", {}
        after = f'<{hub.url}{line.partition(" ")[2]}>; rel="next"'
        return 200, page.encode(), {**JSON, "Link": after}

    hub.bend = bent("GET .*/tree/", pages)
    assert "has more than 1,000 files" in error(run_cli(*PUSH))


def test_what_a_hub_names_is_shown_short_and_inert(
    pushed: Repo, run_cli: Macpo, hub: Hub, tmp_path: Path
) -> None:
    commit = pushed.branches["main"]
    refs = json.dumps({"branches": [], "tags": [], "converts": []}).encode()
    hub.bend = bent("GET .*/refs", lambda *_: (200, refs, JSON))
    assert "has no branch main" in error(run_cli(*PUSH))
    hub.bend = lambda line, headers: None
    pushed.tags = {f"\x1b[31m{n}": commit for n in range(100_000)}
    output = error(run_cli(*PULL, cwd=tmp_path))
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
    run_cli: Macpo, hub: Hub, tmp_path: Path, files: dict[str, object], problem: str
) -> None:
    """Though all that is published says that it belongs there; code itself is not fetched."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    values = yaml.safe_load(RECIPE)
    del values["agents"]["teacher2"], values["agents"]["teacher3"]
    values["engine"]["name"], values["train"]["finetuning"] = "fake", "full"
    (here / "macpo.yaml").write_text(yaml.safe_dump(values))
    ok(run_cli("run", "--until", "1", cwd=here))
    push = ("push", "--round", "1", "--repo", REPO, "--learner", "student", "--adapters")
    ok(run_cli(*push, cwd=here))
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
    done = run_cli(*PULL, cwd=there)
    if problem:
        assert problem in error(done)
        assert not list(there.glob("runs/test/*/student-positive-0*"))
    else:
        ok(done)
        assert list(there.glob("runs/test/checkpoints/student-positive-0*"))
        assert not list(there.rglob("*.py"))
    assert hub.count("GET .*-adapters/resolve") < 10
