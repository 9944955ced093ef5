"""Code for linear layers of int8 weights: LLVM IR for one processor.

A piece of work is a block of rows of x and a part of the outputs. The rows are rounded to 8 bits, each on a grid of its own.
The weights come as they are stored, row by row along their inputs: as many outputs as two vectors have lanes are packed as
`[four inputs][lane = output]`, and then the rows pass by, a tile at a time. Packing anew at every call costs as much as
two or three rows, and nothing need be kept between calls.

The instruction multiplies unsigned bytes with signed ones: 128 is added to the weights, and 128 times the sum of the row
taken off.
"""

from ...llvm.builder import F32, I8, I32, I64, PTR, Value
from ...llvm.jit import Machine
from ...quantized import SMALLEST
from .fields import Fields, each_item, thread_memory
from .int8 import ROUNDER_BITS, ByteGenerator, tile_rows
from .panels import transposed

# Strides are in elements. `depth`: inputs, a multiple of four times the lanes; `width`: outputs, a multiple of a panel.
BLOCK = (
    *("items", "parts", "workspace_size", "rows", "block_rows", "depth", "width", "x_stride"),
    *("next", "arrived", "workspace", "x", "weight", "weight_scale", "bias", "output"),
)

LARGEST = 127
_MOST_ROWS = 256  # in a block: as bytes they stay in a cache that a core has to itself
_HIGHEST_BITS = -0x7F7F7F80  # of all four bytes: adds 128 to each


def panel(machine: Machine) -> int:
    """Outputs that are computed together."""
    return 2 * machine.lanes


def block_rows(machine: Machine, rows: int) -> int:
    """Rows of a block, whole tiles."""
    tile = tile_rows(machine)
    return -(-min(rows, _MOST_ROWS) // tile) * tile


def workspace_size(machine: Machine, rows: int, depth: int) -> int:
    """Bytes that a thread needs for blocks of so many rows."""
    return -(-(panel(machine) * depth + rows * (depth + 8)) // 64) * 64


def _define_quantize_row(g: ByteGenerator) -> None:
    """A row as bytes -127 .. 127; its step, NaN where it is not finite, and 128 times the sum of its bytes."""
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
            total.value = total.value + number
            g.store_bytes(row, number, k)
        excess.store(g.sum_of_lanes(f, total.value) * 128)


def _define_pack_weights(g: ByteGenerator) -> None:
    """The panel of outputs at `column`, as `[group][four inputs][lane = output]`, 128 added."""
    with g.module.function("pack_weights", {"block": PTR, "column": I64, "packed": PTR}) as (f, address, column, packed):
        block = Fields(address, BLOCK)
        depth = block.integer("depth")
        with f.loop(0, panel(g.machine), g.lanes) as first, f.loop(0, depth, 4 * g.lanes) as k:
            source = block.pointer("weight").at((column + first) * depth + k, I8)
            rows = [source.at(depth * r, I8).load(g.words) for r in range(g.lanes)]
            place = packed.at(first * depth + k * g.lanes, I8)
            for n, word in enumerate(transposed(f, rows)):
                place.store(word ^ _HIGHEST_BITS, n * g.lanes)


def _define_tile(g: ByteGenerator) -> None:
    """A tile of rows, from `first` on, times a panel of outputs."""
    parameters = {"block": PTR, "packed": PTR, "bytes": PTR, "steps": PTR, "excess": PTR, "first": I64, "column": I64}
    with g.module.function("tile", parameters) as (f, address, packed, bytes_, steps, excess, first, column):
        block = Fields(address, BLOCK)
        depth, width = block.integer("depth"), block.integer("width")
        rows = [bytes_.at(depth * r, I8) for r in range(tile_rows(g.machine))]
        groups = [packed, packed.at(depth * g.lanes, I8)]
        sums = [[f.variable(f.number(g.words, 0)) for _ in groups] for _ in rows]
        with f.loop(0, depth // 4) as p:
            weights = [group.load(g.words, p * g.lanes) for group in groups]
            for row, row_sums in zip(rows, sums, strict=True):
                four = g.splat(f, row.load(I32, p))
                for total, weight in zip(row_sums, weights, strict=True):
                    total.value = g.dot(f, total.value, weight, four)

        def of_columns(name: str) -> list[Value]:
            return [block.pointer(name).load(g.floats, column + n * g.lanes) for n in range(2)]

        scales, biases, last = of_columns("weight_scale"), of_columns("bias"), block.integer("rows") - 1
        for r, row_sums in enumerate(sums):
            position = (first + r < last).where(first + r, last)
            place = block.pointer("output").at(position * width + column)
            step, taken_off = g.splat(f, steps.load(F32, r)), g.splat(f, excess.load(I32, r))
            for n, total in enumerate(row_sums):
                y = (total.value - taken_off).convert("sitofp", g.floats) * step * scales[n] + biases[n]
                place.store(y, n * g.lanes)


def _define_run_item(g: ByteGenerator) -> None:
    """One part of the outputs of one block of rows."""
    with g.module.function("run_item", {"block": PTR, "memory": PTR, "item": I64}) as (f, address, memory, item):
        block = Fields(address, BLOCK)
        parts, depth, size = block.integer("parts"), block.integer("depth"), block.integer("block_rows")
        tile, outputs = tile_rows(g.machine), panel(g.machine)
        first, last, part = item // parts * size, block.integer("rows") - 1, item % parts
        left = (last - first + tile) // tile * tile
        count = (left < size).where(left, size)
        bytes_ = memory.at(depth * outputs, I8)
        steps = bytes_.at(size * depth, I8)
        excess = steps.at(size)
        with f.loop(0, count) as r:
            position = (first + r < last).where(first + r, last)
            source = block.pointer("x").at(position * block.integer("x_stride"))
            f.call("quantize_row", source, depth, bytes_.at(r * depth, I8), steps.at(r), excess.at(r))
        panels = block.integer("width") // outputs
        start, stop = panels * part // parts * outputs, panels * (part + 1) // parts * outputs
        with f.loop(start, stop, outputs) as column:
            f.call("pack_weights", address, column, memory)
            with f.loop(0, count, tile) as r:
                f.call("tile", address, memory, bytes_.at(r * depth, I8), steps.at(r), excess.at(r), first + r, column)


def int8_linear_ir(machine: Machine) -> str:
    """The IR of a module that exports `void linear(void *block)`."""
    g = ByteGenerator(machine)
    for define in (_define_quantize_row, _define_pack_weights, _define_tile, _define_run_item):
        define(g)
    with g.module.function("int8_linear", {"block": PTR}, exported=True) as (f, address):
        block = Fields(address, BLOCK)
        memory = thread_memory(block)
        with each_item(block) as item:
            f.call("run_item", address, memory, item)
    return g.module.text()
