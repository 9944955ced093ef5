"""The schema of `distillation.json`: what a model was distilled by and from, how that went, and what its tests came to."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

FILE = "distillation.json"


@dataclass(frozen=True)
class StageResult:
    """How a stage went.

    steps: None where they were not counted. loss: of the last log. alignment: the share of the variance of each teacher's
    layer that the student's explains. eval: scores of the evaluation file. inputs: files and models with their content, by
    the argument that named them. environments: versions and processes, an entry for each time the stage went on.
    """

    steps: int | None = None
    seconds: float | None = None
    loss: float | None = None
    alignment: list[float] | None = None
    eval: dict[str, float] | None = None
    inputs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    environments: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Training:
    """What people are told of a stage. teacher: None where there is none. length: in steps, or else in epochs."""

    name: str
    teacher: str | None
    length: str
    learning_rate: float
    batch_size: int
    max_length: int


@dataclass(frozen=True)
class DistillationLog:
    """A finished distillation.

    recipe: its settings as JSON, see `hub_configs/recipes`. stages: by their names. tests: scores and `texts`, how many, of
    each test file, of the `teacher` and the `student`. data: the content of each file of texts. teacher: the log of the
    teacher's fine-tuning, where the same run made it. notes: facts that have no other place.
    """

    recipe: dict[str, Any]
    stages: dict[str, StageResult]
    tests: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    data: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: str | None = None
    teacher: "DistillationLog | None" = None
    notes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """What `as_json` gave; fields that are not known are left out.

        Raises:
            KeyError, TypeError, AttributeError: content of another form.
        """
        stages = {name: StageResult(**_known(StageResult, result)) for name, result in content["stages"].items()}
        teacher = content.get("teacher")
        values = {**_known(cls, content), "stages": stages, "teacher": teacher and cls.from_json(teacher)}
        return cls(**values)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """That of the model in `folder`. Raises as `from_json`, and OSError or ValueError for a file that cannot be read."""
        return cls.from_json(json.loads((folder / FILE).read_text(encoding="utf-8")))

    def as_json(self) -> dict[str, Any]:
        """Without the fields that few have."""
        content = dataclasses.asdict(self)
        return {name: value for name, value in content.items() if value or name not in ("teacher", "notes")}

    def trainings(self) -> Iterator[Training]:
        """In order, the teacher's own first. Raises a KeyError for a recipe without the settings of its stages."""
        if self.teacher is not None:
            yield from (dataclasses.replace(training, name="teacher") for training in self.teacher.trainings())
        for settings in self.recipe["stages"]:
            result = self.stages[settings["name"]]
            yield Training(
                settings["name"],
                settings.get("teacher") or self.recipe.get("teacher"),
                f"epochs {settings['epochs']}" if result.steps is None else f"{result.steps} steps",
                *(settings[name] for name in ("learning_rate", "batch_size", "max_length")),
            )


def _known(kind: type, content: Mapping[str, Any]) -> dict[str, Any]:
    return {item.name: content[item.name] for item in dataclasses.fields(kind) if item.name in content}
