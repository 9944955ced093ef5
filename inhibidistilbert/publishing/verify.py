"""Looks at what is on the Hub: downloads it and runs the checks on it; its code runs where that was asked for alone."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi

from .assemble import Candidate
from .checks import KNOWN_SOURCES, Check, CheckResult, Problem, run_checks
from .publication import Publication
from .upload import quiet_hub


@dataclass(frozen=True)
class Look:
    """What was seen of a repository.

    Attributes:
        usage: the lines that load it.
        foreign: what is wrong with the files of code that are of no known release; looked for when they are run.
    """

    checks: list[CheckResult]
    usage: tuple[str, str]
    foreign: tuple[Problem, ...] = ()


def verify_repository(api: HfApi, publication: Publication, repo_id: str, revision: str, run_code: bool = False) -> Look:
    """The checks of a repository at a commit.

    By default it is data: source files are compared with known ones, and weights loaded by this package's classes.

    publication: with a folder, outputs are compared with its model's; without one, with the downloaded files'.
    run_code: run its code, known or not, in a clean process.
    """
    with _download(api, repo_id, revision, publication.repo_type) as (folder, home):
        candidate, checks = publication.downloaded(folder), dict(publication.checks)
        foreign = tuple(checks.pop(KNOWN_SOURCES)(candidate)) if run_code else ()
        last = publication.last_checks(_from_hub(publication, repo_id, revision, home), run_code)
        return Look(run_checks(candidate, checks, last), publication.usage(candidate, repo_id, revision), foreign)


def _from_hub(publication: Publication, repo_id: str, revision: str, home: Path) -> Check:
    return partial(publication.check_from_hub, repo_id=repo_id, revision=revision, home=home)


def sent_completely(
    api: HfApi, publication: Publication, candidate: Candidate, repo_id: str, revision: str
) -> list[CheckResult]:
    """After a push: every file is on the Hub as it was sent, and the model or kernel loads from there."""
    with _download(api, repo_id, revision, publication.repo_type) as (folder, home):
        there = Candidate(folder, candidate.source, candidate.config)
        same = partial(_check_same_files, sent=candidate)
        load = _from_hub(publication, repo_id, revision, home)
        return run_checks(there, {"files as sent": same}, {"loading from the Hub": load})


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
