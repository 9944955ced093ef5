"""Code for what an encoder layer does to each token by itself, from one attention to the next: LLVM IR for one processor.

A piece of work is a block of tokens, that passes through all of it while it is in a near cache:

    attended = attended / divisor
    states = norm(out(attended) + states)
    states = norm(second(gelu(first(states))) + states)
    query, key, value of the next layer, from the states

Where the weights are int8 each activation is rounded once, where it was computed.

With few tokens most of the time goes into reading the weights, and there is a single block. Then the threads share the
outputs of each product, so that each reads a part of the weights. A call is one of four steps: each ends with products,
whose outputs the next step needs whole. They lie in memory that the threads share.
"""

from collections.abc import Callable

from ...llvm.builder import F32, I64, PTR, Function, Value
from ...llvm.jit import Machine
from .fields import Fields, each_item, thread_memory
from .linear import LINEAR, LinearGenerator, outputs_of_part, packed_size, panel, quantized_size

_LINEARS, _NORMS = ("out", "first", "second", "query", "key", "value"), ("attention_norm", "output_norm")
# One block for all threads. Tensors are contiguous, `(tokens, dim)` each; `divisor` is `(tokens,)`. `dim` and `hidden` are
# multiples of four times the lanes. Layers write their states in place.
BLOCK = (
    *("items", "workspace_size", "block_rows", "tokens", "dim", "hidden"),
    *("after", "before"),  # whether there is an attention before this, and one after
    *("step", "parts"),  # 0 for all steps, or the number of one, and into how many parts its outputs go
    "epsilon",  # float32, of the norms
    *("next", "arrived", "workspace"),
    *("states", "attended", "divisor", "query_output", "key_output", "value_output"),
    *("shared_middle", "shared_projected", "shared_wide"),  # used by single steps; see `_Block`
    *(f"{name}_{part}" for name in _LINEARS for part in LINEAR),
    *(f"{name}_{part}" for name in _NORMS for part in ("weight", "bias")),
)


