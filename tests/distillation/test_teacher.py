"""The teacher: loading, and labelling."""

import json
import re

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertForTokenClassification, DistilBertModel, DistilBertTokenizer

from inhibidistilbert.distillation.teacher import (
    add_teacher_logits,
    load_teacher,
    load_tokenizer,
    token_difference,
)
from inhibidistilbert.support.errors import UserError
from inhibidistilbert.support.text_columns import tokenize
from tests.helpers.toy_task import VOCABULARY, sentences, write_bert, write_distilbert


def load(folder):
    head = "ForSequenceClassification"
    tokenizer = load_tokenizer(str(folder), trust_remote_code=False, argument="--teacher")
    return load_teacher(str(folder), head, trust_remote_code=False, argument="--teacher"), tokenizer


# Loading


def test_a_classifier_is_loaded_with_its_head_in_float32(tmp_path):
    write_distilbert(tmp_path, num_labels=3)
    model, tokenizer = load(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert torch.equal(model.classifier.weight, weights["classifier.weight"])
    assert model.dtype == torch.float32
    assert set(tokenizer("a good film")) == {"input_ids", "attention_mask"}


def test_a_bert_teachers_tokenizer_emits_no_segments(tmp_path):
    write_bert(tmp_path)
    assert "token_type_ids" in AutoTokenizer.from_pretrained(tmp_path)("good")
    model, tokenizer = load(tmp_path)
    inputs = tokenizer(["a good film"], return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask"}
    # BERT takes what it is not told as segment 0.
    explicit = model(**inputs, token_type_ids=torch.zeros_like(inputs["input_ids"])).logits
    assert torch.equal(model(**inputs).logits, explicit)


def test_a_teacher_without_a_head_must_be_fine_tuned(tmp_path):
    write_distilbert(tmp_path, DistilBertModel)
    with pytest.raises(UserError, match=r"--teacher.*no trained head.*classifier.*--fine-tune-teacher"):
        load(tmp_path)


def test_a_head_that_lacks_its_pooler_is_no_trained_head(tmp_path):
    """BERT's classifier of tokens has a layer of the same name and shape, but no pooler, which would be drawn."""
    write_bert(tmp_path)
    model = BertForTokenClassification.from_pretrained(tmp_path)
    model.config.architectures = None
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace('"BertForTokenClassification"', ""))
    with pytest.raises(UserError, match=r"no trained head.*bert\.pooler"):
        load(tmp_path)


def damage_config(folder):
    (folder / "config.json").write_text("{nope")


def damage_model_type(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "model_type": "unheard-of"}))


def damage_weights(folder):
    (folder / "model.safetensors").write_bytes(b"no weights at all")


def remove_weights(folder):
    (folder / "model.safetensors").unlink()


def damage_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{nope")


def remove_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


def remove_everything(folder):
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    "damage",
    [
        damage_config,
        damage_model_type,
        damage_weights,
        remove_weights,
        damage_tokenizer,
        remove_tokenizer,
        remove_everything,
    ],
)
def test_a_damaged_teacher_is_refused(tmp_path, damage):
    write_distilbert(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    assert str(caught.value).startswith("--teacher: ")
    assert repr(str(tmp_path)) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["/no/such/folder", "./no/such/folder"])
def test_a_missing_teacher_is_named(source):
    with pytest.raises(UserError, match=f"--teacher: .*'{source}' does not load"):
        load(source)


# Tokenizers


def test_a_tokenizer_is_the_same_as_a_copy_of_it(tmp_path):
    first, second = (load(write_distilbert(tmp_path / name))[1] for name in ("first", "second"))
    assert token_difference(first, second) is None


OTHER_TOKENIZERS = {
    "fewer": ({"vocab": dict(list(VOCABULARY.items())[:-1])}, f"{len(VOCABULARY)} and {len(VOCABULARY) - 1} tokens"),
    "swapped": ({"vocab": {**VOCABULARY, "good": VOCABULARY["bad"], "bad": VOCABULARY["good"]}}, "'(good|bad)' is "),
    "cased": ({"vocab": VOCABULARY, "do_lower_case": False}, "cut differently"),
}


@pytest.mark.parametrize("name", OTHER_TOKENIZERS)
def test_other_tokenizers_are_told_apart(name):
    options, message = OTHER_TOKENIZERS[name]
    ours, theirs = DistilBertTokenizer(vocab=VOCABULARY), DistilBertTokenizer(**options)
    assert re.search(message, token_difference(ours, theirs) or "")


# Labelling


def test_texts_get_the_logits_of_the_teacher_in_order_of_length(tmp_path):
    model, tokenizer = load(write_distilbert(tmp_path))
    rows = [{"text": text, "label": label} for text, label in sentences(80, seed=0)]
    data = tokenize(Dataset.from_list(rows), tokenizer, max_length=8)
    labelled = add_teacher_logits(data, model.train(), tokenizer, bf16=False)
    assert labelled["length"][:] == sorted(data["length"][:])
    assert sorted(map(tuple, labelled["input_ids"][:])) == sorted(map(tuple, data["input_ids"][:]))
    # Each alone: neither its neighbours in the batch nor dropout may matter.
    model.eval()
    for row in labelled:
        logits = model(torch.tensor([row["input_ids"]])).logits[0]
        torch.testing.assert_close(torch.tensor(row["teacher_logits"]), logits, rtol=0, atol=1e-5)


def test_labelling_in_bfloat16_is_close(tmp_path):
    model, tokenizer = load(write_distilbert(tmp_path))
    data = tokenize(Dataset.from_list([{"text": "a good film", "label": 1}]), tokenizer, max_length=8)
    exact, rounded = (
        torch.tensor(add_teacher_logits(data, model, tokenizer, bf16)["teacher_logits"][:]) for bf16 in (False, True)
    )
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, rtol=0.05, atol=0.01)
