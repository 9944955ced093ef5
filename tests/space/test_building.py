"""The page is built whole or not at all, and from what it can show alone."""

import json
from contextlib import contextmanager

import numpy as np
import onnxruntime
import pytest
import torch

from inhibidistilbert.prediction import TextClassifier
from inhibidistilbert.space import build_space, building, npm
from inhibidistilbert.space.graph import write_graph
from inhibidistilbert.support.errors import UserError
from tests.helpers.tiny_sentiment import write_tiny_checkpoint


@pytest.fixture
def checkpoint(tmp_path):
    return write_tiny_checkpoint(tmp_path / "tiny", n_layers=1)


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """In the place of npm and the exporter, which take a minute: small files."""
    packages = tmp_path / "packages"
    for name in (*building._VENDOR, f"onnxruntime-web/dist/{building._WASM}"):
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_text(name)

    @contextmanager
    def given(folder):
        yield packages

    monkeypatch.setattr(building, "npm_packages", given)
    monkeypatch.setattr(building, "write_graph", lambda model, batch, file, tokens: file.write_text("graph"))


def test_a_page_lists_every_file_that_it_needs_offline(tmp_path, checkpoint, quick):
    folder = tmp_path / "page"
    size = build_space(checkpoint, folder)
    there = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    assert size == sum(file.stat().st_size for file in there.values())
    lines = (folder / "files.js").read_text().splitlines()
    listed = json.loads(lines[1].removeprefix("self.FILES = ").removesuffix(";"))
    assert {"./", *there} - set(listed) == {"README.md", "files.js", "offline.js"}
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["model"] == "tiny"
    assert settings["labels"] == ["NEGATIVE", "POSITIVE"]
    assert (settings["most_tokens"], settings["prefix"], settings["first"], settings["last"]) == (16, "##", "[CLS]", "[SEP]")
    assert "sdk: static" in (folder / "README.md").read_text()


def test_another_content_is_another_build(tmp_path, checkpoint, quick, monkeypatch):
    build_space(checkpoint, tmp_path / "page")
    first = (tmp_path / "page" / "files.js").read_text()
    build_space(checkpoint, tmp_path / "page")
    assert (tmp_path / "page" / "files.js").read_text() == first
    monkeypatch.setattr(building, "write_graph", lambda model, batch, file, tokens: file.write_text("other"))
    build_space(checkpoint, tmp_path / "page")
    assert (tmp_path / "page" / "files.js").read_text() != first


@pytest.mark.parametrize("failure", [KeyboardInterrupt, UserError("refused")])
def test_an_interrupted_build_leaves_the_earlier_one(tmp_path, checkpoint, quick, monkeypatch, failure):
    build_space(checkpoint, tmp_path / "page")

    def fail(*arguments):
        raise failure

    monkeypatch.setattr(building, "_write_list", fail)
    with pytest.raises((KeyboardInterrupt, UserError)):
        build_space(checkpoint, tmp_path / "page")
    assert (tmp_path / "page" / "model.onnx").read_text() == "graph"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["packages", "page", "tiny"]


def test_a_folder_with_something_else_is_refused(tmp_path, checkpoint, quick):
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"OUTPUT_DIR .*page' is not empty, nor an earlier page; give another folder\."):
        build_space(checkpoint, tmp_path / "page")
    assert (tmp_path / "page" / "thesis.txt").read_text() == "mine"


def test_a_page_that_is_too_large_is_refused(tmp_path, checkpoint, quick, monkeypatch):
    monkeypatch.setattr(building, "LARGEST", 1000)
    with pytest.raises(UserError, match=r"the page would have 0\.0 MB, and may have 0: give a smaller model\."):
        build_space(checkpoint, tmp_path / "page")
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem_type": "multi_label_classification"}, "the page is for models that give one class"),
        ({"quantized": True}, "CHECKPOINT_DIR is an int8 model: give the float one"),
    ],
)
def test_a_model_that_the_page_cannot_show_is_refused(tmp_path, quick, changes, message):
    with pytest.raises(UserError, match=message):
        build_space(write_tiny_checkpoint(tmp_path / "tiny", **changes), tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_without_npm_the_user_is_told(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr(npm.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"the page needs npm, .*: install Node\.js"):
        build_space(checkpoint, tmp_path / "page")
    assert not (tmp_path / "page").exists()


@pytest.mark.slow
@pytest.mark.parametrize("halves", [True, False])
def test_the_graph_has_the_scores_of_the_model(tmp_path, checkpoint, halves):
    classifier = TextClassifier.from_folder(checkpoint, "cpu")
    if halves:
        for weight in classifier.model.parameters():
            weight.data = weight.data.half().float()
    inputs = classifier.tokenizer(["a good film", "bad", "the plot is not very funny"], padding=True, return_tensors="pt")
    batch = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    write_graph(classifier.model, batch, tmp_path / "model.onnx", 16)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    row = {name: tensor[2:] for name, tensor in batch.items()}
    logits, scores = session.run(["logits", "inhibition"], {name: tensor.numpy() for name, tensor in row.items()})
    classifier.model.set_attn_implementation("eager")
    with torch.no_grad():
        wanted = classifier.model(**row, output_attentions=True)
    assert np.abs(logits - wanted.logits.numpy()).max() < 1e-5
    assert np.abs(scores - torch.cat(wanted.attentions).numpy()).max() < 1e-5