def workspace_size(machine: Machine, rows: int, dim: int, hidden: int) -> int:
    """Bytes that a thread needs for blocks of so many rows."""
    widest = max(dim, hidden)
    floats = 4 * rows * (2 * dim + hidden)
    return -(-(floats + packed_size(machine, widest) + quantized_size(rows, widest)) // 64) * 64


# erf(x) for |x| < 4, as Eigen has it: coefficients of x, x^3, … over those of 1, x^2, …
_ERF_OVER = (
    *(-1.60960333262415e-02, -2.95459980854025e-03, -7.34990630326855e-04, -5.69250639462346e-05),
    *(-2.10102402082508e-06, 2.77068142495902e-08, -2.72614225801306e-10),
)
_ERF_UNDER = (
    *(-1.42647390514189e-02, -7.37332916720468e-03, -1.68282697438203e-03, -2.13374055278905e-04),
    -1.45660718464996e-05,
)


def _erf(g: LinearGenerator, f: Function, x: Value) -> Value:
    x = f.smaller(f.larger(x, f.number(g.floats, -4.0)), f.number(g.floats, 4.0))
    square = x * x
    return x * _polynomial(g, f, square, _ERF_OVER) / _polynomial(g, f, square, _ERF_UNDER)


def _polynomial(g: LinearGenerator, f: Function, x: Value, coefficients: tuple[float, ...]) -> Value:
    total = f.number(g.floats, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = f.fma(total, x, f.number(g.floats, coefficient))
    return total


def _define_rows(g: LinearGenerator) -> None:
    """What is done to a row, `n` numbers in memory."""
    function = g.module.function
    with function("gelu", {"row": PTR, "n": I64}) as (f, row, n), f.loop(0, n, g.lanes) as k:
        x = row.load(g.floats, k)
        row.store(x * 0.5 * (_erf(g, f, x * 0.5**0.5) + 1.0), k)
    parameters = {"row": PTR, "divisor": F32, "output": PTR, "n": I64}
    with function("divide", parameters) as (f, row, divisor, output, n), f.loop(0, n, g.lanes) as k:
        output.store(row.load(g.floats, k) / g.splat(f, divisor), k)
    with function("copy", {"row": PTR, "output": PTR, "n": I64}) as (f, row, output, n), f.loop(0, n, g.lanes) as k:
        output.store(row.load(g.floats, k), k)
    parameters = {"row": PTR, "other": PTR, "weight": PTR, "bias": PTR, "epsilon": F32, "output": PTR, "n": I64}
    with function("add_norm", parameters) as (f, row, other, weight, bias, epsilon, output, n):
        zero, one = f.number(g.floats, 0.0), f.number(F32, 1.0)
        share = one / n.convert("sitofp", F32)
        total, square = f.variable(zero), f.variable(zero)
        with f.loop(0, n, g.lanes) as k:
            x = row.load(g.floats, k) + other.load(g.floats, k)
            output.store(x, k)
            total.value = total.value + x
        mean = g.splat(f, g.sum_of_lanes(f, total.value) * share)
        with f.loop(0, n, g.lanes) as k:
            x = output.load(g.floats, k) - mean
            square.value = f.fma(x, x, square.value)
        variance = g.sum_of_lanes(f, square.value) * share
        rate = g.splat(f, one / f.intrinsic("llvm.sqrt.f32", F32, variance + epsilon))
        with f.loop(0, n, g.lanes) as k:
            x = (output.load(g.floats, k) - mean) * rate
            output.store(f.fma(x, weight.load(g.floats, k), bias.load(g.floats, k)), k)


class _Block:
    """The block of tokens at hand, and where its numbers are: in a thread's memory, or for single steps in shared memory.

    `states`, always of the thread: what is rounded next. `projected`: outputs of `out` and `second`. `middle`: states
    behind the first norm. `wide`: outputs of `first`.
    """

    def __init__(self, g: LinearGenerator, f: Function, block: Fields, memory: Value, item: Value) -> None:
        self.g, self.f, self.block = g, f, block
        self.dim, self.hidden, size = (block.integer(name) for name in ("dim", "hidden", "block_rows"))
        self.parts = block.integer("parts")
        self.first, self.part = item // self.parts * size, item % self.parts
        self.last = block.integer("tokens") - 1 - self.first
        left = (self.last + g.tile) // g.tile * g.tile
        self.count = (left < size).where(left, size)
        widest = (self.dim < self.hidden).where(self.hidden, self.dim)
        self.states, own_projected = memory, memory.at(size * self.dim)
        own_wide = own_projected.at(size * self.dim)
        self.packed = own_wide.at(size * self.hidden)
        self.rows = self.packed.at(widest * panel(g.machine))
        self.all_steps = block.integer("step").equals(0)
        self.projected = self.all_steps.where(own_projected, block.pointer("shared_projected"))
        self.middle = self.all_steps.where(self.states, block.pointer("shared_middle"))
        self.wide = self.all_steps.where(own_wide, block.pointer("shared_wide"))

    def token(self, r: Value) -> Value:
        """Which token stands in row r; those beyond the last one repeat it."""
        return self.first + (r < self.last).where(r, self.last)

    def quantize(self, source: Value, depth: Value) -> Value:
        """The rows in the form that layers take."""
        if not self.g.int8:
            return source
        self.g.quantize(self.f, lambda r: source.at(r * depth), self.count, depth, self.rows, self.packed)
        return self.rows

    def outputs_of_part(self, width: Value) -> tuple[Value, Value]:
        return outputs_of_part(self.g.machine, width, self.part, self.parts)

    def linear(self, name: str, rows: Value, depth: Value, width: Value, output: Value, last: Value | None = None) -> None:
        """last: the last row of the output; by default that of a buffer, which has them all."""
        layer, last = self.block.place(f"{name}_weight"), self.count - 1 if last is None else last
        outputs = self.outputs_of_part(width)
        self.f.call("linear", layer, rows, self.count, last, depth, output, width, *outputs, self.packed)

    def norm(self, name: str, residual: Value, per_token: bool) -> None:
        """The states: `projected` plus the residual, which is of all tokens or of the rows."""
        weight, bias = (self.block.pointer(f"{name}_{part}") for part in ("weight", "bias"))
        with self.f.loop(0, self.count) as r:
            other = residual.at((self.token(r) if per_token else r) * self.dim)
            numbers = weight, bias, self.block.number("epsilon"), self.states.at(r * self.dim), self.dim
            self.f.call("add_norm", self.projected.at(r * self.dim), other, *numbers)

    def share(self, place: Callable[[Value], Value]) -> None:
        """Copy the states to rows at `place`. One part does, where all have the same."""
        with self.f.when(self.part.equals(0)), self.f.loop(0, self.count) as r:
            self.f.call("copy", self.states.at(r * self.dim), place(r), self.dim)


def _attended_to_projected(b: _Block) -> None:
    with b.f.loop(0, b.count) as r:
        token = b.token(r)
        row, divisor = b.block.pointer("attended").at(token * b.dim), b.block.pointer("divisor").load(F32, token)
        b.f.call("divide", row, divisor, b.states.at(r * b.dim), b.dim)
    b.linear("out", b.quantize(b.states, b.dim), b.dim, b.dim, b.projected)


def _projected_to_wide(b: _Block) -> None:
    b.norm("attention_norm", b.block.pointer("states"), per_token=True)
    with b.f.when(b.all_steps.equals(0)):
        b.share(lambda r: b.middle.at(r * b.dim))
    b.linear("first", b.quantize(b.states, b.dim), b.dim, b.hidden, b.wide)
    start, stop = b.outputs_of_part(b.hidden)
    with b.f.loop(0, b.count) as r:
        b.f.call("gelu", b.wide.at(r * b.hidden + start), stop - start)


def _wide_to_projected(b: _Block) -> None:
    b.linear("second", b.quantize(b.wide, b.hidden), b.hidden, b.dim, b.projected)


def _projected_to_heads(b: _Block) -> None:
    states = b.block.pointer("states")
    with b.f.when(b.block.flag("after")):
        b.norm("output_norm", b.middle, per_token=False)
        b.share(lambda r: states.at(b.token(r) * b.dim))
    with b.f.when(b.block.flag("after").equals(0)), b.f.loop(0, b.count) as r:
        b.f.call("copy", states.at(b.token(r) * b.dim), b.states.at(r * b.dim), b.dim)
    with b.f.when(b.block.flag("before")):
        rows = b.quantize(b.states, b.dim)
        for name in ("query", "key", "value"):
            b.linear(name, rows, b.dim, b.dim, b.block.pointer(f"{name}_output").at(b.first * b.dim), b.last)


# In order; the last one alone where no attention comes before.
_STEPS = (_attended_to_projected, _projected_to_wide, _wide_to_projected, _projected_to_heads)
STEPS = len(_STEPS)


def _define_steps(g: LinearGenerator) -> None:
    for step in _STEPS:
        parameters = {"block": PTR, "memory": PTR, "item": I64}
        with g.module.function(step.__name__, parameters) as (f, address, memory, item):
            step(_Block(g, f, Fields(address, BLOCK), memory, item))


def _define_run_item(g: LinearGenerator) -> None:
    with g.module.function("run_item", {"block": PTR, "memory": PTR, "item": I64}) as (f, address, memory, item):
        block = Fields(address, BLOCK)
        for number, step in enumerate(_STEPS, start=1):
            wanted = block.integer("step").equals(number) | block.integer("step").equals(0)
            with f.when(wanted if number == STEPS else wanted & block.flag("after")):
                f.call(step.__name__, address, memory, item)


def encoder_ir(machine: Machine, int8: bool) -> str:
    """The IR of a module that exports `void encoder(void *block)`."""
    g = LinearGenerator(machine, int8)
    for define in (_define_rows, _define_steps, _define_run_item):
        define(g)
    with g.module.function("encoder", {"block": PTR}, exported=True) as (f, address):
        block = Fields(address, BLOCK)
        memory = thread_memory(block)
        with g.registers(f), each_item(block) as item:
            f.call("run_item", address, memory, item)
    return g.module.text()
