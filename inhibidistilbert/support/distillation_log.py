"""The schema of `distillation.json`: what a model was distilled by and from, how that went, and what its tests came to."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from .files import form_of, read_json

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
            UserError: content of another form.
        """
        with form_of(FILE):
            stages = {name: StageResult(**_known(StageResult, result)) for name, result in content["stages"].items()}
            teacher = content.get("teacher")
            return cls(**{**_known(cls, content), "stages": stages, "teacher": teacher and cls.from_json(teacher)})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """That of the model in `folder`. Raises `UserError`: it cannot be read, or is of another form."""
        return cls.from_json(read_json(folder / FILE, finite=False))  # a score may be NaN

    def as_json(self) -> dict[str, Any]:
        """Without the fields that few have."""
        content = dataclasses.asdict(self)
        return {name: value for name, value in content.items() if value or name not in ("teacher", "notes")}

    def trainings(self) -> Iterator[tuple[str, str | None, str]]:
        """Name, teacher and course of each stage, the teacher's own first; by epochs where steps were not counted.

        Raises a KeyError for a recipe without the settings of its stages.
        """
        if self.teacher is not None:
            yield from (("fine-tuning of the teacher", *others) for _, *others in self.teacher.trainings())  # type: ignore[misc]
        for settings in self.recipe["stages"]:
            steps = self.stages[settings["name"]].steps
            length = f"epochs {settings['epochs']}" if steps is None else f"{steps} steps"
            how = "learning rate {learning_rate}, batches of {batch_size} texts of up to {max_length} tokens"
            teacher = settings.get("teacher") or self.recipe.get("teacher")
            yield settings["name"], teacher, f"{length}, {how.format_map(settings)}"


def _known(kind: type, content: Mapping[str, Any]) -> dict[str, Any]:
    return {item.name: content[item.name] for item in dataclasses.fields(kind) if item.name in content}
