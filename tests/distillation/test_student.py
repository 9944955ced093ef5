"""The student: new with projected embeddings, or from a checkpoint; and how it is written."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import (
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertTokenizer,
)

from inhibidistilbert import InhibiDistilBertForSequenceClassification
from inhibidistilbert.distillation.student import Student, project_embeddings, save_student
from inhibidistilbert.distillation.student import build_student as build
from inhibidistilbert.support.errors import UserError
from inhibidistilbert.support.sizes import published_sizes, size_config
from tests.helpers.toy_task import POSITIONS, SIZES, VOCABULARY, tiny_student, write_bert

NAMES = {"id2label": {0: "BAD", 1: "SO_SO", 2: "GOOD"}, "label2id": {"BAD": 0, "SO_SO": 1, "GOOD": 2}}


def build_student(source: str, teacher, **settings):
    labels = {"id2label": teacher.config.id2label, "label2id": teacher.config.label2id}
    return build(Student(source=source, **settings), "ForSequenceClassification", teacher, None, **labels)


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


@pytest.mark.parametrize("source", ["huge", "", "no/such/folder"])
def test_an_unknown_student_is_answered_with_the_sizes(source):
    assert published_sizes() == ["base", "small", "tiny"]
    with pytest.raises(UserError, match=rf"--student.*: '{source}'.*base, small, tiny, nor"):
        build_student(source, softmax_teacher())


def damage_config(folder):
    (folder / "config.json").write_text("{nope")


def damage_sizes(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "n_heads": 5}))


def change_sizes(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "hidden_dim": 8}))


def damage_weights(folder):
    (folder / "model.safetensors").write_bytes(b"no weights at all")


def remove_weights(folder):
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("damage", [damage_config, damage_sizes, change_sizes, damage_weights, remove_weights])
def test_a_damaged_checkpoint_is_refused(tmp_path, damage):
    tiny_student(num_labels=3).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError) as caught:
        build_student(str(tmp_path), softmax_teacher())
    assert str(caught.value).startswith(f"--student (student.source): {str(tmp_path)!r} does not load: ")
    assert "\n" not in str(caught.value)


# Copies of a teacher, and the softmax control


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("teacher")
    softmax_teacher(n_layers=4).save_pretrained(folder)
    return str(folder)


def copied(teacher_folder: str, **settings):
    torch.manual_seed(0)
    return build(Student(**settings), "ForSequenceClassification", softmax_teacher(n_layers=4), teacher_folder, **NAMES)


INPUT = torch.tensor([[2, 5, 9, 3]])


def test_a_softmax_student_copied_from_its_teacher_is_its_twin(teacher_folder):
    student = copied(teacher_folder, attention="softmax")
    assert type(student) is DistilBertForSequenceClassification
    torch.testing.assert_close(student(INPUT).logits, softmax_teacher(n_layers=4).eval()(INPUT).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("attention", ["softmax", "inhibitor"])
def test_chosen_layers_are_copied(teacher_folder, attention):
    teacher, student = softmax_teacher(n_layers=4), copied(teacher_folder, attention=attention, layers=[1, 3])
    ours, theirs = student.distilbert.transformer.layer, teacher.distilbert.transformer.layer
    assert len(ours) == 2
    for layer, source in ((0, 1), (1, 3)):
        for name, weight in theirs[source].state_dict().items():
            assert torch.equal(ours[layer].state_dict()[name], weight), name
    assert torch.equal(student.classifier.weight, teacher.classifier.weight)


def test_fresh_projections_are_drawn_anew_and_the_others_copied(teacher_folder):
    attention = copied(teacher_folder, fresh=["q_lin", "k_lin"]).distilbert.transformer.layer[0].attention
    teacher = softmax_teacher(n_layers=4).distilbert.transformer.layer[0].attention
    assert torch.equal(attention.v_lin.weight, teacher.v_lin.weight)
    assert not torch.equal(attention.q_lin.weight, teacher.q_lin.weight)
    assert attention.k_lin.weight.std().item() == pytest.approx(0.02, rel=0.2)


FIELDS = {"centered": False, "signed": False, "scalars_per_head": True, "length_normalization": "sqrt", "beta_init": 0.3}


def test_fields_of_the_configuration_reach_the_student(teacher_folder):
    student = copied(teacher_folder, config={**FIELDS, "attention_dropout": 0.0})
    assert {name: getattr(student.config, name) for name in FIELDS} == FIELDS
    assert student.distilbert.transformer.layer[0].attention.beta.tolist() == pytest.approx([0.3, 0.3])


FORM = {"inhibition": "gate", "center": "least", "length_normalization": "passed", "radii": 2}
FITTING = {"alpha_init": [-0.5, 0.1], "beta_init": 1.0, "gamma_init": 1.0, "delta_init": 1.0}


@pytest.mark.parametrize("source", ["teacher", "tiny", "folder"])
def test_a_form_beyond_the_paper_from_every_source(teacher_folder, tmp_path, tokenizer, source):
    """The teacher, a size, and what an earlier stage of the recipe wrote."""
    student = copied(teacher_folder, source="tiny" if source == "tiny" else "teacher", config=FORM)
    if source == "folder":
        with torch.no_grad():
            student.distilbert.transformer.layer[0].attention.gamma[1] = 0.7
        save_student(student, tokenizer, tmp_path / "earlier", torch.bfloat16)
        student = copied(teacher_folder, source=str(tmp_path / "earlier"), config=FORM)
    assert {name: getattr(student.config, name) for name in FORM | FITTING} == FORM | FITTING
    attention = student.distilbert.transformer.layer[0].attention
    assert attention.alpha[:, 0].tolist() == pytest.approx([-0.5, 0.1])
    assert attention.gamma[:, 0].tolist() == ([1, pytest.approx(0.7)] if source == "folder" else [1, 1])
    assert attention.delta.tolist() == [1] * student.config.n_heads
    assert student(INPUT).logits.isfinite().all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"inhibition": "door"}, "inhibition must be one of"),
        ({"radii": 2, "alpha_init": [1, 2, 3]}, "alpha.init must be a number, or one for each of 2 radii"),
        ({"inhibition": "gate", "signed": False}, "signed must be true for inhibition='gate'"),
        ({"radii": "2"}, "radii"),
    ],
    ids=str,
)
@pytest.mark.parametrize("source", ["teacher", "tiny"])
def test_a_form_that_there_is_not_is_refused(teacher_folder, source, config, message):
    with pytest.raises(UserError, match=message) as caught:
        copied(teacher_folder, source=source, config=config)
    assert str(caught.value).startswith("student.config: " if source == "tiny" else ("student.config: ", "--student "))


def test_another_form_than_an_earlier_outputs_is_refused(teacher_folder, tmp_path):
    tiny_student(num_labels=3).save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"--student .* does not load: .*attention\.alpha has shape \(1,\) .* but \(2, 1\) by"
    ):
        copied(teacher_folder, source=str(tmp_path), config={"radii": 2})
    with pytest.raises(UserError, match=r"does not load: .* lacks .*attention\.delta"):
        copied(teacher_folder, source=str(tmp_path), config={"length_normalization": "passed"})


def test_the_control_ignores_the_inhibitors_fields_alone(teacher_folder):
    student = copied(teacher_folder, attention="softmax", config={**FIELDS, **FORM, "attention_dropout": 0.0})
    assert student.config.attention_dropout == 0.0
    assert not hasattr(student.config, "scalars_per_head")


def test_an_unknown_field_is_refused(teacher_folder):
    with pytest.raises(UserError, match=r"student\.config: unknown field 'centred'"):
        copied(teacher_folder, config={"centred": True})


def test_a_softmax_student_cannot_come_from_an_inhibitor(tmp_path):
    tiny_student().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has inhibitor attention, but student\.attention is 'softmax'"):
        build_student(str(tmp_path), softmax_teacher(), attention="softmax")


def test_a_source_is_fine_tuned_as_what_it_is(tmp_path):
    folder = write_bert(tmp_path / "bert")
    settings = Student(source=str(folder), attention="own", config={"hidden_dropout_prob": 0.25})
    student = build(settings, "ForSequenceClassification", None, None, num_labels=4)
    assert type(student) is BertForSequenceClassification
    assert student.classifier.weight.shape[0] == 4
    assert student.config.hidden_dropout_prob == 0.25


@pytest.mark.parametrize("name", ["trust_remote_code", "weights_only", "attn_implementation"])
def test_what_is_no_field_does_not_reach_the_loader(tmp_path, name):
    """It could make transformers run code of the folder, or of another place."""
    settings = Student(source=str(write_bert(tmp_path / "bert")), attention="own", config={name: True})
    with pytest.raises(UserError, match=rf"student\.config: unknown field '{name}'; see BertConfig\."):
        build(settings, "ForSequenceClassification", None, None)


@pytest.mark.parametrize(("fields", "beta"), [({}, 2.5), ({"length_normalization": "sqrt"}, 0.5), ({"beta_init": 3.0}, 3.0)])
def test_a_sizes_beta_fits_the_normalization_that_is_asked_for(fields, beta):
    student = build(
        Student(source="tiny", config=fields), "ForSequenceClassification", softmax_teacher(), None, num_labels=2
    )
    assert (student.config.length_normalization, student.config.beta_init) == (
        fields.get("length_normalization", "mean"),
        beta,
    )


def test_the_sizes_are_known():
    assert size_config("tiny").max_position_embeddings == 512


# Writing

SCALARS = (".alpha", ".beta", ".gamma")


@pytest.fixture
def tokenizer():
    return DistilBertTokenizer(vocab=VOCABULARY, model_max_length=POSITIONS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("fields", [{}, {"scalars_per_head": True}, {"radii": 2}], ids=["a-layer", "a-head", "radii"])
def test_matrices_are_stored_in_a_dtype_and_load_as_float32(tmp_path, tokenizer, dtype, fields):
    student, folder = tiny_student(**fields, alpha_init=0.1), tmp_path / "student"
    save_student(student, tokenizer, folder, dtype)
    stored = load_file(folder / "model.safetensors")
    assert stored.keys() == student.state_dict().keys()
    for name, weight in student.state_dict().items():
        is_matrix = weight.ndim > 1 and not name.endswith(SCALARS)
        assert stored[name].dtype == (dtype if is_matrix else torch.float32), name
    assert sum(name.endswith(SCALARS) for name in stored) == 6
    loaded = InhibiDistilBertForSequenceClassification.from_pretrained(folder)
    for name, weight in loaded.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, stored[name].float()), name
    # The student itself stays as it was.
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}


def test_the_stored_tokenizer_neither_cuts_nor_pads(tmp_path, tokenizer):
    """Training leaves its truncation in the tokenizer; other readers of tokenizer.json would obey it."""
    tokenizer(["a good film", "bad"], truncation=True, max_length=4, padding=True)
    save_student(tiny_student(), tokenizer, tmp_path / "student", torch.float32)
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
            save_student(tiny_student(), tokenizer, folder, torch.float32)
    assert not folder.exists()
    save_student(tiny_student(), tokenizer, folder, torch.float32)
    assert (folder / "tokenizer.json").is_file()


def test_an_older_folder_is_replaced(tmp_path, tokenizer):
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "older.txt").touch()
    save_student(tiny_student(), tokenizer, folder, torch.float32)
    assert (folder / "model.safetensors").is_file()
    assert not (folder / "older.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
