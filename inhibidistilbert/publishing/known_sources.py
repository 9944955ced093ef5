"""Tells this package's own source files from others, by their content: those of this version and of its releases.

`known_sources.json` holds the releases: `{"model": {"0.1.0": {"int8_linear.py": "<sha256>", …}}, "kernel": …}`.
`python -m inhibidistilbert.publishing.known_sources`, called when a release is made, adds this version.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

from ..modeling.sources import write_remote_code
from ..support.errors import UserError
from ..support.files import write_text
from .assemble import repository_files, write_handler
from .card import CARD
from .kernel_repository import build_kernel_repository

TABLE = Path(__file__).with_name("known_sources.json")


def _write_model(folder: Path) -> None:
    write_remote_code(folder)
    write_handler(folder)


_WRITE: dict[str, Callable[[Path], object]] = {"model": _write_model, "kernel": build_kernel_repository}


@cache
def sources(kind: str) -> dict[str, str]:
    """What this version writes into a repository of this kind, `"model"` or `"kernel"`: SHA-256 by name."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "sources")
        folder.mkdir()
        _WRITE[kind](folder)
        return {name: _digest(file) for name, file in repository_files(folder).items() if name != CARD}


def releases(kind: str) -> dict[str, dict[str, str]]:
    """The digests of the releases in the table: version, file name, SHA-256."""
    return json.loads(TABLE.read_text(encoding="utf-8"))[kind]


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def differences(code: Mapping[str, Path], kind: str) -> list[tuple[str, str]]:
    """The files of code that are not those of one release or of this version, each with what is wrong with it.

    All must be of the same version; they are compared with the one that they resemble most.
    """
    there = {name: _digest(file) for name, file in code.items()}
    versions = [sources(kind), *releases(kind).values()]
    closest = max(versions, key=lambda known: len(there.items() & known.items()))
    return list(_compare(there, closest, versions))


def _compare(
    there: Mapping[str, str], closest: Mapping[str, str], versions: Sequence[Mapping[str, str]]
) -> Iterator[tuple[str, str]]:
    for name in sorted(there.keys() | closest.keys()):
        if there.get(name) == closest.get(name):
            continue
        if name not in there:
            yield name, "is missing"
        elif any(known.get(name) == there[name] for known in versions):
            yield name, "is of another release than the files beside it"
        else:
            yield name, "differs from every known release"


def main() -> None:
    """Add this version to the table.

    Raises:
        UserError: it is there already with other sources: a release never changes.
    """
    table, release = json.loads(TABLE.read_text(encoding="utf-8")), version("inhibidistilbert")
    for kind, known in table.items():
        if known.setdefault(release, sources(kind)) != sources(kind):
            raise UserError(f"{TABLE.name} has {release} with other sources; give the release another version.")
    write_text(TABLE, json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
