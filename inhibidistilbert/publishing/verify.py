"""Looks at what is on the Hub: downloads it, runs the checks on it, and loads it by name as a user would."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi

from .assemble import Candidate, check_source
from .checks import FILE_CHECKS, Check, CheckResult, Problem, run_checks
from .kernel import KERNEL_CHECKS, check_kernel_loading
from .loading import loading_problems
from .upload import quiet_hub


def verify_model(
    api: HfApi, repo_id: str, revision: str, reference: Path | None = None
) -> tuple[list[CheckResult], Candidate]:
    """The checks of a repository at a commit, and what they looked at, whose folder is gone.

    reference: the folder to compare outputs with; without one, the downloaded files, loaded by this package.
    """
    with _download(api, repo_id, revision, "model") as folder:
        candidate = Candidate(folder, folder, check_source(folder))
        load = partial(_check_from_hub, repo_id=repo_id, revision=revision, reference=reference or folder)
        return run_checks(candidate, FILE_CHECKS, {"loading from the Hub": load}), candidate


def _check_from_hub(candidate: Candidate, *, repo_id: str, revision: str, reference: Path) -> Iterator[Problem]:
    yield from loading_problems(reference, candidate.architecture, repo_id, revision)


def verify_kernel(api: HfApi, repo_id: str, revision: str) -> list[CheckResult]:
    """The checks of a kernel repository at a commit."""
    with _download(api, repo_id, revision, "kernel") as folder:
        return run_checks(Candidate(folder, folder, {}), KERNEL_CHECKS, {"loading": check_kernel_loading})


def sent_completely(api: HfApi, candidate: Candidate, repo_id: str, repo_type: str, revision: str) -> list[CheckResult]:
    """After a push: every file is on the Hub as it was sent, and the model or kernel loads from there."""
    with _download(api, repo_id, revision, repo_type) as folder:
        there = Candidate(folder, candidate.source, candidate.config)
        if repo_type == "kernel":
            load: Check = check_kernel_loading
        else:
            load = partial(_check_from_hub, repo_id=repo_id, revision=revision, reference=candidate.source)
        same = partial(_check_same_files, sent=candidate)
        return run_checks(there, {"files as sent": same}, {"loading from the Hub": load})


def _check_same_files(there: Candidate, *, sent: Candidate) -> Iterator[Problem]:
    for name, file in sent.files.items():
        if name not in there.files or there.files[name].read_bytes() != file.read_bytes():
            yield Problem(name, "is not on the Hub as it was sent", "run the same command again")


@contextmanager
def _download(api: HfApi, repo_id: str, revision: str, repo_type: str) -> Iterator[Path]:
    """The files of a repository at a revision, fetched anew, while the block runs."""
    with tempfile.TemporaryDirectory() as cache, quiet_hub():
        folder = api.snapshot_download(
            repo_id, revision=revision, repo_type=repo_type, cache_dir=cache, ignore_patterns=".gitattributes"
        )
        yield Path(folder)
