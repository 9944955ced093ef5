"""Columns of texts and labels: by whatever name they stand in a file or a data set, read under standard ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Value, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from .errors import UserError, reason
from .text_files import Declared, load_file


@dataclass(frozen=True)
class Column:
    """A column: `name` in the data, `standard` here, the option that names it, and its type.

    wanted, one: for the errors, what all rows and what each must hold. fits: whether a value may be used.
    required: the data must have it. optional: where no row has a value that fits, the data is without it here.
    """

    name: str
    standard: str
    option: str
    feature: Any
    wanted: str
    one: str
    fits: Callable[[Any], bool]
    required: bool = True
    optional: bool = False


def check_different(columns: Mapping[str, str | None]) -> None:
    """Raises `UserError` where two options name the same column. columns: their names by option, None for none."""
    for name in columns.values():
        same = [other for other, another in columns.items() if name is not None and another == name]
        if len(same) > 1:
            raise UserError(f"{' and '.join(same)} must name different columns, got {name!r}.")


def is_text(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip())


def text_column(name: str, standard: str = "text", option: str = "--text-column") -> Column:
    return Column(name, standard, option, Value("string"), "texts", "a text", is_text)


def read_columns(files: Sequence[str | Path], argument: str, columns: Sequence[Column], drop_empty: bool = False) -> Dataset:
    """The files' rows as one dataset with the standard columns.

    drop_empty: leave rows out whose first column has no value, instead of refusing them.

    Raises:
        UserError: a file that is missing, empty, of an unknown format, or without these columns; rows without a value, or
            with one of another type.
    """
    parts = []
    for path in map(Path, files):
        # A plain text file has lines and no header.
        lines = {"text": "text"} if path.suffix.lower() == ".txt" else {}
        names = {column.standard: lines.get(column.standard, column.name) for column in columns}
        declared = {
            names[column.standard]: Declared(column.feature, column.wanted, column.option, column.required)
            for column in columns
        }
        if len(declared) < len(columns):
            raise UserError(f"{argument}: {' and '.join(column.option for column in columns)} must name different columns.")
        part = load_file(path, argument, declared)
        parts.append(take_columns(part, f"{argument}: {str(path)!r}", columns, names, drop_empty))
    return concatenate_datasets(parts)


def take_columns(
    data: Dataset, where: str, columns: Sequence[Column], names: Mapping[str, str] | None = None, drop_empty: bool = False
) -> Dataset:
    """The columns of any data set under their standard names.

    where: what errors call the data. names: in the data by standard name, where they are not those of the columns.

    Raises:
        UserError: no rows, a column that is missing or of another type, rows without a value.
    """
    if not len(data):
        raise UserError(f"{where} is empty.")
    taken: dict[str, str] = {}
    for column in columns:
        name = (names or {}).get(column.standard, column.name)
        if name not in data.column_names:
            if not column.required:
                continue
            option = f" ({column.option})" if column.option else ""
            raise UserError(f"{where} has no column {name!r}{option}; it has {', '.join(data.column_names)}.")
        try:
            data = data if data.features[name] == column.feature else data.cast_column(name, column.feature)
        except Exception as error:  # of several libraries
            raise UserError(f"{where} must hold {column.wanted} in {name!r}: {reason(error)}") from error
        if drop_empty:
            data = data.filter(column.fits, input_columns=name)
            if not len(data):
                raise UserError(f"{where} holds no text.")
        else:
            fits = [bool(column.fits(value)) for value in data[name][:]]
            if column.optional and not any(fits):
                continue
            if not all(fits):
                raise UserError(f"{where} has rows without {column.one} in {name!r}, the first is row {fits.index(False)}.")
        taken[name] = column.standard
    return data.select_columns(list(taken)).rename_columns({name: new for name, new in taken.items() if name != new})


def tokenize(data: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Adds `input_ids`, cut to `max_length` tokens, and their `length`; drops the text (and `text_pair`)."""
    columns = [name for name in ("text", "text_pair") if name in data.column_names]

    def encode(batch: Mapping[str, list]) -> dict[str, list]:
        options = {"truncation": True, "max_length": max_length, "return_token_type_ids": False}
        ids = tokenizer(*(batch[name] for name in columns), return_attention_mask=False, **options)["input_ids"]
        return {"input_ids": ids, "length": [len(row) for row in ids]}

    return data.map(encode, batched=True, remove_columns=columns, desc="Tokenising")
