"""Int8 inhibitor attention compiled for the processor it runs on: the backend "cpu" with quantized=True.

Agrees to the bit with its definition in `quantized.py`. float32 inside; other dtypes are converted on the way in and
out. Needs llvmlite, as the float32 form does.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..custom_op import like_heads, op_namespace
from ..llvm.jit import Machine, entry, host_machine, refusal
from ..memory import check_memory, untraced
from ..quantized import LARGEST_KEYS
from .code.int8 import int8_ir, tile_rows, workspace_layout
from .launch import Plan, Strides, float_bits, pack, reaches_of, run, strides_of

LARGEST_HEAD = 256
# Below so many (query, key, channel) triples the threads would wait for each other longer than they compute.
WORTH_A_THREAD = 1 << 19
# Packing the keys of a head costs about as much as so many queries.
_PACKING = 40

# Tests set another machine than the one at hand.
machine: Callable[[], Machine] = host_machine
_problem = torch.compiler.assume_constant_result(lambda size: refusal(machine, ("int8", int8_ir, size)))


def int8_refusal(query: Tensor) -> str | None:
    """Why this backend cannot take such a query; None where it can."""
    if query.device.type != "cpu":
        return f"the tensors are on {query.device}"
    if query.shape[-1] > LARGEST_HEAD:
        return f"its int8 form takes heads of at most {LARGEST_HEAD} channels, and these have {query.shape[-1]}"
    return _problem(query.shape[-1])


@lru_cache(maxsize=4096)
def _parts(heads: int, tiles: int, rows: int, threads: int) -> int:
    """Into how many parts the queries of each of `heads` heads are cut, so that the threads end together.

    Every part packs the keys anew.
    """

    def rounds(parts: int) -> float:
        return -(-heads * parts // threads) * (_PACKING + rows * tiles / parts)

    return min(range(1, min(tiles, threads) + 1), key=rounds)


@lru_cache(maxsize=4096)
def make_plan(
    machine: Machine,
    shape: tuple[int, int, int, int],
    keys: int,
    channels: int,
    flags: tuple[int, int, bool, bool],
    threads: int,
    strides: Strides,
) -> Plan:
    """For queries of `shape` and `keys` keys.

    The channels in memory, whole vectors, are more than the `channels` that count for the scale of the scores. `flags`:
    center, inhibition, causal, and whether there is a delta; `strides`, in elements: of the scalars, of the masks, and of
    queries, keys, values and output.
    """
    if keys > LARGEST_KEYS:
        raise ValueError(f"The compiled int8 form takes up to {LARGEST_KEYS} keys, and these are {keys}.")
    batch, heads, queries, size = shape
    places, workspace_size, padded_keys = workspace_layout(machine, size, keys)
    rows = tile_rows(machine)
    threads = min(threads, -(-batch * heads * queries * keys * size // WORTH_A_THREAD))
    parts = _parts(batch * heads, -(-queries // rows), rows, threads)
    items = batch * heads * parts
    threads = min(threads, items)
    root = float_bits(channels**-0.5)
    words = [items, parts, threads, workspace_size, heads, queries, keys, padded_keys, root, *flags, *places]
    of_scalars, of_masks, of_tensors = strides
    words += [stride for _, stride in of_scalars]
    words += [stride for of_mask in of_masks for stride in of_mask]
    words += [stride for of_tensor in of_tensors for stride in of_tensor[:3]]
    reaches = reaches_of(shape, (queries, keys, keys), 4, strides)
    return Plan(entry("int8", int8_ir, machine, channels), pack(words), threads, threads * workspace_size, reaches)


def _run(
    tensors: tuple[Tensor, ...],
    masks: tuple[Tensor | None, ...],
    scalars: tuple[Tensor | None, ...],
    flags: tuple[int, int, bool, bool],
    channels: int,
) -> None:
    """Each in the order of the operator's arguments, the output last; float32, channels side by side in whole vectors."""
    query, key = tensors[:2]
    strides = strides_of(scalars, masks, tensors)
    plan = make_plan(machine(), query.shape, key.shape[2], channels, flags, torch.get_num_threads(), strides)
    run(plan, (), (*scalars, *masks, *tensors[:3]), tensors[3:])


def prepared(name: str, x: Tensor, size: int) -> Tensor:
    """x in float32 with `size` channels side by side, the new ones 0."""
    if x.dtype == torch.float32 and x.shape[-1] == size and x.stride(-1) == 1:
        return x
    check_memory((name,), (x,))
    return pad(x.float(), (0, size - x.shape[-1])).contiguous()


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding: Tensor | None,
    dropout: Tensor | None,
    alpha: Tensor,
    beta: Tensor,
    gamma: Tensor,
    delta: Tensor | None,
    center: int,
    inhibition: int,
    causal: bool,
) -> Tensor:
    output = like_heads(query)
    if query.numel() == 0 or key.numel() == 0:
        return output.zero_()
    channels = query.shape[-1]
    size = channels + -channels % machine().lanes
    query, key, value = (prepared(name, x, size) for name, x in (("query", query), ("key", key), ("value", value)))
    in_place = output.dtype == torch.float32 and size == channels
    result = output if in_place else like_heads(query)
    tensors, flags = (query, key, value, result), (center, inhibition, causal, delta is not None)
    _run(tensors, (padding, dropout), (alpha, beta, gamma, delta), flags, channels)
    return output if in_place else output.copy_(result[..., :channels])


_int8_op = torch.library.custom_op(f"{op_namespace(__name__, __file__)}::int8", _attend, mutates_args=())


@_int8_op.register_fake
def _(query, key, value, padding, dropout, alpha, beta, gamma, delta, center, inhibition, causal):
    return like_heads(query)


def int8_attention(*arguments) -> Tensor:
    """Arguments and result as in `register_backend`, of any floating dtype; there is no gradient."""
    return (_attend if untraced(*arguments) else _int8_op)(*arguments)
