"""A Hub on this machine, for the real client of huggingface_hub: repositories, commits, LFS, and faults on a switch.

It speaks what the client asks for when adapters are pushed and read: create, branch, preupload, LFS batch and upload,
commit (with `parent_commit` and pull requests), info, tree, paths-info, resolve with ETag and Range. `Fault` says what
goes wrong, and at which requests.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

Files = dict[str, bytes]

REPOSITORY = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class Repository:
    """A repository: its commits by hash, the newest last, and its branches."""

    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Files, branch: str = "main") -> str:
        """Add a commit with these files, and nothing else."""
        name = hashlib.sha1(f"{len(self.commits)} {branch}".encode()).hexdigest()
        self.commits[name] = dict(files)
        self.branches[branch] = name
        return name

    def at(self, revision: str) -> str | None:
        """The commit that a revision names; None if there is none."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Fault:
    """What goes wrong at requests whose method and path match.

    Attributes:
        matches: Regular expression for "METHOD /path".
        act: Function that answers in place of the Hub.
        times: Number of requests that it befalls; None for all.
    """

    matches: str
    act: Callable[[Handler], None]
    times: int | None = None


@dataclass
class Hub:
    """The state of a Hub.

    Attributes:
        repositories: By id.
        objects: LFS objects by SHA-256.
        faults: What goes wrong.
        requests: What was asked: method, path, host, and whether a token came with it.
        token: The only token that may write.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    token: str = "hf_secret"
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, repo_id: str, files: Files) -> str:
        """Add a commit to a repository, which is made; return its hash."""
        return self.repositories.setdefault(repo_id, Repository()).commit(files)

    def files(self, repo_id: str, revision: str = "main") -> Files:
        """The files of a repository."""
        repository = self.repositories[repo_id]
        return repository.commits[repository.at(revision) or ""]


class Handler(BaseHTTPRequestHandler):
    """The answers of the Hub."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        self.query = dict(urllib.parse.parse_qsl(query))
        self.where = urllib.parse.unquote(path)
        length = int(self.headers.get("Content-Length") or 0)
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        self.body = self._chunks() if chunked else self.rfile.read(length)
        asked = f"{self.command} {self.where}"
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        with self.hub.lock:
            record = {"asked": asked, "host": self.headers.get("Host"), "token": token, "body": self.body}
            self.hub.requests.append(record)
            fault = next((f for f in self.hub.faults if f.times != 0 and re.search(f.matches, asked)), None)
            if fault is not None and fault.times is not None:
                fault.times -= 1
        if fault is not None:
            with contextlib.suppress(ConnectionError):
                fault.act(self)
            return
        for pattern, act in ROUTES.items():
            if match := re.fullmatch(pattern, asked):
                with self.hub.lock:
                    status, content, headers = act(self, **{k: v for k, v in match.groupdict().items() if v})
                self.send(status, content, headers)
                return
        self.send(404, {"error": f"no such page: {asked}"})

    do_GET = do_POST = do_PUT = do_HEAD = _answer  # noqa: N815

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(self, status: int, content: Any = b"", headers: dict[str, str] | None = None) -> None:
        """Send an answer; dicts and lists as JSON."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def may_write(self) -> bool:
        return bool(self.headers.get("Authorization") == f"Bearer {self.hub.token}")


Answer = tuple[int, Any, dict[str, str]]


def error(status: int, text: str, code: str = "") -> Answer:
    return status, {"error": text}, {"X-Error-Code": code, "X-Error-Message": text}


def found(handler: Handler, repo: str, revision: str) -> tuple[Repository, str] | Answer:
    repository = handler.hub.repositories.get(repo)
    if repository is None:
        return error(401 if not handler.headers.get("Authorization") else 404, "Repository not found", "RepoNotFound")
    commit = repository.at(revision)
    return error(404, f"Invalid rev id: {revision}", "RevisionNotFound") if commit is None else (repository, commit)


def create(handler: Handler) -> Answer:
    if not handler.may_write:
        return error(401, "Invalid username or password.")
    asked = json.loads(handler.body)
    repo_id = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
    url = {"url": f"{handler.hub.url}/{repo_id}", "name": repo_id}
    if repo_id in handler.hub.repositories:
        return 409, {**url, "error": "You already created this model repo"}, {}
    handler.hub.put(repo_id, {".gitattributes": b"*.safetensors filter=lfs\n"})
    return 200, url, {}


def branch(handler: Handler, repo: str, revision: str) -> Answer:
    repository = handler.hub.repositories[repo]
    if revision in repository.branches:
        return error(409, "Reference already exists")
    repository.branches[revision] = repository.branches["main"]
    return 201, {}, {}


def preupload(handler: Handler, repo: str, revision: str) -> Answer:
    where = found(handler, repo, revision)
    if len(where) == 3:
        return where
    files = json.loads(handler.body)["files"]
    modes = [
        {
            "path": f["path"],
            "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
            "shouldIgnore": False,
            "oid": None,
        }
        for f in files
    ]
    return 200, {"files": modes}, {}


def batch(handler: Handler, repo: str) -> Answer:
    objects = [
        {
            **each,
            "authenticated": True,
            "actions": {"upload": {"href": f"{handler.hub.url}/lfs/{each['oid']}?signed=1"}},
        }
        for each in json.loads(handler.body)["objects"]
    ]
    return 200, {"transfer": "basic", "objects": objects}, {}


def upload(handler: Handler, oid: str) -> Answer:
    if hashlib.sha256(handler.body).hexdigest() != oid:
        return error(400, "the content does not match its hash")
    handler.hub.objects[oid] = handler.body
    return 200, {}, {}


def commit(handler: Handler, repo: str, revision: str) -> Answer:
    if not handler.may_write:
        return error(403, "Forbidden: this token may not write")
    where = found(handler, repo, revision)
    if len(where) == 3:
        return where
    repository, parent = where
    lines = [json.loads(line) for line in handler.body.splitlines() if line.strip()]
    head = next(line["value"] for line in lines if line["key"] == "header")
    if head.get("parentCommit") not in (None, parent):
        return error(412, "A commit has happened since. Please refresh and try again.")
    files = dict(repository.commits[parent])
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            files[value["path"]] = handler.hub.objects[value["oid"]]
        elif line["key"] == "deletedFile":
            files.pop(value["path"], None)
    if handler.query.get("create_pr"):
        number = 1 + sum(name.startswith("refs/pr/") for name in repository.branches)
        made, asked = repository.commit(files, f"refs/pr/{number}"), f"{handler.hub.url}/{repo}/discussions/{number}"
    else:
        made, asked = repository.commit(files, revision), None
    url = f"{handler.hub.url}/{repo}/commit/{made}"
    return 200, {"success": True, "commitOid": made, "commitUrl": url, "pullRequestUrl": asked}, {}


def info(handler: Handler, repo: str, revision: str = "main") -> Answer:
    where = found(handler, repo, revision)
    if len(where) == 3:
        return where
    repository, name = where
    files = [{"rfilename": path, "size": len(data)} for path, data in repository.commits[name].items()]
    return 200, {"_id": "1", "id": repo, "modelId": repo, "sha": name, "siblings": files, "private": False}, {}


def entry(path: str, data: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    row: dict[str, Any] = {"type": "file", "oid": blob, "size": len(data), "path": path}
    if path.endswith(".safetensors"):
        row["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return row


def tree(handler: Handler, repo: str, revision: str, folder: str = "") -> Answer:
    where = found(handler, repo, revision)
    if len(where) == 3:
        return where
    files = where[0].commits[where[1]]
    return 200, [entry(path, data) for path, data in files.items() if path.startswith(folder)], {}


def paths_info(handler: Handler, repo: str, revision: str) -> Answer:
    where = found(handler, repo, revision)
    if len(where) == 3:
        return where
    files = where[0].commits[where[1]]
    asked = urllib.parse.parse_qs(handler.body.decode())["paths"]
    return 200, [entry(path, files[path]) for path in asked if path in files], {}


def resolve(handler: Handler, repo: str, revision: str, path: str) -> Answer:
    where = found(handler, repo, revision)
    if len(where) == 3:
        return where
    repository, name = where
    data = repository.commits[name].get(path)
    if data is None:
        return error(404, "Entry not found", "EntryNotFound")
    etag = hashlib.sha256(data).hexdigest() if path.endswith(".safetensors") else entry(path, data)["oid"]
    headers = {"ETag": f'"{etag}"', "X-Repo-Commit": name, "Accept-Ranges": "bytes"}
    if handler.command == "HEAD":
        return 200, data, headers
    if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range") or ""):
        start, end = int(wanted[1]), int(wanted[2] or len(data) - 1)
        return 206, data[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"}
    return 200, data, headers


def models(handler: Handler) -> Answer:
    rows = []
    for name, repository in handler.hub.repositories.items():
        card = repository.commits[repository.branches["main"]].get("README.md", b"").decode()
        tags = re.findall(r"^- (\S+)$", card.split("---")[1], re.MULTILINE) if card.startswith("---") else []
        row = {"_id": "1", "id": name, "modelId": name, "tags": tags, "private": False, "downloads": 7, "likes": 0}
        if handler.query.get("filter", "lowpeft") in tags and handler.query.get("search", "") in name:
            rows.append({**row, "lastModified": "2026-11-28T00:00:00.000Z"})
    return 200, rows, {}


ROUTES: dict[str, Callable[..., Answer]] = {
    r"GET /api/agent-harnesses": lambda handler: (200, {}, {}),
    r"POST /api/validate-yaml": lambda handler: (200, {"errors": [], "warnings": []}, {}),
    r"POST /api/repos/create": create,
    r"GET /api/models": models,
    rf"POST /api/models/{REPOSITORY}/branch/(?P<revision>.+)": branch,
    rf"POST /api/models/{REPOSITORY}/preupload/(?P<revision>.+)": preupload,
    rf"POST /{REPOSITORY}\.git/info/lfs/objects/batch": batch,
    r"PUT /lfs/(?P<oid>\w+)": upload,
    rf"POST /api/models/{REPOSITORY}/commit/(?P<revision>.+)": commit,
    rf"POST /api/models/{REPOSITORY}/paths-info/(?P<revision>.+)": paths_info,
    rf"GET /api/models/{REPOSITORY}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?": tree,
    rf"GET /api/models/{REPOSITORY}(?:/revision/(?P<revision>.+))?": info,
    rf"(?:GET|HEAD) /{REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)": resolve,
}


# --- Faults
def status(code: int, text: str = "it said no") -> Callable[[Handler], None]:
    """Answer with a status; 429 asks to wait no time."""
    headers = {"X-Error-Message": text, **({"Retry-After": "0"} if code == 429 else {})}
    return lambda handler: handler.send(code, {"error": text}, headers)


def silent(seconds: float) -> Callable[[Handler], None]:
    """Take the request and say nothing."""
    return lambda handler: time.sleep(seconds)


def dropped(handler: Handler) -> None:
    """Close the connection without an answer."""
    handler.close_connection = True
    handler.connection.close()


def captive(handler: Handler) -> None:
    """Answer everything with a page, as a hotel's network does."""
    handler.send(200, b"<html>Please log in to the network</html>", {"Content-Type": "text/html"})


