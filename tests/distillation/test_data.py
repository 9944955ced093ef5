"""The files that a distillation reads, and what it says about those it cannot."""

import json
import os
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import DistilBertTokenizer

from inhibidistilbert.distillation.data import NO_LABEL, Data
from inhibidistilbert.distillation.tasks import Classification
from inhibidistilbert.distillation.text_stream import open_texts
from inhibidistilbert.support.errors import UserError
from inhibidistilbert.support.text_columns import tokenize
from tests.helpers.toy_task import VOCABULARY

ROWS = [{"text": "a good film, so funny", "label": 1}, {"text": "a “dull” plot", "label": 0}]
LABELLED = {
    "reviews.csv": 'text,label\n"a good film, so funny",1\na “dull” plot,0\n',
    "reviews.tsv": "label\ttext\n1\ta good film, so funny\n0\ta “dull” plot\n",
    "reviews.json": json.dumps(ROWS),
    "reviews.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "REVIEWS.CSV": 'text,label\n"a good film, so funny",1\na “dull” plot,0\n',
    "more columns.csv": 'id,label,text\n7,1,"a good film, so funny"\n8,0,a “dull” plot\n',
    "whole floats.csv": 'text,label\n"a good film, so funny",1.0\na “dull” plot,0.0\n',
    "a pattern[1]*?.csv": 'text,label\n"a good film, so funny",1\na “dull” plot,0\n',
}


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read_labelled(paths, argument: str, text_column: str, label_column: str) -> Dataset:
    return Classification(Data(text_column=text_column, label_column=label_column)).read(paths, argument)


def read_transfer(paths, text_column: str) -> Dataset:
    return Classification(Data(text_column=text_column)).read_unlabelled(paths, "--transfer-file")


def labelled(*paths: Path, text_column: str = "text", label_column: str = "label") -> list[dict]:
    return read_labelled(paths, "--train-file", text_column, label_column).to_list()


def refusal(read, *parts: str) -> None:
    """`read()` raises a UserError of one line that says all of `parts`."""
    with pytest.raises(UserError) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# Labelled texts


@pytest.mark.parametrize("name", LABELLED)
def test_labelled_texts_are_read(tmp_path, name):
    # A neighbour that a pattern would match.
    written(tmp_path / "a pattern1xy.csv", "text,label\nnot this one,0\n")
    assert labelled(written(tmp_path / name, LABELLED[name])) == ROWS


def test_parquet_is_read(tmp_path):
    Dataset.from_list(ROWS).to_parquet(str(tmp_path / "reviews.parquet"))
    assert labelled(tmp_path / "reviews.parquet") == ROWS


def test_the_columns_may_have_other_names(tmp_path):
    path = written(tmp_path / "reviews.csv", "text,stars,sentence\nnot this,1,a good film\n")
    assert labelled(path, text_column="sentence", label_column="stars") == [{"text": "a good film", "label": 1}]


def test_files_are_joined_in_order(tmp_path):
    paths = [
        written(tmp_path / "2.jsonl", '{"text": "two", "label": 2}\n'),
        written(tmp_path / "1.csv", "text,label\none,1\n"),
    ]
    assert labelled(*paths) == [{"text": "two", "label": 2}, {"text": "one", "label": 1}]


def test_words_for_nothing_are_texts(tmp_path):
    path = written(tmp_path / "words.csv", "text,label\nNA,0\nnull,1\n5,1\n")
    assert [row["text"] for row in labelled(path)] == ["NA", "null", "5"]


def test_quotation_marks_of_a_tsv_are_part_of_the_texts(tmp_path):
    path = written(tmp_path / "sst2.tsv", 'sentence\tlabel\n"good\t1\nbad" film\t0\n"\t1\n"dull"\t0\n')
    rows = [{"text": '"good', "label": 1}, {"text": 'bad" film', "label": 0}, {"text": '"', "label": 1}]
    assert labelled(path, text_column="sentence") == [*rows, {"text": '"dull"', "label": 0}]


