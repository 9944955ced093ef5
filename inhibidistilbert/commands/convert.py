"""`inhibidistilbert convert`: an inhibitor student from a checkpoint of transformers."""

import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from ..support.errors import UserError

if TYPE_CHECKING:
    from ..conversion import ConversionReport


def convert(
    source: Annotated[str, typer.Argument(help="DistilBERT, BERT, GPT-2, Llama, ViT or another: a folder or a Hub id.")],
    output_dir: Annotated[Path, typer.Argument(help="Folder to write.")],
    layers: Annotated[
        str | None, typer.Option(help="The source's layers to keep, from 0 and in this order: 0,2,4.", show_default="all")
    ] = None,
    scalars_per_head: Annotated[
        bool | None, typer.Option(help="Scalars of the attention per head, not per layer.", show_default="per head")
    ] = None,
    length_normalization: Annotated[
        str | None,
        typer.Option(
            metavar="none|sqrt|mean|passed",
            help="Divide the sum over the n visible keys by 1, √n, n or how much passes. By n it was seen to carry over "
            "to texts of another length, by √n or 1 not.",
            show_default="mean",
        ),
    ] = None,
    inhibition: Annotated[
        str | None,
        typer.Option(metavar="threshold|gate", help="A gate keeps small values whole.", show_default="threshold"),
    ] = None,
    center: Annotated[
        str | None,
        typer.Option(metavar="mean|least", help="Subtract the mean score or that of the nearest key.", show_default="mean"),
    ] = None,
    radii: Annotated[
        int | None,
        typer.Option(help="Thresholds or gates, each with scalars of its own, that share the scores.", show_default="1"),
    ] = None,
    alpha_init: Annotated[
        str | None,
        typer.Option(
            metavar="FLOAT[,FLOAT…]",
            help="Initial shift of the scores; also one for each radius.",
            show_default="fits the form: 0.5 for a threshold and the mean",
        ),
    ] = None,
    beta_init: Annotated[
        str | None,
        typer.Option(
            metavar="FLOAT[,FLOAT…]",
            help="Initial scale of the output; also one for each radius.",
            show_default="fits the normalisation: 1.5 for mean",
        ),
    ] = None,
    gamma_init: Annotated[
        str | None,
        typer.Option(
            metavar="FLOAT[,FLOAT…]", help="Initial scale of the scores; also one for each radius.", show_default="1.0"
        ),
    ] = None,
    delta_init: Annotated[
        float | None, typer.Option(help="Initial slope of what passed divides by.", show_default="1.0")
    ] = None,
    head: Annotated[bool, typer.Option(help="Keep the source's head where the student has the same one.")] = True,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="float32|float16|bfloat16", help="Type of the written weights.", show_default="the source's"),
    ] = None,
    keep_class: Annotated[
        bool, typer.Option("--keep-class", help="Keep the source's own class, as all but DistilBERT and BERT do anyway.")
    ] = False,
    inhibited_layers: Annotated[
        str | None,
        typer.Option(help="Where the class is kept, the layers that inhibit; others keep softmax: 0,2.", show_default="all"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint in OUTPUT_DIR.")] = False,
) -> None:
    """Make an inhibitor student from a DistilBERT or BERT checkpoint, to be trained by `distill`, or from another model.

    Embeddings, projections, feed-forward layers and matching heads are copied; the scalars of the
    attention are new. Runs no code from the source.

    GPT-2, Llama, ViT and other models of transformers keep their class: the student loads with
    trust_remote_code=True, generates, and trains with transformers' Trainer.

    A checkpoint in the format of the inhibitor's authors keeps its own alpha, beta and gamma, one a
    layer, and its sums, which are not divided.
    """
    parsed: dict[str, Any] = {
        "layers": None if layers is None else parse_layers(layers, "--layers"),
        "inhibited_layers": None if inhibited_layers is None else parse_layers(inhibited_layers, "--inhibited-layers"),
        "alpha_init": parse_numbers(alpha_init, "--alpha-init"),
        "beta_init": parse_numbers(beta_init, "--beta-init"),
        "gamma_init": parse_numbers(gamma_init, "--gamma-init"),
    }
    import torch

    from ..conversion import StudentOptions, convert_checkpoint

    options = StudentOptions(
        head=head,
        dtype=dtype,
        scalars_per_head=scalars_per_head,
        length_normalization=length_normalization,
        inhibition=inhibition,
        center=center,
        radii=radii,
        delta_init=delta_init,
        keep_class=keep_class,
        **parsed,
    )
    torch.manual_seed(0)  # so that a head that is new is the same one every time
    report = convert_checkpoint(source, output_dir, options, overwrite=overwrite)
    if as_json:
        print(json.dumps({"output": str(output_dir)} | dataclasses.asdict(report)))
    else:
        print_report(report, output_dir)


def parse_layers(text: str, option: str) -> list[int]:
    """`"0,2,4"` -> `[0, 2, 4]`. Raises `UserError` for anything that is not a list of integers."""
    try:
        return [int(layer) for layer in text.split(",")]
    except ValueError:
        raise UserError(f"{option} must be integers separated by commas, such as 0,2,4; got {text!r}.") from None


def parse_numbers(text: str | None, option: str) -> float | list[float] | None:
    """`"0.5"` -> 0.5, `"-0.5,0.1"` -> `[-0.5, 0.1]`. Raises `UserError` for anything that is not a list of numbers."""
    if text is None:
        return None
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        raise UserError(
            f"{option} must be a number, or several with commas between, such as -0.5,0.1; got {text!r}."
        ) from None
    return numbers if len(numbers) > 1 else numbers[0]


def print_report(report: "ConversionReport", output_dir: Path) -> None:
    """The report for people: what was copied, what is new, what was left out."""
    console = Console()
    chosen = ", ".join(map(str, report.layers))
    console.print(
        f"{report.source_class} → {report.student_class}, layers {chosen} of {report.source_layers}",
        highlight=False,
        soft_wrap=True,
    )
    for title, names, parameters in (
        ("copied", report.copied, f", {report.parameters_copied:,} parameters"),
        ("new", report.new, f", {report.parameters_new:,} parameters"),
        ("left out", report.left_out, ""),
    ):
        console.print(f"[bold]{title}[/bold]: {len(names)} tensors{parameters}", highlight=False)
        for name in grouped(names):
            console.print(f"  {escape(name)}", highlight=False, soft_wrap=True)
    for warning in report.warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}", highlight=False)
    console.print(f"written to {escape(str(output_dir))}", highlight=False, soft_wrap=True)


def grouped(names: Iterable[str]) -> list[str]:
    """Modules in place of their parameters; those that differ in the layer's number only are one: `layer.{0,2}.x`."""
    layers: dict[str, list[str]] = {}
    for name in names:
        module = re.sub(r"\.(weight|bias)$", "", name)
        number = re.search(r"(?<=\.)\d+(?=\.)", module)
        pattern = layers.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "{}", module, count=1), [])
        if number and number[0] not in pattern:
            pattern.append(number[0])
    return [name.replace("{}", "{" + ",".join(numbers) + "}") for name, numbers in layers.items()]
