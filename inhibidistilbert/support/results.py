"""Files of results: a class for each kind of row and for each kind of file, which writes and reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, Self, get_args, get_origin, get_type_hints

import torch

from .errors import UserError
from .files import read_json, write_csv, write_json

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Quantiles:
    """The 10 %, 50 % and 90 % quantiles."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quantiles":
        ordered = torch.tensor(values, dtype=torch.float64)
        low, median, high = ordered.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist()
        return cls(low, median, high)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


@dataclass(frozen=True)
class Column:
    """How a field of a row is called in the files: `milliseconds: Annotated[float, Column("ms")]`.

    Attributes:
        digits: to which its numbers are rounded there.
        optional: the column is not there where the value is None.
    """

    name: str
    digits: int | None = None
    optional: bool = False

    def names(self, kind: type) -> list[str]:
        return [self.name, f"{self.name}_p10", f"{self.name}_p90"] if kind is Quantiles else [self.name]


@dataclass(frozen=True)
class Row:
    """A row of a table. A field is a column, but `Quantiles` are three, and a field that is a `Row` is all columns of it."""

    def as_dict(self) -> dict[str, Any]:
        """The values by column: for JSON, CSV and those who print."""
        found: dict[str, Any] = {}
        for field, (kind, _, column) in _columns(type(self)).items():
            value = getattr(self, field)
            if isinstance(value, Row):
                found |= value.as_dict()
            elif value is not None or not column.optional:
                values = [value]
                if kind is Quantiles:
                    values = [None] * 3 if value is None else [value.median, value.low, value.high]
                rounded = [x if x is None or column.digits is None else round(x, column.digits) for x in values]
                found |= zip(column.names(kind), rounded, strict=True)
        return found

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Self:
        """The row with these values by column; there may be more. Raises `ValueError` for a column that is not its kind."""
        values: dict[str, Any] = {}
        for field, (kind, nullable, column) in _columns(cls).items():
            if issubclass(kind, Row):
                values[field] = kind.from_dict(row)
                continue
            first, *ends = column.names(kind)
            kind_of_value = float if kind is Quantiles else kind
            value = _value(row, first, kind_of_value, nullable, column.optional)
            if ends and value is not None:
                low, high = (_value(row, name, kind_of_value) for name in ends)
                value = Quantiles(low, value, high)
            values[field] = value
        return cls(**values)


def _columns(cls: type) -> dict[str, tuple[type, bool, Column]]:
    """Of each field of a row the type, whether it may be None, and the column."""
    found = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        column = Column(name)
        if get_origin(hint) is Annotated:
            hint, column = get_args(hint)
        kinds = [kind for kind in get_args(hint) or (hint,) if kind is not NoneType]
        found[name] = kinds[0], NoneType in get_args(hint), column
    return found


def _value(row: Mapping[str, Any], name: str, kind: type, nullable: bool = False, optional: bool = False) -> Any:
    value = row.get(name)
    if value is None and nullable and (optional or name in row):
        return None
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, (int, float) if kind is float else kind):
        got = repr(value) if name in row else "no such column"
        raise ValueError(f"column {name!r} must hold {_WORDS[kind]}, got {got}")
    return value


@dataclass(frozen=True)
class Results:
    """A file of results. Each field that is a list of rows is a table.

    Attributes:
        machine: what `machine.header` tells.
    """

    machine: Mapping[str, str]
    told: ClassVar[tuple[str, ...]] = ("date",)  # what the header must tell beside the processor or the GPU

    @property
    def device(self) -> str:
        return device(self.machine)

    @property
    def date(self) -> str:
        return self.machine["date"]

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        return {name: [row.as_dict() for row in getattr(self, name)] for name in _tables(type(self))}

    def write(self, file: Path) -> None:
        """The JSON file, and beside it the table `results` as CSV."""
        self.write_csv(file.with_suffix(".csv"))
        tables = self.tables()
        write_json(file, self.machine, tables.pop("results"), **tables)

    def write_csv(self, file: Path) -> None:
        write_csv(file, self.machine, self.tables()["results"])

    @classmethod
    def read(cls, file: Path) -> Self:
        """Raises `UserError` for a JSON file that is not one of these: it names the file, the column and the value."""
        content, where = read_json(file, file.name), "machine"
        try:
            header = content.get("machine")
            if not isinstance(header, dict) or not all(isinstance(value, str) for value in header.values()):
                raise ValueError(f"it must be an object of texts, got {header!r}")
            missing = [name for name in cls.told if name not in header]
            missing += [] if header.get("gpu") or header.get("cpu") else ["cpu or gpu"]
            if missing:
                raise ValueError(f"it does not tell {', '.join(missing)}")
            tables: dict[str, list[Row]] = {}
            for name, kind in _tables(cls).items():
                where, rows = name, content.get(name)
                if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                    raise ValueError(f"it must be a list of objects, got {rows!r:.100}")
                tables[name] = []
                for number, row in enumerate(rows, 1):
                    where = f"row {number} of {name}"
                    tables[name].append(kind.from_dict(row))
        except ValueError as error:
            raise UserError(f"{str(file)!r}, {where}: {error}.") from error
        return cls(machine=header, **tables)


def _tables(cls: type) -> dict[str, type[Row]]:
    """The kind of row of each table, by its name."""
    return {name: get_args(hint)[0] for name, hint in get_type_hints(cls).items() if get_origin(hint) is list}


def device(header: Mapping[str, Any]) -> str:
    """What a header says that something was measured on."""
    return str(header.get("gpu") or header["cpu"])
