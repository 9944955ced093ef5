"""The rows of a file as they stand there: no value becomes another for what it looks like.

Plain text and TSV: a line is a row, and "\\n" or "\\r\\n" alone end a line. TSV has no quoting, as in GLUE's files.
CSV is quoted as RFC 4180 says. JSON is an array of objects, or one object after the other, as in JSON lines; numbers come as
they are written. All are UTF-8, with or without a byte order mark.
"""

import csv
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

# Where a row stands, for errors, and its values by column. A row of JSON may lack columns.
Row = tuple[str, dict[str, Any]]
TEXT = "text"  # the column of files that name none
_BOM = b"\xef\xbb\xbf"
_LONGEST_FIELD = 2**31 - 1  # bytes; a C long everywhere
BATCH = 1000  # rows that are in memory together


class Unreadable(ValueError):
    """The file is not of its kind. The message names the place."""


class NotUtf8(Unreadable):
    """Bytes that are no text. The message names the first."""


class BadColumn(ValueError):
    """A column that is not there, or is there twice: its name, the problem, and the names of all columns."""

    def __init__(self, column: str, problem: str, names: Collection[str]):
        super().__init__(f"{problem} {column!r}")
        self.column, self.names = column, list(names)


class Literal(str):
    """A number of JSON as it is written there."""


def read_lines(stream: BinaryIO) -> Iterator[str]:
    """The lines of a UTF-8 text without their ends, read one by one.

    Raises:
        NotUtf8: naming the byte and its line, when that line is read.
    """
    for line in _decoded(stream):
        yield line.removesuffix("\n").removesuffix("\r") if line.endswith("\n") else line


def _decoded(stream: BinaryIO) -> Iterator[str]:
    """The lines with their ends."""
    for number, line in enumerate(stream, 1):
        if number == 1:
            line = line.removeprefix(_BOM)
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise NotUtf8(f"byte {error.start + 1} of line {number} is 0x{line[error.start]:02x}") from error


def _text_rows(stream: BinaryIO, wanted: Collection[str], required: Collection[str]) -> Iterator[Row]:
    _check_columns([TEXT], wanted, required)
    for number, line in enumerate(read_lines(stream), 1):
        yield f"line {number}", {TEXT: line}


def _tsv_rows(stream: BinaryIO, wanted: Collection[str], required: Collection[str]) -> Iterator[Row]:
    lines = enumerate(read_lines(stream), 1)
    # A blank line is a text in a file of one column; of several it cannot be a row.
    return _table_rows(((number, line.split("\t")) for number, line in lines), wanted, required, blank=[""])


def _csv_rows(stream: BinaryIO, wanted: Collection[str], required: Collection[str]) -> Iterator[Row]:
    return _table_rows(_csv_records(stream), wanted, required)


def _csv_records(stream: BinaryIO) -> Iterator[tuple[int, list[str]]]:
    """The line that each record begins in, and its fields."""
    # The limit holds for the whole process. It is 128 KiB otherwise, and texts may be longer.
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(_decoded(stream), strict=True)
    while True:
        first = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # What follows the dash is advice for the caller of csv.
            raise Unreadable(f"line {first}: {str(error).partition(' - ')[0]}") from error
        # A blank line has no field; an empty text is written as "".
        if record:
            yield first, record


def _table_rows(
    records: Iterable[tuple[int, list[str]]],
    wanted: Collection[str],
    required: Collection[str],
    blank: list[str] | None = None,
) -> Iterator[Row]:
    """Records below a header. blank: the fields of what is no row where it has not as many as the header."""
    records = iter(records)
    _, header = next(records, (1, []))
    if not header:
        return
    _check_columns(header, wanted, required)
    places = [(name, place) for place, name in enumerate(header) if name in wanted]
    for number, fields in records:
        if len(fields) != len(header):
            if fields == blank:
                continue
            raise Unreadable(f"line {number} has {_count(fields)}, but the header has {_count(header)}")
        yield f"line {number}", {name: fields[place] for name, place in places}


def _count(fields: list[str]) -> str:
    return f"{len(fields)} field{'s' if len(fields) != 1 else ''}"


