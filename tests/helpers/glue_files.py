"""Files of random sentences in GLUE's schema, for all nine tasks, and tiny checkpoints to evaluate on them."""

import random
from pathlib import Path

import torch
from datasets import Dataset
from transformers import DistilBertTokenizer

from inhibidistilbert import InhibiDistilBertForSequenceClassification
from inhibidistilbert.evaluation.tasks import find_task
from tests.helpers.tiny_sentiment import VOCABULARY, WORDS, tiny_config

# Columns and number of classes as on the Hub, nyu-mll/glue; 0 classes for the similarities of STS-B.
SCHEMA = {
    "cola": (("sentence",), 2),
    "sst2": (("sentence",), 2),
    "mrpc": (("sentence1", "sentence2"), 2),
    "qqp": (("question1", "question2"), 2),
    "stsb": (("sentence1", "sentence2"), 0),
    "mnli": (("premise", "hypothesis"), 3),
    "qnli": (("question", "sentence"), 2),
    "rte": (("sentence1", "sentence2"), 2),
    "wnli": (("sentence1", "sentence2"), 2),
}
ENDINGS = ("csv", "jsonl", "parquet")


def rows(task: str, count: int, seed: int, labelled: bool = True) -> list[dict]:
    columns, classes = SCHEMA[task]
    generator = random.Random(seed)
    found = []
    for index in range(count):
        row: dict = {column: " ".join(generator.choices(WORDS, k=generator.randint(2, 7))) for column in columns}
        if labelled:
            row["label"] = generator.randrange(classes) if classes else round(generator.uniform(0, 5), 1)
        else:
            row["label"] = -1 if classes else -1.0
        found.append(row | {"idx": index})
    return found


def write(path: Path, content: list[dict]) -> Path:
    dataset = Dataset.from_list(content)
    writers = {".csv": dataset.to_csv, ".jsonl": dataset.to_json, ".parquet": dataset.to_parquet}
    writers[path.suffix](str(path))
    return path


def write_task(folder: Path, task: str, count: int = 12) -> Path:
    """`train`, the validation splits and the unlabelled test splits; a kind of file after the other."""
    folder.mkdir()
    splits = ["train", *find_task(task).splits, *find_task(task).submissions]
    for number, split in enumerate(splits):
        content = rows(task, count, seed=number, labelled=not split.startswith("test"))
        write(folder / f"{split}.{ENDINGS[(number + list(SCHEMA).index(task)) % 3]}", content)
    return folder


def write_checkpoint(folder: Path, labels: list[str] | int, seed: int = 5, **changes) -> Path:
    """A random classifier with these labels, or so many; 1 for a regression."""
    names = [f"LABEL_{index}" for index in range(labels)] if isinstance(labels, int) else labels
    torch.manual_seed(seed)
    config = tiny_config(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}, **changes)
    InhibiDistilBertForSequenceClassification(config).save_pretrained(folder)
    DistilBertTokenizer(vocab=VOCABULARY, model_max_length=config.max_position_embeddings).save_pretrained(folder)
    return folder
