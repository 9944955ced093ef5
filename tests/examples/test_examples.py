"""The scripts of `examples/` as a user runs them, on the data beside them."""

import csv
import importlib.util
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Lock
from types import ModuleType

import onnxruntime
import pytest
import torch
from fastapi.testclient import TestClient
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from inhibidistilbert.prediction import TextClassifier, default_checkpoint
from tests.helpers.tiny_sentiment import write_tiny_checkpoint

EXAMPLES = Path(__file__).parents[2] / "examples"
LABELS = ["complaint", "praise", "question"]
MESSAGES = list(csv.DictReader((EXAMPLES / "messages.csv").read_text(encoding="utf-8").splitlines()))
TEXTS = [row["text"] for row in MESSAGES]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def losses(output: str) -> tuple[float, float]:
    """Before and after the training, from what the script printed."""
    before, after = re.findall(r"(?:loss|before,) (\d+\.\d+)", output)
    return float(before), float(after)


@torch.no_grad()
def accuracy(model: torch.nn.Module) -> float:
    """On the messages, which it was trained on."""
    batch = AutoTokenizer.from_pretrained(default_checkpoint())(TEXTS, padding=True, return_tensors="pt")
    labels = torch.tensor([LABELS.index(row["label"]) for row in MESSAGES])
    return (model(**batch).logits.argmax(-1) == labels).double().mean().item()


def test_fine_tune(tmp_path, capsys):
    load("fine_tune").main(["--output", str(tmp_path)])
    before, after = losses(capsys.readouterr().out)
    assert after < 0.9 * before
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert list(model.config.id2label.values()) == LABELS
    assert accuracy(model) > 0.8
    assert AutoTokenizer.from_pretrained(tmp_path)("parcel") == AutoTokenizer.from_pretrained(default_checkpoint())("parcel")


def test_lora(tmp_path, capsys):
    example = load("lora")
    example.main(["--output", str(tmp_path), "--epochs", "6"])
    output = capsys.readouterr().out
    before, after = losses(output)
    assert after < 0.5 * before
    assert float(re.search(r"differ by (\S+)", output)[1]) < 1e-5
    torch.manual_seed(1)  # Another new head, which the saved one replaces.
    base = example.load_base(default_checkpoint(), LABELS).eval()
    assert accuracy(base) < 0.6
    assert accuracy(PeftModel.from_pretrained(base, tmp_path).eval()) > 0.8


@pytest.fixture(scope="module")
def app():
    return load("serve").create_app(default_checkpoint(), batch_size=4, at_once=2)


def ask(app, texts: list[str]):
    return TestClient(app).post("/predict", json={"texts": texts})


def test_serve_answers_eight_threads_as_it_answers_one(app, monkeypatch):
    requests = [[text * (thread + 1) for text in TEXTS[thread::8]] for thread in range(8)]
    expected = [ask(app, texts).json() for texts in requests]
    assert {answer["label"] for answers in expected for answer in answers} == {"NEGATIVE", "POSITIVE"}

    running, most, sizes, lock, start = 0, 0, set(), Lock(), Barrier(8)
    forward = TextClassifier._batch_scores

    def watched(classifier, batch):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            sizes.add(len(batch))
        time.sleep(0.005)  # so that threads that may meet do
        scores = forward(classifier, batch)
        with lock:
            running -= 1
        return scores

    def at_once(texts):
        start.wait()
        return [ask(app, texts).json() for _ in range(3)]

    monkeypatch.setattr(TextClassifier, "_batch_scores", watched)
    with ThreadPoolExecutor(8) as threads:
        for answers, right in zip(threads.map(at_once, requests), expected, strict=True):
            for again in answers:
                assert [answer["label"] for answer in again] == [answer["label"] for answer in right]
                scores = [answer["score"] for answer in right]
                assert [answer["score"] for answer in again] == pytest.approx(scores, abs=1e-6)
    assert most == 2
    assert max(sizes) == 4


def test_serve_refuses_requests_without_texts_or_with_too_many(app):
    assert ask(app, ["Fine."] * 64).status_code == 200
    for texts in ([], ["Fine."] * 65, ["x" * 10_001]):
        assert ask(app, texts).status_code == 422


def test_serve_refuses_to_compute_no_request_at_a_time():
    with pytest.raises(ValueError, match="at_once must be at least 1, got 0"):
        load("serve").create_app(default_checkpoint(), at_once=0)


@torch.no_grad()
def test_export(tmp_path, capsys):
    checkpoint, file = write_tiny_checkpoint(tmp_path / "tiny", n_layers=1), tmp_path / "new" / "model.onnx"
    assert load("export").main(["--checkpoint", str(checkpoint), "--output", str(file)]) == 0
    assert "agrees" in capsys.readouterr().out
    texts = ["The film was not very good.", "A funny plot"] * 2
    batch = AutoTokenizer.from_pretrained(checkpoint)(texts, padding=True, return_tensors="pt")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})
    right = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()(**inputs).logits
    torch.testing.assert_close(torch.from_numpy(logits), right, rtol=0, atol=1e-4)
