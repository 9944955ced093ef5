"""A distillation as data: teacher, student, texts and stages, read from YAML and checked by name and type."""

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError

from ..support.errors import UserError, reason

SHORTEST = 3  # tokens: [CLS], one of the text, [SEP]


@strict
@dataclass
class Student:
    """What is trained.

    source: `"teacher"` (weights copied from the teacher), a published size (new, word embeddings projected from the
        teacher's), or a folder: an earlier output, or a DistilBERT or BERT to copy from.
    attention: `"inhibitor"`; `"softmax"` for transformers' DistilBERT, the control; `"own"` for the source's own class, to
        fine-tune any encoder.
    layers: the teacher's layers that the student's come from and learn from, from 0; None for all, or for evenly spaced
        ones where the teacher has more.
    fresh: projections of the attention, such as `q_lin`, that are drawn anew in place of copies.
    config: fields of the configuration. Those of inhibitor attention alone are ignored for a softmax student, so that one
        recipe serves both.
    """

    source: str = "teacher"
    attention: Literal["inhibitor", "softmax", "own"] = "inhibitor"
    layers: list[int] | None = None
    fresh: list[Literal["q_lin", "k_lin", "v_lin", "out_lin"]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)


@strict
@dataclass
class Data:
    """The files, and what their columns are called.

    text_files: unlabelled, for alignment and pretraining; read as a stream.
    train_files, eval_file, test_files: labelled; transfer_files: unlabelled, for the teacher to label.
    kind: of the task; None for that of the teacher whose answers are learned, and without one for classification.
    label_column: class index; number; for multi-label classification a list of labels (see `label_lists`); for token
        classification a list of class indices, one for each word of the list in `text_column`. Question answering has
        SQuAD's columns: `question`, `context`, `answers`.
    labels: names of the classes, in order.
    test_max_length: tokens of a test text at most; None for the stage's `max_length`.
    """

    text_files: list[str] = field(default_factory=list)
    kind: (
        Literal["classification", "multi-label-classification", "regression", "token-classification", "question-answering"]
        | None
    ) = None
    train_files: list[str] = field(default_factory=list)
    transfer_files: list[str] = field(default_factory=list)
    eval_file: str | None = None
    test_files: list[str] = field(default_factory=list)
    text_column: str = "text"
    text_pair_column: str | None = None
    label_column: str = "label"
    labels: list[str] = field(default_factory=list)
    test_max_length: int | None = None


@strict
@dataclass
class Stage:
    """What all stages have. Lengths in tokens, warm-up as a share of the steps.

    batch_size: texts in a step, over all processes and accumulated batches: the same command trains the same on any number.
    scalar_learning_rate: of alpha, beta and gamma; None for that of the other parameters.
    teacher: in place of the recipe's.
    dropout: of the student while this stage trains, everywhere; None for its configuration's.
    fake_quantization: compute as the int8 form will (see `fake_quantization`); a softmax student has none, trains as ever.
    """

    kind: ClassVar[str]
    name: str = ""
    teacher: str | None = None
    max_steps: int | None = None
    batch_size: int = 32
    max_length: int = 128
    learning_rate: float | int = 5e-5
    scalar_learning_rate: float | int | None = None
    warmup: float | int = 0.06
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float | int = 0.01
    max_grad_norm: float | int = 1.0
    dropout: float | int | None = None
    fake_quantization: bool = False

    def __post_init__(self) -> None:
        self.name = self.name or self.kind
        self.check()

    def check(self) -> None:
        """Raises a UserError for a value out of its range."""
        if self.max_steps is None and not hasattr(self, "epochs"):
            raise UserError(f"{self.name}.max_steps: give the number of steps; the texts are a stream without an end.")
        if self.max_length < SHORTEST:
            raise UserError(f"{self.name}.max_length must be at least {SHORTEST} tokens, got {self.max_length}.")
        for name in ("max_steps", "batch_size", "learning_rate", "epochs", "temperature"):
            value = getattr(self, name, None)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{self.name}.{name} must be a number above 0, got {value}.")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UserError(f"{self.name}.dropout must be from 0 to below 1, got {self.dropout}.")
        weights = [item.name for item in dataclasses.fields(self) if item.name.endswith("_weight")]
        for name in ("scalar_learning_rate", "weight_decay", "max_grad_norm", "warmup", *weights):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UserError(f"{self.name}.{name} must be a number from 0, got {value}.")
        if weights and not any(getattr(self, name) for name in weights):
            raise UserError(f"{self.name}: one of {', '.join(weights)} must be above 0.")


