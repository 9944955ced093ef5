"""A Hugging Face Hub on the loopback interface: serves folders as model repositories, enough for transformers to load them.

It answers `GET` and `HEAD` of files, model information and file listings. A subclass adds endpoints by adding routes:

    class WritableHub(LoopbackHub):
        ROUTES = (*LoopbackHub.ROUTES, Route("POST", rf"/api/models/{REPO}/commit/{REVISION}", "commit"))

        def commit(self, request: Request, repo: str, revision: str) -> Response: ...
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs, unquote, urlsplit

REPO = r"(?P<repo>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"


@dataclass(frozen=True)
class Request:
    """What a client sent. `path` is still percent-encoded; a route's groups reach its method decoded."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Response:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Route(NamedTuple):
    """`LoopbackHub.<endpoint>(request, **groups)` answers `method` requests whose whole path matches `pattern`."""

    method: str
    pattern: str
    endpoint: str


class HubError(Exception):
    """Answered with `status` and, where the Hub has one, the code that huggingface_hub turns into an exception class."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None):
        headers = {**(headers or {}), "X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.response = Response(status, json.dumps({"error": message}).encode(), headers)


def json_response(content: object, status: int = 200) -> Response:
    return Response(status, json.dumps(content).encode(), {"Content-Type": "application/json"})


def blob_id(content: bytes) -> str:
    """Git's name for a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def folder_files(folder: Path) -> dict[str, Path]:
    """The files below `folder` by their path in the repository."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def commit_id(folder: Path) -> str:
    """Forty hexadecimal digits that change whenever a file of the folder does."""
    listing = "".join(f"{name} {blob_id(path.read_bytes())}\n" for name, path in folder_files(folder).items())
    return hashlib.sha1(listing.encode()).hexdigest()


class LoopbackHub:
    """Serves `repos`, `{"owner/name": {"main": folder}}`, while the `with` block runs.

    A revision is found by its name or by its commit id. Folders are read on every request, so they may change meanwhile.
    `requests` lists what was asked for, as `"HEAD /owner/name/resolve/main/config.json"`.
    """

    ROUTES: tuple[Route, ...] = (
        Route("GET", rf"/{REPO}/resolve/{REVISION}/(?P<path>.+)", "file"),
        Route("GET", rf"/api/models/{REPO}", "model_info"),
        Route("GET", rf"/api/models/{REPO}/revision/{REVISION}", "model_info"),
        Route("GET", rf"/api/models/{REPO}/tree/{REVISION}(?:/(?P<path>.+))?", "tree"),
    )

    def __init__(self, repos: dict[str, dict[str, Path]]):
        self.repos = repos
        self.requests: list[str] = []

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self) -> dict[str, str]:
        """Variables that a client needs before it imports huggingface_hub; they keep it away from any other server."""
        return {"HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}

    def respond(self, request: Request) -> Response:
        """Let the first route that fits answer; `HEAD` is answered as `GET`, without the body."""
        self.requests.append(f"{request.method} {request.path}")
        method = "GET" if request.method == "HEAD" else request.method
        for route in self.ROUTES:
            match = re.fullmatch(route.pattern, request.path)
            if match and route.method == method:
                groups = {name: unquote(text) for name, text in match.groupdict().items() if text is not None}
                try:
                    return getattr(self, route.endpoint)(request, **groups)
                except HubError as error:
                    return error.response
        return HubError(501, f"This hub does not serve {request.method} {request.path}").response

    def folder(self, repo: str, revision: str) -> Path:
        """The folder behind a revision's name or commit id. Raises HubError as the Hub does."""
        if repo not in self.repos:
            raise HubError(404, "Repository not found", "RepoNotFound")
        revisions = self.repos[repo]
        if revision in revisions:
            return revisions[revision]
        for folder in revisions.values():
            if commit_id(folder) == revision:
                return folder
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def file(self, request: Request, repo: str, revision: str, path: str) -> Response:
        """One file, with the headers by which the client names it in its cache."""
        folder = self.folder(repo, revision)
        commit = {"X-Repo-Commit": commit_id(folder)}
        files = folder_files(folder)
        if path not in files:
            raise HubError(404, "Entry not found", "EntryNotFound", commit)
        content = files[path].read_bytes()
        return Response(
            200, content, {**commit, "ETag": f'"{blob_id(content)}"', "Content-Type": "application/octet-stream"}
        )

    def model_info(self, request: Request, repo: str, revision: str = "main") -> Response:
        folder = self.folder(repo, revision)
        siblings = [{"rfilename": name} for name in folder_files(folder)]
        return json_response({"id": repo, "modelId": repo, "sha": commit_id(folder), "private": False, "siblings": siblings})

    def tree(self, request: Request, repo: str, revision: str, path: str = "") -> Response:
        """The files below `path`; listing is always recursive, and folders themselves are not listed."""
        prefix = f"{path}/" if path else ""
        files = {n: p for n, p in folder_files(self.folder(repo, revision)).items() if n.startswith(prefix)}
        if path and not files:
            raise HubError(404, f"{path} does not exist on {revision!r}", "EntryNotFound")
        return json_response(
            [
                {"type": "file", "path": name, "size": os.path.getsize(file), "oid": blob_id(file.read_bytes())}
                for name, file in files.items()
            ]
        )


class _Handler(BaseHTTPRequestHandler):
    """Turns HTTP into `Request` and `Response`."""

    protocol_version = "HTTP/1.1"

    def __init__(self, hub: LoopbackHub, *args: Any):
        self._hub = hub
        super().__init__(*args)

    def _answer(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        response = self._hub.respond(Request(self.command, url.path, parse_qs(url.query), dict(self.headers), body))
        self.send_response(response.status)
        for name, value in {**response.headers, "Content-Length": str(len(response.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer

    def log_message(self, *args: object) -> None:
        """Say nothing: the hub keeps its own list of requests."""
