"""Writes measurements: CSV, JSON and PNG files that appear when they are complete."""

import csv
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UserError

Row = Mapping[str, Any]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, which becomes `path` when the block ends well and goes away when it does not."""
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)  # as `open` would have made it, not for its owner alone
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def prepare_output(folder: Path | None) -> None:
    """Make the folder, before any time is spent on what goes there. Raises `UserError` where it cannot be written to."""
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--output {str(folder)!r} cannot be written to ({error.strerror}); give a folder.") from error


def write_csv(path: Path, header: Row, rows: Sequence[Row]) -> None:
    """`header` as comment lines, `# key: value`, then the table; None is an empty cell."""
    text = io.StringIO()
    for key, value in header.items():
        text.write(f"# {key}: {value}\n")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with replacing(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def write_json(path: Path, header: Row, rows: Sequence[Row], **more: Sequence[Row]) -> None:
    """`{"machine": header, "results": rows}`, one row a line; `more` tables behind them, by name."""
    tables = [f'"machine": {json.dumps(header)}']
    for name, table in {"results": rows, **more}.items():
        lines = ",\n".join(json.dumps(row) for row in table)
        tables.append(f'"{name}": [\n{lines}\n]')
    with replacing(path) as temporary:
        temporary.write_text("{" + ",\n".join(tables) + "}\n", encoding="utf-8")


def write_text(path: Path, text: str) -> None:
    """`text` as UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
