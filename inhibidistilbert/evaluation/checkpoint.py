"""Loads what is evaluated: a classifier or a regression with its tokenizer, from a folder or the Hub."""

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..conversion import MODEL_INPUTS
from ..support.errors import UserError, reason
from ..support.foreign import load_pretrained
from ..support.heads import ProblemType, fits_problem, other_head
from ..support.quiet import quiet_transformers


def load_config(source: str, trust_remote_code: bool) -> PreTrainedConfig:
    """The configuration alone. Raises a UserError where it does not load."""
    with quiet_transformers():
        try:
            return load_pretrained(AutoConfig, source, trust_remote_code=trust_remote_code)
        except Exception as error:  # the libraries raise nothing more special for damaged files
            raise UserError(f"CHECKPOINT {source!r} does not load as a sequence classifier: {reason(error)}") from error


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
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    config = load_config(source, trust_remote_code)
    other = other_head(config, "ForSequenceClassification")
    misfit = bool(other) or not fits_problem(config, problem)
    if num_labels is None and other:
        raise UserError(f"CHECKPOINT {source!r} holds a {other}, but only sequence classifiers are evaluated.")
    if num_labels is not None:
        config.problem_type = None  # which may allow no such number
        config.num_labels, config.problem_type = num_labels, problem
    with quiet_transformers():
        try:
            tokenizer = load_pretrained(AutoTokenizer, source, model_input_names=MODEL_INPUTS, **options)
            model, info = load_pretrained(
                AutoModelForSequenceClassification,
                source,
                config=config,
                output_loading_info=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=num_labels is not None,
                **options,
            )
        except Exception as error:  # the libraries raise nothing more special for damaged files
            raise UserError(f"CHECKPOINT {source!r} does not load as a sequence classifier: {reason(error)}") from error
    # transformers makes up a tokenizer of a few special tokens where there is none.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise UserError(f"CHECKPOINT {source!r} has no tokenizer.")
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(
            f"CHECKPOINT {source!r}: the tokenizer has {len(tokenizer)} tokens but the model's vocabulary holds "
            f"{model.config.vocab_size}: they do not belong together."
        )
    # A new head may be missing or have another shape, and nothing else but a pooler.
    new = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    if unfit := sorted(name for name in new if name.startswith(f"{model.base_model_prefix}.") and "pooler" not in name):
        raise UserError(f"CHECKPOINT {source!r} has no {unfit[0]} of the shape that its config.json says.")
    if num_labels is None and info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"]))
        raise UserError(f"CHECKPOINT {source!r} has no trained head (missing {missing}): give another, or --fine-tune.")
    if num_labels is not None and misfit:
        _renew_head(model)
    return model, tokenizer


def _renew_head(model: PreTrainedModel) -> None:
    """Draw anew a head that was trained for something else and only happens to have the shape that is wanted."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.startswith(f"{model.base_model_prefix}."):
            nn.init.normal_(module.weight, std=getattr(model.config, "initializer_range", 0.02))
            nn.init.zeros_(module.bias)
