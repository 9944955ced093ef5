"""All layers of an encoder in one compiled call, for inference: of int8 or float32 weights, on texts without padding.

The code that attends and that of linear layers are the operator's and `int8_linear`'s own. What happens to tokens by
themselves between two attentions is one pass over them, see `code/encoder.py`.
"""

from collections.abc import Callable, Sequence
from itertools import chain, repeat
from math import ceil
from operator import is_
from struct import unpack
from typing import NamedTuple

import torch
from torch import Tensor

from .inhibitor_llvm_jit import Machine, entry, host_machine, refusal
from .inhibitor_llvm_sequence import each_block_ir
from .inhibitor_llvm_threads import run_on_threads
from .inhibitor_memory import check_memory
from .inhibitor_cpu_attention import FLAWED, cpu_refusal
from .inhibitor_cpu_attention import make_plan as make_float32_plan
from .inhibitor_cpu_code_encoder import STEPS, encoder_ir, workspace_size
from .inhibitor_cpu_code_linear import block_rows, panel
from .inhibitor_cpu_int8_attention import int8_refusal
from .inhibitor_cpu_int8_attention import make_plan as make_int8_plan
from .inhibitor_cpu_int8_linear import LARGEST_DEPTH
from .inhibitor_cpu_launch import Plan, float_bits, pack, strides_of
from .inhibitor_cpu_packed import Run

# Tokens that pass through a layer together: a core keeps what is computed from them in a cache of its own.
_MOST_ROWS = 128
# Up to so many tokens the threads share the outputs of each product, and not the tokens: each then reads a part of the
# weights, where it would read all of them.
_MOST_SHARED = 64
# Below so many products the threads would wait for each other longer than they compute.
_WORTH_A_THREAD = 1 << 21
_MOST_PROGRAMS = 16
_PLAIN = (Tensor, torch.nn.Parameter)

# Tests set another machine than the one at hand.
machine: Callable[[], Machine] = host_machine
_problem = torch.compiler.assume_constant_result(
    lambda int8: refusal(machine, ("encoder", encoder_ir, int8), ("each_block", each_block_ir))
)


class Layer(NamedTuple):
    """The tensors of a layer.

    linears: out, first, second, query, key, value; of each the weight `(outputs, inputs)`, the scales of its rows or None,
    and the bias. norms: weight and bias of the one behind the attention, and of the last. scalars: alpha, beta, gamma, and
    delta or None.
    """

    linears: tuple[tuple[Tensor, Tensor | None, Tensor], ...]
    norms: tuple[tuple[Tensor, Tensor], ...]
    scalars: tuple[Tensor | None, ...]

    def tensors(self) -> list[Tensor]:
        return [x for x in chain(*self.linears, *self.norms, self.scalars) if x is not None]

    def addresses(self, linears: slice, norms: slice) -> list[int]:
        named = chain(*self.linears[linears], *self.norms[norms])
        return [0 if x is None else x.data_ptr() for x in named]


class Sizes(NamedTuple):
    """What all layers share. center, inhibition: as `forms.Form.numbers`; epsilon: of the norms."""

    int8: bool
    heads: int
    dim: int
    hidden: int
    center: int
    inhibition: int
    radii: int
    epsilon: float


class _In(int):
    """An address: so many bytes into the memory of a call."""


class _States(int):
    """The address of the states."""


_Words = list[int]


class _Step(NamedTuple):
    """A compiled call: its block, and which word of it is set where numbers are not finite."""

    entry: int
    words: _Words
    threads: int
    flaw: int | None = None


