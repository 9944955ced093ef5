"""What the public operator checks, once, where data enters."""

import math

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .inhibitor_forms import CENTERS, INHIBITIONS
from .inhibitor_memory import INPUTS, is_differentiated

Scalar = float | Tensor
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    rows, columns, dtype, device = query.shape, key.shape, query.dtype, query.device
    if (
        (len(rows) == 4 and columns == value.shape and rows[:2] == columns[:2] and rows[3:] == columns[3:])
        and (dtype in _DTYPES and key.dtype == dtype and value.dtype == dtype)
        and (key.device == device and value.device == device)
    ):
        return  # else, what is wrong:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.ndim != 4:
            raise ValueError(
                f"{name} must have 4 dimensions (batch, heads, length, head size), got shape {tuple(tensor.shape)}."
            )
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"{name} must be float64, float32, bfloat16 or float16, got {tensor.dtype}.")
        if tensor.dtype != query.dtype or tensor.device != query.device:
            raise ValueError(
                f"query, key and value must agree in dtype and device, got {name} in {tensor.dtype} on {tensor.device} "
                f"and query in {query.dtype} on {query.device}."
            )
    if key.shape != value.shape:
        raise ValueError(f"key and value must have the same shape, got {tuple(key.shape)} and {tuple(value.shape)}.")
    if (*query.shape[:2], query.shape[3]) != (*key.shape[:2], key.shape[3]):
        raise ValueError(
            f"query and key must agree in batch, heads and head size, got {tuple(query.shape)} and {tuple(key.shape)}."
        )


def check_key_mask(name: str, mask: Tensor | None, key: Tensor) -> None:
    if mask is None:
        return
    expected = (key.shape[0], key.shape[2])
    if mask.dtype != torch.bool or tuple(mask.shape) != expected:
        raise ValueError(
            f"{name} must be a bool tensor of shape (batch, keys) = {expected}, True for a kept key; "
            f"got {mask.dtype} of shape {tuple(mask.shape)}."
        )
    _check_mask_device(name, mask, key)


def _check_mask_device(name: str, mask: Tensor, key: Tensor) -> None:
    if mask.device != key.device:
        raise ValueError(f"{name} must be on the device of query, key and value, {key.device}; got one on {mask.device}.")


def check_attn_mask(mask: Tensor | None, query: Tensor, key: Tensor) -> None:
    if mask is None:
        return
    full = (*query.shape[:3], key.shape[2])
    if mask.dtype != torch.bool or mask.ndim != 4 or any(m not in (1, n) for m, n in zip(mask.shape, full, strict=True)):
        raise ValueError(
            f"attn_mask must be a 4-D bool tensor that broadcasts to (batch, heads, queries, keys) = {full}, True for a "
            f"visible key; got {mask.dtype} of shape {tuple(mask.shape)}."
        )
    _check_mask_device("attn_mask", mask, key)


def check_scalars(heads: int, alpha: Scalar, beta: Scalar, gamma: Scalar, delta: Scalar | None) -> None:
    radii = {}
    for name, scalar in (("alpha", alpha), ("beta", beta), ("gamma", gamma), ("delta", delta)):
        if not isinstance(scalar, Tensor):
            if scalar is not None and not math.isfinite(scalar):
                raise ValueError(f"{name} must be finite, got {scalar}.")
            continue
        if scalar.ndim < 2 and scalar.numel() in (1, heads):
            continue
        shape, wanted = tuple(scalar.shape), f"(), (1,) or ({heads},)"
        if name != "delta":
            wanted += f", or for several radii (radii, 1) or (radii, {heads})"
        if scalar.ndim == 2 and name != "delta" and shape[0] >= 1 and shape[1] in (1, heads):
            radii[name] = shape[0]
        else:
            raise ValueError(f"{name} must be a float or a tensor of shape {wanted}, got {shape}.")
    if len(set(radii.values())) > 1:
        raise ValueError(f"alpha, beta and gamma must agree in the number of radii, got {radii}.")


def check_form(inhibition: str, center: str, signed: bool) -> None:
    if inhibition == "threshold" and center == "mean":
        return
    for name, value, known in (("inhibition", inhibition, INHIBITIONS), ("center", center, CENTERS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}.")
    if inhibition == "gate" and not signed:
        raise ValueError("signed must be True for inhibition='gate', which lets negative values pass as well, got False.")


def check_inference(return_scores: bool, *inputs: float | Tensor | None) -> None:
    """What `quantized` does not go with; `inputs` are query, key, value, alpha, beta, gamma and delta."""
    if return_scores:
        raise ValueError("quantized=True returns no scores; use quantized=False with return_scores=True.")
    if not torch.is_grad_enabled() and forward_ad._current_level < 0:
        return
    for name, x in zip((*INPUTS[:3], *INPUTS[5:], "delta"), inputs, strict=True):
        if is_differentiated(x):
            raise ValueError(
                f"quantized=True has no gradient, and {name} requires one; call it under torch.no_grad(), or train with "
                "quantized=False."
            )
