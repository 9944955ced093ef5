"""Calls compiled code: the block of words that it reads, memory for its threads, and a check of the memory it will read."""

import struct
from collections.abc import Sequence
from ctypes import addressof, create_string_buffer
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..llvm.threads import run_on_threads
from ..memory import addresses, reach

# What a pass of the operator reads, in this order, by the names that its caller knows.
_READ = (
    *("alpha", "beta", "gamma", "delta", "key_padding_mask", "key_dropout_mask", "query", "key", "value"),
    "the gradient of the output",
)
Strides = tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True)
class Plan:
    """What a call of one shape needs beyond its tensors."""

    entry: int
    words: bytes  # the first part of the block
    threads: int
    memory: int  # bytes
    reaches: tuple[int, ...] = ()  # bytes of each tensor that is read, from its first element to its last
    layout: object = None  # the words may point to it


def pack(words: Sequence[int]) -> bytes:
    return struct.pack(f"{len(words)}q", *words)


def float_bits(number: float) -> int:
    """float32 in the first half of a word."""
    return int.from_bytes(struct.pack("<f", number), "little")


def strides_of(scalars: Sequence[Tensor | None], masks: Sequence[Tensor | None], tensors: Sequence[Tensor]) -> Strides:
    """In elements. Of scalars from radius to radius and from head to head; 0 where they share it, and for a scalar or a mask
    that is not there."""
    return (
        tuple([(0, 0) if scalar is None or scalar.numel() == 1 else _scalar_strides(scalar) for scalar in scalars]),
        tuple([(0, 0) if mask is None else mask.stride() for mask in masks]),
        tuple([tensor.stride() for tensor in tensors]),
    )


def _scalar_strides(scalar: Tensor) -> tuple[int, int]:
    """Of `(H,)`, or of `(R, 1)` or `(R, H)`."""
    strides = scalar.stride()
    return (strides[0], strides[1] * (scalar.shape[1] > 1)) if scalar.ndim == 2 else (0, strides[0])


def reaches_of(shape: Sequence[int], lengths: Sequence[int], item: int, strides: Strides, radii: int = 1) -> tuple[int, ...]:
    """`Plan.reaches` for queries of `shape`: of the scalars, of the masks, and of as many tensors, of `item` bytes an
    element, as there are `lengths`; the second is the number of keys."""
    batch, heads, _, size = shape
    of_scalars, of_masks, of_tensors = strides
    return (
        *(4 * reach((radii, heads), each) for each in of_scalars),
        *(reach((batch, lengths[1]), each) for each in of_masks),
        *(item * reach((batch, heads, n, size), each) for n, each in zip(lengths, of_tensors, strict=False)),
    )


def run(plan: Plan, more: Sequence[int], read: Sequence[Tensor | None], written: Sequence[Tensor]) -> Any:
    """Run the code; returns the block, whose second part is: two counters, the workspace, `more`, and all addresses.

    Raises:
        ValueError: the memory of a tensor in `read` was freed or cut. What is `written` is as new as the workspace.
    """
    workspace = torch.empty(plan.memory, dtype=torch.uint8)
    words = [0, 0, workspace.data_ptr(), *more, *addresses(_READ, read, plan.reaches)]
    words += [tensor.data_ptr() for tensor in written]
    block = create_string_buffer(plan.words + pack(words))
    run_on_threads(plan.entry, addressof(block), plan.threads)
    return block
