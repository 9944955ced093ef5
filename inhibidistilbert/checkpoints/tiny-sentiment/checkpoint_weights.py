"""Whether the weights of a checkpoint are those of the model that they are loaded into."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

_FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_POSITION_IDS = re.compile(r"(^|\.)position_ids$")  # older checkpoints carry them; transformers drops them


class UnfitWeights(ValueError, RuntimeError):
    """The weights are not those of this model. A RuntimeError, as transformers' own."""


def with_half_embeddings(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, those of embeddings in float16 where it has their very values: what is loaded of them is the same."""
    halves = {}
    for name, tensor in state.items():
        if name.endswith("_embeddings.weight") and tensor.dtype == torch.float32 and not tensor.is_meta:
            half = tensor.half()
            if torch.equal(half.float(), tensor):
                halves[tensor.data_ptr()] = half
    # A head that is tied to the embeddings has their tensor, and keeps it.
    return {name: halves.get(tensor.data_ptr(), tensor) for name, tensor in state.items()}


def _within_encoder(name: str, prefix: str) -> str | None:
    """The name of an encoder's tensor without the prefix that models with a head give it; None for one of a head."""
    bare = name.removeprefix(prefix)
    return bare if bare != name or bare.startswith(("embeddings.", "transformer.")) else None


def _some(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if others else first


def _loaded_as(name: str, prefix: str) -> str:
    """Where transformers puts a tensor of this name, in an encoder without a head."""
    while name.startswith(prefix):
        name = name.removeprefix(prefix)
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def check_types(model: Any, stored: Mapping[str, Tensor], source: str) -> None:
    """Only floating tensors where the model has such, int8 ones where it has those, and none under two names.

    Raises:
        UnfitWeights: naming the tensor.
    """
    prefix = f"{model.base_model_prefix}."
    names: dict[str, str] = {}
    for name in stored:
        bare = _loaded_as(name, prefix)
        if bare in names:
            raise UnfitWeights(f"{source!r} holds one tensor under two names: {names[bare]} and {name}.")
        names[bare] = name
    for own_name, own in model.state_dict().items():
        name = names.get(own_name.removeprefix(prefix), "")
        if not name:
            continue  # `check_names` names it
        tensor = stored[name]
        if own.dtype == torch.int8 != tensor.dtype:
            raise UnfitWeights(
                f"int8_weights=True, but {name.removesuffix('.weight')} in {source!r} has no int8 weights; load it with "
                f"int8_weights=False, and inhibidistilbert.quantize makes an int8 model of it. They are {tensor.dtype}."
            )
        if own.dtype != torch.int8 and tensor.dtype not in _FLOATING:
            hint = "; for int8 weights config.json must say int8_weights=true" if tensor.dtype == torch.int8 else ""
            raise UnfitWeights(
                f"{name} in {source!r} must be float64, float32, bfloat16 or float16, got {tensor.dtype}{hint}."
            )


def check_names(model: Any, info: Any, from_files: bool, ignore_mismatched_sizes: bool, source: str) -> None:
    """Every tensor of the encoder, and no other; a head that is there whole, or one to be trained in the place of another.

    info: transformers' report of the loading.
    from_files: a state dict that the caller gave may lack what it likes. So may a file with nothing of this model:
        transformers warns of it, and its own tests demand that it loads.

    Raises:
        UnfitWeights: naming the tensor.
    """
    prefix, own = f"{model.base_model_prefix}.", set(model.state_dict())
    if info.mismatched_keys and not ignore_mismatched_sizes:
        name, shape, wanted = min(info.mismatched_keys)
        raise UnfitWeights(
            f"{name} in {source!r} has shape {tuple(shape)}, but by config.json it has {tuple(wanted)} "
            f"({len(info.mismatched_keys)} such tensors). For a new head, give ignore_mismatched_sizes=True."
        )
    missing = set(info.missing_keys) - set(model.all_tied_weights_keys)
    surplus = {name for name in info.unexpected_keys if not _POSITION_IDS.search(name)}
    heads = {name for name in own if _within_encoder(name, prefix) is None}
    found = heads - set(info.missing_keys) - {name for name, *_ in info.mismatched_keys}
    of_encoder = {name for name in surplus if _within_encoder(name, prefix)}
    if of_encoder or (surplus and heads and not missing & heads and not info.mismatched_keys):
        raise UnfitWeights(
            f"{source!r} holds {_some(of_encoder or surplus)}, which {type(model).__name__} with this config.json "
            f"(n_layers={model.config.n_layers}, int8_weights={model.config.int8_weights}) does not have: they are "
            "another model's."
        )
    if not from_files or own == missing | set(model.all_tied_weights_keys):
        return
    scalars = {name for name in own if name.rpartition(".")[2] in ("alpha", "beta", "gamma", "delta")}
    # A DistilBERT has none of the scalars.
    lost = {name for name in missing if _within_encoder(name, prefix) and (name not in scalars or scalars - missing)}
    # A head's layer comes whole or not.
    lost |= {name for name in heads & missing if any(_layer(name) == _layer(other) for other in found)}
    if lost:
        raise UnfitWeights(
            f"{source!r} lacks {_some(lost)}, which {type(model).__name__} with this config.json "
            f"(n_layers={model.config.n_layers}) has: the weights are incomplete, or another model's."
        )


def _layer(name: str) -> str:
    return name.rpartition(".")[0]
