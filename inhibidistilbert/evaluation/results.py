"""The files of an evaluation, which appear when everything has gone well."""

import csv
import dataclasses
import io
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..support import machine
from ..support.digests import change, content_of
from ..support.errors import UserError
from ..support.eval_results import EVAL_RESULTS, Control, EvalResults, Result
from ..support.files import check_writable, prepare_output, replacing, replacing_folder, telling_of_disk, write_text
from ..support.quiet import quiet_transformers
from .loading import Split
from .options import Evaluation
from .scoring import CONFIDENCE, Classes, Difference
from .tasks import Task


@dataclass(frozen=True)
class SplitResult:
    """One labelled split: a model's scores, and what comes of the comparison with each other model.

    Attributes:
        classes: of a task of classes what the model makes of each; None for others.
    """

    split: Split
    checkpoint: str
    values: dict[str, list[float]]
    intervals: dict[str, tuple[float, float] | None]
    differences: dict[str, list[Difference]] = field(default_factory=dict)
    classes: Classes | None = None


class OutputFolder:
    """Where the files go: `--output`, or the checkpoint's own folder for the results of an evaluation alone.

    Those of a checkpoint inside this package go nowhere without `--output`: the package is not the user's.

    What is saved lies in a temporary folder until the block of `writing` ends well. With fine-tuning the folder is new and
    holds `seed-0`, …, a checkpoint each with its own results, and the results over all of them.
    """

    work: Path

    def __init__(self, options: Evaluation):
        self.options = options
        checkpoint = Path(options.checkpoints[0])
        package = Path(str(files("inhibidistilbert"))).resolve()
        own = checkpoint.is_dir() and not checkpoint.resolve().is_relative_to(package)
        self.folder = options.output or (checkpoint if own else None)
        # The folder of a model that is trained here is new.
        self.model = {} if options.fine_tune else content_of(options.checkpoints[0], model=True)
        if self.folder is None:
            return
        if options.fine_tune and self.folder.exists():
            raise UserError(f"--output {str(self.folder)!r} exists already: give another name or remove it.")
        file = self.folder / EVAL_RESULTS
        if what := change(former(file).model or {}, self.model):
            raise UserError(
                f"--output: {str(file)!r} is of another model than {options.checkpoints[0]!r} is now, {what}: move "
                "the file away, or give another --output."
            )
        check_writable(self.folder)

    @contextmanager
    def writing(self) -> Iterator["OutputFolder"]:
        """Publishes what is saved within. Raises a UserError where a disk is full, and writes nothing then."""
        place = self.folder or Path(tempfile.gettempdir())
        with telling_of_disk("--output", place), self._publishing():
            yield self

    @contextmanager
    def _publishing(self) -> Iterator[None]:
        if self.options.fine_tune and self.folder is not None:
            with replacing_folder(self.folder, "--output") as self.work:
                yield
            return
        with tempfile.TemporaryDirectory() as work:
            self.work = Path(work)
            yield
            if self.folder is not None:
                prepare_output(self.folder)
                for file in self.work.iterdir():
                    with replacing(self.folder / file.name) as temporary:
                        shutil.copyfile(file, temporary)

    def save_model(self, seed: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        with quiet_transformers():
            model.save_pretrained(self.work / f"seed-{seed}")
            tokenizer.save_pretrained(self.work / f"seed-{seed}")

    def save_predictions(self, task: Task, split: Split, index: list[int], predictions: list[str]) -> None:
        """A file in GLUE's format of submissions: tab-separated `index` and `prediction`."""
        text = io.StringIO()
        writer = csv.writer(text, delimiter="\t", lineterminator="\n")
        writer.writerow(["index", "prediction"])
        writer.writerows(zip(index, predictions, strict=True))
        write_text(self.work / task.submissions.get(split.name, f"{split.source}.tsv"), text.getvalue())

    def save_results(self, task: Task, results: list[SplitResult]) -> None:
        """`eval_results.json`: what was in the folder's of other sets and metrics stays."""
        rows = [row for result in results for row in result_rows(self.options, task, result)]
        if not rows:
            return
        header = machine.header(seed=", ".join(map(str, self.options.seeds)))
        before = former(self.folder / EVAL_RESULTS) if self.folder else EvalResults(results=[])
        new = set(map(_key, rows))
        kept = [row for row in before.results if _key(row) not in new]
        content = EvalResults(
            results=[*kept, *rows], machine=header, date=header["date"], model=self.model or None, other=before.other
        )
        content.write(self.work / EVAL_RESULTS)
        if self.options.fine_tune:
            for number, seed in enumerate(self.options.seeds):
                own = [_of_one_seed(row, number) for row in rows]
                content = dataclasses.replace(content, results=own, machine=header | {"seed": str(seed)})
                content.write(self.work / f"seed-{seed}" / EVAL_RESULTS)


def _key(row: Result) -> tuple:
    return row.dataset, row.config, row.split, row.metric


def former(file: Path) -> EvalResults:
    """A file of results; one without rows where there is none. Raises `UserError` for one of another form."""
    try:
        return EvalResults.read(file) if file.is_file() else EvalResults(results=[])
    except UserError as error:
        raise UserError(f"{str(error).removesuffix('.')}: mend or remove it.") from error


def result_rows(options: Evaluation, task: Task, result: SplitResult) -> list[Result]:
    """A row a metric; those that are undefined, as a correlation with constant predictions is, are left out."""
    rows = []
    for metric, values in result.values.items():
        if not np.isfinite(values).all():
            continue
        split, interval = result.split, result.intervals[metric]
        value = float(np.mean(values))
        rows.append(
            Result(
                dataset=split.source,
                published=split.published,
                split=split.name,
                config=task.config if split.published else None,
                revision=split.revision,
                task_id=task.name,
                metric=metric,
                value=value,
                examples=len(split.rows),
                interval=None if interval is None else list(interval),
                confidence=None if interval is None else CONFIDENCE,
                std=float(np.std(values, ddof=1)) if len(values) > 1 else None,
                seeds=options.seeds,
                values=values,
                fine_tuning=dataclasses.asdict(options.recipe) if options.fine_tune else None,
                control=_control(metric, value, result.differences),
            )
        )
    return rows


def _control(metric: str, value: float, differences: dict[str, list[Difference]]) -> Control | None:
    """The first of the others, which stands on the card; None where none has the metric defined."""
    for other, found in differences.items():
        (difference,) = (each for each in found if each.metric == metric)
        if math.isfinite(difference.value):
            value -= difference.value
            return Control(
                model=machine.without_place(other), value=value, difference=difference.value, p_value=difference.p_value
            )
    return None


def _of_one_seed(row: Result, number: int) -> Result:
    """The row of one of the trained models: its own value alone."""
    assert row.values is not None  # by `result_rows`
    assert row.seeds is not None
    value, seed = row.values[number], row.seeds[number]
    alone = dataclasses.replace(row, value=value, values=[value], seeds=[seed])
    return dataclasses.replace(alone, interval=None, confidence=None, std=None, control=None)
