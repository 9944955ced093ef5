"""Reads the texts of a distillation and turns them into token ids."""

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, Value, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from ..errors import UserError, reason
from ..text_files import load_file

NO_LABEL = -100


def read_labelled(files: Sequence[Path], argument: str, text_column: str, label_column: str) -> Dataset:
    """The files' rows as one dataset with columns `text` and `label` (class index).

    Raises:
        UserError: a file that is missing, empty, of an unknown format, or without these columns; rows without a text;
            labels that are not integers from 0.
    """
    parts = []
    for path in files:
        part = load_file(path, argument)
        for column, option in ((text_column, "--text-column"), (label_column, "--label-column")):
            if column not in part.column_names:
                raise UserError(
                    f"{argument}: {str(path)!r} has no column {column!r} ({option}); it has {', '.join(part.column_names)}."
                )
        part = part.select_columns([text_column, label_column])
        part = part.rename_columns({text_column: "text", label_column: "label"})
        try:
            part = part.cast_column("text", Value("string"))
        except Exception as error:
            raise UserError(f"{argument}: {str(path)!r} must hold texts in {text_column!r}: {reason(error)}") from error
        try:
            part = part.cast_column("label", Value("int64"))
        except Exception as error:
            raise UserError(
                f"{argument}: {str(path)!r} must hold integer classes in {label_column!r}: {reason(error)}"
            ) from error
        if None in part["label"][:] or min(part["label"][:]) < 0:
            raise UserError(f"{argument}: {str(path)!r} has rows without a class index >= 0 in {label_column!r}.")
        if not all(map(_is_text, part["text"][:])):
            raise UserError(f"{argument}: {str(path)!r} has rows without a text in {text_column!r}.")
        parts.append(part)
    return concatenate_datasets(parts)


def _is_text(text: str | None) -> bool:
    return bool(text and text.strip())


def read_transfer(files: Sequence[Path], text_column: str) -> Dataset:
    """The files' texts, to be labelled by the teacher: column `text`, and `label` filled with `NO_LABEL`.

    Rows without a text are left out.

    Raises:
        UserError: a file that is missing, of an unknown format, without this column, or without any text.
    """
    parts = []
    for path in files:
        part = load_file(path, "--transfer-file")
        column = "text" if path.suffix.lower() == ".txt" else text_column
        if column not in part.column_names:
            raise UserError(
                f"--transfer-file: {str(path)!r} has no column {column!r}; it has {', '.join(part.column_names)}."
            )
        part = part.select_columns([column]).rename_columns({column: "text"} if column != "text" else {})
        try:
            part = part.cast_column("text", Value("string"))
        except Exception as error:
            raise UserError(f"--transfer-file: {str(path)!r} must hold texts in {column!r}: {reason(error)}") from error
        part = part.filter(_is_text, input_columns="text")
        if not len(part):
            raise UserError(f"--transfer-file: {str(path)!r} holds no text.")
        parts.append(part)
    texts = concatenate_datasets(parts)
    return texts.add_column("label", [NO_LABEL] * len(texts)).cast_column("label", Value("int64"))


def tokenize(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Adds `input_ids`, cut to `max_length` tokens, and their `length`; drops the text."""

    def encode(batch: dict) -> dict:
        ids = tokenizer(batch["text"], truncation=True, max_length=max_length, return_attention_mask=False)["input_ids"]
        return {"input_ids": ids, "length": [len(row) for row in ids]}

    return dataset.map(encode, batched=True, remove_columns=["text"], desc="Tokenising")
