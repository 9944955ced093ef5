"""`inhibidistilbert predict` and the class behind it, on a tiny random model with 16 positions."""

import csv
import io
import json
import os
import pty
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from inhibidistilbert import InhibiDistilBertForMaskedLM, InhibiDistilBertForTokenClassification, cli, prediction
from inhibidistilbert.commands import predict as command
from inhibidistilbert.prediction import TextClassifier, default_checkpoint
from inhibidistilbert.support.errors import UserError
from tests.helpers.glue_files import write
from tests.helpers.tiny_sentiment import WORDS, write_tiny_checkpoint

SHORT_TEXTS = [
    "good",
    "the film is not very good",
    "bad",
    "a dull plot and a bad film",
    "funny",
    "the plot was funny but dull",
]
LONG_TEXT = " ".join(WORDS * 3)  # 42 words, 44 tokens with [CLS] and [SEP]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def copy(tmp_path):
    """A checkpoint that a test may damage."""
    return write_tiny_checkpoint(tmp_path / "copy")


@dataclass
class Run:
    code: int
    out: str
    err: str

    @property
    def records(self):
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `inhibidistilbert predict` in this process with the given arguments and standard input."""

    def run(*arguments, stdin: bytes | None = None) -> Run:
        stream = io.TextIOWrapper(io.BytesIO(stdin or b""))
        if stdin is None:
            stream.isatty = lambda: True
        monkeypatch.setattr(sys, "stdin", stream)
        monkeypatch.setattr(sys, "argv", ["inhibidistilbert", "predict", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return Run(exit_.value.code or 0, *capsys.readouterr())

    return run


def assert_refused(result: Run, *parts: str):
    """Exit code 2, nothing on stdout, one line on stderr that says all of `parts`."""
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert len(result.err.splitlines()) == 1
    for part in parts:
        assert part in result.err


def token_ids(classifier, text):
    return classifier.tokenizer(text)["input_ids"]


@torch.inference_mode()
def probabilities(classifier, ids):
    """`(labels,)`: the model called directly on one text, without padding or mask."""
    return classifier.model(torch.tensor([ids])).logits[0].softmax(-1)


# Values


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_scores_are_those_of_the_model_on_each_text_alone(checkpoint, batch_size):
    classifier = TextClassifier.from_folder(checkpoint, batch_size=batch_size)
    predictions = list(classifier.predict(SHORT_TEXTS))
    assert [answer.text for answer in predictions] == SHORT_TEXTS
    for text, answer in zip(SHORT_TEXTS, predictions, strict=True):
        expected = probabilities(classifier, token_ids(classifier, text))
        assert answer.score == pytest.approx(expected.max().item(), abs=1e-5)
        assert answer.label == ["NEGATIVE", "POSITIVE"][expected.argmax()]
    assert len({answer.label for answer in predictions}) == 2, "the texts must not all get one label"


def test_batches_hold_texts_of_similar_length(checkpoint):
    classifier = TextClassifier.from_folder(checkpoint, batch_size=2)
    shapes = []
    classifier.model.distilbert.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    list(classifier.predict(["good", "the film is good", "bad", "the plot was bad", "a film", "a plot"]))
    assert shapes == [(2, 6), (2, 4), (2, 3)]


def test_texts_are_read_a_chunk_at_a_time(checkpoint, monkeypatch):
    monkeypatch.setattr(prediction, "CHUNK_TEXTS", 3)
    unread = iter(SHORT_TEXTS)
    predictions = TextClassifier.from_folder(checkpoint).predict(unread)
    assert next(predictions).text == SHORT_TEXTS[0]
    assert next(unread) == SHORT_TEXTS[3]
    assert [answer.text for answer in predictions] == [*SHORT_TEXTS[1:3], *SHORT_TEXTS[4:]]


def test_a_long_text_is_cut_to_the_positions(checkpoint):
    classifier = TextClassifier.from_folder(checkpoint)
    ids = token_ids(classifier, LONG_TEXT)
    (answer,) = classifier.predict([LONG_TEXT])
    assert answer.score == pytest.approx(probabilities(classifier, [*ids[:15], ids[-1]]).max().item(), abs=1e-5)
    assert answer.tokens == len(ids) == 44


@pytest.mark.parametrize("stride", [0, 5, 13])
def test_stride_averages_the_probabilities_of_the_windows(checkpoint, stride):
    classifier = TextClassifier.from_folder(checkpoint, stride=stride, batch_size=2)
    first, *words, last = token_ids(classifier, LONG_TEXT)
    starts = [0]
    while starts[-1] + 14 < len(words):
        starts.append(starts[-1] + 14 - stride)
    windows = [[first, *words[start : start + 14], last] for start in starts]
    assert windows[-1][-2] == words[-1]

    expected = torch.stack([probabilities(classifier, window) for window in windows]).mean(0)
    short, long, other = classifier.predict(["good", LONG_TEXT, "a bad film"])
    assert long.score == pytest.approx(expected.max().item(), abs=1e-5)
    assert long.tokens == 44
    assert short.score == pytest.approx(probabilities(classifier, token_ids(classifier, "good")).max().item(), abs=1e-5)
    assert other.tokens == 5


def test_multi_label_gives_the_highest_sigmoid(tmp_path):
    names = {0: "FUNNY", 1: "DARK", 2: "LONG"}
    folder = write_tiny_checkpoint(tmp_path, problem_type="multi_label_classification", id2label=names)
    classifier = TextClassifier.from_folder(folder)
    (answer,) = classifier.predict(["a funny film"])
    with torch.inference_mode():
        scores = classifier.model(torch.tensor([token_ids(classifier, "a funny film")])).logits[0].sigmoid()
    assert answer.score == pytest.approx(scores.max().item(), abs=1e-5)
    assert answer.label == names[scores.argmax().item()]


MOODS = {0: "FUNNY", 1: "DARK", 2: "LONG"}


@pytest.fixture(scope="module")
def multi_label(tmp_path_factory):
    """A model that gives every text FUNNY with 0.95, DARK with 0.05 and LONG with 0.88."""
    folder = tmp_path_factory.mktemp("moods")
    write_tiny_checkpoint(folder, problem_type="multi_label_classification", id2label=MOODS)
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"].zero_()
    weights["classifier.bias"] = torch.tensor([0.95, 0.05, 0.88]).logit()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("threshold", "labels"),
    [(None, ["FUNNY", "LONG"]), (0.9, ["FUNNY"]), (0.96, []), (0, ["FUNNY", "LONG", "DARK"])],
)
def test_multi_label_gives_all_labels_from_the_threshold_on(run, multi_label, threshold, labels):
    (answer,) = TextClassifier.from_folder(multi_label, threshold=threshold).predict(["good"])
    assert (answer.label, answer.score) == ("FUNNY", pytest.approx(0.95))
    assert answer.labels == labels
    assert answer.scores == pytest.approx({"FUNNY": 0.95, "DARK": 0.05, "LONG": 0.88})
    options = [] if threshold is None else ["--threshold", threshold]
    (record,) = run("good", "--model", multi_label, "--json", *options).records
    scores = {"scores": answer.scores, "score": answer.score}
    assert record == {"text": "good", "label": "FUNNY", "labels": labels, **scores}
    shown = ", ".join(f"{label} {answer.scores[label]:.4f}" for label in labels) or "no label (likeliest: FUNNY 0.9500)"
    assert run("good", "--model", multi_label, *options).out == f"{shown}  good\n"


def test_windows_average_the_probabilities_of_each_label(tmp_path):
    folder = write_tiny_checkpoint(tmp_path, problem_type="multi_label_classification", id2label=MOODS)
    classifier = TextClassifier.from_folder(folder, stride=0)
    first, *words, last = token_ids(classifier, LONG_TEXT)
    windows = [torch.tensor([[first, *words[start : start + 14], last]]) for start in range(0, 42, 14)]
    with torch.inference_mode():
        expected = torch.cat([classifier.model(window).logits.sigmoid() for window in windows]).mean(0)
    (answer,) = classifier.predict([LONG_TEXT])
    assert list(answer.scores.values()) == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("problem_type", ["regression", None])
def test_one_label_gives_the_value_itself(tmp_path, problem_type):
    folder = write_tiny_checkpoint(tmp_path, problem_type=problem_type, id2label={0: "GRADE"})
    classifier = TextClassifier.from_folder(folder)
    (answer,) = classifier.predict(["a funny film"])
    with torch.inference_mode():
        value = classifier.model(torch.tensor([token_ids(classifier, "a funny film")])).logits.item()
    assert (answer.label, answer.score) == ("GRADE", pytest.approx(value, abs=1e-5))


# The command: input and output


def test_texts_as_arguments_come_out_aligned(run, checkpoint):
    result = run(*SHORT_TEXTS, "--model", checkpoint)
    assert (result.code, result.err) == (0, "")
    for line, text in zip(result.out.splitlines(), SHORT_TEXTS, strict=True):
        label, score = line[:8].strip(), line[10:17]
        assert label in ("NEGATIVE", "POSITIVE")
        assert 0.5 <= float(score) <= 1
        assert line[17:] == f"  {text}"


def test_json_has_exactly_text_label_and_score(run, checkpoint):
    texts = ["good", 'a "film"\u2028\u00e9 \\ and\na plot']
    result = run(*texts, "--model", checkpoint, "--json")
    assert [set(record) for record in result.records] == [{"text", "label", "score"}] * 2
    assert [record["text"] for record in result.records] == texts
    expected = list(TextClassifier.from_folder(checkpoint).predict(texts))
    assert [(record["label"], record["score"]) for record in result.records] == [(p.label, p.score) for p in expected]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("source", ["file", "stdin"])
def test_lines_of_a_file_or_stdin(run, checkpoint, tmp_path, source, ending):
    content = b"\xef\xbb\xbf" + ending.join(text.encode() for text in [*SHORT_TEXTS, "caf\u00e9 plot"])
    file = tmp_path / "texts.txt"
    file.write_bytes(content)
    if source == "file":
        result = run("--file", file, "--model", checkpoint, "--json")
    else:
        result = run("--model", checkpoint, "--json", stdin=content)
    assert (result.code, result.err) == (0, "")
    assert [record["text"] for record in result.records] == [*SHORT_TEXTS, "caf\u00e9 plot"]


def test_a_line_ends_at_a_line_feed_alone(run, checkpoint, tmp_path):
    lines = ["a\x0cb", "\u2028good\x85film", "bad\rplot", '"film', "007", "dull\r"]
    file = tmp_path / "texts.txt"
    file.write_bytes("\n".join(lines[:-1]).encode() + b"\r\n" + lines[-1].encode() + b"\r\n")
    result = run("--file", file, "--model", checkpoint, "--json")
    assert (result.code, result.err) == (0, "")
    assert [record["text"] for record in result.records] == lines


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.json", "a.jsonl", "a.parquet"])
def test_the_column_of_a_table(run, checkpoint, tmp_path, name):
    texts = ["a good film", "007", "", "\u597d film"]
    rows = [{"review": text, "stars": place} for place, text in enumerate(texts)]
    if name == "a.tsv":
        content = "".join("\t".join(map(str, row)) + "\n" for row in [("review", "stars"), *(row.values() for row in rows)])
        (tmp_path / name).write_text(content)
    elif name == "a.json":
        (tmp_path / name).write_text(json.dumps(rows))
    else:
        write(tmp_path / name, rows)
    result = run("--file", tmp_path / name, "--text-column", "review", "--model", checkpoint, "--json")
    assert (result.code, result.err) == (0, "note: blank lines skipped: 1.\n")
    assert [record["text"] for record in result.records] == ["a good film", "007", "\u597d film"]


def test_a_table_without_the_column(run, checkpoint, tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("review,stars\ngood,1\n")
    assert_refused(run("--file", file, "--model", checkpoint), "no column 'text' (--text-column)", "review, stars")
    assert_refused(run("good", "--text-column", "review", "--model", checkpoint), "--text-column", "--file")


def test_all_scores(run, checkpoint, multi_label):
    (record,) = run("good", "--model", checkpoint, "--all-scores", "--json").records
    assert list(record["scores"]) == ["NEGATIVE", "POSITIVE"]
    assert record["scores"][record["label"]] == record["score"]
    assert sum(record["scores"].values()) == pytest.approx(1)
    best, other = sorted(record["scores"], key=record["scores"].get, reverse=True)
    shown = f"{best} {record['score']:.4f}, {other} {record['scores'][other]:.4f}  good\n"
    assert run("good", "--model", checkpoint, "--all-scores").out == shown
    assert run("good", "--model", multi_label, "--all-scores").out == "FUNNY 0.9500, LONG 0.8800, DARK 0.0500  good\n"


def test_json_can_be_read_by_people_and_in_any_encoding(run, checkpoint, monkeypatch):
    text = "\u597d\u7684 caf\u00e9\x85\u2028"
    assert '"\u597d\u7684 caf\u00e9\\u0085\\u2028"' in run(text, "--model", checkpoint, "--json").out
    line = command.json_line(prediction.Prediction(text, "OK", 0.5, 3), escaped=True)
    assert (line.isascii(), json.loads(line)["text"]) == (True, text)


def test_predictions_in_a_file(run, checkpoint, multi_label, tmp_path):
    texts = ["good, \u597d", "bad"]
    records = run(*texts, "--model", multi_label, "--json").records
    result = run(*texts, "--model", multi_label, "--output", tmp_path / "a.jsonl")
    assert (result.code, result.out, result.err) == (0, "", "")
    assert [json.loads(line) for line in (tmp_path / "a.jsonl").read_text("utf-8").splitlines()] == records
    run(*texts, "--model", multi_label, "--output", tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["text", "label", "score", "labels", "score_FUNNY", "score_DARK", "score_LONG"]
    assert [row["text"] for row in rows] == texts
    assert [float(row["score_DARK"]) for row in rows] == [record["scores"]["DARK"] for record in records]
    run(*texts, "--model", checkpoint, "--output", tmp_path / "b.csv")
    assert (tmp_path / "b.csv").read_text("utf-8").splitlines()[0] == "text,label,score"


def test_an_output_that_cannot_be(run, checkpoint, tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("text\ngood\n\xe9\n", "latin-1")
    for output, part in ((tmp_path / "a.xlsx", ".jsonl or .csv"), (tmp_path / "no" / "a.csv", "folder"), (file, "lost")):
        assert_refused(run("--file", file, "--model", checkpoint, "--output", output), "--output", part)
    assert_refused(run("--file", file, "--model", checkpoint, "--output", tmp_path / "b.csv"), "not utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_blank_lines_are_skipped_and_counted(run, checkpoint):
    result = run("--model", checkpoint, "--json", stdin=b"\ngood\n  \t\n\nbad\n")
    assert [record["text"] for record in result.records] == ["good", "bad"]
    assert result.err == "note: blank lines skipped: 3.\n"


def test_cut_texts_are_told_once_with_both_numbers(run, checkpoint):
    result = run(LONG_TEXT, "good", LONG_TEXT + " good", "--model", checkpoint)
    assert result.code == 0
    assert len(result.err.splitlines()) == 1
    assert "cut to the model's 16 positions: 2 (the longest has 45 tokens)" in result.err
    assert "--stride" in result.err


def test_stride_has_nothing_to_tell(run, checkpoint):
    result = run(LONG_TEXT, "--model", checkpoint, "--stride", 4, "--json")
    assert (result.code, result.err) == (0, "")
    (expected,) = TextClassifier.from_folder(checkpoint, stride=4).predict([LONG_TEXT])
    assert result.records[0]["score"] == expected.score


def test_a_text_cannot_break_its_line():
    shown = command.human_line(prediction.Prediction("a\n\tb\x1b[31m c", "OK", 0.5, 3), label_width=4, line_width=None)
    assert shown == "OK     0.5000  a b[31m c"


def test_a_line_is_cut_to_the_terminal():
    shown = command.human_line(prediction.Prediction("a very long text", "OK", 0.5, 6), label_width=4, line_width=20)
    assert shown == "OK     0.5000  a ve…"


@pytest.mark.parametrize(
    ("batches", "terminal", "bar"), [(100, True, True), (100, False, False), (2, True, False)], ids=["long", "pipe", "short"]
)
def test_the_bar_is_for_long_work_on_a_terminal(monkeypatch, batches, terminal, bar):
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as stream:
        stderr = stream if terminal else io.StringIO()
        monkeypatch.setattr(sys, "stderr", stderr)
        monkeypatch.setenv("TERM", "xterm")
        todo = [[index] for index in range(batches)]
        assert list(command.progress_bar(todo)) == todo
        print("end", file=stream, flush=True)
    shown = os.read(leader, 100_000).decode()
    os.close(leader)
    assert ("Predicting" in shown) == bar


def test_a_reader_that_leaves_early_ends_it_quietly(checkpoint, tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("a good film\n" * 6000)
    predict = [sys.executable, "-c", "from inhibidistilbert.cli import main; main()", "predict"]
    child = subprocess.Popen(
        [*predict, "--model", checkpoint, "--file", file], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout.readline().endswith("a good film\n")
    child.stdout.close()
    assert child.stderr.read() == ""
    child.stderr.close()
    assert child.wait(timeout=60) in (0, 1)


def test_the_default_model_is_the_one_shipped(run, monkeypatch, checkpoint):
    assert default_checkpoint().parts[-3:] == ("inhibidistilbert", "checkpoints", "tiny-sentiment")
    monkeypatch.setattr(prediction, "default_checkpoint", lambda: checkpoint)
    assert run("good", "--json").records == run("good", "--json", "--model", checkpoint).records


def test_no_code_of_the_folder_runs(run, copy, tmp_path):
    witness = tmp_path / "ran"
    for file in copy.glob("*.py"):
        file.write_text(f"open({str(witness)!r}, 'w')\nraise SystemExit('the code in the folder ran')\n")
    edit_json(copy / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "modeling_inhibidistilbert.Tokenizer"]})
    result = run("good", "--model", copy, "--json")
    assert (result.code, result.err) == (0, "")
    assert not witness.exists()


# Bad input: one line, exit code 2


def edit_json(file: Path, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_nothing_given_on_a_terminal(run, checkpoint):
    assert_refused(run("--model", checkpoint), "no text", "TEXT", "--file", "standard input")


def test_text_together_with_file(run, checkpoint):
    assert_refused(run("good", "--file", "x", "--model", checkpoint), "TEXT", "--file", "not both")


@pytest.mark.parametrize("content", [b"", b" \n\t\n"], ids=["empty", "blank"])
def test_no_text_at_all(run, checkpoint, tmp_path, content):
    file = tmp_path / "texts.txt"
    file.write_bytes(content)
    assert_refused(run("--file", file, "--model", checkpoint), str(file), "no text", f"blank lines: {len(content) // 2}")
    assert_refused(run("--model", checkpoint, stdin=content), "standard input", "no text")
    assert_refused(run("", "--model", checkpoint), "TEXT", "no text")


def test_a_missing_file(run, checkpoint, tmp_path):
    assert_refused(run("--file", tmp_path / "none.txt", "--model", checkpoint), "none.txt", "No such file")


def test_a_directory_as_file(run, checkpoint, tmp_path):
    assert_refused(run("--file", tmp_path, "--model", checkpoint), str(tmp_path), "Is a directory")


def test_an_unreadable_file(run, checkpoint, tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    assert_refused(run("--file", tmp_path / "secret.txt", "--model", checkpoint), "secret.txt", "Permission denied")


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_lines_that_are_not_utf8_are_named(run, checkpoint, tmp_path, source):
    file = tmp_path / "texts.txt"
    file.write_bytes(b"caf\xe9 good\ngood\n")
    result = run("--file", file, "--model", checkpoint) if source == "file" else run(stdin=file.read_bytes())
    assert_refused(result, "UTF-8", "byte 4 of line 1 is 0xe9")


def test_an_argument_that_is_not_utf8(run, checkpoint):
    assert_refused(run("good", "caf\udce9", "--model", checkpoint), "TEXT number 2", "UTF-8")


@pytest.mark.parametrize("stride", [-1, 14, 100])
def test_stride_out_of_range(run, checkpoint, stride):
    assert_refused(run("good", "--model", checkpoint, "--stride", stride), "stride", "below 14", "16 positions", str(stride))


@pytest.mark.parametrize("batch_size", [0, -3])
def test_batch_size_out_of_range(run, checkpoint, batch_size):
    assert_refused(
        run("good", "--model", checkpoint, "--batch-size", batch_size), "batch size", "at least 1", str(batch_size)
    )


@pytest.mark.parametrize("device", ["abacus", "cuda:99", "meta", ""])
def test_an_unknown_device(run, checkpoint, device):
    assert_refused(run("good", "--model", checkpoint, "--device", device), "device", repr(device), "cpu")


def test_a_model_folder_that_is_not_there(run, tmp_path):
    assert_refused(run("good", "--model", tmp_path / "none"), "none", "not a folder")


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("config.json", "config.json"),
        ("model.safetensors", "model.safetensors"),
        ("tokenizer.json", "tokenizer.json or vocab.txt"),
    ],
)
def test_a_missing_file_of_the_checkpoint_is_named(run, copy, missing, named):
    (copy / missing).unlink()
    assert_refused(run("good", "--model", copy), str(copy), f"lacks {named}")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_file_of_the_checkpoint(run, copy, name):
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    assert_refused(run("good", "--model", copy), str(copy))


def test_a_config_that_is_not_an_object(run, copy):
    (copy / "config.json").write_text("[]")
    assert_refused(run("good", "--model", copy), "config.json", "JSON object")


def test_a_config_with_a_wrong_head_split(run, copy):
    edit_json(copy / "config.json", n_heads=3)
    assert_refused(run("good", "--model", copy), "n_heads=3", "dim=16")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"n_layers": 0}, "n_layers must be at least 1, got 0"),
        ({"n_layers": 1}, "holds distilbert.transformer.layer.1.attention.alpha and"),
        ({"n_layers": 3}, "lacks distilbert.transformer.layer.2.attention.alpha and"),
        ({"dropout": 7}, "dropout must be at least 0 and below 1, got 7"),
        ({"int8_weights": True}, "no int8 weights"),
    ],
    ids=str,
)
def test_a_config_of_another_model(run, copy, fields, named):
    """Without a word it gave other answers."""
    edit_json(copy / "config.json", **fields)
    assert_refused(run("good", "--model", copy), str(copy), named)


def test_another_model_type(run, copy):
    edit_json(copy / "config.json", model_type="distilbert")
    assert_refused(run("good", "--model", copy), "'inhibidistilbert'", "'distilbert'")


@pytest.mark.parametrize("stated", [True, False], ids=["architectures-stated", "architectures-left-out"])
@pytest.mark.parametrize("model_class", [InhibiDistilBertForMaskedLM, InhibiDistilBertForTokenClassification])
def test_a_checkpoint_without_a_classification_head(run, tmp_path, model_class, stated):
    folder = write_tiny_checkpoint(tmp_path, model_class)
    if stated:
        assert_refused(run("good", "--model", folder), "InhibiDistilBertForSequenceClassification", model_class.__name__)
    else:
        edit_json(folder / "config.json", architectures=None)
        assert_refused(run("good", "--model", folder), "lacks weights", "pre_classifier.weight")


def test_a_head_of_another_shape(run, copy):
    edit_json(copy / "config.json", id2label={"0": "A", "1": "B", "2": "C"}, label2id={"A": 0, "B": 1, "C": 2})
    assert_refused(run("good", "--model", copy), "classifier.bias has shape (2,) in the weights but (3,)")


def edit_weights(folder: Path, name: str, value: float):
    weights = load_file(folder / "model.safetensors")
    weights[name] = torch.full_like(weights[name], value)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_several_numbers_are_not_one_label(run, tmp_path):
    folder = write_tiny_checkpoint(tmp_path, problem_type="regression")
    assert_refused(run("good", "--model", folder), str(folder), "a regression (problem_type 'regression', 2 outputs)")


@pytest.mark.parametrize("threshold", [-0.1, 1.5, "nan"])
def test_a_threshold_that_is_no_probability(run, multi_label, threshold):
    assert_refused(run("good", "--model", multi_label, "--threshold", threshold), "threshold", "from 0 to 1", str(threshold))


def test_a_threshold_for_a_model_that_gives_one_class(run, checkpoint):
    assert_refused(run("good", "--model", checkpoint, "--threshold", 0.5), "threshold is for multi-label", "one class")


def test_labels_of_the_same_name(run, tmp_path):
    names = {0: "FUNNY", 1: "FUNNY", 2: "LONG"}
    folder = write_tiny_checkpoint(tmp_path, problem_type="multi_label_classification", id2label=names)
    assert_refused(run("good", "--model", folder), "labels of the same name", "FUNNY, FUNNY, LONG")


def test_weights_that_are_not_floating(run, copy):
    weights = load_file(copy / "model.safetensors")
    weights["classifier.weight"] = weights["classifier.weight"].int()
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert_refused(run("good", "--model", copy), "classifier.weight", "got torch.int32")


def test_scalars_that_are_not_finite(run, copy):
    edit_weights(copy, "distilbert.transformer.layer.1.attention.gamma", float("inf"))
    assert_refused(run("good", "--model", copy), "layer.1.attention.gamma", "finite")


def test_scores_that_are_not_finite(run, copy):
    edit_weights(copy, "classifier.bias", float("nan"))
    assert_refused(run("good", "--model", copy), str(copy), "not finite")


def test_a_tokenizer_of_another_model(run, copy):
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["more"] = 19
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert_refused(run("good", "--model", copy), "20 tokens", "holds 19")


def test_a_slow_tokenizer_is_refused(checkpoint):
    classifier = TextClassifier.from_folder(checkpoint)
    slow = SimpleNamespace(is_fast=False, num_special_tokens_to_add=lambda: 2)
    with pytest.raises(UserError, match="fast"):
        TextClassifier(classifier.model, slow)
