"""The fine-tuner: the Trainer that every training here builds on, and how a model is trained before it is evaluated."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from ..modeling.modeling_inhibidistilbert import SCALARS


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters; the defaults are those of the paper's authors (arXiv 2503.15983), at their fewest epochs."""

    epochs: float = 4
    learning_rate: float = 2e-5
    batch_size: int = 8
    schedule: str = "cosine"
    weight_decay: float = 0.01


class FineTuner(Trainer):
    """The Trainer with alpha, beta and gamma in a parameter group of their own, which is never decayed.

    scalar_learning_rate: theirs; None for that of the other parameters.
    """

    scalar_learning_rate: float | None = None

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

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return [name for name in super().get_decay_parameter_names(model) if name.rpartition(".")[2] not in SCALARS]


def trainer_arguments(folder: Path, **settings: Any) -> TrainingArguments:
    """The Trainer's files go to `folder`; it takes the accelerator if there is one, and tells nobody unless asked to."""
    use_cpu = not torch.accelerator.is_available()
    return TrainingArguments(**{"output_dir": str(folder), "use_cpu": use_cpu, "report_to": "none", **settings})


def fine_tune(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Dataset, recipe: Recipe, seed: int, folder: Path
) -> None:
    """Train `model` in place, by its own loss, on rows with `input_ids`, `length` and `labels`."""
    arguments = trainer_arguments(
        folder,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        per_device_train_batch_size=recipe.batch_size,
        lr_scheduler_type=recipe.schedule,
        weight_decay=recipe.weight_decay,
        train_sampling_strategy="group_by_length",
        seed=seed,
        save_strategy="no",
        logging_steps=100,
    )
    # The Trainer sets the seed, and pads by the tokenizer.
    FineTuner(model=model, args=arguments, train_dataset=data, processing_class=tokenizer).train()
