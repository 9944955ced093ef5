"""Labels many files, one after the other or on a cluster: a file is the unit of work, and a finished one is kept.

Beside the labels, `OUTPUT/NAME.jsonl`, lie `OUTPUT/bad-rows/NAME.jsonl`, the rows without a label and why, and
`OUTPUT/finished/NAME.json`, which ties the labels to the content of the file and of the checkpoint. It is written last: what
has none is labelled again whole, so that no row is lost or there twice.
"""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any, BinaryIO

from .prediction import Prediction, TextClassifier
from .support.digests import content_of
from .support.errors import UserError, reason
from .support.files import check_writable, read_json, replacing, write_text
from .support.text_columns import is_text
from .support.text_rows import READERS, TEXT, BadColumn, Row, Unreadable, read_rows


@dataclass(frozen=True)
class Shard:
    """What became of one file. error: why it has no labels; None where it has. kept: from an earlier run."""

    file: str
    rows: int = 0
    bad: int = 0
    kept: bool = False
    error: str | None = None


@dataclass(frozen=True)
class Settings:
    """What decides about the labels, besides the files and the checkpoint."""

    column: str = TEXT
    stride: int | None = None
    threshold: float | None = None
    all_scores: bool = False


@dataclass
class Labeller:
    """Labels files with one model, which is loaded when the first is not finished.

    line: the JSON line of a prediction.
    """

    model: Path
    output: Path
    settings: Settings
    line: Callable[[Prediction], str]
    device: str = "auto"
    batch_size: int = 32

    @cached_property
    def classifier(self) -> TextClassifier:
        return TextClassifier.from_folder(
            self.model, self.device, self.batch_size, self.settings.stride, self.settings.threshold
        )

    def __call__(self, file: Path) -> Shard:
        target, bad_rows, finished = self.places(file)
        made_of = self._made_of(file)
        if (kept := _kept(finished, target, made_of)) is not None:
            return Shard(str(file), *kept, kept=True)
        classifier = self.classifier
        bad: list[dict[str, str]] = []
        rows = 0
        try:
            with replacing(target) as part, part.open("w", encoding="utf-8", newline="") as stream:
                for prediction in classifier.predict(_texts(file, self.settings.column, bad)):
                    print(self.line(prediction), file=stream)
                    rows += 1
        except (BadColumn, Unreadable) as error:
            return Shard(str(file), error=str(error))
        write_text(bad_rows, "".join(json.dumps(row) + "\n" for row in bad))
        held = {"made_of": made_of, "labels": content_of(str(target), model=False), "rows": rows, "bad": len(bad)}
        write_text(finished, json.dumps(held, indent=1) + "\n")
        return Shard(str(file), rows, len(bad))

    def places(self, file: Path) -> tuple[Path, Path, Path]:
        """Where the labels, the bad rows and the record of a file go."""
        name = f"{file.name}.jsonl"
        return self.output / name, self.output / "bad-rows" / name, self.output / "finished" / f"{file.name}.json"

    def prepare(self) -> None:
        """Make the folders, and remove what a killed worker has left. Raises `UserError`: it cannot be written to."""
        for folder in (self.output, self.output / "bad-rows", self.output / "finished"):
            check_writable(folder, make=True)
            for part in folder.glob(".*.json*"):
                part.unlink()

    def _made_of(self, file: Path) -> dict[str, Any]:
        return {
            "file": content_of(str(file), model=False),
            "model": content_of(str(self.model), model=True),
            "settings": asdict(self.settings),
        }


def _kept(finished: Path, target: Path, made_of: dict[str, Any]) -> tuple[int, int] | None:
    """The rows and bad rows of a finished file; None where there is none of this content."""
    try:
        held = read_json(finished) if finished.is_file() else {}
        whole = held["made_of"] == made_of and held["labels"] == content_of(str(target), model=False)
        return (held["rows"], held["bad"]) if whole else None
    except (UserError, LookupError):
        return None


def _texts(file: Path, column: str, bad: list[dict[str, str]]) -> Iterator[str]:
    """The texts of a file; rows without one go to `bad`."""
    column = TEXT if file.suffix.lower() == ".txt" else column
    for where, row in _lines(file, column, bad) if file.suffix.lower() == ".jsonl" else read_rows(file, [column], [column]):
        value = row.get(column)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if is_text(value):
            yield str(value)
        else:
            bad.append({"file": str(file), "row": where, "why": f"{column!r} must be a text, got {value!r}"[:200]})


def _lines(file: Path, column: str, bad: list[dict[str, str]]) -> Iterator[Row]:
    """The rows of JSON lines, each by itself: a damaged line does not end the file."""
    _, reader = READERS[".jsonl"]
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            one: BinaryIO = io.BytesIO(line)
            try:
                yield from ((f"line {number}", row) for _, row in reader(one, [column], []))
            except Unreadable as error:
                bad.append({"file": str(file), "row": f"line {number}", "why": str(error)[:200]})


def find_files(data: str) -> list[Path]:
    """The files of a folder or of a pattern such as `folder/*.parquet`, in order.

    Raises:
        UserError: there is none, or two have one name.
    """
    found = Path(data).iterdir() if Path(data).is_dir() else map(Path, glob(data, recursive=True))
    files = sorted(file for file in found if file.is_file() and file.suffix.lower() in READERS)
    if not files:
        raise UserError(f"--data {data!r} finds no file that ends in one of {', '.join(READERS)}.")
    names = [file.name for file in files]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--data {data!r} must find files of different names, but finds more than one {twice[0]!r}.")
    return files


def check_files(files: Sequence[Path], column: str) -> None:
    """Look at the first row of each file, before any is labelled. In JSON a column may stand in any row.

    Raises:
        UserError: one without the column, or that cannot be read; or no file holds a row.
    """
    rows = 0
    for file in files:
        wanted = TEXT if file.suffix.lower() == ".txt" else column
        required = [] if file.suffix.lower() in (".json", ".jsonl") else [wanted]
        try:
            rows += next(read_rows(file, [wanted], required), None) is not None
        except BadColumn as error:
            has = ", ".join(error.names)[:300]
            raise UserError(f"--data: {str(file)!r} {error} (--text-column); it has {has}.") from error
        except Exception as error:  # pyarrow raises many kinds
            if file.suffix.lower() == ".jsonl" and isinstance(error, Unreadable):
                rows += 1  # told with the bad rows
                continue
            raise UserError(f"--data: {str(file)!r} cannot be read: {reason(error)}") from error
    if not rows:
        raise UserError(f"--data: no text to label, the files found ({len(files)}) hold no rows.")
