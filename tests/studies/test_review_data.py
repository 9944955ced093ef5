"""The offline data of the shipped model, made here from tiny archives of the same form."""

import csv
import io
import random
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, DistilBertModel

from inhibidistilbert.support.errors import UserError
from studies.distillation import review_data
from studies.distillation.review_data import (
    LONGEST_PASSAGE,
    fetch,
    fragments,
    held_out_sentences,
    labelled_reviews,
    passages,
    prepare,
    write_teacher,
)
from tests.helpers.toy_archives import described, opinion, write_archives, write_encoder, write_reviews, write_snippets

# Archives


@pytest.mark.usefixtures("no_download")
def test_a_right_archive_in_the_cache_is_used(tmp_path):
    (tmp_path / "a.whl").write_bytes(b"content")
    assert fetch(described(tmp_path / "a.whl"), tmp_path) == tmp_path / "a.whl"


@pytest.mark.usefixtures("no_download")
def test_a_wrong_archive_is_refused(tmp_path):
    (tmp_path / "a.whl").write_bytes(b"content")
    right = described(tmp_path / "a.whl")
    (tmp_path / "a.whl").write_bytes(b"c0ntent")
    with pytest.raises(UserError) as caught:
        fetch(right, tmp_path)
    message = str(caught.value)
    for part in (str(tmp_path / "a.whl"), right.sha256, described(tmp_path / "a.whl").sha256, "delete it"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(("name", "form"), [("a.whl", "--only-binary"), ("a.tar.gz", "--no-binary")])
def test_a_missing_archive_is_downloaded_alone_and_checked(tmp_path, monkeypatch, name, form):
    commands = []

    def download(command, check):
        commands.append(command)
        (tmp_path / "cache" / name).write_bytes(b"other content")

    monkeypatch.setattr(subprocess, "run", download)
    (tmp_path / name).write_bytes(b"content")
    with pytest.raises(UserError, match="SHA-256"):
        fetch(described(tmp_path / name), tmp_path / "cache")
    (command,) = commands
    assert {"download", "--no-deps", form, "some-package==1.0", str(tmp_path / "cache")} <= set(command)


# The teacher


def test_the_teacher_is_the_encoder_under_distilberts_names(tmp_path):
    bert = write_encoder(tmp_path / "a.whl", tmp_path / "bert")
    write_teacher(tmp_path / "a.whl", tmp_path / "teacher")
    model = DistilBertModel.from_pretrained(tmp_path / "teacher").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "teacher")
    assert tokenizer.model_max_length == 512
    inputs = tokenizer(["a good film", "bad"], padding=True, return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask"}
    real = inputs["attention_mask"].bool()
    expected, answer = bert(**inputs).last_hidden_state, model(**inputs).last_hidden_state
    torch.testing.assert_close(answer[real], expected[real], rtol=0, atol=1e-5)


# Reviews


def test_reviews_are_cleaned_and_split_by_source(tmp_path):
    rows = [
        ("A long<br /><br />review,  with breaks.", 1, "imdb"),
        ("a short one", 0, "rotten_tomatoes"),
        ("a short one", 0, "rotten_tomatoes"),
        ("A long review, with breaks.", 1, "imdb"),
        ("another", 1, "rotten_tomatoes"),
    ]
    tomatoes, imdb = labelled_reviews(write_reviews(tmp_path / "reviews.whl", rows))
    assert tomatoes == [("a short one", 0), ("another", 1)]
    assert imdb == [("A long review, with breaks.", 1)]


# Passages of them


class Draws(random.Random):
    """`random()` always gives the same number: below 1/6 for a longer passage, above for a single sentence."""

    # Named here, so that `randint` draws its bits as ever and not from `random`.
    getrandbits = random.Random.getrandbits

    def __init__(self, value: float):
        super().__init__(0)
        self.value = value

    def random(self) -> float:
        return self.value


def test_single_sentences_of_three_words_or_more():
    review = "I liked it a lot. Really? What a fine film! It ends too soon... (It does.) No more words here"
    assert passages(review, Draws(0.9)) == [
        "I liked it a lot.",
        "What a fine film!",
        "It ends too soon...",
        "(It does.) No more words here",
    ]


def test_longer_passages_end_at_the_sentence_that_makes_them_long_enough():
    review = " ".join(f"{number} is one sentence of seven words." for number in range(200))
    cut = passages(review, Draws(0.1))
    assert " ".join(cut) == review
    lengths = [len(passage.split()) for passage in cut]
    assert all(40 <= length < LONGEST_PASSAGE + 7 for length in lengths[:-1])
    assert len(set(lengths)) > 2


def test_endless_sentences_are_left_out():
    assert passages("word " * (LONGEST_PASSAGE + 41) + ". A fine film.", Draws(0.9)) == ["A fine film."]


def test_one_passage_in_six_is_long():
    review = " ".join(f"{number} is one sentence of seven words." for number in range(6000))
    cut = passages(review, random.Random(0))
    longer = sum(len(passage.split()) > 7 for passage in cut)
    assert 0.12 < longer / len(cut) < 0.22
    assert cut == passages(review, random.Random(0))
    assert cut != passages(review, random.Random(1))


# Fragments of sentences


def test_fragments_are_runs_of_three_words_or_more_but_not_all():
    sentence = "a film that nobody will want to see twice"
    cut = [fragment for seed in range(50) for fragment in fragments(sentence, random.Random(seed))]
    assert len(cut) == 250
    assert {len(fragment.split()) for fragment in cut} == set(range(3, 9))
    assert all(f" {fragment} " in f" {sentence} " for fragment in cut)
    assert any(sentence.startswith(fragment) for fragment in cut)
    assert any(sentence.endswith(fragment) for fragment in cut)


@pytest.mark.parametrize("sentence", ["", "bad", "a good film"])
def test_short_sentences_have_no_fragments(sentence):
    assert fragments(sentence, random.Random(0)) == []


# Held-out sentences

TRAIN = [
    ("one two three four five six seven eight nine ten", 1),
    ("caf\u00e9 society & its discontents , retold", 1),
    ("the plot is thin and the acting thinner still", 0),
    ("a waste of a good cast and of our time", 0),
]


def held_out(tmp_path: Path, sentences: list[str]) -> list[tuple[str, int]]:
    return held_out_sentences(write_snippets(tmp_path / "snippets.tar.gz", sentences), TRAIN)


def test_a_sentence_takes_the_class_of_its_run(tmp_path):
    sentences = [
        "before all known ones stands this sentence",
        TRAIN[0][0],
        "first new sentence among the positive ones",
        TRAIN[1][0],
        "second new remark in praise of something",
        TRAIN[2][0],
        "third new remark to blame what follows",
        TRAIN[3][0],
        "fourth new line at the very end",
    ]
    assert held_out(tmp_path, sentences) == [
        (sentences[0], 1),
        (sentences[2], 1),
        (sentences[4], 1),
        (sentences[6], 0),
        (sentences[8], 0),
    ]


@pytest.mark.parametrize(
    "copy",
    [
        "The plot is thin, and the acting thinner still.",
        "the plot is thin -- and the acting thinner still &nbsp;",
        "caf&eacute; society &amp; its discontents, retold",
    ],
    ids=["case-and-points", "entity", "encoded"],
)
def test_a_training_sentence_in_other_dress_is_not_held_out(tmp_path, copy):
    assert held_out(tmp_path, [TRAIN[0][0], copy]) == []


@pytest.mark.parametrize(
    ("sentence", "kept"),
    [
        # 8 of 11 words are shared, 0.73; 8 of 12, 0.67; 7 of 10 are not more than 0.7.
        ("one two three four five six seven eight eleven", False),
        ("one two three four five six seven eight eleven twelve", True),
        ("one two three four five six seven", True),
        ("one two three four five six seven eight", False),
        ("ten nine eight seven six five four three two one", False),
    ],
    ids=["0.73", "0.67", "0.70", "0.80", "reordered"],
)
def test_a_near_duplicate_is_not_held_out(tmp_path, sentence, kept):
    assert held_out(tmp_path, [TRAIN[0][0], sentence]) == ([(sentence, 1)] if kept else [])


def test_entities_are_resolved(tmp_path):
    assert held_out(tmp_path, [TRAIN[0][0], "rock &amp; roll is here to stay "]) == [("rock & roll is here to stay", 1)]


# All of it


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> dict[str, Path]:
    return write_archives(tmp_path_factory.mktemp("archives"))


@pytest.fixture
def prepared(archives, tmp_path, monkeypatch):
    """`prepared(name, seed)`: the files of a data folder made from the tiny archives, by name."""
    monkeypatch.setattr(review_data, "IMDB_TEST_SIZE", 4)
    for constant, path in archives.items():
        monkeypatch.setattr(review_data, constant, described(path))

    def prepared(name: str, seed: int = 0) -> dict[str, bytes]:
        folder = tmp_path / name
        (folder / "archives").mkdir(parents=True)
        for path in archives.values():
            (folder / "archives" / path.name).symlink_to(path)
        prepare(folder, seed)
        return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}

    return prepared


