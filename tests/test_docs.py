"""The documents: their length, and that the links, commands, targets and files they name are there."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
import typer
from markdown_it import MarkdownIt
from markdown_it.token import Token

from inhibidistilbert.cli import app
from inhibidistilbert.commands.ending import exit_code
from inhibidistilbert.evaluation import scoring
from inhibidistilbert.publishing.model import ModelPublication

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for name in ("README.md", "CONTRIBUTING.md", "kernels/README.md", "benchmarks/results/README.md", "docs/*.md")
    for path in ROOT.glob(name)
)
COMMANDS = typer.main.get_command(app)

every_document = pytest.mark.parametrize("name", DOCUMENTS)


@cache
def tokens(path: Path) -> list[Token]:
    """Blocks, and the inline parts of each after it."""
    blocks = MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))
    return [token for block in blocks for token in (block, *(block.children or ()))]


def slugs(path: Path) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    found: list[str] = []
    for opening, heading in pairwise(tokens(path)):
        if opening.type == "heading_open":
            words = "".join(part.content for part in heading.children or () if part.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            found.append(f"{slug}-{number}" if (number := found.count(slug)) else slug)
    return set(found)


def broken_links(path: Path) -> Iterator[str]:
    for token in tokens(path):
        link = str(token.attrGet("href") or token.attrGet("src") or "")
        if not link or re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = unquote(link).partition("#")
        target = path.parent / place if place else path
        if not target.exists() or (anchor and anchor not in slugs(target)):
            yield link


def codes(path: Path, in_text: bool = True) -> Iterator[str]:
    """What stands in the text as code, and each line of the code blocks of a shell."""
    for token in tokens(path):
        if token.type == "code_inline" and in_text:
            yield token.content
        elif token.type == "fence" and token.info == "console":
            yield from (line.removeprefix("$ ") for line in token.content.replace("\\\n", " ").splitlines())


def command_lines(path: Path) -> Iterator[list[str]]:
    """The words behind `inhibidistilbert`; in the text the name may be left out, and an option stand alone."""
    for code in codes(path):
        try:
            words = shlex.split(code, comments=True)
        except ValueError:  # no command: an apostrophe, or half a quotation
            continue
        first = Path(words[0]).name if words else ""
        if "inhibidistilbert" in (first, *words[1:]):
            yield words[[first, *words[1:]].index("inhibidistilbert") + 1 :]
        elif first in COMMANDS.commands or first.startswith("--"):
            yield words


def options(command) -> set[str]:
    own = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    return own.union(*(options(each) for each in getattr(command, "commands", {}).values()))


def unknown_words(words: list[str]) -> Iterator[str]:
    """The commands and options of a command line that there are not."""
    command, words = COMMANDS, list(words)
    while words and not words[0].startswith("--") and hasattr(command, "commands"):
        if words[0] not in command.commands:
            yield words[0]
            return
        command = command.commands[words.pop(0)]
    yield from (word for word in words if word.startswith("--") and word.partition("=")[0] not in options(command))


def test_the_readme_is_read_in_five_minutes():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


@every_document
def test_links_and_anchors(name):
    assert list(broken_links(ROOT / name)) == []


@every_document
def test_commands_and_options(name):
    assert [" ".join(line) for line in command_lines(ROOT / name) if list(unknown_words(line))] == []


@every_document
def test_targets_of_make(name):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = [words[1:] for code in codes(ROOT / name) if (words := code.partition("#")[0].split()) and words[0] == "make"]
    assert {word for words in named for word in words if "=" not in word} <= targets


@every_document
def test_source_files(name):
    """Files of code are named from the top, from the package, or from the folder of the document."""
    named = [code for code in codes(ROOT / name) if re.fullmatch(r"[\w./-]+\.(py|ya?ml)", code) and "/" in code]
    bases = (ROOT, ROOT / "inhibidistilbert", (ROOT / name).parent)
    assert [file for file in named if not any((base / file).exists() for base in bases)] == []


def test_what_is_wrong_is_found(tmp_path):
    text = "# A `b`: c, d\n\n# A `b`: c, d\n\n[1](#a-b-c-d) [2](#a-b-c-d-1) [3](#a) [4](gone.md) ![5](gone.png) [6](https://a.b/c)\n"
    text += "\n`inhibidistilbert benchmark gone` `publish --gone` `--seed` `--gone` `evaluate a --task b`\n"
    text += "\n```console\n$ torchrun -m inhibidistilbert distill \\\n    --bf17 # --no\n```\n"
    (tmp_path / "a.md").write_text(text, encoding="utf-8")
    assert list(broken_links(tmp_path / "a.md")) == ["#a", "gone.md", "gone.png"]
    unknown = [word for line in command_lines(tmp_path / "a.md") for word in unknown_words(line)]
    assert unknown == ["gone", "--gone", "--gone", "--bf17"]


def test_the_commands_of_the_first_hour(tmp_path, monkeypatch, capsys):
    """One after the other, as a user copies them; those of this package in this process, which has imported everything.

    With few resamples, and without the clean process of the dry run, which the tests of `publish` start.
    """
    monkeypatch.setattr(scoring, "RESAMPLES", 20)
    monkeypatch.setattr(ModelPublication, "check_loading", lambda self, candidate: iter(()))
    (tmp_path / "inhibidistilbert").mkdir()
    for place in ("examples", "inhibidistilbert/checkpoints"):
        (tmp_path / place).symlink_to(ROOT / place)
    monkeypatch.chdir(tmp_path)
    told = {}
    for line in codes(ROOT / "docs/first-hour.md", in_text=False):
        words = shlex.split(line)
        if words[0] == "inhibidistilbert":
            monkeypatch.setattr(sys, "argv", words)
            assert exit_code(app) == 0, (line, capsys.readouterr())
            told[line] = capsys.readouterr().out
        else:
            subprocess.run(["sh", "-c", line], check=True)
    labels = [words[0] for line, output in told.items() if " predict" in line and (words := output.split())]
    assert labels == ["POSITIVE", "complaint"]
    scores = next(output for line, output in told.items() if "--fine-tune" in line)
    assert float(re.search(r"accuracy +\S+ +(\d\.\d+)", scores)[1]) >= 0.8
    assert (tmp_path / "runs/predictions.csv").read_text().count("\n") == 31
    assert "ready" in list(told.values())[-1].splitlines()[0]
