"""Local files of texts, by their ending."""

import json
import os

import pytest
from datasets import Dataset

from inhibidistilbert import text_files
from inhibidistilbert.errors import UserError
from inhibidistilbert.text_files import load_file, stream_file

ROWS = [{"text": "a film, so “funny”", "label": 1}, {"text": "null", "label": 0}]
FILES = {
    "a.csv": 'text,label\n"a film, so “funny”",1\nnull,0\n',
    "a.TSV": "text\tlabel\na film, so “funny”\t1\nnull\t0\n",
    "a.json": json.dumps(ROWS),
    "a[1]*.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
}


@pytest.mark.parametrize("name", FILES)
def test_rows_of_a_file(tmp_path, name):
    (tmp_path / name).write_text(FILES[name])
    assert load_file(tmp_path / name, "--data").to_list() == ROWS


def test_parquet(tmp_path):
    Dataset.from_list(ROWS).to_parquet(str(tmp_path / "a.parquet"))
    assert load_file(tmp_path / "a.parquet", "--data").to_list() == ROWS


def test_lines_of_plain_text(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo, three\n")
    assert load_file(tmp_path / "a.txt", "--data").to_list() == [{"text": "one"}, {"text": "two, three"}]


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "text,label\n", "is empty: it holds no rows"),
        ("a.xlsx", "PK", "must end in one of .csv, .tsv, .json, .jsonl, .parquet, .txt"),
        ("a.json", "{nope", "could not be read as json"),
        ("a.csv", None, "is not a file"),
    ],
)
def test_what_cannot_be_read_is_one_error(tmp_path, name, content, part):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        load_file(tmp_path / name, "--data")
    message = str(caught.value)
    assert message.startswith(f"--data: {str(tmp_path / name)!r} ")
    assert part in message
    assert "\n" not in message


def test_a_stream_without_rows_is_refused_too(tmp_path):
    file = tmp_path / "header.csv"
    file.write_text("text,label\n")
    with pytest.raises(UserError, match=r"--text-file: '.*header\.csv' is empty: it holds no rows"):
        stream_file(file, "--text-file")


def test_other_content_of_the_same_size_and_time_is_read(tmp_path):
    file = tmp_path / "a.csv"
    for text in ("one", "two"):
        file.write_text(f"text\n{text}\n")
        os.utime(file, (1e9, 1e9))
        assert load_file(file, "--data").to_list() == [{"text": text}]


def test_a_file_that_changes_while_it_is_read_is_refused_and_not_kept(tmp_path, monkeypatch):
    file, load = tmp_path / "a.csv", text_files.load_dataset
    file.write_text("text\none\n")

    def change_and_load(*args, **kwargs):
        file.write_text("text\ntwo\n")
        os.utime(file, (1e9, 1e9))
        return load(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(text_files, "load_dataset", change_and_load)
        with pytest.raises(UserError, match=r"--data: '.*a\.csv' has changed while it was read"):
            load_file(file, "--data")
    file.write_text("text\none\n")
    os.utime(file, (1e9, 1e9))
    assert load_file(file, "--data").to_list() == [{"text": "one"}]
