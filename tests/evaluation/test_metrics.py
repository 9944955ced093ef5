"""The metrics against scikit-learn, scipy and their definitions, on random predictions."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from inhibidistilbert.evaluation.metrics import (
    F1,
    IGNORED,
    Accuracy,
    AveragePrecision,
    ClassF1,
    MacroF1,
    MatthewsCorrelation,
    MicroF1,
    Pearson,
    QuestionAnswering,
    RocAuc,
    Spearman,
    TokenClassification,
    compute,
)

SEEDS = range(5)


def classes(seed: int, number: int = 2, examples: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Random predictions and references that agree more often than not."""
    generator = np.random.default_rng(seed)
    references = generator.integers(number, size=examples)
    wrong = generator.random(examples) < 0.3
    return np.where(wrong, generator.integers(number, size=examples), references), references


def numbers(seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    references = generator.random(200) * 5
    return references + generator.normal(size=200), references.round(1)  # rounded, so that there are ties


@pytest.mark.parametrize("seed", SEEDS)
def test_classification_agrees_with_scikit_learn(seed):
    predictions, references = classes(seed)
    assert compute([Accuracy, F1, MatthewsCorrelation, ClassF1], predictions, references) == pytest.approx(
        {
            "f1_macro": np.mean(sklearn_metrics.f1_score(references, predictions, average=None)),
            "accuracy": sklearn_metrics.accuracy_score(references, predictions),
            "f1": sklearn_metrics.f1_score(references, predictions),
            "matthews_correlation": sklearn_metrics.matthews_corrcoef(references, predictions),
        },
        abs=1e-12,
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_classification_agrees_with_the_counts(seed):
    predictions, references = classes(seed)
    (tn, fn), (fp, tp) = ([int(((predictions == p) & (references == r)).sum()) for r in (0, 1)] for p in (0, 1))
    root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert compute([Accuracy, F1, MatthewsCorrelation], predictions, references) == pytest.approx(
        {"accuracy": (tp + tn) / 200, "f1": 2 * tp / (2 * tp + fp + fn), "matthews_correlation": (tp * tn - fp * fn) / root}
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_accuracy_of_three_classes(seed):
    predictions, references = classes(seed, number=3)
    assert compute([Accuracy], predictions, references)["accuracy"] == pytest.approx(np.mean(predictions == references))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_ranking_is_the_share_of_ordered_pairs(seed):
    scores, grades = numbers(seed)
    scores, labels = scores.round(1), (grades > 2).astype(int)  # rounded, so that there are ties
    pairs = scores[labels == 1][:, None] - scores[labels == 0]
    share = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
    assert 0.5 < share < 1
    assert compute([RocAuc], scores, labels) == pytest.approx({"roc_auc": share})


def test_one_class_cannot_be_ranked():
    assert math.isnan(compute([RocAuc], np.array([0.1, 0.2]), np.array([1, 1]))["roc_auc"])


def labels(seed: int, number: int = 4, examples: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Random probabilities of labels, rounded so that there are ties, and labels that agree more often than not."""
    generator = np.random.default_rng(seed)
    references = generator.integers(2, size=(examples, number))
    return (0.3 * references + 0.7 * generator.random((examples, number))).round(1), references


MULTI_LABEL = [MicroF1, MacroF1, AveragePrecision]


@pytest.mark.parametrize("seed", SEEDS)
def test_several_labels_agree_with_scikit_learn_and_the_counts(seed):
    scores, references = labels(seed)
    chosen = scores >= 0.5
    (
        both,
        all_,
    ) = (chosen & (references == 1)).sum(0), chosen.sum(0) + references.sum(0)
    values = compute(MULTI_LABEL, scores, references)
    assert values == pytest.approx(
        {
            "f1_micro": sklearn_metrics.f1_score(references, chosen, average="micro"),
            "f1_macro": sklearn_metrics.f1_score(references, chosen, average="macro"),
            "average_precision": sklearn_metrics.average_precision_score(references, scores, average="macro"),
        }
    )
    assert values["f1_micro"] == pytest.approx(2 * both.sum() / all_.sum())
    assert values["f1_macro"] == pytest.approx((2 * both / all_).mean())


def test_a_probability_of_a_half_is_a_yes():
    assert compute(MULTI_LABEL, [[0.5, 0.49]], [[1, 0]]) == {"f1_micro": 1.0, "f1_macro": 0.5, "average_precision": 1.0}


def test_a_label_that_no_text_has():
    """It has no average precision, and an F1 of 0, whether it is predicted or not."""
    scores, references = np.array([[0.9, 0.2, 0.8], [0.4, 0.1, 0.1]]), np.array([[0, 0, 1], [1, 0, 0]])
    # The first label: never right, and the text that has it ranked second. The third: right, and first.
    values = compute(MULTI_LABEL, scores, references)
    assert values == pytest.approx({"f1_micro": 2 / (2 + 2), "f1_macro": 1 / 3, "average_precision": (1 / 2 + 1) / 2})
    nothing = compute(MULTI_LABEL, scores, 0 * references)
    assert (nothing["f1_micro"], nothing["f1_macro"]) == (0, 0)
    assert math.isnan(nothing["average_precision"])


def test_a_single_label_that_is_there_or_not():
    scores, references = np.array([[0.9], [0.6], [0.2]]), np.array([[1], [0], [1]])
    values = compute(MULTI_LABEL, scores, references)
    assert values == pytest.approx({"f1_micro": 0.5, "f1_macro": 0.5, "average_precision": (1 + 2 / 3) / 2})


@pytest.mark.parametrize("seed", SEEDS)
def test_regression_agrees_with_scipy_and_numpy(seed):
    predictions, references = numbers(seed)
    values = compute([Pearson, Spearman], predictions, references)
    ranks = stats.rankdata(predictions), stats.rankdata(references)
    assert values == pytest.approx(
        {
            "pearson": stats.pearsonr(predictions, references).statistic,
            "spearmanr": stats.spearmanr(predictions, references).statistic,
        },
        abs=1e-12,
    )
    assert values == pytest.approx(
        {"pearson": np.corrcoef(predictions, references)[0, 1], "spearmanr": np.corrcoef(*ranks)[0, 1]}
    )


def test_a_model_with_one_answer_for_everything():
    ones, references = np.ones(20, dtype=int), np.arange(20) % 2
    values = compute([Accuracy, F1, MatthewsCorrelation], 1 - ones, references)
    assert values == {"accuracy": 0.5, "f1": 0.0, "matthews_correlation": 0.0}
    assert all(math.isnan(value) for value in compute([Pearson, Spearman], ones, references).values())
    assert all(math.isnan(value) for value in compute([Pearson, Spearman], [1.0], [2.0]).values())


def test_tokens_without_a_label_do_not_count():
    predictions = [[1, 1, 0, 2], [0, 0], [5]]
    references = [[IGNORED, 1, 0, 1], [2, 0], [IGNORED]]
    values = compute([TokenClassification], predictions, references)
    labels, predicted = [1, 0, 1, 2, 0], [1, 0, 2, 0, 0]
    assert values == pytest.approx({"accuracy": 3 / 5, "f1": sklearn_metrics.f1_score(labels, predicted, average="macro")})
    # Class 0: precision 2/3, recall 1; class 1: 1 and 1/2; class 2: never right.
    assert values["f1"] == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)


def test_answers_by_their_tokens():
    predictions = [[3, 5], [3, 5], [3, 5], [0, 0], [7, 2], [0, 0]]
    references = [[3, 5], [4, 7], [8, 9], [0, 0], [3, 5], [2, 4]]
    shared = [1, 2 * 2 / (3 + 4), 0, 1, 0, 0]
    values = compute([QuestionAnswering], predictions, references)
    assert values == pytest.approx({"exact_match": 2 / 6, "f1": sum(shared) / 6})


@pytest.mark.parametrize("seed", SEEDS)
def test_answers_agree_with_sets_of_tokens(seed):
    generator = np.random.default_rng(seed)
    spans = [np.sort(generator.integers(12, size=(50, 2))) for _ in range(2)]
    scores = []
    for one, other in zip(*spans, strict=True):
        first, second = (set(range(start, end + 1)) for start, end in (one, other))
        scores.append(2 * len(first & second) / (len(first) + len(second)))
    values = compute([QuestionAnswering], *spans)
    assert values["f1"] == pytest.approx(np.mean(scores))
    assert values["exact_match"] == np.mean((spans[0] == spans[1]).all(axis=1))