@strict
@dataclass
class Align(Stage):
    """Each student layer is fed the teacher's hidden state and learns the teacher's layer, all layers at once.

    target: `"attention"`, the output of the attention; or `"layer"`, the hidden state after the whole layer.
    loss: `"variance"`, the share of the target's variance that is not explained; `"cosine"` distance; `"mse"`.
    trained: `"attention"`, `"layer"` for the whole layer, or `"queries_keys"` for q_lin, k_lin and the scalars.
    """

    kind = "align"
    learning_rate: float | int = 1e-3
    scalar_learning_rate: float | int | None = 2e-2
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    weight_decay: float | int = 0.0
    target: Literal["attention", "layer"] = "attention"
    loss: Literal["variance", "cosine", "mse"] = "variance"
    trained: Literal["attention", "layer", "queries_keys"] = "attention"


@strict
@dataclass
class Pretrain(Stage):
    """Task-agnostic, end to end.

    hidden_weight: of the cosine distance between hidden states; `hidden_layer_weights`: one for each student layer,
        None for equal ones.
    mlm_weight, soft_mlm_weight: of the masked tokens' cross-entropy, and of the divergence from the teacher's head at them
        with `temperature`; both need a teacher with such a head.
    blocks: run texts together and cut them into blocks of `max_length` tokens, instead of one text a row.
    """

    kind = "pretrain"
    learning_rate: float | int = 3e-4
    scalar_learning_rate: float | int | None = 5e-3
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    hidden_weight: float | int = 1.0
    hidden_layer_weights: list[float | int] | None = None
    mlm_weight: float | int = 0.0
    soft_mlm_weight: float | int = 0.0
    mlm_probability: float | int = 0.15
    temperature: float | int = 2.0
    train_embeddings: bool = True
    blocks: bool = False


@strict
@dataclass
class Task(Stage):
    """From a fine-tuned teacher, or from the labels alone where no weight asks for one.

    soft_weight: of the teacher's answers, at `temperature` for classes and labels, as squared error for numbers.
    hard_weight: of the labels. hidden_weight, hidden_layer_weights: see `Pretrain`.
    position_offsets: move each text to a random place of the position table, so that all of it is trained.
    teacher_base: the encoder that the teacher was fine-tuned from. What fine-tuning changed in it is added to the student
        before training, and the teacher's head is copied; None for neither. For a student of the teacher's width.
    """

    kind = "task"
    epochs: float | int = 3
    scalar_learning_rate: float | int | None = 1e-3
    soft_weight: float | int = 1.0
    temperature: float | int = 2.0
    hidden_weight: float | int = 0.0
    hidden_layer_weights: list[float | int] | None = None
    hard_weight: float | int = 0.5
    position_offsets: bool = False
    teacher_base: str | None = None


STAGES: dict[str, type[Stage]] = {stage.kind: stage for stage in (Align, Pretrain, Task)}


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
    if source in recipe_names():
        text = (files("inhibidistilbert") / "hub_configs/recipes" / f"{source}.yaml").read_text(encoding="utf-8")
    else:
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            known = ", ".join(recipe_names())
            raise UserError(
                f"--recipe: {source!r} is neither a readable file nor one of {known}: {reason(error)}"
            ) from error
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
    if len(set(recipe.data.labels)) < len(recipe.data.labels):
        raise UserError(f"data.labels: the names must differ, got {', '.join(recipe.data.labels)}.")
    return recipe
