"""A Hugging Face Hub on the loopback interface: serves folders as model repositories, enough for transformers to load them.

`LoopbackHub` answers `GET` and `HEAD` of files, model information and file listings. `WritableHub` keeps repositories of its
own, with commits, branches, tags, pull requests, large files and collections, and fails when a test asks it to. A subclass
adds endpoints by adding routes.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Self
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from huggingface_hub import constants
from huggingface_hub.utils import close_session

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
    """Answered as it is; a body in pieces has no length, and is written until there are no more or the client leaves."""

    status: int = 200
    body: bytes | Iterable[bytes] = b""
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

    @contextlib.contextmanager
    def for_this_process(self, cache: Path) -> Iterator[None]:
        """Give the settings to huggingface_hub, which has read its own when it was imported, and an empty `cache`."""
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants._HF_DEFAULT_ENDPOINT, self.endpoint)
        settings = {"ENDPOINT": self.endpoint, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_CACHE": str(cache)}
        switches = {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "HF_HUB_DISABLE_TELEMETRY": True}
        with mock.patch.multiple(constants, **settings, **switches):
            close_session()
            try:
                yield
            finally:
                close_session()

    def cuts(self, method: str, path: str) -> bool:
        """Whether the connection is to be cut in the middle of this request's body."""
        return False

    def cut_off(self) -> None:
        """Called between the first half of such a body and the cut."""

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


@dataclass(frozen=True)
class Commit:
    """Files at a moment: their content, and which of them are large files."""

    parent: str | None
    message: str
    files: Mapping[str, bytes]

    @property
    def id(self) -> str:
        listing = "".join(f"{name} {blob_id(content)}\n" for name, content in sorted(self.files.items()))
        return hashlib.sha1(f"{self.parent} {self.message}\n{listing}".encode()).hexdigest()


@dataclass
class Repository:
    """Commits by their id; branches, tags and pull requests by name, each with the id of a commit."""

    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[str, str] = field(default_factory=dict)

    def add(self, commit: Commit) -> str:
        self.commits[commit.id] = commit
        return commit.id

    def head(self, revision: str) -> Commit:
        """The commit of a branch, tag, pull request or id. Raises HubError as the Hub does."""
        names = self.branches | self.tags | self.pull_requests
        commit = names.get(revision, revision)
        if commit not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[commit]


@dataclass
class Fault:
    """Answers the next `times` requests that fit `pattern`, as in `"PUT /lfs/.*"`; `answer` None cuts them in the middle."""

    pattern: str
    answer: Response | None
    times: int

    def applies(self, method: str, path: str) -> bool:
        return self.times > 0 and re.fullmatch(self.pattern, f"{method} {path}") is not None


KIND = r"(?P<kind>models|kernels)"
WRITING = ("POST", "PUT", "DELETE", "PATCH")
VALIDATION = "POST /api/validate-yaml"
LARGE_FILES = (".safetensors",)
# Fewer than the Hub's: what the package takes and this Hub does not is refused here alone.
LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "other")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def metadata_errors(data: Mapping[str, Any]) -> list[str]:
    """What the Hub's `validate-yaml` would say, as far as a test needs it."""

    def some(name: str) -> list[Any]:
        given = data.get(name, [])
        return given if isinstance(given, list) else [given]

    def is_finite(value: object) -> bool:
        return isinstance(value, int | float) and value == value and abs(value) != float("inf")

    errors = [f'"license" must be one of {LICENSES}' for name in some("license") if name not in LICENSES]
    languages = re.compile(r"[a-z]{2,3}|multilingual|code")
    errors += [f'"language" {code!r} is not valid' for code in some("language") if not languages.fullmatch(str(code))]
    for name in ("base_model", "datasets"):
        errors += [f'"{name}" {value!r} is not valid' for value in some(name) if not HUB_ID.fullmatch(str(value))]
    for name in ("tags", "metrics"):
        if not isinstance(data.get(name, []), list) or not all(isinstance(word, str) for word in some(name)):
            errors.append(f'"{name}" must be an array of strings')
    metrics = [metric for model in some("model-index") for result in model["results"] for metric in result["metrics"]]
    return errors + [f'"{metric["type"]}" is not a number' for metric in metrics if not is_finite(metric["value"])]


