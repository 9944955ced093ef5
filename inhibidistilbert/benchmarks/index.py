"""The index of the committed results, written by `make results-index`, which draws their pictures again as well.

It takes no number whose origin is not told.
"""

import csv
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from ..support.errors import UserError, reason
from ..support.files import write_text
from ..support.results import device

INDEX = "README.md"
# In the header beside a table; seed and command may be columns of it as well.
_VERSIONS = ("python", "torch")
_RUN = ("seed", "command")


@dataclass(frozen=True)
class Entry:
    """A table of results and what is told of its origin."""

    name: str
    columns: tuple[str, ...]
    header: Mapping[str, Any]

    @property
    def machine(self) -> str:
        return device(self.header)


def read_entry(table: Path) -> Entry:
    """The CSV file `table` with the header in the JSON file beside it, or in comment lines, `# key: value`, above it.

    Raises:
        UserError: a file that cannot be read, has no rows, or does not tell machine, date, versions, seed and command.
    """
    try:
        lines = table.read_text(encoding="utf-8").splitlines()
        comments = list(takewhile(lambda line: line.startswith("# "), lines))
        rows = list(csv.DictReader(lines[len(comments) :]))
        header = dict(line[2:].split(": ", 1) for line in comments)
        beside = table.with_suffix(".json")
        if beside.is_file():
            content = json.loads(beside.read_text(encoding="utf-8"))
            header |= content.get("machine", content)
    except (OSError, ValueError, AttributeError, csv.Error) as error:
        raise UserError(f"{str(table)!r} or the JSON file beside it cannot be read: {reason(error)}.") from error
    if not rows:
        raise UserError(f"{str(table)!r} holds no rows.")
    columns = tuple(rows[0])
    missing = [name for name in ("date", *_VERSIONS) if not header.get(name)]
    missing += [name for name in _RUN if not header.get(name) and not all(row.get(name) for row in rows)]
    if not (header.get("cpu") or header.get("gpu")):
        missing.insert(0, "cpu or gpu")
    if missing:
        raise UserError(
            f"{str(table)!r} does not tell {', '.join(missing)}: neither in {beside.name} nor in lines '# key: value' above "
            "the table. Numbers of unknown origin are not taken."
        )
    return Entry(table.name, columns, header)


def index(folder: Path) -> str:
    """The tables in `folder` as a Markdown table. Raises `UserError` for one that is refused, or where there is none."""
    entries = [read_entry(table) for table in sorted(folder.glob("*.csv"))]
    if not entries:
        raise UserError(f"{str(folder)!r} holds no CSV files.")
    lines = ["# Results", "", "Written by `make results-index`. Everything a header tells is in the files.", ""]
    lines += ["| table | machine | date | torch | seed | command | columns |", "|---|---|---|---|---|---|---|"]
    for entry in entries:
        seed, command = (str(entry.header.get(name) or "a column") for name in _RUN)
        code = command if command == "a column" else f"`{command}`"
        cells = [f"[{entry.name}]({entry.name})", entry.machine, str(entry.header["date"])[:10], str(entry.header["torch"])]
        cells += [seed, code, ", ".join(entry.columns)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def renew(folder: Path) -> None:
    """Write the index of `folder`, and draw its pictures again. Raises `UserError` for a table that is refused."""
    from .pictures import redraw

    write_text(folder / INDEX, index(folder))
    redraw(folder)


if __name__ == "__main__":
    try:
        renew(Path(sys.argv[1]))
    except UserError as error:
        sys.exit(f"error: {error}")
