"""The data of the study, made here from tiny archives of the same form."""

import csv
import itertools
import json
import random
import zipfile
from pathlib import Path

import pytest

from inhibidistilbert.support.errors import UserError
from studies.distillation import pair_data, review_data, study_data
from studies.distillation.leaks import normalized
from studies.distillation.pair_data import PARTS, Pair, Sense, next_sentence, texts_of_senses, word_sense, word_senses
from studies.distillation.study_data import TASKS, prepare, split_documents
from tests.helpers.toy_archives import described, opinion, write_archives, write_snippets, write_wordnet

SENSES = [
    (
        [f"word{number}", f"synonym{number}", "of_two_parts"],
        f"meaning {sense} of word{number}",
        [f"example {sense} of a word{number}"],
    )
    for number in range(10)
    for sense in range(2)
]
MOVIES = [line for number in range(20) for line in (opinion(50 + number), opinion(number), opinion(number))]
# A held-out movie sentence among the headlines, paragraphs and graded sentences that are trained on.
HELD_OUT = opinion(60)
TEST_SIZES = {"rotten_tomatoes": 10, "imdb": 5, "graded_sentiment": 4, "sarcasm": 8}
PARAGRAPHS = 20
PAIR_TASKS = ("next_sentence", "word_sense")


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
    paragraphs = [f"{opinion(5000 + number)} {opinion(6000 + number)}" for number in range(PARAGRAPHS)]
    write_evals(folder / "evals.whl", [*headlines, headlines[0], HELD_OUT.upper()], [*paragraphs, f"{HELD_OUT} Two words."])
    return archives | {"EVALS": folder / "evals.whl", "WORDNET": write_wordnet(folder / "wordnet.tar.gz", SENSES)}


@pytest.fixture
def prepared(archives, tmp_path, monkeypatch, no_download):
    """`prepared(name)`: a folder of data made from the tiny archives."""
    monkeypatch.setattr(review_data, "IMDB_TEST_SIZE", 4)
    sizes = {
        **{"IMDB_TRAIN_SIZE": 2, "IMDB_VALIDATION_SIZE": 2, "OTHER_REVIEWS": {"unlabelled": 1, "test": 1, "pairs": 2}},
        **{"SARCASM_SIZES": (5, 3, 20), "PAIR_SIZES": (8, 4, 8), "LONG_REVIEW": 60},
    }
    for name, size in sizes.items():
        monkeypatch.setattr(study_data, name, size)
    modules = {"EVALS": study_data, "WORDNET": pair_data}
    for constant, path in archives.items():
        monkeypatch.setattr(modules.get(constant, review_data), constant, described(path))

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
    files = [f"{task}_{part}.csv" for task in (*TASKS, *PAIR_TASKS) for part in PARTS]
    assert names == sorted([*files, "imdb_long_test.csv", "unlabelled.txt"])
    assert all((first / name).read_bytes() == (again / name).read_bytes() for name in names)


def rows_of(folder: Path, *names: str) -> list[tuple[str, float]]:
    rows = []
    for name in names:
        with (folder / f"{name}.csv").open(newline="") as file:
            rows += [(row["text"], float(row["label"])) for row in csv.DictReader(file)]
    return rows


def read_pairs(folder: Path, task: str, part: str) -> list[Pair]:
    with (folder / f"{task}_{part}.csv").open(newline="") as file:
        return [Pair(row["text"], row["text_pair"], int(row["label"])) for row in csv.DictReader(file)]


def texts_of(pairs: list[Pair]) -> set[str]:
    return {normalized(text) for pair in pairs for text in pair[:2]}


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
    # All paragraphs' sentences but those that are held out and the one of two words; all training sentences.
    paragraphs = {opinion(start + number) for start in (5000, 6000) for number in range(PARAGRAPHS)}
    pairs = {text for part in ("test", "validation") for text in texts_of(read_pairs(study, "next_sentence", part))}
    assert {text for text in paragraphs if normalized(text) not in pairs} <= set(unlabelled)
    assert paragraphs & set(unlabelled) < paragraphs
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


# Pairs


def test_pairs_of_the_files_are_of_two_texts_that_no_other_part_has(prepared):
    study = prepared("data")

    for task, keys in (("next_sentence", texts_of), ("word_sense", texts_of_senses)):
        pairs = [read_pairs(study, task, part) for part in PARTS]
        assert all({pair.label for pair in part} == {0, 1} for part in pairs)
        texts = list(map(keys, pairs))
        assert all(not first & second for first, second in itertools.combinations(texts, 2))
        unlabelled = set(map(normalized, (study / "unlabelled.txt").read_text().splitlines()))
        assert not (texts[0] | texts[1]) & unlabelled


def test_the_second_sentence_follows_or_is_of_another_document():
    kinds = [
        [" ".join(opinion(200 * kind + 10 * number + place) for place in range(9)) for number in range(20)]
        for kind in (0, 1)
    ]
    parts = next_sentence(kinds, (24, 24, 72), random.Random(0))
    assert [len(parts[part]) for part in PARTS] == [24, 24, 72]
    numbers = {normalized(opinion(number)): number for number in range(400)}
    documents = []
    for pairs in parts.values():
        assert sum(pair.label for pair in pairs) == len(pairs) / 2
        places = [(numbers[normalized(pair.text)], numbers[normalized(pair.text_pair)], pair.label) for pair in pairs]
        assert all(second == first + 1 for first, second, label in places if label)
        assert all(
            first // 10 != second // 10 and first // 200 == second // 200 for first, second, label in places if not label
        )
        assert len({second for _, second, _ in places}) == len(pairs)
        documents.append({first // 10 for first, _, _ in places})
    assert sum(map(len, documents)) == 40


def test_senses_are_those_of_the_archive(tmp_path):
    write_wordnet(tmp_path / "archive", [(["cold", "Chilly(p)"], "of low warmth; frozen", ["a cold day", "the cold air"])])
    sense = Sense("of low warmth; frozen", ("a cold day", "the cold air"))
    assert word_senses(tmp_path / "archive") == {("cold", "noun"): [sense], ("chilly", "noun"): [sense]}


def test_an_example_comes_with_its_definition_and_with_one_of_another_sense():
    """Only where the word stands in the example, which is no mere phrase, and has another sense."""
    senses = {
        ("bank", "noun"): [Sense("a slope", ("we sat on the banks", "two banks")), Sense("a house", ("my money has gone",))],
        ("one", "noun"): [Sense("the number", ("one of us must go",))],
        # The definition of a word of the test.
        ("shore", "noun"): [Sense("a slope", ("we swam to the shore",)), Sense("a prop", ())],
    }
    parts = word_sense(senses, (2, 2, 2), random.Random(0))
    (first, second), *others = [parts[part] for part in PARTS if parts[part]]
    assert others == []
    assert {first.text, second.text} <= {"we sat on the banks"} or {first.text, second.text} == {"we swam to the shore"}
    assert {(pair.text_pair.partition(": ")[2], pair.label) for pair in (first, second)} in (
        {("a slope", 1), ("a house", 0)},
        {("a slope", 1), ("a prop", 0)},
    )
