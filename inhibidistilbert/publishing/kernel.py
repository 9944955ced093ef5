"""The kernel as something to publish, and the checks it has to pass."""

import base64
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from transformers.utils.versions import require_version

from ..kernels.attention import inhibitor_attention
from ..support.errors import UserError, reason
from ..support.files import read_json
from . import kernel_stranger
from .assemble import Candidate
from .card import CARD
from .checks import (
    KNOWN_SOURCES,
    PLACEHOLDER,
    READ_IT,
    Check,
    Problem,
    check_known_metadata,
    check_paths,
    check_secrets,
)
from .kernel_repository import KERNELS, KernelConfig, build_kernel_repository
from .known_sources import differences
from .loading import LOADING_ERRORS, TOLERANCE, relative_error, script_outputs
from .markup import python_string
from .publication import Publication

_NAME_IN_CARD = "<organisation>/inhibitor"
_REBUILD = "build it again: `inhibidistilbert publish --kernel` does"


def check_variants(candidate: Candidate) -> Iterator[Problem]:
    """Every backend has its variant, and the sources in it are those that its metadata was made for."""
    for backend in KernelConfig.read(KERNELS / "build.toml").backends:
        name = f"build/torch-{backend}/metadata.json"
        if name not in candidate.files:
            yield Problem(name, "is missing", _REBUILD)
            continue
        try:
            digests = read_json(candidate.files[name])["digest"]["files"].items()
        except (UserError, LookupError, TypeError, AttributeError):
            yield Problem(name, "does not hold the digests of its files", _REBUILD)
            continue
        for source, digest in digests:
            file = candidate.folder / f"build/torch-{backend}" / source
            if not file.is_file() or base64.b64encode(hashlib.sha256(file.read_bytes()).digest()).decode() != digest:
                yield Problem(f"build/torch-{backend}/{source}", "is not the file that metadata.json was made for", _REBUILD)


def check_known_kernel(candidate: Candidate) -> Iterator[Problem]:
    """Every file but the card is, by its content, that of this version or of a release. None is imported."""
    # Its metadata says what is loaded.
    code = {name: file for name, file in candidate.files.items() if name != CARD}
    for name, what in differences(code, "kernel"):
        yield Problem(name, what, READ_IT)


def check_kernel_card(candidate: Candidate) -> Iterator[Problem]:
    """The card is filled in."""
    text = (candidate.folder / CARD).read_text(encoding="utf-8") if (candidate.folder / CARD).is_file() else ""
    for match in PLACEHOLDER.finditer(text or "{{"):
        yield Problem(CARD, f"is missing or has the unfilled field {match[0]!r}", "fill it in in kernels/CARD.md")


class KernelPublication(Publication):
    repo_type = "kernel"
    checks: ClassVar[dict[str, Check]] = {
        "variants": check_variants,
        KNOWN_SOURCES: check_known_kernel,
        "private paths": check_paths,
        "secrets": check_secrets,
        "card metadata": check_known_metadata,
        "card": check_kernel_card,
    }

    def check_arguments(self) -> None:
        if self.source is not None:
            raise UserError("--kernel publishes the operator of this package: leave out CHECKPOINT_DIR.")
        # Models are published with older ones too, as the lowest transformers brings them.
        try:
            require_version("huggingface_hub>=2.4")
        except ImportError as error:
            raise UserError(
                "--kernel needs huggingface_hub 2.4 or later: pip install --upgrade huggingface_hub transformers."
            ) from error

    def check_options(self, create_pr: bool, collection: str | None) -> None:
        if create_pr or collection:
            raise UserError("--kernel goes with neither --create-pr nor --collection: the Hub's client has them for models.")

    def branch(self) -> str:
        """The branch in which the library `kernels` looks for this version of the interface."""
        return f"v{KernelConfig.read(KERNELS / 'build.toml').version}"

    def assemble(self, folder: Path, repo_id: str, tag: str | None = None) -> Candidate:
        """Build the kernel repository; its card names `repo_id`."""
        build_kernel_repository(folder)
        card = folder / CARD
        card.write_text(card.read_text(encoding="utf-8").replace(_NAME_IN_CARD, repo_id), encoding="utf-8")
        return self.downloaded(folder)

    def check_loading(self, candidate: Candidate) -> Iterator[Problem]:
        """The variant for the CPU loads in a clean interpreter without this package, and computes the same."""
        name = "build/torch-cpu/__init__.py"
        try:
            with tempfile.TemporaryDirectory() as home:
                variant = candidate.folder / "build" / "torch-cpu"
                theirs = script_outputs(kernel_stranger.__file__, variant, Path(home))["output"]
        except LOADING_ERRORS as error:
            yield Problem(name, f"does not load elsewhere: {reason(error)}", _REBUILD)
            return
        difference = relative_error(theirs, kernel_stranger.call(inhibitor_attention))
        if not difference <= TOLERANCE:
            yield Problem(name, f"its output differs by {difference:.1e} of its size", _REBUILD)

    def last_checks(self, from_hub: Check, run_code: bool) -> dict[str, Check]:
        """All of a kernel is code."""
        return {"loading": from_hub} if run_code else {}

    def usage(self, candidate: Candidate, repo_id: str, revision: str) -> tuple[str, str]:
        call = f"get_kernel({python_string(repo_id)}, revision={python_string(revision)}, trust_remote_code=True)"
        return "from kernels import get_kernel", f"inhibitor = {call}"
