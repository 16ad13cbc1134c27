"""A Hub of its own for tests: the endpoints that huggingface_hub and datasets call, in memory.

Repositories have commits, branches and tags; a commit checks its parent. Faults are put in with
`fail`: a status, a hang, a dropped connection, or an answer that is lost after the work was done.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS = (".parquet", ".safetensors", ".bin", ".model")
TOKEN = "hf_goodTokenForTests"
READER = "hf_readerTokenForTests"


@dataclass(frozen=True)
class File:
    """A file of a commit."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        blob = b"blob %d\0" % len(self.content) + self.content
        return hashlib.sha1(blob, usedforsecurity=False).hexdigest()


Tree = dict[str, File]
Answer = tuple[int, bytes, dict[str, str]]  # status, content, headers


@dataclass
class Repo:
    """A repository: its commits, and what names them."""

    private: bool = False
    gated: bool = False  # its name is shown to everybody, its files to nobody here
    commits: dict[str, Tree] = field(default_factory=dict)
    parents: dict[str, str | None] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: list[str] = field(default_factory=list)

    def add(self, branch: str, tree: Tree, parent: str | None) -> str:
        digest = hashlib.sha1(f"{time.time_ns()} {branch}".encode(), usedforsecurity=False)
        oid = digest.hexdigest()
        self.commits[oid], self.parents[oid], self.branches[branch] = tree, parent, oid
        return oid

    def find(self, revision: str) -> str | None:
        names = {**self.branches, **self.tags}
        return names.get(revision, revision if revision in self.commits else None)

    def tree(self, revision: str) -> Tree:
        commit = self.find(revision)
        assert commit, revision
        return self.commits[commit]


@dataclass
class Fault:
    """What to do to requests that match, and how often."""

    pattern: str  # of "METHOD /path"
    what: int | str  # a status, or: hang, drop, lost (the work is done, the answer is not sent)
    times: int = 1
    after: int = 0  # matching requests to let pass before
    then: Callable[[], None] | None = None  # done where an answer would be sent


