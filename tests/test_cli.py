"""The command line as a whole: what it imports, and how it tells its version and its options."""

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from inhibidistilbert import __version__
from inhibidistilbert.cli import app

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
