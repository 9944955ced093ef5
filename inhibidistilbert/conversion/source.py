"""Reads a foreign checkpoint: its configuration, its weights, its tokenizer. Runs no code from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError

from ..modeling import modeling_inhibidistilbert
from ..modeling.modeling_inhibidistilbert import InhibiDistilBertPreTrainedModel
from ..support.errors import UserError, reason
from ..support.foreign import plain_config, read_config
from ..support.models import MODEL_INPUTS, Loaded, any_weight, has_tokenizer, load_model, load_tokenizer
from . import authors_format

# Heads that have a counterpart here, by model type. A source with another head is read as the bare encoder.
_SHARED_HEADS = (
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)
HEADS = {"distilbert": _SHARED_HEADS, "bert": ("ForPreTraining", *_SHARED_HEADS)}
_CLASS_PREFIX = {"distilbert": "DistilBert", "bert": "Bert"}


def read_fields(source: str) -> dict[str, Any]:
    """The content of the source's config.json. Raises `UserError`."""
    folder = Path(source)
    if folder.is_file():
        raise UserError(f"SOURCE {source!r} is a file; give the folder written by save_pretrained, or a Hub id.")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(
            f"SOURCE {source!r}: the folder has no config.json; give a folder written by save_pretrained, or a Hub id."
        )
    try:
        return read_config(source)
    except (OSError, ValueError, UserError) as error:
        kind = "cannot be read" if folder.is_dir() else "is not a folder, and could not be read from the Hub as a model id"
        raise UserError(f"SOURCE {source!r} {kind}: {reason(error)}") from error


def read_source_config(source: str) -> transformers.PreTrainedConfig:
    """The source's configuration, known to be of a supported model."""
    raw = read_fields(source)
    _check_supported(source, raw)
    config_class = transformers.BertConfig if raw["model_type"] == "bert" else transformers.DistilBertConfig
    try:
        config = config_class.from_dict(plain_config(raw))
    except (StrictDataclassError, ValueError, TypeError, AttributeError, UserError) as error:  # as transformers stumbles
        raise UserError(f"SOURCE {source!r}: its config.json is not valid: {reason(error)}") from error
    if config.hidden_size % config.num_attention_heads:
        raise UserError(
            f"SOURCE {source!r}: the number of attention heads must divide the hidden size evenly, but its config.json says "
            f"{config.num_attention_heads} heads and hidden size {config.hidden_size}."
        )
    return config


def _check_supported(source: str, raw: Mapping[str, Any]) -> None:
    model_type = raw.get("model_type")
    if model_type not in HEADS:
        raise UserError(f"SOURCE {source!r} has model_type {model_type!r}; supported are {', '.join(HEADS)}.")
    if authors_format.is_authors_format(raw):
        authors_format.check_fields(source, raw)
    positions = raw.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        raise UserError(f"SOURCE {source!r} has position_embedding_type {positions!r}; only 'absolute' is supported.")
    if raw.get("is_decoder") or raw.get("add_cross_attention") or "BertLMHeadModel" in (raw.get("architectures") or ()):
        raise UserError(f"SOURCE {source!r} is a BERT decoder; only encoders (is_decoder: false) are supported.")


def model_classes(
    config: transformers.PreTrainedConfig, head: bool
) -> tuple[type[transformers.PreTrainedModel], type[InhibiDistilBertPreTrainedModel]]:
    """The class to load the source with, so that its head is loaded too, and the student's."""
    prefix = _CLASS_PREFIX[config.model_type]
    has_scalars = authors_format.is_authors_format(config.to_dict())
    architecture = (config.architectures or [""])[0]
    if has_scalars and architecture.startswith(authors_format.CLASS_PREFIX):
        architecture = prefix + architecture.removeprefix(authors_format.CLASS_PREFIX)
    suffix = architecture.removeprefix(prefix) if architecture.startswith(prefix) else ""
    if not head or suffix not in HEADS[config.model_type]:
        suffix = "Model"
    student = "ForMaskedLM" if suffix == "ForPreTraining" else suffix
    source_class = getattr(transformers, prefix + suffix)
    if has_scalars:
        source_class = authors_format.with_scalars(source_class)
    return source_class, getattr(modeling_inhibidistilbert, f"InhibiDistilBert{student}")


def load_source(
    source: str,
    source_class: type[transformers.PreTrainedModel],
    config: transformers.PreTrainedConfig,
    device: str | None = None,
) -> Loaded:
    """The source in its own dtype. What it lacks is the caller's to judge."""
    where = f"SOURCE {source!r}: the checkpoint"
    return load_model(source_class, source, where, config=config, dtype="auto", device_map=device, may_lack=any_weight)


def student_tokenizer(source: str, positions: int) -> transformers.PreTrainedTokenizerBase | None:
    """The source's tokenizer for a model with `positions` positions and no segments; None when it has none."""
    if not has_tokenizer(source):
        return None
    # Given here and not set afterwards, because save_pretrained writes what the tokenizer was made with.
    return load_tokenizer(source, f"SOURCE {source!r}", model_max_length=positions, model_input_names=MODEL_INPUTS)
