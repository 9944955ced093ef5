"""The compiled operator on texts one behind the other without padding: one call for all of them.

Tensors are `(tokens, H, d)`. Neighbours of the same length are a batch, a `Run`; each has a block of its own, and threads go
from block to block.
"""

from collections.abc import Callable, Sequence
from ctypes import addressof, create_string_buffer
from itertools import chain
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from ..blocked import first_order_only, number_of_radii, torch_backward, torch_forward
from ..custom_op import refuse_tangents, save, saved_tensors
from ..llvm.jit import Machine, entry, host_machine
from ..llvm.sequence import each_block_ir
from ..llvm.threads import run_on_threads
from ..memory import addresses, reach, untraced
from .attention import FLAWED, READ_BY, scalar_gradients
from .attention import WORTH_A_THREAD as FLOAT32_WORTH_A_THREAD
from .attention import make_plan as make_float32_plan
from .int8_attention import WORTH_A_THREAD as INT8_WORTH_A_THREAD
from .int8_attention import make_plan as make_int8_plan
from .int8_attention import prepared
from .launch import Plan, Strides, pack, strides_of

_READ = ("alpha", "beta", "gamma", "delta", "key_dropout_mask", "query", "key", "value", "the gradient of the output")

# Tests set another machine than the one at hand.
machine: Callable[[], Machine] = host_machine


class Run(NamedTuple):
    """Neighbouring texts of the same length: their first token, how many they are, and their length."""

    start: int
    texts: int
    length: int

    def of(self, x: Tensor) -> Tensor:
        """`(tokens, H, d)` -> `(texts, H, length, d)`."""
        return x[self.start : self.start + self.texts * self.length].unflatten(0, (self.texts, self.length)).transpose(1, 2)

    def mask(self, kept: Tensor | None) -> Tensor | None:
        """`(tokens,)` -> `(texts, length)`."""
        return None if kept is None else kept[self.start : self.start + self.texts * self.length].view(self.texts, -1)

    def strides(self, of_scalars: tuple, has_mask: bool, tensors: Sequence[tuple[int, ...]]) -> Strides:
        """As `strides_of`, of the views above; `tensors`: the strides of the whole ones."""
        of_tensors = tuple([(self.length * token, head, token, channel) for token, head, channel in tensors])
        return of_scalars, ((0, 0), (self.length, 1) if has_mask else (0, 0)), of_tensors


class _Call(NamedTuple):
    """A block: its plan, for one thread, and the words behind the workspace."""

    plan: Plan
    words: Sequence[int]


class _Operands:
    """Where the operands of all runs are, and their strides.

    tensors: of which the first `read` are read.
    """

    def __init__(self, tensors: Sequence[Tensor], read: int, dropout: Tensor | None, scalars: Sequence[Tensor | None]):
        self.of_scalars = strides_of(scalars, (), ())[0]
        self.strides = [x.stride() for x in tensors]
        self.steps = [x.itemsize * stride[0] for x, stride in zip(tensors, self.strides, strict=True)]
        given = (*scalars, dropout, *tensors[:read])
        sizes = [0 if x is None else x.itemsize * reach(x.shape, x.stride()) for x in given]
        *self.scalars, self.dropout = addresses(_READ, given, sizes)[:5]
        self.places = [x.data_ptr() for x in tensors]

    def strides_for(self, run: Run) -> Strides:
        return run.strides(self.of_scalars, self.dropout != 0, self.strides)

    def words(self, run: Run) -> list[int]:
        """The addresses of scalars, masks and tensors."""
        mask = self.dropout and self.dropout + run.start
        places = [place + run.start * step for place, step in zip(self.places, self.steps, strict=True)]
        return [*self.scalars, 0, mask, *places]


def _work(runs: Sequence[Run], heads: int, size: int) -> int:
    """Triples of a query, a key and a channel."""
    return heads * size * sum(run.texts * run.length**2 for run in runs)


