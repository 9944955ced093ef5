"""Columns under standard names, of files and of data sets that others made."""

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from inhibidistilbert.support.errors import UserError
from inhibidistilbert.support.text_columns import Column, read_columns, take_columns, text_column

GRADE = Column("stars", "label", "--label-column", Value("int64"), "classes", "a label", lambda x: x is not None and x >= 0)
LOOSE = Column(*(getattr(GRADE, name) for name in Column.__match_args__[:7]), required=False, optional=True)


def data(**columns) -> Dataset:
    return Dataset.from_dict(columns)


def test_columns_of_other_names_and_types():
    features = Features({"review": Value("large_string"), "stars": ClassLabel(2), "more": Value("int64")})
    rows = Dataset.from_dict({"review": ["a", "b"], "stars": [1, 0], "more": [5, 6]}, features=features)
    taken = take_columns(rows, "DATA", [text_column("review"), GRADE])
    assert taken.to_list() == [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    assert taken.features == Features({"text": Value("string"), "label": Value("int64")})


@pytest.mark.parametrize("rows", [{"text": ["a", "b"]}, {"text": ["a", "b"], "stars": [-1, None]}], ids=["none", "no-value"])
def test_what_may_be_missing_is_left_out(rows):
    assert take_columns(data(**rows), "DATA", [text_column("text"), LOOSE]).to_list() == [{"text": "a"}, {"text": "b"}]


def test_a_plain_text_file_has_one_column_whatever_its_name(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    rows = read_columns([tmp_path / "a.txt"], "--data", [text_column("review"), LOOSE])
    assert rows.to_list() == [{"text": "one"}, {"text": "two"}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"text": []}, "DATA is empty"),
        ({"text": ["a"]}, r"DATA has no column 'stars' \(--label-column\); it has text\."),
        ({"text": ["a", " "], "stars": [1, 1]}, "DATA has rows without a text in 'text', the first is row 1"),
        ({"text": ["a", "b"], "stars": [1, -1]}, "DATA has rows without a label in 'stars', the first is row 1"),
        ({"text": ["a"], "stars": ["many"]}, "DATA must hold classes in 'stars': "),
    ],
)
def test_what_does_not_fit_is_named(rows, message):
    with pytest.raises(UserError, match=message):
        take_columns(data(**rows), "DATA", [text_column("text"), GRADE])
