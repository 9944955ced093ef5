"""Runs the distillation study, `make study`: one `inhibidistilbert distill` a row, from where the last run stopped.

Rows that stand in the results are skipped, models that an earlier run has finished are used again where recipe and files
are still the same, and an unfinished one goes on where it stopped. Several may run at once and share the work.

Written beside each other, whenever a row is finished:

- `distillation_<recipe>.csv`: `task, model, seed, metric, value, command`; accuracy, area under the ROC curve and explained
  variance as shares, correlation from -1 to 1;
- `distillation_<recipe>.json`: machine and versions, seconds of each command, of one that was stopped since its last start;
- `distillation_<recipe>.md`: means, deviations and gaps.
"""

import argparse
import csv
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from statistics import mean
from typing import Any

from filelock import FileLock

from inhibidistilbert.support.distillation_log import FILE, DistillationLog
from inhibidistilbert.support.errors import UserError
from inhibidistilbert.support.files import replacing, write_json, write_text
from inhibidistilbert.support.machine import header

from .plan import ALIGNMENT, METRIC_ELSEWHERE, Command, Run, Settings, plan, test_files
from .summary import summary

COLUMNS = ("task", "model", "seed", "metric", "value", "command")
Row = dict[str, Any]


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[column] for column in ("task", "model", "seed", "metric"))


class Results:
    """The files of results, in `folder`: each appears whole, and several processes may add to them."""

    def __init__(self, folder: Path, recipe: str):
        self.csv = folder / f"distillation_{recipe}.csv"
        self.machine = self.csv.with_suffix(".json")
        self.markdown = self.csv.with_suffix(".md")
        self.made: set[Path] = set()  # what this process has run, or seen that it is what its command makes
        folder.mkdir(parents=True, exist_ok=True)

    def lock(self) -> FileLock:
        return FileLock(self.csv.with_name(f".{self.csv.name}.lock"))

    def rows(self) -> list[Row]:
        """Raises `UserError` for a file that is not one of these."""
        if not self.csv.is_file():
            return []
        with self.csv.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UserError(f"{self.csv} must have the columns {', '.join(COLUMNS)}; it has {reader.fieldnames}.")
        return [row | {"seed": int(row["seed"]), "value": float(row["value"])} for row in rows]

    def has(self, run: Run) -> bool:
        """Raises `UserError` where another command has made the rows."""
        command = shlex.join(run.command.line)
        rows = [
            row for row in self.rows() if (row["task"], row["model"], row["seed"]) == (run.task.name, run.model, run.seed)
        ]
        for row in rows:
            if row["command"] != command:
                raise UserError(
                    f"{self.csv}: the rows of {run.name} are of another command, {row['command']!r}, not of {command!r}: "
                    "delete them, and the models that they concern."
                )
        return bool(rows)

    def add(self, rows: list[Row]) -> None:
        """Those of these rows that do not stand yet."""
        with self.lock():
            standing = self.rows()
            keys = {_key(row) for row in standing}
            rows = [*standing, *(row for row in rows if _key(row) not in keys)]
            with replacing(self.csv) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            write_text(self.markdown, summary(rows))

    def add_command(self, command: Command, seconds: float) -> None:
        with self.lock():
            before = json.loads(self.machine.read_text())["results"] if self.machine.is_file() else []
            machine = header(threads=os.environ.get("OMP_NUM_THREADS", os.cpu_count()))
            write_json(
                self.machine,
                machine,
                [*before, {**machine, "command": shlex.join(command.line), "seconds": round(seconds)}],
            )


def _finished(command: Command) -> bool:
    return (command.output / FILE).is_file()