def _run_all(calls: Sequence[_Call], here: Machine, threads: int) -> list[bytes]:
    """Run the blocks; the words of each behind its plan's, as the code left them."""
    workspace = torch.empty(threads * sum(call.plan.memory for call in calls), dtype=torch.uint8)
    place, parts, offsets, length = workspace.data_ptr(), [], [], 0
    for plan, words in calls:
        parts += [plan.words, pack((0, 0, place, *words))]
        offsets.append(length)
        length += len(plan.words) + len(parts[-1])
        place += threads * plan.memory
    blocks = create_string_buffer(b"".join(parts), length)
    first = addressof(blocks)
    pairs = zip(calls, offsets, strict=True)
    listed = create_string_buffer(pack((len(calls), *chain(*((call.plan.entry, first + place) for call, place in pairs)))))
    run_on_threads(entry("each_block", each_block_ir, here), addressof(listed), threads)
    left, starts = blocks.raw, [offset + len(call.plan.words) for offset, call in zip(offsets, calls, strict=True)]
    return [left[start : start + 8 * (3 + len(call.words))] for start, call in zip(starts, calls, strict=True)]


def _run_float32(
    name: str,
    tensors: Sequence[Tensor],
    dropout: Tensor | None,
    scalars: Sequence[Tensor | None],
    flags: tuple[int, int, bool],
    runs: Sequence[Run],
    per_query: Sequence[Tensor | None],
    sums: Tensor | None = None,
) -> list[Run]:
    """Run a pass; the runs with a number that counts and is not finite. per_query: `(…, H · tokens)` each, in runs."""
    here, (_, heads, size) = machine(), tensors[0].shape
    options = (*flags, scalars[3] is not None, number_of_radii(*scalars[:3]))  # type: ignore[arg-type]
    operands = _Operands(tensors, READ_BY[name], dropout, scalars)
    bases = [0 if x is None else x.data_ptr() for x in per_query]
    calls, text = [], 0
    for run in runs:
        shape, strides = (run.texts, heads, run.length, size), operands.strides_for(run)
        plan = make_float32_plan(name, here, shape, run.length, tensors[0].dtype, options, 1, strides)
        of_queries = [base and base + 4 * heads * run.start for base in bases]
        of_sums = 0 if sums is None else sums[text].data_ptr()
        calls.append(_Call(plan, [0, *of_queries, of_sums, *operands.words(run)]))
        text += run.texts
    threads = min(torch.get_num_threads(), ceil(_work(runs, heads, size) / FLOAT32_WORTH_A_THREAD))
    return [run for run, left in zip(runs, _run_all(calls, here, threads), strict=True) if left[FLAWED]]


def _per_query(tensors: Sequence[Tensor], flags: tuple[int, int, bool], delta: Tensor | None) -> list[Tensor | None]:
    """Room for what each query is centred by, and what its sum is divided by: `(H · tokens,)` float32, or None."""
    tokens, heads, _ = tensors[0].shape
    return [torch.empty(heads * tokens) if wanted else None for wanted in (flags[0] > 0, delta is not None)]


