"""The command line as a whole: what it imports, and how it tells its version and its options."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from inhibidistilbert import __version__
from inhibidistilbert.cli import app
from inhibidistilbert.commands import ending
from inhibidistilbert.prediction import default_checkpoint

ROOT = typer.main.get_command(app)
COMMANDS = [[name] for name in ROOT.commands] + [["benchmark", name] for name in ROOT.commands["benchmark"].commands]


def run(*arguments):
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "60"})


def test_importing_the_package_help_and_usage_errors_import_nothing_heavy():
    program = """
import sys
import inhibidistilbert
from typer.testing import CliRunner
from inhibidistilbert.cli import app

for arguments in ["--version", "--help", "gone", "predict --gone", "evaluate", "publish a"]:
    CliRunner().invoke(app, arguments.split())
for command in sys.argv[1:]:
    assert CliRunner().invoke(app, [*command.split(), "--help"]).exit_code == 0
print({"torch", "transformers", "datasets", "evaluate", "matplotlib", "scipy"} & set(sys.modules))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program, *map(" ".join, COMMANDS)], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "set()\n"


def test_the_version():
    assert run("--version").output == f"inhibidistilbert {__version__}\n"


def test_no_bars_where_nobody_watches():
    program = """
import sys
from inhibidistilbert import cli

try:
    cli.main()
except SystemExit:
    from tqdm import tqdm
    assert list(tqdm(range(3))) == [0, 1, 2]
"""
    ended = subprocess.run([sys.executable, "-c", program, "--version"], capture_output=True, text=True, check=True)
    assert ended.stderr == ""


@pytest.mark.parametrize("words", [[], ["benchmark"]], ids=["all", "benchmark"])
def test_no_command_is_told_by_half_a_sentence(words):
    assert "..." not in run(*words, "--help").output.partition("Commands:")[2]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_shows_the_names_of_all_options_whole(words):
    command = ROOT
    for word in words:
        command = command.commands[word]
    output = run(*words, "--help").output
    names = [name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)]
    assert [name for name in names if name.startswith("--") and name not in output.replace("\n", " ").split()] == []


def test_help_shows_brackets():
    assert "[SPLIT=]PATH" in run("evaluate", "--help").output


@pytest.mark.parametrize(
    ("redirection", "why"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor"), ("| true", None)]
)
def test_what_cannot_be_printed_is_told(redirection, why):
    if "full" in redirection and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    ended = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m inhibidistilbert --version {redirection}"], capture_output=True
    )
    told = f"error: standard output cannot be written ({why}).\n" if why else ""
    assert (ended.returncode, ended.stderr.decode(), ended.stdout) == (1 if why else 0, told, b"")


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    program = """
import os, sys
from inhibidistilbert.commands.ending import open_closed_streams
open_closed_streams()
assert os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT) > 2
print("nobody hears it", file=sys.stderr)
"""
    command = f'{sys.executable} -c "$1" "$2" <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", command, "sh", program, str(tmp_path / "file")]).returncode == 0
    assert (tmp_path / "file").read_bytes() == b""


LONG = "a" * 300


@pytest.mark.parametrize(
    ("words", "argument"),
    [
        (["predict", "--model", LONG, "text"], "--model"),
        (["predict", f"--file={LONG}"], "--file"),
        (["predict", "text", "--output", f"/{LONG}.csv"], "--output"),
        (["convert", str(default_checkpoint()), LONG], "argument"),
        (["quantize", str(default_checkpoint()), LONG], "argument"),
        (["evaluate", "x", "--task", "imdb", "--data", LONG], "--data"),
        (["distill", LONG], "argument"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_names_that_are_too_long_are_told_by_their_argument(words, argument, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["inhibidistilbert", *words])
    assert ending.exit_code(app) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(rf"error: {argument}.* '/?a+.*File name too long.*\n", output.err), output.err
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_not_utf_8_is_told_by_its_argument(monkeypatch, capsys, tmp_path):
    (tmp_path / "data.csv").write_text("text,label\nfine,1\n")
    words = ["evaluate", str(default_checkpoint()), "--task", "classification", "--data", str(tmp_path / "data.csv")]
    monkeypatch.setattr(sys, "argv", ["inhibidistilbert", *words, "--text-column", "a\udc80b"])
    assert ending.exit_code(app) == 2
    assert capsys.readouterr().err == "error: --text-column 'a\\udc80b' must be UTF-8.\n"


def test_an_error_that_nobody_foresaw_is_one_line_and_its_details_are_kept(capsys):
    assert ending.exit_code(lambda: 1 / 0) == 1
    told = re.fullmatch(
        r"error: ZeroDivisionError: division by zero\. This is a fault of inhibidistilbert; its details are in (.*)\.\n",
        capsys.readouterr().err,
    )
    details = Path(told[1])
    assert details.read_text().endswith("ZeroDivisionError: division by zero\n")
    details.unlink()


def test_an_error_of_the_system_in_a_file_that_nobody_named_is_no_bad_input(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["inhibidistilbert", "predict", "text"])
    assert ending.exit_code((tmp_path / "gone").read_text) == 1
    Path(capsys.readouterr().err.split()[-1].removesuffix(".")).unlink()
