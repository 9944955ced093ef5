"""The data of the study, made here from tiny archives of the same form."""

import csv
import json
import random
import zipfile
from pathlib import Path

import pytest

from inhibidistilbert.support.errors import UserError
from studies.distillation import review_data, study_data
from studies.distillation.leaks import normalized
from studies.distillation.study_data import TASKS, prepare, split_documents
from tests.helpers.toy_archives import described, opinion, write_archives, write_snippets

MOVIES = [line for number in range(20) for line in (opinion(50 + number), opinion(number), opinion(number))]
# A held-out movie sentence among the headlines, paragraphs and graded sentences that are trained on.
HELD_OUT = opinion(60)
TEST_SIZES = {"rotten_tomatoes": 10, "imdb": 4, "graded_sentiment": 4, "sarcasm": 5}


def write_evals(path: Path, headlines: list[str], paragraphs: list[str]) -> Path:
    """An archive of headlines, sarcastic ones in turn, and of half the paragraphs in each of its two files."""

    def sample(index: int, text: str) -> str:
        return json.dumps({"input": [{"content": "Is it sarcasm?"}, {"content": text}], "ideal": str(index % 2)})

    half = len(paragraphs) // 2
    files = {
        "sarcasm/samples": [sample(index, text) for index, text in enumerate(headlines)],
        "schelling_point/owt_5": [json.dumps({"0": text, "1": "shuffled words"}) for text in paragraphs[:half]],
        "schelling_point/wikipedia_5": [json.dumps({"0": text, "1": "shuffled words"}) for text in paragraphs[half:]],
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for name, lines in files.items():
            wheel.writestr(f"evals/registry/data/{name}.jsonl", "\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("archives")
    archives = write_archives(folder)
    graded = [opinion(3000 + number) for number in range(40)]
    write_snippets(
        folder / "snippets.tar.gz",
        MOVIES,
        amazonReviewSnippets=[*graded[:32], HELD_OUT, HELD_OUT],
        tweets=graded[32:36],
        nytEditorialSnippets=[*graded[32:36], *graded[36:]],
    )
    headlines = [opinion(4000 + number) for number in range(30)]
    paragraphs = [f"{opinion(5000 + number)} {opinion(6000 + number)}" for number in range(6)]
    write_evals(folder / "evals.whl", [*headlines, headlines[0], HELD_OUT.upper()], [*paragraphs, f"{HELD_OUT} Two words."])
    return archives | {"EVALS": folder / "evals.whl"}


@pytest.fixture
def prepared(archives, tmp_path, monkeypatch, no_download):
    """`prepared(name)`: a folder of data made from the tiny archives."""
    monkeypatch.setattr(review_data, "IMDB_TEST_SIZE", 4)
    for name, size in {"IMDB_TRAIN_SIZE": 4, "IMDB_VALIDATION_SIZE": 2, "LONG_REVIEW": 60}.items():
        monkeypatch.setattr(study_data, name, size)
    for name, size in {"TRAIN": 20, "VALIDATION": 3, "TEST": 5}.items():
        monkeypatch.setattr(study_data, f"SARCASM_{name}_SIZE", size)
    for constant, path in archives.items():
        monkeypatch.setattr(study_data if constant == "EVALS" else review_data, constant, described(path))

    def prepared(name: str) -> Path:
        folder = tmp_path / name
        (folder / "archives").mkdir(parents=True)
        for path in archives.values():
            (folder / "archives" / path.name).symlink_to(path)
        prepare(folder)
        return folder / "study"

    return prepared


def test_the_same_seed_gives_the_same_files(prepared):
    first, again = prepared("first"), prepared("again")
    names = sorted(file.name for file in first.iterdir())
    parts = ("test", "train", "validation")
    assert names == sorted(
        [*(f"{task}_{part}.csv" for task in TASKS for part in parts), "imdb_long_test.csv", "unlabelled.txt"]
    )
    assert all((first / name).read_bytes() == (again / name).read_bytes() for name in names)


def rows_of(folder: Path, *names: str) -> list[tuple[str, float]]:
    rows = []
    for name in names:
        with (folder / f"{name}.csv").open(newline="") as file:
            rows += [(row["text"], float(row["label"])) for row in csv.DictReader(file)]
    return rows


def test_no_held_out_text_is_trained_on_and_nothing_else_is_lost(prepared):
    study = prepared("data")
    held_out = {normalized(opinion(50 + number)) for number in range(20)}
    for task in TASKS:
        parts = {part: rows_of(study, f"{task}_{part}") for part in ("train", "validation", "test")}
        assert len(parts["test"]) == TEST_SIZES[task]
        train = {normalized(text) for text, _ in parts["train"]}
        held_out |= {normalized(text) for part in ("validation", "test") for text, _ in parts[part]}
        assert len(train) == len(parts["train"]) > 0
        assert not train & held_out
    unlabelled = (study / "unlabelled.txt").read_text().splitlines()
    assert not held_out & set(map(normalized, unlabelled))
    # All paragraphs' sentences but the one that is held out and the one of two words; all training sentences.
    assert {opinion(5000 + number) for number in range(6)} | {opinion(6000 + number) for number in range(6)} <= set(
        unlabelled
    )
    assert "Two words." not in unlabelled
    assert {opinion(number) for number in range(20)} <= set(unlabelled)


def test_the_labels_are_those_of_the_archives(prepared):
    study = prepared("data")
    headlines = rows_of(study, *(f"sarcasm_{part}" for part in ("train", "validation", "test")))
    assert set(headlines) - {(HELD_OUT.upper(), 1.0)} <= {(opinion(4000 + number), number % 2) for number in range(30)}
    graded = rows_of(study, *(f"graded_sentiment_{part}" for part in ("train", "validation", "test")))
    grades = [*((opinion(3000 + number), number % 9 - 4) for number in range(32)), (HELD_OUT, 32 % 9 - 4)]
    grades += [(opinion(3032 + number), number % 9 - 4) for number in range(4)]
    grades += [(opinion(3036 + number), (number + 4) % 9 - 4) for number in range(4)]
    assert set(graded) <= set(grades)
    assert len(graded) >= 40


def test_a_text_that_slips_through_stops_the_build(prepared, monkeypatch, tmp_path):
    # What leaves held-out texts out sees none; the comparison at the end still does.
    monkeypatch.setattr(study_data, "normalized", lambda text: text)
    with pytest.raises(UserError, match="held out") as caught:
        prepared("data")
    assert HELD_OUT.upper() in str(caught.value) or HELD_OUT in str(caught.value)
    assert not (tmp_path / "data" / "study").exists()


def test_a_document_lies_in_one_split():
    documents = {f"review {number}": [(opinion(10 * number + place), 0.0) for place in range(4)] for number in range(40)}
    test, validation, train = split_documents(documents, random.Random(0))
    assert (len(test), len(validation), len(train)) == (16, 8, 136)
    owner = {text: name for name, rows in documents.items() for text, _ in rows}
    owners = [{owner[text] for text, _ in part} for part in (test, validation, train)]
    assert sum(map(len, owners)) == 40