def _in_runs(x: Tensor, runs: Sequence[Run]) -> Tensor:
    """`(tokens, H)` in the order of the statistics."""
    return torch.cat([run.of(x[..., None]).flatten() for run in runs])


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, dropout, alpha, beta, gamma, delta, flags, runs):
        output = query.new_empty(query.shape)
        tensors, scalars = (query, key, value, output), (alpha, beta, gamma, delta)
        center, opened = _per_query(tensors, flags, delta)
        for run in _run_float32("forward", tensors, dropout, scalars, flags, runs, (center, opened, None)):
            queries, keys, values = (run.of(x) for x in tensors[:3])
            run.of(output).copy_(torch_forward(queries, keys, values, None, run.mask(dropout), *scalars, *flags))
        ctx.flags, ctx.runs = flags, runs
        save(ctx, query, key, value, dropout, *scalars, None if delta is None else output, center, opened)
        return output

    @staticmethod
    def backward(ctx, grad_output):
        refuse_tangents(grad_output)
        saved = query, key, value, dropout, *scalars, output, center, opened = saved_tensors(ctx)
        alpha, beta, gamma, delta = scalars
        # What has no memory of its own, a batch of gradients say, takes plain torch.
        has_memory = untraced(grad_output, *saved) and torch._C._has_storage(grad_output)
        gradients = [x.new_empty(x.shape) for x in (query, key, value)]
        tensors, runs = (query, key, value, grad_output, *gradients), ctx.runs
        given, radii = [scalar for scalar in scalars if scalar is not None], number_of_radii(alpha, beta, gamma)
        sums = torch.zeros(sum(run.texts for run in runs), query.shape[1], 4 * radii + 1)
        with torch.no_grad():
            flawed = runs
            if has_memory:
                inverse = grad_opened = None
                if delta is not None:
                    inverse = opened.reciprocal()
                    grad_opened = _in_runs((grad_output.float() * output.float()).sum(-1), runs).mul_(inverse).neg_()
                per_query = center, inverse, grad_opened
                flawed = _run_float32("backward", tensors, dropout, scalars, ctx.flags, runs, per_query, sums)
            again = _again(flawed, runs, tensors, dropout, scalars, ctx.flags, sums)
            of_scalars = list(scalar_gradients(sums.sum(0, dtype=torch.float64), beta, radii, given))
            of_scalars = [sum((each[n] for each in again), of_scalars[n]) for n in range(len(given))]
        results = first_order_only((*gradients, *of_scalars), query, key, value, *given, grad_output)
        of_delta = None if delta is None else results[6]
        return *results[:3], None, *results[3:6], of_delta, None, None


def _again(flawed, runs, tensors, dropout, scalars, flags, sums) -> list[tuple[Tensor, ...]]:
    """Gradients by plain torch, where numbers are not finite: those of tensors are filled in, those of scalars returned."""
    of_scalars = []
    for run in flawed:
        query, key, value, grad_output, *gradients = (run.of(x) for x in tensors)
        found = torch_backward(grad_output, query, key, value, None, run.mask(dropout), *scalars, *flags)
        for destination, gradient in zip(gradients, found, strict=False):
            destination.copy_(gradient)
        of_scalars.append(found[3:])
        text = sum(other.texts for other in runs[: runs.index(run)])
        sums[text : text + run.texts] = 0
    return of_scalars


def packed_float32(
    query: Tensor, key: Tensor, value: Tensor, dropout: Tensor | None, alpha: Tensor, beta: Tensor, gamma: Tensor,
    delta: Tensor | None, center: int, inhibition: int, causal: bool, runs: Sequence[Run],
) -> Tensor:  # fmt: skip
    """The operator within each run: `(tokens, H, d)` of one dtype -> the same, contiguous.

    Differentiable. dropout: `(tokens,)` bool, or None. Scalars, center and inhibition as `register_backend` has them.
    """
    return _Packed.apply(query, key, value, dropout, alpha, beta, gamma, delta, (center, inhibition, causal), runs)


def packed_int8(
    query: Tensor, key: Tensor, value: Tensor, dropout: Tensor | None, alpha: Tensor, beta: Tensor, gamma: Tensor,
    delta: Tensor | None, center: int, inhibition: int, causal: bool, runs: Sequence[Run],
) -> Tensor:  # fmt: skip
    """The same in int8, without a gradient."""
    here, (tokens, heads, channels) = machine(), query.shape
    size = channels + -channels % here.lanes
    named = (("query", query), ("key", key), ("value", value))
    inputs = [prepared(name, x, size) for name, x in named]
    output = torch.empty(tokens, heads, size)
    scalars, flags = (alpha, beta, gamma, delta), (center, inhibition, causal, delta is not None)
    operands, calls = _Operands((*inputs, output), 3, dropout, scalars), []
    for run in runs:
        shape = run.texts, heads, run.length, size
        plan = make_int8_plan(here, shape, run.length, channels, flags, 1, operands.strides_for(run))
        calls.append(_Call(plan, operands.words(run)))
    threads = min(torch.get_num_threads(), ceil(_work(runs, heads, size) / INT8_WORTH_A_THREAD))
    _run_all(calls, here, threads)
    return output[..., :channels].to(query.dtype)
