"""What goes to the Hub: a model (`model.py`) or the kernel (`kernel.py`), behind one interface."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from huggingface_hub import HfApi

from .assemble import Candidate
from .checks import Check, Problem


@dataclass(frozen=True)
class Publication(ABC):
    """One kind of repository. What is not abstract holds unless a kind says otherwise.

    Attributes:
        source: CHECKPOINT_DIR: the folder to publish, or to compare with what is on the Hub.
        repo_type: what the Hub calls this kind.
        checks: the gate, by the names that are shown.
    """

    source: Path | None = None
    repo_type: ClassVar[str]
    checks: ClassVar[dict[str, Check]]

    @abstractmethod
    def check_arguments(self) -> None:
        """Raises `UserError` where this cannot be published."""

    def check_options(self, create_pr: bool, collection: str | None) -> None:  # noqa: B027 - a kind may have them all
        """Raises `UserError` for options that this kind does not have."""

    def branch(self) -> str:
        """Where it goes, unless --revision says otherwise."""
        return "main"

    @abstractmethod
    def assemble(self, folder: Path, repo_id: str, tag: str | None = None) -> Candidate:
        """Put together in the new `folder` what goes to the Hub."""

    def downloaded(self, folder: Path) -> Candidate:
        """What was found on the Hub. Raises `UserError` where it is not of this kind."""
        return Candidate(folder, folder, {})

    def remote_problems(self, api: HfApi, repo_id: str, commit: str | None, files: Collection[str]) -> Iterator[Problem]:
        """Why the repository, with `files` at `commit`, must not be published to."""
        yield from ()

    @abstractmethod
    def check_loading(self, candidate: Candidate) -> Iterator[Problem]:
        """It loads from its folder in a process without this package, and computes the same."""

    def check_from_hub(self, candidate: Candidate, *, repo_id: str, revision: str, home: Path) -> Iterator[Problem]:
        """So does what was downloaded to `candidate`; `home` has the cache with it."""
        yield from self.check_loading(candidate)

    @abstractmethod
    def last_checks(self, from_hub: Check, run_code: bool) -> dict[str, Check]:
        """Of --verify: `from_hub` where the code may run, else what there is to see of data alone."""

    @abstractmethod
    def usage(self, candidate: Candidate, repo_id: str, revision: str) -> tuple[str, str]:
        """The two lines that load it."""
