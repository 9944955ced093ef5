"""Loads what is evaluated: a classifier or a regression with its tokenizer, from a folder or the Hub."""

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from ..support.errors import UserError
from ..support.heads import ProblemType, fits_problem, other_head
from ..support.models import (
    MODEL_INPUTS,
    check_vocabulary,
    head_weight,
    load_config,
    load_model,
    load_tokenizer,
    no_weight,
)


def load_checkpoint(
    source: str, num_labels: int | None, trust_remote_code: bool, problem: ProblemType
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in float32, and its tokenizer, which gives no segments.

    num_labels: of a model that is to be trained, whose head is new unless it has as many and is of this `problem` type;
        None demands a trained head.

    Raises:
        UserError: a source that does not load, is without a tokenizer or with another model's, or without a trained head
            where one is needed.
    """
    where = f"CHECKPOINT {source!r}"
    config = load_config(source, where, trust_remote_code)
    other = other_head(config, "ForSequenceClassification")
    misfit = bool(other) or not fits_problem(config, problem)
    if num_labels is None and other:
        raise UserError(f"{where} holds a {other}, but only sequence classifiers are evaluated.")
    if num_labels is not None:
        config.problem_type = None  # which may allow no such number
        config.num_labels, config.problem_type = num_labels, problem
    may_be_new = no_weight if num_labels is None else head_weight
    tokenizer = load_tokenizer(source, where, model_input_names=MODEL_INPUTS, trust_remote_code=trust_remote_code)
    model = load_model(
        AutoModelForSequenceClassification,
        source,
        where,
        may_lack=may_be_new,
        may_differ=may_be_new,
        remedy="give another, or --fine-tune",
        config=config,
        dtype=torch.float32,
        trust_remote_code=trust_remote_code,
    ).model
    check_vocabulary(tokenizer, model.config, f"{where}: ")
    if num_labels is not None and misfit:
        _renew_head(model)
    return model, tokenizer


def _renew_head(model: PreTrainedModel) -> None:
    """Draw anew a head that was trained for something else and only happens to have the shape that is wanted."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.startswith(f"{model.base_model_prefix}."):
            nn.init.normal_(module.weight, std=getattr(model.config, "initializer_range", 0.02))
            nn.init.zeros_(module.bias)