def test_files_agree_whichever_is_first(tmp_path):
    paths = [
        written(tmp_path / "numbers.csv", "text,label\n007,1\n1.50,1.0\n"),
        written(tmp_path / "dates.jsonl", '{"label": 0, "text": "2020-01-01"}\n'),
        written(tmp_path / "words.csv", "label,text\n1,FALSE\n"),
    ]
    rows = [[("007", 1), ("1.50", 1)], [("2020-01-01", 0)], [("FALSE", 1)]]
    for order in ((0, 1, 2), (2, 1, 0)):
        wanted = [{"text": text, "label": label} for place in order for text, label in rows[place]]
        assert labelled(*(paths[place] for place in order)) == wanted


def test_one_column_cannot_be_both(tmp_path):
    path = written(tmp_path / "a.csv", "text,label\n1,1\n")
    refusal(lambda: labelled(path, label_column="text"), "--text-column and --label-column must name different columns")


def test_a_changed_file_is_read_anew(tmp_path):
    path = tmp_path / "reviews.csv"
    for version in range(3):
        written(path, f"text,label\nversion {version},0\n")
        # Neither the size nor the time tells them apart.
        os.utime(path, (1, 1))
        assert labelled(path) == [{"text": f"version {version}", "label": 0}]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        pytest.param("a.csv", "words,label\na,1\n", ["no column 'text' (--text-column)", "words"], id="no-text-column"),
        pytest.param("a.csv", "text,stars\na,1\n", ["no column 'label' (--label-column)", "stars"], id="no-label-column"),
        pytest.param("a.txt", "a good film\n", ["no column 'label' (--label-column)"], id="plain-text"),
        pytest.param("a.csv", "", ["empty"], id="empty"),
        pytest.param("a.csv", "text,label\n", ["csv"], id="header-only"),
        pytest.param("a.json", "[]", ["json"], id="empty-list"),
        pytest.param("a.xlsx", "PK", [".csv, .tsv, .json, .jsonl, .parquet, .txt"], id="unknown-ending"),
        pytest.param("a", "text,label\na,1\n", [".csv, .tsv"], id="no-ending"),
        pytest.param("a.csv", "text,label\na,good\n", ["integer classes in 'label'", "'good'"], id="word-label"),
        pytest.param("a.csv", "text,label\na,0.5\nb,1\n", ["integer classes in 'label'", "0.5"], id="fraction-label"),
        pytest.param("a.csv", "text,label\na,\nb,1\n", ["integer classes in 'label'"], id="blank-label"),
        pytest.param("a.csv", "text,label\na,01\n", ["integer classes in 'label'", "line 2 has '01'"], id="leading-zero"),
        pytest.param("a.csv", "text,label\na,TRUE\n", ["integer classes in 'label'", "line 2 has 'TRUE'"], id="truth-label"),
        pytest.param("a.tsv", "text\tlabel\na\t1\t\n", ["line 2 has 3 fields", "header has 2"], id="trailing-tab"),
        pytest.param("a.csv", "text,label\na,-1\n", ["class index >= 0 in 'label'"], id="negative-label"),
        pytest.param("a.jsonl", '{"text": "a", "label": null}\n', ["class index >= 0 in 'label'"], id="null-label"),
        pytest.param("a.csv", "text,label\n,1\n", ["without a text in 'text'"], id="blank-text"),
        pytest.param("a.csv", 'text,label\n"  ",1\n', ["without a text in 'text'"], id="spaces-for-text"),
        pytest.param("a.jsonl", '{"text": null, "label": 1}\n', ["without a text in 'text'"], id="null-text"),
        pytest.param("a.jsonl", '{"text": ["a"], "label": 1}\n', ["texts in 'text'"], id="list-for-text"),
        pytest.param("a.csv", b"text,label\n\xff\xfe,1\n", ["read as csv", "utf-8"], id="not-utf-8"),
        pytest.param("a.csv", 'text,label\n"a,1\n', ["read as csv"], id="open-quote"),
        pytest.param("a.jsonl", '{"text": "a", "label": 1}\n{nope\n', ["read as json"], id="broken-json"),
        pytest.param("a.parquet", b"no parquet", ["read as parquet"], id="broken-parquet"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, name, content, parts):
    path = written(tmp_path / name, content)
    refusal(lambda: labelled(path), "--train-file", repr(str(path)), *parts)


