"""Inhibitor attention, the public operator: checks its arguments and chooses a backend."""

import logging
import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .inhibitor_masks import KeyMasks
from .inhibitor_memory import INPUTS, check_memory, has_tangent, is_differentiated, untraced
from .inhibitor_naive import naive_inhibitor_attention
from .inhibitor_quantized import LARGEST_KEYS, quantized_inhibitor_attention
from .inhibitor_torch import torch_inhibitor_attention

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "naive", "torch", "triton", "cpu")
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
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


def _check_key_mask(name: str, mask: Tensor | None, key: Tensor) -> None:
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


def _check_attn_mask(mask: Tensor | None, query: Tensor, key: Tensor) -> None:
    if mask is None:
        return
    full = (*query.shape[:3], key.shape[2])
    if mask.dtype != torch.bool or mask.ndim != 4 or any(m not in (1, n) for m, n in zip(mask.shape, full, strict=True)):
        raise ValueError(
            f"attn_mask must be a 4-D bool tensor that broadcasts to (batch, heads, queries, keys) = {full}, True for a "
            f"visible key; got {mask.dtype} of shape {tuple(mask.shape)}."
        )
    _check_mask_device("attn_mask", mask, key)


def _scalar(name: str, scalar: float | Tensor, query: Tensor, dtype: torch.dtype) -> Tensor:
    """`scalar` as a `(1 or H,)` tensor of the accumulation dtype."""
    if not isinstance(scalar, Tensor):
        if not math.isfinite(scalar):
            raise ValueError(f"{name} must be finite, got {scalar}.")
        scalar = torch.full((1,), float(scalar), dtype=dtype, device=query.device)
    heads = query.shape[1]
    if scalar.ndim > 1 or scalar.numel() not in (1, heads):
        raise ValueError(f"{name} must be a float or a tensor of shape (), (1,) or ({heads},), got {tuple(scalar.shape)}.")
    if scalar.ndim == 1 and scalar.dtype == dtype and scalar.device == query.device:
        return scalar  # as it comes from a module: the conversions would cost as much as a small call's arithmetic
    if untraced(scalar):
        check_memory((name,), (scalar,))
    return scalar.to(device=query.device, dtype=dtype).reshape(-1)


def _plain_operations_only(*inputs: Tensor) -> bool:
    """Whether something is at work that cannot look into an `autograd.Function`.

    That is torch.jit.trace, a transform of torch.func, or forward-mode differentiation of one of the inputs.
    """
    if forward_ad._current_level >= 0 and has_tangent(*inputs):
        return True
    if torch.compiler.is_compiling():
        return False
    return torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()


def _compiled_backend(name: str, quantized: bool = False) -> tuple[Callable[..., Tensor], Callable[[Tensor], str | None]]:
    """`(attention, refusal)` of a backend: its operator, and why it cannot take a query (None where it can).

    Imported at the first use: who does not need a compiler does not wait for one.
    """
    if quantized:
        from .inhibitor_cpu_int8 import int8_attention, int8_refusal

        return int8_attention, int8_refusal if name == "cpu" else lambda query: "it has no int8 form"
    if name == "triton":
        from .inhibitor_triton import triton_attention, triton_refusal

        return triton_attention, triton_refusal
    from .inhibitor_cpu import cpu_attention, cpu_refusal

    return cpu_attention, cpu_refusal


@cache
def _log_once(message: str) -> None:
    logger.info(message)


def _choose(backend: str, query: Tensor, needs_plain: str | None, quantized: bool) -> Callable[..., Tensor] | None:
    """The compiled backend for this call, or None for one in plain torch; `needs_plain` says what only those can do.

    Raises:
        ValueError: the backend that was asked for cannot take these tensors.
    """
    if backend == "auto" and not torch.compiler.is_exporting():
        name = {"cuda": "triton", "cpu": "cpu"}.get(query.device.type)
    else:
        name = backend if backend in ("triton", "cpu") else None
    if name is None:
        return None
    reason = needs_plain
    if reason is None:
        attention, refusal = _compiled_backend(name, quantized)
        reason = refusal(query)
        if reason is None:
            return attention
        if backend != "auto":
            raise ValueError(f"backend={backend!r} cannot be used here: {reason}.")
    if not torch.compiler.is_compiling():  # a compiled graph has no place for a message
        _log_once(f"The plain torch form of inhibitor attention is used instead of {name!r}: {reason}.")
    return None


def _check_inference(return_scores: bool, **inputs: float | Tensor) -> None:
    """What `quantized` does not go with."""
    if return_scores:
        raise ValueError("quantized=True returns no scores; use quantized=False with return_scores=True.")
    if not torch.is_grad_enabled() and forward_ad._current_level < 0:
        return
    for name, x in inputs.items():
        if is_differentiated(x):
            raise ValueError(
                f"quantized=True has no gradient, and {name} requires one; call it under torch.no_grad(), or train with "
                "quantized=False."
            )


