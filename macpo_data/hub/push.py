"""Publishes rounds: one commit and one tag on the Hub, or the same files in a folder.

The tag comes last, so its existence means that all the rest is there. A push that was killed, or
met another one, is repeated and goes on from what it finds.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from macpo_data import hub_client
from macpo_data.errors import HubError, StoreError, of_run
from macpo_data.forms import trainer
from macpo_data.hub.index import INDEX, Index, config_name, index_of, owned, read_index
from macpo_data.hub.tree import assemble, identity, render_step
from macpo_data.plan import Plan, Step
from macpo_data.sources.files import is_local
from macpo_data.sources.places import all_paths
from macpo_data.store import locks
from macpo_data.store.pins import Lock
from macpo_data.store.store import Store, atomic, holds, naming

if TYPE_CHECKING:
    from huggingface_hub import HfApi

FULL = "full"  # the branch whose default configuration is the full form
_STAGING = ".staging"  # inside a folder that is pushed to
_TAG = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Push:
    """What is to be published: some learners' finished datasets of one round."""

    plan: Plan
    store: Store
    steps: list[Step]
    tag: str
    repo: str | None = None
    candidates: bool = False
    licence: str | None = None

    @property
    def names(self) -> list[str]:
        """The configurations that belong to it."""
        return [config_name(step.round, step.learner) for step in self.steps]

    def identities(self) -> dict[str, str]:
        """What each would contain, without rendering it."""
        return {
            name: identity(self.plan, self.store, step, self.candidates, self.licence)
            for name, step in zip(self.names, self.steps, strict=True)
        }

    def render(self, to: Path) -> Index:
        """Write the files under `to`, which is emptied."""
        shutil.rmtree(to, ignore_errors=True)
        index: Index = {}
        for name, step in zip(self.names, self.steps, strict=True):
            own = to / ".one"
            own.mkdir(parents=True)
            index[name] = render_step(
                self.plan,
                self.store,
                step,
                own,
                repo=self.repo,
                candidates=self.candidates,
                licence=self.licence,
            )
            index[name]["tag"] = self.tag
            shutil.copytree(own, to, dirs_exist_ok=True, copy_function=shutil.move)
            shutil.rmtree(own)
        return index

    def owns(self, path: str) -> bool:
        """Whether a path of the tree belongs to what is published here."""
        return path.startswith(tuple(prefix for name in self.names for prefix in owned(name)))


def check_tag(tag: str) -> str:
    """Refuse what cannot be a tag.

    Raises:
        HubError: it is none.
    """
    if not _TAG.fullmatch(tag) or ".." in tag or tag.endswith((".lock", ".")):
        raise HubError(f"{tag!r} is no tag; write it as round-2.1")
    return tag


def push_to_folder(push: Push, to: Path) -> bool:
    """Write the tree into a folder, beside the rounds that it holds. Says whether anything changed.

    The card and the index are written after the data and before what is stale is removed, so that
    at no moment the card names a file that is not there.

    Raises:
        HubError: the folder holds something else.
    """
    if to.exists() and not to.is_dir():
        raise HubError(f"{to} is a file; choose another folder with --to")
    to.mkdir(parents=True, exist_ok=True)
    with locks.of_folder(to, push.store.say), naming(to):
        return _into_folder(push, to)


def _into_folder(push: Push, to: Path) -> bool:
    before = _index_there(to)
    staging = to / _STAGING
    if staging.is_symlink():
        raise HubError(f"{staging} is a link, and not followed; remove it")
    entries = push.render(staging)
    files = _files(entries, staging)
    common = assemble(before | entries, push.repo)
    written = [_write(to / path, content) for path, content in (files | common).items()]
    # Whatever else lies in the folder, such as a repository's own files, is none of ours.
    ours = [path for top in ("data", "macpo") for path in (to / top).rglob("*")]
    left = [p for name in common for p in to.glob(f".{name}.*.tmp") if "/" not in name]
    stale = [old for old in sorted(ours + left) if _is_stale(push, to, old, files)]
    for old in stale:
        old.unlink()
    shutil.rmtree(staging)
    for folder in sorted(ours, reverse=True):
        if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()
    return any(written) or bool(stale)


