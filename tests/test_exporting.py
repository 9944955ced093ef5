"""A checkpoint as ONNX files: checked against the model, and nothing of an earlier export or of others is lost."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer
from typer.testing import CliRunner

from inhibidistilbert import exporting, quantize
from inhibidistilbert.cli import app
from inhibidistilbert.support.errors import UserError
from inhibidistilbert.support.packages import check_packages
from tests.helpers.tiny import model_class, tiny_config, tiny_model
from tests.helpers.tiny_sentiment import write_tiny_checkpoint

TASK = "ForSequenceClassification"
FILES = ["onnx/model.onnx", "onnx/model_quantized.onnx", "onnx/model_fp16.onnx"]


@pytest.fixture
def checkpoint(tmp_path):
    return write_tiny_checkpoint(tmp_path / "tiny", n_layers=1)


@pytest.fixture
def small_files(monkeypatch):
    """In the place of the exporters, which take seconds: files of a word, and sessions that run the model."""
    monkeypatch.setattr(exporting, "write_float", lambda model, inputs, outputs, file, positions: file.write_text("float"))
    monkeypatch.setattr(exporting, "write_quantized", lambda source, file: file.write_text("int8"))
    wrong: dict = {}

    def plain(model, outputs):
        plain.model = exporting_plain(model, outputs)
        return plain.model

    exporting_plain = exporting._Plain
    monkeypatch.setattr(exporting, "_Plain", plain)
    first: list = []

    class Session:
        def __init__(self, file, threads):
            first.append(plain.model)
            self.error = wrong.get(file.name, 0.0)

        @torch.no_grad()
        def run(self, names, arrays):
            outputs = first[0](**{name: torch.from_numpy(array) for name, array in arrays.items()})
            return [output.numpy() + np.float32(self.error) for output in outputs]

    monkeypatch.setattr(exporting, "session_of", Session)
    return wrong


def export(*arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


@pytest.mark.slow
def test_each_file_says_what_the_model_says(tmp_path, checkpoint):
    data = tmp_path / "data.csv"
    data.write_text("text,label\na good film,POSITIVE\na bad film,0\n")
    result = export(checkpoint, tmp_path / "out", "--data", data, "--json")
    found = json.loads(result.stdout)["files"]
    assert [(each["file"], each["kept"]) for each in found] == [(name, True) for name in FILES]
    assert found[0]["difference"] < 1e-5
    assert len({each["accuracy"] for each in found}) == 1
    assert AutoConfig.from_pretrained(tmp_path / "out").n_layers == 1
    batch = AutoTokenizer.from_pretrained(tmp_path / "out")(["a good film", "bad"], padding=True, return_tensors="np")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        model = model_class(TASK).from_pretrained(checkpoint).eval()
        right = model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits
    for each in found:
        session = onnxruntime.InferenceSession(tmp_path / "out" / each["file"], providers=["CPUExecutionProvider"])
        (logits,) = session.run(["logits"], inputs)
        assert logits.dtype == np.float32
        most = exporting.TOLERANCES[each["file"].removeprefix("onnx/")] * max(1, right.abs().max().item())
        assert np.abs(logits - right.numpy()).max() < most


def test_a_file_that_differs_is_not_kept(tmp_path, checkpoint, small_files):
    small_files["model_quantized.onnx"] = 9.0
    result = export(checkpoint, tmp_path / "out")
    assert "onnx/model_quantized.onnx is not kept: it differs from the model by" in result.stdout
    assert sorted(file.name for file in (tmp_path / "out" / "onnx").iterdir()) == ["model.onnx", "model_fp16.onnx"]
    assert {"config.json", "tokenizer.json"} <= {file.name for file in (tmp_path / "out").iterdir()}


def test_a_file_that_loses_accuracy_is_not_kept(tmp_path, checkpoint, small_files, monkeypatch):
    given = iter([0.9, 0.9, 0.897, 0.899])  # of the model, float32, int8 and float16
    monkeypatch.setattr(exporting, "_accuracy", lambda *arguments: next(given))
    (tmp_path / "data.csv").write_text("text,label\na good film,1\n")
    result = export(checkpoint, tmp_path / "out", "--data", tmp_path / "data.csv", "--json")
    found = json.loads(result.stdout)["files"]
    assert [each["kept"] for each in found] == [True, False, True]
    assert found[1]["problem"] == "its accuracy is 0.8970 and the model's 0.9000"


def test_a_failed_export_leaves_the_earlier_one(tmp_path, checkpoint, small_files):
    assert export(checkpoint, tmp_path / "out").exit_code == 0
    (tmp_path / "out" / "onnx" / "model.onnx").write_text("earlier")
    small_files["model.onnx"] = 9.0
    refused = export(checkpoint, tmp_path / "out")
    assert "onnx/model.onnx is not as the model, so nothing is kept" in str(refused.exception)
    assert (tmp_path / "out" / "onnx" / "model.onnx").read_text() == "earlier"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "tiny"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{tiny}", "{tmp}/out", "--to", "tflite"], "--to must be one of onnx, got 'tflite'"),
        (["{tmp}/none", "{tmp}/out"], "is not a folder"),
        (["{tiny}", "{tiny}"], "which no export wrote"),
        (["{tiny}", "{tiny}/config.json"], "is no folder"),
        (["{tiny}", "{tiny}/config.json/out"], "OUTPUT_DIR"),
        (["{tiny}", "{tmp}/out", "--data", "{tmp}/none.csv"], "is not a file"),
        (["{tiny}", "{tmp}/out", "--data", "{tmp}/words.csv"], "row 0 has the label 'NEUTRAL'; those of the model are"),
    ],
)
def test_bad_input_is_told_and_nothing_is_written(tmp_path, checkpoint, small_files, arguments, told):
    (tmp_path / "words.csv").write_text("text,label\na good film,NEUTRAL\n")
    before = sorted(tmp_path.rglob("*"))
    result = export(*(argument.format(tiny=checkpoint, tmp=tmp_path) for argument in arguments))
    assert isinstance(result.exception, UserError), result.exception
    assert told in str(result.exception)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_cannot_be_exported():
    with pytest.raises(UserError, match=r"must have one of the heads Model, .*, got InhibiDistilBertForMultipleChoice"):
        exporting.head_of(tiny_model("ForMultipleChoice"))
    with pytest.raises(UserError, match="is an int8 model: give the float one"):
        exporting.head_of(quantize(tiny_model(TASK)))
    with pytest.raises(UserError, match="is an int8 model"):
        exporting.head_of(model_class(TASK)(tiny_config(quantized=True)))


def test_packages_that_are_missing_are_told_with_the_command(monkeypatch):
    monkeypatch.setattr(exporting, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(UserError, match=r"^--to onnx needs no_such_package: pip install onnx no_such_package$"):
        check_packages(exporting.PACKAGES, "--to onnx")
