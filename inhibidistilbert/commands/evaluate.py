"""`inhibidistilbert evaluate`: how good checkpoints are, on GLUE, on sentiment data sets or on files of one's own."""

import contextlib
import dataclasses
import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from .output import DeviceOption, new_table, print_table, with_bar

MOST_CLASSES = 12  # that a table shows; --json has all


def evaluate(
    checkpoint: Annotated[
        list[str],
        typer.Argument(help="Checkpoint folders or Hub ids: the first is evaluated, the others are compared with it."),
    ],
    task: Annotated[
        str,
        typer.Option(
            help="cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli, imdb, rotten_tomatoes; classification, regression or "
            "multi-label-classification for files of your own."
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SPLIT=]PATH",
            help="A local CSV, TSV, JSON or parquet file, or a folder of files named by split. Repeatable.",
            show_default="from the Hub",
        ),
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(help="What to evaluate; unlabelled ones are predicted. Repeatable.", show_default="the task's own"),
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of the texts.", show_default="the task's")] = None,
    text_pair_column: Annotated[
        str | None, typer.Option(help="Column of the second texts of pairs.", show_default="the task's")
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the labels.", show_default="label")] = None,
    fine_tune: Annotated[bool, typer.Option("--fine-tune", help="First train on the split train.")] = False,
    seed: Annotated[
        list[int] | None, typer.Option(help="Seed of the fine-tuning. Repeatable: mean and deviation.", show_default="0")
    ] = None,
    epochs: Annotated[float, typer.Option(help="Epochs of the fine-tuning.")] = 4,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of the fine-tuning.")] = 2e-5,
    train_batch_size: Annotated[int, typer.Option(help="Texts in a batch of the fine-tuning.")] = 8,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens that texts are cut at.", show_default="128; imdb and own files all positions")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Texts a forward pass.")] = 32,
    device: DeviceOption = "auto",
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="For results, trained models, predictions.",
            show_default="a folder's own",
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option(help="Run code that comes with the checkpoints, and follow what they name; else data alone.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as one JSON object.")] = False,
) -> None:
    """Evaluate classifiers and regressions, and compare several on the same texts.

    With GLUE's metrics, 95 % bootstrap intervals, and paired permutation tests between checkpoints. --fine-tune trains each
    checkpoint before, by default as the paper's authors did. Writes eval_results.json, which `publish` turns into the card's
    numbers; predictions for GLUE's unlabelled test splits in its submission format.
    """
    from ..evaluation.fine_tuning import Recipe
    from ..evaluation.options import Evaluation
    from ..evaluation.pipeline import evaluate as run
    from ..support.eval_results import EVAL_RESULTS

    options = Evaluation(
        checkpoints=checkpoint,
        task=task,
        data=data or [],
        splits=split or [],
        text_column=text_column,
        text_pair_column=text_pair_column,
        label_column=label_column,
        fine_tune=fine_tune,
        seeds=seed or [0],
        recipe=Recipe(epochs=epochs, learning_rate=learning_rate, batch_size=train_batch_size),
        max_length=max_length,
        batch_size=batch_size,
        device=device,
        output=output,
        trust_remote_code=trust_remote_code,
    )
    # The Trainer prints its progress to stdout, which --json keeps for the one object.
    with contextlib.redirect_stdout(sys.stderr):
        results = run(options, partial(with_bar, description="Evaluating"))
    if as_json:
        print(json.dumps({"results": as_objects(results)}))
    else:
        print_results(results)
        if output is None and not any(Path(name, EVAL_RESULTS).is_file() for name in checkpoint[:1]):
            print("note: the results are not kept: give --output DIR.", file=sys.stderr)


def as_objects(results: list) -> list[dict[str, Any]]:
    """Results as JSON has them."""
    return [_as_json(result) for result in results]


def _as_json(result: Any) -> dict[str, Any]:
    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "checkpoint": result.checkpoint,
        "split": result.split.name,
        "examples": len(result.split.rows),
        "values": {name: [finite(value) for value in values] for name, values in result.values.items()},
        "intervals": result.intervals,
        "classes": result.classes and dataclasses.asdict(result.classes),
        "differences": {
            other: [
                {"metric": each.metric, "difference": finite(each.value), "p_value": finite(each.p_value)}
                for each in differences
            ]
            for other, differences in result.differences.items()
        },
    }


def print_results(results: list) -> None:
    """Tables for people: the values of every checkpoint side by side, then what the differences are worth."""
    from statistics import fmean, stdev

    table = new_table(("split", "metric", "checkpoint"), ("value", "95 % interval", "texts"))
    for result in results:
        for metric, values in result.values.items():
            deviation = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
            interval = result.intervals[metric]
            shown = "" if interval is None else f"{interval[0]:.4f}–{interval[1]:.4f}"
            value = f"{fmean(values):.4f}{deviation}"
            table.add_row(result.split.name, metric, result.checkpoint, value, shown, str(len(result.split.rows)))
    if table.row_count:
        print_table(table)
    for result in results:
        print_classes(result)
    differences = new_table(("split", "metric", "difference to"), ("difference", "p"))
    for result in results:
        for other, found in result.differences.items():
            for each in found:
                differences.add_row(result.split.name, each.metric, other, f"{each.value:+.4f}", f"{each.p_value:.3f}")
    if differences.row_count:
        print_table(differences)


def print_classes(result: Any) -> None:
    """A table for people: each class, and what its texts were taken for."""
    if result.classes is None or len(result.classes.names) > MOST_CLASSES:
        return
    found = result.classes
    print(f"{result.checkpoint}, split {result.split.name}: each class, and how many of its texts were taken for which")
    table = new_table(("class",), ("precision", "recall", "F1", *(f"→ {name}" for name in found.names)))
    for name, *values, counts in zip(found.names, found.precision, found.recall, found.f1, found.confusion, strict=True):
        table.add_row(escape(name), *(f"{value:.4f}" for value in values), *map(str, counts))
    print_table(table)
