"""`predict --data`: many files into a folder."""

import json
import sys

import pytest

from inhibidistilbert import cli, labelling
from inhibidistilbert.prediction import TextClassifier
from tests.helpers.glue_files import write
from tests.helpers.tiny_sentiment import write_tiny_checkpoint

TEXTS = [["good", "a dull plot"], ["bad film", "funny"], ["the film is good"]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def run(monkeypatch, capsys, checkpoint, tmp_path):
    (tmp_path / "in").mkdir()
    for number, texts in enumerate(TEXTS):
        write(tmp_path / "in" / f"{number}.parquet", [{"text": text} for text in texts])

    def run(*more):
        given = ["--data", tmp_path / "in", "--output", tmp_path / "out", "--model", checkpoint, *more]
        monkeypatch.setattr(sys, "argv", ["inhibidistilbert", "predict", *map(str, given)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return exit_.value.code or 0, capsys.readouterr().err

    return run


def labels(folder):
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in sorted(folder.glob("*.jsonl"))]


def test_labels_are_those_of_the_classifier(run, checkpoint, tmp_path):
    assert run("--data", tmp_path / "in" / "*.parquet")[0] == 0
    classifier = TextClassifier.from_folder(checkpoint)
    expected = [[(p.text, p.label) for p in classifier.predict(texts)] for texts in TEXTS]
    assert [[(row["text"], row["label"]) for row in rows] for rows in labels(tmp_path / "out")] == expected


def test_finished_files_are_kept_by_content(run, tmp_path):
    assert "0 of them kept" in run()[1]
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.jsonl")}
    assert "5 texts labelled in 3 files, 3 of them kept" in run()[1]
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.jsonl")}
    write(tmp_path / "in" / "1.parquet", [{"text": "dull"}])
    (tmp_path / "out" / "2.parquet.jsonl").write_text("spoilt")
    assert "4 texts labelled in 3 files, 1 of them kept" in run()[1]
    assert [len(rows) for rows in labels(tmp_path / "out")] == [2, 1, 1]
    assert "0 of them kept" in run("--stride", 2)[1]


def test_what_is_cut_off_is_done_again(run, tmp_path, monkeypatch):
    """The second file ends the run midway: no half file stays, and nothing is lost or there twice."""
    texts = labelling._texts

    def broken(file, *arguments):
        yield from texts(file, *arguments)
        if file.name == "1.parquet":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(labelling, "_texts", broken)
        assert run()[0] != 0
    assert [file.name for file in (tmp_path / "out").iterdir() if file.is_file()] == ["0.parquet.jsonl"]
    (tmp_path / "out" / ".1.parquet-left.jsonl").write_text("half")
    assert "5 texts labelled in 3 files, 1 of them kept" in run()[1]
    assert [len(rows) for rows in labels(tmp_path / "out")] == [2, 2, 1]


def test_bad_rows_are_reported(run, tmp_path):
    (tmp_path / "in" / "3.jsonl").write_text('{"text": "good"}\n{"text": \n{"text": null}\n{"text": "bad"}\n')
    code, err = run()
    assert (code, "rows without a label: 2" in err) == (0, True)
    bad = [json.loads(line) for line in (tmp_path / "out" / "bad-rows" / "3.jsonl.jsonl").read_text().splitlines()]
    assert [row["row"] for row in bad] == ["line 2", "line 3"]
    assert [len(rows) for rows in labels(tmp_path / "out")] == [2, 2, 1, 2]


def test_a_file_that_cannot_be_read_on_does_not_end_the_run(run, tmp_path):
    (tmp_path / "in" / "0.csv").write_text("text,stars\ngood,1\nbad\n")
    code, err = run()
    assert (code, "0.csv' has no labels: line 3 has 1 field" in err) == (2, True)
    assert [len(rows) for rows in labels(tmp_path / "out")] == [2, 2, 1]


def test_a_column_missing_in_the_third_file(run, tmp_path):
    write(tmp_path / "in" / "2.parquet", [{"review": "good"}])
    code, err = run()
    assert (code, len(err.splitlines())) == (2, 1)
    assert "2.parquet' has no column 'text' (--text-column); it has review" in err
    assert not (tmp_path / "out").exists()


def test_bad_arguments(run, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("")
    for more, told in (
        (["--data", tmp_path / "none"], "finds no file that ends in one of"),
        (["--data", tmp_path / "empty"], "no text to label, the files found (1) hold no rows"),
        (["--output", tmp_path / "file"], "cannot be written to"),
        (["--file", tmp_path / "file"], "--data needs --output DIR"),
    ):
        code, err = run(*more)
        assert (code, len(err.splitlines())) == (2, 1)
        assert told in err
