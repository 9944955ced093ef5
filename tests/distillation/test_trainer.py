"""What the Trainer of all stages adds: parameter groups, and an end at the first loss that is no number."""

import re

import pytest
import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification, TrainingArguments

from inhibidistilbert.distillation.networks import Learner
from inhibidistilbert.distillation.trainer import StageTrainer, first_bad_layer
from tests.helpers.toy_task import SIZES, tiny_student

RATE, SCALAR_RATE, DECAY = 1e-3, 2e-2, 0.1
SCALAR = re.compile(r"\.(alpha|beta|gamma)$")
BIAS_OR_NORM = re.compile(r"\.bias$|norm\.weight$", re.IGNORECASE)


@pytest.fixture
def trainer(tmp_path):
    """`trainer(model, **options)`: a trainer of it, ready to step."""

    def trainer(model, **options) -> StageTrainer:
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            learning_rate=RATE,
            weight_decay=DECAY,
            warmup_steps=2,
            use_cpu=True,
            report_to="none",
        )
        return StageTrainer(stage="task", model=model, args=arguments, **options)

    return trainer


def named_groups(model, optimizer) -> list[tuple[set[str], dict]]:
    """Each parameter group as the names in it and its settings."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [({names[parameter] for parameter in group["params"]}, group) for group in optimizer.param_groups]


# Parameter groups


@pytest.mark.parametrize("per_head", [False, True], ids=["a-layer", "a-head"])
def test_the_scalars_are_a_group_of_their_own(trainer, per_head):
    student = tiny_student(scalars_per_head=per_head)
    optimizer = trainer(student, scalar_learning_rate=SCALAR_RATE).create_optimizer()
    (weights, weights_group), (plain, plain_group), (scalars, scalars_group) = named_groups(student, optimizer)
    assert (weights_group["weight_decay"], weights_group["lr"]) == (DECAY, RATE)
    assert (plain_group["weight_decay"], plain_group["lr"]) == (0, RATE)
    assert (scalars_group["weight_decay"], scalars_group["lr"]) == (0, SCALAR_RATE)
    names = {name for name, _ in student.named_parameters()}
    assert scalars == {name for name in names if SCALAR.search(name)}
    assert len(scalars) == 3 * SIZES["n_layers"]
    assert plain == {name for name in names if BIAS_OR_NORM.search(name)}
    assert weights == names - scalars - plain
    assert {"distilbert.embeddings.word_embeddings.weight", "classifier.weight"} <= weights
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)


def test_a_softmax_teacher_has_no_scalar_group(trainer):
    teacher = DistilBertForSequenceClassification(DistilBertConfig(**SIZES))
    (weights, weights_group), (plain, plain_group) = named_groups(teacher, trainer(teacher).create_optimizer())
    assert (weights_group["weight_decay"], plain_group["weight_decay"]) == (DECAY, 0)
    assert plain == {name for name, _ in teacher.named_parameters() if BIAS_OR_NORM.search(name)}
    assert weights | plain == {name for name, _ in teacher.named_parameters()}


def test_frozen_parameters_are_in_no_group(trainer):
    student = tiny_student()
    student.distilbert.embeddings.requires_grad_(False)
    groups = named_groups(student, trainer(student).create_optimizer())
    assert set.union(*(names for names, _ in groups)) == {
        name for name, _ in student.named_parameters() if ".embeddings." not in name
    }


def test_without_a_rate_of_their_own_the_scalars_take_that_of_the_others(trainer):
    student = tiny_student()
    scalars, group = named_groups(student, trainer(student).create_optimizer())[-1]
    assert all(map(SCALAR.search, scalars))
    assert (group["lr"], group["weight_decay"]) == (RATE, 0)


def test_the_schedule_scales_each_groups_own_rate(trainer):
    """Two steps of warm-up, then down to 0 in eight."""
    training = trainer(tiny_student(), scalar_learning_rate=SCALAR_RATE)
    training.create_optimizer_and_scheduler(num_training_steps=10)
    rates = []
    for _ in range(11):
        rates.append([group["lr"] for group in training.optimizer.param_groups])
        training.optimizer.step()
        training.lr_scheduler.step()
    shape = [0, 0.5, *(1 - step / 8 for step in range(9))]
    for factor, (weights, plain, scalars) in zip(shape, rates, strict=True):
        assert weights == plain == pytest.approx(RATE * factor)
        assert scalars == pytest.approx(SCALAR_RATE * factor)


def test_decay_alone_moves_the_weights_and_nothing_else(trainer):
    student = tiny_student()
    optimizer = trainer(student, scalar_learning_rate=SCALAR_RATE).create_optimizer()
    before = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}
    for parameter in student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in student.named_parameters():
        kept = 1.0 if SCALAR.search(name) or BIAS_OR_NORM.search(name) else 1 - RATE * DECAY
        torch.testing.assert_close(parameter, before[name] * kept, rtol=1e-6, atol=0)


# Which layer is to blame

TEXT = [2, 7, 8, 9, 10, 11, 12, 13, 3]


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("model", [tiny_student, lambda: DistilBertForSequenceClassification(DistilBertConfig(**SIZES))])
def test_the_first_bad_layer_is_named(layer, model):
    student = model()
    student.distilbert.transformer.layer[layer].ffn.lin1.weight.data[0, 0] = torch.nan
    batch = {"input_ids": torch.tensor([TEXT]), "attention_mask": torch.ones(1, 9, dtype=torch.long)}
    assert f"that of layer {layer} " in first_bad_layer(Learner(student, None), batch)


def test_where_all_layers_are_finite_the_head_is_to_blame():
    student = tiny_student()
    student.classifier.weight.data[:] = torch.inf
    batch = {"input_ids": torch.tensor([TEXT]), "attention_mask": torch.ones(1, 9, dtype=torch.long)}
    assert "comes from the head, the labels or the teacher" in first_bad_layer(Learner(student, None), batch)
