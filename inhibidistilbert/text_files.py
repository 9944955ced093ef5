"""Reads local files of texts: CSV, TSV, JSON, JSON lines, parquet and plain text."""

import glob
import shutil
from pathlib import Path

from datasets import Dataset, IterableDataset, load_dataset

from .digests import sha256
from .errors import UserError, reason

_LOADERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}


def load_file(path: Path, argument: str) -> Dataset:
    """The rows of one file, of the kind its ending says; a plain text file has a line a row, in the column `text`.

    argument: what the file was given as, for the errors.

    Raises:
        UserError: a file that is missing, empty, of an unknown kind, or not readable as its kind; one that changes while it
            is read.
    """
    loader, options = _loader(path, argument)
    # By itself the cache of `datasets` knows a file by its name and time alone.
    digest = sha256(path)
    try:
        rows = load_dataset(loader, digest, data_files=_literal(path), split="train", **options)
    except Exception as error:
        raise _unreadable(path, argument, loader, error) from error
    if sha256(path) != digest:
        for cached in rows.cache_files:
            shutil.rmtree(Path(cached["filename"]).parent, ignore_errors=True)
        raise UserError(f"{argument}: {str(path)!r} has changed while it was read: give the same command again.")
    return rows


def stream_file(path: Path, argument: str) -> IterableDataset:
    """As `load_file`, but rows are read as they are asked for, and so is damage in the middle of a file found.

    Raises:
        UserError: as `load_file`, for what the first row shows.
    """
    loader, options = _loader(path, argument)
    try:
        stream = load_dataset(loader, data_files=_literal(path), split="train", streaming=True, **options)
        next(iter(stream))
    except Exception as error:
        raise _unreadable(path, argument, loader, error) from error
    return stream


def _loader(path: Path, argument: str) -> tuple[str, dict]:
    """The name of the loader for a file that can be read, and its options."""
    if not path.is_file():
        raise UserError(f"{argument}: {str(path)!r} is not a file.")
    loader = _LOADERS.get(path.suffix.lower())
    if loader is None:
        raise UserError(f"{argument}: {str(path)!r} must end in one of {', '.join(_LOADERS)}.")
    if path.stat().st_size == 0:
        raise UserError(f"{argument}: {str(path)!r} is empty.")
    # A text "NA" or "null" is a text.
    options: dict = {"keep_default_na": False} if loader == "csv" else {}
    if path.suffix.lower() == ".tsv":
        options["sep"] = "\t"
    return loader, options


def _literal(path: Path) -> str:
    """Escaped: a name such as "reviews[1].csv" is no pattern."""
    return glob.escape(str(path))


def _unreadable(path: Path, argument: str, loader: str, error: Exception) -> UserError:
    # What datasets says of a file without rows; a stream of it just ends.
    if "corresponds to no data" in str(error) or isinstance(error, StopIteration):
        return UserError(f"{argument}: {str(path)!r} is empty: it holds no rows.")
    return UserError(f"{argument}: {str(path)!r} could not be read as {loader}: {reason(error)}")