def _index_there(to: Path) -> Index:
    """What a folder holds of earlier pushes.

    Raises:
        HubError: it holds something else.
    """
    index = to / INDEX
    if any(to.iterdir()) and not index.is_file() and not (to / _STAGING).exists():
        raise HubError(f"{to} is not empty and no tree of macpo; choose another folder with --to")
    return index_of(to)


def _write(target: Path, content: Path | bytes) -> bool:
    """Write a file unless it is there as it should be; says whether it did."""
    new = content if isinstance(content, bytes) else content.read_bytes()
    if holds(target, new):
        return False
    with atomic(target) as temporary:
        temporary.write_bytes(new)
    return True


def _is_stale(push: Push, to: Path, path: Path, files: Mapping[str, Path | bytes]) -> bool:
    """Whether a file was left by a push that was killed, or by an earlier one of the same round."""
    inside = path.relative_to(to).as_posix()
    killed = path.name.startswith(".") and path.suffix == ".tmp"
    return path.is_file() and (killed or push.owns(inside)) and inside not in files


def push_to_hub(
    push: Push, *, private: bool = False, create_pr: bool = False, say: Say = lambda line: None
) -> str:
    """Publish in one commit, then the branch for open-instruct, then the tag.

    Returns:
        What came of it, in one line.

    Raises:
        HubError: the tag exists with other content, or the Hub refuses.
    """
    repo = hub_client.check_repo(str(push.repo))
    staging = push.store.root / ".push"
    with hub_client.one_line("push to", repo), push.store.lock("push"):
        api = hub_client.connect()
        ensure(api, repo, "dataset", private)
        entries: Index = {}

        def attempt() -> str:
            branches, tags = hub_client.commits(api, repo, "dataset")
            if push.tag in tags:
                _same_or_refuse(api, push, repo, tags[push.tag])
                return f"{repo} has {push.tag} already, with the same content"
            if not entries:
                say(f"rendering {', '.join(push.names)}")
                with naming(staging):
                    entries.update(push.render(staging))
            commit = _publish(api, push, repo, branches, entries, staging, create_pr)
            if create_pr:
                return f"opened {commit}; push again when it is merged, for the tag"
            return f"pushed {repo} at {push.tag} ({commit[:12]})"

        try:
            return hub_client.until_settled(attempt, repo, say)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _publish(
    api: HfApi,
    push: Push,
    repo: str,
    branches: Mapping[str, str],
    entries: Index,
    staging: Path,
    create_pr: bool,
) -> str:
    """Bring main, the branch of the full form and the tag to where they should be."""
    head = hub_client.main_of(branches, repo)
    content = hub_client.fetch(api, repo, "dataset", head, INDEX)
    if content is None and hub_client.fetch(api, repo, "dataset", head, "README.md") is not None:
        raise HubError(f"{repo} holds a dataset that macpo did not make; choose another --repo")
    index = read_index(content, repo) | entries
    files = _files(entries, staging)
    message = f"{push.tag}: {', '.join(push.names)}"
    commit, _ = hub_client.commit(
        api,
        repo,
        "dataset",
        "main",
        head,
        files | assemble(index, repo),
        message,
        remove=push.owns,
        create_pr=create_pr,
    )
    if create_pr:
        return commit
    full = files | assemble(index, repo, trainer.FULL.suffix)
    _publish_full(api, repo, branches.get(FULL), commit, full, f"{message}, full form as default")
    set_tag(api, repo, "dataset", push.tag, commit)
    return commit


