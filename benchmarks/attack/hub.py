"""Pushes to a Hub, disturbed at each of their requests in turn: cut off, left alone, or killed.

After each, whatever has a tag has to be whole, and the same command again has to end with the trees
and tags of a push that nobody disturbed. Several attacks go on side by side, since many wait for a
Hub that is gone; each worker has a folder and a Hub of its own, the one of the tests.
"""

from __future__ import annotations

import copy
import json
import multiprocessing as mp
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.attack.command import MODULES
from macpo_data.hub.adapters import INDEX as ADAPTERS
from macpo_data.hub.index import INDEX
from macpo_data.store.manifests import MANIFEST

if TYPE_CHECKING:  # where the tests' modules have no package
    from hub_server import TOKEN, Hub, Tree, serve
else:
    from tests.hub_server import TOKEN, Hub, Tree, serve

REPO = "org/pairs"
OPTIONS = ["--recipe", "quickstart", "--set", "engine.name=fake", "--set", "data.d1.count=14"]
OPTIONS += ["--set", "data.d2.count=12", "--set", "data.test.count=6"]
OPTIONS += ["--set", "data.probe.count=2", "--set", "select.on_filter=count"]
HANGS = 120.0  # seconds after which a command hangs, where several share the machine
FOREVER = 10**9
WORKERS = 8  # attacks side by side
# What each command would otherwise import anew; none of it starts a thread.
LIBRARIES = ["huggingface_hub.hf_api", "pyarrow.parquet", "jinja2", "asyncio"]

# Each push, and what is on the Hub before it.
FIRST = ["push", "--round", "0", "--learner", "student", "--adapters", "--negatives"]
SECOND = ["push", "--round", "1", "--learner", "student", "--adapters"]
PUSHES: dict[str, tuple[list[list[str]], list[str]]] = {
    "a first round": ([], FIRST),
    "a second round": ([FIRST], SECOND),
}


class Attack(Enum):
    """What happens at one request."""

    CUT_BEFORE = "the connection cut before it was worked on"
    CUT_AFTER = "the connection cut after it was worked on"
    GONE_BEFORE = "the Hub gone before it was worked on"
    GONE_AFTER = "the Hub gone after it was worked on"
    SILENT = "the Hub silent from then on"
    KILLED_BEFORE = "the push killed before it was worked on"
    KILLED_AFTER = "the push killed after it was worked on"

    @property
    def passes(self) -> bool:
        """Whether the push itself gets over it."""
        return self in (Attack.CUT_BEFORE, Attack.CUT_AFTER)

    @property
    def kills(self) -> bool:
        """Whether the process is killed."""
        return self in (Attack.KILLED_BEFORE, Attack.KILLED_AFTER)


@dataclass(frozen=True)
class Row:
    """One attack."""

    what: str
    problems: list[str] = field(default_factory=list)  # none: it held


Refs = dict[str, dict[str, str]]  # tag or branch of a repository -> path -> sha256


def attacks(folder: Path, limit: int | None = None, workers: int = WORKERS) -> Iterator[Row]:
    """Disturb pushes at every request in every way.

    Args:
        folder: an empty one, to work in.
        limit: at most so many attacks, drawn from all with a fixed seed; None for all.
        workers: how many go on side by side.

    Yields:
        Each attack when it is over, in a fixed order.
    """
    whole = folder / "whole"
    whole.mkdir()
    command = [sys.executable, "-m", "macpo", "run", "--until", "1", *OPTIONS]
    subprocess.run(command, cwd=whole, check=True, capture_output=True)
    with ProcessPoolExecutor(workers, mp_context=mp.get_context("spawn")) as pool:
        requests = pool.submit(_requests, folder).result()
        cases = [
            (push, kind, at) for push in PUSHES for at in range(requests[push]) for kind in Attack
        ]
        if limit is not None and limit < len(cases):
            cases = sorted(random.Random(0).sample(cases, limit), key=cases.index)
        for each in [pool.submit(_attack, folder, *case) for case in cases]:
            yield each.result()


def disturbed(folder: Path, count: int, _seed: int) -> Iterator[str]:
    """`attacks` as a part of the campaign: an empty text for each, a line for each fault."""
    for row in attacks(folder, count):
        yield from (f"{row.what}: {problem}" for problem in row.problems)
        yield ""


