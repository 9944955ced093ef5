"""The operator as a kernel of the Hugging Face Hub: `make kernel-repository` builds the folder to publish.

Laid out as the library `kernels` loads it and its kernel-builder reads it:

- `build/torch-<backend>/`: the source files, an `__init__.py` and `metadata.json`; nothing is compiled before it runs, so
  the sources are the same for every backend;
- `torch-ext/<name>/` and `build.toml`: the same sources, to build from;
- `README.md`: the card.
"""

import base64
import hashlib
import json
import os
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from ..support.errors import UserError
from ..support.files import replacing_folder

KERNELS = Path(__file__).parents[1] / "kernels"
ENTRIES = {"README.md", "build", "build.toml", "torch-ext"}

_INIT = '''"""Inhibitor attention: keys are scored by Manhattan distance, and the score inhibits the values."""

from . import layers
from .attention import inhibitor_attention
from .packed import packed_inhibitor_attention

__all__ = ["inhibitor_attention", "layers", "packed_inhibitor_attention"]
'''


@dataclass(frozen=True)
class KernelConfig:
    """What `build.toml` says of the kernel; `version` counts its incompatible interfaces, 0 while they still change."""

    name: str
    version: int
    license: str
    backends: tuple[str, ...]

    @classmethod
    def read(cls, file: Path) -> "KernelConfig":
        general = tomllib.loads(file.read_text(encoding="utf-8"))["general"]
        return cls(general["name"], general["version"], general["license"], tuple(general["backends"]))

    @property
    def module(self) -> str:
        return self.name.replace("-", "_")


def kernel_sources() -> dict[str, str]:
    """The source files of the kernel by path: the operator's as they are, and the module that exports it."""
    files = {file.relative_to(KERNELS).as_posix(): file for file in sorted(KERNELS.rglob("*.py"))}
    return {name: file.read_text(encoding="utf-8") for name, file in files.items()} | {"__init__.py": _INIT}


def _metadata(config: KernelConfig, backend: str, sources: dict[str, str]) -> dict:
    """What the library reads before it imports the kernel.

    The id becomes the module's name: with a hash of the sources two versions fit into one process.
    """
    source_hash = hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()[:12]
    hashes = {name: hashlib.sha256(text.encode()).digest() for name, text in sorted(sources.items())}
    return {
        "name": config.name,
        "id": f"_{config.module}_{backend}_{source_hash}",
        "version": config.version,
        "license": config.license,
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {
            "algorithm": "sha256",
            "files": {name: base64.b64encode(digest).decode() for name, digest in hashes.items()},
        },
    }


def _write_files(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def _write_repository(folder: Path, config: KernelConfig) -> None:
    sources = kernel_sources()
    card, build = ((KERNELS / name).read_text(encoding="utf-8") for name in ("CARD.md", "build.toml"))
    _write_files(folder, {"README.md": card, "build.toml": build})
    _write_files(folder / "torch-ext" / config.module, sources)
    for backend in config.backends:
        metadata = json.dumps(_metadata(config, backend, sources), indent=2) + "\n"
        _write_files(folder / "build" / f"torch-{backend}", sources | {"metadata.json": metadata})


def _is_former_build(folder: Path, config: KernelConfig) -> bool:
    """Whether `folder` is a build of this kernel with nothing added to it, such as the `.git` of a clone."""
    if {entry.name for entry in folder.iterdir()} != ENTRIES:
        return False
    return f'name = "{config.name}"' in (folder / "build.toml").read_text(encoding="utf-8").splitlines()


def _check_replaceable(folder: Path, config: KernelConfig) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"output {folder} is a file; name a folder to make")
    if any(folder.iterdir()) and not _is_former_build(folder, config):
        raise UserError(f"output {folder} is not empty, nor a former build of this kernel; name a folder to make")


def build_kernel_repository(folder: str | os.PathLike) -> None:
    """Write the kernel repository to `folder`; a former one is replaced in the end, once all of the new one is written.

    Raises:
        UserError: `folder` holds something else.
    """
    folder, config = Path(folder).resolve(), KernelConfig.read(KERNELS / "build.toml")
    _check_replaceable(folder, config)
    with replacing_folder(folder, "output") as new:
        _write_repository(new, config)


if __name__ == "__main__":
    try:
        build_kernel_repository(sys.argv[1])
    except UserError as error:
        sys.exit(f"error: {error}")
