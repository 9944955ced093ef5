"""The losses of the stages: their formulas, and that neither padding nor the making of batches changes them."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    DistilBertModel,
    DistilBertTokenizer,
    MPNetConfig,
    MPNetModel,
)

from inhibidistilbert import (
    InhibiDistilBertConfig,
    InhibiDistilBertForMaskedLM,
    InhibiDistilBertForQuestionAnswering,
    InhibiDistilBertForSequenceClassification,
    InhibiDistilBertForTokenClassification,
    InhibiDistilBertModel,
)
from inhibidistilbert.distillation.batches import Collator, Masking
from inhibidistilbert.distillation.data import NO_LABEL, Data
from inhibidistilbert.distillation.networks import Learner, Teacher, layer_map
from inhibidistilbert.distillation.objectives import (
    AlignObjective,
    PretrainObjective,
    TaskObjective,
    measure_variances,
    random_position_ids,
)
from inhibidistilbert.distillation.stages import Align, Pretrain, Task
from inhibidistilbert.distillation.tasks import KINDS, Classification, MultiLabelClassification
from inhibidistilbert.support.errors import UserError
from tests.helpers.toy_task import POSITIONS, SIZES, VOCABULARY, sentences

TOKENIZER = DistilBertTokenizer(vocab=VOCABULARY, model_max_length=POSITIONS)


# The task's losses


def distillation_loss(logits: Tensor, labels: Tensor, teacher: Tensor, temperature: float, hard_weight: float) -> Tensor:
    """The loss of rows with these logits, as the task stage sums it up."""
    kind, batch = Classification(Data()), {"labels": labels}
    soft, _ = kind.soft(logits, teacher, batch, temperature)
    hard, per = kind.hard(logits, batch)
    assert per == "rows"
    return (soft + hard_weight * hard) / len(labels)


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


def test_the_loss_of_labels_is_the_formula_and_so_is_its_gradient():
    """T² mean_c KL(σ(t/T), σ(s/T)) + w mean_c BCE(s, label), whose gradient is T (q − p) / C + w (σ(s) − label) / C."""
    student, _, teacher = batch_of_logits()
    labels = torch.randint(2, student.shape).float()
    labels[::3] = math.nan
    kind = MultiLabelClassification(Data(), ["a", "b", "c"])
    student.requires_grad_()
    soft, _ = kind.soft(student, teacher, {}, temperature=3.0)
    hard, per = kind.hard(student, {"labels": labels})
    assert per == "rows"
    (soft + 0.5 * hard).backward()
    s, t = student.detach().double(), teacher.double()
    q, p, known = (s / 3).sigmoid(), (t / 3).sigmoid(), ~labels.isnan()
    divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    entropy = -(labels * s.sigmoid().log() + (1 - labels) * (1 - s.sigmoid()).log())
    assert soft.item() == pytest.approx(9 * divergence.sum().item() / 3, rel=1e-5)
    assert hard.item() == pytest.approx(entropy[known].sum().item() / 3, rel=1e-5)
    expected = 3 * (q - p) / 3 + 0.5 * torch.where(known, s.sigmoid() - labels, 0) / 3
    torch.testing.assert_close(student.grad.double(), expected, rtol=1e-5, atol=1e-7)


def test_labels_of_which_the_teacher_is_sure_have_a_finite_loss():
    kind, logits = MultiLabelClassification(Data(), ["a", "b"]), torch.tensor([[200.0, -200.0]])
    assert kind.soft(logits, logits, {}, 1.0)[0] == 0
    assert kind.soft(-logits, logits, {}, 1.0)[0] == pytest.approx(200)


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


# All stages, on batches with and without padding


def random_teacher(model_class, **fields):
    """A softmax teacher of the toy's sizes with clearly different hidden states."""
    torch.manual_seed(7)
    if model_class.config_class is BertConfig:
        settings = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 12, "num_attention_heads": 4}
        config = BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=POSITIONS, initializer_range=0.2, **settings)
    else:
        config = DistilBertConfig(**{**SIZES, "initializer_range": 0.2, **fields})
    return model_class(config)