def looped(handler: Handler) -> None:
    """Redirect to the same page for ever."""
    handler.send(302, b"", {"Location": handler.path})


def cut(handler: Handler) -> None:
    """Send half of the file, and close the connection."""
    match = re.fullmatch(rf"/{REPOSITORY}/resolve/([^/]+)/(.+)", handler.where)
    assert match is not None
    with handler.hub.lock:
        code, data, headers = resolve(handler, *match.groups())
    handler.send_response(code)
    for name, value in {"Content-Length": str(len(data)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.close_connection = True


def other_content(handler: Handler) -> None:
    """Send bytes other than those whose hash was announced."""
    match = re.fullmatch(rf"/{REPOSITORY}/resolve/([^/]+)/(.+)", handler.where)
    assert match is not None
    with handler.hub.lock:
        code, data, headers = resolve(handler, *match.groups())
    handler.send(code, bytes(len(data)), headers)


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """A Hub that answers on this machine until the end of the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfThisHub", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def in_place_of_the_hub(cache: Path, *, token: str | None = "hf_secret") -> Iterator[Hub]:
    """Point the client, as it is, to a Hub on this machine, with a cache of its own, for this process.

    A new process needs `HF_ENDPOINT` alone. Large files go by LFS: the other transport talks to servers of its own.
    """
    from huggingface_hub import close_session, constants

    with running() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no token"))
        if token is None:
            patch.delenv("HF_TOKEN", raising=False)
        else:
            patch.setenv("HF_TOKEN", token)
        close_session()
        yield hub
        close_session()
