"""Reads local files of texts: CSV, TSV, JSON, JSON lines, parquet and plain text."""

import glob
from pathlib import Path

from datasets import Dataset, load_dataset

from .errors import UserError, reason

_LOADERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}


def load_file(path: Path, argument: str) -> Dataset:
    """The rows of one file, of the kind its ending says; a plain text file has a line a row, in the column `text`.

    argument: what the file was given as, for the errors.

    Raises:
        UserError: a file that is missing, empty, of an unknown kind, or not readable as its kind.
    """
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
    try:
        # Escaped: a name such as "reviews[1].csv" is no pattern here.
        return load_dataset(loader, data_files=glob.escape(str(path)), split="train", **options)
    except Exception as error:
        raise UserError(f"{argument}: {str(path)!r} could not be read as {loader}: {reason(error)}") from error
