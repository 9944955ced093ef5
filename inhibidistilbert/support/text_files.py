"""Reads the declared columns of local files of texts: CSV, TSV, JSON, JSON lines, parquet and plain text."""

import hashlib
import inspect
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, Features, IterableDataset, List, Value
from filelock import FileLock

from . import text_rows
from .digests import sha256
from .errors import UserError, reason
from .files import replacing
from .text_rows import BATCH, READERS, BadColumn, Literal, NotUtf8, Unreadable, read_rows

_INTEGER = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.0+)?")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Declared:
    """What a column holds, whatever its values look like.

    feature: the type. wanted: what its rows hold, for errors. option: names the column, for errors.
    required: the file must have it; otherwise rows have None where it lacks it.
    convert: from a value as it stands in the file to one of the type, where the type does not say how; raises `Misfit`.
    """

    feature: Any
    wanted: str
    option: str = ""
    required: bool = True
    convert: Callable[[Any], Any] | None = None


def load_file(path: Path, argument: str, columns: Mapping[str, Declared]) -> Dataset:
    """The declared columns of one file, of the kind its ending says.

    `text_rows` says what is a row; a plain text file has one column, `text`.

    The rows are kept in the cache of `datasets`, found by the file's content, and mapped into memory from there.

    argument: what the file was given as, for the errors.

    Raises:
        UserError: a file that is missing, empty, of an unknown kind, or not readable as its kind; a column that is missing
            or there twice; a value of another type than its column's.
    """
    _check_file(path, argument)
    try:
        key = _key(path, columns)
        file = Path(datasets.config.HF_DATASETS_CACHE) / "inhibidistilbert" / f"{key}.arrow"
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if not file.is_file():
                _write(file, _features(columns), _rows(path, argument, columns))
                if _key(path, columns) != key:
                    file.unlink()
                    raise UserError(f"{argument}: {str(path)!r} has changed while it was read: give the same command again.")
        return Dataset.from_file(str(file))
    except OSError as error:
        raise UserError(f"{argument}: {str(path)!r} cannot be kept in the cache of datasets: {reason(error)}") from error


def stream_file(path: Path, argument: str, columns: Mapping[str, Declared]) -> IterableDataset:
    """As `load_file`, but rows are read as they are asked for, and so is damage in the middle of a file found.

    Raises:
        UserError: as `load_file`, for what the first row shows.
    """
    _check_file(path, argument)
    given = {"path": path, "argument": argument, "columns": dict(columns)}
    stream = IterableDataset.from_generator(_rows, features=_features(columns), gen_kwargs=given)
    next(iter(stream))
    return stream


def _check_file(path: Path, argument: str) -> None:
    if not path.is_file():
        raise UserError(f"{argument}: {str(path)!r} is not a file.")
    if path.suffix.lower() not in READERS:
        raise UserError(f"{argument}: {str(path)!r} must end in one of {', '.join(READERS)}.")
    if path.stat().st_size == 0:
        raise UserError(f"{argument}: {str(path)!r} is empty.")


def _features(columns: Mapping[str, Declared]) -> Features:
    return Features({name: column.feature for name, column in columns.items()})


def _key(path: Path, columns: Mapping[str, Declared]) -> str:
    """A digest of all that decides about the rows: the file, its kind, the columns, and the code that reads it."""
    kind, _ = READERS[path.suffix.lower()]
    declared = {name: (column.feature, column.required) for name, column in columns.items()}
    digest = hashlib.sha256(repr((kind, declared)).encode())
    converters = [inspect.getfile(column.convert) for column in columns.values() if column.convert]
    for part in (path, *map(Path, (__file__, text_rows.__file__, *converters))):
        digest.update(sha256(part).encode())
    return digest.hexdigest()


def _write(file: Path, features: Features, rows: Iterator[dict[str, Any]]) -> None:
    """Rows as Arrow, a batch in memory at a time; the file is there when it is whole."""
    schema = features.arrow_schema
    with replacing(file) as part, part.open("wb") as stream, pa.ipc.new_stream(stream, schema) as writer:
        while batch := list(itertools.islice(rows, BATCH)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))


