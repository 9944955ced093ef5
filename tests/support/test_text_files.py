"""Local files of texts, by their ending."""

import datetime
import gzip
import json
import os

import datasets
import pyarrow as pa
import pytest
from datasets import Dataset, List, Value
from pyarrow.parquet import write_table

from inhibidistilbert.support.errors import UserError
from inhibidistilbert.support.text_files import Declared, load_file, stream_file

TEXT, CLASS = Declared(Value("string"), "texts", "--text-column"), Declared(Value("int64"), "classes")
NUMBER, WORDS = Declared(Value("float64"), "numbers"), Declared(List(Value("string")), "lists of words")
# The time in its header is fixed: parallel test processes must collect the same tests.
GZIPPED = gzip.compress(b"text\na\n", mtime=0)
ROWS = [{"text": "a film, so “funny”", "label": 1}, {"text": "null", "label": 0}]
FILES = {
    "a.csv": 'text,label\n"a film, so “funny”",1\nnull,0\n',
    "a.TSV": "text\tlabel\na film, so “funny”\t1\nnull\t0\n",
    "a.json": json.dumps(ROWS),
    "a[1]*.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "lines.json": "".join(json.dumps(row) + "\n\n" for row in ROWS),
    "side by side.json": "".join(json.dumps(row) for row in ROWS),
    "over lines.json": "".join(json.dumps(row, indent=1) for row in ROWS),
    "other order.csv": 'label,"",text,,x\n1,7,"a film, so “funny”",,\n0,,null,,\n',
}
# What some reader takes for a number, a date, a truth, or for nothing.
LOOKS = [
    "007",
    "1.50",
    "1e5",
    "-0",
    "FALSE",
    "true",
    "NA",
    "null",
    "NaN",
    "None",
    "2020-01-01",
    "12:30",
    "  b  ",
    " ",
    "'c'",
]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder))
    return folder


@pytest.fixture
def read(tmp_path):
    """`read(name, content, column=…)`: the rows of such a file. A stream has the same, or refuses them by the same words."""

    def read(name: str, content: str | bytes | pa.Table | None, **columns: Declared) -> list[dict]:
        path = tmp_path / name
        if isinstance(content, pa.Table):
            write_table(content, path)
        elif content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        outcomes = []
        for function in (load_file, lambda *arguments: list(stream_file(*arguments))):
            try:
                outcomes.append(list(function(path, "--data", columns or {"text": TEXT})))
            except UserError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]
        if isinstance(outcomes[0], str):
            raise UserError(outcomes[0])
        return outcomes[0]

    return read


def texts(rows: list[dict]) -> list[str]:
    return [row["text"] for row in rows]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "byte-order-mark"])
@pytest.mark.parametrize("name", FILES)
def test_rows_of_a_file(read, name, mark):
    assert read(name, mark + FILES[name].encode(), text=TEXT, label=CLASS) == ROWS


def test_parquet(tmp_path):
    Dataset.from_list(ROWS).to_parquet(str(tmp_path / "a.parquet"))
    assert load_file(tmp_path / "a.parquet", "--data", {"text": TEXT, "label": CLASS}).to_list() == ROWS


# A text is what stands in the file.


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text\n" + "".join(f"{text}\n" for text in LOOKS)),
        ("quoted.csv", "text\n" + "".join(f'"{text}"\n' for text in LOOKS)),
        ("a.tsv", "text\n" + "".join(f"{text}\n" for text in LOOKS)),
        ("a.txt", "".join(f"{text}\n" for text in LOOKS)),
        ("a.json", json.dumps([{"text": text} for text in LOOKS])),
        ("a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in LOOKS)),
        ("a.parquet", pa.table({"text": LOOKS})),
    ],
)
def test_no_text_is_taken_for_something_else(read, name, content):
    assert texts(read(name, content)) == LOOKS


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_word_behind_many_numbers(read, name):
    numbers = [str(number) for number in range(10_000)]
    lines = [*numbers, '"word"'] if name == "a.csv" else [f'{{"text": {text}}}' for text in [*numbers, '"word"']]
    assert texts(read(name, "text\n" * (name == "a.csv") + "\n".join(lines))) == [*numbers, "word"]


