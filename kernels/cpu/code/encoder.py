"""Code for what an encoder layer does to each token by itself, from one attention to the next: LLVM IR for one processor.

A piece of work is a block of tokens, that passes through all of it while it is in a near cache:

    attended = attended / divisor
    states = norm(out(attended) + states)
    states = norm(second(gelu(first(states))) + states)
    query, key, value of the next layer, from the states

Where the weights are int8 each activation is rounded once, where it was computed.
"""

from ...llvm.builder import F32, I64, PTR, Function, Value
from ...llvm.jit import Machine
from .fields import Fields, each_item, thread_memory
from .linear import LINEAR, LinearGenerator, packed_size, panel, quantized_size

_LINEARS, _NORMS = ("out", "first", "second", "query", "key", "value"), ("attention_norm", "output_norm")
# One block for all threads. Tensors are contiguous, `(tokens, dim)` each; `divisor` is `(tokens,)`. `dim` and `hidden` are
# multiples of four times the lanes. Layers write their states in place.
BLOCK = (
    *("items", "workspace_size", "block_rows", "tokens", "dim", "hidden"),
    *("after", "before"),  # whether there is an attention before this, and one after
    "epsilon",  # float32, of the norms
    *("next", "arrived", "workspace"),
    *("states", "attended", "divisor", "query_output", "key_output", "value_output"),
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
            row.store(x, k)
            total.value = total.value + x
        mean = g.splat(f, g.sum_of_lanes(f, total.value) * share)
        with f.loop(0, n, g.lanes) as k:
            x = row.load(g.floats, k) - mean
            square.value = f.fma(x, x, square.value)
        variance = g.sum_of_lanes(f, square.value) * share
        rate = g.splat(f, one / f.intrinsic("llvm.sqrt.f32", F32, variance + epsilon))
        with f.loop(0, n, g.lanes) as k:
            x = (row.load(g.floats, k) - mean) * rate
            output.store(f.fma(x, weight.load(g.floats, k), bias.load(g.floats, k)), k)


class _Block:
    """The block of tokens at hand, and where its numbers are in the memory of a thread."""

    def __init__(self, g: LinearGenerator, f: Function, block: Fields, memory: Value, item: Value) -> None:
        self.g, self.f, self.block = g, f, block
        self.dim, self.hidden, size = (block.integer(name) for name in ("dim", "hidden", "block_rows"))
        self.first = item * size
        self.last = block.integer("tokens") - 1 - self.first
        left = (self.last + g.tile) // g.tile * g.tile
        self.count = (left < size).where(left, size)
        widest = (self.dim < self.hidden).where(self.hidden, self.dim)
        self.states, self.projected = memory, memory.at(size * self.dim)
        self.wide = self.projected.at(size * self.dim)
        self.packed = self.wide.at(size * self.hidden)
        self.rows = self.packed.at(widest * panel(g.machine))

    def token(self, r: Value) -> Value:
        """Which token stands in row r; those beyond the last one repeat it."""
        return self.first + (r < self.last).where(r, self.last)

    def quantize(self, source: Value, depth: Value) -> Value:
        """The rows in the form that layers take."""
        if not self.g.int8:
            return source
        self.g.quantize(self.f, lambda r: source.at(r * depth), self.count, depth, self.rows, self.packed)
        return self.rows

    def linear(self, name: str, rows: Value, depth: Value, width: Value, output: Value, last: Value | None = None) -> None:
        """last: the last row of the output; by default that of a buffer, which has them all."""
        layer, zero = self.block.place(f"{name}_weight"), self.f.integer(0)
        last = self.count - 1 if last is None else last
        self.f.call("linear", layer, rows, self.count, last, depth, output, width, zero, width, self.packed)

    def norm(self, name: str, residual: Value, per_token: bool) -> None:
        """The states: `projected` plus the residual, which is of all tokens or of the rows."""
        weight, bias = (self.block.pointer(f"{name}_{part}") for part in ("weight", "bias"))
        with self.f.loop(0, self.count) as r:
            other = residual.at((self.token(r) if per_token else r) * self.dim)
            numbers = weight, bias, self.block.number("epsilon"), self.states.at(r * self.dim), self.dim
            self.f.call("add_norm", self.projected.at(r * self.dim), other, *numbers)


def _define_run_item(g: LinearGenerator) -> None:
    with g.module.function("run_item", {"block": PTR, "memory": PTR, "item": I64}) as (f, address, memory, item):
        block = Fields(address, BLOCK)
        b = _Block(g, f, block, memory, item)
        with f.when(block.flag("after")):
            f.call("finish_layer", address, memory, item)
        with f.when(block.flag("after").equals(0)), f.loop(0, b.count) as r:
            f.call("copy", block.pointer("states").at(b.token(r) * b.dim), b.states.at(r * b.dim), b.dim)
        with f.when(block.flag("before")):
            rows = b.quantize(b.states, b.dim)
            for name in ("query", "key", "value"):
                b.linear(name, rows, b.dim, b.dim, block.pointer(f"{name}_output").at(b.first * b.dim), b.last)


def _define_finish_layer(g: LinearGenerator) -> None:
    with g.module.function("finish_layer", {"block": PTR, "memory": PTR, "item": I64}) as (f, address, memory, item):
        block = Fields(address, BLOCK)
        b = _Block(g, f, block, memory, item)
        with f.loop(0, b.count) as r:
            token = b.token(r)
            row, divisor = block.pointer("attended").at(token * b.dim), block.pointer("divisor").load(F32, token)
            f.call("divide", row, divisor, b.states.at(r * b.dim), b.dim)
        b.linear("out", b.quantize(b.states, b.dim), b.dim, b.dim, b.projected)
        b.norm("attention_norm", block.pointer("states"), per_token=True)
        b.linear("first", b.quantize(b.states, b.dim), b.dim, b.hidden, b.wide)
        with f.loop(0, b.count) as r:
            f.call("gelu", b.wide.at(r * b.hidden), b.hidden)
        b.linear("second", b.quantize(b.wide, b.hidden), b.hidden, b.dim, b.projected)
        b.norm("output_norm", b.states, per_token=False)
        with f.loop(0, b.count) as r:
            f.call("copy", b.states.at(r * b.dim), block.pointer("states").at(b.token(r) * b.dim), b.dim)


def encoder_ir(machine: Machine, int8: bool) -> str:
    """The IR of a module that exports `void encoder(void *block)`."""
    g = LinearGenerator(machine, int8)
    for define in (_define_rows, _define_finish_layer, _define_run_item):
        define(g)
    with g.module.function("encoder", {"block": PTR}, exported=True) as (f, address):
        block = Fields(address, BLOCK)
        memory = thread_memory(block)
        with g.registers(f), each_item(block) as item:
            f.call("run_item", address, memory, item)
    return g.module.text()
