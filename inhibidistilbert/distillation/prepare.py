"""What the stages of a recipe share: texts, tokenizer and the task, read and checked before anything is trained."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import transformers
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import has_file

from ..support.errors import UserError, reason
from ..support.foreign import load_pretrained
from ..support.heads import class_names
from .arguments import training_arguments
from .inputs import EVAL, TEST, TEXTS, TRAIN, TRANSFER, Inputs
from .recipe import Align, Pretrain, Recipe, Stage, Task
from .sizes import published_sizes
from .tasks import KINDS, Classification, TaskKind, kind_of
from .teacher import check_same_tokenizer, load_tokenizer
from .text_stream import open_texts


@dataclass
class Prepared:
    """What all stages share, read and checked before anything is trained."""

    recipe: Recipe
    work_dir: Path
    trust_remote_code: bool
    inputs: Inputs
    tokenizer: PreTrainedTokenizerBase
    task: TaskKind
    train: Dataset | None = None
    transfer: Dataset | None = None
    evaluation: Dataset | None = None
    tests: dict[str, Dataset] = dataclasses.field(default_factory=dict)
    texts: list[datasets.IterableDataset] = dataclasses.field(default_factory=list)

    def folder(self, stage: Stage) -> Path:
        return self.work_dir / stage.name


def data_files(recipe: Recipe) -> list[str]:
    data, kinds = recipe.data, {type(stage) for stage in recipe.stages}
    files = list(data.text_files) if kinds & {Align, Pretrain} else []
    if Task in kinds:
        files += [*data.train_files, *data.transfer_files, *([data.eval_file] if data.eval_file else []), *data.test_files]
    return files


def prepare(recipe: Recipe, work_dir: Path, trust_remote_code: bool, inputs: Inputs) -> Prepared:
    tokenizer = _tokenizer(recipe, trust_remote_code)
    prepared = Prepared(recipe, work_dir, trust_remote_code, inputs, tokenizer, _task(recipe, trust_remote_code))
    data = recipe.data
    for stage in recipe.stages:
        training_arguments(recipe, stage, prepared.folder(stage))
        if isinstance(stage, Task):
            if not data.train_files and not (data.transfer_files and not stage.hard_weight):
                raise UserError(f"{TRAIN}: at least one file of labelled texts is needed.")
            if data.train_files:
                prepared.train = prepared.task.read(data.train_files, TRAIN)
            if data.transfer_files:
                prepared.transfer = prepared.task.read_unlabelled(data.transfer_files, TRANSFER)
            if data.eval_file:
                prepared.evaluation = prepared.task.read([data.eval_file], EVAL)
            prepared.tests = {path: prepared.task.read([path], TEST) for path in data.test_files}
        else:
            prepared.texts = open_texts(data.text_files, data.text_column)
        _check_stage(prepared, stage)
    for stage in recipe.stages:
        inputs.check_unchanged(stage, (TRAIN, TRANSFER, EVAL, TEST, TEXTS))  # while they were read
    return prepared


def _task(recipe: Recipe, trust_remote_code: bool) -> TaskKind:
    """The kind of task: the recipe's, or that of the first teacher whose answers are learned; all such teachers fit it."""
    answering = [stage for stage in recipe.stages if isinstance(stage, Task) and stage.soft_weight]
    configs = {source: _config(source, trust_remote_code) for stage in answering if (source := recipe.teacher_of(stage))}
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
    sources = {"--teacher": recipe.teacher} | {f"{stage.name}.teacher": stage.teacher for stage in recipe.stages}
    sources |= {f"{stage.name}.teacher_base": stage.teacher_base for stage in recipe.stages if isinstance(stage, Task)}
    if not all(needs_teacher(stage) for stage in recipe.stages) and recipe.student.source not in published_sizes():
        sources = {name: source for name, source in sources.items() if source}
    for stage in recipe.stages:
        if needs_teacher(stage) and recipe.teacher_of(stage) is None:
            raise UserError(f"--teacher: stage {stage.name} needs one (or {stage.name}.teacher in the recipe).")
    if recipe.student.source not in ("teacher", *published_sizes()):
        folder = recipe.student.source
        if any(has_file(folder, name) for name in ("tokenizer.json", "vocab.txt")):
            sources["--student"] = folder
    named = {name: source for name, source in sources.items() if source}
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


def needs_teacher(stage: Stage) -> bool:
    return not isinstance(stage, Task) or bool(stage.soft_weight or stage.hidden_weight)


def test_max_length(prepared: Prepared, stage: Stage) -> int:
    return prepared.recipe.data.test_max_length or stage.max_length


def check_lengths(prepared: Prepared, stage: Stage, positions: int, model: str) -> None:
    lengths = {f"{stage.name}.max_length": stage.max_length, "data.test_max_length": test_max_length(prepared, stage)}
    for name, length in lengths.items():
        if length > positions:
            raise UserError(f"{name} must be at most {positions}, the positions of {model}, got {length}.")


def _check_stage(prepared: Prepared, stage: Stage) -> None:
    """What can be known without weights: positions, masks, labels' range."""
    source = prepared.recipe.teacher_of(stage)
    if source and needs_teacher(stage):
        config = _config(source, prepared.trust_remote_code)
        check_lengths(prepared, stage, config.max_position_embeddings, f"the teacher {source!r}")
        if isinstance(stage, Task) and stage.soft_weight:
            check_labels(prepared, config.num_labels)
    if isinstance(stage, Task) and stage.teacher_base:
        if not stage.soft_weight:
            raise UserError(f"{stage.name}.teacher_base needs a teacher with a head: give {stage.name}.soft_weight above 0.")
        if prepared.recipe.student.attention == "own":
            raise UserError(f"{stage.name}.teacher_base needs student.attention 'inhibitor' or 'softmax', got 'own'.")
    if isinstance(stage, Pretrain) and stage.mlm_weight + stage.soft_mlm_weight and prepared.tokenizer.mask_token_id is None:
        raise UserError(f"{stage.name}.mlm_weight: the tokenizer has no mask token.")


def labelled_sets(prepared: Prepared) -> dict[str, Dataset]:
    sets = {TRAIN: prepared.train, EVAL: prepared.evaluation}
    named = {name: dataset for name, dataset in sets.items() if dataset is not None}
    return named | {f"{TEST} {path!r}": dataset for path, dataset in prepared.tests.items()}


def check_labels(prepared: Prepared, classes: int) -> None:
    for argument, dataset in labelled_sets(prepared).items():
        prepared.task.check_labels(dataset, argument, classes)
    names = prepared.recipe.data.labels
    if names and len(names) != classes:
        raise UserError(f"--label (data.labels): {len(names)} names for {classes} classes: give one for each, in order.")