def test_a_number_of_json_is_the_text_it_is_written_as(read):
    written = ["1.50", "1e400", "-0", "12345678901234567890123", "1E+2"]
    assert texts(read("a.jsonl", "".join(f'{{"text": {number}}}\n' for number in written))) == written
    assert read("words.jsonl", '{"text": ["a", 1.50, "2020-01-01"]}', text=WORDS) == [{"text": ["a", "1.50", "2020-01-01"]}]


@pytest.mark.parametrize("value", ["true", "{}", "[1]", "NaN", '"\\ud800"'])
def test_a_value_of_json_that_is_no_text_is_refused(read, value):
    with pytest.raises(UserError, match=r"must hold texts in 'text', but line 2 has .*, which is not a text"):
        read("a.jsonl", f'{{"text": "a"}}\n{{"text": {value}}}\n')


def test_what_a_row_of_json_lacks_is_none(read):
    content = '{"label": 1}\n{"text": "a", "label": 2, "more": {"text": 3}}\n{"text": null, "label": 0}\n'
    rows = read("a.jsonl", content, text=TEXT, label=CLASS)
    assert rows == [{"text": None, "label": 1}, {"text": "a", "label": 2}, {"text": None, "label": 0}]


def test_a_column_that_may_be_missing(read):
    for name, content in (("a.csv", "text\na\n"), ("a.jsonl", '{"text": "a"}'), ("a.parquet", pa.table({"text": ["a"]}))):
        assert read(name, content, text=TEXT, label=Declared(Value("int64"), "classes", required=False)) == [
            {"text": "a", "label": None}
        ]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["é", "1"]).dictionary_encode(),
        pa.array(["é", "1"], pa.large_string()),
        pa.array(["é", "1"], pa.string_view()),
        pa.array(["é".encode(), b"1"], pa.large_binary()),
    ],
    ids=lambda column: str(column.type)[:12],
)
def test_texts_of_parquet(read, column):
    assert texts(read("a.parquet", pa.table({"text": column, "more": [1, 2]}))) == ["é", "1"]


@pytest.mark.parametrize("value", [datetime.datetime(2020, 1, 1), datetime.date(2020, 1, 1), 1.5, True, b"\xff", ["a"]])
def test_columns_of_parquet_that_are_no_texts_are_refused(read, value):
    with pytest.raises(UserError, match=r"must hold texts in 'text', but row 0 has .*, which is not a text"):
        read("a.parquet", pa.table({"text": [value]}))


# A line of TSV and of plain text is a row.


def test_tsv_has_no_quoting(read):
    texts = ['"Good', '"', '"a" b', 'c"', '""', '"d', 'e"']
    rows = [{"text": text, "label": label} for label, text in enumerate(texts)]
    content = "label\ttext\n" + "".join(f"{row['label']}\t{row['text']}\n" for row in rows)
    assert read("a.tsv", content, text=TEXT, label=CLASS) == rows


LINES = ["a\x0cb\x0b", "\u2028c\x85d\u2029", "e\rf", "\x1c\x1d\x1e\x00", "\ufeff", "", "last\r"]


