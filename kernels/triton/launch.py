"""Inhibitor attention fused in Triton kernels, for GPUs: nothing of size M x N is ever stored."""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..custom_op import op_namespace, register_backend, register_inference
from ..memory import INPUTS, check_memory, reach
from ..notice import NO_TRITON

try:
    import triton

    from .flawed import _backward_flawed_kernel
    from .float32 import (
        _backward_key_kernel,
        _backward_query_kernel,
        _forward_kernel,
        _value_sum_kernel,
    )
    from .half import _forward_half_kernel, _half_value_sum_kernel, _pack_kernel
except ImportError:
    triton = None

MAX_HEAD_SIZE = 128
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Keys that are skipped together where none of them is real.
KEY_BLOCK = 32
# Channels a lane holds of a row, and the most rows: what is done once a row is shared by the channels, what is done once a
# key by the rows, and both together fill a lane's registers. The counts of instructions decided.
_FORWARD = {"channels": 16, "most": 4}
_BACKWARD_QUERY = {"channels": 32, "most": 1}
_BACKWARD_KEY = {"channels": 16, "most": 2}
# Elements that the kernels can count: within a head they do so in 32 bits.
_LARGEST_HEAD = 2**31 - 1
# Triples (query, key, channel) from which float16 pairs save more time than their two further launches take.
HALF_FROM = 1 << 27


class Tile(NamedTuple):
    """How a program's rows and channels are spread: R rows and C channels a lane, T lanes a row, A rows a warp, W warps.

    Right for any powers of two with C · T the padded head size; fast only where the R · C values fit a lane's registers
    and C · T < 32 · W (the compiler else changes the layout: 9 to 19 instructions a triple instead of 5).
    """

    R: int
    C: int
    W: int
    A: int
    T: int

    @property
    def rows(self) -> int:
        return self.R * self.W * self.A


