"""The Trainer's arguments for a stage of a recipe."""

import math
import tempfile
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from huggingface_hub.dataclasses import type_validator
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.training_args import trainer_log_levels

from ..evaluation.fine_tuning import FineTuner, trainer_arguments
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
    "label_names": "data.label_column",
    "local_rank": "torchrun",
}
# Those that must be left out, and why.
_LEFT_OUT = {
    "train_sampling_strategy": "texts of similar length come together",
    "remove_unused_columns": "the stages read the columns that they need",
    "resume_from_checkpoint": "the same command goes on by itself",
    "save_only_model": "the same command goes on from whole checkpoints",
    "ignore_data_skip": "the same command goes on with the texts that were not seen yet",
    "enable_jit_checkpoint": "checkpoints come every trainer.save_steps",
    "auto_find_batch_size": "a step has <stage>.batch_size texts",
    "label_smoothing_factor": "<stage>.temperature and hard_weight say how the labels count",
    "load_best_model_at_end": "a stage ends with its last step",
    "metric_for_best_model": "a stage ends with its last step",
    **dict.fromkeys(
        ("batch_eval_metrics", "eval_do_concat_batches", "prediction_loss_only"), "evaluations here need all predictions"
    ),
    **dict.fromkeys(
        ("neftune_noise_alpha", "use_liger_kernel", "debug", "parallelism_config"), "it does not fit this model"
    ),
}
_SENDING = ("push_to_hub", "hub_")
_TYPES = get_type_hints(TrainingArguments) | {"fsdp": bool | str | None}  # which says itself that true is right
_ABOVE_0 = {
    *("gradient_accumulation_steps", "per_device_eval_batch_size", "eval_accumulation_steps", "dataloader_prefetch_factor"),
    *("logging_steps", "save_steps", "eval_steps", "save_total_limit", "ddp_timeout", "ddp_bucket_cap_mb"),
}


def training_arguments(recipe: Recipe, stage: Stage, folder: Path) -> TrainingArguments:
    """The arguments of a stage that trains in `folder`. Raises a UserError for a setting that is unknown, taken or wrong."""
    given = {name: _checked(name, value) for name, value in recipe.trainer.items()}
    accumulated = given.get("gradient_accumulation_steps", 1)
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
    if not (stage.labelled and recipe.data.eval_file) and (arguments.eval_strategy != "no" or arguments.eval_on_start):
        raise UserError(
            f"trainer: stage {stage.name} has no --eval-file, so eval_strategy must be 'no', eval_on_start false."
        )
    if arguments.n_gpu > 1:
        # Several GPUs in one process would be slower, and not this training: torchrun uses them.
        arguments._n_gpu = 1
    if not stage.labelled and arguments.dataloader_num_workers > 1:
        raise UserError("trainer: dataloader_num_workers must be 0 or 1 for a stream: each worker would read all of it.")
    return arguments


def _checked(name: str, value: Any) -> Any:
    """The value of a field of TrainingArguments. Raises a UserError where it may not be given, or is none of its type."""
    if name not in _TYPES:
        raise UserError(f"trainer: {name!r} is no field of transformers.TrainingArguments.")
    if name in _MANAGED:
        raise UserError(f"trainer: {name!r} is set by {_MANAGED[name]}.")
    why = "`publish` sends models, a training does not" if name.startswith(_SENDING) else _LEFT_OUT.get(name)
    if why:
        raise UserError(f"trainer: {name!r} must be left out: {why}.")
    if value is False and name.endswith("_strategy"):
        value = "no"  # which YAML takes for false
    kind = _TYPES[name]
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        type_validator(name, float(value) if is_number and float in kinds else value, kind)
        if isinstance(value, bool) and bool not in kinds:
            raise TypeError
    except (StrictDataclassError, TypeError) as error:
        names = (str(each) if get_origin(each) else each.__name__ for each in kinds)
        wanted = " or ".join(names).replace("NoneType", "nothing")
        raise UserError(f"trainer: {name} must be {wanted}, got {value!r}.") from error
    if is_number and not (0 <= value < math.inf and (value or name not in _ABOVE_0)):
        raise UserError(f"trainer: {name} must be a number {'above' if name in _ABOVE_0 else 'from'} 0, got {value}.")
    if name.startswith("log_level") and value not in trainer_log_levels:
        raise UserError(f"trainer: {name} must be one of {', '.join(trainer_log_levels)}, got {value!r}.")
    return value


def check_arguments(recipe: Recipe, stage: Stage) -> None:
    """Make a Trainer, an optimizer and a schedule for a model of one weight, since transformers checks much only then.

    Raises a UserError for what they refuse, as `training_arguments` does. Sharded trainings are not tried: only one Trainer
    may shard.
    """
    with tempfile.TemporaryDirectory(prefix="inhibidistilbert-") as folder:  # a Trainer makes its folder at once
        _build(training_arguments(recipe, stage, Path(folder)))


def _build(arguments: TrainingArguments) -> None:
    if arguments.deepspeed_plugin or arguments.fsdp_plugin_args or parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return
    model = nn.Linear(1, 1)
    if arguments.torch_compile:
        backend, mode = arguments.torch_compile_backend, arguments.torch_compile_mode
        try:
            torch.compile(model, backend=str(backend), mode=mode)
        except Exception as error:
            raise UserError(f"trainer: torch.compile does not know backend {backend!r} or mode {mode!r}.") from error
    try:
        trainer = FineTuner(model=model, args=arguments, train_dataset=[{}], eval_dataset=[{}])
        trainer.create_optimizer_and_scheduler(num_training_steps=1)
        trainer.get_train_dataloader()
    except Exception as error:  # of transformers, accelerate, torch and what optimizers need
        raise UserError(f"trainer: {reason(error)}") from error