@pytest.mark.parametrize(("name", "header"), [("a.txt", ""), ("a.tsv", "text\n")])
def test_a_line_ends_at_a_line_feed_alone(read, name, header):
    assert texts(read(name, header + "\n".join(LINES))) == LINES
    assert texts(read(name, header + "a\r\nb\nc\r\r\n")) == ["a", "b", "c\r"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize(("row", "count"), [("a", "1 field"), ("a,1,", "3 fields"), ("a,1,2,3", "4 fields")])
def test_a_row_of_another_length_is_named(read, name, row, count):
    content = f"text,label\nb,0\n\n{row}\n".replace(",", "\t" if name == "a.tsv" else ",")
    with pytest.raises(UserError, match=rf"'.*{name}' could not be .*: line 4 has {count}, but the header has 2 fields\.$"):
        read(name, content, text=TEXT, label=CLASS)


def test_quoting_of_csv(read):
    content = 'text,label\r\n"a ""b"",\r\nc\n\rd",1\r\n"e\n\n",2\ne "f" g,3\n\nh\0i,4\n"",5\n,6\n'
    rows = read("a.csv", content, text=TEXT, label=CLASS)
    assert texts(rows) == ['a "b",\r\nc\n\rd', "e\n\n", 'e "f" g', "h\0i", "", ""]
    assert [row["label"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_a_long_field(read):
    assert texts(read("a.csv", f'text\n"{"x," * 200_000}"\n')) == ["x," * 200_000]


# Labels


@pytest.mark.parametrize(
    ("written", "label"),
    [("0", 0), ("-1", -1), ("1.0", 1), (" 2 ", 2), ("9007199254740993", 2**53 + 1), ("9007199254740993.0", 2**53 + 1)],
)
def test_integers(read, written, label):
    assert read("a.csv", f"label\n{written}\n", label=CLASS) == [{"label": label}]
    assert read("a.jsonl", f'{{"label": {written}}}\n', label=CLASS) == [{"label": label}]


@pytest.mark.parametrize("written", ["01", "1.5", "TRUE", "1e0", "+1", "", "good", "nan", "9223372036854775808", "9" * 5000])
def test_what_is_no_integer_is_refused(read, written):
    for name, content in (("a.csv", f'label\n0\n"{written}"\n'), ("a.jsonl", f'{{"label": 0}}\n{{"label": "{written}"}}')):
        line = content.count("\n") + (name == "a.jsonl")
        message = f"must hold classes in 'label', but line {line} has .*, which is not an integer such as 0 or 12"
        with pytest.raises(UserError, match=message):
            read(name, content, label=CLASS)


@pytest.mark.parametrize("value", ["true", "1.5", "1e0", "[1]", "{}", "NaN"])
def test_a_value_of_json_that_is_no_integer_is_refused(read, value):
    with pytest.raises(UserError, match=r"must hold classes in 'label', but line 1 has .*, which is not an integer"):
        read("a.jsonl", f'{{"label": {value}}}', label=CLASS)


def test_integers_of_parquet(read):
    for column in (pa.array([1], pa.uint8()), pa.array([1.0]), pa.array(["1"])):
        assert read("a.parquet", pa.table({"label": column}), label=CLASS) == [{"label": 1}]
    for value in (1.5, True, "01", 1e300, datetime.date(2020, 1, 1)):
        with pytest.raises(UserError, match=r"row 0 has .*, which is not an integer"):
            read("a.parquet", pa.table({"label": [value]}), label=CLASS)


@pytest.mark.parametrize(("written", "label"), [("0.5", 0.5), ("-1", -1), ("1e-3", 0.001), (".5", 0.5), ("007", 7)])
def test_numbers(read, written, label):
    assert read("a.csv", f"label\n{written}\n", label=NUMBER) == [{"label": label}]


@pytest.mark.parametrize("written", ["inf", "1e400", "1_000", "TRUE", "", "٣"])
def test_what_is_no_number_is_refused(read, written):
    with pytest.raises(UserError, match=r"must hold numbers in 'label', but line 2 has .*, which is not a number"):
        read("a.csv", f'label\n"{written}"\n', label=NUMBER)


# Refusals


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "text,label\n", "is empty: it holds no rows"),
        ("a.tsv", "text\tlabel\r\n", "is empty: it holds no rows"),
        ("a.json", "[]", "is empty: it holds no rows"),
        ("a.xlsx", "PK", "must end in one of .csv, .tsv, .json, .jsonl, .parquet, .txt"),
        ("a.csv.gz", GZIPPED, "must end in one of .csv"),
        ("a.csv", GZIPPED, "could not be read as csv: byte 2 of line 1 is 0x8b, which is not utf-8"),
        ("a.json", "{nope", "could not be read as json: line 1, character 2"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": nope}\n', "could not be read as json: line 3, character 10"),
        ("a.json", '[{"text": "a"},\n {"text": "b"', "could not be read as json: line 2"),
        ("a.json", '[{"text": "a"}, 5]', "could not be read as json: row 1 must be an object"),
        ("a.jsonl", '{"text": "a", "text": "b"}', "could not be read as json: line 1: 'text' stands twice"),
        ("a.jsonl", '{"text": ' + "[" * 100_000, "could not be read as json: line 1"),
        ("a.json", '{"data": [{"text": "a"}]}', "has no column 'text' (--text-column); it has data"),
        ("a.jsonl", '{"a": 1}\n{"b": 2}', "has no column 'text' (--text-column); it has a, b"),
        ("a.csv", "sentence;label\na;1\n", "has no column 'text' (--text-column); it has sentence;label"),
        ("a.tsv", '"text"\na\n', "has no column 'text' (--text-column); it has \"text\""),
        ("a.csv", '"no\nheader",1\n', "has no column 'text' (--text-column); it has 'no\\nheader', 1"),
        ("a.csv", "label, text,\n1,a,\n", "has no column 'text' (--text-column); it has label, ' text', ''"),
        ("a.csv", "text,x,text\na,b,c\n", "has more than one column 'text' (--text-column); it has text, x, text"),
        ("a.parquet", pa.table([["a"], ["b"]], ["text", "text"]), "has more than one column 'text'"),
        ("a.parquet", "PAR1", "could not be read as parquet"),
        ("a.csv", 'text,label\na,1\n"b,1\nc,1\n', "could not be read as csv: line 3: unexpected end of data"),
        ("a.csv", 'text,label\n""\n', "could not be read as csv: line 2 has 1 field, but the header has 2 fields"),
        ("a.csv", 'text,label\n"a"b,1\n', "could not be read as csv: line 2: ',' expected after '\"'"),
        ("a.csv", "text,label\ra,1\r", "could not be read as csv: line 1: new-line character seen in unquoted field."),
        ("a.txt", b"a\ncaf\xe9\n", "could not be read as text: byte 4 of line 2 is 0xe9, which is not utf-8"),
        ("a.tsv", b"text\ncaf\xe9\n", "could not be read as tsv: byte 4 of line 2 is 0xe9, which is not utf-8"),
        ("a.csv", b'text\n"a\ncaf\xe9"\n', "could not be read as csv: byte 4 of line 3 is 0xe9, which is not utf-8"),
        ("a.jsonl", b'{"text": "a"}\n\xe9', "could not be read as json: byte 1 of line 2 is 0xe9, which is not utf-8"),
        ("a.csv", "text\na\n".encode("utf-16"), "could not be read as csv: byte 1 of line 1 is 0xff, which is not utf-8"),
        ("a.csv", None, "is not a file"),
    ],
)
def test_what_cannot_be_read_is_one_error(read, tmp_path, name, content, part):
    with pytest.raises(UserError) as caught:
        read(name, content)
    message = str(caught.value)
    assert message.startswith(f"--data: {str(tmp_path / name)!r} ")
    assert part in message
    assert "\n" not in message


def test_a_stream_is_damaged_where_it_is(tmp_path):
    file = tmp_path / "a.tsv"
    file.write_text("text\tlabel\n" + "a\t1\n" * 5000 + "b\n")
    stream = stream_file(file, "--text-file", {"text": TEXT})
    found: list[dict] = []
    with pytest.raises(UserError, match=r"--text-file: '.*a\.tsv' could not be read as tsv: line 5002 has 1 field"):
        found.extend(stream)
    assert found == [{"text": "a"}] * 5000


def test_a_file_changed_in_place_is_read_anew(tmp_path, cache):
    file, columns = tmp_path / "a.csv", {"text": TEXT}
    for text in "abab":
        file.write_text(f"text\n{text}\n")
        # Neither the size nor the time tells them apart.
        os.utime(file, (1, 1))
        assert load_file(file, "--data", columns).to_list() == [{"text": text}]
    assert len(list(cache.rglob("*.arrow"))) == 2
    as_classes = {"text": Declared(Value("int64"), "classes")}
    with pytest.raises(UserError, match="must hold classes in 'text'"):
        load_file(file, "--data", as_classes)
    assert len(list(cache.rglob("*.arrow"))) == 2


def test_a_file_that_changes_meanwhile_is_not_kept(tmp_path, cache, monkeypatch):
    from inhibidistilbert.support import text_files

    file, whole = tmp_path / "a.csv", text_files.read_rows
    file.write_text("text\na\n")

    def read_rows(path, *columns):
        file.write_text("text\nb\n")
        return whole(path, *columns)

    monkeypatch.setattr(text_files, "read_rows", read_rows)
    with pytest.raises(UserError, match="has changed while it was read: give the same command again"):
        load_file(file, "--data", {"text": TEXT})
    assert not list(cache.rglob("*.arrow"))


def test_a_cache_that_cannot_be_written_is_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "/proc/none")
    (tmp_path / "a.csv").write_text("text\na\n")
    with pytest.raises(UserError, match=r"--data: '.*a\.csv' cannot be kept in the cache of datasets: .*/proc/none"):
        load_file(tmp_path / "a.csv", "--data", {"text": TEXT})
