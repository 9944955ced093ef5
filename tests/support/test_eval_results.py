"""The file of an evaluation: what was written reads back, and what is of another form is named."""

import json
from pathlib import Path

import pytest

from inhibidistilbert.support.errors import UserError
from inhibidistilbert.support.eval_results import EvalResults

ROW = {
    "dataset": "stanfordnlp/imdb",
    "published": True,
    "split": "test",
    "config": "plain_text",
    "revision": "e6281661",
    "task_id": "imdb",
    "metric": "accuracy",
    "value": 0.75,
    "examples": 20,
    "interval": [0.5, 1],
    "confidence": 0.95,
    "std": 0.25,
    "seeds": [0, 1],
    "values": [0.5, 1.0],
    "fine_tuning": {"epochs": 4},
    "control": {"model": "peer", "value": 0.5, "difference": 0.25, "p_value": 0.125, "by": "hand"},
    "note": "by hand",
}
CONTENT = {"results": [ROW], "machine": {"cpu": "x"}, "date": "2026-01-31", "model": {"files": {}}, "more": 1}


def written(folder: Path, content: object) -> Path:
    (folder / "results.json").write_text(json.dumps(content))
    return folder / "results.json"


def test_every_field_reads_back_those_that_are_not_known_too(tmp_path: Path):
    results = EvalResults.read(written(tmp_path, CONTENT))
    assert results.results[0].control.p_value == 0.125
    results.write(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == CONTENT


def test_a_row_of_few_words(tmp_path: Path):
    row = {"dataset": "a", "split": "test", "metric": "f1", "value": 1, "examples": 2, "config": None, "control": None}
    (result,) = EvalResults.read(written(tmp_path, {"results": [row]})).results
    assert (result.published, result.task_id, result.control) == (True, "default", None)
    assert "config" not in result.as_json()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"value": "0.5"}, ["value", "'0.5'"]),
        ({"value": True}, ["value", "True"]),
        ({"examples": 0}, ["examples must be a whole number of 1 or more, got 0"]),
        ({"examples": 2.5}, ["examples", "2.5"]),
        ({"split": None}, ["split", "None"]),
        ({"metric": " "}, ["metric must be text, got ' '"]),
        ({"published": "yes"}, ["published", "'yes'"]),
        ({"std": -1}, ["std must be 0 or more, got -1"]),
        ({"values": [1, "2"]}, ["values", "'2'"]),
        ({"control": 0.5}, ["must be an object, got 0.5"]),
        ({"control": {"value": "0.5"}}, ["value", "'0.5'"]),
    ],
    ids=str,
)
def test_the_file_the_row_the_field_and_its_value_are_named(tmp_path: Path, fields: dict, words: list[str]):
    file = written(tmp_path, {"results": [ROW, ROW | fields]})
    with pytest.raises(UserError) as caught:
        EvalResults.read(file)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"'{file}' is not of its form: results[1]: ")
    for part in words:
        assert part in message


@pytest.mark.parametrize("content", [{}, {"results": {}}, {"results": ["x"]}, {"results": [{"dataset": "x"}]}], ids=str)
def test_results_that_are_no_rows(tmp_path: Path, content: dict):
    with pytest.raises(UserError, match="is not of its form: results"):
        EvalResults.read(written(tmp_path, content))
