"""Rows of files of results: what a class writes, it reads, and nothing else."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest

from inhibidistilbert.support.errors import UserError
from inhibidistilbert.support.results import Column, Quantiles, Results, Row

MACHINE = {"cpu": "a processor", "date": "2026-01-31"}


@dataclass(frozen=True)
class Place(Row):
    name: str
    number: int


@dataclass(frozen=True)
class Measured(Row):
    place: Place
    times: Annotated[Quantiles | None, Column("ms", digits=2)]
    held: Annotated[bool, Column("passed")]
    share: float | None = None
    joules: Annotated[float | None, Column("energy", optional=True)] = None


@dataclass(frozen=True)
class Table(Results):
    results: list[Measured]


FULL = Measured(Place("here", 3), Quantiles(1.0, 2.0, 4.5), True, 1, 0.25)
BARE = Measured(Place("there", 4), None, False)
ROW = FULL.as_dict()


def test_what_is_written_is_read(tmp_path: Path):
    table = Table(MACHINE, [FULL, BARE])
    table.write(tmp_path / "table.json")
    assert Table.read(tmp_path / "table.json") == table
    assert (table.device, table.date) == ("a processor", "2026-01-31")
    full, bare = json.loads((tmp_path / "table.json").read_text())["results"]
    times = {"ms": 2.0, "ms_p10": 1.0, "ms_p90": 4.5}
    assert full == {"name": "here", "number": 3, **times, "passed": True, "share": 1, "energy": 0.25}
    assert bare == {"name": "there", "number": 4, **dict.fromkeys(times), "passed": False, "share": None}


def test_numbers_are_rounded_in_the_file():
    assert Measured(Place("", 0), Quantiles(0.111, 0.222, 0.335), True).as_dict()["ms_p10"] == 0.11


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("name", 5, "column 'name' must hold text, got 5"),
        ("number", 2.5, "column 'number' must hold a whole number, got 2.5"),
        ("number", True, "column 'number' must hold a whole number, got True"),
        ("ms", "2.0", "column 'ms' must hold a number, got '2.0'"),
        ("ms_p90", None, "column 'ms_p90' must hold a number, got None"),
        ("passed", 1, "column 'passed' must hold true or false, got 1"),
        ("share", [1], r"column 'share' must hold a number, got \[1\]"),
        *((name, ..., f"column '{name}' must hold .*, got no such column") for name in sorted(ROW.keys() - {"energy"})),
    ],
)
def test_a_column_that_is_not_its_kind_is_named(tmp_path: Path, column: str, value: object, message: str):
    row = {name: value if name == column else other for name, other in ROW.items()}
    row = {name: value for name, value in row.items() if value is not ...}
    (tmp_path / "table.json").write_text(json.dumps({"machine": MACHINE, "results": [ROW, row]}))
    with pytest.raises(UserError, match=rf"table\.json', row 2 of results: {message}\.$"):
        Table.read(tmp_path / "table.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "must hold a JSON object, got list"),
        ('{"machine": {"cpu": NaN}}', "NaN is no number"),
        ({"results": []}, "machine: it must be an object of texts, got None"),
        ({"machine": {"cpu": 1}, "results": []}, "machine: it must be an object of texts, got {'cpu': 1}"),
        ({"machine": {"cpu": "x"}, "results": []}, "machine: it does not tell date"),
        ({"machine": {"date": "x"}, "results": []}, "machine: it does not tell cpu or gpu"),
        ({"machine": MACHINE}, "results: it must be a list of objects, got None"),
        ({"machine": MACHINE, "results": [ROW, 3]}, "results: it must be a list of objects, got "),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: object, message: str):
    (tmp_path / "table.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=rf"table\.json'.*{message}"):
        Table.read(tmp_path / "table.json")
