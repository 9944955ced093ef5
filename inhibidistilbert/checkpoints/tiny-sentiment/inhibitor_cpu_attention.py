"""Inhibitor attention compiled for the processor it runs on: the operator of the backend "cpu".

float32 arithmetic, of float32, bfloat16 and float16 tensors with any strides. Needs llvmlite, which turns the generated
code into machine code at the first call; see `cpu_refusal` for what happens without.
"""

from collections.abc import Callable
from ctypes import addressof, c_int64
from functools import lru_cache
from math import ceil

import torch
from torch import Tensor

from .inhibitor_blocked import number_of_radii, torch_backward, torch_forward
from .inhibitor_custom_op import op_namespace, register_backend
from .inhibitor_llvm_jit import Machine, entry, host_machine, refusal
from .inhibitor_cpu_code_backward import backward_ir
from .inhibitor_cpu_code_few import MOST_QUERIES
from .inhibitor_cpu_code_fields import panel_width, workspace_layout
from .inhibitor_cpu_code_forward import forward_ir
from .inhibitor_cpu_launch import Plan, Strides, float_bits, pack, reaches_of, run, strides_of

LARGEST_HEAD = 512
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_PASSES = {"forward": forward_ir, "backward": backward_ir}
# Below so many (query, key, channel) triples the threads would wait for each other longer than they compute.
WORTH_A_THREAD = 1 << 17

# Where `flawed` begins in the second part of the block: behind two counters and the workspace.
FLAWED = 3 * 8
# How many of its tensors a pass reads.
READ_BY = {"forward": 3, "backward": 4}

# Tests set another machine than the one at hand.
machine: Callable[[], Machine] = host_machine
# torch.compile takes the answer, and does not look into how it is found.
_problem = torch.compiler.assume_constant_result(lambda: refusal(machine, *_PASSES.items()))


def cpu_refusal(query: Tensor) -> str | None:
    """Why this backend cannot take such a query; None where it can."""
    if query.device.type != "cpu":
        return f"the tensors are on {query.device}"
    if query.dtype not in _DTYPES:
        return f"it computes in float32, and the tensors are {query.dtype}"
    if query.shape[-1] > LARGEST_HEAD:
        return f"it takes heads of at most {LARGEST_HEAD} channels, and these have {query.shape[-1]}"
    return _problem()


@lru_cache(maxsize=4096)
def make_plan(
    name: str,
    machine: Machine,
    shape: tuple[int, int, int, int],
    keys: int,
    dtype: torch.dtype,
    flags: tuple,
    threads: int,
    strides: Strides,
) -> Plan:
    """For the pass `name`, queries of `shape` and `keys` keys; `flags`: center, inhibition, causal, whether there is a
    delta, and the number of radii; `strides`, in elements: of the scalars, of the masks, and of the tensors."""
    batch, heads, queries, size = shape
    lanes = panel_width(machine)
    center, inhibition, _, normalized, radii = flags
    offsets, workspace_size = workspace_layout(lanes, keys, size, name == "backward", radii)
    layout = (c_int64 * len(offsets))(*offsets)
    threads = min(threads, ceil(batch * heads * queries * keys * size / WORTH_A_THREAD))
    splits = 1
    if name == "forward" and threads > 1:
        # Some more pieces than threads: they are done at different speeds. Each packs its head's keys for itself.
        splits = min(ceil(queries / lanes), ceil(4 * threads / (batch * heads)))
    items = batch * heads * splits
    threads = min(threads, items)
    padded = ceil(keys / lanes) * lanes, ceil(size / lanes) * lanes
    of_scalars, of_masks, of_tensors = strides
    staged = center > 0 or inhibition == 2 or normalized or radii > 1
    gapless = all(of_tensor[-1] == 1 for of_tensor in of_tensors[:3])
    few = name == "forward" and queries <= MOST_QUERIES and dtype == torch.float32 and size % lanes == 0 and gapless
    words = (
        *(items, splits, threads, workspace_size, addressof(layout)),
        *(heads, queries, keys, size, _DTYPES[dtype], *flags, staged, few, *padded, float_bits(size**-0.5), float_bits(1.0)),
        *(4 * stride for of_scalar in of_scalars for stride in of_scalar),
        *(stride for of_mask in of_masks for stride in of_mask),
        *(dtype.itemsize * stride for of_tensor in of_tensors for stride in of_tensor),
    )
    lengths = (queries, keys, keys, queries)[: READ_BY[name]]
    reaches = reaches_of(shape, lengths, dtype.itemsize, strides, radii)
    return Plan(entry(name, _PASSES[name], machine), pack(words), threads, threads * workspace_size, reaches, layout)


