"""Inhibitor attention within each of several texts that stand one behind the other, without padding."""

from collections.abc import Callable, Sequence
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor

from .inhibitor_attention import BACKENDS, accumulated, attend, check_backend
from .inhibitor_checks import check_form, check_inference, check_scalars, check_tensors
from .inhibitor_cpu_packed import Run
from .inhibitor_forms import Form
from .inhibitor_memory import has_tangent, untraced


def runs_of(lengths: Sequence[int]) -> list[Run]:
    """The runs of texts of these lengths; empty ones are left out."""
    found, start = [], 0
    for length, texts in groupby(length for length in lengths if length):
        found.append(Run(start, len(list(texts)), length))
        start += found[-1].texts * length
    return found


def attend_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: Tensor | None,
    alpha: float | Tensor,
    beta: float | Tensor,
    gamma: float | Tensor,
    delta: float | Tensor | None,
    form: Form,
    causal: bool,
    quantized: bool,
    backend: str,
    runs: Sequence[Run],
) -> Tensor:
    """`packed_inhibitor_attention` without its checks. dropout: `key_dropout_mask`."""
    scalars = (alpha, beta, gamma, delta)
    if not query.numel():
        return torch.zeros_like(query)
    compiled = _compiled(backend, query, quantized, form, scalars)
    if compiled and untraced(query, key, value, dropout, *scalars) and not has_tangent(query, key, value, *scalars):
        if quantized:
            check_inference(False, query, key, value, *scalars)
        named = zip(scalars, ("alpha", "beta", "gamma", "delta"), strict=True)
        given = (None if x is None else accumulated(x, name, query, torch.float32) for x, name in named)
        return compiled(query, key, value, dropout, *given, *form.numbers, causal, runs)
    outputs = []
    for run in runs:
        queries, keys, values = (run.of(x) for x in (query, key, value))
        options = form, causal, quantized, False, backend
        output, _ = attend(queries, keys, values, None, run.mask(dropout), None, alpha, beta, gamma, delta, *options)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def _compiled(backend: str, query: Tensor, quantized: bool, form: Form, scalars: Sequence[Any]) -> Callable | None:
    """The operator that takes all texts in one call; None where there is none, or it cannot take these tensors."""
    named = [BACKENDS[backend]] if backend != "auto" else [x for x in BACKENDS.values() if query.device.type in x.devices]
    chosen = (named[0].int8 if quantized else named[0]) if named else None
    if chosen is None or chosen.packed is None or (chosen.refusal is not None and chosen.refusal(query) is not None):
        return None
    several = any(isinstance(x, Tensor) and x.ndim == 2 for x in scalars)
    fits = (chosen.beyond or (form.published and scalars[3] is None)) and (chosen.several or not several)
    return chosen.packed if fits else None


def packed_inhibitor_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    *,
    key_dropout_mask: Tensor | None = None,
    alpha: float | Tensor = 0.5,
    beta: float | Tensor = 1.0,
    gamma: float | Tensor = 1.0,
    delta: float | Tensor | None = None,
    centered: bool = True,
    center: str = "mean",
    signed: bool = True,
    inhibition: str = "threshold",
    causal: bool = False,
    quantized: bool = False,
    backend: str = "auto",
) -> Tensor:
    """`inhibitor_attention` within each of several texts that stand one behind the other: no text sees another.

    On CPUs all texts are one call; other backends are called for each run of neighbours of the same length.

    Args:
        query, key, value: `(tokens, H, d)`, of one dtype and device.
        cu_seqlens: `(texts + 1,)`, integers: the first token of each text, and at the end the number of tokens.
        key_dropout_mask: `(tokens,)` bool.

    The other arguments are those of `inhibitor_attention`.

    Returns:
        `(tokens, H, d)` in the dtype of `query`.

    Raises:
        TypeError, ValueError: as `inhibitor_attention`, and for `cu_seqlens` that do not rise from 0 to the tokens.
    """
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.ndim != 3 or x.shape != query.shape:
            raise ValueError(f"{name} must have the shape (tokens, heads, head size) of query, got {tuple(x.shape)}.")
    check_tensors(*(x.transpose(0, 1)[None] for x in (query, key, value)))
    tokens = len(query)
    if key_dropout_mask is not None and (key_dropout_mask.dtype != torch.bool or key_dropout_mask.shape != (tokens,)):
        raise ValueError(
            f"key_dropout_mask must be a bool tensor of shape (tokens,) = ({tokens},), True for a kept key; got "
            f"{key_dropout_mask.dtype} of shape {tuple(key_dropout_mask.shape)}."
        )
    check_backend(backend)
    check_form(inhibition, center, signed)
    check_scalars(query.shape[1], alpha, beta, gamma, delta)
    runs = runs_of(lengths_between(cu_seqlens, tokens, "cu_seqlens"))
    form = Form.of(inhibition, center, centered, signed)
    return attend_packed(
        query, key, value, key_dropout_mask, alpha, beta, gamma, delta, form, causal, quantized, backend, runs
    )


def lengths_between(boundaries: Tensor, tokens: int, name: str) -> list[int]:
    """How many tokens each text has. Raises ValueError where `boundaries` do not rise from 0 to `tokens`."""
    places = boundaries.tolist() if boundaries.ndim == 1 and not boundaries.is_floating_point() else []
    lengths = [end - start for start, end in pairwise(places)]
    if not places or places[0] != 0 or places[-1] != tokens or min(lengths, default=0) < 0:
        wanted = f"integers that rise from 0 to {tokens}, the number of tokens"
        raise ValueError(f"{name} must be {wanted}, got {boundaries.tolist()}.")
    return lengths
