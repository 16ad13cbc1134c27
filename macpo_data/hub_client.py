"""Calls to the Hugging Face Hub: retries, errors in one line, and no token in any message.

Whatever publishes or fetches a round goes through `ask`.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlsplit

from macpo_data.errors import HubError
from macpo_data.outside import JSON_BYTES, read_bytes
from macpo_data.retry_after import retry_after

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
Say = Callable[[str], None]
RepoType = Literal["dataset", "model"]
PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds between tries of one call, times MACPO_HUB_PAUSE
TRIES = 5  # at a branch that others push to
LONGEST_WAIT = 60.0  # seconds that a Hub may ask for
_REPO = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_PASSING = (408, 429, 500, 502, 503, 504)
_BROKEN = {"TimeoutException", "NetworkError", "RemoteProtocolError"}
# What the library raises at an answer of another form, or one that is nested too deep.
_UNREAD = (RecursionError, LookupError, TypeError, AttributeError, ValueError)
MOST_FILES = 1_000_000  # of a repository


def check_repo(repo: str, *, or_path: bool = False) -> str:
    """Refuse what cannot be a repository's name, before anything is made.

    Args:
        repo: the name.
        or_path: whether a file or folder could have been meant, which is not there.

    Raises:
        HubError: it is none.
    """
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo or repo.endswith((".git", ".")):
        what = "no file or folder here, and " if or_path else ""
        raise HubError(f"{repo!r} is {what}no repository id; write it as org/name")
    return repo


def connect() -> HfApi:
    """The Hub, with bounds on how long it may stay silent, and on what it sends."""
    from macpo_data import hub_session

    return hub_session.connect()


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error, if there is one."""
    response = _response(error)
    return None if response is None else int(response.status_code)