def execute(command: Command, results: Results) -> None:
    """Run those that `command` needs, then itself; what is finished says whether it is what the command would make.

    Raises:
        UserError: a command failed; it has said why.
    """
    for needed in command.needs:
        execute(needed, results)
    command.output.parent.mkdir(parents=True, exist_ok=True)
    # Another study may be at this very command: wait for it and use its model.
    with FileLock(command.output.with_name(f".{command.output.name}.lock")):
        if command.output in results.made:
            return
        # A finished one is run too: it sees whether it was made by the same recipe, from the same files and models.
        finished, line = _finished(command), shlex.join(command.line)
        print(f"$ {line}", flush=True)
        start = time.monotonic()
        # The same interpreter, whatever is first on the path.
        output = subprocess.DEVNULL if finished else None
        code = subprocess.run([sys.executable, "-m", "inhibidistilbert", *command.line[1:]], stdout=output).returncode
        if code or not _finished(command):
            raise UserError(f"exit code {code}: {line}")
        results.made.add(command.output)
        if not finished:
            results.add_command(command, time.monotonic() - start)


def rows_of(run: Run, settings: Settings) -> list[Row]:
    """The rows that a finished run gives: of its validation texts, of each of its files of test texts, and of alignment."""
    log = DistillationLog.read(run.command.output)
    (stage,) = log.stages.values()
    metric = run.task.metric
    values = {(run.task.name, f"validation_{metric}"): (stage.eval or {})[metric]}
    for task, file in test_files(settings, run.task).items():
        name = metric if task == run.task.name else METRIC_ELSEWHERE
        values[task, name] = log.tests["student"][file][name]
    made = [(*names, value, run.command) for names, value in values.items()]
    made += [(*ALIGNMENT, value, command) for command, value in _explained(run.command)]
    shared = {"model": run.model, "seed": run.seed}
    return [
        {"task": task, "metric": name, "value": value, "command": shlex.join(command.line), **shared}
        for task, name, value, command in made
    ]


def _explained(command: Command) -> Iterator[tuple[Command, float]]:
    """The alignment that `command` builds on, and the share of variance it explains, mean of the layers."""
    for needed in command.needs:
        yield from _explained(needed)
        stage = DistillationLog.read(needed.output).stages.get("align")
        if stage and stage.alignment:
            yield needed, mean(stage.alignment)


def study(settings: Settings, results: Results, only: str = "*") -> list[str]:
    """Run what is missing of the runs whose `task/model/seed` match `only`; returns the names of those that failed.

    Raises:
        UserError: no run matches.
    """
    runs = [run for run in plan(settings) if fnmatch(run.name, only)]
    if not runs:
        raise UserError(f"--only must match a task/model/seed of the study, such as 'sarcasm/*/0'; it is {only!r}.")
    print(f"{sum(map(results.has, runs))} of {len(runs)} runs stand in {results.csv}.", flush=True)
    failed = []
    for run in runs:
        if results.has(run):  # by now
            continue
        try:
            execute(run.command, results)
        except UserError as error:
            print(f"{run.name}: {error}", file=sys.stderr, flush=True)
            failed.append(run.name)
            continue
        results.add(rows_of(run, settings))
        print(f"{run.name}: finished", flush=True)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.distillation.study", description=__doc__)
    parser.add_argument("--recipe", default="study", help="recipe of all stages; `study-gpu` is the full-size one")
    parser.add_argument("--authors-recipe", default="study-authors", help="as above, by the authors; `authors` in full")
    parser.add_argument("--encoder", default=".cache/data/minilm", help="what teachers are fine-tuned from, DistilBERT-like")
    parser.add_argument("--texts", default=".cache/data/study/unlabelled.txt", help="unlabelled texts for alignment")
    parser.add_argument("--only", default="*", help="pattern of task/model/seed, such as 'sarcasm/*/0'")
    options = parser.parse_args()
    data = Path(".cache/data/study")
    if not (data / "unlabelled.txt").is_file():
        sys.exit(f"error: {str(data)!r} does not hold the study's data: run `make study-data`.")
    settings = Settings(
        options.recipe, options.authors_recipe, options.encoder, options.texts, data, Path("runs") / options.recipe
    )
    try:
        failed = study(settings, Results(Path("benchmarks/results"), options.recipe), options.only)
    except UserError as error:
        sys.exit(f"error: {error}")
    if failed:
        sys.exit(f"error: {len(failed)} failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
