"""The columns that a distillation reads."""

import math
from typing import Any

from datasets import List, Value

from ..support.text_columns import Column

NO_LABEL = -100  # as in transformers; numbers that are missing are NaN


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