def ask(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call the Hub; try again where it is busy, silent or out of reach for a moment.

    Raises:
        HubError: it asks to wait for longer than anybody would look at a silent command, or its
            answer is none of a Hub's.
    """
    scale = float(os.environ.get("MACPO_HUB_PAUSE", 1))
    for pause in PAUSES:
        try:
            return _answer(function, *args, **kwargs)
        except Exception as error:
            if not _passes(error):
                raise
            response = _response(error)
            delay = retry_after(response.headers) if response is not None else 0.0
            if delay > LONGEST_WAIT:
                long = "for ever" if math.isinf(delay) else f"{delay:,.0f} s"
                raise HubError(
                    f"the Hub at {response.url.host} asks to wait {long} before the next request; "
                    "run the same command again then: what is finished stays"
                ) from None
            time.sleep(max(pause * scale, delay))
    return _answer(function, *args, **kwargs)


def _answer(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call the library once; what it cannot read of an answer, it raises as any bug.

    Raises:
        HubError: the answer is none of a Hub's, as of a login page in between.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return function(*args, **kwargs)
    except (HfHubHTTPError, HFValidationError):
        raise
    except Exception as error:
        # Of the last kind: a file of another size than it was said to have.
        bare = type(error) is OSError and error.errno is None
        if not (isinstance(error, _UNREAD) or bare):
            raise
        raise HubError(
            f"{urlsplit(constants.ENDPOINT).netloc} does not answer as a Hub does "
            f"({type(error).__name__}); check HF_ENDPOINT and what stands in between, such as a "
            "login page"
        ) from error


def until_settled(attempt: Callable[[], T], repo: str, say: Say = lambda line: None) -> T:
    """Look at a repository and commit to it, anew as long as others commit in between.

    Args:
        attempt: looks and commits; raises Moved where what it saw is no longer so.
        repo: for the error.
        say: prints a line where it starts anew.

    Raises:
        HubError: others keep committing.
    """
    for _ in range(TRIES):
        try:
            return attempt()
        except Moved:
            say("somebody else pushed in between; looking again")
    raise HubError(f"cannot push to {repo}: others keep pushing to it; run the command again later")


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
        kinds = _classes(error)
        status = status_of(error)
        refused = isinstance(error, HfHubHTTPError | HFValidationError | LocalTokenNotFoundError)
        silent = {"HTTPError", "OfflineModeIsEnabled", "LocalEntryNotFoundError"}
        if not (refused or status or kinds & (_BROKEN | silent)):
            raise
        raise HubError(
            f"cannot {what} {repo}: {_silence(error) or _hint(kind, status, kinds)}"
        ) from None


def _silence(error: BaseException) -> str | None:
    """What to do where nobody answers; None where somebody does."""
    silent = (each for each in _chain(error) if type(each).__name__ == "NobodyAnswers")
    if (silence := next(silent, None)) is None:
        return None
    return f"{silence}; check the network and HF_ENDPOINT, and run the same command again"


# By the class of the error, or of what it was raised from.
_HINTS = {
    "HFValidationError": "that is no repository id; write it as org/name",
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set; unset it, or use --to DIR",
    "LocalTokenNotFoundError": "no valid token for it; run `hf auth login`, or set HF_TOKEN",
}
# By status, unless the error's own class says more.
_STATUS_HINTS = {
    401: _HINTS["LocalTokenNotFoundError"],
    403: "the token has no right to do that; ask its owner, or use a token with write access",
    404: "there is no such repository, or it is private; check the name, or `hf auth login`",
    429: "the Hub asks for fewer requests; wait some minutes and run the same command again",
}
_CLASS_HINTS = {
    "RevisionNotFoundError": "it has no such tag, branch or commit; look at its page which there "
    "are",
    "GatedRepoError": "it is gated; accept its terms on its page, then run `hf auth login`",
}


def _hint(kind: str, status: int | None, kinds: set[str]) -> str:
    if named := next((hint for name, hint in _HINTS.items() if name in kinds), None):
        return named
    if status in (401, 403):
        return _STATUS_HINTS[status]
    if kind in _CLASS_HINTS:
        return _CLASS_HINTS[kind]
    if status is None:
        return "the Hub does not answer; check the network and run the same command again"
    if status >= 500:
        return f"the Hub is out of order (status {status}); run the same command again later"
    refused = f"the Hub refused it (status {status}); check the name and your rights"
    return _STATUS_HINTS.get(status, refused)


def commits(api: HfApi, repo: str, kind: RepoType) -> tuple[dict[str, str], dict[str, str]]:
    """The branches and the tags of a repository, each with its commit."""
    refs = ask(api.list_repo_refs, repo, repo_type=kind)
    branches = {ref.name: str(ref.target_commit) for ref in refs.branches}
    tags = {ref.name: str(ref.target_commit) for ref in refs.tags}
    return branches, tags


def main_of(branches: Mapping[str, str], repo: str) -> str:
    """The commit at the head of main.

    Raises:
        HubError: there is no such branch.
    """
    if "main" not in branches:
        raise HubError(f"{repo} has no branch main, to which a push goes; look at its page")
    return branches["main"]


def listing(api: HfApi, repo: str, kind: RepoType, commit: str) -> dict[str, str]:
    """Every file of a commit with its hash: sha256 of what is in LFS, else git's own."""
    from huggingface_hub.hf_api import RepoFile

    # The library itself asks again for pages, some 25 s long; to repeat that would take minutes.
    def read() -> list[Any]:
        tree = api.list_repo_tree(repo, recursive=True, revision=commit, repo_type=kind)
        return list(islice(tree, MOST_FILES + 1))

    tree = _answer(read)
    if len(tree) > MOST_FILES:
        raise HubError(f"{repo} has more than {MOST_FILES:,} files; choose another --repo")
    return {f.path: f.lfs.sha256 if f.lfs else f.blob_id for f in tree if isinstance(f, RepoFile)}


def fetch(
    api: HfApi, repo: str, kind: RepoType, commit: str, path: str, most: int = JSON_BYTES
) -> bytes | None:
    """A file of a commit; None if it is not there.

    Raises:
        HubError: it has more than `most` bytes. Nothing of it is fetched where the Hub says so
            before, else no more than that.
    """
    from huggingface_hub.errors import RemoteEntryNotFoundError

    at = {"repo_type": kind, "revision": commit}
    too_large = HubError(f"{repo}: {path} is larger than {most:,} bytes; ask who published it")
    try:
        if ask(api.hf_hub_download, repo, path, **at, dry_run=True).file_size > most:
            raise too_large
        counted = _counting(most, too_large)
        return read_bytes(
            Path(ask(api.hf_hub_download, repo, path, **at, tqdm_class=counted)), most
        )
    except RemoteEntryNotFoundError:  # the local one says that the Hub cannot be reached
        return None


def _counting(most: int, error: HubError) -> Any:
    """A progress bar that ends a download which is longer than it was said to be."""
    from huggingface_hub.utils.tqdm import tqdm

    class Counting(tqdm):
        bytes = 0

        def update(self, n: float | None = 1) -> None:
            self.bytes += int(n or 0)
            if self.bytes > most:
                raise error

    return Counting


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

    gone = [p for p in listing(api, repo, kind, parent) if p not in files and remove(p)]

    def send() -> Any:
        return api.create_commit(
            repo,
            [
                *(CommitOperationAdd(path, _source(c)) for path, c in sorted(files.items())),
                *(CommitOperationDelete(path) for path in sorted(gone)),
            ],
            commit_message=message,
            repo_type=kind,
            revision=None if create_pr else branch,
            parent_commit=parent,
            create_pr=create_pr,
        )

    try:
        done = ask(send)  # which leaves out what is there already, and commits nothing for nothing
    except Exception as error:
        if status_of(error) in (409, 412):
            raise Moved from None
        raise
    return str((create_pr and done.pr_url) or done.oid), done.oid != parent


class Moved(Exception):
    """Somebody else committed in between; look again."""


def _source(content: Path | bytes) -> str | bytes:
    return content if isinstance(content, bytes) else str(content)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _response(error: BaseException) -> Any:
    responses = (getattr(each, "response", None) for each in _chain(error))
    return next((response for response in responses if response is not None), None)


def _classes(error: BaseException) -> set[str]:
    """The names of an error's classes, and of those of what it was raised from."""
    return {c.__name__ for each in _chain(error) for c in type(each).__mro__}


def _passes(error: BaseException) -> bool:
    """Whether the same call may well succeed in a moment."""
    return status_of(error) in _PASSING or bool(_classes(error) & _BROKEN)