def _rows(path: Path, argument: str, columns: Mapping[str, Declared]) -> Iterator[dict[str, Any]]:
    """Rows of values of the columns' types.

    Raises:
        UserError: as `load_file`.
    """
    where, converters = None, {name: column.convert or _converter(column.feature) for name, column in columns.items()}
    required = [name for name, column in columns.items() if column.required]
    try:
        for where, values in read_rows(path, columns, required):
            row = {}
            for name, convert in converters.items():
                try:
                    row[name] = convert(values.get(name))
                except Misfit as misfit:
                    raise UserError(
                        f"{argument}: {str(path)!r} must hold {columns[name].wanted} in {name!r}, but {where} has {misfit}."
                    ) from misfit
            yield row
    except BadColumn as error:
        option = columns[error.column].option and f" ({columns[error.column].option})"
        # A blank may be all that is wrong with a name; without a header they are texts.
        names = [name if name.isprintable() and name and name == name.strip() else repr(name) for name in error.names]
        raise UserError(f"{argument}: {str(path)!r} {error}{option}; it has {', '.join(names)[:300]}.") from error
    except UserError:
        raise
    except Exception as error:  # pyarrow raises many kinds
        raise _unreadable(path, argument, error) from error
    if where is None:
        raise UserError(f"{argument}: {str(path)!r} is empty: it holds no rows.")


def _unreadable(path: Path, argument: str, error: Exception) -> UserError:
    kind, _ = READERS[path.suffix.lower()]
    why = str(error) if isinstance(error, Unreadable) else reason(error)
    if isinstance(error, NotUtf8):
        why += ", which is not utf-8"
    return UserError(f"{argument}: {str(path)!r} could not be read as {kind}: {why.removesuffix('.')}.")


class Misfit(ValueError):
    """A value of another type than its column's. The message shows the value and says what would be right."""

    def __init__(self, value: Any, right: str):
        shown = str(value) if isinstance(value, Literal) else repr(value)
        super().__init__(f"{shown[:80]}, which is not {right}")


def _converter(feature: Any) -> Callable[[Any], Any]:
    """A function from a value as it stands in a file to one of the type, or `Misfit`; None stays."""
    if isinstance(feature, Mapping):
        parts = {name: _converter(part) for name, part in feature.items()}
        return _optional(lambda value: {name: part(value.get(name)) for name, part in parts.items()}, dict, "an object")
    if isinstance(feature, List):
        part = _converter(feature.feature)
        return _optional(lambda value: [part(item) for item in value], list, "a list")
    if feature == Value("string"):
        return _optional(_text)
    if feature in (Value("float32"), Value("float64")):
        return _optional(_number)
    if feature == Value("int64"):
        return _optional(_integer)
    raise TypeError(f"a file's column cannot be declared as {feature}")


def _optional(convert: Callable[[Any], Any], of: type = object, right: str = "") -> Callable[[Any], Any]:
    def converted(value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, of):
            raise Misfit(value, right)
        return convert(value)

    return converted


def _text(value: Any) -> str:
    """Also a number of JSON, as it is written, and an integer of parquet: there is one way to write it."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise Misfit(value, "a text in UTF-8") from None
    if isinstance(value, str):
        # JSON can escape half a surrogate pair.
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Misfit(value, "a text in Unicode") from None
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise Misfit(value, "a text")


def _integer(value: Any) -> int:
    """Never by way of a float: "1.0" is 1, since nothing but zeros follows the point."""
    found = None if isinstance(value, bool) else _literal(_INTEGER, value)
    number = int(found[1]) if found and len(found[1]) <= 20 else 2**63
    if not -(2**63) <= number < 2**63:
        raise Misfit(value, "an integer such as 0 or 12")
    return number


def _number(value: Any) -> float:
    """Finite, or NaN, which stands for none."""
    if not isinstance(value, bool):
        if str(value).strip(" \t").lower() == "nan":
            return math.nan
        if (found := _literal(_NUMBER, value)) and math.isfinite(number := float(found[0])):
            return number
    raise Misfit(value, "a number such as 0.5")


def _literal(pattern: re.Pattern, value: Any) -> re.Match | None:
    return pattern.fullmatch(str(value).strip(" \t")) if isinstance(value, (str, int, float, Decimal)) else None
