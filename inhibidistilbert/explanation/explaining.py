"""Explains a text: what each word did to the answer, and what inhibited what."""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from ..prediction import TextClassifier, default_checkpoint
from ..support.errors import UserError
from ..support.files import check_writable, replacing, telling_of_disk
from ..support.heads import REGRESSION, problem_of
from ..support.models import some
from . import attribution, page, picture
from .reading import Reading, check_text
from .result import Inhibition, Result

NAME = "explanation"  # of the files, without their ends


@dataclass(frozen=True)
class Explanation(Result):
    """A `Result` that shows itself: in a notebook, as HTML, and as files."""

    def to_html(self) -> str:
        """A whole page that needs no other file and no network."""
        return page.page(self)

    def _repr_html_(self) -> str:
        return page.fragment(self)

    def save(self, folder: str | Path) -> list[Path]:
        """Write `explanation.html`, `explanation.png` and `explanation.json`, all or none, and return their paths.

        Raises:
            UserError: the folder cannot be written to.
        """
        folder = Path(folder)
        check_writable(folder, make=True)
        paths = [folder / f"{NAME}.{end}" for end in ("html", "png", "json")]
        for path in paths:
            if path.is_dir():
                raise UserError(
                    f"{str(path)!r} is a folder, and the file would go there; remove it, or give another folder."
                )
        with telling_of_disk("--output", folder), ExitStack() as stack:
            html, png, data = (stack.enter_context(replacing(path)) for path in paths)
            html.write_text(self.to_html(), encoding="utf-8", newline="")
            picture.write(self, png)
            data.write_text(json.dumps(self.to_dict(), ensure_ascii=False) + "\n", encoding="utf-8", newline="")
        return paths


def explain(
    text: str,
    model: str | Path | TextClassifier | None = None,
    *,
    label: str | None = None,
    layer: int | None = None,
    head: int = 0,
    device: str = "auto",
) -> Explanation:
    """Explain the answer of a sequence classifier on `text`.

    model: a checkpoint folder, of which data alone is read, or a `TextClassifier`; None is the shipped sentiment model.
    label: the class to explain; None is the one that the model answers.
    layer, head: where inhibition is shown, counted from 0 as transformers counts; None is the last layer.
    device: where a folder's model runs, as `predict` takes it.

    Raises:
        UserError: a text without words, a folder that is no classifier's, an int8 model, no such label, layer or head, or
            Captum is not installed.
    """
    check_text(text)
    if not isinstance(model, TextClassifier):
        model = TextClassifier.from_folder(Path(model) if model is not None else default_checkpoint(), device)
    config, labels = model.model.config, model.labels
    if label is not None and label not in labels:
        raise UserError(f"label must be one of the model's, {some(labels)}; got {label!r}.")
    reading = Reading.of(text, model)
    layer = config.n_layers - 1 if layer is None else layer
    names, places, scores = reading.inhibition(layer, head)
    answer = reading.scores(torch.ones(1, len(reading.words), dtype=torch.bool))[0]
    predicted = int(answer.argmax())
    number = predicted if label is None else labels.index(label)
    effects = attribution.effects(reading, number)
    rounded = [[round(value, 4) for value in row] for row in scores.tolist()]
    return Explanation(
        text=text,
        model=Path(model.model.name_or_path or type(model.model).__name__).name,
        label=labels[number],
        score=answer[number].item(),
        predicted=labels[predicted],
        regression=problem_of(config) == REGRESSION,
        tokens=reading.tokens,
        most_tokens=model.max_tokens,
        words=reading.words,
        effects=effects,
        deletion=attribution.deletion(reading, number, effects.words),
        inhibition=Inhibition(layer, head, names, places, rounded, config.inhibition == "gate"),
    )
