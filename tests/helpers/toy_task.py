"""A task that a tiny model learns in seconds: a sentence is good if the one word of judgement in it is."""

import random
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
    DistilBertTokenizer,
)

from inhibidistilbert import InhibiDistilBertConfig, InhibiDistilBertForSequenceClassification

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NEUTRAL = ["the", "a", "film", "plot", "actor", "music", "scene", "story", "was", "seems", "looks", "very", "quite", "so"]
JUDGEMENTS = (["bad", "dull", "poor"], ["good", "great", "funny"])
VOCABULARY = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *NEUTRAL, *JUDGEMENTS[0], *JUDGEMENTS[1]])}
POSITIONS = 32
SIZES = {
    "vocab_size": len(VOCABULARY),
    "max_position_embeddings": POSITIONS,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 64,
}


def sentences(count: int, seed: int) -> list[tuple[str, int]]:
    """`(sentence, class)`, both classes in turn, of three to nine words."""
    generator = random.Random(seed)
    rows = []
    for index in range(count):
        words = generator.choices(NEUTRAL, k=generator.randint(2, 8))
        words.insert(generator.randrange(len(words) + 1), generator.choice(JUDGEMENTS[index % 2]))
        rows.append((" ".join(words), index % 2))
    return rows


def write_csv(path: Path, rows: list[tuple[str, int]], header: str = "text,label") -> Path:
    path.write_text("\n".join([header, *(f"{text},{label}" for text, label in rows)]) + "\n")
    return path


def write_distilbert(folder: Path, model_class=DistilBertForSequenceClassification, tokenizer=True, **fields) -> Path:
    """A random DistilBERT of the toy's sizes, and the toy's tokenizer."""
    torch.manual_seed(0)
    model_class(DistilBertConfig(**{**SIZES, **fields})).save_pretrained(folder)
    if tokenizer:
        DistilBertTokenizer(vocab=VOCABULARY, model_max_length=POSITIONS).save_pretrained(folder)
    return folder


def write_bert(folder: Path) -> Path:
    """A random BERT classifier, whose tokenizer emits token_type_ids."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=POSITIONS,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizer(vocab=VOCABULARY).save_pretrained(folder)
    return folder


def tiny_student(dtype: torch.dtype = torch.float32, **fields) -> InhibiDistilBertForSequenceClassification:
    """A random inhibitor student of the toy's sizes."""
    torch.manual_seed(0)
    config = InhibiDistilBertConfig(**{**SIZES, "length_normalization": "sqrt", **fields})
    return InhibiDistilBertForSequenceClassification(config).to(dtype)


def write_toy_task(folder: Path) -> Path:
    """An encoder to fine-tune (`encoder`), a student to train (`start`), and labelled and unlabelled texts."""
    write_distilbert(folder / "encoder", DistilBertModel)
    tiny_student().save_pretrained(folder / "start")
    for name, count in {"train": 400, "eval": 100, "test": 60}.items():
        write_csv(folder / f"{name}.csv", sentences(count, seed=count))
    (folder / "transfer.txt").write_text("\n".join(text for text, _ in sentences(200, seed=1)) + "\n\n")
    return folder
