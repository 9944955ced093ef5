"""Sends what a plan says: one commit on top of the one that the plan saw, or nothing."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.constants import REPO_TYPES_URL_PREFIXES
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    logging,
)

from .client import be_patient
from .errors import HUB_ERRORS, PublishError, Unreachable, explain, is_unreachable
from .plan import Plan, Target


@dataclass(frozen=True)
class Published:
    """Where it is now.

    Attributes:
        commit: forty hexadecimal digits, or `refs/pr/N` of an open pull request that was there already.
        url: of the commit's tree, or of the pull request.
        sent: whether there was anything to send.
    """

    commit: str
    url: str
    sent: bool


@contextlib.contextmanager
def quiet_hub() -> Iterator[None]:
    """Requests that end; no log lines of huggingface_hub, which quote signed addresses; bars where someone is looking."""
    be_patient()
    verbosity, hidden = logging.get_verbosity(), are_progress_bars_disabled()
    logging.set_verbosity(logging.CRITICAL)
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if not hidden:
            enable_progress_bars()


@contextlib.contextmanager
def telling(state: str) -> Iterator[None]:
    """Errors of the Hub as one line; `state` says what is there now."""
    try:
        with quiet_hub():
            yield
    except HUB_ERRORS as error:
        kind = Unreachable if is_unreachable(error) else PublishError
        raise kind(f"{explain(error)}. {state}") from error


def send(api: HfApi, plan: Plan, files: Mapping[str, Path]) -> Published:
    """Carry out the plan: repository, branch, files, commit, tag, collection; what is there already is left alone.

    Large files go first and stay on the Hub when it is cut off; the commit that shows them is a single request, refused
    when the revision moved since the plan was made.

    Raises:
        PublishError: a request failed. It says what is on the Hub.
    """
    target = plan.target
    with telling(f"{target.repo_id} is at its last good commit."):
        parent = _prepare(api, plan)
        published = _commit(api, plan, files, parent)
    if target.tag and target.tag not in plan.remote.tags:
        with telling(f"The files are on the Hub, at {published.commit}; the tag is not made."):
            api.create_tag(**target.repository, tag=target.tag, revision=published.commit)
    if target.collection:
        with telling(f"The files are on the Hub, at {published.commit}; the repository has not joined the collection."):
            _join_collection(api, target)
    return published


def _prepare(api: HfApi, plan: Plan) -> str:
    """Make the repository and the branch where they are missing; returns the commit to build on."""
    target, remote = plan.target, plan.remote
    main = remote.main
    if not remote.exists:
        api.create_repo(**target.repository, private=target.private)
    if main is None:
        main = _head(api, target, "main")
    if remote.head is not None:
        return remote.head
    if target.revision != "main":
        api.create_branch(**target.repository, branch=target.revision, revision=main)
    return main


def _head(api: HfApi, target: Target, branch: str) -> str:
    """Raises `ValueError` where the repository lacks the branch."""
    branches = api.list_repo_refs(**target.repository).branches
    commits = [ref.target_commit for ref in branches if ref.name == branch]
    if not commits:
        raise ValueError(f"{target.repo_id} has no branch {branch!r} to build on")
    return commits[0]


def _commit(api: HfApi, plan: Plan, files: Mapping[str, Path], parent: str) -> Published:
    target = plan.target
    if plan.request:
        return Published(plan.request, f"{_page(api, target)}/discussions/{plan.request.rpartition('/')[2]}", sent=False)
    if not plan.changes:
        return Published(parent, f"{_page(api, target)}/tree/{parent}", sent=False)
    removed = [CommitOperationDelete(file.path) for file in plan.changes if file.state == "removed"]
    added = [CommitOperationAdd(file.path, files[file.path]) for file in plan.changes if file.state != "removed"]
    info = api.create_commit(
        **target.repository,
        revision=target.revision,
        operations=[*removed, *added],
        commit_message=target.message,
        parent_commit=parent,
        create_pr=target.create_pr,
    )
    return Published(info.oid, info.pr_url or f"{_page(api, target)}/tree/{info.oid}", sent=True)


def _join_collection(api: HfApi, target: Target) -> None:
    slug = str(target.collection)
    if target.repo_id not in {item.item_id for item in api.get_collection(slug).items}:
        api.add_collection_item(slug, target.repo_id, "model", exists_ok=True)


def _page(api: HfApi, target: Target) -> str:
    """The address of the repository's page."""
    return f"{api.endpoint}/{REPO_TYPES_URL_PREFIXES.get(target.publication.repo_type, '')}{target.repo_id}"
