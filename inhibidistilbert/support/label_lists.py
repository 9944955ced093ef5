"""Lists of labels in files: what a text of a multi-label task has in its label column.

A row holds one of three forms, and the whole column holds the same: names of the labels; their numbers from 0; or a 0 or
1 (false or true) for each label, in order. JSON, JSONL and parquet have lists. CSV and TSV have the same in one cell, with
`|` between: `funny|dark`, `0|2`, `1|0|1`; an empty cell is a text without a label.
"""

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from datasets import List, Value

from .errors import UserError
from .text_files import Declared, Misfit, load_file

SEPARATOR = "|"
FORMS = f"lists of labels (names, numbers from 0, or a 0 or 1 for each label; in CSV with {SEPARATOR!r} between)"

Entries = list[str]  # of a row, as they would stand in a CSV file
_FLAGS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


def read_label_lists(path: Path, argument: str, column: str, option: str, optional: bool = False) -> list[Entries] | None:
    """The entries of each row of a file; None where the labels are `optional` and no row has any.

    Raises:
        UserError: as `load_file`, for a column that is missing, and for rows that hold no list.
    """
    lists = Declared(List(Value("string")), FORMS, option, required=not optional, convert=_entries)
    values = load_file(path, argument, {column: lists})[column][:]
    if optional and all(value is None for value in values):
        return None
    if None in values:
        raise UserError(f"{argument}: {str(path)!r} must hold {FORMS} in {column!r}; row {values.index(None)} holds None.")
    return values


def _entries(value: Any) -> Entries | None:
    """Raises `Misfit` for what is no list of labels; None stays."""
    if value is None:
        return None
    if isinstance(value, str):
        return [part.strip() for part in value.split(SEPARATOR)] if value.strip() else []
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, bool | int | float | Decimal | str) for entry in values):
        raise Misfit(value, "a list of labels")
    # A truth value and a fraction stay told apart from the number of a label.
    return [str(entry).lower() if isinstance(entry, bool) else str(entry) for entry in values]


def _number(entry: str) -> int | None:
    return int(entry) if entry.isascii() and entry.isdigit() and len(entry) < 10 else None


def _named(entries: Entries, names: Sequence[str]) -> list[int] | None:
    found = [names.index(entry) for entry in entries if entry in names]
    return found if len(set(found)) == len(entries) else None


def _numbered(entries: Entries, names: Sequence[Any]) -> list[int] | None:
    found = [number for number in map(_number, entries) if number is not None and number < len(names)]
    return found if len(set(found)) == len(entries) else None


def _flagged(entries: Entries, names: Sequence[Any]) -> list[int] | None:
    flags = [_FLAGS.get(entry.lower()) for entry in entries]
    return [place for place, flag in enumerate(flags) if flag] if len(flags) == len(names) and None not in flags else None


def _two_ways(where: str, labels: str) -> UserError:
    return UserError(
        f"{where} can be read in two ways: as names or numbers of labels, or as a 0 or 1 for each of {labels}. Write names, "
        "or true and false in place of 1 and 0."
    )


def multi_hot(rows: Sequence[Entries], names: Sequence[str], where: str) -> list[list[int]]:
    """A 0 or 1 for each label of each row: `(rows, labels)`.

    Raises:
        UserError: a row of another form, or a column that two forms could mean differently.
    """
    readings: list[np.ndarray] = []
    reached = 0
    for form in (_named, _numbered, _flagged):
        table = np.zeros((len(rows), len(names)), dtype=np.int64)
        for row, entries in enumerate(rows):
            places = form(entries, names)
            if places is None:
                reached = max(reached, row)
                break
            table[row, places] = 1
        else:
            readings.append(table)
    if not readings:
        labels = ", ".join(names)
        raise UserError(f"{where} must hold {FORMS}; row {reached} holds {rows[reached]!r}, but the labels are {labels}.")
    if any((reading != readings[0]).any() for reading in readings[1:]):
        raise _two_ways(where, ", ".join(names))
    return readings[0].tolist()


def names_in(rows: Sequence[Entries], where: str) -> list[str]:
    """Names for the labels of a column that nothing else names: those in it, in alphabetical order, or LABEL_0, ….

    Raises:
        UserError: a column without a label, or of a form that two numbers of labels could have.
    """
    entries = {entry for row in rows for entry in row}
    if not entries:
        raise UserError(f"{where} must hold {FORMS}; it holds no label at all.")
    numbers = [number for number in map(_number, entries) if number is not None]
    lengths = {len(row) for row in rows}
    flags = max(lengths) if len(lengths) == 1 and all(entry.lower() in _FLAGS for entry in entries) else 0
    labels = max(numbers) + 1 if len(numbers) == len(entries) else 0
    if any(_numbered(row, range(labels)) is None for row in rows):
        labels = 0
    if flags and labels:
        raise _two_ways(where, f"{flags} labels")
    if flags or labels:
        return [f"LABEL_{place}" for place in range(flags or labels)]
    if numbers:
        raise UserError(f"{where} must hold {FORMS}; it mixes them.")
    return sorted(entries)
