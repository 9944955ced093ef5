"""Code for linear layers of int8 or float32 weights: LLVM IR for one processor.

The weights come as they are stored, row by row along their inputs: as many outputs as two vectors have lanes are packed as
`[inputs of a word][lane = output]`, and then the rows of x pass by, a tile at a time. Packing anew at every call costs as
much as two or three rows, and nothing need be kept between calls.

With int8 weights the rows of x are rounded to 8 bits, each on a grid of its own. A word holds four inputs where one
instruction multiplies so many: unsigned bytes with signed ones, so 128 is added to the weights, and 128 times the sum of
the row taken off. Elsewhere it holds two, widened to 16 bits.

Where the processor has registers for tiles of bytes, both are signed, and the rows of x are packed instead of the weights,
which the registers take as they are stored; see `amx.py`.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from .inhibitor_llvm_builder import F32, I8, I16, I32, I64, PTR, Function, Value, vector
from .inhibitor_llvm_jit import Machine
from .inhibitor_quantized import SMALLEST
from .inhibitor_cpu_code_amx import ROWS as AMX_ROWS
from .inhibitor_cpu_code_amx import configured, has_tiles, products
from .inhibitor_cpu_code_fields import Fields, each_item, thread_memory
from .inhibitor_cpu_code_int8 import ROUNDER_BITS, ByteGenerator, shifted_right, tile_rows
from .inhibitor_cpu_code_panels import transposed

# What there is of a linear layer in memory; no scale where the weights are float32.
LINEAR = ("weight", "weight_scale", "bias")
# Strides are in elements. `depth`: inputs, a multiple of four times the lanes; `width`: outputs, a multiple of a panel.
BLOCK = (
    *("items", "parts", "workspace_size", "rows", "block_rows", "depth", "width", "x_stride"),
    *("next", "arrived", "workspace", "x", *LINEAR, "output"),
)

LARGEST = 127
_LINE = 64  # bytes of a cache
_MOST_ROWS = 256  # in a block: as bytes they stay in a cache that a core has to itself
_HIGHEST_BITS = -0x7F7F7F80  # of all four bytes: adds 128 to each


def panel(machine: Machine) -> int:
    """Outputs that are computed together."""
    return 2 * machine.lanes


def rows_of_tile(machine: Machine, int8: bool) -> int:
    """Rows of a tile. So many sums of float32 are under way that none waits for the one before it."""
    if int8 and has_tiles(machine):
        return AMX_ROWS
    return tile_rows(machine) if int8 or machine.registers >= 32 else 6


def block_rows(machine: Machine, rows: int, most: int = _MOST_ROWS, int8: bool = True) -> int:
    """Rows of a block, whole tiles."""
    tile = rows_of_tile(machine, int8)
    return -(-min(rows, most) // tile) * tile


def packed_size(machine: Machine, depth: int) -> int:
    """Room for a panel of weights of any kind, in bytes."""
    return 4 * panel(machine) * depth


def quantized_size(rows: int, depth: int) -> int:
    """Room for rows of 8 or 16 bits, their steps and their excess, in bytes."""
    return rows * (2 * depth + 8)


def workspace_size(machine: Machine, rows: int, depth: int) -> int:
    """Bytes that a thread needs for blocks of so many rows."""
    return -(-(packed_size(machine, depth) + quantized_size(rows, depth)) // 64) * 64


def outputs_of_part(machine: Machine, width: Value, part: Value, parts: Value) -> tuple[Value, Value]:
    """Where the outputs of a part begin and end: whole panels, shared evenly."""
    panels = width // panel(machine)
    return panels * part // parts * panel(machine), panels * (part + 1) // parts * panel(machine)


def item_size(g: "LinearGenerator") -> int:
    """Bytes of an input in quantized rows and packed weights."""
    return (1 if g.multiplies_bytes else 2) if g.int8 else 4


class LinearGenerator(ByteGenerator):
    """A module for one machine and one kind of weights, with the function `linear` and, for int8, `quantize_row`."""

    def __init__(self, machine: Machine, int8: bool = True) -> None:
        super().__init__(machine)
        self.int8, self.tile = int8, rows_of_tile(machine, int8)
        self.item = item_size(self)
        self.has_tiles = self.item == 1 and has_tiles(machine)
        if int8:
            _define_quantize_row(self)
        _define_pack(self)
        _define_tile(self)
        _define_linear(self)

    def registers(self, f: Function) -> AbstractContextManager[None]:
        """Makes a thread ready for tiles, around all that it does."""
        return configured(f) if self.has_tiles else nullcontext()

    def quantize(
        self, f: Function, row: Callable[[Value], Value], count: Value, depth: Value, rows: Value, spare: Value
    ) -> None:
        """Fill `rows` with `count` rows, whole tiles. row: the address of one. spare: memory for a panel."""
        steps, excess = self.steps_in(f, rows, count, depth)
        with f.loop(0, count, self.tile) as first:
            packed = rows.at(first * depth * self.item, I8)
            stored = spare if self.has_tiles else packed
            with f.loop(0, self.tile) as n:
                r = first + n
                f.call("quantize_row", row(r), depth, stored.at(n * depth * self.item, I8), steps.at(r), excess.at(r))
            if self.has_tiles:
                f.call("pack", stored, depth, packed)

    def steps_in(self, f: Function, rows: Value, count: Value, depth: Value) -> tuple[Value, Value]:
        """Where the steps and the excess of `count` quantized rows are: behind them."""
        steps = rows.at(count * depth * self.item, I8)
        return steps, steps.at(count)


def _define_quantize_row(g: LinearGenerator) -> None:
    """A row as whole numbers -127 .. 127; its step, NaN where it is not finite, and 128 times the sum of its numbers.

    Of 16 bits the second and the third of four are exchanged.
    """
    parameters = {"source": PTR, "depth": I64, "row": PTR, "step": PTR, "excess": PTR}
    with g.module.function("quantize_row", parameters) as (f, source, depth, row, step, excess):
        zero = f.number(g.floats, 0.0)
        largest, flaw, total = f.variable(zero), f.variable(zero), f.variable(f.number(g.words, 0))
        with f.loop(0, depth, g.lanes) as k:
            x = source.load(g.floats, k)
            largest.value = f.larger(f.absolute(x), largest.value)
            flaw.value = f.fma(x, zero, flaw.value)
        reach = g.fold(f, largest.value, f.larger)
        step.store(reach * (1 / LARGEST) + g.sum_of_lanes(f, flaw.value))
        one = f.number(F32, 1.0)
        rate = g.splat(f, (reach < SMALLEST).where(f.number(F32, 0.0), one / reach * LARGEST))
        with f.loop(0, depth, g.lanes) as k:
            number = g.rounded(source.load(g.floats, k) * rate) - ROUNDER_BITS
            if g.item == 1:
                total.value = total.value + number
                g.store_bytes(row, number, k)
            else:
                number = f.shuffle(number, number, [n ^ 3 * (n % 4 in (1, 2)) for n in range(g.lanes)])
                row.store(number.convert("trunc", vector(g.lanes, I16)), k)
        excess.store(g.sum_of_lanes(f, total.value) * 128)


def _define_pack(g: LinearGenerator) -> None:
    """A panel of weights that begins at `rows`, while the next one is brought near; or, for tiles, as many rows of x."""
    with g.module.function("pack", {"rows": PTR, "depth": I64, "packed": PTR}) as (f, first_row, depth, packed):
        stored = 1 if g.int8 else 4
        with f.loop(0, panel(g.machine), g.lanes) as first, f.loop(0, depth, 4 * g.lanes // stored) as k:
            source = first_row.at((first * depth + k) * stored, I8)
            rows = [source.at(depth * (r * stored), I8).load(g.words) for r in range(g.lanes)]
            following = first_row.at((depth * panel(g.machine) + first * depth) * stored + k * (stored * g.lanes), I8)
            for line in range(0, 0 if g.has_tiles else 4 * g.lanes * g.lanes, _LINE):
                f.prefetch(following.at(line, I8))
            place = packed.at((first * depth + k * g.lanes) * g.item, I8)
            for n, word in enumerate(transposed(f, rows)):
                if g.item != 2:
                    place.store(word ^ _HIGHEST_BITS if g.int8 and not g.has_tiles else word, n * g.lanes)
                    continue
                halves = word.convert("bitcast", g.halves)
                place.store(shifted_right(halves << 8, 8), 2 * n * 2 * g.lanes)
                place.store(shifted_right(halves, 8), (2 * n + 1) * 2 * g.lanes)


def _define_tile(g: LinearGenerator) -> None:
    """A tile of rows times a panel of outputs; the output of rows beyond `last` is that of row `last`.

    weights: packed, but where there are registers for tiles. number: of the first row.
    """
    parameters = {"layer": PTR, "weights": PTR, "x": PTR, "steps": PTR, "excess": PTR, "depth": I64, "last": I64}
    parameters |= {"output": PTR, "width": I64, "column": I64, "number": I64}
    with g.module.function("tile", parameters) as (f, address, packed, x, steps, excess, depth, last, output, *others):
        width, column, first_row = others
        layer = Fields(address, LINEAR)

        def of_columns(name: str) -> list[Value]:
            return [layer.pointer(name).load(g.floats, column + n * g.lanes) for n in range(2)]

        biases, scales = of_columns("bias"), of_columns("weight_scale") if g.int8 else []

        def finish(r: Value, row_sums: Sequence[Value]) -> None:
            place = output.at((r < last).where(r, last) * width + column)
            for n, y in enumerate(row_sums):
                if g.int8:
                    y = y.convert("sitofp", g.floats) * g.splat(f, steps.load(F32, r)) * scales[n]
                place.store(y + biases[n], n * g.lanes)

        if g.has_tiles:
            found = products(f, packed, x, depth, first_row.equals(0))
            with f.loop(0, g.tile, g.lanes) as r:
                halves = [[found.load(g.words, r + (n + o) * g.tile) for o in range(g.lanes)] for n in (0, g.lanes)]
                for n, of_row in enumerate(zip(*(transposed(f, half) for half in halves), strict=True)):
                    finish(r + n, of_row)
            return
        rows = [x.at(depth * (g.item * r), I8) for r in range(g.tile)]
        groups = [packed, packed.at(depth * (g.item * g.lanes), I8)]
        type_ = g.words if g.int8 else g.floats
        sums = [[f.variable(f.number(type_, 0)) for _ in groups] for _ in rows]
        with f.loop(0, depth * g.item // 4) as p:
            weights = [group.load(type_, p * g.lanes) for group in groups]
            for row, row_sums in zip(rows, sums, strict=True):
                splat = g.splat(f, row.load(I32 if g.int8 else F32, p))
                for total, weight in zip(row_sums, weights, strict=True):
                    total.value = _multiplied(g, f, total.value, weight, splat)
        for number, row_sums in enumerate(sums):
            beyond = g.splat(f, excess.load(I32, number)) if g.item == 1 else f.number(type_, 0)
            finish(f.integer(number), [total.value - beyond for total in row_sums])


def _multiplied(g: LinearGenerator, f: Function, total: Value, weight: Value, x: Value) -> Value:
    if g.item == 4:
        return f.fma(weight, x, total)
    if g.item == 1:
        return g.dot(f, total, weight, x)
    return total + g.pair_sums(f, *(each.convert("bitcast", g.halves) for each in (weight, x)))


def _define_linear(g: LinearGenerator) -> None:
    """The outputs `start` .. `stop` of `count` rows, whole tiles, that are quantized where the weights are int8.

    layer: `LINEAR`. Beyond row `last` nothing is written. packed: memory for a panel.
    """
    parameters = {"layer": PTR, "x": PTR, "count": I64, "last": I64, "depth": I64, "output": PTR, "width": I64}
    parameters |= {"start": I64, "stop": I64, "packed": PTR}
    with g.module.function("linear", parameters) as (f, layer, x, count, last, depth, output, width, start, stop, packed):
        outputs, stored = panel(g.machine), 1 if g.int8 else 4
        steps, excess = g.steps_in(f, x, count, depth)
        with f.loop(start, stop, outputs) as column:
            weights = Fields(layer, LINEAR).pointer("weight").at(column * depth * stored, I8)
            if not g.has_tiles:
                f.call("pack", weights, depth, packed)
                weights = packed
            with f.loop(0, count, g.tile) as r:
                of_tile = x.at(r * depth * g.item, I8), steps.at(r), excess.at(r), depth, last - r
                f.call("tile", layer, weights, *of_tile, output.at(r * width), width, column, r)


def _define_run_item(g: LinearGenerator) -> None:
    """One part of the outputs of one block of rows."""
    with g.module.function("run_item", {"block": PTR, "memory": PTR, "item": I64}) as (f, address, memory, item):
        block = Fields(address, BLOCK)
        parts, depth, size = block.integer("parts"), block.integer("depth"), block.integer("block_rows")
        width, tile = block.integer("width"), g.tile
        first, part = item // parts * size, item % parts
        last = block.integer("rows") - 1 - first
        left = (last + tile) // tile * tile
        count = (left < size).where(left, size)
        rows = memory.at(depth * (4 * panel(g.machine)), I8)

        def row(r: Value) -> Value:
            return block.pointer("x").at((first + (r < last).where(r, last)) * block.integer("x_stride"))

        g.quantize(f, row, count, depth, rows, memory)
        outputs, output = outputs_of_part(g.machine, width, part, parts), block.pointer("output").at(first * width)
        f.call("linear", block.place("weight"), rows, count, last, depth, output, width, *outputs, memory)


def int8_linear_ir(machine: Machine) -> str:
    """The IR of a module that exports `void int8_linear(void *block)`."""
    g = LinearGenerator(machine)
    _define_run_item(g)
    with g.module.function("int8_linear", {"block": PTR}, exported=True) as (f, address):
        block = Fields(address, BLOCK)
        memory = thread_memory(block)
        with g.registers(f), each_item(block) as item:
            f.call("run_item", address, memory, item)
    return g.module.text()
