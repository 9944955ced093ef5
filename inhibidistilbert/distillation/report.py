"""What people see of finished distillations: losses, the alignment of each layer, scores side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..support.distillation_log import FILE, DistillationLog
from ..support.errors import UserError
from .work_folder import finished_log


def read_runs(folders: Sequence[Path]) -> dict[str, DistillationLog]:
    """The logs of finished distillations by the names of their folders. Raises a UserError where there is none."""
    logs: dict[str, DistillationLog] = {}
    for folder in folders:
        log = finished_log(folder)
        if log is None:
            raise UserError(f"--compare: {str(folder)!r} is no finished distillation: it has no {FILE} with a recipe.")
        logs[folder.name] = log
    return logs


def print_report(runs: Mapping[str, DistillationLog]) -> None:
    """The first run's stages and alignment, and the scores of all beside those of the first one's teacher."""
    console = Console(width=None if Console().is_terminal else 160, highlight=False)
    first = next(iter(runs.values()))
    for name, result in first.stages.items():
        scores = ", ".join(f"{metric} {value:.4f}" for metric, value in (result.eval or {}).items())
        console.print(
            f"{name}: {result.steps} steps in {result.seconds} s, loss {result.loss:.4f}"
            + (f"; evaluation: {scores}" if scores else "")
        )
        if result.alignment:
            console.print(alignment_table(result.alignment))
    table = score_table(runs)
    if table.row_count:
        console.print(table)


def alignment_table(explained: Sequence[float]) -> Table:
    """Share of the variance of the teacher's layers that the student's explain."""
    table = Table(title="Alignment", title_justify="left")
    table.add_column("layer", justify="right")
    table.add_column("variance explained", justify="right")
    for layer, value in enumerate(explained):
        table.add_row(str(layer), f"{100 * value:.1f} %")
    return table


def score_table(runs: Mapping[str, DistillationLog]) -> Table:
    """A row a test file and metric; columns for the teacher and each run, named by what attention they have."""
    first = next(iter(runs.values()))
    columns = {"teacher": first.tests.get("teacher", {})}
    columns |= {f"{name} ({_kind(log)})": log.tests.get("student", {}) for name, log in runs.items()}
    columns = {name: tests for name, tests in columns.items() if tests}
    table = Table(title="Scores", title_justify="left")
    table.add_column("test")
    table.add_column("metric")
    for name in columns:
        table.add_column(name, justify="right")
    rows = [(path, metric) for tests in columns.values() for path, scores in tests.items() for metric in scores]
    for path, metric in dict.fromkeys(row for row in rows if row[1] != "texts"):
        values = (tests.get(path, {}).get(metric) for tests in columns.values())
        table.add_row(Path(path).stem, metric, *("–" if value is None else f"{value:.4f}" for value in values))
    return table


def _kind(log: DistillationLog) -> str:
    attention = log.recipe["student"]["attention"]
    return {"softmax": "softmax control", "own": "fine-tuned"}.get(attention, attention)
