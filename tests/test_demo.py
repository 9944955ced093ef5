"""The demo: both ways of loading agree, and it says so; it fails when they do not."""

import subprocess
import sys

import pytest

from inhibidistilbert import demo
from inhibidistilbert.demo import Answer, largest_difference
from inhibidistilbert.support.clean_process import BLOCK_PACKAGE
from tests.helpers.tiny_sentiment import write_tiny_checkpoint

HERE = [Answer("POSITIVE", 0.9), Answer("NEGATIVE", 0.7)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), max_position_embeddings=64)


def test_demo_compares_with_a_process_that_cannot_import_the_package(checkpoint, capsys):
    assert demo.main(checkpoint) == 0
    output = capsys.readouterr().out
    assert "Both ways agree" in output
    for sentence in demo.SENTENCES:
        (row,) = [line for line in output.splitlines() if sentence in line]
        assert row.count("POSITIVE") + row.count("NEGATIVE") == 2


@pytest.mark.parametrize("program", ["raise OSError", pytest.param(demo.CLASSIFY, marks=pytest.mark.slow)])
def test_demo_reports_a_folder_that_does_not_load(tmp_path, monkeypatch, program):
    monkeypatch.setattr(demo, "CLASSIFY", program)
    with pytest.raises(RuntimeError, match="does not load without this package"):
        demo.predict_elsewhere(tmp_path, ["a film"])


def test_the_child_process_cannot_import_the_package():
    program = BLOCK_PACKAGE + "import inhibidistilbert"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert child.returncode == 1
    assert "ModuleNotFoundError: No module named 'inhibidistilbert'" in child.stderr


@pytest.mark.parametrize(
    ("elsewhere", "expected"),
    [
        pytest.param(HERE, 0.0, id="equal"),
        pytest.param([Answer("POSITIVE", 0.9), Answer("NEGATIVE", 0.75)], 0.05, id="score"),
        pytest.param([Answer("POSITIVE", 0.9), Answer("POSITIVE", 0.7)], float("inf"), id="label"),
        pytest.param(HERE[:1], float("inf"), id="one-missing"),
    ],
)
def test_largest_difference(elsewhere, expected):
    assert largest_difference(HERE, elsewhere) == pytest.approx(expected)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda answer: Answer(answer.label, answer.score + 2e-5), id="score"),
        pytest.param(lambda answer: Answer(answer.label, float("nan")), id="nan"),
        pytest.param(lambda answer: Answer("SOMETHING", answer.score), id="label"),
    ],
)
def test_demo_fails_when_the_answers_differ(checkpoint, capsys, monkeypatch, change):
    def wrong(folder, sentences):
        answers = demo.predict_here(demo.TextClassifier.from_folder(folder), sentences)
        return [*answers[:-1], change(answers[-1])]

    monkeypatch.setattr(demo, "predict_elsewhere", wrong)
    assert demo.main(checkpoint) == 1
    assert "DISAGREE" in capsys.readouterr().out
