"""`inhibidistilbert benchmark gpu`: everything that a GPU can show, in one run of less than eight minutes."""

from typing import TYPE_CHECKING, Annotated

import typer

from ..support.errors import UserError
from .output import JsonOption, OutputOption, deliver, new_table, number, print_table, progress_bar, save

if TYPE_CHECKING:
    from ..benchmarks.gpu.findings import GpuResults


def gpu(
    part: Annotated[
        list[str] | None,
        typer.Option(metavar="correctness|kernels|one-bit|models|training", help="Repeatable.", show_default="all"),
    ] = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check and measure everything on the GPU of this machine: 5 to 8 minutes.

    The kernels against float64 and beside softmax attention, a model of DistilBERT-base's size beside softmax DistilBERT in
    every way to run it, with energy, its training step, and the rate of one-bit matrix instructions. What does not work or
    has no time left is in the table, the rest is measured all the same. Exit code 1 where a part failed.
    """
    import torch

    from ..benchmarks import timing
    from ..benchmarks.gpu import goals, run
    from ..support import files, machine

    names = [each.name for each in run.PARTS]
    unknown = [name for name in part or () if name not in names]
    if unknown:
        raise UserError(f"--part must be one of {', '.join(names)}; got {unknown[0]!r}.")
    if not torch.cuda.is_available():
        raise UserError("benchmark gpu needs a GPU that torch can use; without one, benchmark kernels --static counts.")
    files.prepare_output(output)
    chosen = [each for each in run.PARTS if not part or each.name in part]
    device = torch.cuda.get_device_name()
    runtime = {"cuda": torch.version.cuda} if torch.version.hip is None else {"rocm": torch.version.hip}
    header = machine.header(gpu=device, seed=timing.SEED, **runtime)
    file = None if output is None else output / f"{goals.file_stem(device)}.json"
    outcomes: list[run.Outcome] = []
    with progress_bar("Measuring", len(chosen)) as advance:
        for outcome in run.run(chosen):
            outcomes.append(outcome)
            if file is not None:  # after every part: nothing is lost when the run is cut off
                save(goals.results(header, outcomes), file)
            advance()
    results = goals.results(header, outcomes)
    deliver(results, None, "", as_json, print_run)
    if file is not None and not as_json:
        print(f"{device}: every figure is in {file.with_suffix('.csv')} and the files beside it.")
    if any(outcome.failed for outcome in outcomes):
        raise typer.Exit(1)


def print_run(results: "GpuResults") -> None:
    """Tables for people: a part a line, then a goal a line."""
    table = new_table(("part", "state"), ("seconds",))
    table.add_column("what is wrong or missing", max_width=90)
    for row in results.parts:
        table.add_row(row.part, row.state, number(row.seconds, 0), row.note)
    print_table(table)
    table = new_table(("goal",), ("bound", "measured", "met"))
    words = {True: "yes", False: "no", None: ""}
    for goal in results.goals:
        measured = "not measured" if goal.value is None else number(goal.value)
        table.add_row(goal.goal, goal.bound, measured, words[goal.met])
    print_table(table)
