"""A tiny random sentiment checkpoint, quick to build and with few positions, for the tests of prediction and demo."""

from pathlib import Path

import torch
from transformers import DistilBertTokenizer

from inhibidistilbert import InhibiDistilBertConfig, InhibiDistilBertForSequenceClassification

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["a", "the", "film", "plot", "is", "was", "not", "very", "good", "bad", "dull", "funny", "and", "but"]
VOCABULARY = {token: index for index, token in enumerate(SPECIAL_TOKENS + WORDS)}


def tiny_config(**changes) -> InhibiDistilBertConfig:
    """16 positions, 2 layers, NEGATIVE and POSITIVE. Wide initial weights spread the probabilities."""
    settings = {
        "vocab_size": len(VOCABULARY),
        "max_position_embeddings": 16,
        "n_layers": 2,
        "n_heads": 2,
        "dim": 16,
        "hidden_dim": 32,
        "initializer_range": 0.5,
        "id2label": {0: "NEGATIVE", 1: "POSITIVE"},
    }
    return InhibiDistilBertConfig(**(settings | changes))


def write_tiny_checkpoint(folder: Path, model_class=InhibiDistilBertForSequenceClassification, **changes) -> Path:
    """Save a model of `model_class` and its tokenizer to `folder`. The seed gives both labels to simple texts."""
    torch.manual_seed(5)
    config = tiny_config(**changes)
    model_class(config).save_pretrained(folder)
    tokenizer = DistilBertTokenizer(vocab=VOCABULARY, model_max_length=config.max_position_embeddings)
    tokenizer.save_pretrained(folder)
    return folder
