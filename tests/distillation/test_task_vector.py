"""What fine-tuning changed in the teacher, given to the student before its own training."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertForSequenceClassification,
    DistilBertModel,
    DistilBertTokenizer,
)

from inhibidistilbert.distillation.run import run_recipe
from inhibidistilbert.distillation.student import Student, build_student
from inhibidistilbert.distillation.task_vector import add_task_vector, task_vector
from inhibidistilbert.modeling.modeling_inhibidistilbert import SCALARS
from inhibidistilbert.support.errors import UserError
from tests.helpers.toy_recipe import STAGES, three_stages
from tests.helpers.toy_task import SIZES, VOCABULARY, write_distilbert

HEAD = "ForSequenceClassification"
CONFIG = {"length_normalization": "mean", "beta_init": 1.5}


def write_tuned(folder: Path, base: Path, model_class=DistilBertForSequenceClassification) -> Path:
    """A classifier whose every weight differs a little from `base`'s."""
    model = model_class.from_pretrained(base)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    DistilBertTokenizer(vocab=VOCABULARY, model_max_length=32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_distilbert(tmp_path_factory.mktemp("base"), DistilBertModel, initializer_range=0.3)


@pytest.fixture(scope="module")
def teacher(base, tmp_path_factory) -> Path:
    return write_tuned(tmp_path_factory.mktemp("teacher"), base)


def moved(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: weight + 0.01 * torch.ones_like(weight) for name, weight in weights.items()}


def student_of(settings: Student, source: Path):
    """A student that has learned something since it was copied."""
    model = build_student(settings, HEAD, None, str(source), num_labels=2)
    model.load_state_dict(moved(model.state_dict()))
    return model


@pytest.mark.parametrize("attention", ["inhibitor", "softmax"])
def test_the_encoder_gets_the_difference_and_the_head_is_the_teachers(base, teacher, attention):
    settings = Student(attention=attention, config=CONFIG)
    model = student_of(settings, base)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    add_task_vector(model, *task_vector(settings, HEAD, str(teacher), str(base), [0, 1], num_labels=2))
    tuned, untuned = load_file(teacher / "model.safetensors"), load_file(base / "model.safetensors")
    for name, weight in model.state_dict().items():
        if name.rpartition(".")[2] in SCALARS:
            expected = before[name]
        elif name.startswith("distilbert."):
            expected = before[name] + tuned[name] - untuned[name.removeprefix("distilbert.")]
        else:
            expected = tuned[name]
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6, msg=name)


def test_a_control_that_is_the_base_becomes_its_teacher(base, teacher):
    settings = Student(attention="softmax")
    model = build_student(settings, HEAD, None, str(base), num_labels=2)
    add_task_vector(model, *task_vector(settings, HEAD, str(teacher), str(base), [0, 1], num_labels=2))
    ids = torch.tensor([[2, 5, 9, 19, 3], [2, 7, 22, 11, 3]])
    expected = DistilBertForSequenceClassification.from_pretrained(teacher)(ids).logits
    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-5)


def test_no_random_number_is_used_up(base, teacher):
    torch.manual_seed(3)
    task_vector(Student(), HEAD, str(teacher), str(base), [0, 1], num_labels=2)
    drawn = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(4))


def test_layers_of_a_deeper_bert(tmp_path):
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": len(VOCABULARY)}
    BertModel(BertConfig(**sizes, num_hidden_layers=4)).save_pretrained(tmp_path / "base")
    write_tuned(tmp_path / "teacher", tmp_path / "base", BertForSequenceClassification)
    encoder, _ = task_vector(Student(), HEAD, str(tmp_path / "teacher"), str(tmp_path / "base"), [1, 3], num_labels=2)
    tuned, untuned = (load_file(tmp_path / name / "model.safetensors") for name in ("teacher", "base"))
    for ours, theirs in enumerate((1, 3)):
        name = f"encoder.layer.{theirs}.intermediate.dense.weight"
        change = encoder[f"transformer.layer.{ours}.ffn.lin1.weight"]
        torch.testing.assert_close(change, tuned[f"bert.{name}"] - untuned[name])
    assert len({name.split(".")[2] for name in encoder if ".layer." in name}) == 2