class Encoder:
    """Layers as they are in memory now."""

    def __init__(self, sizes: Sizes, layers: Sequence[Layer]) -> None:
        self._sizes, self._layers = sizes, layers
        self._programs: dict[tuple, _Program] = {}

    def refusal(self) -> str | None:
        """Why this code cannot take these layers; None where it can.

        Raises:
            ValueError: the memory of a tensor was freed or cut.
        """
        sizes = self._sizes
        weights = [weight for layer in self._layers for weight, _, _ in layer.linears]
        tensors = [x for layer in self._layers for x in layer.tensors()]
        if any(x.device.type != "cpu" or not x.is_contiguous() or type(x) not in _PLAIN or x.is_neg() for x in tensors):
            return "it takes plain contiguous tensors on the CPU"
        of_weights = torch.int8 if sizes.int8 else torch.float32
        if any(x.dtype != of_weights for x in weights) or any(x.dtype not in (of_weights, torch.float32) for x in tensors):
            return "it computes in float32, with weights of one type"
        size = sizes.dim // sizes.heads
        head = torch.empty(1, 1, 1, size)
        problem = (int8_refusal(head) if sizes.int8 else cpu_refusal(head)) or _problem(sizes.int8)
        if problem is not None:
            return problem
        here, widths = machine(), (sizes.dim, sizes.hidden)
        step = max(4 * here.lanes, panel(here))
        if any(width % step or width > LARGEST_DEPTH for width in widths):
            return f"its widths are multiples of {step} up to {LARGEST_DEPTH}, and these are {widths}"
        shapes = {tuple(x if x is None else x.shape for x in layer.scalars) for layer in self._layers}
        if len(shapes) > 1 or any(x is not None and x[-1] not in (1, sizes.heads) for x in next(iter(shapes))):
            return "its layers have scalars of one shape, for all heads or for each"
        if sizes.int8 and (size % here.lanes or sizes.radii > 1):
            return f"its int8 form takes one radius, and heads of a multiple of {here.lanes} channels"
        check_memory(["a parameter"] * len(tensors), tensors)
        return None

    def run(self, states: Tensor, runs: tuple[Run, ...], normalization: str) -> bool:
        """Replaces states, `(tokens, dim)` float32 contiguous, by those behind the last layer.

        normalization: what a sum over the keys is divided by: `"mean"` their number, `"sqrt"` its root, otherwise 1.

        Returns whether they are right: not where float32 attention met numbers that are not finite.
        """
        key = runs, normalization, torch.get_num_threads()
        program = self._programs.get(key)
        if program is None:
            if len(self._programs) >= _MOST_PROGRAMS:
                self._programs.clear()
            program = self._programs[key] = self._program(*key)
        return program.run(states)

    def _program(self, runs: tuple[Run, ...], normalization: str, threads: int) -> "_Program":
        sizes, here = self._sizes, machine()
        lengths = [(run.length, run.texts * run.length) for run in runs]
        tokens = sum(count for _, count in lengths)
        powers = {"mean": 1.0, "sqrt": 0.5}
        of_runs = torch.tensor([float(length) for length, _ in lengths]) ** powers.get(normalization, 0.0)
        divisor = of_runs.repeat_interleave(torch.tensor([count for _, count in lengths]))

        each, memory = 4 * tokens * sizes.dim, _Memory()
        query, key, value, attended = (memory.take(each) for _ in range(4))
        statistics = [memory.take(4 * tokens * sizes.heads) if wanted else None for wanted in self._statistics()]
        plan = self._plan_of_tokens(here, tokens, threads)
        of_tokens = unpack(f"{len(plan.words) // 8}q", plan.words)
        items, _, rows, *_ = of_tokens
        parts = items // ceil(tokens / rows)
        steps_of_pass = [0] if parts == 1 else range(1, STEPS + 1)
        plans = [self._plan_of_attention(here, run, threads) for run in runs]
        workspace = memory.take(max(each.memory for each in (plan, *plans)))
        shared = [0 if parts == 1 else memory.take(4 * rows * width) for width in (sizes.dim, sizes.dim, sizes.hidden)]

        def pass_over_tokens(number: int, step: int) -> _Step:
            """What comes between the attention of layer `number` and that of the next. step: 0 for all, or which."""
            words: _Words = [*of_tokens, int(number >= 0), int(number + 1 < len(self._layers)), step]
            words += [parts, float_bits(sizes.epsilon), 0, 0, workspace]
            words += [_States(), attended, divisor.data_ptr(), query, key, value, *shared]
            this, following = self._layers[max(number, 0)], self._layers[min(number + 1, len(self._layers) - 1)]
            behind, before = slice(0, 3), slice(3, 6)
            words += [*this.addresses(behind, slice(0)), *following.addresses(before, slice(0))]
            words += this.addresses(slice(0), slice(2))
            return _Step(plan.entry, words, plan.threads)

        heads: list[_Words] = [[*unpack(f"{len(plan.words) // 8}q", plan.words), 0, 0, workspace] for plan in plans]
        tails: list[_Words] = [
            [0, 0, *(_In(x + 4 * sizes.dim * run.start) for x in (query, key, value, attended))] for run in runs
        ]
        if not sizes.int8:
            for run, words in zip(runs, heads, strict=True):
                of_run = [0 if x is None else _In(x + 4 * sizes.heads * run.start) for x in statistics]
                words += [0, *of_run, 0, 0]

        def attention(number: int) -> list[_Step]:
            scalars = [0 if x is None else x.data_ptr() for x in self._layers[number].scalars]
            steps = []
            for plan, head, tail in zip(plans, heads, tails, strict=True):
                flaw = None if sizes.int8 else len(plan.words) // 8 + FLAWED // 8
                steps.append(_Step(plan.entry, [*head, *scalars, *tail], plan.threads, flaw))
            return steps

        steps = [pass_over_tokens(-1, steps_of_pass[-1])]
        for number in range(len(self._layers)):
            steps += [*attention(number), *(pass_over_tokens(number, step) for step in steps_of_pass)]
        return _Program(steps, memory.size, entry("each_block", each_block_ir, here), (divisor, plans))

    def _statistics(self) -> tuple[bool, bool]:
        """Whether float32 attention notes by what queries were centred, and what their sums were divided by."""
        int8, has_delta = self._sizes.int8, self._layers[0].scalars[3] is not None
        return not int8 and self._sizes.center > 0, not int8 and has_delta

    def _plan_of_tokens(self, here: Machine, tokens: int, threads: int) -> Plan:
        """The pieces of work are blocks of tokens; with few tokens, parts of the outputs of one block."""
        sizes = self._sizes
        products = tokens * sizes.dim * (4 * sizes.dim + 2 * sizes.hidden)
        is_shared = threads > 1 and tokens <= _MOST_SHARED and products >= 2 * STEPS * _WORTH_A_THREAD
        threads = min(threads, ceil(products / _WORTH_A_THREAD))
        of_a_thread = tokens if is_shared else ceil(tokens / threads)
        rows = block_rows(here, ceil(of_a_thread / ceil(of_a_thread / _MOST_ROWS)), _MOST_ROWS, sizes.int8)
        items = min(threads, sizes.dim // panel(here)) if is_shared else ceil(tokens / rows)
        threads, memory = min(threads, items), workspace_size(here, rows, sizes.dim, sizes.hidden)
        words = (items, memory, rows, tokens, sizes.dim, sizes.hidden)
        return Plan(entry("encoder", encoder_ir, here, sizes.int8), pack(words), threads, threads * memory)

    def _plan_of_attention(self, here: Machine, run: Run, threads: int) -> Plan:
        sizes = self._sizes
        size = sizes.dim // sizes.heads
        shape, scalars = (run.texts, sizes.heads, run.length, size), self._layers[0].scalars
        strides = run.strides(strides_of(scalars, (), ())[0], False, [(sizes.dim, size, 1)] * 4)
        has_delta = scalars[3] is not None
        if sizes.int8:
            flags = sizes.center, sizes.inhibition, False, has_delta
            return make_int8_plan(here, shape, run.length, size, flags, threads, strides)
        options = sizes.center, sizes.inhibition, False, has_delta, sizes.radii
        return make_float32_plan("forward", here, shape, run.length, torch.float32, options, threads, strides)


class _Memory:
    """Hands out the memory of a call."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, size: int) -> _In:
        place, self.size = self.size, self.size + -(-size // 64) * 64
        return _In(place)


class _Program:
    """The calls of all layers for texts of given lengths. Addresses within its memory are filled in for each run.

    kept: what words point to.
    """

    def __init__(self, steps: Sequence[_Step], memory: int, each_block: int, kept: object) -> None:
        self._kept, self._each_block, self._begin = kept, each_block, memory
        listed: _Words = [len(steps)]
        place, flaws = 1 + 2 * len(steps), []
        self._calls = []
        for step in steps:
            self._calls.append((step.entry, memory + 8 * place, step.threads))
            listed += [step.entry, _In(memory + 8 * place)]
            flaws += [] if step.flaw is None else [place + step.flaw]
            place += len(step.words)
        words = [*listed, *chain(*(step.words for step in steps))]
        kinds = list(map(type, words))
        # From bytes: torch takes ten times as long to read a list.
        self._words = torch.frombuffer(bytearray(pack(words)), dtype=torch.int64)
        found = (bytearray(map(is_, kinds, repeat(kind))) for kind in (_In, _States))
        self._of_call, self._of_states = (torch.frombuffer(x, dtype=torch.uint8).long() for x in found)
        self._flaws = torch.tensor(flaws) if flaws else None
        self._alone = all(step.threads == 1 for step in steps)

    def run(self, states: Tensor) -> bool:
        memory = torch.empty(self._begin // 8 + len(self._words), dtype=torch.int64)
        base = memory.data_ptr()
        words = torch.add(self._words, self._of_call, alpha=base, out=memory[self._begin // 8 :])
        words.add_(self._of_states, alpha=states.data_ptr())
        if self._alone:
            run_on_threads(self._each_block, base + self._begin, 1)
        else:
            for function, place, threads in self._calls:
                run_on_threads(function, base + place, threads)
        return self._flaws is None or not words[self._flaws].any()