def random_student(model_class, **fields):
    torch.manual_seed(8)
    settings = {**SIZES, "initializer_range": 0.2, "length_normalization": "sqrt", "dropout": 0.0, "attention_dropout": 0.0}
    return model_class(InhibiDistilBertConfig(**{**settings, **fields}))


def learner_and_teacher(student_class, teacher_class, **fields) -> tuple[Learner, Teacher]:
    student, teacher = random_student(student_class, **fields), random_teacher(teacher_class, **fields)
    layers = layer_map(teacher.config.num_hidden_layers, student.config.num_hidden_layers, None)
    return Learner(student, teacher), Teacher(teacher, layers)


def rows_of(kind: str) -> list[dict]:
    """Six encoded texts of different lengths, labelled as the kind of task wants it."""
    texts = [text for text, _ in sentences(6, seed=5)]
    if kind == "token-classification":
        raw = [{"text": text.split(), "label": [index % 3 for index in range(len(text.split()))]} for text in texts]
        raw[0]["label"] = [NO_LABEL] * len(raw[0]["label"])
    elif kind == "question-answering":
        raw = [
            {"question": "the film", "context": text, "label": {"text": [text[:3]], "answer_start": [0]}} for text in texts
        ]
    elif kind == "multi-label-classification":
        labels = [[0.0, 1.0, 1.0], [math.nan] * 3, [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]]
        raw = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    else:
        labels = [0, NO_LABEL, 1, 0, 1, 1] if kind == "classification" else [0.5, math.nan, -1.0, 2.0, 0.0, 1.0]
        raw = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    return KINDS[kind](Data(kind=kind)).encode(Dataset.from_list(raw), TOKENIZER, 24).to_list()


def loss_of(objective, model, batches: list[dict]) -> Tensor:
    """The loss of a step of these batches, as the Trainer puts it together."""
    counts = [objective.counts(batch) for batch in batches]
    total = {name: sum(count[name] for count in counts) for name in counts[0]}
    terms = [term for batch in batches for term in objective.terms(model, batch)]
    return sum(term.weight * term.total / total[term.per] for term in terms)


def align_case(form: dict | None = None, **settings):
    learner, teacher = learner_and_teacher(InhibiDistilBertModel, DistilBertModel, **form or {})
    stage = Align(max_steps=1, **settings)
    batch = Collator(TOKENIZER)(rows_of("classification"))
    return learner, AlignObjective(stage, teacher, measure_variances(stage, teacher, [batch])), None, None


def pretrain_case(**settings):
    learner, teacher = learner_and_teacher(InhibiDistilBertForMaskedLM, DistilBertForMaskedLM)
    return learner, PretrainObjective(Pretrain(max_steps=1, **settings), teacher), None, Masking(TOKENIZER, 0.4, seed=0)


TASK_CLASSES = {
    "classification": (InhibiDistilBertForSequenceClassification, DistilBertForSequenceClassification, 2),
    "multi-label-classification": (InhibiDistilBertForSequenceClassification, DistilBertForSequenceClassification, 3),
    "regression": (InhibiDistilBertForSequenceClassification, DistilBertForSequenceClassification, 1),
    "token-classification": (InhibiDistilBertForTokenClassification, DistilBertForTokenClassification, 3),
    "question-answering": (InhibiDistilBertForQuestionAnswering, DistilBertForQuestionAnswering, 2),
}


def task_case(kind: str, **settings):
    student_class, teacher_class, labels = TASK_CLASSES[kind]
    learner, teacher = learner_and_teacher(student_class, teacher_class, num_labels=labels)
    task = KINDS[kind](Data(kind=kind))
    stage = Task(**{"soft_weight": 1.0, "hidden_weight": 0.5, "hard_weight": 0.25, **settings})
    return learner, TaskObjective(stage, task, teacher), task, None


