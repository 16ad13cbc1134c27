"""Calls to the Hub: patient with what passes, one line for what does not, never a token.

Whatever publishes or fetches a round goes through `ask`.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from macpo_data.errors import HubError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

RepoType = Literal["dataset", "model"]
PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds between tries of one call, times MACPO_HUB_PAUSE
TIMEOUT = 60.0  # seconds without an answer
_REPO = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_PASSING = (408, 429, 500, 502, 503, 504)
_BROKEN = {"TimeoutException", "NetworkError", "RemoteProtocolError"}


def check_repo(repo: str) -> str:
    """Refuse what cannot be a repository's name, before anything is made.

    Raises:
        HubError: it is none.
    """
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo or repo.endswith((".git", ".")):
        raise HubError(f"{repo!r} is no repository id; write it as org/name")
    return repo


def connect() -> HfApi:
    """The Hub, with a bound on how long it may stay silent."""
    from huggingface_hub import HfApi, set_client_factory
    from huggingface_hub.utils._http import default_client_factory
    from huggingface_hub.utils.tqdm import disable_progress_bars

    def client() -> Any:
        made = default_client_factory()
        made.timeout = float(os.environ.get("MACPO_HUB_TIMEOUT", TIMEOUT))
        return made

    set_client_factory(client)
    disable_progress_bars()
    return HfApi()


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error, if there is one."""
    response = _response(error)
    return None if response is None else int(response.status_code)


def ask(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call the Hub; try again where it is busy, silent or out of reach for a moment."""
    scale = float(os.environ.get("MACPO_HUB_PAUSE", 1))
    for pause in (*PAUSES, None):
        try:
            return function(*args, **kwargs)
        except Exception as error:
            kinds = {c.__name__ for e in _chain(error) for c in type(e).__mro__}
            passing = status_of(error) in _PASSING or bool(kinds & _BROKEN)
            if pause is None or not passing:
                raise
            time.sleep(max(pause * scale, _retry_after(error)))
    raise AssertionError("the last try returns or raises")


@contextmanager
def one_line(what: str, repo: str) -> Iterator[None]:
    """Turn every way in which the Hub refuses into one line that ends in what to do.

    The message is ours alone: what the server or the library says may hold what nobody should see.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    try:
        yield
    except HubError:
        raise
    except Exception as error:
        kind = type(error).__name__
        kinds = {c.__name__ for e in _chain(error) for c in type(e).__mro__}
        status = status_of(error)
        known = isinstance(error, HfHubHTTPError | HFValidationError | LocalTokenNotFoundError)
        silent = {"HTTPError", "OfflineModeIsEnabled", "LocalEntryNotFoundError"}
        if not (known or status or kinds & (_BROKEN | silent)):
            raise
        raise HubError(f"cannot {what} {repo}: {_hint(kind, status, kinds)}") from None


def _hint(kind: str, status: int | None, kinds: set[str]) -> str:
    if kind == "HFValidationError":
        return "that is no repository id; write it as org/name"
    if "OfflineModeIsEnabled" in kinds:
        return "HF_HUB_OFFLINE is set; unset it, or use --to DIR"
    if kind == "LocalTokenNotFoundError" or status == 401:
        return "no valid token for it; run `hf auth login`, or set HF_TOKEN"
    if status == 403:
        return "the token has no right to do that; ask its owner, or use a token with write access"
    if kind == "RevisionNotFoundError":
        return "it has no such tag, branch or commit; look at its page which there are"
    if kind == "GatedRepoError":
        return "it is gated; accept its terms on its page, then run `hf auth login`"
    if status == 404:
        return "there is no such repository, or it is private; check the name, or `hf auth login`"
    if status == 429:
        return "the Hub asks for fewer requests; wait some minutes and run the same command again"
    if status is not None and status >= 500:
        return f"the Hub is out of order (status {status}); run the same command again later"
    if status is not None:
        return f"the Hub refused it (status {status}); check the name and your rights"
    return "the Hub does not answer; check the network and run the same command again"


def commits(api: HfApi, repo: str, kind: RepoType) -> tuple[dict[str, str], dict[str, str]]:
    """The branches and the tags of a repository, each with its commit."""
    refs = ask(api.list_repo_refs, repo, repo_type=kind)
    branches = {ref.name: str(ref.target_commit) for ref in refs.branches}
    tags = {ref.name: str(ref.target_commit) for ref in refs.tags}
    return branches, tags


def listing(api: HfApi, repo: str, kind: RepoType, commit: str) -> dict[str, str]:
    """Every file of a commit with its hash: sha256 of what is in LFS, else git's own."""
    from huggingface_hub.hf_api import RepoFile

    tree = ask(
        lambda: list(api.list_repo_tree(repo, recursive=True, revision=commit, repo_type=kind))
    )
    return {f.path: f.lfs.sha256 if f.lfs else f.blob_id for f in tree if isinstance(f, RepoFile)}


def differs(content: Path | bytes, remote: str | None) -> bool:
    """Whether a file here is not the one that a listing names."""
    if remote is None:
        return True
    sha, git = hashlib.sha256(), hashlib.sha1(usedforsecurity=False)
    with BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        git.update(f"blob {file.seek(0, os.SEEK_END)}\0".encode())
        file.seek(0)
        while block := file.read(1 << 20):
            sha.update(block)
            git.update(block)
    return remote not in (sha.hexdigest(), git.hexdigest())


def fetch(api: HfApi, repo: str, kind: RepoType, commit: str, path: str) -> bytes | None:
    """A file of a commit; None if it is not there."""
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        return Path(
            ask(api.hf_hub_download, repo, path, repo_type=kind, revision=commit)
        ).read_bytes()
    except RemoteEntryNotFoundError:  # the local one says that the Hub cannot be reached
        return None


def commit(
    api: HfApi,
    repo: str,
    kind: RepoType,
    branch: str,
    parent: str,
    files: Mapping[str, Path | bytes],
    message: str,
    remove: Callable[[str], bool] = lambda path: False,
    create_pr: bool = False,
) -> tuple[str, bool]:
    """Bring files to a branch in one commit on `parent`, and remove others with it.

    Returns:
        The commit that holds them (or the pull request's page), and whether it is new.

    Raises:
        Moved: the branch is no longer at `parent`.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    there = listing(api, repo, kind, parent)
    changed = {
        path: content for path, content in files.items() if differs(content, there.get(path))
    }
    gone = [path for path in there if path not in files and remove(path)]
    if not changed and not gone:
        return parent, False

    def send() -> Any:
        return api.create_commit(
            repo,
            [
                *(CommitOperationAdd(path, _source(c)) for path, c in sorted(changed.items())),
                *(CommitOperationDelete(path) for path in sorted(gone)),
            ],
            commit_message=message,
            repo_type=kind,
            revision=None if create_pr else branch,
            parent_commit=parent,
            create_pr=create_pr,
        )

    try:
        made = ask(send)
    except Exception as error:
        if status_of(error) in (409, 412):
            raise Moved from None
        raise
    return str(made.pr_url if create_pr else made.oid), True


class Moved(Exception):
    """Somebody else committed in between; look again."""


def _source(content: Path | bytes) -> str | bytes:
    return content if isinstance(content, bytes) else str(content)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _response(error: BaseException) -> Any:
    found = (getattr(each, "response", None) for each in _chain(error))
    return next((response for response in found if response is not None), None)


def _retry_after(error: BaseException) -> float:
    response = _response(error)
    try:
        return 0.0 if response is None else min(float(response.headers["Retry-After"]), TIMEOUT)
    except (KeyError, ValueError):
        return 0.0
