"""Loads what is evaluated: a classifier or a regression with its tokenizer, from a folder or the Hub."""

from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..conversion import MODEL_INPUTS
from ..errors import UserError, reason
from ..quiet import quiet_transformers


def load_checkpoint(
    source: str, num_labels: int | None, trust_remote_code: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in float32, and its tokenizer, which gives no segments.

    num_labels: of a model that is to be trained, whose head is new unless it has as many; None demands a trained head.

    Raises:
        UserError: a source that does not load, is without a tokenizer or with another model's, or without a trained head
            where one is needed.
    """
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    new_head = {} if num_labels is None else {"num_labels": num_labels, "ignore_mismatched_sizes": True}
    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, model_input_names=MODEL_INPUTS, **options)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                source, output_loading_info=True, dtype=torch.float32, **options, **new_head
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
    return model, tokenizer
