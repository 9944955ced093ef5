"""What the stages of a recipe share: texts, tokenizer and the task, read and checked before anything is trained."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..support.errors import UserError
from ..support.heads import class_names
from ..support.models import has_tokenizer, load_config
from .arguments import check_arguments
from .data import EVAL, TEST, TEXTS, TRAIN, TRANSFER
from .inputs import Inputs
from .recipe import Recipe
from .stages import Prepared
from .tasks import KINDS, Classification, TaskKind, kind_of
from .teacher import check_same_tokenizer, load_tokenizer
from .work_folder import is_folder


def prepare(recipe: Recipe, work_dir: Path, trust_remote_code: bool, inputs: Inputs) -> Prepared:
    tokenizer, task = _tokenizer(recipe, trust_remote_code), _task(recipe, trust_remote_code)
    prepared = Prepared(recipe, work_dir, trust_remote_code, inputs, tokenizer, task)
    for stage in recipe.stages:
        check_arguments(recipe, stage)
        stage.read(prepared)
        source = recipe.teacher_of(stage)
        config = _config(source, trust_remote_code) if source and stage.needs_teacher else None
        stage.check_prepared(prepared, config, source)
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
    return load_config(source, f"--teacher: {source!r}", trust_remote_code)


def _tokenizer(recipe: Recipe, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The one that the teachers and the student share."""
    for stage in recipe.stages:
        if stage.needs_teacher and recipe.teacher_of(stage) is None:
            raise UserError(f"--teacher: stage {stage.name} needs one (or {stage.name}.teacher in the recipe).")
    named, student = recipe.models(), recipe.student.source
    if is_folder(student) and Path(student).is_dir() and has_tokenizer(student):
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