def rows_of(content: bytes) -> list[tuple[str, int]]:
    return [(row["text"], int(row["label"])) for row in csv.DictReader(io.StringIO(content.decode(), newline=""))]


@pytest.mark.usefixtures("no_download")
def test_the_same_seed_gives_the_same_files(prepared):
    first, again, other = prepared("first"), prepared("again"), prepared("other", seed=1)
    assert first == again
    assert first.keys() == other.keys()
    assert first["transfer.txt"] != other["transfer.txt"]
    assert first["imdb_test.csv"] != other["imdb_test.csv"]


@pytest.mark.usefixtures("no_download")
def test_the_files_hold_all_texts_and_share_none(prepared, tmp_path):
    files = prepared("data")
    rows = {name.removesuffix(".csv"): rows_of(content) for name, content in files.items() if name.endswith(".csv")}
    assert {name: len(part) for name, part in rows.items()} == {
        "rotten_tomatoes_train": 20,
        "rotten_tomatoes_validation": 10,
        "rotten_tomatoes_test": 10,
        "imdb_train": 8,
        "imdb_train_10k": 8,
        "imdb_test": 4,
    }
    tomatoes = [text for name in rows if name.startswith("rotten") for text, _ in rows[name]]
    reviews = [text for name in ("imdb_train", "imdb_test") for text, _ in rows[name]]
    assert len(set(tomatoes)) == len(tomatoes)
    assert len(set(reviews)) == len(reviews)
    assert sorted(rows["rotten_tomatoes_train"]) == sorted((opinion(number), int(number >= 10)) for number in range(20))
    # New sentence 60 comes before the first positive one.
    held_out = [*rows["rotten_tomatoes_validation"], *rows["rotten_tomatoes_test"]]
    assert sorted(held_out) == sorted((opinion(number), int(number > 60)) for number in range(50, 70))
    transfer = files["transfer.txt"].decode().splitlines()
    assert len(set(transfer)) == len(transfer)
    sources = [text for name in ("imdb_train", "rotten_tomatoes_train") for text, _ in rows[name]]
    assert all(any(line in source for source in sources) for line in transfer)
    assert (tmp_path / "data" / "minilm" / "model.safetensors").is_file()
