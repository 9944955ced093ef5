"""The index of results: every committed table is in it, and none of unknown origin is taken."""

import json
from pathlib import Path

import pytest

from inhibidistilbert.benchmarks.index import INDEX, index, read_entry
from inhibidistilbert.benchmarks.pictures import kind_of
from inhibidistilbert.support import machine
from inhibidistilbert.support.errors import UserError
from inhibidistilbert.support.files import write_csv, write_json

ROWS = [{"model": "inhibitor", "ratio": 0.5}]
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def write(folder: Path, header: dict, rows: list[dict] = ROWS, beside: bool = True) -> Path:
    write_csv(folder / "table.csv", {} if beside else header, rows)
    if beside:
        write_json(folder / "table.json", header, rows)
    return folder / "table.csv"


@pytest.mark.parametrize("beside", [True, False], ids=["beside", "comments"])
def test_a_table_with_its_header(tmp_path, beside):
    write(tmp_path, machine.header(seed=3), beside=beside)
    text = index(tmp_path)
    assert text.count("[table.csv](table.csv)") == 1
    assert "| 3 | `" in text
    assert "model, ratio |" in text


def test_seed_and_command_may_be_columns(tmp_path):
    header = machine.header()
    header.pop("command")
    header.pop("seed")
    assert "| a column | a column |" in index(write(tmp_path, header, [ROWS[0] | {"seed": 0, "command": "make"}]).parent)


@pytest.mark.parametrize("name", ["cpu", "date", "python", "torch", "seed", "command"])
@pytest.mark.parametrize("beside", [True, False], ids=["beside", "comments"])
def test_numbers_without_an_origin_are_refused(tmp_path, name, beside):
    header = machine.header(seed=0)
    header.pop(name)
    with pytest.raises(UserError, match=rf"table\.csv' does not tell {name}"):
        read_entry(write(tmp_path, header, beside=beside))


def test_a_row_without_its_command_is_refused(tmp_path):
    header = machine.header(seed=0)
    header.pop("command")
    rows = [{"seed": 0, "command": "make"}, {"seed": 0, "command": None}]
    with pytest.raises(UserError, match="does not tell command"):
        read_entry(write(tmp_path, header, rows))


def test_what_cannot_be_read_is_refused(tmp_path):
    table = write(tmp_path, machine.header(seed=0))
    (tmp_path / "table.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        read_entry(table)
    table.write_text("model,ratio\n")
    (tmp_path / "table.json").write_text(json.dumps({"machine": machine.header()}))
    with pytest.raises(UserError, match="holds no rows"):
        read_entry(table)
    with pytest.raises(UserError, match="holds no CSV files"):
        index(tmp_path / "nowhere")


def test_every_committed_table_is_in_the_index():
    tables = sorted(RESULTS.glob("*.csv"))
    assert tables
    index(RESULTS)
    listed = (RESULTS / INDEX).read_text()
    assert [table.name for table in tables if f"[{table.name}]" not in listed] == []


def test_every_committed_table_is_read_by_the_class_that_writes_it(tmp_path):
    tables = {path.name: path for path in RESULTS.iterdir() if path.suffix in (".csv", ".json")}
    others = {name for name in tables if name.startswith("distillation_study")}  # tests/studies reads those
    for name in sorted(tables.keys() - others):
        if name.endswith(".json"):
            kind_of(tables[name]).file.read(tables[name]).write(tmp_path / name)
    written = {path.name: path for path in tmp_path.iterdir()}
    assert written.keys() == tables.keys() - others
    for name, path in written.items():
        if name.endswith(".csv"):
            assert path.read_bytes() == tables[name].read_bytes()
        else:
            assert json.loads(path.read_text()) == json.loads(tables[name].read_text())