def _run(
    name: str,
    tensors: tuple[Tensor, ...],
    masks: tuple[Tensor | None, Tensor | None],
    scalars: tuple[Tensor, Tensor, Tensor, Tensor | None],
    flags: tuple[int, int, bool],
    per_query: tuple[Tensor | None, ...],
    sums: Tensor | None = None,
) -> bool:
    """Run a compiled pass on tensors in the order of its fields; returns whether a number that counts is not finite.

    per_query: `(B, H, M)` float32 each, or None: what a query is centred by, what its sum is divided by, or backward times,
    and the gradient of what passes of a constant.
    """
    query, key = tensors[:2]
    strides = strides_of(scalars, masks, tensors)
    options = (*flags, scalars[3] is not None, number_of_radii(*scalars[:3]))
    plan = make_plan(name, machine(), query.shape, key.shape[2], query.dtype, options, torch.get_num_threads(), strides)
    more = [0, *[0 if x is None else x.data_ptr() for x in (*per_query, sums)]]
    read = READ_BY[name]
    block = run(plan, more, (*scalars, *masks, *tensors[:read]), tensors[read:])
    return block[len(plan.words) + FLAWED] != b"\0"


def _forward(
    query, key, value, padding, dropout, alpha, beta, gamma, delta, center, inhibition, causal, output, statistics
) -> None:
    masks, scalars, flags = (padding, dropout), (alpha, beta, gamma, delta), (center, inhibition, causal)
    per_query = statistics if center else None, None if delta is None else statistics[-1], None
    if _run("forward", (query, key, value, output), masks, scalars, flags, per_query):
        output.copy_(torch_forward(query, key, value, *masks, *scalars, *flags))


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
    delta,
    output,
    statistics,
    center,
    inhibition,
    causal,
    grad_query,
    grad_key,
    grad_value,
) -> tuple[Tensor, ...]:
    tensors = query, key, value, grad_output, grad_query, grad_key, grad_value
    masks, scalars, flags = (padding, dropout), (alpha, beta, gamma, delta), (center, inhibition, causal)
    inverse = grad_opened = None
    if delta is not None:
        inverse = statistics[-1].reciprocal()
        grad_opened = (grad_output.float() * output.float()).sum(-1).mul_(inverse).neg_()
    per_query = statistics if center else None, inverse, grad_opened
    radii = number_of_radii(*scalars[:3])
    sums = torch.empty(*query.shape[:2], 4 * radii + 1, dtype=torch.float32)
    if _run("backward", tensors, masks, scalars, flags, per_query, sums):
        gradients = torch_backward(grad_output, query, key, value, *masks, *scalars, *flags)
        for destination, gradient in zip(tensors[4:], gradients, strict=False):
            destination.copy_(gradient)
        return gradients[3:]
    given = [scalar for scalar in scalars if scalar is not None]
    if radii == 1 and all(scalar.numel() == 1 for scalar in given):
        # Tensors of their own, as torch wants them of an operator.
        totals = sums.sum((0, 1), dtype=torch.float64).float().split(1)
        return tuple([x.clone().view(y.shape) for x, y in zip(totals, given, strict=False)])
    return scalar_gradients(sums.sum(0, dtype=torch.float64), beta, radii, given)


def scalar_gradients(sums: Tensor, beta: Tensor, radii: int, given: list[Tensor]) -> tuple[Tensor, ...]:
    """The gradients of alpha, beta, gamma and delta from the sums of each head, `(H, 4 · radii + 1)` float64."""
    alpha, by_beta, gamma = sums[:, : 3 * radii].view(-1, radii, 3).permute(2, 1, 0)
    delta, opened = sums[:, 3 * radii], sums[:, 3 * radii + 1 :].t()
    weights = beta.double().expand(radii, len(sums)).clone()
    first, weights[0] = weights[0].clone(), 1
    of_first = (weights * by_beta).sum(0)
    of_beta = torch.cat([of_first[None], (first * by_beta + weights.sign() * opened)[1:]])
    gradients = (alpha, of_beta, gamma, delta)
    return tuple(x.sum_to_size(y.shape).float() for x, y in zip(gradients, given, strict=False))


cpu_attention = register_backend(op_namespace(__name__, __file__), _forward, _backward)