def test_a_stage_starts_from_it(toy, base, teacher, tmp_path):
    """Without it a control of the bare encoder, hardly trained, has a head that was drawn."""
    changes = ["student.attention=softmax", f"student.source={base}", "task.learning_rate=1e-12", "task.max_steps=1"]
    recipe = three_stages(toy, teacher, *changes, f"task.teacher_base={base}", stage="task")
    run_recipe(recipe, tmp_path / "out")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", teacher))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-6, msg=name)


def test_all_stages_in_one_go(toy, base, teacher, tmp_path):
    changes = [f"task.teacher={teacher}", f"task.teacher_base={base}", "task.learning_rate=1e-12"]
    steps = [f"{stage}.max_steps=1" for stage in STAGES]
    run_recipe(three_stages(toy, base, *changes, *steps), tmp_path / "out")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", teacher))
    assert torch.equal(ours["classifier.bias"], theirs["classifier.bias"])


def refusal(toy, teacher, folder, *changes, **given) -> str:
    with pytest.raises(UserError) as refused:
        run_recipe(three_stages(toy, teacher, *changes, **given), folder / "out")
    assert not list((folder / "out.work").glob("*/checkpoint-*"))
    assert not list((folder / "out.work").glob("*/model"))
    return str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("task.soft_weight=0", "task.teacher_base needs a teacher with a head: give task.soft_weight above 0."),
        ("student.attention=own", "task.teacher_base needs student.attention 'inhibitor' or 'softmax', got 'own'."),
        ("task.teacher_base=nowhere", "nowhere"),
    ],
)
def test_what_cannot_be_is_refused(toy, base, teacher, tmp_path, change, message):
    changes = [f"student.source={base}", f"task.teacher_base={base}", change]
    assert message in refusal(toy, teacher, tmp_path, *changes, stage="task")


@pytest.mark.parametrize("fields", [{"dim": 16}, {"n_layers": 1}, {"hidden_dim": 48}, {"max_position_embeddings": 24}])
def test_another_size_is_refused_before_the_first_stage(toy, base, teacher, tmp_path, fields):
    other = write_distilbert(tmp_path / "other", DistilBertModel, **fields)
    message = refusal(toy, base, tmp_path, f"task.teacher={teacher}", f"task.teacher_base={other}")
    assert message.startswith("task.teacher_base: ")
    assert str(other) in message


def test_a_narrower_student_is_refused(toy, base, teacher, tmp_path):
    narrow = write_distilbert(tmp_path / "narrow", DistilBertModel, dim=16)
    message = refusal(toy, teacher, tmp_path, f"student.source={narrow}", f"task.teacher_base={base}", stage="task")
    assert message.startswith("task.teacher_base: ")
    assert f"{(SIZES['vocab_size'], 32)} in the teacher and {(SIZES['vocab_size'], 16)} in the student" in message


def test_another_vocabulary_is_refused(toy, base, teacher, tmp_path):
    other = write_distilbert(tmp_path / "other", DistilBertModel, tokenizer=False)
    words = [*list(VOCABULARY)[:-2], "funny", "great"]
    DistilBertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(other)
    message = refusal(toy, teacher, tmp_path, f"student.source={base}", f"task.teacher_base={other}", stage="task")
    assert "different tokenizers" in message
    assert "task.teacher_base" in message


@pytest.mark.parametrize("attention", ["inhibitor", "softmax"])
def test_damaged_weights_are_refused(toy, base, teacher, tmp_path, attention):
    other = write_distilbert(tmp_path / "other", DistilBertModel)
    weights = load_file(other / "model.safetensors")
    del weights["transformer.layer.1.ffn.lin1.weight"]
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    changes = [f"student.source={base}", f"student.attention={attention}", f"task.teacher_base={other}"]
    message = refusal(toy, teacher, tmp_path, *changes, stage="task")
    assert message.startswith("task.teacher_base: ")
    assert "transformer.layer.1.ffn.lin1.weight" in message
