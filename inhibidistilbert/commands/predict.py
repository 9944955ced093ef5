"""`inhibidistilbert predict`: label texts with a sequence classifier."""

import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer
from rich.cells import cell_len, set_cell_size

from ..support import text_rows
from ..support.errors import UserError
from ..support.text_rows import READERS, NotUtf8
from .output import DeviceOption, with_bar

if TYPE_CHECKING:
    from ..prediction import Prediction, TextClassifier

# With fewer batches than this the work is done before a bar could be read.
BATCHES_WORTH_A_BAR = 16


@dataclass
class NonBlank:
    """Iterates over texts without the blank ones, which it counts."""

    texts: Iterator[str]
    skipped: int = field(default=0, init=False)

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            if text.strip():
                yield text
            else:
                self.skipped += 1


def predict(
    text: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="Texts to label.")] = None,
    file: Annotated[Path | None, typer.Option(metavar="PATH", help="A UTF-8 file, one text a line.")] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="A checkpoint folder; only data in it is read. Left out: the sentiment model shipped."
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="One JSON object a line: text, label, score; labels, scores of multi-label models."),
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(metavar="P", help="Multi-label models: give labels of probability P or more.", show_default="0.5"),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(metavar="N", help="Read long texts whole, in windows that overlap by N tokens; average their scores."),
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Texts, or windows of long ones, a forward pass.")] = 32,
    device: DeviceOption = "auto",
) -> None:
    """Label texts: those given, those of --file, or those on standard input, one a line.

    A multi-label model gives every label of a probability from --threshold on, or says that there is none. Blank lines are
    skipped. Texts longer than the model's positions are cut, unless --stride is given.
    """
    name, source = open_texts(text, file)
    texts = NonBlank(source)
    remaining = iter(texts)
    # The first text is read before the model, so that bad input is told at once.
    first = next(remaining, None)
    if first is None:
        raise UserError(f"{name} holds no text (blank lines: {texts.skipped}); give at least one text, one a line.")
    from ..prediction import TextClassifier, default_checkpoint

    classifier = TextClassifier.from_folder(model or default_checkpoint(), device, batch_size, stride, threshold)
    long, longest = print_predictions(classifier.predict(chain([first], remaining), progress_bar), classifier, as_json)
    if long and stride is None:
        note(
            f"texts cut to the model's {classifier.max_tokens} positions: {long} (the longest has {longest} tokens); "
            "--stride N reads them whole."
        )
    if file and file.suffix.lower() in READERS.keys() - {".txt"}:
        note(f"{name} is read as plain text, one text a line: header, quotes and other columns are part of the texts.")
    if texts.skipped:
        note(f"blank lines skipped: {texts.skipped}.")


def open_texts(arguments: Sequence[str] | None, file: Path | None) -> tuple[str, Iterator[str]]:
    """Where the texts come from, as a user calls it, and the texts."""
    if arguments and file:
        raise UserError("give either TEXT arguments or --file, not both.")
    if arguments:
        return "TEXT", check_arguments(arguments)
    if file:
        return f"--file {str(file)!r}", read_file(file)
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError("there is no text: give TEXT arguments, --file PATH, or texts on standard input, one a line.")
    return "standard input", read_lines(sys.stdin.buffer, "standard input")


def check_arguments(arguments: Iterable[str]) -> Iterator[str]:
    """The arguments, refused where the shell passed bytes that are not UTF-8."""
    for number, argument in enumerate(arguments, 1):
        if not argument.isascii() and any("\ud800" <= character <= "\udfff" for character in argument):
            raise UserError(f"TEXT number {number} must be UTF-8, got {argument!r}.")
        yield argument


def read_file(file: Path) -> Iterator[str]:
    """The lines of a UTF-8 text file."""
    try:
        with file.open("rb") as stream:
            yield from read_lines(stream, f"--file {str(file)!r}")
    except OSError as error:
        raise UserError(
            f"--file {str(file)!r} cannot be read ({error.strerror}); it must be a UTF-8 text file, one text a line."
        ) from error


def read_lines(stream: BinaryIO, name: str) -> Iterator[str]:
    """The lines of `stream` without their ends; one that is not UTF-8 is refused, by the name of the stream."""
    try:
        yield from text_rows.read_lines(stream)
    except NotUtf8 as error:
        raise UserError(f"{name} must be UTF-8, but {error}.") from error


def progress_bar(batches: Sequence[list[int]]) -> Iterable[list[int]]:
    """`batches`, with a bar on stderr when someone is looking and there is much to do."""
    return with_bar(batches, "Predicting", shown=len(batches) >= BATCHES_WORTH_A_BAR)


def print_predictions(predictions: Iterable["Prediction"], classifier: "TextClassifier", as_json: bool) -> tuple[int, int]:
    """Print one line a prediction; the number of texts longer than the model's positions and the longest one's tokens."""
    label_width, line_width = max(map(cell_len, classifier.labels)), terminal_width()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    long = longest = 0
    for prediction in predictions:
        line = json_line(prediction) if as_json else human_line(prediction, label_width, line_width)
        # Flushed, so that a reader that has gone away is noticed here and not at exit.
        print(line, flush=True)
        longest = max(longest, prediction.tokens)
        long += prediction.tokens > classifier.max_tokens
    return long, longest


def json_line(prediction: "Prediction") -> str:
    """`{"text": …, "label": …, "score": …}` in ASCII, so that nothing in a text can break the line.

    A multi-label model's has `"labels": [name, …]`, those from the threshold on, and `"scores": {name: …}` of all as well;
    `label` and `score` are those of the likeliest, wherever the threshold is.
    """
    fields: dict[str, Any] = {"text": prediction.text, "label": prediction.label, "score": prediction.score}
    if prediction.scores is not None:
        fields |= {"labels": prediction.labels, "scores": prediction.scores}
    return json.dumps(fields)


def human_line(prediction: "Prediction", label_width: int, line_width: int | None) -> str:
    """Label, score and text in columns; a text on one line, without control characters, cut to the terminal's width.

    A multi-label model's line has all labels that it gives, with their scores; where it gives none, it says so and has the
    likeliest.
    """
    text = "".join(c for c in " ".join(prediction.text.split()) if c.isprintable())
    if prediction.scores is None:
        line = f"{set_cell_size(prediction.label, label_width)}  {prediction.score:7.4f}  {text}"
    elif prediction.labels:
        line = f"{', '.join(f'{name} {prediction.scores[name]:.4f}' for name in prediction.labels)}  {text}"
    else:
        line = f"no label (likeliest: {prediction.label} {prediction.score:.4f})  {text}"
    if line_width and cell_len(line) > line_width:
        return set_cell_size(line, line_width - 1) + "…"
    return line


def terminal_width() -> int | None:
    """Columns of the terminal that stdout is, or None."""
    return os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout.isatty() else None


def note(message: str) -> None:
    """Something the user should know, on stderr."""
    print(f"note: {message}", file=sys.stderr)
