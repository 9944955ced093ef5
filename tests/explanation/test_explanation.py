"""`explain`, its command, and what it shows: values, words made whole again, escaping, long texts, bad input."""

import dataclasses
import json
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from inhibidistilbert import InhibiDistilBertForTokenClassification, cli, quantize
from inhibidistilbert.explanation import attribution, explain, picture
from inhibidistilbert.explanation.reading import Reading, Word
from inhibidistilbert.explanation.result import MOST_DRAWN
from inhibidistilbert.prediction import TextClassifier, default_checkpoint
from inhibidistilbert.support.errors import UserError
from tests.helpers.tiny_sentiment import WORDS, write_tiny_checkpoint

CLEAR = "A remarkably mesmerizing, beautifully acted film that is never boring, despite its slow beginning."
TEXT = "the film is not very good"
FILES = ["explanation.html", "explanation.json", "explanation.png"]


@pytest.fixture(scope="module")
def shipped():
    return TextClassifier.from_folder(default_checkpoint(), "cpu")


@pytest.fixture(scope="module")
def clear(shipped):
    return explain(CLEAR, shipped, layer=1, head=2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


class Content(HTMLParser):
    """Tags, the text of the paragraph of words without what is for screen readers alone, and the cells of the matrix."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.classes, self.words, self.cells = [], [], "", 0
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.cells += tag == "td" and dict(attrs).get("class", " ")[0] in "zn"
        if tag in ("p", "mark", "span"):
            self.classes.append(dict(attrs).get("class"))

    def handle_endtag(self, tag):
        if tag in ("p", "mark", "span"):
            self.classes.pop()

    def handle_data(self, data):
        if "text" in self.classes and "unseen" not in self.classes:
            self.words += data


# Values


class Linear(nn.Module):
    """A regression whose value is a sum over the tokens' embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(9, 4)
        self.weight = nn.Parameter(torch.randn(4))
        self.config = SimpleNamespace(
            problem_type="regression", num_labels=1, int8_weights=False, quantized=False, pad_token_id=0
        )

    def get_input_embeddings(self):
        return self.embeddings

    def forward(self, inputs_embeds):
        return SimpleNamespace(logits=(inputs_embeds @ self.weight).sum(-1, keepdim=True))


def test_effects_on_a_linear_model_are_exact():
    torch.manual_seed(0)
    model = Linear()
    classifier = SimpleNamespace(model=model, tokenizer=SimpleNamespace(unk_token_id=1, mask_token_id=None))
    ids, word_of = torch.tensor([[2, 5, 6, 7, 3]]), torch.tensor([-1, 0, 0, 1, -1])
    words = [Word("two pieces", 0, 10), Word("one", 11, 14)]
    found = attribution.effects(Reading(classifier, ids, [], words, word_of, 5), 0)
    value = (model.embeddings.weight @ model.weight).detach()
    expected = [(value[5] + value[6] - 2 * value[1]).item(), (value[7] - value[1]).item()]
    assert found.words == pytest.approx(expected, abs=1e-5)
    assert found.difference == pytest.approx(sum(expected), abs=1e-5)
    assert found.complete


def test_effects_add_up_and_the_answer_is_that_of_predict(clear, shipped):
    (answer,) = shipped.predict([CLEAR])
    assert (clear.label, clear.predicted, clear.score) == (answer.label, answer.label, pytest.approx(answer.score, abs=1e-5))
    assert clear.effects.difference == pytest.approx(clear.score - clear.effects.baseline, abs=1e-5)
    assert sum(clear.effects.words) == pytest.approx(clear.effects.difference, abs=0.01)
    assert clear.effects.complete
    assert clear.warnings() == []


def test_effects_that_do_not_add_up_are_told(clear):
    poor = dataclasses.replace(clear.effects, difference=clear.effects.difference + 0.2)
    (warning,) = dataclasses.replace(clear, effects=poor).warnings()
    assert "not exact" in warning


def test_the_answer_falls_sooner_by_effect_than_in_random_order(clear, shipped):
    deletion = clear.deletion
    assert deletion.area < deletion.random_area - 0.3
    assert deletion.scores[0] == deletion.random[0] == pytest.approx(clear.score, abs=1e-5)
    assert deletion.scores[-1] == pytest.approx(deletion.random[-1], abs=1e-5)
    assert (deletion.removed[0], deletion.removed[-1]) == (0, len(clear.words))
    reading = Reading.of(CLEAR, shipped)
    kept = torch.ones(1, len(clear.words), dtype=torch.bool)
    kept[0, torch.tensor(clear.effects.words).argmax()] = False
    label = shipped.labels.index(clear.label)
    assert deletion.scores[1] == pytest.approx(reading.scores(kept)[0, label].item(), abs=1e-5)


def test_an_explanation_that_is_no_better_than_chance_is_told(clear):
    useless = dataclasses.replace(clear.deletion, area=clear.deletion.random_area + 0.1)
    (warning,) = dataclasses.replace(clear, deletion=useless).warnings()
    assert "tell little" in warning


def test_a_hidden_word_is_as_good_as_not_there(checkpoint):
    """Its value reaches no other token: another word in its place changes nothing."""
    classifier = TextClassifier.from_folder(checkpoint, "cpu")
    kept = torch.ones(1, 6, dtype=torch.bool)
    kept[0, 5] = False
    scores = [Reading.of(text, classifier).scores(kept) for text in (TEXT, TEXT.replace("good", "bad"))]
    assert torch.equal(*scores)


def test_words_are_whole_again_and_inhibition_is_the_mean_of_their_pieces(clear, shipped):
    encoded = shipped.tokenizer(CLEAR, return_tensors="pt")
    pieces = encoded.word_ids()
    assert max(map(pieces.count, pieces)) > 1, "the sentence must have a word of several pieces"
    assert [word.text for word in clear.words] == CLEAR.replace(",", " ,").replace(".", " .").split()
    assert all(CLEAR[word.start : word.end] == word.text for word in clear.words)
    assert clear.inhibition.words == ["[CLS]", *(word.text for word in clear.words), "[SEP]"]
    assert clear.inhibition.places == [None, *range(len(clear.words)), None]

    assert shipped.model.config._attn_implementation == "inhibitor"
    with torch.no_grad():
        z = shipped.model(**encoded, output_attentions=True).attentions[1][0, 2]
    groups = [[0], *([i for i, each in enumerate(pieces) if each == word] for word in range(len(clear.words))), [-1]]
    expected = [[z[rows][:, columns].mean().item() for columns in groups] for rows in groups]
    assert torch.tensor(clear.inhibition.scores).allclose(torch.tensor(expected), atol=1e-3)


# Other heads and labels


def test_the_class_that_is_asked_for(checkpoint):
    usual = explain(TEXT, checkpoint)
    (other,) = {"NEGATIVE", "POSITIVE"} - {usual.label}
    asked = explain(TEXT, checkpoint, label=other)
    assert (asked.label, asked.predicted) == (other, usual.label)
    assert asked.score == pytest.approx(1 - usual.score, abs=1e-6)
    assert asked.effects.words == pytest.approx([-effect for effect in usual.effects.words], abs=1e-5)
    assert f"answers {usual.label}. Explained is {other}" in asked.answer()


@pytest.mark.parametrize(
    ("problem", "names", "form"),
    [("multi_label_classification", ["CALM", "GLAD", "SAD"], {"inhibition": "gate"}), ("regression", ["GRADE"], {})],
)
def test_other_kinds_of_problems(tmp_path, problem, names, form):
    folder = write_tiny_checkpoint(tmp_path, problem_type=problem, id2label=dict(enumerate(names)), **form)
    found = explain(TEXT, folder, label=names[-1])
    (answer,) = TextClassifier.from_folder(folder, "cpu").predict([TEXT])
    assert found.score == pytest.approx(answer.scores[names[-1]], abs=1e-5)
    assert ("value" in found.total()) == (problem == "regression")
    assert ("orange" in found.meaning()) == bool(form) == any(z < 0 for row in found.inhibition.scores for z in row)
    assert Content(found.to_html()).cells == 64


def test_a_text_that_is_too_long_is_cut_as_predict_cuts_it(checkpoint):
    found = explain(" ".join(WORDS * 3), checkpoint)
    assert (found.tokens, len(found.words)) == (44, 14)
    assert found.warnings()[0] == "The text is cut to the model's 16 positions; it has 44 tokens."
    assert found.score == next(TextClassifier.from_folder(checkpoint, "cpu").predict([found.text])).score
    assert Content(found.to_html()).words == found.text


# What is shown


@pytest.mark.parametrize(
    "text",
    [
        '<script>alert("1")</script> & a <b>good</b> film',
        pytest.param("a\tgood\n  film's 日本 👍 $x_1$ \x07", marks=pytest.mark.slow),
    ],
)
def test_any_text_stays_text(shipped, text):
    found = explain(text, shipped)
    found = dataclasses.replace(found, label="<script>", model='"><script>')
    content = Content(found.to_html())
    assert content.words == text
    assert "script" not in content.tags
    assert "://" not in found.to_html()
    assert {"link", "img", "iframe"}.isdisjoint(content.tags)


def test_a_notebook_shows_a_part_of_a_page(clear):
    shown, page = clear._repr_html_(), clear.to_html()
    assert shown in page
    assert {"html", "head", "body"}.isdisjoint(Content(shown).tags)
    assert Content(shown).words == CLEAR
    strongest, effect = clear.ranked()[0]
    assert f'title="{effect:+.3f}">{strongest}<span class="unseen"> ({effect:+.3f})</span>' in shown
    styles = shown.partition("<style>")[2].partition("</style>")[0].strip().splitlines()
    assert all(line.startswith(".inhibidistilbert-explanation") for line in styles)


def long_text(words: int) -> str:
    return " ".join((WORDS * (words // len(WORDS) + 1))[:words])


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("long"), max_position_embeddings=300)
    return explain(long_text(230), folder)


def test_a_long_text_is_drawn_by_its_strongest_words(long):
    names, scores = long.matrix()
    assert len(names) == len(scores) == len(scores[0]) == MOST_DRAWN
    assert (names[0], names[-1]) == ("[CLS]", "[SEP]")
    effects = sorted(map(abs, long.effects.words), reverse=True)
    drawn = {place for place, effect in enumerate(long.effects.words) if abs(effect) > effects[MOST_DRAWN - 2]}
    expected = [long.words[place].text for place in sorted(drawn)]
    assert names[1:-1] == expected
    assert len(long.to_dict()["inhibition"]["scores"]) == 232
    assert f"the {MOST_DRAWN} with the strongest effects are drawn" in long.meaning()
    html = long.to_html()
    assert html.count("<td class=") == MOST_DRAWN**2
    assert len(html) < 1_500_000


@pytest.mark.slow
def test_the_picture_of_a_long_text_has_room_for_every_word(long, tmp_path):
    picture.write(long, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 14 * MOST_DRAWN


# The command


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["inhibidistilbert", "explain", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return exit_.value.code or 0, *capsys.readouterr()

    return run


def test_the_command_writes_three_files(run, checkpoint, tmp_path):
    code, out, err = run(TEXT, "--model", checkpoint, "--output", tmp_path / "a/b", "--layer", 0, "--head", 1, "--json")
    assert code == 0
    printed = json.loads(out)
    folder = tmp_path / "a/b"
    assert sorted(file.name for file in folder.iterdir()) == FILES
    assert json.loads((folder / "explanation.json").read_text()) == printed
    assert (printed["inhibition"]["layer"], printed["inhibition"]["head"]) == (0, 1)
    assert [word["text"] for word in printed["words"]] == TEXT.split()
    assert (folder / "explanation.html").read_text().startswith("<!DOCTYPE html>")
    with Image.open(folder / "explanation.png") as image:
        assert image.width >= 900
    assert all(str(folder / name) in err for name in FILES)


def test_the_command_tells_the_strongest_words(run, checkpoint):
    code, out, err = run(long_text(14), "--model", checkpoint)
    assert (code, err) == (0, "")
    assert "answers" in out
    assert "2 more words have smaller effects." in out
    assert "In random order" in out


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["  "], ["the text is empty"]),
        (["\u200b\u200b"], ["no word"]),
        (["a\udcff"], ["UTF-8"]),
        ([TEXT, "--layer", 2], ["layer must be from 0 to 1", "got 2"]),
        ([TEXT, "--head", -1], ["head must be from 0 to 1", "got -1"]),
        ([TEXT, "--label", "GOOD"], ["NEGATIVE, POSITIVE", "'GOOD'"]),
        ([TEXT, "--output", "/dev/null/a"], ["--output '/dev/null/a' cannot be written to"]),
        ([TEXT, "--model", "gone"], ["'gone' is not a folder"]),
    ],
)
def test_bad_input_is_one_clear_line(run, checkpoint, arguments, parts):
    code, out, err = run("--model", checkpoint, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    for part in parts:
        assert part in err


def test_models_that_cannot_be_explained(tmp_path, checkpoint, monkeypatch):
    tokens = write_tiny_checkpoint(tmp_path / "tokens", InhibiDistilBertForTokenClassification)
    with pytest.raises(
        UserError, match="must hold a InhibiDistilBertForSequenceClassification, got InhibiDistilBertForToken"
    ):
        explain(TEXT, tokens)
    classifier = TextClassifier.from_folder(checkpoint, "cpu")
    with pytest.raises(UserError, match="is int8 and has no gradients: explain the checkpoint that it was made of"):
        explain(TEXT, TextClassifier(quantize(classifier.model), classifier.tokenizer))
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(UserError, match=r'Captum, which is not installed: pip install "captum>=0.9"'):
        explain(TEXT, classifier)


def test_nothing_is_left_half_written(clear, tmp_path, monkeypatch):
    for name in FILES:
        (tmp_path / name).write_text("earlier")
    (tmp_path / "other/explanation.html").mkdir(parents=True)
    with pytest.raises(UserError, match="is a folder"):
        clear.save(tmp_path / "other")
    assert len(list((tmp_path / "other").iterdir())) == 1
    monkeypatch.setattr(picture, "write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        clear.save(tmp_path)
    assert {file.name: file.read_text() for file in tmp_path.iterdir() if file.is_file()} == dict.fromkeys(FILES, "earlier")
