"""Inhibitor attention, the public operator: checks its arguments and chooses a backend."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .blocked import per_radius, torch_inhibitor_attention
from .checks import check_attn_mask, check_form, check_inference, check_key_mask, check_scalars, check_tensors
from .cpu.attention import cpu_attention, cpu_refusal
from .cpu.int8_attention import int8_attention, int8_refusal
from .cpu.packed import packed_float32, packed_int8
from .forms import Form
from .masks import KeyMasks
from .memory import INPUTS, check_memory, has_tangent, untraced
from .notice import say_slow
from .quantized import LARGEST_KEYS, quantized_inhibitor_attention
from .reference import naive_inhibitor_attention

_NO_SCORES = "it returns no scores"
_NO_FORM = "it computes the published forms alone: a threshold, no delta, centred by the mean or not at all"
_NO_RADII = "it computes one radius"


class Backend(NamedTuple):
    """A form of the operator.

    devices: the types of device whose tensors `"auto"` gives it.
    load: imports it, if that takes long, and returns it: what `register_backend` makes, or, without a `refusal`, a function
        of the signature of `torch_inhibitor_attention`.
    refusal: why it cannot take such a query, None where it can. Without this function it takes every call.
    int8: the form for `quantized=True`, for the same devices; without one such calls take plain torch.
    beyond: whether it computes the options beyond the paper, but for several radii. several: whether those too.
    packed: the same for texts one behind the other, see `packed_float32`; without it each run of them is a call.
    """

    devices: tuple[str, ...]
    load: Callable[[], Callable[..., Any]]
    refusal: Callable[[Tensor], str | None] | None = None
    int8: "Backend | None" = None
    beyond: bool = False
    several: bool = False
    packed: Callable[..., Tensor] | None = None


def _triton() -> Callable[..., Tensor]:
    from .triton.launch import triton_attention

    return triton_attention


def _triton_refusal(query: Tensor) -> str | None:
    from .triton.launch import triton_refusal

    return triton_refusal(query)


BACKENDS = {
    "naive": Backend((), lambda: naive_inhibitor_attention),
    "torch": Backend((), lambda: torch_inhibitor_attention),
    "triton": Backend(("cuda",), _triton, _triton_refusal, beyond=True),
    "cpu": Backend(
        *(("cpu",), lambda: cpu_attention, cpu_refusal),
        int8=Backend((), lambda: int8_attention, int8_refusal, beyond=True, packed=packed_int8),
        beyond=True,
        several=True,
        packed=packed_float32,
    ),
}


def check_backend(backend: str) -> None:
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, ('auto', *BACKENDS)))}, got {backend!r}.")


def accumulated(scalar: float | Tensor, name: str, query: Tensor, dtype: torch.dtype) -> Tensor:
    """`scalar` as a `(1 or H,)` tensor of `dtype`, that of the accumulation; `(R, 1 or H)` where it has two dimensions."""
    if not isinstance(scalar, Tensor):
        return torch.full((1,), float(scalar), dtype=dtype, device=query.device)
    if scalar.ndim and scalar.dtype == dtype and scalar.device == query.device:
        return scalar  # as it comes from a module: the conversions would cost as much as a small call's arithmetic
    if untraced(scalar):
        check_memory((name,), (scalar,))
    scalar = scalar.to(device=query.device, dtype=dtype)
    return scalar if scalar.ndim else scalar.reshape(1)


def _plain_operations_only(*inputs: Tensor) -> bool:
    """Whether something is at work that cannot look into an `autograd.Function`.

    That is torch.jit.trace, a transform of torch.func, or forward-mode differentiation of one of the inputs.
    """
    if forward_ad._current_level >= 0 and has_tangent(*inputs):
        return True
    if torch.compiler.is_compiling():
        return False
    return torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()


def _choose(
    backend: str, query: Tensor, needs_plain: str | None, quantized: bool, beyond: bool = False, several: bool = False
) -> tuple[Callable[..., Any], bool]:
    """The operator for this call, and whether it is a compiled one; `needs_plain` says what only the others can do, `beyond`
    and `several` whether there are an option beyond the paper and several radii.

    Raises:
        ValueError: the backend that was asked for cannot take these tensors.
    """
    device, plain = query.device.type, BACKENDS["torch"]
    chosen = plain if backend == "auto" else BACKENDS[backend]
    if backend == "auto" and not torch.compiler.is_exporting():
        for each in BACKENDS.values():
            if device in each.devices:
                chosen = each
                break
        else:
            say_slow(device, "there is no compiled form for it")
    if chosen.refusal is None:
        return chosen.load(), False
    form = chosen.int8 if quantized else chosen
    reason = needs_plain
    if form is not None:
        reason = _NO_FORM if beyond and not form.beyond else _NO_RADII if several and not form.several else needs_plain
    if reason is None:
        if form is None:
            reason = "it has no int8 form"
        elif form.refusal is None or (reason := form.refusal(query)) is None:
            return form.load(), True
        if backend != "auto":
            raise ValueError(f"backend={backend!r} cannot be used here: {reason}.")
    if reason != _NO_SCORES:  # whoever wants the scores in memory asks for the plain form
        say_slow(device, reason)
    return plain.load(), False


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding: Tensor | None,
    dropout: Tensor | None,
    attention: Tensor | None,
    alpha: float | Tensor,
    beta: float | Tensor,
    gamma: float | Tensor,
    delta: float | Tensor | None,
    form: Form,
    causal: bool,
    quantized: bool,
    return_scores: bool,
    backend: str,
) -> tuple[Tensor, Tensor | None]:
    """`inhibitor_attention` without its checks: the output, and the scores where `return_scores` asks for them.

    padding, dropout, attention: `key_padding_mask`, `key_dropout_mask` and `attn_mask`.
    """
    if quantized:
        check_inference(return_scores, query, key, value, alpha, beta, gamma, delta)
    dtype = torch.float64 if query.dtype == torch.float64 and not quantized else torch.float32
    named = ((alpha, "alpha"), (beta, "beta"), (gamma, "gamma"))
    alpha, beta, gamma = [accumulated(x, name, query, dtype) for x, name in named]
    scalars: tuple[Tensor, ...] = (alpha, beta, gamma)
    if delta is not None:
        delta = accumulated(delta, "delta", query, dtype)
        scalars = (*scalars, delta)
    transformed = _plain_operations_only(query, key, value, *scalars)
    needs_plain = _NO_SCORES if return_scores else "it takes no attn_mask" if attention is not None else None
    beyond, several = delta is not None or not form.published, alpha.ndim + beta.ndim + gamma.ndim > 3
    if quantized and several:
        raise ValueError(f"quantized=True cannot be used here: {_NO_RADII}.")
    if quantized and key.shape[2] > LARGEST_KEYS:
        needs_plain = f"its int8 form takes up to {LARGEST_KEYS} keys, and these are {key.shape[2]}"
    operator, compiled = BACKENDS["naive"].load(), False
    if not transformed:
        operator, compiled = _choose(backend, query, needs_plain, quantized, beyond, several)
    if compiled:
        return operator(query, key, value, padding, dropout, alpha, beta, gamma, delta, *form.numbers, causal), None

    inputs = (query, key, value, padding, dropout, alpha, beta, gamma, delta, attention)
    if untraced(*inputs):
        check_memory((*INPUTS, "delta", "attn_mask"), inputs)
    outside = query.dtype
    query, key, value = (x.to(dtype) for x in (query, key, value))
    alpha, beta, gamma = per_radius(alpha, beta, gamma)
    delta = None if delta is None else delta.view(1, -1, 1, 1)
    masks = KeyMasks(padding, dropout, attention, causal)
    if quantized:
        output = quantized_inhibitor_attention(query, key, value, alpha, beta, gamma, delta, masks, form)
        return output.to(outside), None
    output, scores = operator(query, key, value, alpha, beta, gamma, delta, masks, form, return_scores)
    return output.to(outside), None if scores is None else scores.to(outside)


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
    delta: float | Tensor | None = None,
    centered: bool = True,
    center: str = "mean",
    signed: bool = True,
    inhibition: str = "threshold",
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

    Options go beyond the paper. `center="least"` subtracts the score of the nearest key in the place of the mean, so that
    the nearest key of every query stands at alpha. `inhibition="gate"` takes \(Z_{ij} = S_{ij} + \alpha\) as it comes, and

    - gate: \(H_{ik} = \beta \sum_j [\mathrm{relu}(v_{jk}/2 - Z_{ij}) - \mathrm{relu}(-v_{jk}/2 - Z_{ij})]\): nothing where
      \(Z \ge |v|/2\), v where \(Z \le -|v|/2\), and a ramp between.

    With `delta` the sum is divided by \(0.001 + D_i\), where \(D_i\) counts what passes of a constant \(1/\delta\):
    \(D_i = \sum_j \mathrm{relu}(1 - \delta Z_{ij})\), for a gate \(\sum_j \mathrm{clamp}(1/2 - \delta Z_{ij}, 0, 1)\).

    With R radii alpha, beta and gamma are R by H: each radius has a Z of its own from the same distances. What passes under
    the others is added to what passes under the first, times their beta; to D that of the others, times the magnitude of
    their beta. The first beta scales the output, as ever.

    At a kink the derivative is that of the side where less passes; of a gate that of the side off the ramp, and of D that on
    the ramp. Of several nearest keys the first is meant.

    Args:
        query: `(B, H, M, d)`, float64, float32, bfloat16 or float16. Half types are computed in float32.
        key: `(B, H, N, d)`, dtype and device of `query`.
        value: `(B, H, N, d)`, dtype and device of `query`.
        key_padding_mask: `(B, N)` bool, True for real keys, in any pattern.
        key_dropout_mask: `(B, N)` bool, True for kept keys. A dropped key adds nothing to the output but stays in the
            centring and in what the sum is divided by. Drawn by the caller, so that a recomputation sees the same draw.
        attn_mask: bool, broadcastable to `(B, H, M, N)`, True for visible keys.
        alpha: shift of the scores; like `beta` and `gamma` a float or a tensor of shape `()`, `(1,)` or `(H,)`, of any sign;
            with R radii also `(R, 1)` or `(R, H)`.
        beta: scale of the output.
        gamma: scale of the scores.
        delta: the slope of what the sum is divided by, a float or a tensor of shape `()`, `(1,)` or `(H,)`, of any sign;
            None leaves the sum as it is.
        centered: subtract one of each query's scores, or their mean, from all of them.
        center: which one: `"mean"`, or `"least"`, that of the least distance.
        signed: let negative values pass as well; a gate always does.
        inhibition: `"threshold"` (soft-thresholding, as published) or `"gate"`.
        causal: query i sees the keys j <= i + N - M.
        quantized: int8 inference, with one radius and without gradients: queries, keys and values are rounded to grids of 8
            bits (and a sign) of each head of each sequence, as `quantized.py` defines it. Compiled for CPUs; elsewhere in
            plain torch.
        return_scores: also return Z, of the first radius.
        backend: `"auto"` (the best one for the tensors' device), `"triton"` (fused, for GPUs), `"cpu"` (compiled for this
            processor), `"torch"` (blocked, memory-lean, explicit gradients) or `"naive"` (the definition). Where a compiled
            one was asked for, calls with `attn_mask`, `return_scores` or a form that it has not take `"torch"`; within
            torch.jit.trace and the transforms of torch.func, and for inputs with a forward-mode tangent, it is always the
            definition.

    Returns:
        `(B, H, M, d)` in the dtype of `query`; with `return_scores` also Z, `(B, H, M, N)`, 0 at invisible keys.

    Raises:
        TypeError: a tensor that is not floating point.
        ValueError: shapes, masks or dtypes that do not fit, a float scalar that is not finite, an unknown backend, one that
            cannot be used here, a tensor whose storage does not hold it, or `quantized` with `return_scores`, several radii
            or an input that requires a gradient.

    Source: Brännvall, arXiv 2310.02041; Zhang and Brännvall, arXiv 2503.15983.
    """
    check_tensors(query, key, value)
    check_key_mask("key_padding_mask", key_padding_mask, key)
    check_key_mask("key_dropout_mask", key_dropout_mask, key)
    check_attn_mask(attn_mask, query, key)
    check_backend(backend)
    check_form(inhibition, center, signed)
    check_scalars(query.shape[1], alpha, beta, gamma, delta)
    padding, dropout, form = key_padding_mask, key_dropout_mask, Form.of(inhibition, center, centered, signed)
    scalars, flags = (alpha, beta, gamma, delta), (causal, quantized, return_scores)
    output, scores = attend(query, key, value, padding, dropout, attn_mask, *scalars, form, *flags, backend)
    return output if scores is None else (output, scores)
