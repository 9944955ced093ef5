"""`inhibidistilbert predict`: label texts with a sequence classifier."""

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
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
TABLES = [ending for ending in READERS if ending != ".txt"]


@dataclass
class NonBlank:
    """Iterates over texts without the blank ones, which it counts."""

    texts: Iterator[str | None]
    skipped: int = field(default=0, init=False)

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            if text and text.strip():  # a table may have rows without one
                yield text
            else:
                self.skipped += 1


def predict(
    text: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="Texts to label.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="CSV, TSV, JSON, JSON lines, parquet, or plain text, one a line; UTF-8."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Many files, a folder or 'folder/*.parquet': --output is a folder then."),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(metavar="NAME", help="With --data: ray labels on a cluster. Left out: here.")
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of --file that holds the texts.", show_default="text")
    ] = None,
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
    all_scores: Annotated[bool, typer.Option("--all-scores", help="Give the score of every label.")] = False,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the predictions there: .jsonl or .csv; not on the terminal.")
    ] = None,
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

    Of a table, a CSV file say, the column text is read, or that of --text-column.

    A multi-label model gives every label of a probability from --threshold on, or says that there is none. Blank lines are
    skipped. Texts longer than the model's positions are cut, unless --stride is given.

    With --data, each file's labels go into a file of the folder --output. The same command again keeps those that are there.
    """
    if data is not None:
        if text or file or output is None:
            raise UserError("--data needs --output DIR, and neither TEXT nor --file.")
        options = {"stride": stride, "threshold": threshold, "all_scores": all_scores}
        label_files(data, output, model, options | {"column": text_column or "text"}, device, batch_size, engine)
        return
    if engine:
        raise UserError(f"--engine {engine!r} goes with --data.")
    check_output(output, file)
    name, source = open_texts(text, file, text_column)
    texts = NonBlank(source)
    remaining = iter(texts)
    # The first text is read before the model, so that bad input is told at once.
    first = next(remaining, None)
    if first is None:
        raise UserError(f"{name} holds no text (blank lines: {texts.skipped}); give at least one text, one a line.")
    from ..prediction import TextClassifier, default_checkpoint

    classifier = TextClassifier.from_folder(model or default_checkpoint(), device, batch_size, stride, threshold)
    predictions = classifier.predict(chain([first], remaining), progress_bar)
    if output is None:
        printing = to_terminal(classifier, as_json, all_scores)
    else:
        printing = to_file(output, classifier, all_scores)
    long = longest = 0
    with printing as show:
        for prediction in predictions:
            show(prediction)
            longest = max(longest, prediction.tokens)
            long += prediction.tokens > classifier.max_tokens
    if long and stride is None:
        note(
            f"texts cut to the model's {classifier.max_tokens} positions: {long} (the longest has {longest} tokens); "
            "--stride N reads them whole."
        )
    if texts.skipped:
        note(f"blank lines skipped: {texts.skipped}.")


def label_files(
    data: str, output: Path, model: Path | None, settings: dict[str, Any], device: str, batch_size: int, engine: str | None
) -> None:
    """Label every file of `data` into the folder `output`, and tell what was kept and what has no label."""
    from ..labelling import Labeller, Settings, check_files, find_files
    from ..labelling_on_ray import check_ray, label_on_ray
    from ..prediction import default_checkpoint

    if engine == "ray":
        check_ray()
    elif engine is not None:
        raise UserError(f"--engine must be ray, got {engine!r}.")
    files, chosen = find_files(data), Settings(**settings)
    check_files(files, chosen.column)
    line = partial(json_line, all_scores=chosen.all_scores)
    # A worker has another working directory.
    checkpoint, folder = (model or default_checkpoint()).absolute(), output.absolute()
    label = Labeller(checkpoint, folder, chosen, line, device, batch_size)
    label.prepare()
    done = label_on_ray(label, files) if engine else map(label, with_bar(files, "Labelling"))
    shards = list(done)
    failed = [shard for shard in shards if shard.error]
    rows, kept = sum(shard.rows for shard in shards), sum(shard.kept for shard in shards)
    note(f"{rows} texts labelled in {len(shards) - len(failed)} files, {kept} of them kept from an earlier run.")
    if bad := sum(shard.bad for shard in shards):
        note(f"rows without a label: {bad}; {str(output / 'bad-rows')!r} says which and why.")
    if failed:
        more = f" ({len(failed)} such files)" if len(failed) > 1 else ""
        raise UserError(f"--data: {failed[0].file!r} has no labels: {failed[0].error}{more}.")


def open_texts(arguments: Sequence[str] | None, file: Path | None, column: str | None) -> tuple[str, Iterator[str | None]]:
    """Where the texts come from, as a user calls it, and the texts."""
    if arguments and file:
        raise UserError("give either TEXT arguments or --file, not both.")
    table = file is not None and file.suffix.lower() in TABLES
    if column and not table:
        raise UserError(f"--text-column {column!r} goes with --file of a table: {', '.join(TABLES)}.")
    if arguments:
        return "TEXT", check_arguments(arguments)
    if file and table:
        return f"--file {str(file)!r}", read_table(file, column or "text")
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


def read_table(file: Path, column: str) -> Iterator[str | None]:
    """The texts of a column."""
    from datasets import Value

    from ..support.text_files import Declared, stream_file

    rows = stream_file(file, "--file", {column: Declared(Value("string"), "texts", "--text-column")})
    return (row[column] for row in rows)


def read_lines(stream: BinaryIO, name: str) -> Iterator[str]:
    """The lines of `stream` without their ends; one that is not UTF-8 is refused, by the name of the stream."""
    try:
        yield from text_rows.read_lines(stream)
    except NotUtf8 as error:
        raise UserError(f"{name} must be UTF-8, but {error}.") from error


def progress_bar(batches: Sequence[list[int]]) -> Iterable[list[int]]:
    """`batches`, with a bar on stderr when someone is looking and there is much to do."""
    return with_bar(batches, "Predicting", shown=len(batches) >= BATCHES_WORTH_A_BAR)


def check_output(output: Path | None, file: Path | None) -> None:
    """Raises `UserError` where predictions cannot be written there."""
    if output is None:
        return
    if output.suffix.lower() not in (".jsonl", ".csv"):
        raise UserError(f"--output must end in .jsonl or .csv, got {str(output)!r}.")
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise UserError(f"--output must be a file in a folder that exists, got {str(output)!r}.")
    if file is not None and output.exists() and file.exists() and output.samefile(file):
        raise UserError(f"--output {str(output)!r} is --file, whose texts would be lost; give another name.")


Show = Callable[["Prediction"], None]


@contextmanager
def to_terminal(classifier: "TextClassifier", as_json: bool, all_scores: bool) -> Iterator[Show]:
    """Prints a line a prediction on stdout."""
    label_width, line_width = max(map(cell_len, classifier.labels)), terminal_width()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    # Where stdout cannot show all of Unicode, escapes can.
    escaped = "utf" not in (sys.stdout.encoding or "utf-8").lower()

    def show(prediction: "Prediction") -> None:
        line = human_line(prediction, label_width, line_width, all_scores)
        # Flushed, so that a reader that has gone away is noticed here and not at exit.
        print(json_line(prediction, all_scores, escaped) if as_json else line, flush=True)

    yield show


@contextmanager
def to_file(file: Path, classifier: "TextClassifier", all_scores: bool) -> Iterator[Show]:
    """Writes a file of predictions, which is there when it is whole; a column for each label's score in CSV."""
    from ..support.files import replacing
    from ..support.label_lists import SEPARATOR

    try:
        with replacing(file) as part, part.open("w", encoding="utf-8", newline="") as stream:
            if file.suffix.lower() == ".jsonl":
                yield lambda prediction: print(json_line(prediction, all_scores), file=stream)
                return
            writer = csv.writer(stream)
            scores = classifier.labels if all_scores or classifier.multi_label else []
            labels = ["labels"] if classifier.multi_label else []
            writer.writerow(["text", "label", "score", *labels, *(f"score_{name}" for name in scores)])

            def show(prediction: "Prediction") -> None:
                given = [] if prediction.labels is None else [SEPARATOR.join(prediction.labels)]
                values = list((prediction.scores or {}).values()) if scores else []
                writer.writerow([prediction.text, prediction.label, prediction.score, *given, *values])

            yield show
    except OSError as error:
        raise UserError(f"--output {str(file)!r} cannot be written ({error.strerror}).") from error


