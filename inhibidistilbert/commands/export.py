"""`inhibidistilbert export`: a checkpoint as files for other engines."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..support.errors import UserError
from .output import new_table, number, print_table, progress_bar

if TYPE_CHECKING:
    from ..exporting import Exported, Labelled

ENGINES = ("onnx",)


def export(
    checkpoint_dir: Annotated[Path, typer.Argument(help="Folder written by save_pretrained or `distill`.")],
    output_dir: Annotated[Path, typer.Argument(help="Folder to write; an earlier export there is replaced in the end.")],
    to: Annotated[str, typer.Option(metavar="ENGINE", help=f"The engine: {', '.join(ENGINES)}.")] = "onnx",
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Labelled texts, columns text and label, to score each file on.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found of each file as one JSON object.")] = False,
) -> None:
    """Write a checkpoint as ONNX files in float32, float16 and int8, with configuration and tokenizer beside them.

    Each file is compared with the model and timed on one thread. One that differs too much is not kept: by more than a share
    of 1e-05 of the largest output in float32, 0.01 in float16, 0.1 in int8; with --data, by more than 0.2 points of
    accuracy. Needs the extra `onnx`.
    """
    if to not in ENGINES:
        raise UserError(f"--to must be one of {', '.join(ENGINES)}, got {to!r}.")
    if data is not None and not data.is_file():
        raise UserError(f"--data {str(data)!r} is not a file.")
    where = f"CHECKPOINT_DIR {str(checkpoint_dir)!r}"
    if not checkpoint_dir.is_dir():
        raise UserError(f"{where} is not a folder; give one written by save_pretrained.")

    import inhibidistilbert

    from .. import exporting
    from ..support.models import check_vocabulary, load_config, load_model, load_tokenizer
    from ..support.packages import check_packages
    from ..support.quiet import quiet_transformers

    check_packages(exporting.PACKAGES, "--to onnx")
    exporting.check_output(output_dir, "OUTPUT_DIR")
    config = load_config(checkpoint_dir, where)
    head = (getattr(config, "architectures", None) or [""])[0]
    if head not in inhibidistilbert.__all__:
        raise UserError(f"{where} must hold an InhibiDistilBERT model, got {head or 'a model without a name'!r}.")
    model = load_model(getattr(inhibidistilbert, head), checkpoint_dir, where).model
    exporting.head_of(model)
    tokenizer = load_tokenizer(checkpoint_dir, where)
    check_vocabulary(tokenizer, model.config)
    labelled = None if data is None else read_labelled(data, model)
    with progress_bar("Exporting", len(exporting.TOLERANCES)) as step, quiet_transformers():
        results = exporting.export_onnx(model, tokenizer, output_dir, labelled, step)
    if as_json:
        print(json.dumps({"folder": str(output_dir), "files": [asdict(result) for result in results]}))
    else:
        show(results)
        print(f"written to {output_dir}")


def read_labelled(file: Path, model: Any) -> "Labelled":
    """The texts, and the model's number of each one's class. Raises `UserError` where the model has no such classes."""
    from datasets import Value

    from ..exporting import Labelled, has_accuracy
    from ..support.heads import class_names
    from ..support.text_columns import Column, is_text, read_columns, text_column

    if not has_accuracy(model):
        raise UserError(f"--data is for classifiers that give one class, and CHECKPOINT_DIR holds a {type(model).__name__}.")
    label = Column("label", "label", "", Value("string"), "labels", "a label", is_text)
    rows = read_columns([file], "--data", [text_column("text"), label])
    names = class_names(model.config)
    numbers = {str(place): place for place in range(len(names))} | {name: place for place, name in enumerate(names)}
    for place, name in enumerate(rows["label"][:]):
        if name not in numbers:
            raise UserError(f"--data: row {place} has the label {name!r}; those of the model are {', '.join(names)}.")
    return Labelled(list(rows["text"][:]), [numbers[name] for name in rows["label"][:]])


def show(results: "list[Exported]") -> None:
    """A row a file, and why one was not kept."""
    lengths = results[0].milliseconds
    scored = any(result.accuracy is not None for result in results)
    table = new_table(["file"], ["MB", "difference", *(f"ms, {n} tokens" for n in lengths), *(["accuracy"] * scored)])
    for result in results:
        times = [number(result.milliseconds.get(length), 1) for length in lengths]
        accuracy = [number(result.accuracy, 4)] * scored
        table.add_row(result.file, number(result.bytes / 1e6, 1), f"{result.difference:.1e}", *times, *accuracy)
    print_table(table)
    for result in results:
        if not result.kept:
            print(f"{result.file} is not kept: {result.problem}.")
