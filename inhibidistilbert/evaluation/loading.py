"""The rows of a task: from the Hub, or from local files of the same columns."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import Dataset, Value, load_dataset

from ..support.errors import UserError, reason
from ..support.label_lists import multi_hot, names_in, read_label_lists
from ..support.text_files import Declared, load_file
from .tasks import DEFAULT_LABEL, Task

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
        where = f"--data {str(data[name])!r}"
        rows = _rows(task, load_file(data[name], "--data", _columns(task)), where)
        return Split(name, _with_lists(task, rows, data[name]), data[name].stem, published=False)
    if task.dataset is None:
        raise UserError(f"--task {task.name} needs --data: it has no data set of its own.")
    where = f"--task {task.name}: split {name!r} of {task.dataset}"
    try:
        dataset = load_dataset(task.dataset, task.config, split=name)
    except Exception as error:  # the library raises many kinds
        raise UserError(f"{where} cannot be loaded ({reason(error)}); give local files with --data.") from error
    return Split(name, _rows(task, dataset, where), task.dataset, published=True, revision=_revision(dataset))


def _revision(dataset: Dataset) -> str | None:
    """The commit in the addresses of the downloaded files, where they have one."""
    for address in dataset.info.download_checksums or ():
        if match := re.search(r"@([0-9a-f]{40})/", address):
            return match[1]
    return None


def _columns(task: Task) -> dict[str, Declared]:
    """What a local file's columns hold: the texts; the labels and `idx` where it has them."""
    texts = {name: Declared(Value("string"), "texts") for name in task.text_columns}
    kind, wanted = ("float64", "numbers") if task.regression else ("int64", "classes, integers from 0,")
    label = Declared(Value(kind), wanted, required=not _may_lack_labels(task))
    index = Declared(Value("string"), "names of rows", required=False)
    # The labels of a multi-label task are lists, see `_with_lists`.
    return {"idx": index} | texts | ({} if task.multi_label else {task.label_column: label})


def _rows(task: Task, dataset: Dataset, where: str) -> Dataset:
    """The columns of `Split.rows`."""
    for column in task.text_columns:
        if column not in dataset.column_names:
            raise UserError(f"{where} has no column {column!r}; it has {', '.join(dataset.column_names)}.")
    if not len(dataset):
        raise UserError(f"{where} is empty.")
    names = dict(zip(task.text_columns, ("text", "text_pair"), strict=False))
    labels = _labels(task, dataset, where)
    index = dataset["idx"][:] if "idx" in dataset.column_names else [None]
    if all(name is None for name in index):
        index = range(len(dataset))
    elif None in index:
        raise UserError(f"{where} has rows without a name in 'idx', the first is row {index.index(None)}.")
    rows = dataset.select_columns(list(names)).rename_columns({old: new for old, new in names.items() if old != new})
    for old, column in names.items():
        try:
            rows = rows.cast_column(column, Value("string"))
        except Exception as error:
            raise UserError(f"{where} must hold texts in {old!r}: {reason(error)}") from error
        if not all(text and text.strip() for text in rows[column][:]):
            raise UserError(f"{where} has rows without a text in {old!r}.")
    rows = rows.add_column("idx", list(index))
    return rows if labels is None else rows.add_column("label", labels)


def _may_lack_labels(task: Task) -> bool:
    # Not where the column was named: it is misspelt.
    return task.label_column == DEFAULT_LABEL and bool(task.submissions or task.dataset is None)


def _labels(task: Task, dataset: Dataset, where: str) -> list[float] | list[int] | None:
    """The labels, None for an unlabelled split: without the column, or with no row labelled."""
    if task.multi_label:
        return None  # they are lists, see `_with_lists`
    if task.label_column not in dataset.column_names:
        if _may_lack_labels(task):
            return None
        raise UserError(f"{where} has no column {task.label_column!r}; it has {', '.join(dataset.column_names)}.")
    kind = "float64" if task.regression else "int64"
    try:
        labels = dataset.select_columns([task.label_column]).cast_column(task.label_column, Value(kind))[task.label_column][
            :
        ]
    except Exception as error:
        words = "numbers" if task.regression else "classes, integers from 0,"
        raise UserError(f"{where} must hold {words} in {task.label_column!r}: {reason(error)}") from error
    missing = [label is None or label != label or (not task.regression and label == UNLABELLED) for label in labels]
    if task.regression and task.submissions:
        missing = [gap or label == UNLABELLED for gap, label in zip(missing, labels, strict=True)]
    if all(missing):
        return None
    if any(missing):
        raise UserError(
            f"{where} has rows without a label in {task.label_column!r}, the first is row {missing.index(True)}."
        )
    return labels


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
