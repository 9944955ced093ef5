"""What the Trainer of students and teachers adds: losses, parameter groups, positions."""

import math
import re

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_task import POSITIONS, SIZES, VOCABULARY, tiny_student
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertTokenizer,
    EvalPrediction,
    TrainerState,
    TrainingArguments,
)

from inhibidistilbert.distillation.data import NO_LABEL
from inhibidistilbert.distillation.trainer import (
    ClassifierTrainer,
    EpochOrder,
    accuracy,
    distillation_loss,
    random_position_ids,
)

RATE, SCALAR_RATE, DECAY = 1e-3, 2e-2, 0.1
SCALAR = re.compile(r"\.(alpha|beta|gamma)$")
BIAS_OR_NORM = re.compile(r"\.bias$|norm\.weight$", re.IGNORECASE)


@pytest.fixture
def trainer(tmp_path):
    """`trainer(model, **options)`: a trainer of it, ready to step."""

    def trainer(model, **options) -> ClassifierTrainer:
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            learning_rate=RATE,
            weight_decay=DECAY,
            warmup_steps=2,
            use_cpu=True,
            report_to="none",
        )
        tokenizer = DistilBertTokenizer(vocab=VOCABULARY, model_max_length=POSITIONS)
        return ClassifierTrainer(model=model, args=arguments, processing_class=tokenizer, **options)

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


# Losses


