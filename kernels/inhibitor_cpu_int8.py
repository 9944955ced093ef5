"""Int8 inhibitor attention compiled for the processor it runs on: the backend "cpu" with quantized=True.

Agrees to the bit with its definition in inhibitor_quantized.py. float32 inside; other dtypes are converted on the way in and
out. Needs llvmlite, as the float32 form does.
"""

import struct
from collections.abc import Callable
from ctypes import addressof, create_string_buffer
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from .inhibitor_cpu_int8_ir import CALL_WORDS, SHAPE_WORDS, int8_ir, tile_rows, workspace_layout
from .inhibitor_cpu_jit import CompilerUnavailable, Machine, compiled, host_machine
from .inhibitor_cpu_threads import run_on_threads
from .inhibitor_custom_op import like_heads, op_namespace, untraced

LARGEST_HEAD = 256
# The files that the code comes from, beside this one.
_SOURCES = ("cpu_int8_ir", "cpu_ir", "cpu_ir_panels", "cpu_arguments", "quantized")
# Below so many (query, key, channel) triples the threads would wait for each other longer than they compute.
_WORTH_A_THREAD = 1 << 19
# Packing the keys of a head costs about as much as so many queries.
_PACKING = 40

# Tests set another machine than the one at hand.
machine: Callable[[], Machine] = host_machine


def _whole_vectors(size: int) -> int:
    return size + -size % machine().lanes


@cache
def _entry(machine: Machine, size: int) -> int:
    """The address of the code for heads of `size` channels, a multiple of the machine's lanes."""
    here = __file__.removesuffix("cpu_int8.py")
    files = [f"{here}{source}.py" for source in _SOURCES]
    return compiled(f"inhibitor-int8-{size}", partial(int8_ir, size=size), files, machine).address("attention")


@cache
def _unavailable(size: int) -> str | None:
    try:
        _entry(machine(), _whole_vectors(size))
    except CompilerUnavailable as error:
        return str(error)
    except Exception as error:  # whatever a compiler may meet: the plain form is there
        return f"its code cannot be compiled here ({type(error).__name__}: {error})"
    return None


def int8_refusal(query: Tensor) -> str | None:
    """Why this backend cannot take such a query; None where it can."""
    if query.device.type != "cpu":
        return f"the tensors are on {query.device}"
    if query.shape[-1] > LARGEST_HEAD:
        return f"its int8 form takes heads of at most {LARGEST_HEAD} channels, and these have {query.shape[-1]}"
    return _problem(query.shape[-1])


@torch.compiler.assume_constant_result
def _problem(size: int) -> str | None:
    """Why nothing can be compiled; torch.compile takes the answer, and does not look into how it is found."""
    return _unavailable(size)


@cache
def _parts(heads: int, tiles: int, rows: int, threads: int) -> int:
    """Into how many parts the queries of each of `heads` heads are cut, so that the threads end together.

    Every part packs the keys anew.
    """

    def rounds(parts: int) -> float:
        return -(-heads * parts // threads) * (_PACKING + rows * tiles / parts)

    return min(range(1, min(tiles, threads) + 1), key=rounds)


def _float_bits(number: float) -> int:
    return int.from_bytes(struct.pack("<f", number), "little")


@dataclass(frozen=True)
class _Plan:
    """What the shapes and the number of threads decide: the last words of the block, and how it is run."""

    words: bytes
    threads: int
    memory: int
    entry: int


@cache
def _plan(
    machine: Machine, batch: int, heads: int, queries: int, keys: int, size: int, channels: int, threads: int
) -> _Plan:
    """`size`: the channels in memory, whole vectors, of which `channels` count for the scale of the scores."""
    places, workspace_size, padded_keys = workspace_layout(machine, size, keys)
    rows = tile_rows(machine)
    threads = min(threads, -(-batch * heads * queries * keys * size // _WORTH_A_THREAD))
    parts = _parts(batch * heads, -(-queries // rows), rows, threads)
    items = batch * heads * parts
    threads = min(threads, items)
    words = (items, parts, threads, workspace_size, heads, queries, keys, padded_keys, _float_bits(channels**-0.5), *places)
    return _Plan(struct.pack(f"{len(SHAPE_WORDS)}q", *words), threads, threads * workspace_size, _entry(machine, size))


def _scalar_words(scalar: Tensor) -> tuple[int, int]:
    return scalar.data_ptr(), scalar.stride(0) if scalar.numel() > 1 else 0


def _mask_words(mask: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0) if mask is None else (mask.data_ptr(), *mask.stride())


def _run(
    tensors: tuple[Tensor, ...],
    masks: tuple[Tensor | None, ...],
    scalars: tuple[Tensor, ...],
    flags: tuple[bool, bool, bool],
    channels: int,
) -> None:
    """Each in the order of the operator's arguments, the output last; float32, channels side by side in whole vectors."""
    query, key = tensors[:2]
    plan = _plan(machine(), *query.shape[:3], *key.shape[2:], channels, torch.get_num_threads())
    workspace = torch.empty(plan.memory, dtype=torch.uint8)
    words = [0, 0, workspace.data_ptr(), *flags]
    for scalar in scalars:
        words += _scalar_words(scalar)
    for mask in masks:
        words += _mask_words(mask)
    for tensor in tensors:
        words += tensor.data_ptr(), *tensor.stride()[:3]
    block = create_string_buffer(struct.pack(f"{len(CALL_WORDS)}q", *words) + plan.words)
    run_on_threads(plan.entry, addressof(block), plan.threads)


def _prepared(x: Tensor, size: int) -> Tensor:
    """x in float32 with `size` channels side by side, the new ones 0."""
    if x.dtype != torch.float32:
        x = x.float()
    if x.shape[-1] != size:
        return pad(x, (0, size - x.shape[-1]))
    return x if x.stride(-1) == 1 else x.contiguous()


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding: Tensor | None,
    dropout: Tensor | None,
    alpha: Tensor,
    beta: Tensor,
    gamma: Tensor,
    centered: bool,
    signed: bool,
    causal: bool,
) -> Tensor:
    output = like_heads(query)
    if query.numel() == 0 or key.numel() == 0:
        return output.zero_()
    channels = query.shape[-1]
    size = _whole_vectors(channels)
    query, key, value = (_prepared(x, size) for x in (query, key, value))
    in_place = output.dtype == torch.float32 and size == channels
    result = output if in_place else like_heads(query)
    tensors, flags = (query, key, value, result), (centered, signed, causal)
    _run(tensors, (padding, dropout), (alpha, beta, gamma), flags, channels)
    return output if in_place else output.copy_(result[..., :channels])


_int8_op = torch.library.custom_op(f"{op_namespace(__name__, __file__)}::int8", _attend, mutates_args=())


@_int8_op.register_fake
def _(query, key, value, padding, dropout, alpha, beta, gamma, centered, signed, causal):
    return like_heads(query)


def int8_attention(*arguments) -> Tensor:
    """Arguments and result as in `register_backend`, of any floating dtype; there is no gradient."""
    return (_attend if untraced(*arguments) else _int8_op)(*arguments)
