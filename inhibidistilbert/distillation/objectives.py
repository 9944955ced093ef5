"""What each stage minimises, as sums over tokens or texts: neither padding nor the making of batches changes a loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import NO_LABEL
from .networks import Learner, Teacher

Batch = Mapping[str, Tensor]


class Term(NamedTuple):
    """One part of a loss: `weight · total / count`, where the count is that of the whole step, over all processes.

    total: a sum over what `per` counts. weight: 0 for what is only watched.
    """

    name: str
    total: Tensor
    per: str
    weight: float = 1.0


class Objective(Protocol):
    """A loss of a batch, in terms; `counts` says how many tokens, texts, … a batch has. `model` may be wrapped."""

    def counts(self, batch: Batch) -> dict[str, Tensor]: ...

    def terms(self, model: Any, batch: Batch) -> list[Term]: ...


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of `(B, L)` over real tokens; what stands at padding is not even multiplied, so that NaN there is harmless."""
    return values.masked_fill(~mask.bool(), 0).sum()


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 − cos of the last dimension, in float32: `(…, D)` -> `(…)`."""
    return 1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² KL(teacher / T, student / T) of the last dimension, in float32: `(…, C)` -> `(…)` (Hinton et al. 2015)."""
    student, teacher = student.float() / temperature, teacher.float() / temperature
    divergence = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True)
    return temperature**2 * divergence.sum(-1)


