"""The command line: `inhibidistilbert convert | distill | evaluate | predict | benchmark | publish`, one word a job."""

import sys

import typer

from .commands.benchmark import benchmark_app
from .commands.convert import convert
from .commands.distill import distill
from .commands.evaluate import evaluate
from .commands.predict import predict
from .commands.publish import publish
from .support.errors import UserError

app = typer.Typer(
    name="inhibidistilbert",
    help="DistilBERT with inhibitor attention: convert, distill, evaluate, use, measure and publish models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (convert, distill, evaluate, predict, publish):
    app.command()(command)
app.add_typer(benchmark_app)


def main() -> None:
    """Entry point: bad input is one clear line on stderr and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
