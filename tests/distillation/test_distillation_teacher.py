"""The teacher: loading, labelling, and how classifiers are written."""

import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from tokenizers import Tokenizer
from toy_task import POSITIONS, VOCABULARY, sentences, tiny_student, write_bert, write_distilbert
from transformers import AutoTokenizer, DistilBertModel, DistilBertTokenizer

from inhibidistilbert import InhibiDistilBertForSequenceClassification
from inhibidistilbert.distillation.data import tokenize
from inhibidistilbert.distillation.teacher import add_teacher_logits, load_teacher, save_classifier
from inhibidistilbert.errors import UserError


def load(folder, num_labels=None):
    return load_teacher(str(folder), num_labels, trust_remote_code=False)


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
    with pytest.raises(UserError, match=r"--teacher.*no trained classification head.*classifier.*--fine-tune-teacher"):
        load(tmp_path)
    model, _ = load(tmp_path, num_labels=3)
    assert model.classifier.weight.shape[0] == 3


def test_fine_tuning_keeps_a_head_of_as_many_classes_and_replaces_another(tmp_path):
    write_distilbert(tmp_path, num_labels=3)
    trained = load_file(tmp_path / "model.safetensors")
    same, _ = load(tmp_path, num_labels=3)
    assert torch.equal(same.classifier.weight, trained["classifier.weight"])
    other, _ = load(tmp_path, num_labels=2)
    assert other.classifier.weight.shape[0] == other.config.num_labels == 2
    assert torch.equal(other.pre_classifier.weight, trained["pre_classifier.weight"])


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
    assert str(caught.value).startswith(f"--teacher: {str(tmp_path)!r} ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["/no/such/folder", "./no/such/folder"])
def test_a_missing_teacher_is_named(source):
    with pytest.raises(UserError, match=f"--teacher: '{source}' does not load as a sequence classifier"):
        load(source)


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


# Writing


@pytest.fixture
def tokenizer():
    return DistilBertTokenizer(vocab=VOCABULARY, model_max_length=POSITIONS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("per_head", [False, True], ids=["a-layer", "a-head"])
def test_matrices_are_stored_in_a_dtype_and_load_as_float32(tmp_path, tokenizer, dtype, per_head):
    student, folder = tiny_student(scalars_per_head=per_head), tmp_path / "student"
    save_classifier(student, tokenizer, folder, dtype)
    stored = load_file(folder / "model.safetensors")
    assert stored.keys() == student.state_dict().keys()
    for name, weight in student.state_dict().items():
        assert stored[name].dtype == (dtype if weight.ndim > 1 else torch.float32), name
    assert sum(name.endswith((".alpha", ".beta", ".gamma")) for name in stored) == 6
    loaded = InhibiDistilBertForSequenceClassification.from_pretrained(folder)
    for name, weight in loaded.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, stored[name].float()), name
    # The student itself stays as it was.
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}


def test_the_stored_tokenizer_neither_cuts_nor_pads(tmp_path, tokenizer):
    """Training leaves its truncation in the tokenizer; other readers of tokenizer.json would obey it."""
    tokenizer(["a good film", "bad"], truncation=True, max_length=4, padding=True)
    save_classifier(tiny_student(), tokenizer, tmp_path / "student", torch.float32)
    stored = Tokenizer.from_file(str(tmp_path / "student" / "tokenizer.json"))
    lengths = [len(encoding.ids) for encoding in stored.encode_batch(["a good film " * 20, "bad"])]
    assert lengths == [62, 3]


def test_a_folder_is_written_whole_or_not_at_all(tmp_path, tokenizer, monkeypatch):
    folder = tmp_path / "student"

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DistilBertTokenizer, "save_pretrained", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_classifier(tiny_student(), tokenizer, folder, torch.float32)
    assert not folder.exists()
    save_classifier(tiny_student(), tokenizer, folder, torch.float32)
    assert (folder / "tokenizer.json").is_file()


def test_an_older_folder_is_replaced(tmp_path, tokenizer):
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "older.txt").touch()
    save_classifier(tiny_student(), tokenizer, folder, torch.float32)
    assert (folder / "model.safetensors").is_file()
    assert not (folder / "older.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