@pytest.mark.parametrize("read", [labelled, lambda path: read_transfer([path], "text")], ids=["labelled", "transfer"])
def test_a_missing_file_is_named(tmp_path, read):
    for path in (tmp_path / "missing.csv", tmp_path):
        refusal(lambda path=path: read(path), f"{str(path)!r} is not a file")


# Texts for the teacher to label


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "a good film\n\n  \t\na dull plot, so dull\n\n"),
        ("a.csv", 'text,stars\na good film,1\n" ",1\n"a dull plot, so dull",0\n'),
        ("a.jsonl", '{"text": "a good film"}\n{"text": null}\n{"text": "a dull plot, so dull"}\n'),
    ],
)
def test_transfer_texts_are_read_without_blank_ones(tmp_path, name, content):
    rows = read_transfer([written(tmp_path / name, content)], "text").to_list()
    assert rows == [{"text": "a good film", "label": NO_LABEL}, {"text": "a dull plot, so dull", "label": NO_LABEL}]


def test_transfer_files_may_differ_in_form(tmp_path):
    paths = [written(tmp_path / "a.txt", "one\n"), written(tmp_path / "b.csv", "sentence\ntwo\n")]
    assert read_transfer(paths, "sentence")["text"][:] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        pytest.param("a.csv", "words\na\n", ["no column 'text'", "words"], id="no-column"),
        pytest.param("a.txt", "\n \n\n", ["holds no text"], id="blank-lines-only"),
        pytest.param("a.txt", "", ["empty"], id="empty"),
        pytest.param("a.txt", b"caf\xe9\n", ["read as text", "utf-8"], id="not-utf-8"),
        pytest.param("a.jsonl", '{"text": ["a"]}\n', ["texts in 'text'"], id="list-for-text"),
    ],
)
def test_transfer_texts_that_cannot_be_read_are_refused(tmp_path, name, content, parts):
    path = written(tmp_path / name, content)
    refusal(lambda: read_transfer([path], "text"), "--transfer-file", repr(str(path)), *parts)


# Texts as a stream


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.tsv", 'text\tlabel\n"good\t1\n007\t0\n\t1\nbad"\t0\n', ['"good', "007", "", 'bad"']),
        ("a.jsonl", '{"label": 1}\n{"text": "2020-01-01"}\n{"text": 1.50}\n', [None, "2020-01-01", "1.50"]),
        ("a.txt", "a\x0cb\u2028c\n\nd\re\r\n", ["a\x0cb\u2028c", "", "d\re"]),
    ],
)
def test_streams_hold_the_texts_as_they_stand(tmp_path, name, content, texts):
    (stream,) = open_texts([str(written(tmp_path / name, content))], "text")
    assert [row["text"] for row in stream] == texts


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.csv", "words\na\n", ["no column 'text' (--text-column)", "words"]),
        ("a.jsonl", '{"words": "a"}\n', ["no column 'text' (--text-column)", "words"]),
        ("a.csv", "text\n \n", ["holds no text in 'text'"]),
        ("a.jsonl", '{"text": ["a"]}\n', ["texts in 'text'", "line 1"]),
    ],
)
def test_streams_without_texts_are_refused(tmp_path, name, content, parts):
    path = written(tmp_path / name, content)
    refusal(lambda: open_texts([str(path)], "text"), "--text-file", repr(str(path)), *parts)


# Token ids


def test_texts_become_token_ids_cut_to_a_length():
    tokenizer = DistilBertTokenizer(vocab=VOCABULARY)
    rows = tokenize(Dataset.from_list([{"text": "a good film", "label": 1}, {"text": "bad", "label": 0}]), tokenizer, 4)
    good = [VOCABULARY[token] for token in ("[CLS]", "a", "good", "[SEP]")]
    bad = [VOCABULARY[token] for token in ("[CLS]", "bad", "[SEP]")]
    assert rows.to_list() == [
        {"label": 1, "input_ids": good, "length": 4},
        {"label": 0, "input_ids": bad, "length": 3},
    ]
