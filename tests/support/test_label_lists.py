"""Lists of labels as files hold them: three forms, and what is refused."""

import json

import pytest
from datasets import Dataset

from inhibidistilbert.support.errors import UserError
from inhibidistilbert.support.label_lists import multi_hot, names_in, read_label_lists

NAMES = ["funny", "dark", "very long"]
TABLE = [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


def written(folder, name, rows):
    """A file with these values in the column `label`; those of a CSV or TSV file as they stand there."""
    path = folder / name
    if path.suffix == ".parquet":
        Dataset.from_list([{"label": row, "text": "a film"} for row in rows]).to_parquet(str(path))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"label": row}) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps([{"label": row} for row in rows]))
    else:
        between = "," if path.suffix == ".csv" else "\t"
        path.write_text(
            "".join(f"{label}{between}{text}\n" for label, text in [("label", "text"), *((row, "x") for row in rows)])
        )
    return path


def table(path, names=NAMES):
    return multi_hot(read_label_lists(path, "--data", "label", "--label-column"), names, f"--data {path.name}")


LISTS = {
    "names": [["funny", "very long"], [], ["dark"]],
    "numbers": [[0, 2], [], [1]],
    "flags": TABLE,
    "truths": [[bool(flag) for flag in row] for row in TABLE],
    "fractions": [[float(flag) for flag in row] for row in TABLE],
}
CELLS = {
    "names": ["funny|very long", "", "dark"],
    "numbers": ["0|2", "", "1"],
    "flags": ["1|0|1", "0|0|0", "0|1|0"],
    "truths": ["true|False|true", "false|false|false", "false | true | false"],
}


@pytest.mark.parametrize("ending", ["json", "jsonl", "parquet"])
@pytest.mark.parametrize("form", LISTS)
def test_lists_are_read(tmp_path, form, ending):
    assert table(written(tmp_path, f"a.{ending}", LISTS[form])) == TABLE


@pytest.mark.parametrize("ending", ["csv", "tsv"])
@pytest.mark.parametrize("form", CELLS)
def test_cells_are_read(tmp_path, form, ending):
    assert table(written(tmp_path, f"a.{ending}", CELLS[form])) == TABLE


@pytest.mark.parametrize(
    ("rows", "names", "parts"),
    [
        ([["funny"], ["sad"]], NAMES, ["row 1 holds ['sad']", "the labels are funny, dark, very long"]),
        ([["funny", "funny"]], NAMES, ["row 0 holds ['funny', 'funny']"]),
        ([[0], [3]], NAMES, ["row 1 holds ['3']"]),
        ([[0], [-1]], NAMES, ["row 1 holds ['-1']"]),
        ([[0, 2], [0, 0]], NAMES, ["row 1 holds ['0', '0']"]),
        ([[1, 0, 1], [1, 0]], NAMES, ["row 1 holds ['1', '0']"] ),
        ([[0.5, 1.0, 0.0]], NAMES, ["row 0 holds ['0.5', '1.0', '0.0']"]),
        ([[1, 0], [0, 1]], ["a", "b"], ["can be read in two ways", "each of a, b", "true and false"]),
        ([[0], [0]], ["a"], ["can be read in two ways"]),
        ([["1"], ["2"]], ["1", "2", "3"], ["can be read in two ways"]),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit_the_labels(tmp_path, rows, names, parts):
    with pytest.raises(UserError) as caught:
        table(written(tmp_path, "a.jsonl", rows), names)
    for part in ["--data a.jsonl", *parts]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "shown"),
    [
        ([[0], None], "row 1 holds None"),
        ([{"a": 1}], "line 1 has {'a': '1'}, which is not a list of labels"),
        ([["a", None]], "line 1 has ['a', None]"),
    ],
)
def test_what_is_no_list(tmp_path, rows, shown):
    path = written(tmp_path, "a.jsonl", rows)
    with pytest.raises(UserError) as caught:
        read_label_lists(path, "--data", "label", "--label-column", optional=True)
    for part in (f"--data: {str(path)!r} must hold lists of labels", "in 'label'", shown):
        assert part in str(caught.value)


def test_labels_that_are_missing_altogether(tmp_path):
    nothing = written(tmp_path, "a.jsonl", [None, None])
    assert read_label_lists(nothing, "--data", "label", "--label-column", optional=True) is None
    assert read_label_lists(nothing, "--data", "tags", "--label-column", optional=True) is None
    with pytest.raises(UserError, match=r"no column 'tags' \(--label-column\); it has label"):
        read_label_lists(nothing, "--data", "tags", "--label-column")


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ([["b", "a"], [], ["c"]], ["a", "b", "c"]),
        ([["0", "4"], []], [f"LABEL_{place}" for place in range(5)]),
        ([["1", "0", "1"], ["0", "0", "0"]], ["LABEL_0", "LABEL_1", "LABEL_2"]),
        ([["true", "false"]], ["LABEL_0", "LABEL_1"]),
    ],
)
def test_names_of_labels_that_only_a_file_tells(rows, names):
    assert names_in(rows, "split") == names


@pytest.mark.parametrize(
    ("rows", "message"),
    [([[], []], "no label at all"), ([["a"], ["1"]], "mixes"), ([["0"], ["1"]], "two ways"), ([["0", "0"], ["1"]], "mixes")],
)
def test_names_that_a_file_does_not_tell(rows, message):
    with pytest.raises(UserError, match=f"split .*{message}"):
        names_in(rows, "split")
