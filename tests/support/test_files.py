"""Files of results: whole or not at all, with a header that says where they come from."""

import csv
import errno
import json
import os
import shlex
from pathlib import Path

import pytest
from safetensors import SafetensorError

from inhibidistilbert.support import machine
from inhibidistilbert.support.errors import UserError
from inhibidistilbert.support.files import (
    is_regular,
    prepare_output,
    read_json,
    replacing,
    replacing_folder,
    telling_of_disk,
    write_csv,
    write_json,
)

HEADER = {"cpu": "a processor", "torch": "2.13"}
ROWS = [{"rival": "softmax, fp32", "ms": 1.5, "ratio": None}, {"rival": "inhibitor", "ms": 2.0, "ratio": 1.25}]


def test_csv_reads_back_behind_its_header(tmp_path: Path):
    write_csv(tmp_path / "times.csv", HEADER, ROWS)
    lines = (tmp_path / "times.csv").read_text().splitlines()
    assert lines[:2] == ["# cpu: a processor", "# torch: 2.13"]
    assert list(csv.DictReader(lines[2:])) == [
        {"rival": "softmax, fp32", "ms": "1.5", "ratio": ""},
        {"rival": "inhibitor", "ms": "2.0", "ratio": "1.25"},
    ]


def test_json_has_a_row_a_line(tmp_path: Path):
    write_json(tmp_path / "times.json", HEADER, ROWS)
    text = (tmp_path / "times.json").read_text()
    assert json.loads(text) == {"machine": HEADER, "results": ROWS}
    assert sum("rival" in line for line in text.splitlines()) == len(ROWS)


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "times.csv"
    path.write_text("old")

    with pytest.raises(FileNotFoundError), replacing(path) as temporary:
        temporary.with_name("missing").read_text()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_complete_with_its_parents(tmp_path: Path):
    path = tmp_path / "runs" / "one"
    with replacing_folder(path) as new:
        (new / "file").write_text("new")
        assert not path.parent.exists()
    assert (path / "file").read_text() == "new"
    (tmp_path / "plain").mkdir()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert {entry.name for entry in tmp_path.iterdir()} == {"runs", "plain"}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path: Path, error: type[BaseException]):
    path = tmp_path / "one"
    path.mkdir()
    (path / "old").touch()

    def interrupted():
        with replacing_folder(path) as new:
            (new / "half").touch()
            raise error

    with pytest.raises(error):
        interrupted()
    assert [entry.relative_to(tmp_path).as_posix() for entry in tmp_path.rglob("*")] == ["one", "one/old"]


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "kept").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    with replacing_folder(tmp_path / "link") as new:
        (new / "file").touch()
    assert not (tmp_path / "link").is_symlink()
    assert [entry.name for entry in (tmp_path / "link").iterdir()] == ["file"]
    assert (tmp_path / "real" / "kept").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "must hold a JSON object, got list"),
        ('{"a": NaN}', "cannot be read"),
        ('{"a": ' + "[" * 200 + "]" * 200 + "}", "cannot be read as JSON: it is nested deeper than 100 levels"),
        ("[" * 100_000, "cannot be read as JSON: maximum recursion depth"),
    ],
)
def test_json_of_another_form(tmp_path: Path, text: str, message: str):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=f"a.json' {message}"):
        read_json(tmp_path / "a.json")


def test_json_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    os.mkfifo(tmp_path / "a.json")  # without a writer: to open it would wait for ever
    with pytest.raises(UserError, match=r"a\.json' must be a regular file, but is a named pipe"):
        read_json(tmp_path / "a.json")
    monkeypatch.setattr("inhibidistilbert.support.files._LARGEST_JSON", 10)
    (tmp_path / "b.json").write_text('{"a": 12345}')
    with pytest.raises(UserError, match="it may have 10 bytes, and has 12"):
        read_json(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (os.mkfifo, "a' must be a regular file, but is a named pipe"),
        (Path.mkdir, "a' must be a regular file, but is a folder"),
        (lambda file: file.symlink_to("/dev/zero"), "a' must be a regular file, but is a device"),
        (lambda file: file.symlink_to("gone"), "a' is a link that leads nowhere"),
        (lambda file: file.symlink_to("a"), "a' is a link that leads nowhere"),
    ],
)
def test_what_is_no_regular_file(tmp_path: Path, make, told):
    assert not is_regular(tmp_path / "a")
    make(tmp_path / "a")
    with pytest.raises(UserError, match=told):
        is_regular(tmp_path / "a")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    assert is_regular(tmp_path / "link")


