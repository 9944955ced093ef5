"""The files of an evaluation, which appear when everything has gone well."""

import csv
import io
import json
import math
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..support import machine
from ..support.digests import change, content_of
from ..support.errors import UserError, reason
from ..support.files import prepare_output, replacing, write_text
from ..support.quiet import quiet_transformers
from .loading import Split
from .options import Evaluation
from .scoring import CONFIDENCE, Difference
from .tasks import Task

EVAL_RESULTS = "eval_results.json"  # which `publish` reads, see `publishing/measurements.py`


@dataclass(frozen=True)
class SplitResult:
    """One labelled split: a model's scores, and what comes of the comparison with each other model."""

    split: Split
    checkpoint: str
    values: dict[str, list[float]]
    intervals: dict[str, tuple[float, float] | None]
    differences: dict[str, list[Difference]] = field(default_factory=dict)


class OutputFolder:
    """Where the files go: `--output`, or the checkpoint's own folder for the results of an evaluation alone.

    A context: what is saved lies in a temporary folder until the block ends well. With fine-tuning the folder is new and
    holds `seed-0`, …, a checkpoint each with its own results, and the results over all of them.
    """

    def __init__(self, options: Evaluation):
        self.options = options
        checkpoint = Path(options.checkpoints[0])
        self.folder = options.output or (checkpoint if checkpoint.is_dir() else None)
        if options.fine_tune and self.folder is not None and self.folder.exists():
            raise UserError(f"--output {str(self.folder)!r} exists already: give another name or remove it.")
        # The folder of a model that is trained here is new.
        self.model = {} if options.fine_tune else content_of(options.checkpoints[0], model=True)
        if self.folder is not None:
            file = self.folder / EVAL_RESULTS
            if what := change(former(file).get("model", {}), self.model):
                raise UserError(
                    f"--output: {str(file)!r} is of another model than {options.checkpoints[0]!r} is now, {what}: move "
                    "the file away, or give another --output."
                )
            existing = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
            try:
                with tempfile.TemporaryFile(dir=existing):
                    pass
            except OSError as error:
                raise UserError(f"--output {str(self.folder)!r} cannot be written: {reason(error)}.") from error

    def __enter__(self) -> "OutputFolder":
        self.work = Path(tempfile.mkdtemp(prefix=".evaluate-", dir=self._parent()))
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None and self.folder is not None:
                self._publish(self.folder)
        finally:
            shutil.rmtree(self.work, ignore_errors=True)

    def _parent(self) -> str | None:
        """A place on the file system of the output where there is one, so that a rename is enough."""
        if self.folder is None:
            return None
        return str(next(path for path in self.folder.absolute().parents if path.exists()))

    def _publish(self, folder: Path) -> None:
        if self.options.fine_tune:
            folder.parent.mkdir(parents=True, exist_ok=True)
            self.work.chmod(0o755)
            self.work.rename(folder)
            return
        prepare_output(folder)
        for file in self.work.iterdir():
            with replacing(folder / file.name) as temporary:
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
        self._write(self.work / EVAL_RESULTS, header, rows)
        if self.options.fine_tune:
            for number, seed in enumerate(self.options.seeds):
                own = [_of_one_seed(row, number) for row in rows]
                self._write(self.work / f"seed-{seed}" / EVAL_RESULTS, header | {"seed": str(seed)}, own)

    def _write(self, path: Path, header: dict[str, str], rows: list[dict[str, Any]]) -> None:
        kept = [] if self.options.fine_tune or self.folder is None else former(self.folder / EVAL_RESULTS)["results"]
        new = {_key(row) for row in rows}
        content = {
            "results": [*(row for row in kept if _key(row) not in new), *rows],
            "machine": header,
            "date": header["date"],
        }
        if self.model:
            content["model"] = self.model
        write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _key(row: dict[str, Any]) -> tuple:
    return tuple(row.get(name) for name in ("dataset", "config", "split", "metric"))


def former(file: Path) -> dict[str, Any]:
    """A file of results; one without rows where there is none. Raises `UserError` for one of another form."""
    if not file.is_file():
        return {"results": []}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {**content, "results": list(content["results"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{str(file)!r} is not of its form ({reason(error)}): mend or remove it.") from error


def result_rows(options: Evaluation, task: Task, result: SplitResult) -> list[dict[str, Any]]:
    """A row a metric; those that are undefined, as a correlation with constant predictions is, are left out."""
    rows = []
    for metric, values in result.values.items():
        if not np.isfinite(values).all():
            continue
        split, interval = result.split, result.intervals[metric]
        row: dict[str, Any] = {"dataset": split.source, "published": split.published, "split": split.name}
        if split.published:
            row |= {"config": task.config, "revision": split.revision}
        row |= {"task_id": task.name, "metric": metric, "value": float(np.mean(values)), "examples": len(split.rows)}
        if interval is not None:
            row |= {"interval": list(interval), "confidence": CONFIDENCE}
        if len(values) > 1:
            row |= {"std": float(np.std(values, ddof=1))}
        row |= {"seeds": options.seeds, "values": values}
        if options.fine_tune:
            row |= {"fine_tuning": options.recipe.__dict__}
        for other, differences in result.differences.items():
            (difference,) = (each for each in differences if each.metric == metric)
            if math.isfinite(difference.value):
                # The first of the others stands on the card.
                row.setdefault(
                    "control",
                    {
                        "model": other,
                        "value": row["value"] - difference.value,
                        "difference": difference.value,
                        "p_value": difference.p_value,
                    },
                )
        rows.append(row)
    return rows


def _of_one_seed(row: dict[str, Any], number: int) -> dict[str, Any]:
    """The row of one of the trained models: its own value alone."""
    kept = {name: value for name, value in row.items() if name not in ("interval", "confidence", "std", "control")}
    return kept | {"value": row["values"][number], "seeds": [row["seeds"][number]], "values": [row["values"][number]]}
