"""What the stages of a recipe share: texts, tokenizer and the task, read and checked before anything is trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import has_file

from ..support.errors import UserError, reason
from ..support.foreign import load_pretrained
from ..support.heads import class_names
from .arguments import training_arguments
from .data import EVAL, TEST, TEXTS, TRAIN, TRANSFER
from .inputs import Inputs
from .recipe import Recipe
from .sizes import published_sizes
from .stages import Material, Stage
from .tasks import KINDS, Classification, TaskKind, kind_of
from .teacher import check_same_tokenizer, load_teacher, load_tokenizer
from .work_folder import is_folder


@dataclass(kw_only=True)
class Prepared(Material):
    """What all stages share, read and checked before anything is trained."""

    recipe: Recipe
    work_dir: Path
    trust_remote_code: bool
    inputs: Inputs
    # The last teacher that was loaded, by its source and head: stages in a row often have the same.
    _last: tuple[tuple[str, str], PreTrainedModel] | None = None

    def folder(self, stage: Stage) -> Path:
        return self.work_dir / stage.name

    def teacher(self, stage: Stage, device: str | None = None) -> PreTrainedModel | None:
        """With the head that the stage learns from; None for a stage that needs none. device: see `load_teacher`."""
        source = self.recipe.teacher_of(stage)
        if source is None or not (stage.needs_teacher or self.recipe.student.source in published_sizes()):
            return None
        key = source, stage.teacher_head(self.task)
        if device is not None:
            return load_teacher(*key, self.trust_remote_code, stage.teacher_argument, device)
        if self._last is None or self._last[0] != key:
            self._last = None  # so that two are never in memory
            self._last = key, load_teacher(*key, self.trust_remote_code, stage.teacher_argument)
        return self._last[1].to("cpu")  # type: ignore[arg-type]  # as it was loaded


def prepare(recipe: Recipe, work_dir: Path, trust_remote_code: bool, inputs: Inputs) -> Prepared:
    prepared = Prepared(
        recipe=recipe,
        work_dir=work_dir,
        trust_remote_code=trust_remote_code,
        inputs=inputs,
        tokenizer=_tokenizer(recipe, trust_remote_code),
        task=_task(recipe, trust_remote_code),
    )
    for stage in recipe.stages:
        training_arguments(recipe, stage, prepared.folder(stage))
        stage.read(recipe.data, prepared)
        source = recipe.teacher_of(stage)
        if source and stage.needs_teacher:
            stage.check_teacher(prepared, _config(source, trust_remote_code), source)
        stage.check_settings(prepared, recipe.student)
    for stage in recipe.stages:
        inputs.check_unchanged(stage, (TRAIN, TRANSFER, EVAL, TEST, TEXTS))  # while they were read
    return prepared


def _task(recipe: Recipe, trust_remote_code: bool) -> TaskKind:
    """The kind of task: the recipe's, or that of the first teacher whose answers are learned; all such teachers fit it."""
    answering = [recipe.teacher_of(stage) for stage in recipe.stages if stage.answers]
    configs = {source: _config(source, trust_remote_code) for source in answering if source}
    first = next(iter(configs.values()), None)
    kind = recipe.data.kind or (kind_of(first) if first else Classification.name)
    task = KINDS[kind](recipe.data, recipe.data.labels or (class_names(first) if first else []))
    for source, config in configs.items():
        task.check_teacher(config, f"--teacher: {source!r}")
    return task


def _config(source: str, trust_remote_code: bool) -> Any:
    """A teacher's configuration."""
    try:
        return load_pretrained(transformers.AutoConfig, source, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise UserError(f"--teacher: {source!r} does not load: {reason(error)}") from error


def _tokenizer(recipe: Recipe, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The one that the teachers and the student share."""
    for stage in recipe.stages:
        if stage.needs_teacher and recipe.teacher_of(stage) is None:
            raise UserError(f"--teacher: stage {stage.name} needs one (or {stage.name}.teacher in the recipe).")
    named, student = recipe.models(), recipe.student.source
    if is_folder(student) and any(has_file(student, name) for name in ("tokenizer.json", "vocab.txt")):
        named["--student"] = student
    if not named:
        raise UserError("--teacher: give a teacher, or a student.source folder with a tokenizer.")
    (first, source), *others = named.items()
    tokenizer = load_tokenizer(source, trust_remote_code, first)
    for name, other in others:
        if other != source:
            check_same_tokenizer(
                tokenizer, load_tokenizer(other, trust_remote_code, name), f"{first} {source!r}", f"{name} {other!r}"
            )
    return tokenizer
