"""Classifiers that know no order of words, beside the tiny checkpoint: they learn, and are measured on the same texts."""

import random

import pytest

from inhibidistilbert.support.errors import UserError
from studies.distillation import static_classifiers
from studies.distillation.static_classifiers import HELD_OUT, MAKERS, TRAINING, Texts, compare, main, read

GOOD, BAD = ("good", "lovely", "warm", "funny"), ("bad", "awful", "cold", "dull")


def reviews(count: int, seed: int) -> Texts:
    """Of which one word tells."""
    drawn = random.Random(seed)
    labels = [number % 2 for number in range(count)]
    return Texts([f"This film was a {drawn.choice(GOOD if label else BAD)} one ." for label in labels], labels)


def write(folder, reviews: dict[str, Texts]) -> None:
    for name, (texts, labels) in reviews.items():
        lines = (f'"{text}",{label}' for text, label in zip(texts, labels, strict=True))
        (folder / name).write_text("\n".join(["text,label", *lines]) + "\n")


@pytest.mark.parametrize("name", MAKERS)
def test_a_classifier_learns(name):
    if name == "fastText":
        pytest.importorskip("fasttext")
    training, (texts, labels) = reviews(3000, 0), reviews(40, 1)
    found = MAKERS[name](training)(texts)
    assert len(found) == len(labels)
    assert sum(one == other for one, other in zip(found, labels, strict=True)) >= 38


def test_the_labels_are_learned_not_known():
    training = reviews(3000, 0)
    turned = Texts(training.texts, [1 - label for label in training.labels])
    for name in ("TF-IDF, logistic regression", "mean of embeddings"):
        assert MAKERS[name](turned)(["a good film", "an awful film"]) == [0, 1]


def test_accuracy_and_speed_on_the_same_texts():
    held_out = {"one": Texts(["a", "b", "c", "d"], [0, 1, 1, 1]), "other": Texts(["a"], [1])}
    seen = []
    makers = {
        "always 1": lambda training: lambda texts: [1] * len(texts),
        "asks": lambda training: lambda texts: seen.append(list(texts)) or [0] * len(texts),
    }
    rows = compare(makers, Texts([], []), held_out)
    shares = [(row.name, row.file, row.accuracy) for row in rows]
    assert shares == [("always 1", "one", 0.75), ("asks", "one", 0.25), ("always 1", "other", 1.0), ("asks", "other", 0.0)]
    assert all(row.speed.low > 0 for row in rows)
    assert seen == [["a", "b", "c", "d"]] * 4 + [["a"]] * 4  # once for the answers, three times for the time


def test_the_table(tmp_path, monkeypatch, capsys):
    write(tmp_path, {name: reviews(40, 0) for name in (*TRAINING, *HELD_OUT)})
    monkeypatch.setattr(static_classifiers, "MAKERS", {"TF-IDF": MAKERS["TF-IDF, logistic regression"], "fastText": None})
    monkeypatch.setattr(static_classifiers, "find_spec", lambda name: None)
    main(tmp_path)
    out, err = capsys.readouterr()
    assert [line.split(" | ")[:3] for line in out.splitlines()[2:]] == [["| TF-IDF", name, "100.0%"] for name in HELD_OUT]
    assert err == "note: fastText is left out: pip install fasttext-wheel\n"


def test_labels_of_another_kind_are_refused(tmp_path):
    write(tmp_path, {"reviews.csv": Texts(["a good film"], [2])})
    with pytest.raises(UserError, match=r"reviews\.csv.*0 or 1"):
        read([tmp_path / "reviews.csv"])
