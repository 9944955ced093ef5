"""Unlabelled text as a stream of token ids, never whole in memory: for alignment and pretraining."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import IterableDataset, Value, interleave_datasets
from torch.utils.data import IterableDataset as TorchIterableDataset
from transformers import PreTrainedTokenizerBase

from ..support.errors import UserError
from ..support.text_columns import is_text
from ..support.text_files import Declared, stream_file
from .data import TEXTS

SHUFFLED_TEXTS = 10_000  # that are in memory to draw from
WINDOW = 16  # batches that are sorted by length together, so that a batch holds little padding


def open_texts(files: Sequence[str], text_column: str) -> list[IterableDataset]:
    """One stream a file, each of the one column `text`.

    Raises:
        UserError: no file, one that cannot be read, or one without this column or a text in it.
    """
    if not files:
        raise UserError(f"{TEXTS}: at least one file of texts is needed.")
    streams = []
    for path in map(Path, files):
        column = "text" if path.suffix.lower() == ".txt" else text_column
        stream = stream_file(path, TEXTS, {column: Declared(Value("string"), "texts", "--text-column")})
        if column != "text":
            stream = stream.rename_column(column, "text")
        if not any(is_text(row["text"]) for row in itertools.islice(stream, SHUFFLED_TEXTS)):
            raise UserError(f"{TEXTS}: {str(path)!r} holds no text in {column!r}.")
        streams.append(stream)
    return streams


@dataclass
class TextStream(TorchIterableDataset):
    """Rows `{"input_ids": [...]}` without an end: pass after pass over all texts, each in another order.

    The same seed and batch size give the same rows in the same order, and rows come in batches of similar length.

    max_length: tokens a text is cut to. blocks: run the texts together and cut at every `max_length` tokens instead.
    """

    texts: list[IterableDataset]
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    batch_size: int
    seed: int
    blocks: bool = False

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        for number in itertools.count():
            # One generator a pass: what a pass yields does not depend on the passes before it.
            generator = random.Random(f"{self.seed}-{number}")
            rows = self._blocks(number) if self.blocks else self._rows(number)
            while window := list(itertools.islice(rows, WINDOW * self.batch_size)):
                window.sort(key=len)
                batches = [window[start : start + self.batch_size] for start in range(0, len(window), self.batch_size)]
                generator.shuffle(batches)
                yield from ({"input_ids": ids} for batch in batches for ids in batch)

    def _texts(self, number: int) -> Iterator[str]:
        texts = interleave_datasets(self.texts, stopping_strategy="all_exhausted_without_replacement")
        shuffled = texts.shuffle(seed=(self.seed + number) % 2**32, buffer_size=SHUFFLED_TEXTS)
        return (row["text"] for row in shuffled if is_text(row["text"]))

    def _encoded(self, number: int, **options) -> Iterator[list[int]]:
        texts = self._texts(number)
        while some := list(itertools.islice(texts, 1000)):
            yield from self.tokenizer(some, return_attention_mask=False, verbose=False, **options)["input_ids"]

    def _rows(self, number: int) -> Iterator[list[int]]:
        return self._encoded(number, truncation=True, max_length=self.max_length)

    def _blocks(self, number: int) -> Iterator[list[int]]:
        # What is too short for a block at the end of a pass is left out.
        tokens: list[int] = []
        # An encoder puts one special token before a text, the others behind it.
        special = self.tokenizer("")["input_ids"]
        inner = self.max_length - len(special)
        for ids in self._encoded(number, add_special_tokens=False, truncation=False):
            tokens += ids
            while len(tokens) >= inner:
                yield [*special[:1], *tokens[:inner], *special[1:]]
                tokens = tokens[inner:]
