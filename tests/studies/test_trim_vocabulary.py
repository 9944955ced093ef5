"""A vocabulary without its unused tokens: the same answers, in a folder that is written whole or not at all."""

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer, DistilBertTokenizer

from inhibidistilbert import InhibiDistilBertForMaskedLM, InhibiDistilBertForSequenceClassification
from studies.distillation.trim_vocabulary import trim_vocabulary
from tests.helpers.tiny_sentiment import SPECIAL_TOKENS, WORDS, write_tiny_checkpoint

# As in BERT: behind the first token, and before the words.
TOKENS = [SPECIAL_TOKENS[0], "[unused0]", "[unused1]", *SPECIAL_TOKENS[1:], "[unused2]", *WORDS, "[unused99]x"]
TEXTS = ["the film is not good", "a very funny plot [MASK] unheard"]


def write_checkpoint(folder: Path, model_class=InhibiDistilBertForSequenceClassification) -> Path:
    write_tiny_checkpoint(folder, model_class, vocab_size=len(TOKENS))
    vocabulary = {token: number for number, token in enumerate(TOKENS)}
    DistilBertTokenizer(vocab=vocabulary, model_max_length=16).save_pretrained(folder)
    return folder


@torch.no_grad()
def answers(folder: Path, auto_class) -> tuple[torch.Tensor, list[list[str]]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    logits = auto_class.from_pretrained(folder).eval()(**inputs).logits
    return logits, [tokenizer.convert_ids_to_tokens(row) for row in inputs["input_ids"]]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_same_logits_and_nothing_more_to_remove(tmp_path):
    folder = write_checkpoint(tmp_path / "model")
    before, tokens = answers(folder, AutoModelForSequenceClassification)
    assert trim_vocabulary(folder) == 3
    after, tokens_after = answers(folder, AutoModelForSequenceClassification)
    assert torch.equal(after, before)
    assert tokens_after == tokens
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get) == [
        t for t in TOKENS if t not in ("[unused0]", "[unused1]", "[unused2]")
    ]
    assert trim_vocabulary(folder) == 0
    assert torch.equal(answers(folder, AutoModelForSequenceClassification)[0], before)


def test_a_masked_language_model_keeps_the_logits_of_what_is_kept(tmp_path):
    folder = write_checkpoint(tmp_path / "model", InhibiDistilBertForMaskedLM)
    before, _ = answers(folder, AutoModelForMaskedLM)
    trim_vocabulary(folder)
    kept = [number for number, token in enumerate(TOKENS) if token not in ("[unused0]", "[unused1]", "[unused2]")]
    torch.testing.assert_close(answers(folder, AutoModelForMaskedLM)[0], before[..., kept], rtol=0, atol=1e-6)


def test_rare_words_are_spelled_from_what_stays(tmp_path):
    characters = ["!", *"dflm", *(f"##{letter}" for letter in "aeilnumqy")]
    words = ["film", "plot", "funny", "dull", "##é"]
    folder = tmp_path / "model"
    tokens = [*SPECIAL_TOKENS, "[unused0]", *words, *characters]
    write_tiny_checkpoint(folder, InhibiDistilBertForSequenceClassification, vocab_size=len(tokens))
    DistilBertTokenizer(vocab={token: n for n, token in enumerate(tokens)}, model_max_length=16).save_pretrained(folder)
    assert trim_vocabulary(folder, ["film film", "dull film! dull"], least=2) == 4
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert set(tokenizer.get_vocab()) == {*SPECIAL_TOKENS, "film", "dull", *characters}
    assert tokenizer.tokenize("a dull film funny!") == ["[UNK]", "dull", "film", *["f", "##u", "##n", "##n", "##y"], "!"]
    logits, _ = answers(folder, AutoModelForSequenceClassification)
    assert logits.isfinite().all()


def damaged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> type[BaseException]:
    (folder / "model.safetensors").write_bytes(b"cut")
    return SafetensorError


def interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> type[BaseException]:
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("studies.distillation.trim_vocabulary.save_file", stop)
    return KeyboardInterrupt


@pytest.mark.parametrize("how", [damaged, interrupted])
def test_a_folder_that_cannot_be_trimmed_is_left_alone(tmp_path, monkeypatch, how):
    folder = write_checkpoint(tmp_path / "model")
    error, before = how(folder, monkeypatch), contents(folder)
    with pytest.raises(error):
        trim_vocabulary(folder)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
