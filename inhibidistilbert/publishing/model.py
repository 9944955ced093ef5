"""A checkpoint as something to publish."""

import tempfile
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download

from ..modeling.configuration_inhibidistilbert import InhibiDistilBertConfig
from ..support.errors import UserError
from ..support.files import read_json
from .assemble import Candidate, assemble
from .checks import FILE_CHECKS, Check, Problem
from .loading import data_problems, loading_problems
from .publication import Publication
from .source import check_source
from .tasks import is_multi_label, usage


class ModelPublication(Publication):
    repo_type = "model"
    checks = FILE_CHECKS

    def check_arguments(self) -> None:
        if self.source is None:
            raise UserError("CHECKPOINT_DIR is missing: give a folder written by save_pretrained.")

    def assemble(self, folder: Path, repo_id: str, tag: str | None = None) -> Candidate:
        assert self.source is not None  # by `check_arguments`
        return assemble(self.source, folder, repo_id, tag)

    def downloaded(self, folder: Path) -> Candidate:
        return Candidate(folder, folder, check_source(folder))

    def remote_problems(self, api: HfApi, repo_id: str, commit: str | None, files: Collection[str]) -> Iterator[Problem]:
        if "config.json" not in files:
            return
        file = hf_hub_download(repo_id, "config.json", revision=commit, endpoint=api.endpoint, token=api.token)
        try:
            there = read_json(Path(file)).get("model_type")
        except UserError:
            there = None
        here = InhibiDistilBertConfig.model_type
        if there != here:
            yield Problem(repo_id, f"{repo_id} holds a model of type {there!r}, not {here!r}", "give another --repo-id")

    def check_loading(self, candidate: Candidate) -> Iterator[Problem]:
        """The assembled folder loads offline, with empty caches and without this package, and computes the same."""
        with tempfile.TemporaryDirectory() as home:
            yield from loading_problems(candidate.source, candidate.architecture, str(candidate.folder), None, Path(home))

    def check_from_hub(self, candidate: Candidate, *, repo_id: str, revision: str, home: Path) -> Iterator[Problem]:
        """By its name on the Hub, as a user does. The files are in the cache already, so that takes no token."""
        yield from loading_problems(self.source or candidate.folder, candidate.architecture, repo_id, revision, home)

    def last_checks(self, from_hub: Check, run_code: bool) -> dict[str, Check]:
        if run_code:
            return {"loading from the Hub": from_hub}
        return {"loading as data": partial(data_problems, reference=self.source)}

    def usage(self, candidate: Candidate, repo_id: str, revision: str) -> tuple[str, str]:
        return usage(candidate.architecture, repo_id, revision, is_multi_label(candidate.config))
