"""Takes files out of a maintainer's folder: regular files, and nothing that a link points to."""

import os
import shutil
import stat
from pathlib import Path

from ..support.errors import UserError, reason
from ..support.files import kind_of_file

# Where the system has them: a link is not followed, a pipe without a writer is not waited for.
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def refuse_others(files: list[Path]) -> None:
    """Raises `UserError`, which names them all, where some of `files` are not regular files; a hard link is one."""
    refused, cached = [], False
    for file in files:
        mode = file.lstat().st_mode
        if not stat.S_ISREG(mode):
            refused.append(f"{file.name!r} ({kind_of_file(mode)})")
            cached |= stat.S_ISLNK(mode) and Path(os.readlink(file)).parent.name == "blobs"
    if refused:
        remedy = (
            "the cache of the Hub holds links: get the files with `hf download ORG/NAME --local-dir FOLDER`"
            if cached
            else "put the files themselves there, or take these away"
        )
        raise UserError(f"CHECKPOINT_DIR: only regular files are published, not {', '.join(refused)}; {remedy}.")


def copy_regular(file: Path, target: Path) -> None:
    """Copy `file` to `target`, which is new.

    What was looked at is what is copied: the file is opened once, and the open file compared with the name. A link that
    takes its place meanwhile is refused.

    Raises:
        UserError: `file` is not a regular file, or cannot be read.
    """
    try:
        refuse_others([file])
        seen = file.lstat()
        with open(os.open(file, _FLAGS), "rb") as stream:
            opened = os.fstat(stream.fileno())
            if not (stat.S_ISREG(opened.st_mode) and os.path.samestat(seen, opened)):
                raise UserError(f"CHECKPOINT_DIR: {file.name!r} was replaced while it was read; run the same command again.")
            with target.open("xb") as copy:
                shutil.copyfileobj(stream, copy, 1 << 20)
    except OSError as error:
        raise UserError(f"CHECKPOINT_DIR: {file.name!r} cannot be read: {reason(error)}.") from error
