"""The student: new with projected embeddings, or from a checkpoint."""

import json

import pytest
import torch
from toy_task import POSITIONS, SIZES, tiny_student
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from inhibidistilbert import InhibiDistilBertForSequenceClassification
from inhibidistilbert.distillation.student import build_student, project_embeddings, published_sizes, student_config
from inhibidistilbert.errors import UserError

NAMES = {"id2label": {0: "BAD", 1: "SO_SO", 2: "GOOD"}, "label2id": {"BAD": 0, "SO_SO": 1, "GOOD": 2}}


def softmax_teacher(**fields) -> DistilBertForSequenceClassification:
    torch.manual_seed(3)
    return DistilBertForSequenceClassification(DistilBertConfig(**{**SIZES, **NAMES, **fields}))


@pytest.mark.parametrize("dim", [1, 6, 20])
def test_projected_embeddings_keep_the_geometry_of_the_best_rank(dim):
    """Their dot products are those of the best approximation of that rank (Eckart, Young), up to one scale."""
    # Unequal directions and a mean far from 0, as real embeddings have.
    embeddings = torch.randn(60, 20) * torch.linspace(0.2, 2, 20) + 3
    projected = project_embeddings(embeddings, dim, std=0.05)
    assert projected.shape == (60, dim)
    assert projected.std().item() == pytest.approx(0.05, rel=1e-5)
    left, singular, _ = torch.linalg.svd(embeddings.double() - embeddings.double().mean(0), full_matrices=False)
    best = left[:, :dim] * singular[:dim]
    expected, products = best @ best.T, (projected @ projected.T).double()
    scale = products.trace() / expected.trace()
    torch.testing.assert_close(products, scale * expected, rtol=1e-4, atol=1e-5 * products.abs().max().item())


def test_a_new_student_has_the_teachers_words_and_labels():
    teacher = softmax_teacher(dim=160, pad_token_id=2)
    student = build_student("tiny", teacher)
    assert student.config.id2label == NAMES["id2label"]
    assert student.config.label2id == NAMES["label2id"]
    assert student.config.pad_token_id == 2
    words = student.get_input_embeddings().weight
    assert torch.equal(words, project_embeddings(teacher.get_input_embeddings().weight, words.shape[1], std=0.05))
    assert student(torch.tensor([[2, 5, 3]])).logits.shape == (1, 3)


def test_a_student_wider_than_the_teacher_starts_from_random_words():
    student = build_student("tiny", softmax_teacher())
    assert student.config.dim > SIZES["dim"]
    assert student.get_input_embeddings().weight.shape == (SIZES["vocab_size"], student.config.dim)


def test_a_student_from_a_folder_goes_on_from_its_weights(tmp_path):
    before = tiny_student(num_labels=3)
    before.save_pretrained(tmp_path)
    student = build_student(str(tmp_path), softmax_teacher())
    assert isinstance(student, InhibiDistilBertForSequenceClassification)
    assert student.config.id2label == NAMES["id2label"]
    for name, weight in before.state_dict().items():
        assert torch.equal(student.state_dict()[name], weight), name


def test_a_student_stored_in_half_precision_trains_in_float32(tmp_path):
    tiny_student(torch.bfloat16, num_labels=3).save_pretrained(tmp_path)
    student = build_student(str(tmp_path), softmax_teacher())
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}


def test_a_head_for_other_classes_is_replaced(tmp_path):
    before = tiny_student(num_labels=2)
    before.save_pretrained(tmp_path)
    student = build_student(str(tmp_path), softmax_teacher())
    assert student.classifier.weight.shape == (3, SIZES["dim"])
    assert student.classifier.weight.isfinite().all()
    assert torch.equal(student.pre_classifier.weight, before.pre_classifier.weight)


def test_another_vocabulary_is_refused(tmp_path):
    tiny_student(vocab_size=99).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"--student.*99 word embeddings, the teacher {SIZES['vocab_size']}"):
        build_student(str(tmp_path), softmax_teacher())


@pytest.mark.parametrize("source", ["huge", "", "no/such/folder"])
def test_an_unknown_student_is_answered_with_the_sizes(source):
    assert published_sizes() == ["base", "small", "tiny"]
    for build in (student_config, lambda source: build_student(source, softmax_teacher())):
        with pytest.raises(UserError, match=rf"--student: '{source}'.*base, small, tiny\.$"):
            build(source)


def damage_config(folder):
    (folder / "config.json").write_text("{nope")


def damage_sizes(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "n_heads": 5}))


def damage_weights(folder):
    (folder / "model.safetensors").write_bytes(b"no weights at all")


def remove_weights(folder):
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("damage", [damage_config, damage_sizes, damage_weights, remove_weights])
def test_a_damaged_checkpoint_is_refused(tmp_path, damage):
    tiny_student(num_labels=3).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError) as caught:
        build_student(str(tmp_path), softmax_teacher())
    assert str(caught.value).startswith(f"--student: {str(tmp_path)!r} does not load: ")
    assert "\n" not in str(caught.value)


def test_the_configuration_is_known_before_the_weights(tmp_path):
    tiny_student().save_pretrained(tmp_path)
    assert student_config(str(tmp_path)).max_position_embeddings == POSITIONS
    assert student_config("tiny").max_position_embeddings == 512