class Hub:
    """The state of the server, for tests to look at and to disturb."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.log: list[str] = []
        self.retry_after = "0"  # what goes with a status that passes
        self.lock = threading.RLock()
        self.url = ""
        # What a hostile one answers to "METHOD /path" and the request's headers; None as usual.
        self.bend: Callable[[str, Any], Answer | None] = lambda line, headers: None

    def dataset(self, name: str) -> Repo:
        return self.repos["datasets", name]

    def model(self, name: str) -> Repo:
        return self.repos["models", name]

    def fail(
        self,
        pattern: str,
        what: int | str,
        times: int = 1,
        after: int = 0,
        then: Callable[[], None] | None = None,
    ) -> None:
        self.faults.append(Fault(pattern, what, times, after, then))

    def fault(self, line: str) -> Fault | None:
        with self.lock:
            for each in self.faults:
                if re.search(each.pattern, line) and each.times:
                    if each.after:
                        each.after -= 1
                        continue
                    each.times -= 1
                    return each
        return None

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, line)) for line in self.log)


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class Handler(BaseHTTPRequestHandler):
    """One request."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, *_: Any) -> None:
        """Say nothing: `Hub.log` has it."""

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:  # whoever sent it was killed
            self.close_connection = True
            return
        split = urlsplit(self.path)
        self.query = parse_qs(split.query)
        line = f"{self.command} {unquote(split.path)}"
        self.hub.log.append(line)
        if bent := self.hub.bend(line, self.headers):
            return self.send(*bent)
        disturbance = self.hub.fault(line)
        fault = disturbance and disturbance.what
        if fault == "hang":
            time.sleep(3)
        if fault in ("hang", "drop"):
            return self.cut(disturbance)
        if isinstance(fault, int):
            return self.send(fault, b"{}", {"Retry-After": self.hub.retry_after})
        try:
            with self.hub.lock:
                status, content, headers = self.route(unquote(split.path), body)
        except Refused as refused:
            status, content = refused.status, json.dumps({"error": refused.message}).encode()
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
        if fault == "lost":
            return self.cut(disturbance)
        self.send(status, content, headers)

    def cut(self, disturbance: Fault | None) -> None:
        """Close the connection without an answer."""
        if disturbance and disturbance.then:
            disturbance.then()
        self.close_connection = True

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def route(self, path: str, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        if path == "/api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        if path == "/api/models":
            return self.json([])
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path.startswith("/lfs/"):
            self.hub.objects[path.removeprefix("/lfs/")] = body
            return 200, b"", {}
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self.writer()
            return self.batch(json.loads(body))
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo = self.repo("datasets" if match[1] else "models", match[2])
            return self.resolve(repo, match[3], match[4])
        if match := re.fullmatch(
            r"/api/(datasets|models)/([^/]+/[^/]+)(?:/([^/]+)(?:/(.+))?)?", path
        ):
            return self.api(match[1], match[2], match[3] or "", match[4] or "", body)
        raise Refused(404)

    def api(
        self, kind: str, name: str, verb: str, rest: str, body: bytes
    ) -> tuple[int, bytes, dict[str, str]]:
        repo = self.repo(kind, name)
        if verb in ("", "revision"):
            commit = self.commit_of(repo, rest or "main")
            files = [{"rfilename": path} for path in repo.commits[commit]]
            described = {"id": name, "sha": commit, "siblings": files, "private": repo.private}
            return self.json({**described, "tags": [], "downloads": 0, "likes": 0})
        if verb == "auth-check":
            if repo.gated:
                raise Refused(403, "GatedRepo", "Access to this model is restricted")
            return self.json({})
        if verb == "refs":
            return self.json(
                {
                    "branches": self.refs("heads", repo.branches),
                    "tags": self.refs("tags", repo.tags),
                    "converts": [],
                }
            )
        if verb == "tree":
            revision, _, folder = rest.partition("/")
            return self.tree(repo, self.commit_of(repo, revision), folder)
        if verb == "paths-info":
            tree = repo.commits[self.commit_of(repo, rest)]
            asked = self.form(body)
            return self.json([self.info(p, tree[p]) for p in asked if p in tree])
        self.writer()
        if verb == "preupload":
            tree = repo.commits[self.commit_of(repo, rest)]
            modes = []
            for file in json.loads(body)["files"]:
                lfs = file["path"].endswith(LFS)
                old = tree.get(file["path"])
                modes.append(
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if lfs else "regular",
                        "shouldIgnore": False,
                        "oid": old and (old.sha256 if old.lfs else old.oid),
                    }
                )
            return self.json({"files": modes})
        if verb == "commit":
            return self.commit(repo, kind, name, rest, body)
        if verb in ("tag", "branch"):
            return self.name(repo, verb, rest, json.loads(body or b"{}"))
        raise Refused(404)

    def create(self, asked: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        self.writer()
        kind = f"{asked.get('type', 'model')}s"
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name.startswith("closed/"):
            raise Refused(403, message="You don't have the rights to create it")
        url = f"{self.hub.url}/{'datasets/' if kind == 'datasets' else ''}{name}"
        if (kind, name) in self.hub.repos:
            return 409, json.dumps({"url": url}).encode(), {}
        repo = self.hub.repos[kind, name] = Repo(
            asked.get("visibility") == "private" or bool(asked.get("private"))
        )
        repo.add("main", {".gitattributes": File(b"*.parquet filter=lfs\n", False)}, None)
        return self.json({"url": url, "name": name})

    def commit(
        self, repo: Repo, kind: str, name: str, branch: str, body: bytes
    ) -> tuple[int, bytes, dict[str, str]]:
        if name.startswith("closed/"):
            raise Refused(403, message="no rights")
        lines = [json.loads(line) for line in body.splitlines()]
        parent = lines[0]["value"].get("parentCommit")
        head = repo.branches.get(branch)
        if head is None:
            raise Refused(404, "RevisionNotFound")
        if parent not in (None, head):
            raise Refused(412, message="A commit has happened since. Please refresh and try again.")
        tree = dict(repo.commits[head])
        for each in lines[1:]:
            value = each["value"]
            if each["key"] == "file":
                tree[value["path"]] = File(base64.b64decode(value["content"]), False)
            elif each["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise Refused(400, message="LFS object is not there")
                tree[value["path"]] = File(self.hub.objects[value["oid"]], True)
            elif each["key"] == "deletedFile":
                if value["path"] not in tree:
                    raise Refused(404, "EntryNotFound")
                del tree[value["path"]]
        pull = ""
        if self.query.get("create_pr"):
            repo.pulls.append(branch := f"refs/pr/{len(repo.pulls) + 1}")
            pull = f"{self.hub.url}/{kind}/{name}/discussions/{len(repo.pulls)}"
        oid = repo.add(branch, tree, head)
        url = f"{self.hub.url}/{kind}/{name}/commit/{oid}"
        return self.json({"commitOid": oid, "commitUrl": url, "pullRequestUrl": pull})

    def name(
        self, repo: Repo, verb: str, rest: str, asked: dict[str, Any]
    ) -> tuple[int, bytes, dict[str, str]]:
        names = repo.tags if verb == "tag" else repo.branches
        name = asked["tag"] if verb == "tag" and self.command == "POST" else rest
        if self.command == "DELETE":
            if name not in names:
                raise Refused(404, "RevisionNotFound")
            del names[name]
        elif name in names:
            raise Refused(409, message="Reference already exists")
        else:
            start = rest if verb == "tag" else asked.get("startingPoint", "main")
            names[name] = self.commit_of(repo, start)
        return self.json({})

    def batch(self, asked: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        objects = []
        for each in asked["objects"]:
            answer = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.hub.objects:
                href = f"{self.hub.url}/lfs/{each['oid']}"
                answer["actions"] = {"upload": {"href": href, "header": {}}}
            objects.append(answer)
        return self.json({"transfer": "basic", "objects": objects})

    def resolve(self, repo: Repo, revision: str, path: str) -> tuple[int, bytes, dict[str, str]]:
        commit = self.commit_of(repo, revision)
        file = repo.commits[commit].get(path)
        if file is None:
            raise Refused(404, "EntryNotFound", "Entry not found")
        headers = {
            "X-Repo-Commit": commit,
            "ETag": f'"{file.sha256 if file.lfs else file.oid}"',
            "Accept-Ranges": "bytes",
        }
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            begin, end = int(asked[1]), int(asked[2] or len(file.content) - 1)
            size = len(file.content)
            headers["Content-Range"] = f"bytes {begin}-{min(end, size - 1)}/{size}"
            return 206, file.content[begin : end + 1], headers
        return 200, file.content, headers

    def tree(self, repo: Repo, commit: str, folder: str) -> tuple[int, bytes, dict[str, str]]:
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        prefix = f"{folder}/" if folder else ""
        listed: list[dict[str, Any]] = []
        folders = set()
        for path, file in sorted(repo.commits[commit].items()):
            if not path.startswith(prefix):
                continue
            head, _, below = path[len(prefix) :].partition("/")
            if below:
                folders.add(prefix + head)
            if not below or recursive:
                listed.append(self.info(path, file))
        if prefix and not listed and not folders:
            raise Refused(404, "EntryNotFound", "Entry not found")
        listed += [{"type": "directory", "path": f, "oid": "0" * 40, "size": 0} for f in folders]
        return self.json(listed)

    def info(self, path: str, file: File) -> dict[str, Any]:
        size = len(file.content)
        described = {"type": "file", "path": path, "oid": file.oid, "size": size}
        if file.lfs:
            described["lfs"] = {"oid": file.sha256, "size": size, "pointerSize": 134}
        return described

    def form(self, body: bytes) -> list[str]:
        if self.headers.get("Content-Type", "").startswith("application/json"):
            return list(json.loads(body)["paths"])
        return parse_qs(body.decode())["paths"]

    def refs(self, what: str, names: dict[str, str]) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"refs/{what}/{name}", "targetCommit": commit}
            for name, commit in names.items()
        ]

    def repo(self, kind: str, name: str) -> Repo:
        repo = self.hub.repos.get((kind, name))
        if repo is None or (repo.private and not self.token()):
            raise Refused(401 if not self.token() else 404, "RepoNotFound", "Repository not found")
        return repo

    def commit_of(self, repo: Repo, revision: str) -> str:
        commit = repo.find(revision)
        if commit is None:
            raise Refused(404, "RevisionNotFound", "Revision not found")
        return commit

    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ").strip()

    def writer(self) -> None:
        if self.token() == READER:
            raise Refused(403, message="this token may only read")
        if self.token() != TOKEN:
            raise Refused(401, message="Invalid credentials in Authorization header")

    def json(self, value: Any) -> tuple[int, bytes, dict[str, str]]:
        return 200, json.dumps(value).encode(), {"Content-Type": "application/json"}


class Server(ThreadingHTTPServer):
    """Many connections at once, whose other ends may be killed."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """That somebody hung up is no error here."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serve() -> Iterator[Hub]:
    """A Hub on a free port of this machine."""
    hub = Hub()
    handler = type("Bound", (Handler,), {"hub": hub})
    server = Server(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
