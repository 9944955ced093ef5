"""An evaluation from checkpoints and a task to values, comparisons and files."""

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from datasets import List, Value
from scipy.special import expit
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from ..prediction import find_device
from ..support.errors import UserError
from ..support.heads import (
    MULTI_LABEL,
    SINGLE_LABEL,
    THRESHOLD,
    class_names,
    describe_problem,
    fits_problem,
    output_order,
    problem_of,
)
from ..support.label_lists import SEPARATOR
from ..support.models import load_config
from .checkpoint import load_checkpoint
from .fine_tuning import fine_tune
from .loading import Split, check_classes, label_names, label_words, load_split, parse_data, with_labels
from .options import Evaluation
from .results import OutputFolder, SplitResult
from .scoring import Classes, Scored, Track, compare, encode, logits
from .tasks import OWN_FILES, STSB_RANGE, Task


@dataclass
class _Models:
    """Loads a checkpoint for the task, once for each seed.

    names: of the classes, in the data's order; empty where nothing tells them.
    """

    options: Evaluation
    task: Task
    classes: int | None
    train: Split | None
    names: Sequence[str] = ()

    def load(self, checkpoint: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Raises `UserError`: it does not load, or is another kind of model, or has other labels than the task."""
        wanted = self.classes if self.options.fine_tune else None
        model, tokenizer = load_checkpoint(checkpoint, wanted, self.options.trust_remote_code, self.task.problem_type)
        config = model.config
        # Where a model does not say what it is, a different number of labels tells the user more.
        if config.problem_type or self.classes in (None, config.num_labels):
            _check_problem(checkpoint, config, self.task)
        if self.classes is not None and config.num_labels != self.classes:
            names = f" ({', '.join(self.task.labels)})" if self.task.labels else ""
            raise UserError(
                f"CHECKPOINT {checkpoint!r} has {config.num_labels} labels, but task {self.task.name} has "
                f"{self.classes}{names}; give another checkpoint, or --fine-tune."
            )
        self.order(checkpoint, model)
        if self.options.fine_tune:
            if getattr(config, "int8_weights", False):
                raise UserError(f"CHECKPOINT {checkpoint!r} has int8 weights, which cannot be trained.")
            self._name_labels(model)
        positions = config.max_position_embeddings
        if self.options.max_length is not None and self.options.max_length > positions:
            raise UserError(
                f"--max-length must be at most {positions}, the positions of {checkpoint!r}, got {self.options.max_length}."
            )
        return model, tokenizer

    def order(self, checkpoint: str, model: PreTrainedModel) -> list[int]:
        """The model's output for each class; see `output_order`. Raises a UserError for names that are not the task's."""
        names = class_names(model.config)
        if self.options.fine_tune or self.task.regression:
            return list(range(len(names)))
        order = output_order(names, self.names)
        if order is None:
            whose = f"task {self.task.name}" if self.task.labels else repr(self.options.checkpoints[0])
            raise UserError(
                f"CHECKPOINT {checkpoint!r} calls its labels {', '.join(names)}, but those of {whose} are "
                f"{', '.join(self.names)}: name them alike in its config.json (LABEL_0, LABEL_1, … mean their places), or "
                "--fine-tune."
            )
        return order

    def _name_labels(self, model: PreTrainedModel) -> None:
        model.config.problem_type = self.task.problem_type
        if self.task.labels:
            model.config.id2label = dict(enumerate(self.task.labels))
            model.config.label2id = {name: index for index, name in enumerate(self.task.labels)}

    def max_length(self, model: PreTrainedModel) -> int:
        positions = model.config.max_position_embeddings
        return self.options.max_length or min(positions, self.task.max_length or positions)

    def for_seeds(
        self, checkpoint: str, output: OutputFolder | None
    ) -> Iterator[tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
        """The model of each seed, trained where that is asked for and then written to the output."""
        device = find_device(self.options.device)
        for seed in self.options.seeds:
            set_seed(seed)  # of a head that is new
            model, tokenizer = self.load(checkpoint)
            if self.train is not None:
                data = encode(self.train.rows, tokenizer, self.max_length(model))
                if self.task.multi_label:
                    data = data.cast_column("labels", List(Value("float32")))  # as the model's loss wants them
                with tempfile.TemporaryDirectory() as folder:
                    fine_tune(model, tokenizer, data, self.options.recipe, seed, Path(folder))
                if output is not None:
                    output.save_model(seed, model, tokenizer)
            yield model.to(device), tokenizer  # type: ignore[arg-type]  # transformers' wrapper of `to` loses its signature


def evaluate(options: Evaluation, track: Track = iter) -> list[SplitResult]:
    """Evaluate every checkpoint on every split, fine-tuned before where that is asked for, and write the files.

    The first checkpoint is the one that the files are about; it is compared with the others. Returns its results of
    all labelled splits, then those of the others. The predictions for unlabelled splits are in files alone.

    Raises:
        UserError: bad options, data or checkpoints. Nothing is written then.
    """
    task = options.find_task()
    data = parse_data(options.data, task)
    if not options.splits and data.keys() - {"train"} and not data.keys() & set(task.splits):
        task = dataclasses.replace(task, splits=tuple(name for name in data if name != "train"))
    if task.problem_type == SINGLE_LABEL and not task.labels:
        task = dataclasses.replace(task, labels=_label_words(options, task, data))
    splits = [load_split(task, name, data) for name in task.splits]
    train = load_split(task, "train", data) if options.fine_tune else None
    if train is not None and not train.labelled:
        raise UserError(f"--fine-tune: split {train.name!r} of {train.source!r} has no labels in {task.label_column!r}.")
    names = _names(options, task, train)
    if task.multi_label:
        task = dataclasses.replace(task, labels=tuple(names))
        splits = [with_labels(task, split) if split.labelled else split for split in splits]
        train = with_labels(task, train) if train else None
    classes = _classes(task, train)
    models = _Models(options, task, classes, train, names)
    _check_labels(task, [*splits, *([train] if train else [])], classes)
    if unlabelled := [split.name for split in splits if not split.labelled]:
        if options.output is None:
            raise UserError(f"split {unlabelled[0]!r} has no labels: give --output, the folder for the predictions.")
        if len(options.checkpoints) > 1 or len(options.seeds) > 1:
            raise UserError(f"split {unlabelled[0]!r} has no labels: give one CHECKPOINT and one --seed to predict them.")
    for checkpoint in options.checkpoints:
        models.load(checkpoint)  # so that a bad one is told before any work

    with OutputFolder(options).writing() as output:
        scored: dict[str, dict[str, Scored]] = {}
        for checkpoint in options.checkpoints:
            mine = checkpoint == options.checkpoints[0]
            predictions: dict[str, list[np.ndarray]] = {split.name: [] for split in splits}
            for model, tokenizer in models.for_seeds(checkpoint, output if mine else None):
                order = models.order(checkpoint, model)
                for split in splits:
                    where = f"split {split.name!r} of {split.source!r}, with {checkpoint!r}"
                    if split.labelled and task.problem_type == SINGLE_LABEL:
                        check_classes(split, cast(int, model.config.num_labels), where)
                    encoded = encode(split.rows, tokenizer, models.max_length(model))
                    raw = logits(model, tokenizer, encoded, options.batch_size, track)
                    if not np.isfinite(raw).all():
                        raise UserError(f"CHECKPOINT {checkpoint!r} gives scores that are not finite: it is damaged.")
                    predictions[split.name].append(_predicted(task, raw[:, order]))
            scored[checkpoint] = {
                split.name: Scored(np.stack(predictions[split.name]), np.array(split.rows["label"][:]), task.metrics)
                for split in splits
                if split.labelled
            }
            for split in splits:
                if not split.labelled:
                    output.save_predictions(task, split, *_submission(task, split, predictions[split.name][0]))
        shown = (names or list(map(str, range(classes or 0)))) if task.problem_type == SINGLE_LABEL else []
        results = list(_results(splits, scored, shown))
        output.save_results(task, [result for result in results if result.checkpoint == options.checkpoints[0]])
    return results


def _label_words(options: Evaluation, task: Task, data: Mapping[str, Path]) -> tuple[str, ...]:
    """Where the files name classes instead of numbering them, the names of all: the checkpoint's, or the files' own.

    Raises:
        UserError: the checkpoint, which is not trained here, calls its classes otherwise.
    """
    words = label_words(task, data.values())
    if not words:
        return ()
    source = options.checkpoints[0]
    names = class_names(load_config(source, f"CHECKPOINT {source!r}", options.trust_remote_code))
    if {word.casefold() for word in words} <= {name.casefold() for name in names}:
        return tuple(names)
    if not options.fine_tune:
        raise UserError(
            f"--data must hold classes, integers from 0, in {task.label_column!r}, or the names that {source!r} has for "
            f"them, {', '.join(names)}; it holds {', '.join(map(repr, words[:5]))}."
        )
    return tuple(words)


def _results(splits: Sequence[Split], scored: dict[str, dict[str, Scored]], names: Sequence[str]) -> Iterator[SplitResult]:
    first, *others = scored
    for checkpoint, of_splits in scored.items():
        for split in splits:
            if split.labelled:
                mine = of_splits[split.name]
                peers = others if checkpoint == first else []
                differences = {peer: compare(mine, scored[peer][split.name]) for peer in peers}
                classes = Classes.of(mine, names) if names and mine.predictions.ndim == 2 else None
                yield SplitResult(split, checkpoint, mine.values(), mine.intervals(), differences, classes)


def _names(options: Evaluation, task: Task, train: Split | None) -> list[str]:
    """The names of the task's classes; where it has none, the first checkpoint's, or those of labels that are trained on."""
    if task.labels or task.regression or (train is not None and not task.multi_label):
        return list(task.labels)
    config = load_config(options.checkpoints[0], f"CHECKPOINT {options.checkpoints[0]!r}", options.trust_remote_code)
    if task.multi_label and train is not None and config.problem_type != MULTI_LABEL:
        return label_names(task, train)
    if train is None:
        _check_problem(options.checkpoints[0], config, task)
    return class_names(config)


def _check_problem(checkpoint: str, config: Any, task: Task) -> None:
    """Raises a UserError where the outputs of the checkpoint mean something else than the task's."""
    if not fits_problem(config, task.problem_type):
        raise UserError(
            f"CHECKPOINT {checkpoint!r} is {describe_problem(config)}, but task {task.name} is of problem_type "
            f"{task.problem_type!r}; give another checkpoint, --fine-tune, or for files of your own --task "
            f"{OWN_FILES[problem_of(config)]}."
        )


def _predicted(task: Task, logits: np.ndarray) -> np.ndarray:
    """What the metrics take: a number or a class for each text, or the probability of each label."""
    if task.multi_label:
        return expit(logits)
    return logits[:, 0] if task.regression else logits.argmax(1)


def _classes(task: Task, train: Split | None) -> int | None:
    """Labels that a model of the task has; None for as many as the checkpoint has."""
    if task.regression:
        return 1
    if task.labels:
        return len(task.labels)
    return None if train is None or not train.labelled else max(train.rows["label"][:]) + 1


def _check_labels(task: Task, splits: Sequence[Split], classes: int | None) -> None:
    if classes is not None and task.problem_type == SINGLE_LABEL:
        for split in splits:
            if split.labelled:
                check_classes(split, classes, f"split {split.name!r} of {split.source!r}")


def _submission(task: Task, split: Split, predictions: np.ndarray) -> tuple[list[int], list[str]]:
    """Rows of GLUE's format: the index of each text and what is predicted of it."""
    index = split.rows["idx"][:]
    if task.regression:
        clipped = predictions.clip(*STSB_RANGE) if task.submissions else predictions
        return index, [f"{value:.3f}" for value in clipped]
    if task.multi_label:
        return index, [SEPARATOR.join(map(str, np.flatnonzero(row >= THRESHOLD))) for row in predictions]
    if task.submits_names:
        return index, [task.labels[label] for label in predictions]
    return index, [str(label) for label in predictions]
