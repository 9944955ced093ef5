"""Inhibitor attention compiled for the processor it runs on: the operator of the backend "cpu".

float32 arithmetic, of float32, bfloat16 and float16 tensors with any strides. Needs llvmlite, which turns the generated
code into machine code at the first call; see `cpu_refusal` for what happens without.
"""

import struct
from collections.abc import Callable
from ctypes import addressof, c_int64, create_string_buffer
from functools import cache
from math import ceil

import torch
from torch import Tensor

from .inhibitor_cpu_arguments import BUFFERS, FIELDS, workspace_layout
from .inhibitor_cpu_ir_backward import backward_ir
from .inhibitor_cpu_ir_forward import forward_ir
from .inhibitor_cpu_jit import CompilerUnavailable, Machine, compiled, host_machine
from .inhibitor_cpu_threads import run_on_threads
from .inhibitor_custom_op import op_namespace, register_backend

LARGEST_HEAD = 512
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_SOURCES = ("arguments", "ir", "ir_panels", "ir_tiles", "ir_forward", "ir_backward")
# Below so many (query, key, channel) triples the threads would wait for each other longer than they compute.
_WORTH_A_THREAD = 1 << 17

# Tests set another machine than the one at hand.
machine: Callable[[], Machine] = host_machine


def _entry(name: str) -> int:
    """The address of the compiled pass `name`."""
    here = __file__.removesuffix(".py")
    files = [f"{here}_{source}.py" for source in _SOURCES]
    generate = {"forward": forward_ir, "backward": backward_ir}[name]
    return compiled(f"inhibitor-{name}", generate, files, machine()).address(name)


@cache
def _unavailable() -> str | None:
    try:
        for name in ("forward", "backward"):
            _entry(name)
    except CompilerUnavailable as error:
        return str(error)
    except Exception as error:  # whatever a compiler may meet: the plain form is there
        return f"its code cannot be compiled here ({type(error).__name__}: {error})"
    return None


def cpu_refusal(query: Tensor) -> str | None:
    """Why this backend cannot take such a query; None where it can."""
    if query.device.type != "cpu":
        return f"the tensors are on {query.device}"
    if query.dtype not in _DTYPES:
        return f"it computes in float32, and the tensors are {query.dtype}"
    if query.shape[-1] > LARGEST_HEAD:
        return f"it takes heads of at most {LARGEST_HEAD} channels, and these have {query.shape[-1]}"
    return _problem()


@torch.compiler.assume_constant_result
def _problem() -> str | None:
    """Why nothing can be compiled; torch.compile takes the answer, and does not look into how it is found."""
    return _unavailable()


@cache
def _float_bits(number: float) -> int:
    return int.from_bytes(struct.pack("<f", number), "little")


@cache
def _geometry(lanes: int, queries: int, keys: int, size: int, backward: bool) -> tuple[dict[str, int], object]:
    """The words of a block that depend on the shape alone, and what must outlive them."""
    offsets, workspace_size = workspace_layout(lanes, queries, keys, size, backward)
    layout = (c_int64 * len(BUFFERS))(*offsets)
    words = {
        **{"queries": queries, "keys": keys, "size": size, "one": _float_bits(1.0), "root": _float_bits(size**-0.5)},
        **{"padded_keys": ceil(keys / lanes) * lanes, "padded_size": ceil(size / lanes) * lanes},
        **{"layout": addressof(layout), "workspace_size": workspace_size},
    }
    return words, layout


def _run(
    name: str, tensors: dict[str, Tensor], masks: dict[str, Tensor | None], scalars: dict[str, Tensor], **flags
) -> None:
    """Run a compiled pass; `flags`: further words of the block."""
    query, keys = tensors["query"], tensors["key"].shape[2]
    batch, heads, queries, size = query.shape
    lanes = machine().lanes
    words, _ = _geometry(lanes, queries, keys, size, name == "backward")
    threads = min(torch.get_num_threads(), ceil(batch * heads * queries * keys * size / _WORTH_A_THREAD))
    splits = 1
    if name == "forward" and threads > 1:
        splits = min(ceil(queries / lanes), ceil(4 * threads / (batch * heads)))
    threads = min(threads, batch * heads * splits)
    workspace = torch.empty(threads * words["workspace_size"], dtype=torch.uint8)
    words = words | flags
    words |= {"items": batch * heads * splits, "splits": splits, "threads": threads, "workspace": workspace.data_ptr()}
    words |= {"heads": heads, "dtype": _DTYPES[query.dtype]}
    for scalar, tensor in scalars.items():
        words[scalar], words[f"{scalar}_h"] = tensor.data_ptr(), 4 * tensor.stride(0) if tensor.numel() > 1 else 0
    for name_, mask in masks.items():
        if mask is not None:
            words[name_] = mask.data_ptr()
            words[f"{name_}_b"], words[f"{name_}_l"] = mask.stride()
    for operand, tensor in tensors.items():
        words[operand] = tensor.data_ptr()
        item = tensor.element_size()
        for axis, stride in zip("bhld", tensor.stride(), strict=True):
            words[f"{operand}_{axis}"] = stride * item
    block = create_string_buffer(struct.pack(f"{len(FIELDS)}q", *[words.get(field, 0) for field in FIELDS]))
    run_on_threads(_entry(name), addressof(block), threads)


def _forward(query, key, value, padding, dropout, alpha, beta, gamma, centered, signed, causal, output, mean) -> None:
    _run(
        "forward",
        {"query": query, "key": key, "value": value, "output": output},
        {"padding": padding, "dropout": dropout},
        {"alpha": alpha, "beta": beta, "gamma": gamma},
        centered=centered,
        signed=signed,
        causal=causal,
        mean=mean.data_ptr(),
    )


def _backward(
    grad_output,
    query,
    key,
    value,
    padding,
    dropout,
    alpha,
    beta,
    gamma,
    mean,
    centered,
    signed,
    causal,
    grad_query,
    grad_key,
    grad_value,
) -> tuple[Tensor, ...]:
    operands = {"query": query, "key": key, "value": value, "grad_output": grad_output}
    results = {"grad_query": grad_query, "grad_key": grad_key, "grad_value": grad_value}
    sums = torch.empty(*query.shape[:2], 3, dtype=torch.float32)
    _run(
        "backward",
        operands | results,
        {"padding": padding, "dropout": dropout},
        {"alpha": alpha, "beta": beta, "gamma": gamma},
        centered=centered,
        signed=signed,
        causal=causal,
        mean=mean.data_ptr(),
        sums=sums.data_ptr(),
    )
    of_alpha, of_beta, of_gamma = sums.sum(0, dtype=torch.float64).unbind(-1)
    return tuple(x.sum_to_size(y.shape).float() for x, y in ((of_alpha, alpha), (of_beta, beta), (of_gamma, gamma)))


cpu_attention = register_backend(op_namespace(__name__, __file__), _forward, _backward)
