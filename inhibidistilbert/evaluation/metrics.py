"""Metrics of classification, also multi-label, regression, token classification and question answering, for `evaluate`.

`evaluate.load` fetches a script from the Hub; these work without a network and give the same names and values as GLUE's
(Wang et al. 2019, arXiv 1804.07461) and, for the tokens of answers, SQuAD's (Rajpurkar et al. 2016, arXiv 1606.05250).
"""

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import evaluate
import numpy as np
from datasets import Features, List, Value
from scipy import stats
from sklearn import metrics as sklearn_metrics

from ..support.heads import THRESHOLD

_Rows = Sequence[Any] | np.ndarray

IGNORED = -100  # the label of a token that does not count, as in transformers

_CLASSES = {"predictions": Value("int64"), "references": Value("int64")}
_NUMBERS = {"predictions": Value("float64"), "references": Value("float64")}
_LABELS = {"predictions": List(Value("float64")), "references": List(Value("int64"))}
_TOKENS = {"predictions": List(Value("int64")), "references": List(Value("int64"))}
_SPANS = {"predictions": List(Value("int64"), length=2), "references": List(Value("int64"), length=2)}


class _Metric(evaluate.Metric):
    """What the metrics here share: the description is the docstring, nothing is kept on disk.

    Without `format="numpy"`, which would turn float64 into float32.
    """

    columns: ClassVar[dict[str, Any]]

    def __init__(self, **options: Any):
        # Where evaluate makes folders, even for a metric that is kept in memory.
        options.setdefault("cache_dir", str(Path(tempfile.gettempdir(), "inhibidistilbert-metrics")))
        super().__init__(**{"keep_in_memory": True, **options})

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description="predictions and references, one entry an example.",
            features=Features(self.columns),
        )


class Accuracy(_Metric):
    """Share of the examples whose class is predicted: `accuracy`."""

    columns = _CLASSES

    def _compute(self, predictions: _Rows, references: _Rows) -> dict[str, float]:
        # Not scikit-learn's, which looks longer at its arguments than at thousands of texts: intervals ask 1000 times.
        return {"accuracy": float(np.mean(np.asarray(predictions) == np.asarray(references)))}


class F1(_Metric):
    """Harmonic mean of precision and recall of class 1: `f1`; 0 where class 1 is neither predicted nor there."""

    columns = _CLASSES

    def _compute(self, predictions: _Rows, references: _Rows) -> dict[str, float]:
        # Restricted to class 1, so that a model of three classes is scored as well.
        f1 = sklearn_metrics.f1_score(references, predictions, labels=[1], average="macro", zero_division=0)
        return {"f1": float(f1)}


class ClassF1(_Metric):
    """The mean over the classes of each one's F1: `f1_macro`; classes that are neither predicted nor there do not count."""

    columns = _CLASSES

    def _compute(self, predictions: _Rows, references: _Rows) -> dict[str, float]:
        return {"f1_macro": float(sklearn_metrics.f1_score(references, predictions, average="macro", zero_division=0))}


