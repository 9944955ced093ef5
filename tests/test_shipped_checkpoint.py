"""The checkpoint that ships with the package: complete, small, up to date, and good on plain sentences."""

import json

import pytest
import torch
from safetensors.torch import load_file

from inhibidistilbert.modeling.sources import AUTO_MAP, source_files, write_remote_code
from inhibidistilbert.prediction import TextClassifier, default_checkpoint
from inhibidistilbert.support.distillation_log import DistillationLog

# Written for this test, so in no training data; films, products and services, with negation and contrast.
POSITIVE = """
I loved every minute of it.
The acting is superb and the story stays with you for days.
A charming little comedy with a big heart.
One of the best books I have read this year.
The staff were friendly and the room was spotless.
It is not perfect, but I enjoyed it a lot.
Beautifully filmed, cleverly written and never boring.
My kids laughed from beginning to end.
Great sound, comfortable fit and worth the money.
An inspiring documentary that everyone should see.
The finale is thrilling and deeply satisfying.
Delicious food and a wonderful evening.
I expected little and was happily surprised.
A masterpiece of quiet, honest storytelling.
The director handles the subject with wit and warmth.
""".strip().splitlines()
NEGATIVE = """
I hated every minute of it.
The acting is wooden and the story goes nowhere.
A lazy comedy without a single good joke.
One of the worst books I have read this year.
The staff were rude and the room was dirty.
It looks nice, but it is a complete bore.
Badly filmed, badly written and far too long.
My kids fell asleep after ten minutes.
Terrible sound, poor fit and a waste of money.
A dull documentary that nobody needs to see.
The finale is predictable and deeply disappointing.
Awful food and a miserable evening.
I expected a lot and was badly let down.
A mess of cheap, pretentious storytelling.
The director ruins the subject with clumsy, lifeless scenes.
""".strip().splitlines()


@pytest.fixture(scope="module")
def classifier() -> TextClassifier:
    return TextClassifier.from_folder(default_checkpoint(), device="cpu")


def test_it_is_small():
    assert sum(file.stat().st_size for file in default_checkpoint().rglob("*")) <= 10_000_000


def test_its_sources_are_those_of_the_package(tmp_path):
    """After a change in `modeling/` or `kernels/`: `make checkpoint-sources`."""
    write_remote_code(tmp_path)
    shipped = {file.name: file.read_text() for file in default_checkpoint().glob("*.py")}
    assert shipped == {name: (tmp_path / name).read_text() for name in source_files()}


def test_its_configuration():
    config = json.loads((default_checkpoint() / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP
    assert config["id2label"] == {"0": "NEGATIVE", "1": "POSITIVE"}
    assert config["dtype"] == "float32"
    assert config["max_position_embeddings"] == 512


def test_its_weights_are_finite_and_its_scalars_in_float32():
    weights = load_file(default_checkpoint() / "model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())
    scalars = {name: weight for name, weight in weights.items() if name.endswith((".alpha", ".beta", ".gamma"))}
    assert len(scalars) == 3 * 3
    assert all(scalar.dtype == torch.float32 for scalar in scalars.values())


def test_its_card_matches_its_log():
    """The figures of the card are those that the distillation wrote."""
    card = (default_checkpoint() / "README.md").read_text()
    log = DistillationLog.read(default_checkpoint())
    assert log.tests["student"], "the student was tested"
    for role in ("teacher", "student"):
        for result in log.tests[role].values():
            assert f"{100 * result['accuracy']:.1f}" in card
            assert str(result["texts"]) in card.replace(",", "")


def test_it_understands_plain_sentences(classifier):
    """At least 80 %, the accuracy asked of it on film sentences, and neither label by default."""
    right = {
        label: sum(prediction.label == label for prediction in classifier.predict(sentences))
        for label, sentences in (("POSITIVE", POSITIVE), ("NEGATIVE", NEGATIVE))
    }
    assert sum(right.values()) >= 0.8 * (len(POSITIVE) + len(NEGATIVE)), right
    assert min(right.values()) > len(POSITIVE) / 2, right


def test_it_reads_long_reviews(classifier):
    """About 500 tokens of one opinion after another: the position table is trained to its end."""
    for label, sentences in (("POSITIVE", POSITIVE), ("NEGATIVE", NEGATIVE)):
        review = " ".join(sentences * 3)
        assert 400 < len(classifier.tokenizer(review)["input_ids"]) <= 512
        (prediction,) = classifier.predict([review])
        assert prediction.label == label
        assert prediction.score > 0.9
