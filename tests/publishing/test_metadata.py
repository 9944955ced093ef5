"""The Hub's rules for metadata and results, and git's for names."""

import math

import pytest

from inhibidistilbert.publishing.metadata import (
    check_ref_name,
    hub_id_problem,
    metadata_problems,
    metric_problem,
    result_problems,
)
from inhibidistilbert.support.errors import UserError

OTHER = {"license": "other", "license_name": "my-license-1.0", "license_link": "https://example.org/license"}
INDEX = {
    "name": "tiny",
    "results": [
        {
            "task": {"type": "text-classification"},
            "dataset": {"type": "stanfordnlp/imdb", "name": "IMDB"},
            "metrics": [{"type": "accuracy", "value": 0.8125}],
        }
    ],
}


def index(value) -> dict:
    metrics = [{"type": "accuracy", "value": value}]
    return {"model-index": [{**INDEX, "results": [{**INDEX["results"][0], "metrics": metrics}]}]}


GOOD = [
    {},
    {"license": "apache-2.0", "language": "en"},
    {"license": "mit", "language": ["en", "deu", "ger", "cmn", "nah", "no"]},
    {"language": "multilingual"},
    {"language": ["code", "fr"]},
    {"license": "openmdw-1.1"},
    OTHER,
    {**OTHER, "license_link": "LICENSE"},
    {"base_model": "distilbert/distilbert-base-uncased", "base_model_relation": "finetune"},
    {"base_model": ["google-bert/bert-base-uncased", "distilbert-base-uncased"]},
    {"datasets": ["stanfordnlp/imdb", "imdb", "nyu-mll/glue"]},
    {"pipeline_tag": "text-classification", "library_name": "transformers"},
    {"tags": ["custom_code", "a tag of words"], "metrics": ["accuracy", "f1"]},
    {"widget": [{"text": "A quiet film.", "example_title": "quiet"}]},
    {"model-index": [INDEX]},
]
BAD = [
    *({"license": given} for given in ("MIT", "Apache 2.0", "apache", "", None, 3, ["mit", "apache-2.0"], "proprietary")),
    {"license": "other"},
    {**OTHER, "license_name": "My licence"},
    {**OTHER, "license_name": None},
    {**OTHER, "license_link": "LICENSE.pdf"},
    {**OTHER, "license_link": "file:///home/someone/LICENSE"},
    {**OTHER, "license_link": "../LICENSE"},
    *(
        {"language": given}
        for given in ("English", "EN", "en-US", "xx", "xyz1", "en, fr", False, 5, ["en", "english"], {"a": 1})
    ),
    *(
        {name: given}
        for name in ("base_model", "datasets")
        for given in (
            *(
                "runs/teacher",
                "./teacher",
                "/srv/teacher",
                "~/teacher",
                "../teacher",
                "C:\\teacher",
                "a/b/c",
                "my teacher",
                "a--b",
            ),
            *(
                "data/train.csv",
                "someone/train.jsonl",
                "models/bert",
                "someone/x/checkpoint-500",
                "someone/checkpoint-500",
                "x.git",
            ),
            *("https://huggingface.co/a/b", "a/b@main", "", 5, True, {"id": "a/b"}, ["a/b", None], ["a/b", "x y"]),
        )
    ),
    {"base_model_relation": "cousin"},
    {"base_model_relation": ["finetune"]},
    {"pipeline_tag": "text-classifier"},
    {"pipeline_tag": ["text-classification"]},
    {"library_name": ["transformers"]},
    {"tags": "custom_code"},
    {"tags": ["custom_code", 7]},
    {"tags": ["two\nlines"]},
    {"tags": [True]},
    {"tags": [" "]},
    {"metrics": {"accuracy": 0.5}},
    {"metrics": [None]},
    {"widget": "A quiet film."},
    {"widget": ["A quiet film."]},
    {"widget": [{"text": 5}]},
    *(index(value) for value in (math.nan, math.inf, -math.inf, "nan", "0.8125", None, True, 81.25, -0.5)),
    {"model-index": "tiny"},
    {"model-index": [{"name": "tiny"}]},
    {"model-index": [{**INDEX, "name": 5}]},
]


