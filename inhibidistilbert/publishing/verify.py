"""Looks at what is on the Hub: downloads it and runs the checks on it; its code runs where that was asked for alone."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi

from .assemble import Candidate, check_source
from .checks import FILE_CHECKS, KNOWN_SOURCES, Check, CheckResult, Problem, run_checks
from .kernel import KERNEL_CHECKS, check_kernel_loading
from .known_sources import differences
from .loading import data_problems, loading_problems
from .tasks import is_multi_label
from .upload import quiet_hub


@dataclass(frozen=True)
class Look:
    """What was seen of a repository.

    Attributes:
        architecture: the model's class; empty for a kernel.
        foreign: the files of code that are of no known release, each with what is wrong with it.
        multi_label: of a model, whether a text has any number of its labels.
    """

    checks: list[CheckResult]
    architecture: str = ""
    foreign: tuple[tuple[str, str], ...] = ()
    multi_label: bool = False


def verify_model(api: HfApi, repo_id: str, revision: str, reference: Path | None = None, run_code: bool = False) -> Look:
    """The checks of a repository at a commit.

    By default it is data: source files are compared with known ones, and weights loaded by this package's classes.

    reference: the folder to compare outputs with; without one, the downloaded files, loaded by this package.
    run_code: run its code, known or not, in a clean process.
    """
    with _download(api, repo_id, revision, "model") as (folder, home):
        candidate = Candidate(folder, folder, check_source(folder))
        foreign = tuple(differences(candidate.files, "model"))
        if run_code:
            checks, last = _trusting(FILE_CHECKS), _from_hub(reference or folder, repo_id, revision, home)
        else:
            checks, last = FILE_CHECKS, {"loading as data": partial(data_problems, reference=reference)}
        seen = run_checks(candidate, checks, last)
        return Look(seen, candidate.architecture, foreign, is_multi_label(candidate.config))


def verify_kernel(api: HfApi, repo_id: str, revision: str, run_code: bool = False) -> Look:
    """The checks of a kernel repository at a commit. All of a kernel is code: it runs only with `run_code`."""
    with _download(api, repo_id, revision, "kernel") as (folder, _):
        candidate = Candidate(folder, folder, {})
        foreign = tuple(differences(candidate.files, "kernel"))
        checks = _trusting(KERNEL_CHECKS) if run_code else KERNEL_CHECKS
        return Look(run_checks(candidate, checks, {"loading": check_kernel_loading} if run_code else None), "", foreign)


def _trusting(checks: dict[str, Check]) -> dict[str, Check]:
    return {name: check for name, check in checks.items() if name != KNOWN_SOURCES}


def _from_hub(reference: Path, repo_id: str, revision: str, home: Path) -> dict[str, Check]:
    """Loading by the name on the Hub, as a user does, of files that are in the cache already: that takes no token."""

    def check(candidate: Candidate) -> Iterator[Problem]:
        yield from loading_problems(reference, candidate.architecture, repo_id, revision, home)

    return {"loading from the Hub": check}


def sent_completely(api: HfApi, candidate: Candidate, repo_id: str, repo_type: str, revision: str) -> list[CheckResult]:
    """After a push: every file is on the Hub as it was sent, and the model or kernel loads from there."""
    with _download(api, repo_id, revision, repo_type) as (folder, home):
        there = Candidate(folder, candidate.source, candidate.config)
        if repo_type == "kernel":
            load: dict[str, Check] = {"loading from the Hub": check_kernel_loading}
        else:
            load = _from_hub(candidate.source, repo_id, revision, home)
        same = partial(_check_same_files, sent=candidate)
        return run_checks(there, {"files as sent": same}, load)


def _check_same_files(there: Candidate, *, sent: Candidate) -> Iterator[Problem]:
    for name, file in sent.files.items():
        if name not in there.files or there.files[name].read_bytes() != file.read_bytes():
            yield Problem(name, "is not on the Hub as it was sent", "run the same command again")


@contextmanager
def _download(api: HfApi, repo_id: str, revision: str, repo_type: str) -> Iterator[tuple[Path, Path]]:
    """The files of a repository at a revision, fetched anew, and the home with the cache that they lie in."""
    with tempfile.TemporaryDirectory() as home, quiet_hub():
        folder = api.snapshot_download(
            repo_id, revision=revision, repo_type=repo_type, cache_dir=Path(home, "hub"), ignore_patterns=".gitattributes"
        )
        yield Path(folder), Path(home)
