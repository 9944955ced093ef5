"""A distillation as data: teacher, student, texts and stages, read from YAML and checked by name and type."""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError

from ..support.errors import UserError, reason
from ..support.text_columns import check_different
from .data import SHORTEST, Data
from .stages import STAGES, Stage
from .student import Student


@strict
@dataclass
class Recipe:
    """A whole distillation. `trainer` holds further fields of `transformers.TrainingArguments`."""

    teacher: str | None = None
    student: Student = field(default_factory=Student)
    data: Data = field(default_factory=Data)
    stages: list[Stage] = field(default_factory=list)
    seed: int = 0
    bf16: bool = False
    save_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    trainer: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """With the kind of each stage, as it is read."""
        plain = dataclasses.asdict(self)
        for settings, stage in zip(plain["stages"], self.stages, strict=True):
            settings["stage"] = stage.kind
        return plain

    def teacher_of(self, stage: Stage) -> str | None:
        return stage.teacher or self.teacher

    def models(self) -> dict[str, str]:
        """The teachers, and what they were fine-tuned from, by the argument that gave them."""
        found = {"--teacher": self.teacher} | {f"{stage.name}.teacher": stage.teacher for stage in self.stages}
        for stage in self.stages:
            found |= stage.bases()
        return {argument: source for argument, source in found.items() if source}


class _Loader(yaml.SafeLoader):
    """YAML with 1e-3 as a number, which YAML 1.1 takes for a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {reason(error)}") from error


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(
        entry.name.removesuffix(".yaml") for entry in (files("inhibidistilbert") / "hub_configs/recipes").iterdir()
    )


def read_settings(source: str) -> dict[str, Any]:
    """The mapping in a recipe file: one of `recipe_names()`, or a path."""
    known = recipe_names()
    file = files("inhibidistilbert") / "hub_configs/recipes" / f"{source}.yaml" if source in known else Path(source)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        names = ", ".join(known)
        raise UserError(f"--recipe: {source!r} is neither a readable file nor one of {names}: {reason(error)}") from error
    settings = _parse(text, f"--recipe {source!r}")
    if not isinstance(settings, dict):
        raise UserError(f"--recipe: {source!r} must hold a mapping with the key stages.")
    return settings


def read_recipe(source: str, overrides: Sequence[str] = (), stage: str | None = None, **given: Any) -> Recipe:
    """The recipe in `source`, changed.

    overrides: `KEY=VALUE`, KEY a dotted path, VALUE YAML; settings of a stage by its name.
    stage: the name of the one stage to keep; None keeps all.
    given: dotted paths as in `overrides`, with `__` for the dot, and values that are set unless None.

    Raises:
        UserError: an unknown key, a value of another type or out of its range.
    """
    settings = read_settings(source)
    stages = _stage_settings(settings)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise UserError(f"--set: {override!r} must be KEY=VALUE, such as align.max_steps=100.")
        _assign(settings, stages, key.strip(), _parse(value, f"--set {override!r}"))
    for key, value in given.items():
        if value is not None:
            _assign(settings, stages, key.replace("__", "."), value)
    if stage is not None:
        if stage not in stages:
            raise UserError(f"--stage must be one of {', '.join(stages)}, the stages of the recipe; got {stage!r}.")
        stages = {stage: stages[stage]}
    return build_recipe({**settings, "stages": list(stages.values())})


def _stage_settings(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The stages of a recipe by name."""
    stages: dict[str, dict[str, Any]] = {}
    entries = settings.get("stages")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UserError("stages must be a list of mappings, each with the key stage: align, pretrain or task.")
    for entry in entries:
        name = str(entry.get("name") or entry.get("stage"))
        if name in stages:
            raise UserError(f"stages: two are called {name!r}: give each a name of its own.")
        if name in {item.name for item in dataclasses.fields(Recipe)}:
            raise UserError(f"stages: {name!r} is a key of the recipe itself: give the stage another name.")
        stages[name] = dict(entry)
    return stages


def _assign(settings: dict[str, Any], stages: dict[str, dict[str, Any]], key: str, value: Any) -> None:
    first, *rest = key.split(".")
    if first in stages:
        target, path = stages[first], rest
    else:
        target, path = settings, [first, *rest]
        _check_keys([first], [*(item.name for item in dataclasses.fields(Recipe)), *stages], "")
    if not path:
        raise UserError(f"--set: {key!r} is a whole stage; give one of its settings, such as {key}.max_steps.")
    for name in path[:-1]:
        inner = target.get(name) or {}
        if not isinstance(inner, dict):
            raise UserError(f"--set: {key!r}: {name!r} has no settings inside.")
        target[name] = target = dict(inner)
    target[path[-1]] = value


def _check_keys(keys: Sequence[str] | Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {where}{near[0]}?" if near else f"known are {', '.join(known)}."
            raise UserError(f"recipe: unknown key {where}{key}: {hint}")


def _type_error(kind: type, settings: dict[str, Any], error: StrictDataclassError) -> str:
    """Which setting has what value, and what would be right."""
    named = re.search(r"field '(\w+)'", str(error))
    if named is None or named[1] not in settings:
        return reason(error)
    annotation = next(item.type for item in dataclasses.fields(kind) if item.name == named[1])
    wanted = str(getattr(annotation, "__name__", annotation))
    choices = re.search(r"Literal\[(.*?)\]", str(annotation))
    wanted = f"one of {choices[1]}" if choices else wanted
    return f"{named[1]} must be {wanted.replace('typing.', '')}, got {settings[named[1]]!r}."


def _build(kind: type, settings: Any, where: str) -> Any:
    """A data class from a mapping."""
    if not isinstance(settings, dict):
        raise UserError(f"recipe: {where.rstrip('.')} must be a mapping, got {settings!r}.")
    _check_keys(settings, [item.name for item in dataclasses.fields(kind)], where)
    try:
        return kind(**settings)
    except StrictDataclassError as error:
        raise UserError(f"recipe: {where}{_type_error(kind, settings, error)}") from error


def build_recipe(settings: Mapping[str, Any]) -> Recipe:
    """A checked recipe from what a YAML file holds.

    Raises:
        UserError: see `read_recipe`.
    """
    settings = dict(settings)
    stages = []
    for name, entry in _stage_settings(settings).items():
        kind = entry.pop("stage", None)
        if kind not in STAGES:
            raise UserError(f"recipe: {name}.stage must be one of {', '.join(STAGES)}, got {kind!r}.")
        stages.append(_build(STAGES[kind], {**entry, "name": name}, f"{name}."))
    parts = {"student": Student, "data": Data}
    settings |= {name: _build(part, settings.get(name) or {}, f"{name}.") for name, part in parts.items()}
    recipe: Recipe = _build(Recipe, {**settings, "stages": stages}, "")
    if not 0 <= recipe.seed < 2**32:
        raise UserError(f"seed must be between 0 and {2**32 - 1}, got {recipe.seed}.")
    if recipe.data.test_max_length is not None and recipe.data.test_max_length < SHORTEST:
        raise UserError(f"data.test_max_length must be at least {SHORTEST} tokens, got {recipe.data.test_max_length}.")
    columns = ("text_column", "text_pair_column", "label_column")
    check_different({f"data.{name}": getattr(recipe.data, name) for name in columns})
    if len(set(recipe.data.labels)) < len(recipe.data.labels):
        raise UserError(f"data.labels: the names must differ, got {', '.join(recipe.data.labels)}.")
    return recipe