@pytest.mark.parametrize("data", GOOD, ids=repr)
def test_what_the_hub_takes(data):
    assert list(metadata_problems(data, {"LICENSE"})) == []


@pytest.mark.parametrize("data", BAD, ids=repr)
def test_what_the_hub_does_not_take(data):
    problems = list(metadata_problems(data, {"LICENSE"}))
    assert problems
    assert all(what and remedy for what, remedy in problems)


def test_a_licence_of_which_the_file_is_missing():
    assert [what for what, _ in metadata_problems({**OTHER, "license_link": "LICENSE"})] == [
        "license_link names LICENSE, which is missing"
    ]


def test_norwegian():
    """YAML makes false of it."""
    assert [remedy.partition(",")[0] for _, remedy in metadata_problems({"language": False})] == [
        "quote it: YAML reads no as false"
    ]


ENTRY = {
    "dataset": {"id": "stanfordnlp/imdb", "task_id": "sentiment", "revision": "e6281661"},
    "value": 0.8125,
    "date": "2026-01-31",
    "notes": "accuracy, test, 25000 examples",
}


@pytest.mark.parametrize("entry", [ENTRY, {"dataset": {"id": "imdb", "task_id": "default"}, "value": 81.25}], ids=repr)
def test_entries(entry):
    assert list(result_problems([entry])) == []


@pytest.mark.parametrize(
    "entry",
    [
        *({**ENTRY, "value": value} for value in (math.nan, math.inf, "nan", "0.8", None, True, 81.25, [0.8])),
        *({**ENTRY, "dataset": dataset} for dataset in ({"id": "data/x.csv", "task_id": "a"}, {"id": "a/b"}, "a/b", None)),
        {**ENTRY, "dataset": {"id": "a/b", "task_id": "two words"}},
        {**ENTRY, "date": "yesterday"},
        {**ENTRY, "date": 20260131},
        {**ENTRY, "notes": ["x"]},
        {**ENTRY, "source": {"name": "x"}},
        "accuracy",
    ],
    ids=repr,
)
def test_entries_that_are_none(entry):
    assert list(result_problems([entry]))


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0, 1, 0])
@pytest.mark.parametrize(
    "metric", ["accuracy", "f1_macro", "eval_accuracy", "roc_auc", "matthews_correlation", "loss", "seconds"]
)
def test_values_of_metrics(metric, value):
    assert metric_problem(metric, value) is None


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        *(("anything", value) for value in (math.nan, math.inf, "nan", "1", True, None)),
        *(("accuracy", value) for value in (1.01, 88.4, -0.1)),
        *(("f1_micro", 91), ("average_precision", 1.5), ("pearson", -1.1), ("matthews_correlation", 54.2), ("loss", -0.1)),
    ],
)
def test_values_that_are_none(metric, value):
    assert metric_problem(metric, value)


@pytest.mark.parametrize("name", ["main", "v1", "v1.0.2", "release/2026-01", "refs/pr/3", "a_b+c", "1.0-rc.1"])
def test_names_of_revisions(name):
    check_ref_name("--tag", name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            " ",
            "a b",
            "-x",
            ".x",
            "x.",
            "x/",
            "/x",
            "a//b",
            "a..b",
            "x.lock",
            "a.lock/b",
            "a/.b",
            "@",
            "a@{b",
            "HEAD",
            "~x",
            "x^",
            "x:y",
        ),
        *(
            "x?",
            "x*",
            "[x",
            "x\\y",
            "x\ny",
            "x\n",
            "x\0",
            "é",
            '"',
            "'",
            "`",
            "<b>",
            "a|b",
            "$(x)",
            "a;b",
            "a&b",
            "a#b",
            "v1%2F",
            "x" * 300,
        ),
        'v1"); import os #',
        "v1`](https://example.org)",
    ],
)
def test_names_of_no_revision(name):
    with pytest.raises(UserError, match="--tag must be a name of"):
        check_ref_name("--tag", name)


def test_ids_are_of_the_hub():
    assert hub_id_problem("someone/teacher") is None
    assert "is a path on a disk" in str(hub_id_problem("runs/teacher"))