def json_line(prediction: "Prediction", all_scores: bool = False, escaped: bool = False) -> str:
    """`{"text": …, "label": …, "score": …}`, where what does not print is escaped, so that nothing can break the line.

    A multi-label model's has `"labels": [name, …]`, those from the threshold on, and `"scores": {name: …}` of all as well;
    `label` and `score` are those of the likeliest, wherever the threshold is. `all_scores` gives others their scores too.

    escaped: in ASCII.
    """
    fields: dict[str, Any] = {"text": prediction.text, "label": prediction.label, "score": prediction.score}
    if prediction.labels is not None:
        fields["labels"] = prediction.labels
    if prediction.labels is not None or all_scores:
        fields["scores"] = prediction.scores
    line = json.dumps(fields, ensure_ascii=escaped)
    return line if line.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)


def human_line(prediction: "Prediction", label_width: int, line_width: int | None, all_scores: bool = False) -> str:
    """Label, score and text in columns; a text on one line, without control characters, cut to the terminal's width.

    A multi-label model's line has all labels that it gives, with their scores; where it gives none, it says so and has the
    likeliest. `all_scores` gives every label's score, the likeliest first.
    """
    text = "".join(c for c in " ".join(prediction.text.split()) if c.isprintable())
    scores = prediction.scores or {}
    if all_scores:
        shown = sorted(scores, key=lambda name: -scores[name])
        line = f"{', '.join(f'{name} {scores[name]:.4f}' for name in shown)}  {text}"
    elif prediction.labels is None:
        line = f"{set_cell_size(prediction.label, label_width)}  {prediction.score:7.4f}  {text}"
    elif prediction.labels:
        line = f"{', '.join(f'{name} {scores[name]:.4f}' for name in prediction.labels)}  {text}"
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