def batch_of_logits(rows: int = 6, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of student and teacher, and labels, every third of which is missing."""
    student, teacher = 2 * torch.randn(rows, classes), 3 * torch.randn(rows, classes)
    labels = torch.randint(classes, (rows,))
    labels[::3] = NO_LABEL
    return student, labels, teacher


def log_softmax(row: np.ndarray) -> np.ndarray:
    return row - math.log(sum(math.exp(value) for value in row))


def written_out_loss(student: Tensor, labels: Tensor, teacher: Tensor, temperature: float, hard_weight: float) -> float:
    """T² mean_b Σ_c p_bc (log p_bc − log q_bc) − w/B Σ_b log s_b,label, row by row in float64."""
    total = 0.0
    for scores, label, target in zip(student.double().numpy(), labels.tolist(), teacher.double().numpy(), strict=True):
        log_p, log_q = log_softmax(target / temperature), log_softmax(scores / temperature)
        total += temperature**2 * float((np.exp(log_p) * (log_p - log_q)).sum())
        if label != NO_LABEL:
            total -= hard_weight * log_softmax(scores)[label]
    return total / len(labels)


@pytest.mark.parametrize("hard_weight", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_the_distillation_loss_is_the_formula(temperature, hard_weight):
    student, labels, teacher = batch_of_logits()
    loss = distillation_loss(student, labels, teacher, temperature, hard_weight)
    assert loss.item() == pytest.approx(written_out_loss(student, labels, teacher, temperature, hard_weight), rel=1e-5)


def test_its_gradient_is_the_formulas():
    """T/B (q − p) of the soft part, w/B (s − one-hot) of the labelled rows."""
    student, labels, teacher = batch_of_logits()
    student.requires_grad_()
    distillation_loss(student, labels, teacher, temperature=2.0, hard_weight=0.5).backward()
    exact = student.detach().double()
    soft = 2.0 * ((exact / 2).softmax(-1) - (teacher.double() / 2).softmax(-1))
    labelled = (labels != NO_LABEL).double()[:, None]
    one_hot = torch.nn.functional.one_hot(labels.clamp(min=0), 3)
    expected = (soft + 0.5 * labelled * (exact.softmax(-1) - one_hot)) / len(labels)
    torch.testing.assert_close(student.grad.double(), expected, rtol=1e-5, atol=1e-7)


def test_agreeing_with_the_teacher_costs_nothing():
    student, labels, _ = batch_of_logits()
    student.requires_grad_()
    # A constant added to all classes changes no probability.
    loss = distillation_loss(student, labels, student.detach() + 7.0, temperature=2.0, hard_weight=0.0)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert student.grad.abs().max() < 1e-7


def test_rows_without_a_label_only_follow_the_teacher():
    student, _, teacher = batch_of_logits()
    unlabelled = torch.full((len(student),), NO_LABEL)
    loss = distillation_loss(student, unlabelled, teacher, temperature=2.0, hard_weight=5.0)
    assert loss == distillation_loss(student, unlabelled, teacher, temperature=2.0, hard_weight=0.0)
    assert loss > 0


def test_a_row_weighs_the_same_in_every_batch():
    """So the mean over batches of one size is the loss of all rows, however labels fall into the batches."""
    student, labels, teacher = batch_of_logits()
    options = {"temperature": 2.0, "hard_weight": 0.5}
    whole = distillation_loss(student, labels, teacher, **options)
    for order in (torch.arange(6), torch.tensor([0, 3, 1, 2, 4, 5])):
        halves = [distillation_loss(student[rows], labels[rows], teacher[rows], **options) for rows in order.split(2)]
        torch.testing.assert_close(torch.stack(halves).mean(), whole, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_the_loss_of_half_logits_is_computed_in_float32(dtype):
    student, labels, teacher = batch_of_logits()
    loss = distillation_loss(student.to(dtype), labels, teacher.to(dtype), temperature=2.0, hard_weight=0.5)
    rounded = distillation_loss(student.to(dtype).float(), labels, teacher.to(dtype).float(), 2.0, 0.5)
    assert loss.dtype == torch.float32
    assert loss == rounded


def test_accuracy():
    logits = np.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [5.0, 4.0]])
    assert accuracy(EvalPrediction(predictions=logits, label_ids=np.array([1, 0, 0, 0]))) == {"accuracy": 0.75}


# Positions


def test_random_positions_start_at_0_and_run_on_from_anywhere():
    position_ids = random_position_ids(rows=400, length=5, positions=12, device=torch.device("cpu"))
    assert position_ids.shape == (400, 5)
    assert (position_ids[:, 0] == 0).all()
    assert (position_ids[:, 2:] - position_ids[:, 1:-1] == 1).all()
    assert set(position_ids[:, 1].tolist()) == set(range(1, 9))
    assert set(position_ids.flatten().tolist()) == set(range(12))


@pytest.mark.parametrize("length", [1, 12])
def test_a_text_that_fills_the_table_stays_where_it_is(length):
    position_ids = random_position_ids(rows=3, length=length, positions=12, device=torch.device("cpu"))
    assert position_ids.tolist() == [list(range(length))] * 3


@pytest.fixture
def seen_positions():
    """`seen_positions(model)`: the list of the position_ids it is called with, None for its own."""

    def watch(model) -> list[Tensor | None]:
        seen: list[Tensor | None] = []
        model.register_forward_pre_hook(lambda _, __, inputs: seen.append(inputs.get("position_ids")), with_kwargs=True)
        return seen

    return watch


def batch_of_texts() -> dict[str, Tensor]:
    return {
        "input_ids": torch.randint(5, len(VOCABULARY), (8, 6)),
        "attention_mask": torch.ones(8, 6, dtype=torch.long),
        "labels": torch.arange(8) % 2,
    }


def test_positions_are_moved_in_training_only(trainer, seen_positions):
    student, inputs = tiny_student(dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0), batch_of_texts()
    plain = student(**inputs).logits
    seen = seen_positions(student)
    training = trainer(student, position_offsets=True)
    _, outputs = training.compute_loss(student.eval(), inputs, return_outputs=True)
    assert seen == [None]
    torch.testing.assert_close(outputs.logits, plain, rtol=0, atol=0)
    _, outputs = training.compute_loss(student.train(), inputs, return_outputs=True)
    assert seen[1].shape == (8, 6)
    assert seen[1].max() < POSITIONS
    assert not torch.allclose(outputs.logits, plain)


def test_positions_are_left_alone_unless_asked_for(trainer, seen_positions):
    student = tiny_student()
    seen = seen_positions(student)
    trainer(student).compute_loss(student.train(), batch_of_texts())
    assert seen == [None]


# Batches


def test_the_loss_comes_from_the_labels_where_no_teacher_has_spoken(trainer):
    student, inputs = tiny_student().eval(), batch_of_texts()
    logits = student(**inputs).logits.double()
    expected = -logits.log_softmax(-1)[torch.arange(8), inputs["labels"]].mean()
    loss = trainer(student, temperature=3.0, hard_weight=9.0).compute_loss(student, inputs)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_loss_comes_from_the_teacher_where_it_has(trainer):
    student, inputs = tiny_student().eval(), batch_of_texts()
    teacher_logits = torch.randn(8, 2)
    expected = distillation_loss(student(**inputs).logits, inputs["labels"], teacher_logits, 3.0, 0.25)
    training = trainer(student, temperature=3.0, hard_weight=0.25)
    loss = training.compute_loss(student, {**inputs, "teacher_logits": teacher_logits})
    torch.testing.assert_close(loss, expected)


def test_batches_are_padded_and_carry_no_length(trainer):
    rows = [
        {"input_ids": [2, 7, 3], "label": 1, "teacher_logits": [0.5, 1.0], "length": 3},
        {"input_ids": [2, 7, 8, 9, 3], "label": NO_LABEL, "teacher_logits": [1.5, 0.0], "length": 5},
    ]
    batch = trainer(tiny_student()).data_collator(rows)
    assert set(batch) == {"input_ids", "attention_mask", "labels", "teacher_logits"}
    assert batch["input_ids"].tolist() == [[2, 7, 3, 0, 0], [2, 7, 8, 9, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [1, NO_LABEL]
    assert batch["teacher_logits"].tolist() == [[0.5, 1.0], [1.5, 0.0]]


# The order of a resumed epoch


@pytest.fixture
def saved_order(tmp_path) -> tuple[str, Tensor]:
    """A checkpoint of step 5, saved within an epoch, and the order of that epoch."""
    arguments, keeper = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none"), EpochOrder(None)
    checkpoint = tmp_path / "checkpoint-5"
    checkpoint.mkdir()
    keeper.on_epoch_begin(arguments, TrainerState(epoch=1.0), control=None)
    order = torch.randperm(100)
    torch.rand(7)  # dropout
    keeper.on_save(arguments, TrainerState(epoch=1.5, global_step=5), control=None)
    return str(checkpoint), order


def resumed_order(checkpoint: str, epoch: float) -> Tensor:
    EpochOrder(checkpoint).on_epoch_begin(args=None, state=TrainerState(epoch=epoch), control=None)
    return torch.randperm(100)


def test_a_resumed_epoch_keeps_its_order(saved_order):
    checkpoint, order = saved_order
    assert torch.equal(resumed_order(checkpoint, epoch=1.5), order)


def test_a_new_epoch_gets_a_new_order(saved_order):
    """After a checkpoint of an epoch's last step, and in the epochs after a resumed one."""
    checkpoint, order = saved_order
    assert not torch.equal(resumed_order(checkpoint, epoch=2.0), order)
    keeper = EpochOrder(checkpoint)
    keeper.on_epoch_begin(args=None, state=TrainerState(epoch=1.5), control=None)
    torch.randperm(100)
    keeper.on_epoch_begin(args=None, state=TrainerState(epoch=2.0), control=None)
    assert not torch.equal(torch.randperm(100), order)


def test_a_checkpoint_without_an_order_can_be_resumed(tmp_path):
    assert sorted(resumed_order(str(tmp_path), epoch=1.5).tolist()) == list(range(100))