def _publish_full(
    api: HfApi,
    repo: str,
    branch: str | None,
    main: str,
    files: Mapping[str, Path | bytes],
    message: str,
) -> None:
    """Make the branch main's tree with another card, in one commit.

    Where a push that was killed left it without files that are not at hand here, it is made anew
    from main: its history is of no interest.
    """
    wanted = hub_client.listing(api, repo, "dataset", main)
    if branch is not None:
        there = hub_client.listing(api, repo, "dataset", branch)
        if any(there.get(path) != oid for path, oid in wanted.items() if path not in files):
            hub_client.ask(api.delete_branch, repo, branch=FULL, repo_type="dataset")
            branch = None
    if branch is None:
        hub_client.ask(
            api.create_branch, repo, branch=FULL, revision=main, repo_type="dataset", exist_ok=True
        )
        branch = hub_client.commits(api, repo, "dataset")[0][FULL]
    hub_client.commit(
        api, repo, "dataset", FULL, branch, files, message, remove=lambda path: path not in wanted
    )


def set_tag(api: HfApi, repo: str, kind: hub_client.RepoType, tag: str, commit: str) -> None:
    """Set a tag; one that was set in the meantime sends us back to look at it."""
    try:
        hub_client.ask(api.create_tag, repo, tag=tag, revision=commit, repo_type=kind)
    except Exception as error:
        if hub_client.status_of(error) == 409:
            raise hub_client.Moved from None
        raise


def _same_or_refuse(api: HfApi, push: Push, repo: str, commit: str) -> None:
    """Refuse a tag that names other content than what would be pushed."""
    there = read_index(hub_client.fetch(api, repo, "dataset", commit, INDEX), repo)
    mine = push.identities()
    theirs = {name: there[name]["identity"] for name in mine if name in there}
    if theirs != mine:
        raise HubError(
            f"{repo} has {push.tag} already, with other content, and tags are never moved; publish "
            f"yours beside it with --as {push.tag}.1"
        )


def ensure(api: HfApi, repo: str, kind: hub_client.RepoType, private: bool) -> None:
    """Make the repository if it is not there."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        hub_client.ask(api.repo_info, repo, repo_type=kind)
    except RepositoryNotFoundError:
        hub_client.ask(api.create_repo, repo, repo_type=kind, private=private, exist_ok=True)


def _files(entries: Index, staging: Path) -> dict[str, Path | bytes]:
    return {path: staging / path for entry in entries.values() for path in entry["files"]}


def round_steps(plan: Plan, store: Store, steps: list[Step], learner: str | None) -> list[Step]:
    """The gen steps of a round that can be published: the learners', and not the ceiling's.

    Raises:
        HubError: one of them is not finished.
    """
    steps = [step for step in steps if not step.is_ceiling]
    missing = [step for step in steps if not _done(store, plan.name(step))]
    if missing:
        names = ", ".join(step.learner for step in missing)
        done = [step.learner for step in steps if step not in missing]
        hint = f", or publish what is there with --learner {done[0]}" if done else ""
        raise HubError(
            f"round {steps[0].round} is incomplete: no dataset for {names}; finish it with "
            f"`{of_run(f'run --round {steps[0].round}')}`" + ("" if learner else hint)
        )
    return steps


def _done(store: Store, name: str) -> bool:
    try:
        return store.is_done(name)
    except StoreError:
        return False


def source_licence(plan: Plan, store: Store, say: Say) -> str | None:
    """The licence that the sources of a recipe state on the Hub, if it is one and the same.

    It is asked for once and then kept with the other pins, so that the same round stays the same.
    """
    data, lock = plan.recipe.data, Lock(store.root)
    paths = list(dict.fromkeys(all_paths(data)))
    if not paths or any(is_local(path) for path in paths):
        return None

    def stated(path: str) -> str | None:
        card = hub_client.connect().dataset_info(path).card_data
        licence = getattr(card, "license", None)
        return licence if isinstance(licence, str) else None

    try:
        licences = {lock.licence(path, partial(stated, path)) for path in paths}
    except Exception:  # every way of not reaching the Hub has its own class
        say(f"cannot ask {', '.join(paths)} for a licence; name it with --license")
        return None
    return licences.pop() if len(licences) == 1 else None
