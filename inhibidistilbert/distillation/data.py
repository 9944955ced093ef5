"""The texts of a distillation: what files they are in, how they are read and turned into token ids."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, List, Value, concatenate_datasets
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedTokenizerBase

from ..support.errors import UserError
from ..support.text_files import Declared, load_file

# Files as errors name them: the option, and the recipe's key.
TEXTS = "--text-file (data.text_files)"
TRAIN, TRANSFER = "--train-file (data.train_files)", "--transfer-file (data.transfer_files)"
EVAL, TEST = "--eval-file (data.eval_file)", "--test-file (data.test_files)"
SHORTEST = 3  # tokens: [CLS], one of the text, [SEP]
NO_LABEL = -100  # as in transformers; numbers that are missing are NaN
_TEXT, _WORDS = Value("string"), List(Value("string"))


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


@dataclass(frozen=True)
class Column:
    """A column of the files: `name` there, `standard` here, the option that names it, and its type.

    wanted, one: for the errors, what all rows and what each must hold. fits: whether a value may be used.
    """

    name: str
    standard: str
    option: str
    feature: Any
    wanted: str
    one: str
    fits: Callable[[Any], bool]


def is_text(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip())


def _are_words(words: Any) -> bool:
    return bool(words) and all(word is not None for word in words)


def _is_class(label: Any) -> bool:
    return label is not None and label >= 0


def _is_number(label: Any) -> bool:
    return label is not None and math.isfinite(label)


def _are_classes(labels: Any) -> bool:
    return bool(labels) and all(label is not None and (label >= 0 or label == NO_LABEL) for label in labels)


def text_column(name: str, standard: str = "text", option: str = "--text-column") -> Column:
    return Column(name, standard, option, _TEXT, "texts", "a text", is_text)


def word_column(name: str) -> Column:
    return Column(name, "text", "--text-column", _WORDS, "lists of words", "words", _are_words)


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


def read_columns(files: Sequence[str | Path], argument: str, columns: Sequence[Column], drop_empty: bool = False) -> Dataset:
    """The files' rows as one dataset with the standard columns.

    drop_empty: leave rows out whose first column has no value, instead of refusing them.

    Raises:
        UserError: a file that is missing, empty, of an unknown format, or without these columns; rows without a value, or
            with one of another type.
    """
    parts = []
    for path in map(Path, files):
        # A plain text file has lines and no header.
        lines = {"text": "text"} if path.suffix.lower() == ".txt" else {}
        names = {column.standard: lines.get(column.standard, column.name) for column in columns}
        declared = {names[column.standard]: Declared(column.feature, column.wanted, column.option) for column in columns}
        if len(declared) < len(columns):
            raise UserError(f"{argument}: {' and '.join(column.option for column in columns)} must name different columns.")
        part = load_file(path, argument, declared)
        part = part.rename_columns({name: standard for standard, name in names.items() if name != standard})
        for column in columns:
            where = f"{argument}: {str(path)!r}"
            if drop_empty:
                part = part.filter(column.fits, input_columns=column.standard)
                if not len(part):
                    raise UserError(f"{where} holds no text.")
            elif not all(map(column.fits, part[column.standard][:])):
                raise UserError(f"{where} has rows without {column.one} in {column.name!r}.")
        parts.append(part)
    return concatenate_datasets(parts)


def tokenize(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Adds `input_ids`, cut to `max_length` tokens, and their `length`; drops the text (and `text_pair`)."""
    columns = [name for name in ("text", "text_pair") if name in dataset.column_names]

    def encode(batch: Mapping[str, list]) -> dict[str, list]:
        texts = [batch[name] for name in columns]
        ids = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)["input_ids"]
        return {"input_ids": ids, "length": [len(row) for row in ids]}

    return dataset.map(encode, batched=True, remove_columns=columns, desc="Tokenising")
