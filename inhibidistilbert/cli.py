"""The command line: `inhibidistilbert convert | distill | evaluate | predict | explain | export | quantize | …`."""

import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from . import __version__
from .commands.benchmark import benchmark_app
from .commands.convert import convert
from .commands.distill import distill
from .commands.ending import exit_code, open_closed_streams
from .commands.evaluate import evaluate
from .commands.explain import explain
from .commands.export import export
from .commands.predict import predict
from .commands.publish import publish
from .commands.quantize import quantize

app = typer.Typer(
    name="inhibidistilbert",
    no_args_is_help=True,
    rich_markup_mode=None,  # which would cut long names of options, and take brackets for markup
    pretty_exceptions_enable=False,
)


def print_version(asked: bool) -> None:
    if asked:
        print(f"inhibidistilbert {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """DistilBERT with inhibitor attention: convert, distill, evaluate, use, measure and publish models."""


SUMMARIES: dict[Callable[..., None], str] = {  # a line each; the help of a command says more
    convert: "Make an inhibitor student from a DistilBERT or BERT checkpoint.",
    distill: "Distil an encoder into an inhibitor student.",
    evaluate: "Score checkpoints on labelled texts, and compare them.",
    predict: "Label texts.",
    explain: "Show what a classifier did to a text.",
    export: "Write a checkpoint as ONNX files.",
    quantize: "Write an int8 copy of a checkpoint.",
    publish: "Check a checkpoint, and take it to the Hub.",
}
for command, summary in SUMMARIES.items():
    app.command(short_help=summary)(command)
app.add_typer(benchmark_app)


def main() -> None:
    """Entry point: an error is one clear line on stderr; exit code 2 where the input is bad."""
    open_closed_streams()
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' bars: in a log each step of them would be a line
    sys.exit(exit_code(app))


if __name__ == "__main__":
    main()
