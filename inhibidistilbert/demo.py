"""`make demo`: the shipped model labels a few sentences, here and from an exported folder without this package."""

import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .prediction import TextClassifier, default_checkpoint
from .support.clean_process import ProcessError, run_script
from .support.quiet import quiet_transformers

SENTENCES = (
    "A warm, funny film with two leads you could watch for hours.",
    "The plot makes no sense and the jokes fall flat from the first scene on.",
    "I bought this kettle a year ago and it still works beautifully.",
    "It broke after two days, and nobody answered my emails.",
    "Not a single dull moment: gripping, clever and beautifully shot.",
    "What a waste of a talented cast and two hours of my evening.",
)
TOLERANCE = 1e-5

CLASSIFY = """
import json, sys
from pathlib import Path
from transformers import pipeline

_, folder, sentences, answers = sys.argv
classify = pipeline("sentiment-analysis", model=folder, trust_remote_code=True, device="cpu")
Path(answers).write_text(json.dumps([classify(sentence)[0] for sentence in json.loads(sentences)]))
"""


@dataclass(frozen=True)
class Answer:
    """A label and its probability."""

    label: str
    score: float


def predict_here(classifier: TextClassifier, sentences: Sequence[str]) -> list[Answer]:
    """The answers of `inhibidistilbert predict`."""
    return [Answer(prediction.label, prediction.score) for prediction in classifier.predict(sentences)]


def export(classifier: TextClassifier, folder: Path) -> None:
    """Write model and tokenizer as anyone would."""
    with quiet_transformers():
        classifier.model.save_pretrained(folder)
    classifier.tokenizer.save_pretrained(folder)


def predict_elsewhere(folder: Path, sentences: Sequence[str]) -> list[Answer]:
    """The answers of transformers' pipeline on `folder`, in a process without this package, the Hub or cached modules.

    Raises:
        RuntimeError: when that process fails; the message is its last words.
    """
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        script, answers = home / "classify.py", home / "answers.json"
        script.write_text(CLASSIFY)
        try:
            run_script(str(script), folder.resolve(), json.dumps(list(sentences)), answers, folder=home, home=home)
        except ProcessError as error:
            raise RuntimeError(f"the exported folder does not load without this package: {error}") from error
        return [Answer(**answer) for answer in json.loads(answers.read_text())]


def largest_difference(here: Sequence[Answer], elsewhere: Sequence[Answer]) -> float:
    """The largest difference of two scores; infinite where labels or the number of answers differ or a score is NaN."""
    if [answer.label for answer in here] != [answer.label for answer in elsewhere]:
        return math.inf
    differences = [abs(a.score - b.score) for a, b in zip(here, elsewhere, strict=True)]
    return math.inf if any(map(math.isnan, differences)) else max(differences)


def table(sentences: Sequence[str], here: Sequence[Answer], elsewhere: Sequence[Answer]) -> str:
    """Both answers beside each sentence."""
    width = max(len(answer.label) for answer in (*here, *elsewhere))
    rows = [f"  {'predict':<{width + 8}}  {'pipeline':<{width + 8}}  sentence"]
    for sentence, a, b in zip(sentences, here, elsewhere, strict=True):
        rows.append(f"  {a.label:<{width}}  {a.score:.4f}  {b.label:<{width}}  {b.score:.4f}  {sentence}")
    return "\n".join(rows)


def main(checkpoint: Path | None = None) -> int:
    """Show both ways side by side; 0 when they agree, 1 when they do not."""
    classifier = TextClassifier.from_folder(checkpoint or default_checkpoint(), device="cpu")
    parameters = sum(parameter.numel() for parameter in classifier.model.parameters())
    print(
        f"InhibiDistilBERT: DistilBERT whose attention inhibits values instead of averaging them. Parameters: {parameters:,}"
    )
    here = predict_here(classifier, SENTENCES)
    print(
        "Labelled by `predict`, and by transformers' pipeline from an exported folder, without this package:\n", flush=True
    )
    with tempfile.TemporaryDirectory() as folder:
        export(classifier, Path(folder))
        elsewhere = predict_elsewhere(Path(folder), SENTENCES)
    print(table(SENTENCES, here, elsewhere))
    difference = largest_difference(here, elsewhere)
    if difference > TOLERANCE:
        print(f"\nThe two ways DISAGREE: largest difference {difference:.1e}, at most {TOLERANCE:.0e} is right.")
        return 1
    print(f"\nBoth ways agree: same labels, largest difference of a score {difference:.1e}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
