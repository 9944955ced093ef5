"""What a model says of texts, and what that is worth: values, intervals, paired tests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import evaluate
import numpy as np
import torch
from datasets import Dataset
from scipy import stats
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from ..support.text_columns import tokenize
from .metrics import compute

RESAMPLES = 1000
CONFIDENCE = 0.95
SEED = 0

Track = Callable[[Any], Any]


def encode(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """`input_ids` of texts or pairs, cut to `max_length` tokens, and their `length`; `labels` where there are any."""
    columns = [name for name in ("text", "text_pair", "label") if name in rows.column_names]
    encoded = tokenize(rows.select_columns(columns), tokenizer, max_length)
    return encoded.rename_column("label", "labels") if "label" in columns else encoded


@torch.inference_mode()
def logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, encoded: Dataset, batch_size: int, track: Track = iter
) -> np.ndarray:
    """`(rows, labels)` float32 in the rows' order; computed in batches of similar length, the longest first.

    track: wraps the batches, say in a progress bar.
    """
    lengths = np.array(encoded["length"][:])
    order = np.argsort(-lengths, kind="stable")
    rows = encoded.select_columns(["input_ids"]).select(order)
    loader = DataLoader(cast(Any, rows), batch_size, collate_fn=DataCollatorWithPadding(tokenizer))
    device = model.device
    model.eval()
    found = [model(**batch.to(device)).logits.float().cpu() for batch in track(loader)]
    result = np.empty((len(lengths), found[0].shape[1]), dtype=np.float32)
    result[order] = torch.cat(found).numpy()
    return result


@dataclass(frozen=True)
class Scored:
    """Predictions on labelled texts.

    Attributes:
        predictions: `(seeds, texts)`, a row for each training of the model; `(seeds, texts, labels)` for several labels.
        references: `(texts,)`, or `(texts, labels)`.
        metrics: what is computed of them.
    """

    predictions: np.ndarray
    references: np.ndarray
    metrics: Sequence[type[evaluate.Metric]]

    def values(self) -> dict[str, list[float]]:
        """Every metric, a value a seed."""
        rows = [compute(self.metrics, row, self.references) for row in self.predictions]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def intervals(self) -> dict[str, tuple[float, float] | None]:
        """Bootstrap interval, 95 %, of every metric's mean over the seeds, texts drawn with replacement.

        None where a metric is undefined on a drawn sample, as a correlation of constants is.
        """
        return {name: self._interval(metric, name) for metric, name in self._names()}

    def _names(self) -> list[tuple[evaluate.Metric, str]]:
        found = []
        for kind in self.metrics:
            metric = kind()
            found += [(metric, name) for name in _values(metric, self.predictions[0], self.references)]
        return found

    def _interval(self, metric: evaluate.Metric, name: str) -> tuple[float, float] | None:
        def mean(index: np.ndarray) -> float:
            return _mean(metric, name, self.predictions[:, index], self.references[index])

        if len(self.references) < 2:
            return None
        with np.errstate(invalid="ignore"):
            result = stats.bootstrap(
                (np.arange(len(self.references)),), mean, n_resamples=RESAMPLES, vectorized=False,
                confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(SEED),
            )  # fmt: skip
        low, high = result.confidence_interval
        return (float(low), float(high)) if np.isfinite([low, high]).all() else None


@dataclass(frozen=True)
class Classes:
    """What a model makes of each class, over all its seeds.

    Attributes:
        precision, recall, f1: of each class; 0 where there is nothing to divide by.
        confusion: `confusion[i][j]` texts of class `i` were taken for `j`.
    """

    names: list[str]
    precision: list[float]
    recall: list[float]
    f1: list[float]
    confusion: list[list[int]]

    @classmethod
    def of(cls, scored: Scored, names: Sequence[str]) -> "Classes":
        predicted, labels = scored.predictions.ravel(), np.tile(scored.references, len(scored.predictions))
        places = list(range(len(names)))
        precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, labels=places, zero_division=0)
        confusion = confusion_matrix(labels, predicted, labels=places).tolist()
        return cls(list(names), precision.tolist(), recall.tolist(), f1.tolist(), confusion)


@dataclass(frozen=True)
class Difference:
    """One metric of a model less another's on the same texts, and how likely so large a one is by chance."""

    metric: str
    value: float
    p_value: float


def compare(one: Scored, other: Scored) -> list[Difference]:
    """Paired permutation tests, two-sided: for each text it is drawn which model's predictions count as whose.

    Both models need as many seeds: with several the mean over the seeds is compared.
    """
    both = np.stack([one.predictions, other.predictions])
    texts = np.arange(len(one.references))
    found = []
    for metric, name in one._names():

        def difference(mine: np.ndarray, theirs: np.ndarray, metric=metric, name=name) -> float:
            values = [
                _mean(metric, name, both[choice.astype(int), :, texts].swapaxes(0, 1), one.references)
                for choice in (mine, theirs)
            ]
            return values[0] - values[1]

        result = stats.permutation_test(
            (np.zeros(len(texts)), np.ones(len(texts))), difference, permutation_type="samples", vectorized=False,
            n_resamples=RESAMPLES, rng=np.random.default_rng(SEED),
        )  # fmt: skip
        found.append(Difference(name, float(result.statistic), float(result.pvalue)))
    return found


def _values(metric: evaluate.Metric, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    # Not `compute`, which writes and reads a table for every one of the thousands of samples.
    return metric._compute(predictions=predictions, references=references)


def _mean(metric: evaluate.Metric, name: str, predictions: np.ndarray, references: np.ndarray) -> float:
    return float(np.mean([_values(metric, row, references)[name] for row in predictions]))
