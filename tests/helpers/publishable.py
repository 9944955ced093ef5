"""A tiny checkpoint with all that a publication needs, and ways to spoil it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import DistilBertTokenizer

from inhibidistilbert import InhibiDistilBertConfig, InhibiDistilBertForSequenceClassification
from inhibidistilbert.publishing.assemble import Candidate, assemble

REPO_ID = "someone/tiny"
TOKEN = "hf_" + "Sesame0123" * 4
WORDS = ["a", "quiet", "film", "and", "joy", "it", "broke", "the", "story", "of", "two", "old", "friends", ".", ","]
CARD = """---
language: en
license: apache-2.0
base_model: someone/teacher
base_model_relation: finetune
datasets:
- stanfordnlp/imdb
tags:
- sentiment-analysis
widget:
- text: A quiet film.
---

# A heading of the maintainer

## Limits and bias

English only. Irony is misread.

## Terms

The reviews are research data (Maas et al. 2011).

## Diary

We had many cups of coffee.

## Training

We trained 12345 times.
"""
EVALUATION = {
    "results": [
        {
            "dataset": "stanfordnlp/imdb",
            "config": "plain_text",
            "split": "test",
            "revision": "e6281661ce1c48d982bc483cf8a173c1bbeb5d31",
            "task_id": "sentiment",
            "metric": "accuracy",
            "value": 0.8125,
            "examples": 25000,
            "control": {"model": "a softmax model", "value": 0.84375},
        }
    ],
    "machine": "x86_64, 2 threads",
    "date": "2026-01-31",
}
TRAINING = {"epochs": 2.0, "learning_rate": 0.0005, "batch_size": 64, "max_length": 48, "warmup": 0.06, "weight_decay": 0.01}
DISTILLATION = {
    "recipe": {
        "teacher": "runs/teacher",
        "student": {"source": "tiny"},
        "stages": [{"stage": "task", "name": "task", **TRAINING, "scalar_learning_rate": 0.005, "temperature": 2.0}],
        "seed": 7,
        "bf16": False,
        "save_dtype": "float32",
    },
    "stages": {"task": {}},
    "teacher": {
        "recipe": {"student": {"source": "runs/encoder"}, "stages": [{"name": "finetune", **TRAINING, "epochs": 3.0}]},
        "stages": {"finetune": {"steps": 801}},
    },
    "tests": {
        "teacher": {"data/reviews.csv": {"accuracy": 0.91, "texts": 321}},
        "student": {"data/reviews.csv": {"accuracy": 0.875, "texts": 321}},
    },
    "machine": "x86_64, 2 threads",
}


def write_checkpoint(folder: Path, **saving) -> Path:
    """A sentiment classifier with random weights, its tokenizer, results and a card, as a maintainer has them."""
    torch.manual_seed(0)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    config = InhibiDistilBertConfig(
        vocab_size=len(tokens),
        max_position_embeddings=48,
        dim=16,
        hidden_dim=24,
        n_heads=2,
        n_layers=2,
        initializer_range=0.3,
        id2label={0: "NEGATIVE", 1: "POSITIVE"},
        label2id={"NEGATIVE": 0, "POSITIVE": 1},
    )
    InhibiDistilBertForSequenceClassification(config).save_pretrained(folder, **saving)
    DistilBertTokenizer(vocab={t: i for i, t in enumerate(tokens)}, model_max_length=48).save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    (folder / "eval_results.json").write_text(json.dumps(EVALUATION))
    (folder / "distillation.json").write_text(json.dumps(DISTILLATION))
    # What a training leaves behind.
    (folder / "optimizer.pt").write_bytes(b"a pickle")
    (folder / "events.log").write_text("private notes")
    return folder


def assembled(source: Path, target: Path, revision: str | None = "v1") -> Candidate:
    return assemble(source, target, REPO_ID, revision)


def edit_json(file: Path, edit: Callable[[dict], object]) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def edit_weights(folder: Path, edit: Callable[[dict], object], **metadata: str) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt", **metadata})


def replace_in(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def fingerprint(folder: Path) -> dict[str, str]:
    """The content of every file below `folder`."""
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}
