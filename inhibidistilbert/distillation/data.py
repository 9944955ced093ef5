"""The data of a distillation: its files, and the columns that it reads."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from datasets import List, Value
from huggingface_hub.dataclasses import strict

from ..support.text_columns import Column

# Files as errors name them: the option, and the recipe's key.
TEXTS = "--text-file (data.text_files)"
TRAIN, TRANSFER = "--train-file (data.train_files)", "--transfer-file (data.transfer_files)"
EVAL, TEST = "--eval-file (data.eval_file)", "--test-file (data.test_files)"
SHORTEST = 3  # tokens: [CLS], one of the text, [SEP]
NO_LABEL = -100  # as in transformers; numbers that are missing are NaN


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


def _are_words(words: Any) -> bool:
    return bool(words) and all(word is not None for word in words)


def _is_class(label: Any) -> bool:
    return label is not None and label >= 0


def _is_number(label: Any) -> bool:
    return label is not None and math.isfinite(label)


def _are_classes(labels: Any) -> bool:
    return bool(labels) and all(label is not None and (label >= 0 or label == NO_LABEL) for label in labels)


def word_column(name: str) -> Column:
    return Column(name, "text", "--text-column", List(Value("string")), "lists of words", "words", _are_words)


def class_column(name: str) -> Column:
    return Column(name, "label", "--label-column", Value("int64"), "integer classes", "a class index >= 0", _is_class)


def number_column(name: str) -> Column:
    return Column(name, "label", "--label-column", Value("float32"), "numbers", "a number", _is_number)


def classes_column(name: str) -> Column:
    wanted = f"lists of integer classes (or {NO_LABEL})"
    return Column(name, "label", "--label-column", List(Value("int64")), wanted, "such a list", _are_classes)


def answers_column() -> Column:
    """SQuAD's: where the answers begin in the context, and their texts. None for a question without an answer."""
    feature = {"text": List(Value("string")), "answer_start": List(Value("int64"))}
    wanted = "answers in SQuAD's form"
    return Column("answers", "label", "answers", feature, wanted, "such answers", lambda value: value is not None)
