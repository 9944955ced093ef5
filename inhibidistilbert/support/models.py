"""Loads configurations, models and tokenizers as data, each with its checks and one clear error."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import has_file

from ..modeling.configuration_inhibidistilbert import InhibiDistilBertConfig
from .errors import UserError, reason
from .files import is_regular
from .foreign import load_pretrained
from .quiet import quiet_transformers

MODEL_INPUTS = ["input_ids", "attention_mask"]  # students have no segments
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
_PROBE = "a \U0010fffd"  # the second is in no vocabulary


class Loaded(NamedTuple):
    """A model, the names of its weights that no file holds, and of those in the files that it has not."""

    model: Any
    missing: set[str]
    unexpected: set[str]


# Some of a model's weights: whether the one of a name is among them.
Weights = Callable[[PreTrainedModel, str], bool]


def no_weight(model: PreTrainedModel, name: str) -> bool:
    return False


def any_weight(model: PreTrainedModel, name: str) -> bool:
    return True


def head_weight(model: PreTrainedModel, name: str) -> bool:
    """Of the head, or of the pooler, which stands below it in some models."""
    in_encoder = model.base_model is model or name.startswith(f"{model.base_model_prefix}.")
    return "pooler" in name or not in_encoder


def _load(kind: Any, source: str | os.PathLike, where: str, **options: Any) -> Any:
    with quiet_transformers():
        try:
            return load_pretrained(kind, source, **options)
        except Exception as error:  # the libraries raise nothing more special for damaged files
            raise UserError(f"{where}: {reason(error)}") from error


def load_config(source: str | os.PathLike, where: str, trust_remote_code: bool = False) -> Any:
    """The configuration of a folder or Hub id, which errors call `where`. Raises `UserError`: it does not load."""
    return _load(AutoConfig, source, f"{where} does not load", trust_remote_code=trust_remote_code)


def load_model(
    kind: Any,
    source: str | os.PathLike,
    where: str,
    *,
    may_lack: Weights = no_weight,
    may_differ: Weights = no_weight,
    remedy: str = "give a complete checkpoint",
    shaped_by: str = "config.json",
    **options: Any,
) -> Loaded:
    """A model of the class `kind`, its weights from `source`, a folder or a Hub id.

    where: what errors call the source. options: of `foreign.load_pretrained`.
    may_lack, may_differ: the weights that may be new because no file holds them, or holds them in another shape.
    remedy: what to do where others are missing. shaped_by: what says the right shape.

    Raises:
        UserError: it does not load, or lacks weights, or has them in another shape, or some that are not finite.
    """
    # The weights that do not fit are refused below, by name.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    # First without values: a configuration may ask for more memory than there is. A stranger's code may know no such thing.
    first = options if options.get("trust_remote_code") else options | {"device_map": "meta"}
    model, info = _load(kind, source, f"{where} does not load", **first)
    differing = sorted(shapes for shapes in info["mismatched_keys"] if not may_differ(model, shapes[0]))
    if differing:
        name, found, wanted = differing[0]
        shapes = f"{name} has shape {tuple(found)} in the weights but {tuple(wanted)} by {shaped_by}"
        raise UserError(f"{where} does not load: {shapes} ({len(differing)} such tensors).")
    missing = set(info["missing_keys"])
    if lost := sorted(name for name in missing if not may_lack(model, name)):
        _, of, head = kind.__name__.rpartition("For")
        trained = f"has no trained head {head!r}, or " if of else ""
        raise UserError(f"{where} {trained}lacks weights ({some(lost)}): {remedy}.")
    if first != options:
        model, info = _load(kind, source, f"{where} does not load", **options)
    for name, weight in model.named_parameters():
        if name not in missing and not weight.is_meta and not (finite := weight.isfinite()).all():
            value = weight[~finite][0].item()
            raise UserError(f"{where} is damaged, its weights are not finite: {name} must be finite, got {value}.")
    return Loaded(model, missing, set(info["unexpected_keys"]))


def some(names: list[str]) -> str:
    """The first of many names, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def load_tokenizer(source: str | os.PathLike, where: str, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub id, which errors call `where`. options: of `foreign.load_pretrained`.

    Raises:
        UserError: it does not load, or there is none.
    """
    tokenizer = _load(AutoTokenizer, source, f"{where} does not load: its tokenizer cannot be read", **options)
    # transformers makes up a tokenizer of a few special tokens where there is none.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise UserError(f"{where} has no tokenizer.")
    try:
        tokenizer(_PROBE)
    except Exception as error:
        raise UserError(f"{where} does not load: its tokenizer fails on a text: {reason(error)}") from error
    return tokenizer


def has_tokenizer(source: str | os.PathLike) -> bool:
    """Whether a folder, or a Hub id, has one. Raises `UserError`: it is neither, or the Hub does not say."""
    if Path(source).is_dir():
        return any(is_regular(Path(source, name)) for name in TOKENIZER_FILES)
    try:
        return any(has_file(source, name) for name in TOKENIZER_FILES)
    except Exception as error:  # transformers passes on what the HTTP client, the Hub and the check of names raise
        raise UserError(f"{str(source)!r}: cannot look for its tokenizer: {reason(error)}") from error


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: Any, where: str = "") -> None:
    """Raises `UserError` where the model of this configuration has no embeddings for some tokens."""
    holds = f"but the model's vocabulary holds {config.vocab_size}: they do not belong together."
    if len(tokenizer) > config.vocab_size:
        raise UserError(f"{where}the tokenizer has {len(tokenizer)} tokens {holds}")
    # Ids may have gaps, and those that are put around a text need be no token's.
    largest = max(*tokenizer.get_vocab().values(), *tokenizer(_PROBE)["input_ids"])
    if largest >= config.vocab_size:
        raise UserError(f"{where}the tokenizer gives the id {largest}, {holds}")


def check_model_type(config: Mapping[str, Any], where: str, remedy: str = "") -> None:
    """Raises `UserError` unless the content of a config.json is of this package's models."""
    expected, found = InhibiDistilBertConfig.model_type, config.get("model_type")
    if found != expected:
        raise UserError(f"{where} must hold model_type {expected!r}, got {found!r}{remedy}.")


def check_fields(config: Mapping[str, Any], where: str) -> None:
    """Raises `UserError` where a field of this package's models has another type, or a value out of its range.

    The names of the labels apart: what they should be is more than a question of types.
    """
    kind = InhibiDistilBertConfig
    declared = ({field.name for field in dataclasses.fields(kind)} | {*kind.attribute_map}) - {"id2label", "label2id"}
    try:
        kind.from_dict({name: value for name, value in config.items() if name in declared})
    except Exception as error:  # as the class stumbles over what it has no check for
        raise UserError(f"{where}: {reason(error).removeprefix('config.json: ')}") from error
