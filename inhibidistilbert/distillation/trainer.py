"""The Trainer of students and of their teachers: losses, parameter groups, positions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DataCollatorWithPadding, EvalPrediction, PreTrainedTokenizerBase, Trainer, TrainerCallback

from ..modeling.modeling_inhibidistilbert import SCALARS
from .data import NO_LABEL


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of the rows whose largest logit is the label."""
    return {"accuracy": float((np.argmax(prediction.predictions, axis=-1) == prediction.label_ids).mean())}


def distillation_loss(
    logits: Tensor, labels: Tensor, teacher_logits: Tensor, temperature: float, hard_weight: float
) -> Tensor:
    """Hinton's loss: T² KL(teacher / T, student / T), plus `hard_weight` times the cross-entropy of the labelled rows.

    logits, teacher_logits: `(B, classes)`; labels: `(B,)`, `NO_LABEL` where only the teacher has spoken.
    """
    logits = logits.float()
    soft = nn.functional.kl_div(
        nn.functional.log_softmax(logits / temperature, dim=-1),
        nn.functional.log_softmax(teacher_logits.float() / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )
    # A sum over the batch's rows, so that a row weighs the same in whatever batch it comes.
    hard = nn.functional.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="sum") / len(labels)
    return temperature**2 * soft + hard_weight * hard


def random_position_ids(rows: int, length: int, positions: int, device: torch.device) -> Tensor:
    """`(rows, length)`: the first token at 0, the rest of each row moved to a random place of the position table.

    Short texts then train the whole table, so that long inputs find it trained.
    """
    offset = torch.randint(0, max(1, positions - length + 1), (rows, 1), device=device)
    position_ids = torch.arange(length, device=device) + offset
    position_ids[:, 0] = 0
    return position_ids


class ClassifierTrainer(Trainer):
    """Trains a sequence classifier: from labels alone, or from a teacher where the rows carry `teacher_logits`.

    alpha, beta and gamma are in a parameter group of their own: never decayed, with their own learning rate.

    Args:
        scalar_learning_rate: learning rate of alpha, beta and gamma; None for that of the other parameters.
        temperature, hard_weight: of `distillation_loss`.
        position_offsets: train with `random_position_ids`, in a table of the tokenizer's `model_max_length` positions.
    """

    def __init__(
        self,
        *,
        processing_class: PreTrainedTokenizerBase,
        scalar_learning_rate: float | None = None,
        temperature: float = 1.0,
        hard_weight: float = 0.0,
        position_offsets: bool = False,
        **kwargs,
    ):
        super().__init__(
            data_collator=_WithoutLength(DataCollatorWithPadding(processing_class)),
            compute_metrics=accuracy,
            processing_class=processing_class,
            **kwargs,
        )
        self.positions = processing_class.model_max_length
        self.scalar_learning_rate = scalar_learning_rate
        self.temperature = temperature
        self.hard_weight = hard_weight
        self.position_offsets = position_offsets

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model = model or self.model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(self.parameter_groups(model), **options)
        return self.optimizer

    def parameter_groups(self, model: nn.Module) -> list[dict]:
        """Decayed weights; biases and norms; the inhibitor's scalars. Groups without a parameter are left out."""
        decayed = set(self.get_decay_parameter_names(model))
        weights: dict = {"params": [], "weight_decay": self.args.weight_decay}
        plain: dict = {"params": [], "weight_decay": 0.0}
        scalars: dict = {"params": [], "weight_decay": 0.0}
        if self.scalar_learning_rate is not None:
            scalars["lr"] = self.scalar_learning_rate
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                is_scalar = name.rpartition(".")[2] in SCALARS
                group = scalars if is_scalar else weights if name in decayed else plain
                group["params"].append(parameter)
        return [group for group in (weights, plain, scalars) if group["params"]]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        teacher_logits = inputs.pop("teacher_logits", None)
        if model.training and self.position_offsets:
            rows, length = inputs["input_ids"].shape
            inputs["position_ids"] = random_position_ids(rows, length, self.positions, inputs["input_ids"].device)
        outputs = model(**inputs)
        if teacher_logits is None:
            loss = nn.functional.cross_entropy(outputs.logits.float(), labels)
        else:
            loss = distillation_loss(outputs.logits, labels, teacher_logits, self.temperature, self.hard_weight)
        return (loss, outputs) if return_outputs else loss


class EpochOrder(TrainerCallback):
    """Lets a training that stopped within an epoch go on with the texts this epoch has not seen.

    The Trainer draws an epoch's order from torch's random state at the epoch's start, which its checkpoints do not hold:
    a resumed epoch would get another order, and so some texts twice and others never. This keeps it beside each checkpoint.

    Args:
        resumed: the checkpoint that the training goes on from, None for a new training.
    """

    FILE = "epoch_rng_state.pth"

    def __init__(self, resumed: str | None):
        self.resumed = resumed
        self.random_state = torch.get_rng_state()

    def on_epoch_begin(self, args, state, control, **kwargs):
        if self.resumed is not None and not float(state.epoch).is_integer():
            file = Path(self.resumed, self.FILE)
            if file.is_file():
                torch.set_rng_state(torch.load(file, weights_only=True))
        self.resumed = None
        self.random_state = torch.get_rng_state()

    def on_save(self, args, state, control, **kwargs):
        torch.save(self.random_state, Path(args.output_dir, f"checkpoint-{state.global_step}", self.FILE))


class _WithoutLength:
    """A collator that leaves out the `length` column, which only the sampler reads."""

    def __init__(self, collator: DataCollatorWithPadding):
        self.collator = collator

    def __call__(self, features: list[Mapping]) -> dict[str, Tensor]:
        return self.collator([{name: value for name, value in row.items() if name != "length"} for row in features])