def test_an_error_is_one_line_that_can_be_read():
    told = str(UserError(f"--name must be\na word,  got '\x1b[31m{'x' * 100_000}'."))
    assert len(told) < 2_000
    assert told.startswith("--name must be a word,  got '\\x1b[31mxxx")
    assert told.endswith("xxx'.")
    assert "characters) …" in told


def test_json_of_others_may_hold_infinity(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"a": Infinity}')
    assert read_json(tmp_path / "a.json", finite=False) == {"a": float("inf")}


def test_folder_that_cannot_be(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--output .*file.* cannot be written to"):
        prepare_output(tmp_path / "file")


def wrapped(error: Exception) -> Exception:
    outer = RuntimeError("could not be generated")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        wrapped(OSError(errno.EDQUOT, "Disk quota exceeded")),
        SafetensorError("Error while serializing: I/O error: File too large (os error 27)"),
        Exception("No such file or directory (os error 2)"),  # a tokenizer's
        FileNotFoundError(errno.ENOENT, "No such file or directory", "folder/gone"),
    ],
)
def test_an_error_of_the_disk_is_told_with_its_cause(error: Exception):
    with (
        pytest.raises(
            UserError, match=r"--output: 'folder' cannot be written: .*(space|quota|large|such file).*: free"
        ) as told,
        telling_of_disk("--output", Path("folder")),
    ):
        raise error
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "No such file", "elsewhere"), ValueError("os error 28")])
def test_another_error_is_none_of_the_disk(error: Exception):
    with pytest.raises(type(error)), telling_of_disk("--output", Path("folder")):
        raise error


def test_header_names_machine_and_versions(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/inhibidistilbert", "benchmark", "cpu", "--output", "a folder"])
    header = machine.header(seed=3)
    assert header["command"] == "inhibidistilbert benchmark cpu --output 'a folder'"
    assert header["seed"] == "3"
    assert {"date", "system", "cpu", "cpus", "python", "torch", "transformers"} <= header.keys()


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ("avx2 fma", "avx2"),
        ("avx2 fma avx_vnni", "avx2_vnni"),
        ("avx2 fma avx512f", "avx512"),
        ("avx2 fma avx512f avx512_vnni avx512_bf16", "avx512_vnni"),
        ("avx2 fma avx_vnni avx512f avx512_vnni amx_int8 amx_bf16", "amx"),
        ("asimd", "neon"),
        ("asimd asimddp", "neon_dotprod"),
        ("asimd asimddp bf16 i8mm sve", "neon_i8mm"),
        ("", "other"),
    ],
)
def test_kinds_of_processors(flags: str, kind: str):
    assert machine.cpu_kind(flags) == kind
    assert kind in machine.KINDS


@pytest.mark.parametrize(("name", "kind"), [("arm64", "neon"), ("x86_64", "other")])
def test_a_system_that_lists_no_instruction_sets(monkeypatch: pytest.MonkeyPatch, name: str, kind: str):
    monkeypatch.setattr(machine, "cpu_description", lambda: {"cpu": "a processor", "cpu flags": "", "cpus": "1"})
    monkeypatch.setattr("platform.machine", lambda: name)
    assert machine.cpu_kind() == kind


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("/home/someone/student/", "student/"),
        ("train=/data/a/train.csv", "train=train.csv"),
        ("--output=~/runs/a", "--output=a"),
        (r"C:\Users\someone\a.csv", "a.csv"),
        ("runs/student", "runs/student"),
        ("org/name", "org/name"),
    ],
)
def test_header_tells_no_place(monkeypatch: pytest.MonkeyPatch, argument: str, told: str):
    monkeypatch.setattr("sys.argv", ["inhibidistilbert", argument])
    assert shlex.split(machine.header()["command"]) == ["inhibidistilbert", told]