def tile_for(head_size: int, channels: int, rows: int, lanes: int) -> Tile:
    """The tile with `rows` rows and up to `channels` channels a lane, for warps of `lanes` lanes: 32, on AMD 64."""
    padded = max(16, triton.next_power_of_2(head_size))
    channels = min(channels, padded)
    shared = padded // channels
    return Tile(R=rows, C=channels, W=max(4, padded // 16), A=lanes // shared, T=shared)


class _Device(NamedTuple):
    """What the kernels want to know of a device. `ptx`: takes PTX instructions; `xorsign`: sm_86 or later."""

    processors: int
    lanes: int
    ptx: bool
    xorsign: bool


@cache
def _device(device: torch.device) -> _Device:
    if device.type == "cpu":
        return _Device(processors=1, lanes=32, ptx=False, xorsign=False)
    properties = torch.cuda.get_device_properties(device)
    nvidia = torch.version.hip is None
    recent = (properties.major, properties.minor) >= (8, 6)
    return _Device(properties.multi_processor_count, properties.warp_size, nvidia, nvidia and recent)


def _choose_tile(channels: int, most: int, head_size: int, heads: int, length: int, device: _Device) -> Tile:
    """The tile with the most rows a lane, up to `most`, that leaves few lanes idle and no processor without work."""
    for rows in (4, 2, 1):
        tile = tile_for(head_size, channels, rows, device.lanes)
        programs = triton.cdiv(length, tile.rows)
        if rows <= most and programs * tile.rows <= 1.25 * length and programs * heads >= device.processors:
            break
    return tile


def _masks(padding: Tensor | None, dropout: Tensor | None, unused: Tensor) -> dict[str, Any]:
    """The key masks as bytes, with their strides and which of them there are; `unused` stands where there is none."""
    named: dict[str, Any] = {}
    for name, letter, flag, mask in (("padding", "p", "PADDED", padding), ("dropout", "d", "DROPPED", dropout)):
        named[name] = unused if mask is None else mask.view(torch.uint8)
        named[f"s_{letter}b"], named[f"s_{letter}n"] = (0, 0) if mask is None else mask.stride()
        named[flag] = mask is not None
    return named


def _scalars(alpha: Tensor, beta: Tensor, gamma: Tensor, head_size: int) -> dict[str, Any]:
    named: dict[str, Any] = {"alpha": alpha, "beta": beta, "gamma": gamma, "root": head_size**-0.5, "s_row": 1}
    return named | {f"s_{n}": _stride(x) for n, x in list(named.items())[:3]}


def _stride(scalar: Tensor) -> int:
    return 0 if scalar.numel() == 1 else scalar.stride(0)


def _form(delta: Tensor | None, center: int, inhibition: int, statistics: Tensor) -> dict[str, Any]:
    """Which form it is, and what the published ones do not have; what is None is no argument of the compiled kernel.

    statistics: as `register_backend` describes them, with what the scores are centred by first.
    """
    return {
        **{"SIGNED": inhibition > 0, "GATE": inhibition == 2, "MEAN": center == 1, "LEAST": center == 2},
        **{"delta": delta, "s_delta": None if delta is None else _stride(delta)},
        **{"center": statistics, "nearest": statistics[1].view(torch.int32) if center == 2 else None},
    }


def _strides(letters: str, tensor: Tensor) -> dict[str, int]:
    """The strides of `(B, H, L, d)` under the names the kernels use; `letters` ends with that of the length."""
    name, length = letters[:-1], letters[-1]
    return dict(zip((f"s_{name}{x}" for x in ("b", "h", length, "d")), tensor.stride(), strict=True))


def _readable(names: Sequence[str], tensors: Sequence[Tensor | None]) -> list[Any]:
    """The tensors, or copies whose heads the kernels can index, which they do in 32 bits.

    Raises:
        ValueError: the storage of one does not hold its elements, or a head is too large.
    """
    elements = [0 if x is None else reach(x.shape, x.stride()) for x in tensors]
    check_memory(names, tensors)
    return [
        x if x is None or max(n, x.numel()) <= _LARGEST_HEAD else _within_reach(name, x)
        for name, x, n in zip(names, tensors, elements, strict=True)
    ]


def _within_reach(name: str, x: Tensor) -> Tensor:
    """x `(B, H, L, d)`, or a mask `(B, N)`, or a copy whose heads are within reach."""
    # Outputs have the rows of a sequence's heads side by side; rows are padded to 128 channels at most.
    if x.ndim == 4 and x.shape[2] * max(x.shape[1] * x.shape[3], MAX_HEAD_SIZE) > _LARGEST_HEAD:
        raise ValueError(
            f"{name} of shape {tuple(x.shape)} is too long for the Triton kernels, which take up to {_LARGEST_HEAD} "
            'elements of a sequence; use backend="torch".'
        )
    head = x.ndim // 2
    return x.contiguous() if reach(x.shape[head:], x.stride()[head:]) > _LARGEST_HEAD else x


def _launch_forward(
    query, key, value, padding, dropout, alpha, beta, gamma, delta, center, inhibition, causal, output, statistics, tile,
    wanted=None,
) -> None:  # fmt: skip
    """The float32 forward pass of all rows, or of those in the tiles that `wanted` marks."""
    batch, heads, queries, size = query.shape
    keys, device = key.shape[2], _device(query.device)
    common = {"H": heads, "N": keys, "D": size, "CAUSAL": causal, "v": value} | _strides("vn", value)
    common |= _masks(padding, dropout, query) | {"wanted": query if wanted is None else wanted, "CHOSEN": wanted is not None}
    common |= {"SIGNED": inhibition > 0}
    tiles = triton.cdiv(queries, tile.rows)
    total = query.new_empty((batch, heads, *((keys,) if causal else ()), size), dtype=torch.float32)
    _value_sum_kernel[(batch * heads,)](
        **common, total=total, tiles=tiles, COLUMNS=triton.next_power_of_2(size), num_warps=1, num_stages=1
    )
    _forward_kernel[(tiles * batch * heads,)](
        **(common | _form(delta, center, inhibition, statistics)),
        **_scalars(alpha, beta, gamma, size),
        **(_strides("qm", query) | _strides("kn", key) | _strides("om", output)),
        **tile._asdict(),
        q=query,
        k=key,
        total=total,
        out=output,
        opened=None if delta is None else statistics[-1],
        M=queries,
        BLOCK=KEY_BLOCK,
        ASM=device.ptx,
        XORSIGN=device.xorsign,
        num_warps=tile.W,
        num_stages=1,
    )


def _forward(
    query, key, value, padding, dropout, alpha, beta, gamma, delta, center, inhibition, causal, output, statistics
) -> None:
    inputs = (query, key, value, padding, dropout, alpha, beta, gamma, delta)
    query, key, value, padding, dropout, alpha, beta, gamma, delta = _readable((*INPUTS, "delta"), inputs)
    batch, heads, queries, size = query.shape
    tile = _choose_tile(**_FORWARD, head_size=size, heads=batch * heads, length=queries, device=_device(query.device))
    _launch_forward(
        query, key, value, padding, dropout, alpha, beta, gamma, delta, center, inhibition, causal, output, statistics, tile
    )  # fmt: skip


def _forward_half(
    query, key, value, padding, dropout, alpha, beta, gamma, _, centered, signed, causal, output, mean
) -> None:
    """The forward pass in float16 pairs, then in float32 whatever float16 could not hold."""
    inputs = (query, key, value, padding, dropout, alpha, beta, gamma)
    query, key, value, padding, dropout, alpha, beta, gamma = _readable(INPUTS, inputs)
    batch, heads, queries, size = query.shape
    keys, device = key.shape[2], _device(query.device)
    tile = _choose_tile(**_FORWARD, head_size=size, heads=batch * heads, length=queries, device=device)
    columns = tile.C * tile.T
    rows = triton.cdiv(keys, KEY_BLOCK) * KEY_BLOCK
    key_half, value_half = query.new_empty((2, batch, heads, rows, columns), dtype=torch.float16)
    masks = _masks(padding, dropout, query)
    _pack_kernel[(rows // KEY_BLOCK * batch * heads,)](
        **masks,
        **(_strides("kn", key) | _strides("vn", value)),
        k=key,
        v=value,
        k_half=key_half,
        v_half=value_half,
        H=heads,
        N=keys,
        D=size,
        COLUMNS=columns,
        BLOCK=KEY_BLOCK,
        num_warps=4,
        num_stages=1,
    )
    total = query.new_empty((batch, heads, *((keys,) if causal else ()), columns), dtype=torch.float32)
    unfit = query.new_empty((batch, heads), dtype=torch.int32)
    _half_value_sum_kernel[(batch * heads,)](
        value_half, total, unfit, keys, rows, COLUMNS=columns, CAUSAL=causal, num_warps=1, num_stages=1
    )
    programs = triton.cdiv(queries, tile.rows) * batch * heads
    again = query.new_empty((programs,), dtype=torch.int32)
    _forward_half_kernel[(programs,)](
        **_scalars(alpha, beta, gamma, size),
        **(_strides("qm", query) | _strides("om", output)),
        **tile._replace(C=tile.C // 2)._asdict(),
        **{name: masks[name] for name in ("padding", "s_pb", "s_pn", "PADDED")},
        q=query,
        k_half=key_half.view(torch.int32),
        v_half=value_half.view(torch.int32),
        total=total,
        unfit=unfit,
        out=output,
        mean=mean,
        again=again,
        H=heads,
        M=queries,
        N=keys,
        ROWS=rows,
        D=size,
        BLOCK=KEY_BLOCK,
        SIGNED=signed,
        CENTERED=centered,
        CAUSAL=causal,
        ASM=device.xorsign,
        num_warps=tile.W,
        num_stages=1,
    )
    _launch_forward(
        query, key, value, padding, dropout, alpha, beta, gamma, None, centered, signed, causal, output, mean, tile, again
    )  # fmt: skip


def _backward(
    grad_output, query, key, value, padding, dropout, alpha, beta, gamma, delta, output, statistics, center, inhibition,
    causal, grad_query, grad_key, grad_value,
) -> tuple[Tensor, ...]:  # fmt: skip
    names = (*INPUTS, "delta", "what was kept for the backward pass", "the output", "the gradient of the output")
    inputs = (query, key, value, padding, dropout, alpha, beta, gamma, delta, statistics, output, grad_output)
    query, key, value, padding, dropout, *_, output, grad_output = _readable(names, inputs)
    batch, heads, queries, size = query.shape
    keys, device = key.shape[2], _device(query.device)
    scalars = [scalar for scalar in (alpha, beta, gamma, delta) if scalar is not None]
    per_query = statistics.new_empty((len(scalars), batch, heads, queries))
    per_key = statistics.new_empty((batch, heads, keys))
    opened = None
    if delta is not None:
        grad_output = grad_output.float() / statistics[-1, ..., None]
        opened = -(grad_output * output.float()).sum(-1)
    common = {"g": grad_output, "q": query, "k": key, "v": value}
    common |= {"opened": opened, "ds_center": torch.empty_like(statistics)}
    common |= _strides("gm", grad_output) | _strides("qm", query) | _strides("kn", key) | _strides("vn", value)
    common |= _masks(padding, dropout, query) | _scalars(alpha, beta, gamma, size)
    common |= {"H": heads, "M": queries, "N": keys, "D": size, "ASM": device.ptx, "num_stages": 1}
    common |= {"CAUSAL": causal} | _form(delta, center, inhibition, statistics)

    tile = _choose_tile(**_BACKWARD_QUERY, head_size=size, heads=batch * heads, length=queries, device=device)
    _backward_query_kernel[(triton.cdiv(queries, tile.rows) * batch * heads,)](
        **common,
        **_strides("dqm", grad_query),
        **tile._asdict(),
        dq=grad_query,
        sums=per_query,
        BLOCK=KEY_BLOCK,
        num_warps=tile.W,
    )
    tile = _choose_tile(**_BACKWARD_KEY, head_size=size, heads=batch * heads, length=keys, device=device)
    _backward_key_kernel[(triton.cdiv(keys, tile.rows) * batch * heads,)](
        **common,
        **(_strides("dkn", grad_key) | _strides("dvn", grad_value)),
        **tile._asdict(),
        dk=grad_key,
        dv=grad_value,
        dbeta=per_key,
        num_warps=tile.W,
    )
    if center == 2:
        common["nearest"] = common["nearest"].clone()  # which that kernel finds again
    _backward_flawed_kernel[(batch * heads,)](
        **common,
        **(_strides("dqm", grad_query) | _strides("dkn", grad_key) | _strides("dvn", grad_value)),
        sums=per_query,
        dbeta=per_key,
        dq=grad_query,
        dk=grad_key,
        dv=grad_value,
        COLUMNS=triton.next_power_of_2(size),
        BLOCK=16,
        num_warps=4,
    )
    per_head = per_query.sum((1, 3))
    per_head[1].add_(per_key.sum((0, 2)))
    # Tensors of their own, as torch wants them of an operator.
    return tuple(
        gradient.sum(0, keepdim=True) if scalar.numel() == 1 else gradient.clone()
        for gradient, scalar in zip(per_head, scalars, strict=True)
    )


def triton_refusal(query: Tensor) -> str | None:
    """Why these kernels cannot take `query` `(B, H, M, d)`; None where they can."""
    if triton is None:
        return NO_TRITON
    if query.device.type != "cuda" and not (query.device.type == "cpu" and _INTERPRETED):
        return f"Triton needs tensors on a GPU, query is on {query.device}"
    if query.dtype not in DTYPES:
        return f"Triton takes float32, bfloat16 and float16, query is {query.dtype}"
    if query.shape[-1] > MAX_HEAD_SIZE:
        return f"Triton takes head sizes up to {MAX_HEAD_SIZE}, query has {query.shape[-1]}"
    return None


def _fits_half(query: Tensor, *others: Tensor) -> bool:
    """Whether a call is inference on half types, large enough for float16 pairs, on a device that has the instructions."""
    if query.dtype == torch.float32 or query.numel() * others[0].shape[2] < HALF_FROM:
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for x in (query, *others)):
        return False
    return query.device.type == "cpu" or _device(query.device).xorsign


def triton_attention(query, key, value, padding, dropout, alpha, beta, gamma, delta, center, inhibition, causal) -> Tensor:
    """The operator on a GPU: arguments as `register_backend` describes them, `(B, H, M, d)` in the dtype of query.

    Float32 arithmetic; for inference on half types, in a published form, float16 pairs, whose output is within 1e-2
    (relative RMS) of that.
    """
    published = delta is None and center < 2 and inhibition < 2
    attention = _half_attention if published and _fits_half(query, key, value, alpha, beta, gamma) else _attention
    return attention(query, key, value, padding, dropout, alpha, beta, gamma, delta, center, inhibition, causal)


if triton is not None:
    # With TRITON_INTERPRET=1 the kernels run on CPU tensors, one operation at a time; decided when they were decorated.
    _INTERPRETED = not isinstance(_forward_kernel, triton.JITFunction)
    _NAMESPACE = op_namespace(__name__, __file__)
    _attention = register_backend(_NAMESPACE, _forward, _backward)
    _half_attention = register_inference(_NAMESPACE, "half", _forward_half)
