"""The contents of files, folders and models, by SHA-256: what was made of them is known to fit, and damage is found."""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

# By what a source is known again: `bytes` and `sha256` of a file; `files`, the same by name, of a folder; `commit` on the
# Hub. Empty where nothing is found.
Content = dict[str, Any]

# What of a model's folder decides what it computes: weights, configuration, tokenizer, code. Not what is told about it.
_DECIDES = (".safetensors", ".bin", ".json", ".txt", ".model", ".jinja", ".py")
_TOLD = ("distillation.json", "trainer_state.json", "training_args.bin")
SEAL = "parts.json"  # of a sealed folder: what its files held when they were written
_SETTLED = 2.0  # seconds: coarser than the clock of any file system
_known: dict[str, tuple[tuple[int, ...], str]] = {}


def sha256(path: Path) -> str:
    """The digest of the bytes that are in the file now, as hexadecimal digits.

    A file is not read again while it is the same one, of the same size and times. A program can set back the time of the
    last write, but not that of the last change.
    """
    name, before = os.path.realpath(path), _state(path)
    if name in _known and _known[name][0] == before:
        return _known[name][1]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # A second change right after the first may have its time: a file that was just written is read again.
    if _state(path) == before and time.time() - max(before[-2:]) / 1e9 > _SETTLED:
        _known[name] = before, digest
    return digest


def _state(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def content_of(source: str, model: bool) -> Content:
    """What a file, or a model's folder or repository on the Hub, holds now. From the Hub it reads one file alone."""
    path = Path(source)
    try:
        if path.is_file():
            return {"bytes": path.stat().st_size, "sha256": sha256(path)}
        if model and path.is_dir():
            files = {file.name: content_of(str(file), model=False) for file in sorted(path.iterdir()) if _decides(file)}
            return {"files": files, **_commit(str(path / "config.json"))}
        return _commit(cached_file(source, "config.json")) if model else {}
    except Exception:  # whoever reads it says what is wrong
        return {}


def _decides(file: Path) -> bool:
    told = file.name in _TOLD or file.name.endswith("_results.json")
    return file.suffix in _DECIDES and file.is_file() and not told


def _commit(file: str | None) -> Content:
    commit = extract_commit_hash(file and os.path.abspath(file), None)
    return {"commit": commit} if commit else {}


def change(before: Content, now: Content) -> str | None:
    """What differs, as the end of a sentence; None where nothing does, or nothing is known."""
    known = before.keys() & now.keys() & {"sha256", "files", "commit"}
    if not before or not now or (known and all(before[name] == now[name] for name in known)):
        return None
    if "files" in known:
        files, others = before["files"], now["files"]
        names = sorted(name for name in files.keys() | others.keys() if files.get(name) != others.get(name))
        return f"{', '.join(names)} held something else"
    return f"it was at commit {before['commit']}" if "commit" in before else "it held something else"


def seal(folder: Path, **more: Any) -> None:
    """Record what the files in a folder hold, so that `damage` can tell; and `more`, of JSON."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    held = {name: content_of(str(path), model=False) for name, path in files.items()}
    (folder / SEAL).write_text(json.dumps({"files": held, **more}, indent=2))


def read_seal(folder: Path) -> dict[str, Any] | None:
    """What `seal` has recorded; None where that is missing, or of another form."""
    try:
        parts = json.loads((folder / SEAL).read_text())
        whole = parts["files"] and all(isinstance(held, int | dict) for held in parts["files"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return parts if whole else None


def damage(folder: Path) -> str | None:
    """What of a sealed folder is not as it was written, as a predicate; None where it is whole."""
    parts = read_seal(folder)
    if parts is None:
        return f"lacks {SEAL}"
    for name, held in parts["files"].items():
        now = content_of(str(folder / name), model=False)
        known = {"bytes": held} if isinstance(held, int) else held  # earlier versions recorded the size alone
        if now.get("bytes") != known.get("bytes"):
            return f"lacks {name}"
        if now != {**now, **known}:
            return f"lacks {name} as it was written"
    return None
