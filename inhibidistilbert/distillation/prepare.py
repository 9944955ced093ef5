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
from .teacher import load_tokenizer, token_difference
from .work_folder import is_folder


def prepare(recipe: Recipe, work_dir: Path, trust_remote_code: bool, inputs: Inputs) -> Prepared:
    task = _task(recipe, trust_remote_code)
    tokenizer, own_tokenizers = _tokenizers(recipe, task, trust_remote_code)
    prepared = Prepared(recipe, work_dir, trust_remote_code, inputs, tokenizer, task, own_tokenizers)
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


def _tokenizers(
    recipe: Recipe, task: TaskKind, trust_remote_code: bool
) -> tuple[PreTrainedTokenizerBase, dict[str, PreTrainedTokenizerBase]]:
    """The student's, which all teachers share but those that only answer whole texts; and theirs, by their source."""
    for stage in recipe.stages:
        if stage.needs_teacher and recipe.teacher_of(stage) is None:
            raise UserError(f"--teacher: stage {stage.name} needs one (or {stage.name}.teacher in the recipe).")
    named, student = recipe.models(), recipe.student.source
    own = _with_own_tokens(recipe, task)
    if is_folder(student) and Path(student).is_dir() and has_tokenizer(student):
        named["--student"] = student
    else:
        own -= {recipe.teacher_of(recipe.stages[0])}  # which gives the student its tokenizer
    if not named:
        raise UserError("--teacher: give a teacher, or a student.source folder with a tokenizer.")
    (first, source), *others = sorted(named.items(), key=lambda item: item[1] in own)
    tokenizer, different = load_tokenizer(source, trust_remote_code, first), {}
    for name, other in others:
        theirs = load_tokenizer(other, trust_remote_code, name) if other != source else tokenizer
        difference = token_difference(tokenizer, theirs)
        if difference and other not in own:
            raise UserError(
                f"{first} {source!r} and {name} {other!r} have different tokenizers: {difference}. They must share "
                "one: only a teacher that answers whole texts (soft_weight without hidden_weight and teacher_base) may have "
                "its own."
            )
        if difference:
            different[other] = theirs
    return tokenizer, different


def _with_own_tokens(recipe: Recipe, task: TaskKind) -> set[str | None]:
    """The teachers of which no stage needs that they read the student's tokens."""
    shared: set[str | None] = set()
    for stage in recipe.stages:
        if stage.shares_tokens(task):
            shared |= {recipe.teacher_of(stage), *stage.bases().values()}
    return {recipe.teacher_of(stage) for stage in recipe.stages} - shared
