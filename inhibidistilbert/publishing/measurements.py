"""Reads what was measured of a checkpoint, from the files of results in its folder.

`distillation.json` is written by `inhibidistilbert distill`, `eval_results.json` by `inhibidistilbert evaluate`:

    {"results": [{"dataset": "stanfordnlp/imdb", "config": "plain_text", "split": "test", "revision": "e6281661…",
                  "task_id": "sentiment", "metric": "accuracy", "value": 0.8845, "examples": 25000,
                  "control": {"model": "a softmax model", "value": 0.9055}}],
     "machine": "x86_64, 2 threads", "date": "2026-01-31"}

`config`, `revision`, `task_id`, `control`, `machine` and `date` may be missing; `"published": false` says that `dataset` is
the name of a local file, `std` is the deviation over several trainings. `cpu.json`, `kernels_gpu.json`, `model_cpu.json` and
`model_gpu.json` are written by `inhibidistilbert benchmark … --output`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..support.benchmark_results import CpuResults, KernelResults, ModelResults
from ..support.errors import UserError, reason
from ..support.results import Results, read_json
from .metadata import hub_id_problem, is_date, metric_problem

DISTILLATION, EVALUATION = "distillation.json", "eval_results.json"
CPU, KERNELS = "cpu.json", "kernels_gpu.json"
COSTS = ("model_cpu.json", "model_gpu.json")
RESULT_FILES = (DISTILLATION, EVALUATION, CPU, KERNELS, *COSTS)
T = TypeVar("T")
R = TypeVar("R", bound=Results)


@dataclass(frozen=True)
class Measurement:
    """One metric on one set of held-out texts.

    Attributes:
        dataset: a Hub id, or the name of a file of texts.
        published: whether `dataset` is a Hub id.
        value: of this model; accuracies are fractions.
        control: the same of the softmax model `control_model`, where it was measured.
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


def _value(metric: Any, value: Any) -> float:
    """Raises `ValueError` where `value` cannot be one of the metric."""
    if problem := metric_problem(_text("metric", metric), value):
        raise ValueError(problem)
    return float(value)


def _text(name: str, value: Any) -> str:
    """Raises `TypeError` unless it is text."""
    if not isinstance(value, str) or not value.strip():
        raise TypeError(f"{name} must be text, got {value!r}")
    return value


def _number(name: str, value: Any) -> float:
    """Raises `TypeError` unless it is a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return value


def _count(name: str, value: Any) -> int:
    """Raises `ValueError` unless it is a whole number above zero."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of 1 or more, got {value!r}")
    return value


@contextmanager
def form_of(name: str) -> Iterator[None]:
    """Raises `UserError` where what is read within is not of the form that the file called `name` has."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{name!r} is not of its form: {type(error).__name__} {reason(error)}.") from error


def _read(folder: Path, parsers: Mapping[str, Callable[[dict[str, Any]], Iterable[T]]]) -> list[T]:
    """What the parsers find in those of the files of results that are there, by their names."""
    found: list[T] = []
    for name, parse in parsers.items():
        if (folder / name).is_file():
            content = read_json(folder / name)
            with form_of(name):
                found.extend(parse(content))
    return found


def read_measurements(folder: Path) -> list[Measurement]:
    """All evaluations in the folder, published datasets first.

    Raises:
        UserError: a file of results that is not of its form.
    """
    return _read(folder, {EVALUATION: _evaluations, DISTILLATION: _tests})


def _evaluations(content: dict[str, Any]) -> Iterator[Measurement]:
    if not is_date(date := content.get("date")):
        raise ValueError(f"date must be text of the form 2026-01-31, got {date!r}")
    for row in content["results"]:
        control, metric, published = row.get("control") or {}, row["metric"], row.get("published", True)
        if published and (problem := hub_id_problem(row["dataset"])):
            raise ValueError(f'dataset {problem}; add "published": false where it is not on the Hub')
        optional = {name: row[name] for name in ("config", "revision") if row.get(name) is not None}
        if (std := row.get("std")) is not None and _number("std", std) < 0:
            raise ValueError(f"std must be 0 or more, got {std}")
        yield Measurement(
            dataset=_text("dataset", row["dataset"]),
            published=bool(published),
            metric=metric,
            value=_value(metric, row["value"]),
            examples=_count("examples", row["examples"]),
            split=_text("split", row["split"]),
            **{name: _text(name, value) for name, value in optional.items()},
            task_id=_text("task_id", row.get("task_id", "default")),
            control=None if control.get("value") is None else _value(metric, control["value"]),
            control_model=None if control.get("model") is None else _text("model", control["model"]),
            date=date,
            std=std,
        )


def _tests(content: dict[str, Any]) -> Iterator[Measurement]:
    """The test files of a distillation, with its teacher as the control."""
    tests = content["tests"]
    # Without a task, or without soft targets, there is nothing to test.
    optional = "recipe" in content
    student, teacher = (tests.get(role, {}) if optional else tests[role] for role in ("student", "teacher"))
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
    for cpu in _read_results(folder, CPU, CpuResults):
        found.append(replace(cpu, results=[row for row in cpu.results if row.level == "model"]))
    for kernels in _read_results(folder, KERNELS, KernelResults):
        found.append(replace(kernels, results=[row for row in kernels.results if row.milliseconds is not None]))
    return found


def read_costs(folder: Path) -> list[ModelResults]:
    """The comparisons with softmax models in the folder.

    Raises:
        UserError: a file of results that is not of its form.
    """
    return [results for name in COSTS for results in _read_results(folder, name, ModelResults)]


def _read_results(folder: Path, name: str, kind: type[R]) -> Iterator[R]:
    if (folder / name).is_file():
        yield kind.read(folder / name)
