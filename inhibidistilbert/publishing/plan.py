"""What a publication would change on the Hub: read from there, without a writing request."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import BadRequestError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from ..support.errors import UserError
from .assemble import TOKENIZER, WEIGHTS, Candidate
from .card import CARD, metadata_text
from .checks import Problem
from .metadata import check_ref_name
from .private_paths import find_private_paths
from .publication import Publication
from .secrets import find_secrets

# Left over on the Hub, these would be loaded in place of, or together with, the new files.
STALE = (*WEIGHTS, *TOKENIZER, "*.py")


@dataclass(frozen=True)
class Target:
    """Where to publish.

    Attributes:
        repo_id: `"organisation/name"`.
        publication: what to publish.
        revision: a branch, or `refs/pr/N`.
        private: of a new repository.
        create_pr: open a pull request against `revision`.
        tag: of the new commit.
        collection: slug of a collection that the repository joins.
    """

    repo_id: str
    publication: Publication
    revision: str = "main"
    private: bool = True
    create_pr: bool = False
    tag: str | None = None
    collection: str | None = None
    message: str = "Publish with inhibidistilbert"

    def __post_init__(self) -> None:
        check_ref_name("--revision", self.revision)
        if self.tag is not None:
            check_ref_name("--tag", self.tag)
        for argument, text in (("--commit-message", self.message), ("--tag", self.tag or ""), ("--revision", self.revision)):
            if any(True for _ in (*find_secrets(text, get_token()), *find_private_paths(text))):
                raise UserError(f"{argument} holds a secret or a private path, and goes to the Hub: leave that out.")
        if self.create_pr and self.tag:
            raise UserError("--tag and --create-pr exclude each other: tag when the pull request is merged.")
        if self.create_pr and self.revision.startswith("refs/"):
            raise UserError(f"--create-pr needs a branch as --revision, got {self.revision!r}; leave out --create-pr.")
        self.publication.check_options(self.create_pr, self.collection)
        if not self.message.strip():
            raise UserError("--commit-message must not be empty.")

    @property
    def repository(self) -> dict[str, Any]:
        """How a request names it."""
        return {"repo_id": self.repo_id, "repo_type": self.publication.repo_type}


@dataclass(frozen=True)
class PlannedFile:
    """`state` is `"new"`, `"changed"`, `"same"`, `"removed"` or, of what this tool does not own, `"kept"`."""

    path: str
    size: int
    state: str


@dataclass(frozen=True)
class Remote:
    """What is on the Hub.

    Attributes:
        exists: whether the repository does, as far as the token may see.
        head: commit of the target revision; None where there is no such branch yet.
        main: commit a new branch starts from.
        tags: their commits.
        files: those of the target revision.
    """

    exists: bool
    head: str | None = None
    main: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, RepoFile] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What would be sent where.

    Attributes:
        refusals: what it would overwrite and must not.
        request: the commit an open pull request with exactly these files has, and its name, `refs/pr/N`.
    """

    target: Target
    remote: Remote
    files: tuple[PlannedFile, ...]
    refusals: tuple[Problem, ...] = ()
    request: str | None = None

    @property
    def changes(self) -> tuple[PlannedFile, ...]:
        return tuple(file for file in self.files if file.state in ("new", "changed", "removed"))


def read_remote(api: HfApi, target: Target) -> Remote:
    """The state of the target revision.

    Raises:
        UserError: a revision that can take no commit.
    """
    try:
        refs = api.list_repo_refs(**target.repository, include_pull_requests=True)
    except RepositoryNotFoundError:
        return Remote(exists=False)
    branches = {ref.name: ref.target_commit for ref in refs.branches}
    heads = branches | {ref.ref: ref.target_commit for ref in refs.pull_requests or []}
    tags = {ref.name: ref.target_commit for ref in refs.tags}
    head = heads.get(target.revision)
    if head is None and (target.revision in tags or target.revision.startswith("refs/")):
        raise UserError(f"--revision must be a branch or an open pull request of {target.repo_id}, got {target.revision!r}.")
    return Remote(True, head, branches.get("main"), tags, _tree(api, target, head or branches.get("main")))


