"""What an explanation holds, the sentences that tell it, and its JSON."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .attribution import Deletion, Effects
from .reading import Word

MOST_DRAWN = 200  # words of a matrix that somebody can read


@dataclass(frozen=True)
class Inhibition:
    """The scores Z between the words at one layer and head, both counted from 0, as transformers counts.

    Attributes:
        words: in the order of the text, with the special tokens around it, such as `[CLS]`.
        places: the number of each among the words of the text; None for special tokens.
        scores: Z, a row for each word that reads, a column for each word that it reads from.
        gate: whether Z may be below 0, where what passes is more than half of it.
    """

    layer: int
    head: int
    words: list[str]
    places: list[int | None]
    scores: list[list[float]]
    gate: bool


@dataclass(frozen=True)
class Result:
    """What the model did to a text.

    Attributes:
        text: the whole text.
        model: its name.
        label: the class that is explained. score: its probability; for a regression the value.
        predicted: the class that the model answers.
        regression: whether the score is a value.
        tokens: length of the whole text in tokens. most_tokens: what the model reads of it at most.
        words: those that the model has read. effects: of each of them on the score.
        deletion: the score while words are hidden. inhibition: between the words.
    """

    text: str
    model: str
    label: str
    score: float
    predicted: str
    regression: bool
    tokens: int
    most_tokens: int
    words: list[Word]
    effects: Effects
    deletion: Deletion
    inhibition: Inhibition

    def ranked(self) -> list[tuple[str, float]]:
        """Words and effects, the strongest first."""
        pairs = zip((word.text for word in self.words), self.effects.words, strict=True)
        return sorted(pairs, key=lambda pair: -abs(pair[1]))

    @property
    def cut(self) -> bool:
        return self.tokens > self.most_tokens

    @property
    def measure(self) -> str:
        return "value" if self.regression else f"probability of {self.label}"

    def answer(self) -> str:
        if self.regression:
            return f"{self.model} gives the value {self.score:.3f} ({self.label})."
        if self.label == self.predicted:
            return f"{self.model} answers {self.label}, with a probability of {self.score:.3f}."
        return (
            f"{self.model} answers {self.predicted}. Explained is {self.label}, to which it gives a probability of "
            f"{self.score:.3f}."
        )

    def total(self) -> str:
        return (
            f"All effects add up to {signed(sum(self.effects.words))}. The {self.measure} is {self.effects.baseline:.3f} "
            f"where every word is an unknown one, and {self.effects.baseline + self.effects.difference:.3f} for the text."
        )

    def deletion_told(self) -> str:
        return (
            f"While the words are hidden from the model, those first that raise the {self.measure} most, it is "
            f"{self.deletion.area:.3f} on average. In random order it is {self.deletion.random_area:.3f}. The lower the "
            "first, the more the answer rests on the marked words."
        )

    def warnings(self) -> list[str]:
        """What a reader should know before he trusts it."""
        found = []
        if self.cut:
            found.append(f"The text is cut to the model's {self.most_tokens} positions; it has {self.tokens} tokens.")
        if not self.effects.complete:
            found.append(
                f"The effects are not exact: they add up to {signed(sum(self.effects.words))} instead of "
                f"{signed(self.effects.difference)}."
            )
        if self.deletion.area > self.deletion.random_area + 1e-6:  # a single word has one order
            found.append("The effects tell little here: to hide words in random order changes the answer as soon.")
        return found

    def matrix(self) -> tuple[list[str], list[list[float]]]:
        """The words that are drawn, and Z between them: special tokens, and the strongest of very many words."""
        effects = [math.inf if place is None else abs(self.effects.words[place]) for place in self.inhibition.places]
        shown = sorted(sorted(range(len(effects)), key=lambda row: -effects[row])[:MOST_DRAWN])
        scores = self.inhibition.scores
        return [self.inhibition.words[row] for row in shown], [[scores[row][column] for column in shown] for row in shown]

    def place(self) -> str:
        return f"layer {self.inhibition.layer}, head {self.inhibition.head}"

    def meaning(self) -> str:
        gate = " Below 0 (orange) more than half of a value passes." if self.inhibition.gate else " At 0 all of it passes."
        more = len(self.inhibition.words) > MOST_DRAWN
        drawn = f" Of so many words the {MOST_DRAWN} with the strongest effects are drawn." if more else ""
        return (
            "A row is a word that reads, a column a word that it reads from. The number is Z: so much is taken off the "
            f"values that come from there. The fuller the blue, the less comes through.{gate} The fullest colour is "
            f"{largest(self.matrix()[1]):.2f}. The answer is read in the row of {self.inhibition.words[0]}.{drawn}"
        )

    def to_dict(self) -> dict[str, Any]:
        """What `explanation.json` holds."""
        effects = self.effects
        words = [word._asdict() | {"effect": effect} for word, effect in zip(self.words, effects.words, strict=True)]
        return {
            "text": self.text,
            "model": self.model,
            "label": self.label,
            "score": self.score,
            "predicted": self.predicted,
            "tokens": self.tokens,
            "tokens_read": min(self.tokens, self.most_tokens),
            "words": words,
            "attribution": {
                "method": "integrated gradients",
                "steps": effects.steps,
                "baseline": effects.baseline,
                "difference": effects.difference,
                "sum": sum(effects.words),
                "miss": effects.miss,
                "complete": effects.complete,
            },
            "deletion": asdict(self.deletion),
            "inhibition": asdict(self.inhibition),
            "warnings": self.warnings(),
        }


def largest(scores: Sequence[Sequence[float]]) -> float:
    """The largest magnitude of a matrix."""
    return max(abs(score) for row in scores for score in row)


def signed(value: float) -> str:
    """`"+0.123"`; nothing is `"0.000"`."""
    text = f"{value:+.3f}"
    return text[1:] if float(text) == 0 else text