class MatthewsCorrelation(_Metric):
    """Matthews' correlation of two classifications, -1 to 1: `matthews_correlation`; 0 where one has a single class."""

    columns = _CLASSES

    def _compute(self, predictions: _Rows, references: _Rows) -> dict[str, float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a single class
            return {"matthews_correlation": float(sklearn_metrics.matthews_corrcoef(references, predictions))}


class RocAuc(_Metric):
    """Area under the ROC curve of the scores of class 1 against class 0: `roc_auc`; NaN where one of them is not there.

    The share of the pairs of one example of each in which class 1 has the higher score, wherever the threshold lies.
    """

    columns = {"predictions": Value("float64"), "references": Value("int64")}

    def _compute(self, predictions: _Rows, references: _Rows) -> dict[str, float]:
        if len(set(references)) < 2:
            return {"roc_auc": float("nan")}
        return {"roc_auc": float(sklearn_metrics.roc_auc_score(references, predictions))}


class MicroF1(_Metric):
    """F1 of all pairs of a text and a label, each pair a decision: `f1_micro`; 0 where no label is given or predicted.

    predictions: a probability for each label, which is predicted from `THRESHOLD` on. references: 0 or 1 for each label.
    """

    columns = _LABELS

    def _compute(self, predictions: _Rows, references: _Rows) -> dict[str, float]:
        chosen, labels = np.asarray(predictions) >= THRESHOLD, np.asarray(references)
        return {"f1_micro": float(sklearn_metrics.f1_score(labels.ravel(), chosen.ravel(), zero_division=0))}


class MacroF1(_Metric):
    """The mean over the labels of each one's F1: `f1_macro`; 0 for a label that is neither given nor predicted.

    predictions, references: as those of `MicroF1`.
    """

    columns = _LABELS

    def _compute(self, predictions: _Rows, references: _Rows) -> dict[str, float]:
        chosen, labels = np.asarray(predictions) >= THRESHOLD, np.asarray(references)
        # scikit-learn takes a table of one label for two classes, whose mean would be another.
        average = "macro" if labels.shape[1] > 1 else "binary"
        return {"f1_macro": float(sklearn_metrics.f1_score(labels, chosen, average=average, zero_division=0))}


class AveragePrecision(_Metric):
    """The mean over the labels of each one's average precision, wherever the threshold lies: `average_precision`.

    A label that no text has is left out of the mean, for there is nothing to find; NaN where that is every label.
    predictions, references: as those of `MicroF1`.
    """

    columns = _LABELS

    def _compute(self, predictions: _Rows, references: _Rows) -> dict[str, float]:
        scores, labels = np.asarray(predictions), np.asarray(references)
        found = labels.any(axis=0)
        if not found.any():
            return {"average_precision": float("nan")}
        precision = sklearn_metrics.average_precision_score(labels[:, found], scores[:, found], average="macro")
        return {"average_precision": float(precision)}


class Pearson(_Metric):
    """Pearson's correlation of two series of numbers: `pearson`; NaN where one is constant or shorter than 2."""

    columns = _NUMBERS

    def _compute(self, predictions: _Rows, references: _Rows) -> dict[str, float]:
        return {"pearson": _correlation(stats.pearsonr, predictions, references)}


class Spearman(_Metric):
    """Spearman's rank correlation of two series of numbers: `spearmanr`; NaN where one is constant or shorter than 2."""

    columns = _NUMBERS

    def _compute(self, predictions: _Rows, references: _Rows) -> dict[str, float]:
        return {"spearmanr": _correlation(stats.spearmanr, predictions, references)}


def _correlation(correlate: Any, predictions: _Rows, references: _Rows) -> float:
    if len(predictions) < 2:
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a constant series
        return float(correlate(predictions, references).statistic)


class TokenClassification(_Metric):
    """`accuracy` and macro-averaged `f1` over the tokens of all examples; tokens labelled `IGNORED` do not count.

    predictions, references: a class for each token, in lists as long as the example.
    """

    columns = _TOKENS

    def _compute(self, predictions: _Rows, references: _Rows) -> dict[str, float]:
        predicted, labels = np.concatenate(predictions), np.concatenate(references)
        predicted, labels = predicted[labels != IGNORED], labels[labels != IGNORED]
        return {
            "accuracy": float(sklearn_metrics.accuracy_score(labels, predicted)),
            "f1": float(sklearn_metrics.f1_score(labels, predicted, average="macro", zero_division=0)),
        }


class QuestionAnswering(_Metric):
    """`exact_match` and `f1`, SQuAD's, over the tokens of answers; fractions, means over the examples.

    predictions, references: first and last token of the answer, `[start, end]`, both within it; `[0, 0]`, the place of
    [CLS], for no answer. A prediction that ends before it starts has no token in common with any answer.
    """

    columns = _SPANS

    def _compute(self, predictions: _Rows, references: _Rows) -> dict[str, float]:
        (start, end), (true_start, true_end) = np.asarray(predictions).T, np.asarray(references).T
        shared = np.maximum(0, np.minimum(end, true_end) - np.maximum(start, true_start) + 1)
        # F1 of two sets is twice what they share through the sum of their sizes.
        f1 = 2 * shared / (np.maximum(0, end - start + 1) + true_end - true_start + 1)
        exact = (start == true_start) & (end == true_end)
        return {"exact_match": float(exact.mean()), "f1": float(f1.mean())}


def compute(metrics: Sequence[type[evaluate.Metric]], predictions: _Rows, references: _Rows) -> dict[str, float]:
    """The values of all `metrics` by name."""
    values: dict[str, float] = {}
    for metric in metrics:
        values |= metric().compute(predictions=predictions, references=references)
    return values
