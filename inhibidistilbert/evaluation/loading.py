"""The rows of a task: from the Hub, or from local files of the same columns."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import is_not
from pathlib import Path

from datasets import Dataset, Value, load_dataset

from ..support.errors import UserError, reason
from ..support.label_lists import multi_hot, names_in, read_label_lists
from ..support.text_columns import Column, read_columns, take_columns, text_column
from ..support.text_rows import Literal, read_rows
from .tasks import DEFAULT_LABEL, TEXT_OPTIONS, Task

UNLABELLED = -1  # GLUE's label of its test splits


@dataclass(frozen=True)
class Split:
    """Rows to train or evaluate on.

    Attributes:
        rows: columns `text`, `text_pair` for pairs, `label` where they are labelled, and `idx`, the row's name in GLUE. A
            multi-label task's `label` is the list that the file has, until `with_labels` gives each label its place.
        source: Hub id, or the name of the file without its ending.
        revision: commit on the Hub.
    """

    name: str
    rows: Dataset
    source: str
    published: bool
    revision: str | None = None

    @property
    def labelled(self) -> bool:
        return "label" in self.rows.column_names


def parse_data(arguments: Sequence[str], task: Task) -> dict[str, Path]:
    """Files by split, from `[SPLIT=]FILE` and folders of files named by split, such as `train.csv`.

    A file without a split is the one to be evaluated.

    Raises:
        UserError: a path that is not there, a folder without files, a split given twice.
    """
    found: dict[str, Path] = {}
    for argument in arguments:
        split, equals, rest = argument.partition("=")
        path = Path(rest if equals else argument)
        if Path(argument).exists():
            split, equals, path = "", "", Path(argument)
        if path.is_dir():
            files = {file.stem: file for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith(".")}
            if not files:
                raise UserError(
                    f"--data {argument!r} is a folder without files; they are named by split: train.csv, test.csv."
                )
        elif path.is_file():
            files = {split if equals else task.splits[0]: path}
        else:
            raise UserError(f"--data {argument!r} is neither a file nor a folder; give PATH or SPLIT=PATH.")
        for name, file in files.items():
            if name in found:
                raise UserError(f"--data gives the split {name!r} twice: {str(found[name])!r} and {str(file)!r}.")
            found[name] = file
    return found


def load_split(task: Task, name: str, data: Mapping[str, Path]) -> Split:
    """One split of the task: from `data` where there is any, otherwise from the Hub.

    Raises:
        UserError: a split that is not there, or is empty; a column that is missing; rows without a text; labels that are
            no numbers, or given for some rows only.
    """
    if data:
        if name not in data:
            raise UserError(f"--data has no split {name!r} for task {task.name}; it has {', '.join(data)}.")
        worded = bool(task.labels and not task.multi_label and label_words(task, [data[name]]))
        rows = _named(read_columns([data[name]], "--data", _columns(task, worded)))
        if worded and "label" in rows.column_names:
            rows = _numbered(task, rows, data[name])
        return Split(name, _with_lists(task, rows, data[name]), data[name].stem, published=False)
    if task.dataset is None:
        raise UserError(f"--task {task.name} needs --data: it has no data set of its own.")
    where = f"--task {task.name}: split {name!r} of {task.dataset}"
    try:
        dataset = load_dataset(task.dataset, task.config, split=name)
    except Exception as error:  # the library raises many kinds
        raise UserError(f"{where} cannot be loaded ({reason(error)}); give local files with --data.") from error
    rows = _named(take_columns(dataset, where, _columns(task)))
    return Split(name, rows, task.dataset, published=True, revision=_revision(dataset))


def _revision(dataset: Dataset) -> str | None:
    """The commit in the addresses of the downloaded files, where they have one."""
    for address in dataset.info.download_checksums or ():
        if match := re.search(r"@([0-9a-f]{40})/", address):
            return match[1]
    return None


def label_words(task: Task, files: Iterable[Path]) -> list[str]:
    """The labels of the files in alphabetical order, where none of them is a number; otherwise none."""
    found: set[str] = set()
    for file in files:
        try:
            for _, row in read_rows(file, [task.label_column], []):
                label = row.get(task.label_column)
                if label is None or label == "":
                    continue
                if not isinstance(label, str) or isinstance(label, Literal) or re.fullmatch(r"\s*[-+.\d].*", label):
                    return []
                found.add(label)
        except (OSError, ValueError, KeyError):  # whoever reads the file says what is wrong
            return []
    return sorted(found)


def _numbered(task: Task, rows: Dataset, file: Path) -> Dataset:
    """The rows with the numbers of the classes in place of their names, whose case is of no account."""
    places = {name.casefold(): place for place, name in enumerate(task.labels)}
    labels = rows["label"][:]
    for row, label in enumerate(labels):
        if label.casefold() not in places:
            raise UserError(
                f"--data: {str(file)!r} must hold classes, integers from 0, in {task.label_column!r}, or their names, "
                f"{', '.join(task.labels)}; row {row} holds {label!r}."
            )
    return rows.remove_columns("label").add_column("label", [places[label.casefold()] for label in labels])


def _columns(task: Task, worded: bool = False) -> list[Column]:
    """The texts, and what a split may lack: labels and the names of its rows."""
    names = zip(task.text_columns, ("text", "text_pair"), TEXT_OPTIONS, strict=False)
    columns = [text_column(*each) for each in names]
    if not task.multi_label:  # whose labels are lists, see `_with_lists`
        kind, wanted = ("float64", "numbers") if task.regression else ("int64", "classes, integers from 0,")
        kind = "string" if worded else kind
        gaps = (UNLABELLED,) if task.submissions or not task.regression else ()

        def is_label(value: float | str | None) -> bool:
            if isinstance(value, str):
                return bool(value)
            return value is not None and not math.isnan(value) and value not in gaps

        name, required = task.label_column, not _may_lack_labels(task)
        columns.append(
            Column(name, "label", "--label-column", Value(kind), wanted, "a label", is_label, required, optional=True)
        )
    if not any(column.name == "idx" for column in columns):
        is_name, words = partial(is_not, None), ("names of rows", "a name")
        columns.append(Column("idx", "idx", "", Value("string"), *words, is_name, required=False, optional=True))
    return columns


def _named(rows: Dataset) -> Dataset:
    """Rows without names are called by their places."""
    return rows if "idx" in rows.column_names else rows.add_column("idx", list(range(len(rows))))


def _may_lack_labels(task: Task) -> bool:
    # Not where the column was named: it is misspelt.
    return task.label_column == DEFAULT_LABEL and bool(task.submissions or task.dataset is None)


def _with_lists(task: Task, rows: Dataset, path: Path) -> Dataset:
    """The rows of a multi-label task with the lists of its file, where they are labelled; others as they are."""
    if not task.multi_label:
        return rows
    optional = task.label_column == DEFAULT_LABEL
    lists = read_label_lists(path, "--data", task.label_column, "--label-column", optional)
    return rows if lists is None else rows.add_column("label", lists)


def label_names(task: Task, split: Split) -> list[str]:
    """Names for the labels of a multi-label task that nothing else names, from one split; see `names_in`."""
    return names_in(split.rows["label"][:], f"split {split.name!r} of {split.source!r}, column {task.label_column!r},")


def with_labels(task: Task, split: Split) -> Split:
    """A labelled split of a multi-label task with a 0 or 1 for each of the task's labels in place of the lists.

    Raises:
        UserError: see `multi_hot`.
    """
    where = f"split {split.name!r} of {split.source!r}, column {task.label_column!r},"
    labels = multi_hot(split.rows["label"][:], task.labels, where)
    return replace(split, rows=split.rows.remove_columns("label").add_column("label", labels))


def check_classes(split: Split, classes: int, where: str) -> None:
    """Raises `UserError` where a label is none of the model's classes."""
    labels = split.rows["label"][:]
    for label in (min(labels), max(labels)):
        if not 0 <= label < classes:
            raise UserError(
                f"{where} has the label {label} in row {labels.index(label)}, but the classes are 0 to {classes - 1}."
            )