def soft_labels(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² times the mean over labels of KL(σ(teacher / T), σ(student / T)), in float32: `(…, C)` -> `(…)`.

    Each label is a distribution of its own, over being there or not. The divergence is the binary cross-entropy from the
    teacher's probabilities less their own entropy, so that agreeing costs nothing.
    """
    student, teacher = student.float() / temperature, teacher.float() / temperature
    there, missing = F.logsigmoid(teacher), F.logsigmoid(-teacher)
    divergence = there.exp() * (there - F.logsigmoid(student)) + missing.exp() * (missing - F.logsigmoid(-student))
    return temperature**2 * divergence.mean(-1)


def _tokens(batch: Batch) -> dict[str, Tensor]:
    return {"tokens": batch["attention_mask"].sum()}


@dataclass
class AlignObjective:
    """Layer by layer, each on the teacher's own hidden states (see `Align`).

    variances: of each layer's target; see `measure_variances`.
    """

    settings: Any
    teacher: Teacher
    variances: Sequence[float]

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return _tokens(batch)

    def terms(self, model: Any, batch: Batch) -> list[Term]:
        whole = self.settings.target == "layer"
        states = self.teacher(batch, attention=not whole)
        targets = states.outputs if whole else states.attention
        outputs = model(layer_inputs=states.inputs, attention_mask=batch["attention_mask"], whole_layers=whole)
        terms = []
        for layer, (output, target, variance) in enumerate(zip(outputs, targets, self.variances, strict=True)):
            error = (output.float() - target.float()).square()
            unexplained = masked_sum(error.sum(-1) / variance, batch["attention_mask"])
            is_loss = self.settings.loss == "variance"
            terms.append(Term(f"unexplained_{layer}", unexplained, "tokens", weight=float(is_loss)))
            if self.settings.loss == "mse":
                terms.append(Term(f"mse_{layer}", masked_sum(error.mean(-1), batch["attention_mask"]), "tokens"))
            elif self.settings.loss == "cosine":
                distance = masked_sum(cosine_distance(output, target), batch["attention_mask"])
                terms.append(Term(f"cosine_{layer}", distance, "tokens"))
        return terms


@torch.no_grad()
def measure_variances(settings: Any, teacher: Teacher, batches: Sequence[Batch]) -> list[float]:
    """The variance of each layer's target over the real tokens of some batches, summed over channels."""
    rows: list[list[Tensor]] = [[] for _ in teacher.layers]
    for batch in batches:
        states = teacher(batch, attention=settings.target == "attention")
        for kept, target in zip(rows, states.outputs if settings.target == "layer" else states.attention, strict=True):
            kept.append(target[batch["attention_mask"].bool()].float())
    return [float(torch.cat(kept).var(0, correction=0).sum()) for kept in rows]


def _hidden_term(settings: Any, student_states: Sequence[Tensor], teacher_states: Sequence[Tensor], mask: Tensor) -> Term:
    """The mean over layers, weighted by `hidden_layer_weights`, of the cosine distance between hidden states.

    student_states: with the embeddings first, as transformers returns them.
    """
    weights = settings.hidden_layer_weights or [1] * len(teacher_states)
    distances = [
        weight / sum(weights) * masked_sum(cosine_distance(student, teacher), mask)
        for student, teacher, weight in zip(student_states[1:], teacher_states, weights, strict=True)
        if weight
    ]
    return Term("hidden", torch.stack(distances).sum(), "tokens", settings.hidden_weight)


@dataclass
class PretrainObjective:
    """Hidden states and masked tokens, end to end (see `Pretrain`)."""

    settings: Any
    teacher: Teacher

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        masked = {"masked": (batch["labels"] != NO_LABEL).sum()} if "labels" in batch else {}
        return _tokens(batch) | masked

    def terms(self, model: Any, batch: Batch) -> list[Term]:
        settings = self.settings
        states = self.teacher(batch)
        mask = batch["attention_mask"]
        result = model(input_ids=batch["input_ids"], attention_mask=mask, output_hidden_states=True)
        terms = []
        if settings.hidden_weight:
            terms.append(_hidden_term(settings, result.hidden_states, states.outputs, mask))
        if "labels" in batch:
            masked = batch["labels"] != NO_LABEL
            logits = result.logits[masked].float()
            if settings.mlm_weight:
                total = F.cross_entropy(logits, batch["labels"][masked], reduction="sum")
                terms.append(Term("mlm", total, "masked", settings.mlm_weight))
            if settings.soft_mlm_weight:
                total = soft_targets(logits, states.result.logits[masked], settings.temperature).sum()
                terms.append(Term("soft_mlm", total, "masked", settings.soft_mlm_weight))
        return terms


@dataclass
class TaskObjective:
    """Soft targets, hidden states and labels of a task (see `Task`).

    answers: the losses of the task's kind. The teacher runs only where a batch does not carry its logits already.
    positions: of the table that texts are moved about in, None to leave them in their places.
    """

    settings: Any
    answers: Any
    teacher: Teacher | None
    positions: int | None = None

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        rows = torch.tensor(len(batch["input_ids"]), device=batch["input_ids"].device)
        return _tokens(batch) | {"rows": rows} | self.answers.counts(batch)

    def terms(self, model: Any, batch: Batch) -> list[Term]:
        settings, mask = self.settings, batch["attention_mask"]
        inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "attention_mask": mask}
        if self.positions is not None:
            rows, length = batch["input_ids"].shape
            inputs["position_ids"] = random_position_ids(rows, length, self.positions, mask.device)
        teacher_logits = batch.get("teacher_logits")
        states = None
        if self.teacher is not None and teacher_logits is None:
            states = self.teacher(batch)
        hidden = states.outputs if states is not None and settings.hidden_weight else None
        result = model(**inputs, output_hidden_states=hidden is not None)
        terms = []
        if hidden is not None:
            terms.append(_hidden_term(settings, result.hidden_states, hidden, mask))
        answers = self.answers.logits(result)
        if settings.soft_weight:
            targets = teacher_logits if states is None else self.answers.logits(states.result)
            total, per = self.answers.soft(answers, targets, batch, settings.temperature)
            terms.append(Term("soft", total, per, settings.soft_weight))
        if settings.hard_weight:
            total, per = self.answers.hard(answers, batch)
            terms.append(Term("hard", total, per, settings.hard_weight))
        return terms


def random_position_ids(rows: int, length: int, positions: int, device: torch.device) -> Tensor:
    """`(rows, length)`: the first token at 0, the rest of each row moved to a random place of the position table.

    Short texts then train the whole table, so that long inputs find it trained.
    """
    offset = torch.randint(0, max(1, positions - length + 1), (rows, 1), device=device)
    position_ids = torch.arange(length, device=device) + offset
    position_ids[:, 0] = 0
    return position_ids


def set_dropout(learner: Learner, probability: float) -> None:
    """Everywhere in the student; its configuration stays as it is."""
    module: Any
    for module in learner.student.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        elif hasattr(module, "dropout_p"):  # inhibitor attention
            module.dropout_p = probability
