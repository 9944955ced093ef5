"""The contents of files, by their SHA-256."""

import hashlib
import os
import time
from pathlib import Path

_SETTLED = 2.0  # seconds: coarser than the clock of any file system
_known: dict[str, tuple[tuple[int, ...], str]] = {}


def sha256(path: Path) -> str:
    """Of the bytes that are in the file now, as hexadecimal digits.

    A file is not read again while it is the same one, of the same size and times. Of these a program can set back the time
    of the last write, but not that of the last change.
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
