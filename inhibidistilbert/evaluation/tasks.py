"""What can be evaluated: GLUE's nine tasks, sentiment data sets, and files of one's own."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files

import evaluate

from ..support.errors import UserError
from ..support.heads import MULTI_LABEL, REGRESSION, SINGLE_LABEL, ProblemType
from .metrics import F1, Accuracy, AveragePrecision, ClassF1, MacroF1, MatthewsCorrelation, MicroF1, Pearson, Spearman

GLUE = "nyu-mll/glue"
DEFAULT_LABEL = "label"
VALIDATION, TEST = ("validation",), ("test",)


@dataclass(frozen=True)
class Task:
    """A classification of texts or pairs of texts, by one class or by any number of labels, or a regression.

    Attributes:
        text_columns: one, or two for pairs.
        dataset, config: on the Hub; None for files of one's own.
        splits: those that are evaluated, in the order of the results.
        labels: names of the classes in the data's order; empty for as many as the checkpoint has.
        problem_type: as a model's configuration calls it.
        max_length: tokens, as far as the checkpoint has positions; None for all of these.
        submissions: GLUE's name of the file of predictions for each unlabelled split.
        submits_names: predictions are submitted by the names of the classes, not by their numbers.
    """

    name: str
    text_columns: tuple[str, ...]
    metrics: tuple[type[evaluate.Metric], ...] = (Accuracy,)
    dataset: str | None = None
    config: str | None = None
    splits: tuple[str, ...] = VALIDATION
    label_column: str = DEFAULT_LABEL
    labels: tuple[str, ...] = ()
    problem_type: ProblemType = SINGLE_LABEL
    max_length: int | None = 128
    submissions: Mapping[str, str] = field(default_factory=dict)
    submits_names: bool = False

    @property
    def regression(self) -> bool:
        return self.problem_type == REGRESSION

    @property
    def multi_label(self) -> bool:
        return self.problem_type == MULTI_LABEL


def _glue(name: str, columns: tuple[str, ...], submission: str, **more) -> Task:
    return Task(name, columns, dataset=GLUE, config=name, submissions={"test": submission}, **more)


TEXT_OPTIONS = ("--text-column", "--text-pair-column")  # for the names of `Task.text_columns`
_PAIR = ("sentence1", "sentence2")
_MNLI = {"test_matched": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv"}
_TASKS = (
    _glue("cola", ("sentence",), "CoLA.tsv", metrics=(MatthewsCorrelation,)),
    _glue("sst2", ("sentence",), "SST-2.tsv"),
    _glue("mrpc", _PAIR, "MRPC.tsv", metrics=(Accuracy, F1)),
    _glue("qqp", ("question1", "question2"), "QQP.tsv", metrics=(Accuracy, F1)),
    _glue("stsb", _PAIR, "STS-B.tsv", metrics=(Pearson, Spearman), problem_type=REGRESSION),
    replace(
        _glue("mnli", ("premise", "hypothesis"), "", submits_names=True),
        splits=("validation_matched", "validation_mismatched"),
        submissions=_MNLI,
    ),
    _glue("qnli", ("question", "sentence"), "QNLI.tsv", submits_names=True),
    _glue("rte", _PAIR, "RTE.tsv", submits_names=True),
    _glue("wnli", _PAIR, "WNLI.tsv"),
    Task("imdb", ("text",), dataset="stanfordnlp/imdb", config="plain_text", splits=TEST, max_length=None),
    Task("rotten_tomatoes", ("text",), dataset="cornell-movie-review-data/rotten_tomatoes", config="default", splits=TEST),
    Task("classification", ("text",), splits=TEST, max_length=None, metrics=(Accuracy, ClassF1)),
    Task("regression", ("text",), splits=TEST, max_length=None, metrics=(Pearson, Spearman), problem_type=REGRESSION),
    Task(
        "multi-label-classification",
        ("text",),
        splits=TEST,
        max_length=None,
        metrics=(MicroF1, MacroF1, AveragePrecision),
        problem_type=MULTI_LABEL,
    ),
)
TASKS = tuple(task.name for task in _TASKS)
# By the problem type of the checkpoint.
OWN_FILES = {task.problem_type: task.name for task in _TASKS if task.dataset is None}
# Similarities of STS-B, in whose range predictions are submitted.
STSB_RANGE = (0.0, 5.0)


def find_task(name: str) -> Task:
    """The task of that name, with the names of its classes. Raises `UserError` where there is none."""
    for task in _TASKS:
        if task.name == name:
            maps = json.loads((files("inhibidistilbert") / "hub_configs" / "labels.json").read_text(encoding="utf-8"))
            known = maps.get(name, {"id2label": {}})["id2label"]
            return task if task.regression else replace(task, labels=tuple(known[str(index)] for index in range(len(known))))
    raise UserError(f"--task must be one of {', '.join(TASKS)}; got {name!r}.")