def _requests(folder: Path) -> dict[str, int]:
    """How many requests each push makes, undisturbed."""
    return {push: len(requests) for push, requests in _place(folder).requests.items()}


def _attack(folder: Path, push: str, kind: Attack, at: int) -> Row:
    """One attack, by the worker that this process is."""
    return _place(folder).attack(push, kind, at)


@cache
def _place(folder: Path) -> _Place:
    """This process's own folder and Hub, made at its first attack and there until it ends."""
    own = folder / str(os.getpid())
    shutil.copytree(folder / "whole", own)
    opened = serve()
    hub = opened.__enter__()
    # Before Python itself ends, when no thread runs any more that could close it.
    Finalize(None, opened.__exit__, (None, None, None), exitpriority=0)
    # What makes the libraries of every new process talk to that Hub, with caches of their own.
    os.environ |= {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(own / "hf"),
        "HF_TOKEN": TOKEN,
        "MACPO_HUB_TIMEOUT": "2",  # shorter than the Hub's silence
        "MACPO_HUB_PAUSE": "0.01",
    }
    context = mp.get_context("forkserver")
    context.set_forkserver_preload([*MODULES, *LIBRARIES])
    place = _Place(own, hub, context)
    for push in PUSHES:
        place.prepare(push)
    return place


def _command(words: list[str], folder: Path, printed: Path) -> None:
    """Run macpo in this process, which was forked for it."""
    from macpo import cli

    with printed.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    sys.argv = ["macpo", *words]
    cli.main()


@dataclass
class _Place:
    """A folder with a finished run, the Hub, and what it should hold after each push."""

    folder: Path
    hub: Hub
    context: ForkServerContext
    before: dict[str, Hub] = field(default_factory=dict)  # by the name of the push
    after: dict[str, dict[str, Refs]] = field(default_factory=dict)
    requests: dict[str, list[str]] = field(default_factory=dict)
    pulled: set[str] = field(default_factory=set)  # what a Hub held where a pull came through

    def prepare(self, push: str) -> None:
        """Push undisturbed, and keep what that makes of the Hub, and its requests.

        Raises:
            RuntimeError: it does not come through.
        """
        earlier, words = PUSHES[push]
        self._reset(Hub())
        for each in earlier:
            self._must(each)
        self.before[push] = Hub()
        self.before[push].repos = copy.deepcopy(self.hub.repos)
        self.before[push].objects = dict(self.hub.objects)
        self.hub.log.clear()
        self._must(words)
        self.after[push] = self._refs()
        self.requests[push] = list(self.hub.log)

    def attack(self, push: str, kind: Attack, at: int) -> Row:
        """Disturb a push at its request number `at` (0..), look at what is there, push again."""
        self._reset(self.before[push])
        command = self._process(*self._push(push))
        self._disturb(kind, at, command)
        code, printed = self._finish(command)
        self.hub.faults = []
        reached = at < len(self.hub.log)
        line = self.hub.log[at] if reached else "not made this time"
        problems = _wrong_end(kind, code, printed) if reached else []
        problems += [problem for refs in self._tags() for problem in refs]
        code, printed = self._finish(self._process(*self._push(push)))
        if code != 0:
            problems.append(f"the same command again: {code}, {printed[-300:]}")
        elif self._refs() != self.after[push]:
            problems.append("the same command again ended with other trees or tags")
        return Row(f"{push}, request {at} ({line}): {kind.value}", problems)

    def _reset(self, to: Hub) -> None:
        self.hub.repos, self.hub.objects = copy.deepcopy(to.repos), dict(to.objects)
        self.hub.faults = []
        self.hub.log.clear()

    def _disturb(self, kind: Attack, at: int, process: ForkServerProcess) -> None:
        """Prepare what happens at a request."""

        def kill() -> None:
            os.kill(int(process.pid or 0), signal.SIGKILL)

        first = (
            "lost" if kind in (Attack.CUT_AFTER, Attack.GONE_AFTER, Attack.KILLED_AFTER) else "drop"
        )
        first = "hang" if kind is Attack.SILENT else first
        self.hub.fail("", first, after=at, then=kill if kind.kills else None)
        if not kind.passes:  # nothing that comes later is heard any more
            self.hub.fail("", first if kind is Attack.SILENT else "drop", FOREVER, after=at)

    def _push(self, push: str) -> tuple[list[str], Path]:
        return [*PUSHES[push][1], "--repo", REPO, *OPTIONS], self.folder

    def _must(self, words: list[str]) -> None:
        code, printed = self._finish(self._process([*words, "--repo", REPO, *OPTIONS], self.folder))
        if code != 0:
            raise RuntimeError(printed)

    def _process(self, words: list[str], folder: Path) -> ForkServerProcess:
        return self.context.Process(target=_command, args=(words, folder, self._printed))

    @property
    def _printed(self) -> Path:
        return self.folder / "printed.txt"

    def _finish(self, process: ForkServerProcess) -> tuple[int | None, str]:
        """Start a command and wait for it: its exit code, None where it hangs, and its text."""
        self._printed.unlink(missing_ok=True)
        process.start()
        process.join(HANGS)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
        return code, self._printed.read_text() if self._printed.exists() else ""

    def _refs(self) -> dict[str, Refs]:
        """What every branch and tag of every repository holds."""
        return {
            f"{kind}/{name}": {
                ref: {path: file.sha256 for path, file in repo.tree(ref).items()}
                for ref in (*repo.branches, *repo.tags)
            }
            for (kind, name), repo in self.hub.repos.items()
        }

    def _tags(self) -> Iterator[list[str]]:
        """What is wrong with what the tags name."""
        for (kind, _), repo in self.hub.repos.items():
            for tag in repo.tags:
                if kind == "models":
                    yield _adapter_problems(tag, repo.tree(tag))
                else:
                    yield _dataset_problems(tag, repo.tree(tag))
                    yield self._pull_problems(tag)

    def _pull_problems(self, tag: str) -> list[str]:
        """What comes of pulling a tag on an empty machine, once for each state of the Hub."""
        state = json.dumps([tag, self._refs()], sort_keys=True)
        if state in self.pulled:
            return []
        empty = self.folder / "empty"
        shutil.rmtree(empty, ignore_errors=True)
        empty.mkdir()
        words = ["pull", REPO, "--round", tag.split("-")[1], "--revision", tag]
        code, printed = self._finish(self._process(words, empty))
        if code != 0:
            return [f"pull of {tag}: {code}, {printed[-300:]}"]
        self.pulled.add(state)
        return []


