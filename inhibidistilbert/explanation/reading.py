"""A text as a classifier reads it: its words, made whole again from word pieces, each of which can be hidden."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..prediction import TextClassifier, to_scores
from ..support.errors import UserError

# Tokens a forward pass: as many texts of other hidden words as these allow.
_TOKENS_A_PASS = 8192


class Word(NamedTuple):
    """A word as it stands in the text, from character `start` to `end`."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Reading:
    """What the model gets of a text.

    Attributes:
        classifier: model and tokenizer.
        ids: `(1, L)` token ids on the model's device, cut as `predict` cuts them.
        names: of the L tokens.
        words: the words that the tokens are pieces of.
        word_of: `(L,)` the index of each token's word; -1 for special tokens, which no word can hide.
        tokens: length of the whole text in tokens.
    """

    classifier: TextClassifier
    ids: Tensor
    names: list[str]
    words: list[Word]
    word_of: Tensor
    tokens: int

    @classmethod
    def of(cls, text: str, classifier: TextClassifier) -> "Reading":
        """Raises `UserError`: the tokenizer finds no word in the text."""
        tokenizer = classifier.tokenizer
        encoded = tokenizer(
            text,
            truncation=True,
            max_length=classifier.max_tokens,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        # Every window after the first repeats the special tokens.
        special = tokenizer.num_special_tokens_to_add()
        tokens = special + sum(len(ids) - special for ids in encoded["input_ids"])
        ids, places = encoded["input_ids"][0], encoded.word_ids(0)
        spans: dict[int, tuple[int, int]] = {}
        for place, (start, end) in zip(places, encoded["offset_mapping"][0], strict=True):
            if place is not None:
                first, last = spans.get(place, (start, end))
                spans[place] = min(first, start), max(last, end)
        if not spans:
            raise UserError(f"the tokenizer finds no word in the text {text!r}.")
        numbers = {place: number for number, place in enumerate(spans)}
        words = [_word(text, *span) for span in spans.values()]
        word_of = torch.tensor([-1 if place is None else numbers[place] for place in places])
        return cls(
            classifier, torch.tensor([ids], device=classifier.model.device), encoded.tokens(0), words, word_of, tokens
        )

    @torch.no_grad()
    def scores(self, kept: Tensor) -> Tensor:
        """`(K, labels)` as `predict` gives them, for K choices of the words that are kept, `(K, words)` bool; on the CPU.

        The pieces of the others are hidden as padding is: no token sees them. Those that stay keep their positions.

        Raises:
            UserError: they are not finite.
        """
        visible = torch.cat([kept, kept.new_ones(len(kept), 1)], 1)[:, self.word_of]  # -1, a special token, is the last
        rows = max(1, _TOKENS_A_PASS // self.ids.shape[1])
        model = self.classifier.model
        parts = [
            model(self.ids.expand(len(mask), -1), attention_mask=mask.to(model.device)).logits.float().cpu()
            for mask in visible.split(rows)
        ]
        scores = to_scores(torch.cat(parts), model.config)
        if not scores.isfinite().all():
            raise UserError(f"the model in {model.name_or_path!r} gives scores that are not finite: it is damaged.")
        return scores

    @torch.no_grad()
    def inhibition(self, layer: int, head: int) -> tuple[list[str], list[int | None], Tensor]:
        """Words and special tokens in the text's order, the number of each word, and Z `(reading, read)` between them.

        layer, head: from 0, as transformers counts. Between words of several pieces Z is the mean of the pieces' scores.

        Raises:
            UserError: the model has no such layer or head.
        """
        config = self.classifier.model.config
        for what, value, count in (("layer", layer, config.n_layers), ("head", head, config.n_heads)):
            if not 0 <= value < count:
                raise UserError(f"{what} must be from 0 to {count - 1}, for the model has {count}; got {value}.")
        with _eager(self.classifier.model) as model:
            scores = model(self.ids, output_attentions=True).attentions[layer][0, head].float().cpu()
        groups: dict[tuple[int, int], list[int]] = {}
        for token, word in enumerate(self.word_of.tolist()):
            groups.setdefault((word, token if word < 0 else 0), []).append(token)
        names = [self.names[tokens[0]] if word < 0 else self.words[word].text for (word, _), tokens in groups.items()]
        mean = torch.zeros(len(groups), len(scores))
        for row, tokens in zip(mean, groups.values(), strict=True):
            row[tokens] = 1 / len(tokens)
        return names, [word if word >= 0 else None for word, _ in groups], mean @ scores @ mean.T


def check_text(text: str) -> None:
    """Raises `UserError`: the text is empty, or no Unicode."""
    if not text.strip():
        raise UserError(f"the text is empty, got {text!r}; give one to explain.")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"the text must be UTF-8, got {text!r}.")


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """With the implementation that has scores: others give them too, but say so on the terminal."""
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield model
    finally:
        model.set_attn_implementation(usual)


def _word(text: str, start: int, end: int) -> Word:
    """Without the space that some tokenizers count to the word behind it."""
    start += len(text[start:end]) - len(text[start:end].lstrip())
    return Word(text[start:end], start, end)