class WritableHub(LoopbackHub):
    """A Hub that huggingface_hub's client can publish to, with `token`.

    `repositories` holds them by `"models/owner/name"` or `"kernels/owner/name"`, `large` the content of large files by its
    SHA-256, `collections` the members by slug. `bearers` lists the tokens that came with requests.
    """

    ROUTES = (
        Route("GET", rf"/(?:(?P<kind>kernels)/)?{REPO}/resolve/{REVISION}/(?P<path>.+)", "file"),
        Route("GET", rf"/api/{KIND}/{REPO}", "model_info"),
        Route("GET", rf"/api/{KIND}/{REPO}/revision/{REVISION}", "model_info"),
        Route("GET", rf"/api/{KIND}/{REPO}/tree/{REVISION}(?:/(?P<path>.+))?", "tree"),
        Route("GET", rf"/api/{KIND}/{REPO}/refs", "refs"),
        Route("GET", rf"/api/{KIND}/{REPO}/discussions", "discussions"),
        Route("GET", r"/api/whoami-v2", "whoami"),
        Route("GET", r"/api/collections/(?P<slug>.+)", "collection"),
        Route("POST", r"/api/collections/(?P<slug>.+)/items", "join_collection"),
        Route("POST", r"/api/repos/create", "create"),
        Route("POST", r"/api/validate-yaml", "validate"),
        Route("POST", rf"/api/{KIND}/{REPO}/preupload/{REVISION}", "preupload"),
        Route("POST", rf"/api/{KIND}/{REPO}/commit/{REVISION}", "commit"),
        Route("POST", rf"/api/{KIND}/{REPO}/branch/{REVISION}", "branch"),
        Route("POST", rf"/api/{KIND}/{REPO}/tag/{REVISION}", "tag"),
        Route("POST", rf"/(?:(?P<kind>kernels)/)?{REPO}\.git/info/lfs/objects/batch", "large_files"),
        Route("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "store"),
        Route("POST", r"/lfs/verify", "verify"),
    )

    def __init__(self, token: str):
        super().__init__({})
        self.token = token
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.collections: dict[str, list[str]] = {}
        self.faults: list[Fault] = []
        self.bearers: set[str] = set()
        self.before: dict[str, Callable[[], None]] = {}
        self.at_cut: Callable[[], None] = lambda: None
        self._lock = threading.RLock()

    @property
    def writes(self) -> list[str]:
        """The writing requests so far."""
        return [request for request in self.requests if request.startswith(WRITING) and request != VALIDATION]

    def fail(self, pattern: str, status: int, times: int = 1, **headers: str) -> None:
        """Answer requests such as `"POST .*/commit/main"` with an error."""
        self.answer(pattern, HubError(status, f"Failure {status} on purpose", headers=headers).response, times)

    def answer(self, pattern: str, response: Response, times: int = 1) -> None:
        """Answer such requests with whatever a Hub should not."""
        self.faults.append(Fault(pattern, response, times))

    def cut(self, pattern: str, times: int = 1) -> None:
        """Cut the connection in the middle of the bodies of requests such as `"PUT /lfs/.*"`."""
        self.faults.append(Fault(pattern, None, times))

    def cuts(self, method: str, path: str) -> bool:
        return self._take_fault(method, path, lambda fault: fault.answer is None) is not None

    def cut_off(self) -> None:
        self.at_cut()

    def _take_fault(self, method: str, path: str, wanted: Callable[[Fault], bool]) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if wanted(fault) and fault.applies(method, path):
                    fault.times -= 1
                    return fault
        return None

    def respond(self, request: Request) -> Response:
        fault = self._take_fault(request.method, request.path, lambda fault: fault.answer is not None)
        bearer = request.headers.get("authorization", request.headers.get("Authorization", "")).removeprefix("Bearer ")
        self.bearers |= {bearer} - {""}
        if fault is not None and fault.answer is not None:
            self.requests.append(f"{request.method} {request.path}")
            return fault.answer
        # Presigned addresses of large files carry no token; what is only looked at needs none.
        free = request.method not in WRITING or "/lfs/" in request.path or f"{request.method} {request.path}" == VALIDATION
        if bearer not in ("", self.token) or not (bearer or free):
            self.requests.append(f"{request.method} {request.path}")
            return HubError(401, "Invalid credentials in Authorization header").response
        for pattern in [p for p in self.before if re.fullmatch(p, f"{request.method} {request.path}")]:
            self.before.pop(pattern)()
        with self._lock:
            return super().respond(request)

    def repository(self, repo: str, kind: str = "models") -> Repository:
        name = f"{kind}/{repo}"
        if name not in self.repositories:
            raise HubError(404, "Repository not found", "RepoNotFound")
        return self.repositories[name]

    def put(self, repo: str, files: Mapping[str, bytes], branch: str = "main", kind: str = "models") -> str:
        """Commit `files` on top of a branch, as another publisher would; makes a missing repository."""
        repository = self.repositories.setdefault(f"{kind}/{repo}", self._new_repository(private=True))
        parent = repository.branches[branch]
        merged = {**repository.commits[parent].files, **files}
        repository.branches[branch] = repository.add(Commit(parent, "another", merged))
        return repository.branches[branch]

    def _new_repository(self, private: bool) -> Repository:
        repository = Repository(private)
        repository.branches["main"] = repository.add(Commit(None, "initial commit", {".gitattributes": b""}))
        return repository

    def create(self, request: Request) -> Response:
        body = json.loads(request.body)
        kind, repo = f"{body.get('type') or 'model'}s", f"{body['organization']}/{body['name']}"
        if f"{kind}/{repo}" in self.repositories:
            raise HubError(409, "You already created this repo")
        private = body.get("visibility") == "private" or body.get("private") is True
        self.repositories[f"{kind}/{repo}"] = self._new_repository(private)
        return json_response({"url": f"{self.endpoint}/{'' if kind == 'models' else kind + '/'}{repo}", "id": repo})

    def validate(self, request: Request) -> Response:
        """Errors in the metadata of a card, in the Hub's form."""
        content = json.loads(request.body)["content"]
        match = re.match(r"---\n(.*?)\n---\n", content, flags=re.DOTALL)
        try:
            errors = metadata_errors(yaml.safe_load(match[1]) if match else {})
        except yaml.YAMLError as error:
            errors = [f"YAML: {error}"]
        answer = {"errors": [{"message": message} for message in errors], "warnings": []}
        return json_response(answer, 400 if errors else 200)

    def whoami(self, request: Request) -> Response:
        return json_response({"type": "user", "name": "someone", "orgs": []})

    def file(self, request: Request, repo: str, revision: str, path: str, kind: str = "models") -> Response:
        commit = self.repository(repo, kind).head(revision)
        header = {"X-Repo-Commit": commit.id}
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", header)
        content = commit.files[path]
        return Response(200, content, {**header, "ETag": f'"{blob_id(content)}"'})

    def model_info(self, request: Request, repo: str, kind: str, revision: str = "main") -> Response:
        repository = self.repository(repo, kind)
        commit = repository.head(revision)
        siblings = [{"rfilename": name} for name in commit.files]
        private = repository.private
        return json_response({"id": repo, "modelId": repo, "sha": commit.id, "private": private, "siblings": siblings})

    def tree(self, request: Request, repo: str, revision: str, kind: str, path: str = "") -> Response:
        entries = []
        for name, content in self.repository(repo, kind).head(revision).files.items():
            entry = {"type": "file", "path": name, "size": len(content), "oid": blob_id(content)}
            if name.endswith(LARGE_FILES):
                oid = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
            entries.append(entry)
        return json_response([entry for entry in entries if str(entry["path"]).startswith(path)])

    def refs(self, request: Request, repo: str, kind: str) -> Response:
        repository = self.repository(repo, kind)
        refs = {
            "branches": [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repository.branches.items()],
            "tags": [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": c} for n, c in repository.tags.items()],
            "pullRequests": [{"name": n, "ref": n, "targetCommit": c} for n, c in repository.pull_requests.items()],
            "converts": [],
        }
        return json_response(refs)

    def discussions(self, request: Request, repo: str, kind: str) -> Response:
        repository = self.repository(repo, kind)
        found = [
            {
                "num": int(name.rpartition("/")[2]),
                "title": repository.commits[commit].message,
                "status": "open",
                "isPullRequest": True,
                "author": {"name": "someone"},
                "repo": {"name": repo, "type": kind.removesuffix("s")},
                "createdAt": "2026-01-01T00:00:00.000Z",
            }
            for name, commit in repository.pull_requests.items()
        ]
        return json_response({"discussions": found, "count": len(found), "start": 0})

    def preupload(self, request: Request, repo: str, revision: str, kind: str) -> Response:
        there = self.repository(repo, kind).head(revision).files
        answers = []
        for file in json.loads(request.body)["files"]:
            mode, content = "lfs" if file["path"].endswith(LARGE_FILES) else "regular", there.get(file["path"])
            answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if content is not None:
                answer["oid"] = hashlib.sha256(content).hexdigest() if mode == "lfs" else blob_id(content)
            answers.append(answer)
        return json_response({"files": answers})

    def large_files(self, request: Request, repo: str, kind: str = "models") -> Response:
        objects = []
        for wanted in json.loads(request.body)["objects"]:
            actions = {
                "upload": {"href": f"{self.endpoint}/lfs/{wanted['oid']}?signature=presigned"},
                "verify": {"href": f"{self.endpoint}/lfs/verify"},
            }
            objects.append(wanted if wanted["oid"] in self.large else {**wanted, "actions": actions})
        return json_response({"transfer": "basic", "objects": objects})

    def store(self, request: Request, oid: str) -> Response:
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise HubError(400, "The content is not what the name says")
        self.large[oid] = request.body
        return Response()

    def verify(self, request: Request) -> Response:
        if json.loads(request.body)["oid"] not in self.large:
            raise HubError(404, "No such object")
        return json_response({})

    def commit(self, request: Request, repo: str, revision: str, kind: str) -> Response:
        repository = self.repository(repo, kind)
        lines = [json.loads(line) for line in request.body.splitlines()]
        header, base = lines[0]["value"], repository.head(revision)
        creates = request.query.get("create_pr") == ["1"]
        if header.get("parentCommit", base.id) != base.id and not creates:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(base.files)
        for line in lines[1:]:
            self._apply(files, line["key"], line["value"])
        commit = repository.add(Commit(base.id, header["summary"], files))
        answer = {"commitUrl": f"{self.endpoint}/{repo}/commit/{commit}", "commitOid": commit, "pullRequestUrl": None}
        if creates:
            number = len(repository.pull_requests) + 1
            repository.pull_requests[f"refs/pr/{number}"] = commit
            answer["pullRequestUrl"] = f"{self.endpoint}/{repo}/discussions/{number}"
        elif revision in repository.pull_requests:
            repository.pull_requests[revision] = commit
        else:
            repository.branches[revision] = commit
        return json_response(answer)

    def _apply(self, files: dict[str, bytes], key: str, value: dict[str, Any]) -> None:
        match key:
            case "file":
                files[value["path"]] = base64.b64decode(value["content"])
            case "lfsFile" if value["oid"] in self.large:
                files[value["path"]] = self.large[value["oid"]]
            case "deletedFile" if value["path"] in files:
                del files[value["path"]]
            case _:
                raise HubError(400, f"Cannot do {key} {value['path']}")

    def branch(self, request: Request, repo: str, revision: str, kind: str) -> Response:
        repository = self.repository(repo, kind)
        if revision in repository.branches:
            raise HubError(409, "The branch exists")
        start = json.loads(request.body or b"{}").get("startingPoint", "main")
        repository.branches[revision] = repository.head(start).id
        return json_response({})

    def tag(self, request: Request, repo: str, revision: str, kind: str) -> Response:
        repository, name = self.repository(repo, kind), json.loads(request.body)["tag"]
        if name in repository.tags:
            raise HubError(409, "The tag exists")
        repository.tags[name] = repository.head(revision).id
        return json_response({})

    def collection(self, request: Request, slug: str) -> Response:
        if slug not in self.collections:
            raise HubError(404, "Collection not found")
        items = [
            {"_id": str(number), "id": member, "type": "model", "position": number}
            for number, member in enumerate(self.collections[slug])
        ]
        return json_response(
            {
                "slug": slug,
                "title": slug,
                "owner": {"name": "someone"},
                "items": items,
                "lastUpdated": "2026-01-01T00:00:00.000Z",
                "position": 0,
                "private": False,
                "theme": "blue",
                "upvotes": 0,
            }
        )

    def join_collection(self, request: Request, slug: str) -> Response:
        self.collections[slug].append(json.loads(request.body)["item"]["id"])
        return self.collection(request, slug)


class _Handler(BaseHTTPRequestHandler):
    """Turns HTTP into `Request` and `Response`."""

    protocol_version = "HTTP/1.1"
    # Else a body waits until the client has confirmed the headers, which takes it 40 ms.
    disable_nagle_algorithm = True

    def __init__(self, hub: LoopbackHub, *args: Any):
        self._hub = hub
        super().__init__(*args)

    def _answer(self) -> None:
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length", 0))
        if self._hub.cuts(self.command, url.path):
            self.rfile.read(length // 2)
            self._hub.requests.append(f"{self.command} {url.path}")
            self._hub.cut_off()
            self.close_connection = True
            return
        body = self.rfile.read(length)
        if len(body) < length:
            self.close_connection = True
            return
        response = self._hub.respond(Request(self.command, url.path, parse_qs(url.query), dict(self.headers), body))
        self.send_response(response.status)
        whole = response.body if isinstance(response.body, bytes) else None
        length = {"Connection": "close"} if whole is None else {"Content-Length": str(len(whole))}
        for name, value in {**length, **response.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            for piece in () if self.command == "HEAD" else response.body if whole is None else (whole,):
                self.wfile.write(piece)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer

    def log_message(self, *args: object) -> None:
        """Say nothing: the hub keeps its own list of requests."""