def _wrong_end(kind: Attack, code: int | None, printed: str) -> list[str]:
    """What is wrong with how a disturbed push ended."""
    wanted = -signal.SIGKILL if kind.kills else 0 if kind.passes else 1
    if code != wanted or "Traceback" in printed:
        return [f"the push ended with {code} in place of {wanted}, and printed {printed[-300:]}"]
    if code == 1 and "error: " not in printed.strip().split("\n")[-1]:
        return [f"the push did not say in its last line why it ended: {printed[-300:]}"]
    return []


def _dataset_problems(tag: str, tree: Tree) -> list[str]:
    """Where a tag's index and its files differ."""
    index = json.loads(tree[INDEX].content) if INDEX in tree else {}
    files = {path: sha for entry in index.values() for path, sha in entry["files"].items()}
    there = {
        path: file.sha256 for path, file in tree.items() if path.startswith(("data/", "macpo/"))
    }
    there.pop(INDEX, None)
    return [] if index and files == there else [f"{tag} names a commit that is half a round"]


def _adapter_problems(tag: str, tree: Tree) -> list[str]:
    """Where the adapter that a tag names is not what its manifest and the list say."""
    manifest = tree.get(f"{tag}/{MANIFEST}")
    listed = json.loads(tree[ADAPTERS].content) if ADAPTERS in tree else {}
    if manifest is None or tag not in listed:
        return [f"{tag} names a commit without that adapter"]
    files: dict[str, str] = json.loads(manifest.content)["files"]
    there = {path: tree[f"{tag}/{path}"].sha256 for path in files if f"{tag}/{path}" in tree}
    return [] if there == files else [f"{tag} names a commit with half an adapter"]
