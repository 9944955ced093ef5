"""The shipped tiny checkpoint beside classifiers that know no order of words, trained here on the same reviews.

    python -m studies.distillation.static_classifiers .cache/data

Each is right on a share of the held-out texts, and takes so many a second on one thread of a processor, as they come.
fastText takes part where a package of that name is installed (`pip install fasttext-wheel`).
"""

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from inhibidistilbert.benchmarks.timing import SEED, Budget, interleave, torch_threads
from inhibidistilbert.prediction import TextClassifier, default_checkpoint
from inhibidistilbert.support.errors import UserError
from inhibidistilbert.support.results import Quantiles
from inhibidistilbert.support.text_columns import Column, Value, read_columns, text_column

TRAINING = ("rotten_tomatoes_train.csv", "imdb_train.csv")
HELD_OUT = ("rotten_tomatoes_test.csv", "imdb_test.csv")
_PAIRS = {"ngram_range": (1, 2), "token_pattern": r"\w+|[^\w\s]"}
# As fastText's own examples for reviews have them: words and pairs, five times over all texts.
_DIM, _BUCKETS, _EPOCHS, _BATCH = 16, 1 << 20, 5, 64

Classify = Callable[[Sequence[str]], Sequence[int]]  # texts to 0 or 1


class Texts(NamedTuple):
    texts: list[str]
    labels: list[int]


class Row(NamedTuple):
    """One classifier on one file: the share that it is right on, and texts a second."""

    name: str
    file: str
    accuracy: float
    speed: Quantiles


def read(files: Sequence[Path]) -> Texts:
    """Raises `UserError` where they have no column text, or no column label of 0 and 1."""
    label = Column("label", "label", "the column label", Value("int64"), "classes", "0 or 1", lambda value: value in (0, 1))
    data = read_columns(files, "DATA", [text_column("text"), label])
    return Texts(list(data["text"]), list(data["label"]))


def tiny_checkpoint(training: Texts) -> Classify:
    """As it is: it has seen these reviews through its teacher."""
    classifier = TextClassifier.from_folder(default_checkpoint(), "cpu")
    return lambda texts: [classifier.labels.index(found.label) for found in classifier.predict(texts)]


def words_and_pairs(training: Texts) -> Classify:
    """Logistic regression on how often words and pairs of words occur, those that are rare counting more."""
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)), LogisticRegression(C=10, max_iter=1000))
    model.fit(*training)
    return lambda texts: model.predict(texts).tolist()


def mean_of_embeddings(training: Texts) -> Classify:
    """A linear layer on the mean of learned vectors of words and pairs of words, as fastText has it."""
    counted = HashingVectorizer(**_PAIRS, n_features=_BUCKETS, alternate_sign=False, norm="l1", dtype="float32")
    generator = torch.Generator().manual_seed(SEED)
    torch.manual_seed(SEED)
    vectors, linear = nn.EmbeddingBag(_BUCKETS, _DIM, mode="sum", sparse=True), nn.Linear(_DIM, 2)
    nn.init.uniform_(vectors.weight, -1 / _DIM, 1 / _DIM)

    def scores(rows) -> Tensor:
        places = (torch.from_numpy(each).long() for each in (rows.indices, rows.indptr[:-1]))
        return linear(vectors(*places, per_sample_weights=torch.from_numpy(rows.data)))

    rows, labels = counted.transform(training.texts), torch.tensor(training.labels)
    optimizers = torch.optim.SparseAdam(vectors.parameters(), lr=3e-3), torch.optim.Adam(linear.parameters(), lr=3e-3)
    for _ in range(_EPOCHS):
        for chosen in torch.randperm(len(labels), generator=generator).split(_BATCH):
            for optimizer in optimizers:
                optimizer.zero_grad()
            cross_entropy(scores(rows[chosen.numpy()]), labels[chosen]).backward()
            for optimizer in optimizers:
                optimizer.step()

    @torch.inference_mode()
    def classify(texts: Sequence[str]) -> list[int]:
        return scores(counted.transform(texts)).argmax(-1).tolist()

    return classify


def fasttext(training: Texts) -> Classify:
    """The program itself, with pairs of words."""
    import fasttext as program

    def line(text: str) -> str:
        return " ".join(text.lower().split())

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "training.txt"
        lines = (f"__label__{label} {line(text)}" for text, label in zip(*training, strict=True))
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        model = program.train_supervised(
            str(file), wordNgrams=2, epoch=_EPOCHS, dim=_DIM, lr=0.5, bucket=_BUCKETS, thread=1, seed=SEED, verbose=0
        )
    return lambda texts: [int(names[0][-1]) for names in model.predict(list(map(line, texts)))[0]]


MAKERS: Mapping[str, Callable[[Texts], Classify]] = {
    "tiny checkpoint": tiny_checkpoint,
    "TF-IDF, logistic regression": words_and_pairs,
    "mean of embeddings": mean_of_embeddings,
    "fastText": fasttext,
}


def compare(makers: Mapping[str, Callable[[Texts], Classify]], training: Texts, held_out: Mapping[str, Texts]) -> list[Row]:
    """Train all on one thread, then let them classify the held-out files in turns, three times over."""
    rows = []
    with torch_threads(1):
        classifiers = {name: make(training) for name, make in makers.items()}
        for file, (texts, labels) in held_out.items():
            found = {name: classify(texts) for name, classify in classifiers.items()}
            works = {name: partial(classify, texts) for name, classify in classifiers.items()}
            for name, seconds in interleave(works, Budget(0)).items():
                right = sum(one == other for one, other in zip(found[name], labels, strict=True)) / len(labels)
                rows.append(Row(name, file, right, Quantiles.of([len(texts) / each for each in seconds])))
    return rows


def table(rows: Sequence[Row]) -> str:
    """In Markdown."""
    lines = ["| classifier | held-out texts | right | texts a second |", "|---|---|---:|---:|"]
    lines += [f"| {row.name} | {row.file} | {row.accuracy:.1%} | {row.speed.median:,.0f} |" for row in rows]
    return "\n".join(lines)


def main(folder: Path) -> None:
    makers = dict(MAKERS)
    if find_spec("fasttext") is None:
        del makers["fastText"]
        print("note: fastText is left out: pip install fasttext-wheel", file=sys.stderr)
    training = read([folder / name for name in TRAINING])
    print(table(compare(makers, training, {name: read([folder / name]) for name in HELD_OUT})))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else ".cache/data"))
    except UserError as error:
        sys.exit(f"error: {error}")
