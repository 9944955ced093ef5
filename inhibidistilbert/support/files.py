"""Writes files and folders that appear when they are complete, tells regular files, and reads JSON."""

import csv
import errno
import io
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from .errors import UserError, reason

Row = Mapping[str, Any]

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# More than any such file has; parsed it takes ten times as much memory.
_LARGEST_JSON, _DEEPEST_JSON = 1 << 26, 100
# The disk or the folder causes these errors, not this program. Rust's libraries and torch have words for them.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)
_DISK_WORDS = ("PytorchStreamWriter failed", *(f"(os error {code})" for code in (*_DISK_ERRORS, errno.ENOENT)))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, which becomes `path` when the block ends well and goes away when it does not."""
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)  # as `open` would have made it, not for its owner alone
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path, argument: str = "folder") -> Iterator[Path]:
    """A new folder, which becomes `path` when the block ends well and goes away when it does not.

    What stood there is removed in the end; where anything fails it stays, or comes back. Parents are made in the end too.

    Raises:
        UserError: nothing can be written there, said of `argument`.
    """
    # On the file system of `path`, so that a rename is enough.
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        beside = tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=existing, ignore_cleanup_errors=True)
    except OSError as error:
        raise UserError(f"{argument} {str(path)!r} cannot be made: {reason(error)}") from error
    with beside as name:
        new, former = Path(name, "new"), Path(name, "former")
        new.mkdir()  # its mode is that of any folder, where a temporary one is its owner's alone
        yield new
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if os.path.lexists(path):
                path.rename(former)
            new.rename(path)
        except BaseException:
            if os.path.lexists(former):
                former.rename(path)
            raise


def kind_of_file(mode: int) -> str:
    """`"a named pipe"`, from what `stat` says of something that is no regular file."""
    return _KINDS.get(stat.S_IFMT(mode), "no regular file")


def is_regular(file: Path) -> bool:
    """Whether the file is there, as itself or as a link to it.

    Raises:
        UserError: something else has its name, which to open may wait for ever, or give bytes without end.
    """
    try:
        mode = file.stat().st_mode
    except OSError:
        if os.path.lexists(file):
            raise UserError(f"{str(file)!r} is a link that leads nowhere; put the file itself there.") from None
        return False
    if not stat.S_ISREG(mode):
        raise UserError(f"{str(file)!r} must be a regular file, but is {kind_of_file(mode)}.")
    return True


def remove(path: Path) -> None:
    """Whatever is there, a folder with all that is in it; nothing where that cannot be done."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@contextmanager
def telling_of_disk(argument: str, folder: Path, remedy: str = "free some space, or give another folder") -> Iterator[None]:
    """Raises a `UserError`, said of `argument`, where a disk, or what is in the way in `folder`, stops what is done within.

    Libraries wrap such an error, or tell it in words alone.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not _is_of_disk(cause, folder):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise UserError(f"{argument}: {str(folder)!r} cannot be written: {reason(cause)}: {remedy}.") from error


def _is_of_disk(error: BaseException, folder: Path) -> bool:
    if isinstance(error, OSError):
        here = isinstance(error.filename, str) and Path(error.filename).is_relative_to(folder)
        return here or error.errno in _DISK_ERRORS
    return any(words in str(error) for words in _DISK_WORDS)


def read_json(file: Path, called: str | None = None, *, finite: bool = True) -> dict[str, Any]:
    """The JSON object in `file`, which errors name `called`.

    finite: refuse numbers that are none, such as NaN.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    name = called or str(file)
    parsers: dict[str, Any] = {"parse_constant": _no_number, "parse_float": _finite} if finite else {}
    try:
        if is_regular(file) and (size := file.stat().st_size) > _LARGEST_JSON:
            raise ValueError(f"it may have {_LARGEST_JSON} bytes, and has {size}")
        content = json.loads(file.read_text(encoding="utf-8"), **parsers)
        _check_depth(content)
    except (OSError, ValueError, RecursionError, UserError) as error:
        raise UserError(f"{name!r} cannot be read as JSON: {reason(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{name!r} must hold a JSON object, got {type(content).__name__}.")
    return content


def _check_depth(content: Any) -> None:
    """Raises `ValueError` for what is nested so deep that those who walk through it would stumble."""
    level = [content]
    for _ in range(_DEEPEST_JSON):
        level = [each for each in level if isinstance(each, dict | list)]
        if not level:
            return
        level = [part for each in level for part in (each.values() if isinstance(each, dict) else each)]
    raise ValueError(f"it is nested deeper than {_DEEPEST_JSON} levels")


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON: leave it out, or measure again")


def _finite(digits: str) -> float:
    return float(digits) if math.isfinite(float(digits)) else _no_number(digits)


@contextmanager
def form_of(name: str) -> Iterator[None]:
    """Raises `UserError` where what is parsed within is not of the form that the file called `name` has."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, StrictDataclassError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else reason(error)
        raise UserError(f"{name!r} is not of its form: {what}.") from error


def prepare_output(folder: Path | None) -> None:
    """Make the folder, before any time is spent on what goes there. Raises `UserError` where it cannot be written to."""
    if folder is not None:
        check_writable(folder, make=True)


def check_writable(folder: Path, make: bool = False) -> None:
    """Raises `UserError` where nothing can be written to the folder, or where it is to be made."""
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=next(path for path in (folder, *folder.absolute().parents) if path.exists())):
            pass
    except OSError as error:
        raise UserError(f"--output {str(folder)!r} cannot be written to ({error.strerror}); give a folder.") from error


def write_csv(path: Path, header: Row, rows: Sequence[Row]) -> None:
    """`header` as comment lines, `# key: value`, then the table; None is an empty cell."""
    text = io.StringIO()
    for key, value in header.items():
        text.write(f"# {key}: {value}\n")
    columns = {name: None for row in rows for name in row}  # not every row has those that are optional
    writer = csv.DictWriter(text, fieldnames=list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_json(path: Path, header: Row, rows: Sequence[Row], **more: Sequence[Row]) -> None:
    """`{"machine": header, "results": rows}`, one row a line; `more` tables behind them, by name."""
    tables = [f'"machine": {json.dumps(header)}']
    for name, table in {"results": rows, **more}.items():
        lines = ",\n".join(json.dumps(row) for row in table)
        tables.append(f'"{name}": [\n{lines}\n]')
    write_text(path, "{" + ",\n".join(tables) + "}\n")


def write_text(path: Path, text: str) -> None:
    """`text` as UTF-8, its line ends as they are."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
