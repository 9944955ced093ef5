"""The file of an evaluation: `evaluate` writes it, and `publish` makes the card's numbers of it. Its form:

{"results": [{"dataset": "stanfordnlp/imdb", "config": "plain_text", "split": "test", "revision": "e6281661…",
              "task_id": "sentiment", "metric": "accuracy", "value": 0.8845, "examples": 25000,
              "control": {"model": "a softmax model", "value": 0.9055}}],
 "machine": "x86_64, 2 threads", "date": "2026-01-31"}
"""

import json
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError

from .files import form_of, read_json, write_text

EVAL_RESULTS = "eval_results.json"


@dataclass(kw_only=True)
class _Object:
    """An object of the file. What is None does not stand there.

    other: its fields that this version does not know. They stay.
    """

    other: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, content: Any) -> Self:
        """Raises `TypeError`, `ValueError` or `StrictDataclassError`: it is not of this form. They name the field."""
        if not isinstance(content, dict):
            raise TypeError(f"must be an object, got {content!r}")
        known = {item.name for item in fields(cls)} - {"other"}
        return cls(
            **{name: value for name, value in content.items() if name in known},
            other={name: value for name, value in content.items() if name not in known},
        )

    def as_json(self) -> dict[str, Any]:
        own = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "other"}
        return {name: _plain(value) for name, value in own.items() if value is not None} | self.other


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.as_json() if isinstance(value, _Object) else value


@strict
@dataclass(kw_only=True)
class Control(_Object):
    """Another model's value of the metric on the same texts, and the paired test of the difference."""

    model: str | None = None
    value: float | int | None = None
    difference: float | int | None = None
    p_value: float | int | None = None


@strict
@dataclass(kw_only=True)
class Result(_Object):
    """One metric on one set of texts.

    Attributes:
        dataset: a Hub id, or where it is not `published` the name of a local file.
        config, revision: of a set on the Hub.
        value: the mean over `seeds`, of which `values` are the single ones and `std` the deviation.
        interval: in which the value lies with the probability `confidence`.
        fine_tuning: the hyper-parameters of a model that was trained before.
    """

    dataset: str
    published: bool = True
    split: str
    config: str | None = None
    revision: str | None = None
    task_id: str = "default"
    metric: str
    value: float | int
    examples: int
    interval: list[float | int] | None = None
    confidence: float | int | None = None
    std: float | int | None = None
    seeds: list[int] | None = None
    values: list[float | int] | None = None
    fine_tuning: dict[str, Any] | None = None
    control: Control | None = None

    @classmethod
    def parse(cls, content: Any) -> Self:
        if isinstance(content, dict) and content.get("control") is not None:
            content = content | {"control": Control.parse(content["control"])}
        return super().parse(content)

    def validate_words(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, str) and not value.strip():
                raise ValueError(f"{item.name} must be text, got {value!r}")

    def validate_numbers(self) -> None:
        if self.examples < 1:
            raise ValueError(f"examples must be a whole number of 1 or more, got {self.examples}")
        if self.std is not None and self.std < 0:
            raise ValueError(f"std must be 0 or more, got {self.std}")


@strict
@dataclass(kw_only=True)
class EvalResults(_Object):
    """All results of one model.

    Attributes:
        machine: on what, with what and how they were measured; a text, or `machine.header`.
        date: of the last measurement, in ISO 8601.
        model: what the model's files held, see `digests.content_of`.
    """

    results: list[Result]
    machine: Any = None
    date: str | None = None
    model: dict[str, Any] | None = None

    def validate_date(self) -> None:
        if not is_date(self.date):
            raise ValueError(f"date must be text of the form 2026-01-31, got {self.date!r}")

    @classmethod
    def parse(cls, content: Any) -> Self:
        if not isinstance(rows := content.get("results"), list):
            raise TypeError(f"results must be a list, got {rows!r}")
        results = []
        for place, row in enumerate(rows):
            try:
                results.append(Result.parse(row))
            except (TypeError, ValueError, StrictDataclassError) as error:
                raise ValueError(f"results[{place}]: {_innermost(error)}") from None
        return super().parse(content | {"results": results})

    @classmethod
    def read(cls, file: Path) -> Self:
        """Raises `UserError`: the file cannot be read, or is not of this form."""
        content = read_json(file)
        with form_of(str(file)):
            return cls.parse(content)

    def write(self, file: Path) -> None:
        write_text(file, json.dumps(self.as_json(), indent=2, allow_nan=False) + "\n")


def _innermost(error: BaseException) -> str:
    """What is wrong with a value within a list; of a union of types not what each would want."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).partition(". Errors: ")[0]


def is_date(value: object) -> bool:
    """Whether `value` is a date of ISO 8601 as text, or None."""
    if value is None:
        return True
    try:
        datetime.fromisoformat(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True
