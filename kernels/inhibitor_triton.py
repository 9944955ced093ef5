"""Inhibitor attention fused in Triton kernels, for GPUs: nothing of size M x N is ever stored."""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .inhibitor_custom_op import op_namespace, register_backend

try:
    import triton

    from .inhibitor_triton_kernels import (
        _backward_key_kernel,
        _backward_query_kernel,
        _forward_kernel,
        _value_sum_kernel,
    )
except ImportError:
    triton = None

MAX_HEAD_SIZE = 128
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Keys that are skipped together where none of them is real.
KEY_BLOCK = 32
# Channels a lane holds of a row: enough to share what is done once a row, few enough for four rows in its registers.
_CHANNELS = 16
_FORWARD_ROWS, _BACKWARD_ROWS = 4, 2


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


def tile_for(head_size: int, rows: int, lanes: int) -> Tile:
    """The tile with `rows` rows a lane, for warps of `lanes` lanes: 32, on AMD 64."""
    padded = max(_CHANNELS, triton.next_power_of_2(head_size))
    shared = padded // _CHANNELS
    return Tile(R=rows, C=_CHANNELS, W=max(4, padded // 16), A=lanes // shared, T=shared)


class _Device(NamedTuple):
    """What the kernels want to know of a device. `sat`: PTX and its saturating instructions; `xorsign`: sm_86 or later."""

    processors: int
    lanes: int
    sat: bool
    xorsign: bool


@cache
def _device(device: torch.device) -> _Device:
    if device.type == "cpu":
        return _Device(processors=1, lanes=32, sat=False, xorsign=False)
    properties = torch.cuda.get_device_properties(device)
    nvidia = torch.version.hip is None
    recent = (properties.major, properties.minor) >= (8, 6)
    return _Device(properties.multi_processor_count, properties.warp_size, nvidia, nvidia and recent)


def _choose_tile(most: int, head_size: int, heads: int, length: int, device: _Device) -> Tile:
    """The tile with the most rows a lane, up to `most`, that leaves few lanes idle and no processor without work."""
    for rows in (4, 2, 1):
        tile = tile_for(head_size, rows, device.lanes)
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
    return named | {f"s_{n}": 0 if x.numel() == 1 else x.stride(0) for n, x in list(named.items())[:3]}


def _strides(letters: str, tensor: Tensor) -> dict[str, int]:
    """The strides of `(B, H, L, d)` under the names the kernels use; `letters` ends with that of the length."""
    name, length = letters[:-1], letters[-1]
    return dict(zip((f"s_{name}{x}" for x in ("b", "h", length, "d")), tensor.stride(), strict=True))


def _forward(query, key, value, padding, dropout, alpha, beta, gamma, centered, signed, causal, output, mean) -> None:
    batch, heads, queries, size = query.shape
    keys, device = key.shape[2], _device(query.device)
    common = {"H": heads, "N": keys, "D": size, "CAUSAL": causal, "v": value} | _strides("vn", value)
    common |= _masks(padding, dropout, query)
    total = mean
    if signed:
        total = query.new_empty((batch, heads, *((keys,) if causal else ()), size), dtype=torch.float32)
        _value_sum_kernel[(batch * heads,)](
            **common, total=total, COLUMNS=triton.next_power_of_2(size), num_warps=1, num_stages=1
        )
    tile = _choose_tile(_FORWARD_ROWS, size, batch * heads, queries, device)
    _forward_kernel[(triton.cdiv(queries, tile.rows) * batch * heads,)](
        **common,
        **_scalars(alpha, beta, gamma, size),
        **(_strides("qm", query) | _strides("kn", key) | _strides("om", output)),
        **tile._asdict(),
        q=query,
        k=key,
        total=total,
        out=output,
        mean=mean,
        M=queries,
        BLOCK=KEY_BLOCK,
        SIGNED=signed,
        CENTERED=centered,
        ASM=device.sat,
        XORSIGN=device.xorsign,
        num_warps=tile.W,
        num_stages=1,
    )


def _backward(
    grad_output, query, key, value, padding, dropout, alpha, beta, gamma, mean, centered, signed, causal,
    grad_query, grad_key, grad_value,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    batch, heads, queries, size = query.shape
    keys, device = key.shape[2], _device(query.device)
    per_query = mean.new_empty((3, batch, heads, queries))
    per_key = mean.new_empty((batch, heads, keys))
    common = {"g": grad_output, "q": query, "k": key, "v": value, "mean": mean, "ds_mean": torch.empty_like(mean)}
    common |= _strides("gm", grad_output) | _strides("qm", query) | _strides("kn", key) | _strides("vn", value)
    common |= _masks(padding, dropout, query) | _scalars(alpha, beta, gamma, size)
    common |= {"H": heads, "M": queries, "N": keys, "D": size, "ASM": device.sat, "num_stages": 1}
    common |= {"SIGNED": signed, "CENTERED": centered, "CAUSAL": causal}

    tile = _choose_tile(_BACKWARD_ROWS, size, batch * heads, queries, device)
    _backward_query_kernel[(triton.cdiv(queries, tile.rows) * batch * heads,)](
        **common,
        **_strides("dqm", grad_query),
        **tile._asdict(),
        dq=grad_query,
        sums=per_query,
        BLOCK=KEY_BLOCK,
        num_warps=tile.W,
    )
    tile = _choose_tile(_BACKWARD_ROWS, size, batch * heads, keys, device)
    _backward_key_kernel[(triton.cdiv(keys, tile.rows) * batch * heads,)](
        **common,
        **(_strides("dkn", grad_key) | _strides("dvn", grad_value)),
        **tile._asdict(),
        dk=grad_key,
        dv=grad_value,
        dbeta=per_key,
        num_warps=tile.W,
    )
    per_head = per_query.sum((1, 3))
    per_head[1] += per_key.sum((0, 2))
    # Tensors of their own, as torch wants them of an operator.
    grad_alpha, grad_beta, grad_gamma = (
        gradient.sum(0, keepdim=True) if scalar.numel() == 1 else gradient.clone()
        for gradient, scalar in zip(per_head, (alpha, beta, gamma), strict=True)
    )
    return grad_alpha, grad_beta, grad_gamma


def triton_refusal(query: Tensor) -> str | None:
    """Why these kernels cannot take `query` `(B, H, M, d)`; None where they can."""
    if triton is None:
        return "the package triton is not installed"
    if query.device.type != "cuda" and not (query.device.type == "cpu" and _INTERPRETED):
        return f"Triton needs tensors on a GPU, query is on {query.device}"
    if query.dtype not in DTYPES:
        return f"Triton takes float32, bfloat16 and float16, query is {query.dtype}"
    if query.shape[-1] > MAX_HEAD_SIZE:
        return f"Triton takes head sizes up to {MAX_HEAD_SIZE}, query has {query.shape[-1]}"
    return None


if triton is not None:
    # With TRITON_INTERPRET=1 the kernels run on CPU tensors, one operation at a time; decided when they were decorated.
    _INTERPRETED = not isinstance(_forward_kernel, triton.JITFunction)
    triton_attention = register_backend(op_namespace(__name__, __file__), _forward, _backward)