def inhibitor_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    key_dropout_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    alpha: float | Tensor = 0.5,
    beta: float | Tensor = 1.0,
    gamma: float | Tensor = 1.0,
    centered: bool = True,
    signed: bool = True,
    causal: bool = False,
    quantized: bool = False,
    return_scores: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Inhibitor attention: keys are scored by Manhattan distance, and the score inhibits the values.

    With \(S_{ij} = (\gamma / \sqrt d) \sum_k |q_{ik} - k_{jk}|\), centred over the visible keys j of each query if
    `centered`, and \(Z_{ij} = \mathrm{relu}(S_{ij} + \alpha)\), the output is

    - unsigned: \(H_{ik} = \beta \sum_j \mathrm{relu}(v_{jk} - Z_{ij})\);
    - signed: \(H_{ik} = \beta \sum_j [\mathrm{relu}(v^+_{jk} - Z_{ij}) - \mathrm{relu}(v^-_{jk} - Z_{ij})]\), where
      \(v^+\) and \(v^-\) are the positive and negative parts of v: soft-thresholding of v by Z.

    The sums run over visible keys only, so a result never depends on padding. A query that sees no key gives 0.

    Args:
        query: `(B, H, M, d)`, float64, float32, bfloat16 or float16. Half types are computed in float32.
        key: `(B, H, N, d)`, dtype and device of `query`.
        value: `(B, H, N, d)`, dtype and device of `query`.
        key_padding_mask: `(B, N)` bool, True for real keys, in any pattern.
        key_dropout_mask: `(B, N)` bool, True for kept keys. A dropped key adds nothing to the output but stays in the
            mean of the centring. Drawn by the caller, so that a recomputation sees the same draw.
        attn_mask: bool, broadcastable to `(B, H, M, N)`, True for visible keys.
        alpha: shift of the scores; like `beta` and `gamma` a float or a tensor of shape `()`, `(1,)` or `(H,)`, of any sign.
        beta: scale of the output.
        gamma: scale of the scores.
        centered: subtract each query's mean score.
        signed: let negative values pass as well.
        causal: query i sees the keys j <= i + N - M.
        quantized: int8 inference, without gradients: queries, keys and values are rounded to grids of 8 bits (and a sign) of
            each head of each sequence, as `inhibitor_quantized` defines it. Compiled for CPUs; elsewhere in plain torch.
        return_scores: also return Z.
        backend: `"auto"` (the best one for the tensors' device), `"triton"` (fused, for GPUs), `"cpu"` (compiled for this
            processor), `"torch"` (blocked, memory-lean, explicit gradients) or `"naive"` (the definition). Calls with
            `attn_mask` or `return_scores` take `"torch"` where a compiled one was asked for; within torch.jit.trace and
            the transforms of torch.func, and for inputs with a forward-mode tangent, it is always the definition.

    Returns:
        `(B, H, M, d)` in the dtype of `query`; with `return_scores` also Z, `(B, H, M, N)`, 0 at invisible keys.

    Raises:
        TypeError: a tensor that is not floating point.
        ValueError: shapes, masks or dtypes that do not fit, a float scalar that is not finite, an unknown backend, one that
            cannot be used here, a tensor whose storage does not hold it, or `quantized` with `return_scores` or an input
            that requires a gradient.

    Source: Brännvall, arXiv 2310.02041; Zhang and Brännvall, arXiv 2503.15983.
    """
    _check_tensors(query, key, value)
    _check_key_mask("key_padding_mask", key_padding_mask, key)
    _check_key_mask("key_dropout_mask", key_dropout_mask, key)
    _check_attn_mask(attn_mask, query, key)
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}.")
    if quantized:
        _check_inference(return_scores, query=query, key=key, value=value, alpha=alpha, beta=beta, gamma=gamma)

    dtype = torch.float64 if query.dtype == torch.float64 and not quantized else torch.float32
    scalars = [_scalar(name, x, query, dtype) for name, x in (("alpha", alpha), ("beta", beta), ("gamma", gamma))]
    transformed = _plain_operations_only(query, key, value, *scalars)
    needs_plain = "it returns no scores" if return_scores else "it takes no attn_mask" if attn_mask is not None else None
    if quantized and key.shape[2] > LARGEST_KEYS:
        needs_plain = f"its int8 form takes up to {LARGEST_KEYS} keys, and these are {key.shape[2]}"
    compiled = None if transformed else _choose(backend, query, needs_plain, quantized)
    if compiled is not None:
        return compiled(query, key, value, key_padding_mask, key_dropout_mask, *scalars, centered, signed, causal)

    inputs = (query, key, value, key_padding_mask, key_dropout_mask, *scalars, attn_mask)
    if untraced(*inputs):
        check_memory((*INPUTS, "attn_mask"), inputs)
    outside = query.dtype
    query, key, value = (x.to(dtype) for x in (query, key, value))
    alpha, beta, gamma = (scalar.view(1, -1, 1, 1) for scalar in scalars)
    masks = KeyMasks(key_padding_mask, key_dropout_mask, attn_mask, causal)
    if quantized:
        return quantized_inhibitor_attention(query, key, value, alpha, beta, gamma, masks, centered, signed).to(outside)
    forward = naive_inhibitor_attention if transformed or backend == "naive" else torch_inhibitor_attention
    output, scores = forward(query, key, value, alpha, beta, gamma, masks, centered, signed, return_scores)
    output = output.to(outside)
    return output if scores is None else (output, scores.to(outside))
