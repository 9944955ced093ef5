"""Trains a classifier or a regression on a task before it is evaluated."""

from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from torch import nn
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

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
    """The Trainer with the model's own loss; alpha, beta and gamma are never decayed."""

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return [name for name in super().get_decay_parameter_names(model) if name.rpartition(".")[2] not in SCALARS]


def fine_tune(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Dataset, recipe: Recipe, seed: int, folder: Path
) -> None:
    """Train `model` in place on rows with `input_ids`, `length` and `labels`; the Trainer's files go to `folder`."""
    set_seed(seed)
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        per_device_train_batch_size=recipe.batch_size,
        lr_scheduler_type=recipe.schedule,
        weight_decay=recipe.weight_decay,
        train_sampling_strategy="group_by_length",
        seed=seed,
        save_strategy="no",
        logging_steps=100,
        report_to="none",
        use_cpu=not torch.accelerator.is_available(),
    )
    collator = DataCollatorWithPadding(tokenizer)
    trainer = FineTuner(model=model, args=arguments, train_dataset=data, data_collator=collator, processing_class=tokenizer)
    trainer.train()
