"""What a model's outputs mean, by its configuration; which output is which class."""

import pytest
from transformers import DistilBertConfig

from inhibidistilbert.support.heads import (
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    fits_problem,
    is_renaming,
    other_head,
    output_order,
    problem_of,
)


@pytest.mark.parametrize(
    ("outputs", "said", "meant", "fitting"),
    [
        (1, None, REGRESSION, {REGRESSION, MULTI_LABEL}),
        (3, None, SINGLE_LABEL, {SINGLE_LABEL, MULTI_LABEL}),
        (3, SINGLE_LABEL, SINGLE_LABEL, {SINGLE_LABEL}),
        (3, MULTI_LABEL, MULTI_LABEL, {MULTI_LABEL}),
        (1, MULTI_LABEL, MULTI_LABEL, {MULTI_LABEL}),
        (1, REGRESSION, REGRESSION, {REGRESSION}),
    ],
)
def test_what_the_outputs_mean(outputs, said, meant, fitting):
    config = DistilBertConfig(num_labels=outputs, problem_type=said)
    assert problem_of(config) == meant
    assert {problem for problem in (REGRESSION, SINGLE_LABEL, MULTI_LABEL) if fits_problem(config, problem)} == fitting


@pytest.mark.parametrize(
    ("architectures", "found"),
    [
        (["BertForTokenClassification"], "BertForTokenClassification"),
        (["XForMultipleChoice", "XForSequenceClassification"], None),
        (["DistilBertForSequenceClassification"], None),
        (["DistilBertForMaskedLM"], None),
        ([], None),
        (None, None),
    ],
)
def test_a_head_of_another_task(architectures, found):
    assert other_head(DistilBertConfig(architectures=architectures), "ForSequenceClassification") == found


@pytest.mark.parametrize(
    ("names", "wanted", "order"),
    [
        (["NEGATIVE", "POSITIVE"], ["negative", "positive"], [0, 1]),
        (["Positive", "Negative"], ["NEGATIVE", "POSITIVE"], [1, 0]),
        (["pos", "neg"], ["NEGATIVE", "POSITIVE"], [1, 0]),
        (["not equivalent", "equivalent"], ["not_equivalent", "equivalent"], [0, 1]),
        (["C++", "C"], ["c", "c++"], [1, 0]),
        (["LABEL_0", "LABEL_1"], ["NEGATIVE", "POSITIVE"], [0, 1]),
        (["b", "a"], ["LABEL_0", "LABEL_1"], [0, 1]),
        (["b", "a"], [], [0, 1]),
        (["a", "a"], ["a", "a"], [0, 1]),
        (["a", "b", "c"], ["a", "b"], [0, 1, 2]),
        (["b", "a", "c"], ["a", "b"], None),
        (["GOOD", "BAD"], ["NEGATIVE", "POSITIVE"], None),
        (["NEGATIVE", "OTHER"], ["OTHER", "POSITIVE"], None),
    ],
)
def test_the_output_of_each_class(names, wanted, order):
    assert output_order(names, wanted) == order


@pytest.mark.parametrize(
    ("names", "new", "fine"),
    [
        (["NEGATIVE", "POSITIVE"], ["BAD", "GOOD"], True),
        (["LABEL_0", "LABEL_1"], ["POSITIVE", "NEGATIVE"], True),
        (["NEGATIVE", "POSITIVE"], ["POSITIVE", "NEGATIVE"], False),
        (["NEGATIVE", "POSITIVE"], ["pos", "neg"], False),
        (["NEGATIVE", "POSITIVE"], ["POSITIVE", "OTHER"], False),
    ],
)
def test_outputs_are_renamed_but_not_confused(names, new, fine):
    assert is_renaming(names, new) is fine