def _tree(api: HfApi, target: Target, commit: str | None) -> dict[str, RepoFile]:
    if commit is None:
        return {}
    entries = api.list_repo_tree(**target.repository, revision=commit, recursive=True)
    files = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    for path, file in files.items():
        if not isinstance(path, str) or not isinstance(file.size, int):
            raise TypeError(f"the size of file {path!r} is {file.size!r}")
    return files


def make_plan(api: HfApi, target: Target, files: Mapping[str, Path]) -> Plan:
    """Compare `files` with the Hub.

    Raises:
        UserError: options that do not fit what is there.
    """
    remote = read_remote(api, target)
    if target.create_pr and not remote.exists:
        raise UserError(f"--create-pr needs a repository that exists, {target.repo_id!r} does not; leave out --create-pr.")
    plan = Plan(target, remote, tuple(compare(files, remote.files)))
    request = _open_request(api, target, files) if target.create_pr and plan.changes else None
    return replace(plan, refusals=tuple(_refusals(api, plan)), request=request)


def blind_plan(target: Target, files: Mapping[str, Path]) -> Plan:
    """The plan where nothing is known of the Hub: all is new."""
    return Plan(target, Remote(exists=False), tuple(compare(files, {})))


def metadata_refusals(api: HfApi, candidate: Candidate, repo_type: str) -> Iterator[Problem]:
    """What the Hub itself would not take of the card's metadata, which alone goes there; nothing is written."""
    headers = build_hf_headers(token=api.token)
    card = {"repoType": repo_type, "content": f"---\n{metadata_text(candidate.folder)}\n---\n"}
    response = get_session().post(f"{api.endpoint}/api/validate-yaml", json=card, headers=headers)
    try:
        hf_raise_for_status(response)
    except BadRequestError:
        for error in response.json().get("errors") or [{"message": "without a reason"}]:
            what = f"the Hub does not take its metadata: {' '.join(str(error.get('message')).split())}"
            yield Problem(CARD, what, f"correct the metadata of the folder's {CARD}")


def compare(files: Mapping[str, Path], there: Mapping[str, RepoFile]) -> list[PlannedFile]:
    """Every file here and on the Hub, with what becomes of it."""
    planned = []
    for path, file in files.items():
        state = "new" if path not in there else "same" if _is_same(file, there[path]) else "changed"
        planned.append(PlannedFile(path, file.stat().st_size, state))
    for path in sorted(there.keys() - files.keys()):
        stale = any(fnmatch(path, pattern) for pattern in STALE) and "/" not in path
        planned.append(PlannedFile(path, there[path].size, "removed" if stale else "kept"))
    return planned


def _is_same(file: Path, there: RepoFile) -> bool:
    if there.size != file.stat().st_size:
        return False
    if there.lfs is None:
        return git_hash(file.read_bytes()) == there.blob_id
    with file.open("rb") as stream:
        return sha_fileobj(stream).hex() == there.lfs.sha256


def _refusals(api: HfApi, plan: Plan) -> Iterator[Problem]:
    """Why the publication would overwrite what it should not."""
    target, remote = plan.target, plan.remote
    if target.tag and target.tag in remote.tags and (plan.changes or remote.tags[target.tag] != remote.head):
        what = f"tag {target.tag!r} exists at another commit and is never moved"
        yield Problem(target.repo_id, what, "give another --tag")
    commit = remote.head or remote.main
    yield from target.publication.remote_problems(api, target.repo_id, commit, remote.files.keys())


def _open_request(api: HfApi, target: Target, files: Mapping[str, Path]) -> str | None:
    """An open pull request with our message as its title and our files: a second one would be the same."""
    discussions = api.get_repo_discussions(target.repo_id, discussion_type="pull_request", discussion_status="open")
    for discussion in discussions:
        reference = f"refs/pr/{discussion.num}"
        if discussion.title == target.message:
            there = _tree(api, target, reference)
            if all(file.state in ("same", "kept") for file in compare(files, there)):
                return reference
    return None
