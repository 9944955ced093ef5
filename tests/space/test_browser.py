"""The page in a real browser: the answers are Python's, and it works offline, by keyboard, on a phone and in the dark."""

import csv
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from inhibidistilbert.explanation.reading import Reading
from inhibidistilbert.prediction import TextClassifier, default_checkpoint
from inhibidistilbert.space.building import MOST_TOKENS

DRIVER = Path(__file__).parent / "browser" / "drive.mjs"
MESSAGES = Path(__file__).parents[2] / "examples" / "messages.csv"
PAGE, CHROMIUM = os.environ.get("PAGE"), os.environ.get("CHROMIUM", "chromium")
ODD = [
    "I don't like Über-films: they're déjà vu.",
    "WHAT A FILM!!! 10/10 <3 ... (really)",
    "Great 😀👍🏽, 真是好电影 and naïve",
    "  spaces   before\tand\nlines  ",
    "[SEP] a [MASK] antidisestablishmentarianistically good one ###",
    "The second part is better than the first in every way, and so is the third. " * 12,
]
TOLERANCE = 1e-4

pytestmark = pytest.mark.skipif(PAGE is None, reason="PAGE names no built page; `make test-page` builds one")


def sentences() -> list[str]:
    with MESSAGES.open(encoding="utf-8", newline="") as file:
        rows = [row["text"] for row in csv.DictReader(file)]
    return rows[: 50 - len(ODD)] + ODD


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict[str, Any]:
    """What the driver saw. PAGE_SCREENSHOTS names a folder that keeps its pictures."""
    pictures = Path(os.environ.get("PAGE_SCREENSHOTS") or tmp_path_factory.mktemp("pictures")).resolve()
    pictures.mkdir(parents=True, exist_ok=True)
    command = ["node", str(DRIVER), shutil.which(CHROMIUM) or CHROMIUM, str(Path(str(PAGE)).resolve()), str(pictures)]
    done = subprocess.run(command, input=json.dumps(sentences()), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def classifier():
    found = TextClassifier.from_folder(default_checkpoint(), "cpu")
    found.model.config.max_position_embeddings = MOST_TOKENS  # it cuts texts as the page does
    return found


def check(found: dict[str, Any], text: str, classifier: TextClassifier) -> None:
    reading = Reading.of(text, classifier)
    words = len(reading.words)
    kept = torch.cat([torch.ones(1, words), 1 - torch.eye(words)]).bool()
    scores = reading.scores(kept)
    label = int(scores[0].argmax())
    _, _, inhibition = reading.inhibition(classifier.model.config.n_layers - 1, 0)
    assert found["words"] == [word.text for word in reading.words]
    assert found["label"] == classifier.labels[label]
    assert found["score"] == pytest.approx(scores[0, label].item(), abs=TOLERANCE)
    assert found["effects"] == pytest.approx((scores[0, label] - scores[1:, label]).tolist(), abs=TOLERANCE)
    assert len(found["inhibition"]) == len(inhibition)
    for row, wanted in zip(found["inhibition"], inhibition.tolist(), strict=True):
        assert row == pytest.approx(wanted, abs=TOLERANCE)


def test_fifty_sentences_get_the_answers_of_python(seen, classifier):
    assert len(seen["answers"]) == len(set(sentences())) == 50
    for text, found in zip(sentences(), seen["answers"], strict=True):
        check(found, text, classifier)


def test_a_long_text_is_cut_and_the_page_says_so(seen, classifier):
    tokens = Reading.of(ODD[-1], classifier).tokens
    cut = [found["cut"] for found in seen["answers"]]
    assert cut[:-1] == [None] * 49
    assert cut[-1] == f"The text has {tokens} tokens; this page reads the first {MOST_TOKENS}."


def test_the_first_answer_comes_within_three_seconds(seen):
    assert seen["first_answer_seconds"] < 3


def test_the_newest_text_is_answered(seen, classifier):
    check(seen["typed"], "Typed letter by letter, and not good.", classifier)
    assert seen["nothing"] == "Type a sentence."


def test_it_works_when_the_host_is_gone(seen, classifier):
    assert seen["offline_line"] == "The page works without a network now."
    check(seen["offline"], sentences()[0], classifier)


def test_no_other_host_is_asked_and_nothing_goes_wrong(seen):
    assert seen["hosts"] == ["localhost"]
    assert seen["errors"] == []


def test_the_keyboard_reaches_everything(seen):
    keyboard = seen["keyboard"]
    assert keyboard["stops"][0] == keyboard["example"]
    assert keyboard["stops"][3:] == ["layer", "head", "matrix"]
    assert keyboard["layer"] == "1"
    assert keyboard["changed"]


def test_it_fits_a_phone_and_the_dark(seen):
    assert seen["phone_fits"] == [True, True]
    assert seen["dark"] == {"color": "rgb(255, 255, 255)", "backgroundColor": "rgb(18, 18, 18)"}


def test_without_webassembly_it_says_what_is_missing(seen):
    assert seen["without_webassembly"].startswith("This browser has no WebAssembly, which the model needs")
