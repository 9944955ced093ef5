"""Reads what was measured of a checkpoint, from the files of results in its folder.

`distillation.json` is written by `inhibidistilbert distill`, `eval_results.json` by `inhibidistilbert evaluate` (see
`support/eval_results.py`), `cpu_<kind>.json`, `kernels_gpu.json`, `model_cpu_<kind>.json` and `model_gpu.json` by
`inhibidistilbert benchmark … --output`. A card shows those of all processors. Older checkpoints have `cpu.json` and
`model_cpu.json`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..support.benchmark_results import CpuResults, KernelResults, ModelResults
from ..support.distillation_log import FILE as DISTILLATION
from ..support.distillation_log import DistillationLog
from ..support.eval_results import EVAL_RESULTS, Control, EvalResults
from ..support.files import form_of, read_json
from ..support.machine import KINDS
from ..support.results import Results
from .metadata import hub_id_problem, metric_problem

KERNELS = "kernels_gpu.json"
CPU = ("cpu.json", *(f"cpu_{kind}.json" for kind in KINDS))
MODEL_CPU = tuple(f"model_{name}" for name in CPU)
COSTS = (*MODEL_CPU, "model_gpu.json")
RESULT_FILES = (DISTILLATION, EVAL_RESULTS, *CPU, KERNELS, *COSTS)
R = TypeVar("R", bound=Results)


@dataclass(frozen=True)
class Measurement:
    """One metric on one set of held-out texts.

    Attributes:
        dataset: a Hub id, or the name of a file of texts.
        published: whether `dataset` is a Hub id.
        value: of this model; accuracies are fractions.
        control: the same of `control_model`, the model it was compared with, where there was one.
        std: deviation over trainings with several seeds.
    """

    dataset: str
    published: bool
    metric: str
    value: float
    examples: int
    split: str | None = None
    config: str | None = None
    revision: str | None = None
    task_id: str = "default"
    control: float | None = None
    control_model: str | None = None
    date: str | None = None
    std: float | None = None


def _value(metric: str, value: Any) -> float:
    """Raises `ValueError` where `value` cannot be one of the metric."""
    if problem := metric_problem(metric, value):
        raise ValueError(problem)
    return float(value)


def _count(name: str, value: Any) -> int:
    """Raises `ValueError` unless it is a whole number above zero."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of 1 or more, got {value!r}")
    return value


def read_measurements(folder: Path) -> list[Measurement]:
    """All evaluations in the folder, published datasets first.

    Raises:
        UserError: a file of results that is not of its form.
    """
    found: list[Measurement] = []
    for name, parse in ((EVAL_RESULTS, _evaluations), (DISTILLATION, _tests)):
        if (folder / name).is_file():
            content = read_json(folder / name, name)
            with form_of(name):
                found += parse(content)
    return found


def read_distillation(folder: Path) -> DistillationLog | None:
    """The log of the distillation in the folder, if there is one.

    Raises:
        UserError: a file of results that is not of its form.
    """
    file = folder / DISTILLATION
    return DistillationLog.from_json(read_json(file, DISTILLATION)) if file.is_file() else None


def _evaluations(content: dict[str, Any]) -> Iterator[Measurement]:
    evaluation = EvalResults.parse(content)
    for row in evaluation.results:
        if row.published and (problem := hub_id_problem(row.dataset)):
            raise ValueError(f'dataset {problem}; add "published": false where it is not on the Hub')
        control = row.control or Control()
        yield Measurement(
            dataset=row.dataset,
            published=row.published,
            metric=row.metric,
            value=_value(row.metric, row.value),
            examples=row.examples,
            split=row.split,
            config=row.config,
            revision=row.revision,
            task_id=row.task_id,
            control=None if control.value is None else _value(row.metric, control.value),
            control_model=control.model,
            date=evaluation.date,
            std=row.std,
        )


def _tests(content: dict[str, Any]) -> Iterator[Measurement]:
    """The test files of a distillation, with its teacher as the control."""
    tests = DistillationLog.from_json(content).tests
    # Without a task, or without soft targets, there is nothing to test.
    student, teacher = (tests.get(role, {}) for role in ("student", "teacher"))
    for path, row in student.items():
        for metric in sorted(row.keys() - {"texts"}):
            control = teacher.get(path, {}).get(metric)
            if control is not None:
                control = _value(metric, control)
            yield Measurement(
                dataset=Path(path).stem,
                published=False,
                metric=metric,
                value=_value(metric, row[metric]),
                examples=_count("texts", row["texts"]),
                control=control,
                control_model=None if control is None else "its teacher",
            )


def read_benchmarks(folder: Path) -> list[CpuResults | KernelResults]:
    """The benchmarks in the folder, of them what a card shows: models from `benchmark cpu`, kernels that have a time.

    Raises:
        UserError: a file of results that is not of its form.
    """
    found: list[CpuResults | KernelResults] = []
    for cpu in _read_results(folder, *CPU, kind=CpuResults):
        found.append(replace(cpu, results=[row for row in cpu.results if row.level == "model"]))
    for kernels in _read_results(folder, KERNELS, kind=KernelResults):
        found.append(replace(kernels, results=[row for row in kernels.results if row.milliseconds is not None]))
    return found


def read_costs(folder: Path) -> list[ModelResults]:
    """The comparisons with softmax models in the folder.

    Raises:
        UserError: a file of results that is not of its form.
    """
    return list(_read_results(folder, *COSTS, kind=ModelResults))


def _read_results(folder: Path, *names: str, kind: type[R]) -> Iterator[R]:
    for name in names:
        if (folder / name).is_file():
            yield kind.read(folder / name)