GATE = {"inhibition": "gate", "center": "least", "length_normalization": "passed", "radii": 2, "alpha_init": [-0.5, 0.1]}
CASES = {
    "align-attention": lambda: align_case(),
    "align-layer-cosine": lambda: align_case(target="layer", loss="cosine", trained="layer"),
    "align-gate": lambda: align_case(GATE, trained="queries_keys"),
    "align-mse": lambda: align_case(loss="mse", trained="queries_keys"),
    "pretrain-hidden": lambda: pretrain_case(hidden_layer_weights=[1.0, 3.0]),
    "pretrain-mlm": lambda: pretrain_case(mlm_weight=1.0, soft_mlm_weight=2.0),
    **{kind: lambda kind=kind: task_case(kind) for kind in TASK_CLASSES},
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_the_same_padded_unpadded_and_in_parts(name):
    """A batch with padding gives what its texts give one by one, and its halves, accumulated or on two processes."""
    learner, objective, task, masking = CASES[name]()
    learner.eval()
    rows, collate = rows_of(name if name in TASK_CLASSES else "classification"), Collator(TOKENIZER, task)

    def gradients(parts: list[list[dict]]) -> tuple[Tensor, dict[str, Tensor]]:
        batches = [collate(part) for part in parts]
        if masking is not None:
            batches = [masking(batch, 3) for batch in batches]
        learner.zero_grad()
        loss = loss_of(objective, learner, batches)
        loss.backward()
        return loss.detach(), {
            key: parameter.grad.clone() for key, parameter in learner.named_parameters() if parameter.grad is not None
        }

    objective.settings.freeze(learner)
    loss, whole = gradients([rows])
    assert loss > 0.01
    assert whole
    for parts in ([[row] for row in rows], [rows[:2], rows[2:]]):
        other, gradient = gradients(parts)
        torch.testing.assert_close(other, loss, rtol=1e-5, atol=1e-6)
        assert gradient.keys() == whole.keys()
        for key, value in gradient.items():
            scale = whole[key].abs().max().item()
            torch.testing.assert_close(value, whole[key], rtol=1e-3, atol=1e-4 * scale + 1e-7, msg=key)


def test_queries_and_keys_learn_with_every_scalar_of_several_radii():
    learner, objective, _, _ = align_case(GATE, trained="queries_keys")
    objective.settings.freeze(learner)
    trained = {name.partition(".attention.")[2] for name, p in learner.student.named_parameters() if p.requires_grad}
    projections = {f"{linear}.{part}" for linear in ("q_lin", "k_lin") for part in ("weight", "bias")}
    assert trained == projections | {"alpha", "beta", "gamma", "delta"}


def test_the_unexplained_share_of_variance_is_the_formula():
    """Over real tokens, Σ|output − target|² / Σ|target − mean|²: 1 for a layer that says the mean, 0 for the target."""
    learner, objective, _, _ = align_case()
    batch = Collator(TOKENIZER)(rows_of("classification"))
    mask = batch["attention_mask"].bool()
    targets = objective.teacher(batch, attention=True).attention

    def losses(model) -> list[float]:
        return [(term.total / mask.sum()).item() for term in objective.terms(model, batch)]

    assert losses(lambda **_: targets) == [0, 0]
    means = [target[mask].mean(0).expand_as(target) for target in targets]
    assert losses(lambda **_: means) == pytest.approx([1, 1], rel=1e-4)
    outputs = learner(layer_inputs=objective.teacher(batch).inputs, attention_mask=batch["attention_mask"])
    for value, output, target in zip(losses(learner), outputs, targets, strict=True):
        real = target[mask].double()
        expected = (output[mask].double() - real).square().sum() / (real - real.mean(0)).square().sum()
        assert value == pytest.approx(expected.item(), rel=1e-4)


def test_each_aligned_layer_trains_by_itself():
    """A layer's loss has no gradient in another layer, since each is fed the teacher's states."""
    learner, objective, _, _ = align_case()
    objective.settings.freeze(learner)
    terms = objective.terms(learner, Collator(TOKENIZER)(rows_of("classification")))
    terms[1].total.backward()
    layers = learner.student.transformer.layer
    assert all(parameter.grad is None for parameter in layers[0].parameters())
    assert layers[1].attention.q_lin.weight.grad.abs().sum() > 0
    assert layers[1].ffn.lin1.weight.grad is None


def test_the_teachers_recorded_attention_is_that_of_its_layers():
    """Computed again by hand for DistilBERT; the layer's input plus it, normalised, goes on to the feed-forward part."""
    teacher = random_teacher(DistilBertModel).eval()
    batch = Collator(TOKENIZER)(rows_of("classification"))
    states = Teacher(teacher, [0, 1])(batch, attention=True)
    mask = batch["attention_mask"].bool()
    for layer, inputs, attention, outputs in zip(
        teacher.transformer.layer, states.inputs, states.attention, states.outputs, strict=True
    ):
        middle = layer.sa_layer_norm(attention + inputs)
        expected = layer.output_layer_norm(layer.ffn(middle) + middle)
        torch.testing.assert_close(outputs[mask], expected[mask], rtol=1e-4, atol=1e-5)


# Teachers of another depth or width


def test_layers_are_mapped_evenly_up_to_the_last():
    assert layer_map(12, 6, None) == [1, 3, 5, 7, 9, 11]
    assert layer_map(6, 6, None) == list(range(6))
    assert layer_map(12, 3, None) == [3, 7, 11]
    assert layer_map(12, 6, [0, 2, 4, 7, 9, 11]) == [0, 2, 4, 7, 9, 11]


@pytest.mark.parametrize("chosen", [[0], [0, 12], [-1, 0]])
def test_a_map_that_does_not_fit_is_refused(chosen):
    with pytest.raises(UserError, match=r"student\.layers must be 2 integers from 0 to 11"):
        layer_map(12, 2, chosen)


def mpnet():
    torch.manual_seed(7)
    settings = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    return MPNetModel(MPNetConfig(vocab_size=len(VOCABULARY), max_position_embeddings=64, initializer_range=0.2, **settings))


@pytest.mark.parametrize(
    "teacher_model",
    [
        pytest.param(lambda: random_teacher(BertModel), id="bert-12-layers", marks=pytest.mark.slow),
        pytest.param(mpnet, id="mpnet"),
    ],
)
def test_a_deeper_and_wider_teacher_is_learned_from(teacher_model):
    """Both stages bring their losses down by at least a third in 60 steps, through maps that the student's folder lacks."""
    student, teacher_model = random_student(InhibiDistilBertModel), teacher_model()
    depth = teacher_model.config.num_hidden_layers
    teacher = Teacher(teacher_model, layer_map(depth, 2, None))
    assert teacher.layers == [depth // 2 - 1, depth - 1]
    learner = Learner(student, teacher_model)
    assert learner.to_student.weight.shape == (32, 48)
    batch = Collator(TOKENIZER)(rows_of("classification"))
    align, pretrain = Align(max_steps=1), Pretrain(max_steps=1)
    for stage, objective in (
        (align, AlignObjective(align, teacher, measure_variances(align, teacher, [batch]))),
        (pretrain, PretrainObjective(pretrain, teacher)),
    ):
        learner.requires_grad_(True)
        stage.freeze(learner)
        optimizer = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], lr=3e-3)
        losses = []
        for _ in range(60):
            loss = loss_of(objective, learner, [batch])
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert losses[-1] < losses[0] * 2 / 3
    assert not any("to_teacher" in name or "to_student" in name for name in learner.student.state_dict())


def test_a_teacher_of_the_students_width_needs_no_maps():
    learner, _ = learner_and_teacher(InhibiDistilBertModel, DistilBertModel)
    assert learner.to_student is learner.to_teacher is None


def test_the_maps_start_as_the_principal_axes_of_the_teachers_words():
    learner = Learner(random_student(InhibiDistilBertModel), random_teacher(BertForMaskedLM))
    to_student, to_teacher = learner.to_student.weight, learner.to_teacher.weight
    torch.testing.assert_close(to_student @ to_teacher, torch.eye(32), rtol=0, atol=1e-4)
