"""What commands print: tables, numbers, progress; and the options for it."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import Progress, track
from rich.table import Table

from ..support.errors import UserError

if TYPE_CHECKING:
    from ..support.results import Results

JsonOption = Annotated[bool, typer.Option("--json", help="Print the results as one JSON list.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, …; auto takes the accelerator when there is one.")]
OutputOption = Annotated[Path | None, typer.Option("--output", metavar="DIR", help="Write CSV, JSON and PNG files there.")]


@contextmanager
def progress_bar(description: str, total: int) -> Iterator:
    """A function to call after each step, with a bar on stderr when someone is looking."""
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(description, total=total)
        yield lambda: progress.advance(task)


def with_bar(steps: Iterable, description: str, shown: bool = True) -> Iterable:
    """`steps`, with a bar on stderr when someone is looking."""
    hidden = not shown or not sys.stderr.isatty()
    return steps if hidden else track(steps, description, console=Console(stderr=True), transient=True)


def check_positive(name: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{name} must be at least 1; got {value}.")


def check_threads(values: Iterable[int]) -> None:
    """More threads than processors only wait for one another, and too many end the process."""
    for value in values:
        check_positive("--threads", value)
        if value > (most := os.cpu_count() or 1):
            raise UserError(f"--threads must be at most {most} on this machine; got {value}.")


def new_table(words: Iterable[str], numbers: Iterable[str]) -> Table:
    """An empty table: columns of words, then columns of numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in words:
        table.add_column(title, no_wrap=True)
    for title in numbers:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def print_table(table: Table) -> None:
    """As wide as the terminal, or where there is none as wide as it needs to be."""
    console = Console()
    if not sys.stdout.isatty():
        console = Console(width=console.measure(table, options=console.options.update(max_width=500)).maximum)
    console.print(table)


def left_out(refusals: Mapping[str, str]) -> dict[str, str]:
    """Say who could not take part, and why; the same for the header of the results."""
    for peer, why in refusals.items():
        print(f"note: {peer} is left out: {why}", file=sys.stderr)
    return {"left out": "; ".join(f"{peer}: {why}" for peer, why in refusals.items()) or "nothing"}


def save(results: "Results", file: Path) -> None:
    """Write the JSON file with the CSV file beside it, and draw their pictures."""
    results.write(file)
    from ..benchmarks import pictures  # when the tables are safe: it needs matplotlib

    pictures.draw(file)


def processor_table(folder: Path | None, name: str) -> str:
    """The file of a table of this processor, such as `cpu_avx2.json` for the name `cpu`.

    Raises:
        UserError: that of another processor of the same kind is in the folder.
    """
    from ..support import machine
    from ..support.files import read_json

    file, mine = f"{name}_{machine.cpu_kind()}.json", machine.cpu_description()["cpu"]
    if folder is not None and (folder / file).is_file():
        header = read_json(folder / file, file).get("machine")
        there = header.get("cpu") if isinstance(header, dict) else None
        if there != mine:
            raise UserError(
                f"--output {str(folder)!r} holds {file} of another processor, {there!r}, and this is {mine!r}: give "
                "another folder, or rename that table."
            )
    return file


def deliver(results: "Results", folder: Path | None, name: str, as_json: bool, show: Callable[[Any], None]) -> None:
    """Save the results where there is a folder, then print their rows: as JSON, or by `show`."""
    if folder is not None:
        save(results, folder / name)
    if as_json:
        print(json.dumps(results.tables()["results"]))
    else:
        show(results)


def number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"
