"""The Trainer's arguments for a stage of a recipe."""

import dataclasses
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from ..evaluation.fine_tuning import trainer_arguments
from ..support.errors import UserError, reason
from .recipe import Recipe
from .stages import Stage

# Fields of TrainingArguments that a stage sets, and where the recipe has them.
_MANAGED = {
    "output_dir": "OUTPUT_DIR",
    "max_steps": "<stage>.max_steps",
    "num_train_epochs": "<stage>.epochs",
    "learning_rate": "<stage>.learning_rate",
    "per_device_train_batch_size": "<stage>.batch_size",
    "weight_decay": "<stage>.weight_decay",
    "warmup_steps": "<stage>.warmup",
    "warmup_ratio": "<stage>.warmup",
    "lr_scheduler_type": "<stage>.schedule",
    "max_grad_norm": "<stage>.max_grad_norm",
    "bf16": "bf16",
    "seed": "seed",
    "data_seed": "seed",
    "train_sampling_strategy": "nothing: texts of similar length come together",
    "remove_unused_columns": "nothing",
    "resume_from_checkpoint": "nothing: the same command goes on by itself",
    "save_only_model": "nothing: the same command goes on from whole checkpoints",
    "label_names": "data.label_column",
}


def training_arguments(recipe: Recipe, stage: Stage, folder: Path) -> TrainingArguments:
    """The arguments of a stage that trains in `folder`. Raises a UserError for a setting that is unknown, taken or wrong."""
    given = dict(recipe.trainer)
    known = {item.name for item in dataclasses.fields(TrainingArguments)}
    for name in given:
        if name not in known:
            raise UserError(f"trainer: {name!r} is no field of transformers.TrainingArguments.")
        if name in _MANAGED:
            raise UserError(f"trainer: {name!r} is set by {_MANAGED[name]}.")
    accumulated = int(given.get("gradient_accumulation_steps", 1))
    share, rest = divmod(stage.batch_size, accumulated * PartialState().num_processes)
    if rest or not share:
        raise UserError(
            f"{stage.name}.batch_size must be a multiple of {accumulated * PartialState().num_processes} (processes × "
            f"gradient_accumulation_steps), got {stage.batch_size}."
        )
    settings: dict[str, Any] = {
        "max_steps": -1 if stage.max_steps is None else stage.max_steps,
        "num_train_epochs": getattr(stage, "epochs", 1),
        "learning_rate": stage.learning_rate,
        "per_device_train_batch_size": share,
        "per_device_eval_batch_size": 64,
        "weight_decay": stage.weight_decay,
        "warmup_steps": stage.warmup,
        "lr_scheduler_type": {"constant": "constant_with_warmup"}.get(stage.schedule, stage.schedule),
        "max_grad_norm": stage.max_grad_norm,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "bf16": recipe.bf16,
        "seed": recipe.seed,
        "eval_strategy": "epoch" if stage.labelled and recipe.data.eval_file else "no",
        "save_steps": 500,
        "save_total_limit": 2,
        "logging_steps": 50,
        # A loss that is not finite stops the run; it is not to be left out of the mean.
        "logging_nan_inf_filter": False,
        # Each process reads the stream and takes its share of every batch.
        "accelerator_config": {"dispatch_batches": False},
    }
    try:
        arguments = trainer_arguments(folder, **{**settings, **given})
        for tracker in get_reporting_integration_callbacks(arguments.report_to):
            tracker()  # which needs its package
    except Exception as error:  # of transformers, accelerate and their configuration files
        raise UserError(f"trainer: {reason(error)}") from error
    sharding = arguments.deepspeed_plugin and arguments.deepspeed_plugin.hf_ds_config
    gathers = "zero_optimization.stage3_gather_16bit_weights_on_model_save"
    if sharding and sharding.is_zero3() and not sharding.is_true(gathers):
        raise UserError(f"trainer: DeepSpeed's {gathers} must be true in ZeRO stage 3: a stage ends with the whole student.")
    if arguments.n_gpu > 1:
        # Several GPUs in one process would be slower, and not this training: torchrun uses them.
        arguments._n_gpu = 1
    if not stage.labelled and arguments.dataloader_num_workers > 1:
        raise UserError("trainer: dataloader_num_workers must be 0 or 1 for a stream: each worker would read all of it.")
    return arguments