def _check_columns(names: Collection[str], wanted: Collection[str], required: Collection[str]) -> None:
    for column in wanted:
        count = list(names).count(column)
        if count > 1:
            raise BadColumn(column, "has more than one column", names)
        if not count and column in required:
            raise BadColumn(column, "has no column", names)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Unreadable(f"{twice!r} stands twice in an object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=Literal, parse_float=Literal, parse_constant=float)
_BLANK = " \t\r\n"
_BLANKS = re.compile(f"[{_BLANK}]*")


def _json_rows(stream: BinaryIO, wanted: Collection[str], required: Collection[str]) -> Iterator[Row]:
    where, names = "", dict[str, None]()
    for where, value in _json_values(stream):
        row = {TEXT: value} if type(value) is str else value  # a text, not a number
        if not isinstance(row, dict):
            raise Unreadable(f"{where} must be an object, got {json.dumps(value)[:80]}")
        names |= dict.fromkeys(row)
        yield where, {name: row[name] for name in wanted if name in row}
    if where:
        _check_columns(names, wanted, required)


def _json_values(stream: BinaryIO) -> Iterator[tuple[str, Any]]:
    """The values of one line after the other; an array, or values that span lines, are read whole."""
    lines = enumerate(_decoded(stream), 1)
    number, line = next(((number, line) for number, line in lines if line.strip(_BLANK)), (1, ""))
    if line.lstrip(_BLANK).startswith("[") or _goes_on(line):
        values = list(_values(line + "".join(rest for _, rest in lines), number))
        if len(values) == 1 and isinstance(values[0], list):
            values = values[0]
        yield from ((f"row {row}", value) for row, value in enumerate(values))
    else:
        for place, text in itertools.chain([(number, line)], lines):
            yield from ((f"line {place}", value) for value in _values(text, place))


def _goes_on(line: str) -> bool:
    """Whether a line ends within a value."""
    try:
        _DECODER.decode(line)
    except json.JSONDecodeError as error:
        return error.pos >= len(line.rstrip(_BLANK)) > 0
    except (Unreadable, RecursionError):
        pass
    return False


def _values(text: str, line: int) -> Iterator[Any]:
    """Values one after the other. line: the number of the text's first."""
    place = _BLANKS.match(text).end()  # type: ignore[union-attr]  # It matches nothing too.
    while place < len(text):
        try:
            value, place = _DECODER.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise Unreadable(f"line {line + error.lineno - 1}, character {error.colno}: {error.msg}") from error
        except (Unreadable, RecursionError) as error:
            raise Unreadable(f"line {line + text.count(chr(10), 0, place)}: {error}") from error
        yield value
        place = _BLANKS.match(text, place).end()  # type: ignore[union-attr]


def _parquet_rows(stream: BinaryIO, wanted: Collection[str], required: Collection[str]) -> Iterator[Row]:
    # Only here: where nothing reads parquet, pyarrow need not be installed.
    from pyarrow.parquet import ParquetFile

    with ParquetFile(stream) as file:
        header = file.schema_arrow.names
        _check_columns(header, wanted, required)
        number = 0
        for batch in file.iter_batches(BATCH, columns=[name for name in header if name in wanted]):
            for row in batch.to_pylist():
                yield f"row {number}", row
                number += 1


READERS: dict[str, tuple[str, Callable[[BinaryIO, Collection[str], Collection[str]], Iterator[Row]]]] = {
    ".csv": ("csv", _csv_rows),
    ".tsv": ("tsv", _tsv_rows),
    ".json": ("json", _json_rows),
    ".jsonl": ("json", _json_rows),
    ".parquet": ("parquet", _parquet_rows),
    ".txt": ("text", _text_rows),
}


def read_rows(path: Path, wanted: Collection[str], required: Collection[str]) -> Iterator[Row]:
    """The rows of a file of the kind its ending says, of the columns `wanted` alone.

    Raises:
        BadColumn: a column that is required and not there, or wanted and there twice. In JSON it may stand in any row:
            it is missed when all are read.
        Unreadable: damage, when that row is read.
    """
    _, reader = READERS[path.suffix.lower()]
    with path.open("rb") as stream:
        yield from reader(stream, wanted, required)
