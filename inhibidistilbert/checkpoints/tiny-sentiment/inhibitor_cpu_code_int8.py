"""Code for int8 inhibitor attention: LLVM IR for one processor and one head size.

What it computes, and each rounding, is defined in `quantized.py`. A head is a piece of work: its visible keys
are put on their grid and packed, and then its queries pass by, a tile of rows at a time, each against all keys.

Packed, four bytes of a 32-bit lane are multiplied and added at once: keys lie as `[group][four channels][lane = key]`,
values as `[group][four keys][magnitudes, signs][lane = channel]`; a group is as many as a vector has lanes, and a
panel four groups of keys.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from .inhibitor_forms import NOTHING_PASSES
from .inhibitor_llvm_builder import F32, I1, I8, I16, I32, I64, PTR, Function, Module, Value, Variable, element, lanes, vector
from .inhibitor_llvm_jit import Machine
from .inhibitor_quantized import (
    FARTHEST,
    FINEST,
    LARGEST_16,
    LARGEST_OFFSET,
    LARGEST_OPENING,
    LARGEST_RAMP,
    LARGEST_SHIFT,
    LEVELS,
    PARTS,
    SMALLEST,
)
from .inhibitor_cpu_code_fields import Fields, each_item, thread_memory
from .inhibitor_cpu_code_panels import call, transposed

# The buffers of a thread, all but the last two for the head at hand.
BUFFERS = (
    "zeros",  # a row of them
    "key_rows",  # addresses of the visible keys' rows; from the last one on of `zeros`
    "value_rows",  # the same of their values, and of `zeros` where a key is dropped
    "prefix",  # how many of the first j keys are visible, for j = 0 .. N
    "origin",  # the least key of each channel
    "staging",  # a group of keys, not yet packed: rows of bytes
    "keys",  # packed
    "key_sums",  # minus the sum of each key
    "values",  # packed
    "value_sums",  # of all keys up to the end of each panel: [panel][channel]
    "tile",  # the queries of a tile: rows of bytes
    "fine",  # the same in `PARTS` of a step: rows of words
    "counts",  # how many keys each of them sees
    "baselines",  # the distance in `distances` at which the score of each of them is 0
    "scales",  # what each of their sums is multiplied with
    "offsets",  # m of each of them
    "distances",  # of a tile to the keys, times 2^h, shifted by a number for each row: [row][key]
    "shifts",  # z: [row][key]; for a gate its magnitude
    "flips",  # where z is negative the bits that change a sign, 1 or -1: [row][key]
)

# One block for all threads: what shapes, strides and options decide, and what changes from call to call. Strides are in
# elements: `_b` from sequence to sequence, `_h` head to head, `_l` token to token.
_SCALARS, _MASKS, _TENSORS = ("alpha", "beta", "gamma", "delta"), ("padding", "dropout"), ("query", "key", "value", "output")
BLOCK = (
    *("items", "parts", "threads", "workspace_size", "heads", "queries", "keys", "padded_keys", "root"),
    *("center", "inhibition", "causal"),  # the first two as `Form.numbers`
    "normalized",  # whether there is a delta
    *("at_" + name for name in BUFFERS),  # where each begins in the memory of a thread, in bytes
    *(name + "_h" for name in _SCALARS),
    *(name + part for name in _MASKS for part in ("_b", "_l")),
    *(name + part for name in _TENSORS for part in ("_b", "_h", "_l")),
    *("next", "arrived", "workspace", *_SCALARS, *_MASKS, *_TENSORS),
)

# The state of a thread: where its buffers are, and what it knows of the head it works on.
STATE = (
    *BUFFERS,
    *("real", "panels", "query_rows", "output_rows"),
    "clean",  # how many visible keys come before the first one that has a number that is not finite
    *("key_rate", "value_rate", "power", "factor", "shift", "scale"),
    *("end", "least", "most", "share"),  # of `quantized.Ramp`
)

# Adding it rounds a float32 of magnitude below 2^22 to a whole number, which then stands in the lowest bits.
ROUNDER, ROUNDER_BITS = 1.5 * 2.0**23, 0x4B400000
_ONES, _FLIP = 0x01010101, 0xFE
# So many distances may be added in 32 bits; a multiple of the vectors of a panel.
_CHUNK = 508
# How often two products of a byte and 1 or -1 may be added in 16 bits.
_ADDED_IN_16 = LARGEST_16 // (2 * LEVELS)


def tile_rows(machine: Machine) -> int:
    """Queries of a tile, each with two vectors of sums in registers."""
    return 8 if machine.registers >= 32 else 4


@lru_cache(maxsize=4096)
def workspace_layout(machine: Machine, size: int, keys: int) -> tuple[tuple[int, ...], int, int]:
    """Where each of `BUFFERS` is in a thread's memory, in bytes; how much that is; and how many keys there are in panels."""
    lane, rows = machine.lanes, tile_rows(machine)
    panels = math.ceil(keys / (4 * lane))
    padded = panels * 4 * lane
    sizes = {
        **{"zeros": 4 * size, "key_rows": 8 * padded, "value_rows": 8 * padded, "prefix": 4 * (keys + 1)},
        **{"origin": 4 * size, "staging": lane * _staging_stride(lane, size), "keys": padded * size, "key_sums": 4 * padded},
        **{"values": 2 * padded * size, "value_sums": 4 * panels * size, "tile": rows * size, "fine": 4 * rows * size},
        **{"counts": 8 * rows, "baselines": 4 * rows, "scales": 4 * rows, "offsets": 4 * rows},
        **{"distances": 4 * rows * padded, "shifts": rows * padded, "flips": rows * padded},
    }
    places, end = [], -(-8 * len(STATE) // 64) * 64
    for name in BUFFERS:
        places.append(end)
        end += -(-sizes[name] // 64) * 64
    return tuple(places), end, padded


def _staging_stride(lane: int, size: int) -> int:
    """Bytes from row to row, whole vectors."""
    return math.ceil(size / (4 * lane)) * 4 * lane


class ByteGenerator:
    """A module for one machine, that computes with four bytes of each 32-bit lane at a time."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.lanes = machine, machine.lanes
        self.module = Module()
        self.floats, self.words = vector(machine.lanes, F32), vector(machine.lanes, I32)
        self.halves, self.bytes = vector(2 * machine.lanes, I16), vector(4 * machine.lanes, I8)
        # Whether one instruction adds four products of bytes.
        self.multiplies_bytes = machine.has({4: "i8mm", 8: "avxvnni", 16: "avx512vnni"}[machine.lanes])

    def splat(self, f: Function, scalar: Value) -> Value:
        return f.broadcast(scalar, self.lanes)

    def fold(self, f: Function, x: Value, combine: Callable[[Value, Value], Value]) -> Value:
        """All lanes of x combined into one."""
        half = lanes(x.type)
        while half > 1:
            half //= 2
            low, high = (f.shuffle(x, x, range(start, start + half)) for start in (0, half))
            x = combine(low, high)
        return f.emit(element(x.type), f"extractelement {x.type} {x.text}, i32 0")

    def sum_of_lanes(self, f: Function, x: Value) -> Value:
        return self.fold(f, x, lambda a, b: a + b)

    def any_lane(self, f: Function, condition: Value) -> Value:
        return f.intrinsic(f"llvm.vector.reduce.or.v{self.lanes}i1", I1, condition)

    def limited(self, f: Function, x: Value, least: int, most: int) -> Value:
        """Words saturated."""
        x = (x < least).where(f.number(self.words, least), x)
        return (x > most).where(f.number(self.words, most), x)

    def rounded(self, x: Value) -> Value:
        """The bits of x + ROUNDER: the nearest whole number, ties to even, is in the lowest bits of each lane."""
        return (x + ROUNDER).convert("bitcast", self.words if lanes(x.type) else I32)

    def store_bytes(self, place: Value, bits: Value, index: Any) -> None:
        """The lowest byte of every lane."""
        place.store(bits.convert("trunc", vector(self.lanes, I8)), index)

    def bytewise(self, f: Function, name: str, a: Value, b: Value) -> Value:
        """`umax` or `umin` of the bytes of two vectors of words."""
        a, b = (x.convert("bitcast", self.bytes) for x in (a, b))
        return f.intrinsic(f"llvm.{name}.v{4 * self.lanes}i8", self.bytes, a, b).convert("bitcast", self.words)

    def dot(self, f: Function, total: Value, a: Value, b: Value, small: bool = False) -> Value:
        """total + the sum of the four products in each word: bytes of `a` unsigned, those of `b` signed, above -128.

        small: those of `b` are within -64 .. 64.
        """
        if self.multiplies_bytes and self.lanes >= 8:
            return f.intrinsic(f"llvm.x86.avx512.vpdpbusd.{32 * self.lanes}", self.words, total, a, b)
        if self.multiplies_bytes:
            a, b = (x.convert("bitcast", self.bytes) for x in (a, b))
            return f.intrinsic("llvm.aarch64.neon.usdot.v4i32.v16i8", self.words, total, a, b)
        if self.lanes >= 8 and small:
            return total + self.pair_sums(f, self.byte_pair_sums(f, a, b), f.number(self.halves, 1))
        a, b = (x.convert("bitcast", self.halves) for x in (a, b))
        even, odd = (a & 0xFF, shifted_right(b << 8, 8)), (a >> 8, shifted_right(b, 8))
        return total + self.pair_sums(f, *even) + self.pair_sums(f, *odd)

    def byte_pair_sums(self, f: Function, a: Value, b: Value) -> Value:
        """Products of bytes, neighbours added in 16 bits; on x86 alone, with at least 256 bits."""
        name = {8: "llvm.x86.avx2.pmadd.ub.sw", 16: "llvm.x86.avx512.pmaddubs.w.512"}[self.lanes]
        return f.intrinsic(name, self.halves, *(x.convert("bitcast", self.bytes) for x in (a, b)))

    def pair_sums(self, f: Function, a: Value, b: Value) -> Value:
        """Products of 16 bits, neighbours added in 32."""
        if self.lanes >= 8:
            name = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}[self.lanes]
            return f.intrinsic(name, self.words, a, b)
        words = (a * b).convert("bitcast", self.words)
        return shifted_right(words << 16, 16) + shifted_right(words, 16)


def shifted_right(x: Value, by: int) -> Value:
    """The sign comes in at the top."""
    return x.function.emit(x.type, f"ashr {x.type} {x.text}, {x.function.number(x.type, by).text}")


class Generator(ByteGenerator):
    """A module for one head size, a multiple of the machine's lanes."""

    def __init__(self, machine: Machine, size: int) -> None:
        super().__init__(machine)
        self.size, self.groups = size, size // machine.lanes  # groups of channels

    @contextmanager
    def routine(self, name: str, **parameters: str) -> Iterator[list[Any]]:
        """Opens a function of the block, the thread's state and `parameters`."""
        with self.module.function(name, {"block": PTR, "state": PTR} | parameters) as (f, block, state, *others):
            yield [f, Fields(block, BLOCK), Fields(state, STATE), *others]


# A head: which keys, which grids


def _head_of(block: Fields, tensor: str, batch: Value, head: Value) -> Value:
    return block.pointer(tensor).at(batch * block.integer(f"{tensor}_b") + head * block.integer(f"{tensor}_h"))


def _define_index_keys(g: Generator) -> None:
    """Where the rows of the visible keys and of their values are, in order."""
    with g.routine("index_keys", batch=I64, head=I64) as (f, block, state, batch, head):
        key, value = (_head_of(block, name, batch, head) for name in ("key", "value"))
        key_rows, value_rows, zeros = (state.pointer(name) for name in ("key_rows", "value_rows", "zeros"))
        visible = f.variable(f.integer(0))

        def kept(mask: str, j: Value) -> Value:
            place = batch * block.integer(f"{mask}_b") + j * block.integer(f"{mask}_l")
            return block.pointer(mask).load(I8, place).differs(0)

        with f.loop(0, block.integer("keys")) as j:
            state.pointer("prefix").store(visible.value.convert("trunc", I32), j)
            key_rows.store(key.at(j * block.integer("key_l")), visible.value)
            value_rows.store(value.at(j * block.integer("value_l")), visible.value)
            with f.when(block.flag("dropout")), f.when(kept("dropout", j).equals(0)):
                value_rows.store(zeros, visible.value)
            real = f.variable(f.integer(1))
            with f.when(block.flag("padding")):
                real.value = kept("padding", j).convert("zext", I64)
            visible.value = visible.value + real.value
        state.pointer("prefix").store(visible.value.convert("trunc", I32), block.integer("keys"))
        state.set("real", visible.value)
        with f.loop(visible.value, block.integer("padded_keys")) as j:
            key_rows.store(zeros, j)
            value_rows.store(zeros, j)


def _value(g: Generator, f: Function, block: Fields, x: Value) -> Value:
    """Unsigned inhibition is the signed one of the positive parts. NaN stays NaN."""
    zero = f.number(g.floats, 0.0)
    return block.flag("inhibition").where(x, f.larger(zero, x))


def _define_measure_keys(g: Generator) -> None:
    """The least key of each channel; the widest channel and the largest value, NaN where one of them is not finite."""
    with g.routine("measure_keys", spread=PTR, reach=PTR) as (f, block, state, spread, reach):
        zero = f.number(g.floats, 0.0)
        first = state.pointer("key_rows").load(PTR)
        least = [f.variable(first.load(g.floats, k)) for k in range(0, g.size, g.lanes)]
        most = [f.variable(x.value) for x in least]
        largest, key_flaw, value_flaw = f.variable(zero), f.variable(zero), f.variable(zero)
        with f.loop(0, state.integer("real")) as j:
            key, value = (state.pointer(name).load(PTR, j) for name in ("key_rows", "value_rows"))
            for n in range(g.groups):
                x, v = key.load(g.floats, n * g.lanes), _value(g, f, block, value.load(g.floats, n * g.lanes))
                least[n].value, most[n].value = f.smaller(x, least[n].value), f.larger(x, most[n].value)
                largest.value = f.larger(f.absolute(v), largest.value)
                key_flaw.value = f.fma(x, zero, key_flaw.value)
                value_flaw.value = f.fma(v, zero, value_flaw.value)
        widest = zero
        for n in range(g.groups):
            state.pointer("origin").store(least[n].value, n * g.lanes)
            widest = f.larger(most[n].value - least[n].value, widest)
        spread.store(g.fold(f, widest, f.larger) + g.sum_of_lanes(f, key_flaw.value))
        reach.store(g.fold(f, largest.value, f.larger) + g.sum_of_lanes(f, value_flaw.value))


def _define_set_aside(g: Generator) -> None:
    """Keys that are not finite, or whose values are not, make way for another key without a value."""
    with g.routine("set_aside") as (f, block, state):
        key_rows, value_rows, zeros = (state.pointer(name) for name in ("key_rows", "value_rows", "zeros"))
        substitute, real = f.variable(zeros), state.integer("real")

        def is_flawed(j: Value) -> Value:
            flaw, zero = f.number(g.floats, 0.0), f.number(g.floats, 0.0)
            for k in range(0, g.size, g.lanes):
                flaw = f.fma(key_rows.load(PTR, j).load(g.floats, k), zero, flaw)
                flaw = f.fma(_value(g, f, block, value_rows.load(PTR, j).load(g.floats, k)), zero, flaw)
            return g.any_lane(f, flaw.is_nan())

        with f.loop(0, real) as j, f.when(is_flawed(j).equals(0)):
            substitute.value = key_rows.load(PTR, j)
        clean = f.variable(real)
        with f.loop(0, real) as j, f.when(is_flawed(j)):
            key_rows.store(substitute.value, j)
            value_rows.store(zeros, j)
            clean.value = (j < clean.value).where(j, clean.value)
        state.set("clean", clean.value)


def _define_choose_grids(g: Generator) -> None:
    """The steps of both grids, and what follows from them and from the head's scalars."""
    with g.routine("choose_grids", head=I64) as (f, block, state, head):
        spread, reach = state.place("power"), state.place("shift")  # not yet in use
        call(f, block, state, "measure_keys", spread, reach)
        state.set("clean", state.integer("real"))
        with f.when((spread.load(F32) + reach.load(F32)).is_nan()):
            call(f, block, state, "set_aside")
            call(f, block, state, "measure_keys", spread, reach)
        alpha, beta, gamma = (
            block.pointer(name).load(F32, head * block.integer(f"{name}_h")) for name in ("alpha", "beta", "gamma")
        )
        spread, reach, zero, one = spread.load(F32), reach.load(F32), f.number(F32, 0.0), f.number(F32, 1.0)
        value_step = (reach < SMALLEST).where(one, reach * (1 / LEVELS))
        gate = _is_gate(block)
        score_step = value_step * gate.where(f.number(F32, 0.5), one)
        unit_slope = gamma * block.number("root") / score_step
        finest, widest = f.absolute(unit_slope) * FINEST, one / spread * LEVELS
        least = (gamma < 0.0).where(f.number(F32, -1 / FINEST), f.number(F32, 1 / FINEST))
        key_rate = (finest < widest).where(finest, widest)
        slope = (finest < widest).where(least, unit_slope / key_rate)
        shift = alpha / score_step / slope

        power = one
        for exponent in range(1, LARGEST_SHIFT + 1):
            power = (f.absolute(slope) * FINEST >= 2.0**exponent).where(f.number(F32, 2.0**exponent), power)
        factor = slope * (LARGEST_16 + 1.0) / power
        factor = f.smaller(f.larger(factor, f.number(F32, -LARGEST_16)), f.number(F32, LARGEST_16))
        state.set("key_rate", key_rate)
        state.set("value_rate", one / value_step)
        state.set("power", power)
        state.set("factor", g.rounded(factor) - ROUNDER_BITS)
        state.set("shift", shift)
        state.set("scale", beta * score_step + zero * (slope + shift + value_step))
        with f.when(block.flag("normalized")):
            delta = block.pointer("delta").load(F32, head * block.integer("delta_h"))
            rise = delta * (slope * score_step / power)
            state.set("scale", state.number("scale") + zero * rise)
            _set_ramp(f, block, state, rise, slope)


def _is_gate(block: Fields) -> Value:
    return block.integer("inhibition").equals(2)


def _set_ramp(f: Function, block: Fields, state: Fields, rise: Value, slope: Value) -> None:
    zero, gate, falling, down = f.number(F32, 0.0), _is_gate(block), slope < 0.0, rise < 0.0
    start = gate.where(f.number(F32, 0.5), f.number(F32, 1.0))
    steps = f.smaller(f.larger(f.absolute(start / rise), f.number(F32, 1.0)), f.number(F32, LARGEST_RAMP))
    steps = f.intrinsic("llvm.rint.f32", F32, steps)
    end = down.where(zero - steps, steps)
    closing = gate | (down ^ falling).equals(0)
    bound = f.smaller(closing.where(steps, f.number(F32, LARGEST_OPENING)), f.number(F32, LARGEST_OPENING))
    state.set("end", end.convert("fptosi", I32))
    state.set("least", (falling | gate).where(zero - bound, zero).convert("fptosi", I32))
    state.set("most", (falling.equals(0) | gate).where(bound, zero).convert("fptosi", I32))
    state.set("share", start / end)


# Packing


def _power(state: Fields) -> Value:
    """2^h as an i32."""
    return state.number("power").convert("fptosi", I32)


def _define_pack_keys(g: Generator) -> None:
    """The keys of the group at `first`."""
    stride = _staging_stride(g.lanes, g.size)
    with g.routine("pack_keys", first=I64) as (f, _, state, first):
        staging, origin = state.pointer("staging"), state.pointer("origin")
        rate = g.splat(f, state.number("key_rate"))
        with f.loop(0, g.lanes) as r:
            row = state.pointer("key_rows").load(PTR, first + r)
            for k in range(0, g.size, g.lanes):
                steps = (row.load(g.floats, k) - origin.load(g.floats, k)) * rate
                g.store_bytes(staging, g.rounded(steps), r * stride + k)
        minus = g.splat(f, (f.number(I32, 256) - _power(state)) * _ONES)
        packed, total = state.pointer("keys").at(first * g.size, I8), f.number(g.words, 0)
        for k in range(0, g.size, 4 * g.lanes):
            rows = [staging.at(r * stride + k, I8).load(g.words) for r in range(g.lanes)]
            for n, word in enumerate(transposed(f, rows)[: (g.size - k) // 4]):
                packed.store(word, (k // 4 + n) * g.lanes)
                total = g.dot(f, total, word, minus, small=True)
        state.pointer("key_sums").store(total, first)


def _define_pack_values(g: Generator) -> None:
    """The values of all keys, and their sums."""
    with g.routine("pack_values") as (f, block, state):
        rows, packed, sums = (state.pointer(name) for name in ("value_rows", "values", "value_sums"))
        rate = g.splat(f, state.number("value_rate"))
        zero = f.number(g.words, 0)
        totals = [f.variable(zero) for _ in range(g.groups)]
        padded = block.integer("padded_keys")
        with f.loop(0, padded, 4) as j:
            # The order in which z leaves the narrowing instructions, which interleave four vectors by four lanes.
            position = j % (4 * g.lanes) // 4
            key = j - j % (4 * g.lanes) + position % 4 * g.lanes + position // 4 * 4
            four = [rows.load(PTR, key + n) for n in range(4)]
            for n in range(g.groups):
                place = packed.at((padded * n + j) * (2 * g.lanes), I8)
                magnitudes, signs = zero, f.number(g.words, _ONES)
                for byte, row in enumerate(four):
                    x = _value(g, f, block, row.load(g.floats, n * g.lanes)) * rate
                    number = g.rounded(x) - ROUNDER_BITS
                    totals[n].value = totals[n].value + number
                    negative = number < 0
                    magnitudes = magnitudes | (negative.where(zero - number, number) << 8 * byte)
                    signs = signs | negative.where(f.number(g.words, 0xFE << 8 * byte), zero)
                place.store(magnitudes)
                place.store(signs, g.lanes)
            # The last sum within a panel stays.
            for n in range(g.groups):
                sums.store(totals[n].value, j // (4 * g.lanes) * g.size + n * g.lanes)


# A tile of queries


def _define_fetch_queries(g: Generator) -> None:
    """The tile at `first` as rows of bytes, how many keys each row sees, and what belongs to it."""
    with g.routine("fetch_queries", first=I64) as (f, block, state, first):
        queries, real = block.integer("queries"), state.integer("real")
        seen = f.variable(f.integer(1))
        with f.loop(0, tile_rows(g.machine)) as r:
            position = (first + r < queries).where(first + r, queries - 1)
            count = f.variable(real)
            with f.when(block.flag("causal")):
                past = position + 1 + block.integer("keys") - queries
                past = (past > 0).where(past, f.integer(0))
                count.value = state.pointer("prefix").load(I32, past).convert("zext", I64)
            state.pointer("counts").store(count.value, r)
            seen.value = (count.value > seen.value).where(count.value, seen.value)
            row = state.pointer("query_rows").at(position * block.integer("query_l"))
            call(f, block, state, "fetch_query", row, r)
        state.set("panels", (seen.value + (4 * g.lanes - 1)) // (4 * g.lanes))


def _define_fetch_query(g: Generator) -> None:
    """The query at `row` as row r of the tile."""
    with g.routine("fetch_query", row=PTR, r=I64) as (f, block, state, row, r):
        tile, origin = state.pointer("tile").at(r * g.size, I8), state.pointer("origin")
        rate = g.splat(f, state.number("key_rate"))
        zero, nothing, flaw = f.number(g.floats, 0.0), f.number(g.words, 0), f.variable(f.number(g.floats, 0.0))

        def steps(k: int, least: float, most: float) -> Value:
            x = row.load(g.floats, k)
            flaw.value = f.fma(x, zero, flaw.value)
            x = (x - origin.load(g.floats, k)) * rate
            return f.smaller(f.larger(x, f.number(g.floats, least)), f.number(g.floats, most))

        centered, total = block.flag("center"), f.variable(nothing)
        with f.when(centered):
            fine = state.pointer("fine").at(r * g.size, I32)
            for k in range(0, g.size, g.lanes):
                x = steps(k, 0.0, LEVELS)
                on_grid = g.rounded(x)
                total.value = total.value + (on_grid - ROUNDER_BITS)
                g.store_bytes(tile, on_grid, k)
                fine.store(g.rounded(x * float(PARTS)), k)
        with f.when(centered.equals(0)):
            for k in range(0, g.size, g.lanes):
                number = g.rounded(steps(k, -FARTHEST, FARTHEST)) - ROUNDER_BITS
                on_grid = g.limited(f, number, 0, LEVELS)
                beyond = number - on_grid
                total.value = total.value + on_grid - (beyond < 0).where(nothing - beyond, beyond)
                g.store_bytes(tile, on_grid, k)
        state.pointer("baselines").store(g.sum_of_lanes(f, total.value).convert("sitofp", F32), r)
        sees_flaw = state.pointer("counts").load(I64, r) > state.integer("clean")
        flawed = g.any_lane(f, flaw.value.is_nan()) | sees_flaw
        state.pointer("scales").store(flawed.where(f.number(F32, math.nan), state.number("scale")), r)


def _tile_loop(
    g: Generator,
    f: Function,
    rows: list[Value],
    steps: Value,
    sums: list[list[Variable]],
    columns: Callable[[Value], list[tuple[Value, Value]]],
    combine: str,
    factor: Value,
    flips: list[Value] | None = None,
) -> None:
    """Adds to `sums[row][column]` `factor` times what `combine` makes of four bytes of the row and of the column, times
    their weights, 1 or -1, whose sign the row's `flips` change.

    rows, flips: where each row's bytes begin. columns: from the number of a step to the vectors of bytes and of weights, all
    weights 1 unless the factor, an i32 up to 64, is 1.
    """

    def step(p: Value, add: Callable[[int, int, Value, Value], None]) -> None:
        loaded = columns(p)
        for r, row in enumerate(rows):
            four = g.splat(f, row.load(I32, p))
            flip = None if flips is None else g.splat(f, flips[r].load(I32, p))
            for column, (x, weights) in enumerate(loaded):
                weights = weights if flip is None else weights ^ flip
                add(r, column, g.bytewise(f, combine, x, four), weights)

    if g.lanes == 4 or g.multiplies_bytes:
        with f.loop(0, steps) as p:

            def add(r: int, column: int, x: Value, weights: Value) -> None:
                sums[r][column].value = g.dot(f, sums[r][column].value, x, weights * g.splat(f, factor), small=True)

            step(p, add)
        return
    halves = [[f.variable(f.number(g.halves, 0)) for _ in row] for row in sums]
    factors = f.broadcast(factor.convert("trunc", I16), 2 * g.lanes)
    with f.loop(0, steps, _ADDED_IN_16) as first:
        last = first + _ADDED_IN_16
        for x in itertools.chain(*halves):
            x.value = f.number(g.halves, 0)
        with f.loop(first, (last < steps).where(last, steps)) as p:

            def add_pairs(r: int, column: int, x: Value, weights: Value) -> None:
                halves[r][column].value = halves[r][column].value + g.byte_pair_sums(f, x, weights)

            step(p, add_pairs)
        for x, total in zip(itertools.chain(*halves), itertools.chain(*sums), strict=True):
            total.value = total.value + g.pair_sums(f, x.value, factors)


def _define_score_groups(g: Generator) -> None:
    """Shifted distances of the tile to the two groups of keys at `first`."""
    with g.routine("score_groups", first=I64) as (f, block, state, first):
        rows = [state.pointer("tile").at(r * g.size, I8) for r in range(tile_rows(g.machine))]
        groups = [state.pointer("keys").at((first + n * g.lanes) * g.size, I8) for n in range(2)]
        initial = [state.pointer("key_sums").load(g.words, first + n * g.lanes) for n in range(2)]
        sums = [[f.variable(x) for x in initial] for _ in rows]
        ones = f.number(g.words, _ONES)

        def columns(p: Value) -> list[tuple[Value, Value]]:
            return [(group.load(g.words, p * g.lanes), ones) for group in groups]

        _tile_loop(g, f, rows, f.integer(g.size // 4), sums, columns, "umax", _power(state) * 2)
        place = state.pointer("distances").at(first, I32)
        for r, row_sums in enumerate(sums):
            for n, total in enumerate(row_sums):
                place.at(block.integer("padded_keys") * r, I32).store(total.value, n * g.lanes)


def _over_panels(
    g: Generator, f: Function, row: Sequence[Value], hidden: Value, work: Callable[[Value, list[Value]], None]
) -> None:
    """Calls `work` for each panel, with its first key and the four vectors of its distances.

    row: its distances, how many keys it sees, and from which key to which, whole panels. hidden: a vector that stands in
    the place of what it does not see.
    """
    distances, count, first, end = row
    panel = 4 * g.lanes
    whole = count - count % panel
    whole = (whole < end).where(whole, end)
    whole = (whole < first).where(first, whole)
    with f.loop(first, whole, panel) as j:
        work(j, [distances.load(g.words, j + n * g.lanes) for n in range(4)])
    with f.loop(whole, end, panel) as j:
        four = []
        for n in range(4):
            left = g.splat(f, (count - j - n * g.lanes).convert("trunc", I32))
            seen = f.lane_numbers(g.lanes) < left
            four.append(seen.where(distances.load(g.words, j + n * g.lanes), hidden))
        work(j, four)


def _in_panels(g: Generator, count: Value) -> Value:
    """The keys of as many panels as hold `count`."""
    return (count + (4 * g.lanes - 1)) // (4 * g.lanes) * (4 * g.lanes)


def _sum_over_keys(
    g: Generator, f: Function, distances: Value, count: Value, hidden: Value, x: Callable[[Value], Value]
) -> Value:
    """The sum of `x` of the first `count` distances, an i64; of `hidden` it is 0."""
    sum_, end = f.variable(f.integer(0)), _in_panels(g, count)
    with f.loop(0, end, _CHUNK * g.lanes) as first:
        total, last = f.variable(f.number(g.words, 0)), first + _CHUNK * g.lanes

        def add(_: Value, four: list[Value]) -> None:
            a, b, c, d = (x(each) for each in four)
            total.value = total.value + ((a + b) + (c + d))

        _over_panels(g, f, (distances, count, first, (last < end).where(last, end)), hidden, add)
        wide = total.value.convert("sext", vector(g.lanes, I64))
        sum_.value = sum_.value + g.fold(f, wide, lambda a, b: a + b)
    return sum_.value


def _nearest_key(g: Generator, f: Function, distances: Value, count: Value) -> Value:
    """The first of the nearest of the first `count` keys, an i32; 0 where there are none."""
    far = f.number(g.words, 1 << 30)
    least = f.variable(far)

    def smaller(a: Value, b: Value) -> Value:
        return (a < b).where(a, b)

    def compare(_: Value, four: list[Value]) -> None:
        a, b, c, d = four
        least.value = smaller(least.value, smaller(smaller(a, b), smaller(c, d)))

    row = (distances, count, f.integer(0), _in_panels(g, count))
    _over_panels(g, f, row, far, compare)
    nearest, place = g.splat(f, g.fold(f, least.value, smaller)), f.variable(far)

    def find(j: Value, four: list[Value]) -> None:
        numbers = f.lane_numbers(g.lanes) + g.splat(f, j.convert("trunc", I32))
        a, b, c, d = (x.equals(nearest).where(numbers + n * g.lanes, far) for n, x in enumerate(four))
        place.value = smaller(place.value, smaller(smaller(a, b), smaller(c, d)))

    _over_panels(g, f, row, far, find)
    return (count > 0).where(g.fold(f, place.value, smaller), f.number(I32, 0))


def _fine_distance(g: Generator, f: Function, state: Fields, query: Value, key: Value) -> Value:
    """Of a query in parts of the grid's steps to a key as it comes: an i32."""
    rate, total = g.splat(f, state.number("key_rate")), f.number(g.words, 0)
    for k in range(0, g.size, g.lanes):
        steps = (key.load(g.floats, k) - state.pointer("origin").load(g.floats, k)) * rate
        a, b = query.load(g.words, k), g.rounded(steps * float(PARTS))
        total = total + (a > b).where(a - b, b - a)
    return g.sum_of_lanes(f, total)


def _define_find_offsets(g: Generator) -> None:
    """m of each row of the tile, and what its sums are divided by.

    One step for all rows after the other: a row's steps wait for each other.
    """
    with g.routine("find_offsets") as (f, block, state):
        baselines, offsets, scales = (state.pointer(name) for name in ("baselines", "offsets", "scales"))
        unit, padded = f.number(F32, 1.0) / state.number("power"), block.integer("padded_keys")

        def rows() -> Iterator[tuple[Value, Value, Value]]:
            with f.loop(0, tile_rows(g.machine)) as r:
                yield r, state.pointer("counts").load(I64, r), state.pointer("distances").at(r * padded, I32)

        with f.when(block.integer("center").equals(1)):
            for r, count, distances in rows():
                number = (count > 1).where(count, f.integer(1)).convert("sitofp", F32)
                total = _sum_over_keys(g, f, distances, count, f.number(g.words, 0), lambda x: x)
                baselines.store(total.convert("sitofp", F32) * unit / number, r)
        with f.when(block.integer("center").equals(2)):
            for r, count, distances in rows():
                offsets.store(_nearest_key(g, f, distances, count), r)
            for r, _, _ in rows():
                key = state.pointer("key_rows").load(PTR, offsets.load(I32, r).convert("zext", I64))
                distance = _fine_distance(g, f, state, state.pointer("fine").at(r * g.size, I32), key)
                baselines.store(distance.convert("sitofp", F32) * (1 / PARTS) + baselines.load(F32, r), r)
        for r, _, _ in rows():
            offset = (baselines.load(F32, r) - state.number("shift")) * state.number("power")
            offset = f.smaller(f.larger(offset, f.number(F32, -LARGEST_OFFSET)), f.number(F32, LARGEST_OFFSET))
            offsets.store(f.intrinsic("llvm.rint.f32", F32, offset).convert("fptosi", I32), r)
        with f.when(block.flag("normalized")):
            least, most = (g.splat(f, state.place(name).load(I32)) for name in ("least", "most"))
            for r, count, distances in rows():
                offset = g.splat(f, offsets.load(I32, r))

                def inside(x: Value, offset: Value = offset) -> Value:
                    x = x - offset
                    x = (x < least).where(least, x)
                    return (x > most).where(most, x)

                end = count * state.place("end").load(I32).convert("sext", I64)
                opened = (end - _sum_over_keys(g, f, distances, count, offset, inside)).convert("sitofp", F32)
                scales.store(scales.load(F32, r) / (opened * state.number("share") + NOTHING_PASSES), r)


def _narrowed(g: Generator, f: Function, four: list[Value], factor: Value, gate: bool) -> list[list[Value]]:
    """z from T: four vectors saturated to 16 bits, times `factor` / 2^15, rounded, saturated to 0 .. 255; of a gate the
    magnitudes, and the flips of their signs.

    In registers of more than 128 bits interleaved as the instructions do it.
    """
    if g.lanes == 4:
        return [_narrowed_plainly(g, f, x, factor, gate) for x in four]
    infix = {8: "avx2", 16: "avx512"}[g.lanes]
    suffix = {8: "", 16: ".512"}[g.lanes]
    factor = f.broadcast(factor.convert("trunc", I16), 2 * g.lanes)
    pairs = []
    for a, b in (four[:2], four[2:]):
        pair = f.intrinsic(f"llvm.x86.{infix}.packssdw{suffix}", g.halves, a, b)
        pairs.append(f.intrinsic(f"llvm.x86.{infix}.pmul.hr.sw{suffix}", g.halves, pair, factor))
    magnitudes = [(x < 0).where(f.number(g.halves, 0) - x, x) for x in pairs] if gate else pairs
    narrowed = [f.intrinsic(f"llvm.x86.{infix}.packuswb{suffix}", g.bytes, *magnitudes)]
    if gate:
        narrowed.append(_flips(f, f.intrinsic(f"llvm.x86.{infix}.packsswb{suffix}", g.bytes, *pairs)))
    return [narrowed]


def _narrowed_plainly(g: Generator, f: Function, x: Value, factor: Value, gate: bool) -> list[Value]:
    product = g.limited(f, x, -LARGEST_16 - 1, LARGEST_16) * g.splat(f, factor) + (1 << 14)
    z = shifted_right(product, 15)
    bytes_ = vector(g.lanes, I8)
    if not gate:
        return [g.limited(f, z, 0, LEVELS).convert("trunc", bytes_)]
    magnitude = g.limited(f, (z < 0).where(f.number(g.words, 0) - z, z), 0, LEVELS)
    return [magnitude.convert("trunc", bytes_), _flips(f, z).convert("trunc", bytes_)]


def _flips(f: Function, z: Value) -> Value:
    return (z < 0).where(f.number(z.type, _FLIP), f.number(z.type, 0))


def _define_inhibit(g: Generator, gate: bool) -> None:
    """z of the tile from its distances."""
    with g.routine("gated_inhibit" if gate else "inhibit") as (f, block, state):
        padded, end = block.integer("padded_keys"), state.integer("panels") * (4 * g.lanes)
        factor = state.place("factor").load(I32)
        # No value exceeds the largest one: an invisible key adds nothing.
        farthest = g.splat(f, (factor < 0).where(f.number(I32, -(1 << 20)), f.number(I32, 1 << 20)))
        with f.loop(0, tile_rows(g.machine)) as r:
            count, distances = state.pointer("counts").load(I64, r), state.pointer("distances").at(r * padded, I32)
            places = [state.pointer(name).at(r * padded, I8) for name in (("shifts", "flips") if gate else ("shifts",))]
            offset = g.splat(f, state.pointer("offsets").load(I32, r))

            def narrow(j: Value, four: list[Value]) -> None:
                for n, narrowed in enumerate(_narrowed(g, f, [x - offset for x in four], factor, gate)):
                    for place, x in zip(places, narrowed, strict=True):
                        place.at(j, I8).store(x, n * lanes(x.type))

            _over_panels(g, f, (distances, count, f.integer(0), end), farthest + offset, narrow)


def _define_sum_values(g: Generator, gate: bool, width: int) -> None:
    """`width` groups of channels of the tile at `first`, from group `group` on."""
    with g.routine(f"{'gated_' if gate else ''}sum_values_{width}", first=I64, group=I64) as (f, block, state, first, group):
        padded, panels = block.integer("padded_keys"), state.integer("panels")
        rows, flips = (
            [state.pointer(x).at(padded * r, I8) for r in range(tile_rows(g.machine))] for x in ("shifts", "flips")
        )
        groups = [state.pointer("values").at((group + n) * padded * (2 * g.lanes), I8) for n in range(width)]
        sums = [[f.variable(f.number(g.words, 0)) for _ in groups] for _ in rows]

        def columns(p: Value) -> list[tuple[Value, Value]]:
            places = [place.at(p * (2 * g.lanes), I32) for place in groups]
            return [(place.load(g.words), place.load(g.words, g.lanes)) for place in places]

        _tile_loop(g, f, rows, panels * g.lanes, sums, columns, "umin", f.number(I32, 1), flips if gate else None)
        totals = state.pointer("value_sums").at((panels - 1) * g.size + group * g.lanes, I32)
        queries = block.integer("queries")
        for r, row_sums in enumerate(sums):
            position = (first + r < queries).where(first + r, queries - 1)
            place = state.pointer("output_rows").at(position * block.integer("output_l") + group * g.lanes)
            scale = g.splat(f, state.pointer("scales").load(F32, r))
            for n, total in enumerate(row_sums):
                passed = totals.load(g.words, n * g.lanes) - total.value
                place.store(passed.convert("sitofp", g.floats) * scale, n * g.lanes)


def _define_run_tile(g: Generator) -> None:
    with g.routine("run_tile", first=I64) as (f, block, state, first):
        call(f, block, state, "fetch_queries", first)
        with f.loop(0, state.integer("panels") * (4 * g.lanes), 2 * g.lanes) as key:
            call(f, block, state, "score_groups", key)
        call(f, block, state, "find_offsets")
        gate = _is_gate(block)
        for prefix, chosen in (("gated_", gate), ("", gate.equals(0))):
            with f.when(chosen):
                call(f, block, state, f"{prefix}inhibit")
                for group in range(0, g.groups, 2):
                    call(f, block, state, f"{prefix}sum_values_{min(2, g.groups - group)}", first, f.integer(group))


# The work of a thread


def _define_prefetch(g: Generator) -> None:
    """Rows that are needed soon: of the output those of the tile at `first`, and as many, with every tile, of what this
    thread will most likely read at the next item. Where memory is far, small heads wait for it half of the time.
    """
    with g.routine("prefetch", item=I64, first=I64) as (f, block, _, item, first):
        parts, heads = block.integer("parts"), block.integer("heads")

        def rows(tensor: str, item: Value, end: str) -> None:
            head = _head_of(block, tensor, item // heads, item % heads)
            last, end = first + tile_rows(g.machine), block.integer(end)
            with f.loop(first, (last < end).where(last, end)) as token:
                row = head.at(token * block.integer(f"{tensor}_l"))
                for k in range(0, g.size, 16):
                    f.prefetch(row.at(k))

        rows("output", item // parts, "queries")
        following = item + block.integer("threads")
        with f.when((following < block.integer("items")) & parts.equals(1)):
            for tensor, end in (("query", "queries"), ("key", "keys"), ("value", "keys")):
                rows(tensor, following, end)


def _define_run_item(g: Generator) -> None:
    """One part of the queries of one head."""
    with g.routine("run_item", item=I64) as (f, block, state, item):
        parts, heads, rows = block.integer("parts"), block.integer("heads"), tile_rows(g.machine)
        part, batch, head = item % parts, item // parts // heads, item // parts % heads
        call(f, block, state, "index_keys", batch, head)
        state.set("query_rows", _head_of(block, "query", batch, head))
        state.set("output_rows", _head_of(block, "output", batch, head))
        tiles = (block.integer("queries") + (rows - 1)) // rows
        start, stop = (tiles * part) // parts * rows, (tiles * (part + 1)) // parts * rows
        call(f, block, state, "choose_grids", head)
        with f.loop(0, block.integer("padded_keys"), g.lanes) as first:
            call(f, block, state, "pack_keys", first)
        call(f, block, state, "pack_values")
        with f.loop(start, stop, rows) as first:
            call(f, block, state, "prefetch", item, first)
            call(f, block, state, "run_tile", first)


def _define_entry(g: Generator) -> None:
    with g.module.function("int8", {"block": PTR}, exported=True) as (f, address):
        block = Fields(address, BLOCK)
        memory = thread_memory(block)
        state = Fields(memory, STATE)
        for name in BUFFERS:
            state.set(name, memory.at(block.integer("at_" + name), I8))
        for k in range(0, g.size, g.lanes):
            state.pointer("zeros").store(f.number(g.floats, 0.0), k)
        with each_item(block) as item:
            call(f, block, state, "run_item", item)


def int8_ir(machine: Machine, size: int) -> str:
    """The IR of a module that exports `void int8(void *block)`, for heads of `size` channels, or whole vectors of them."""
    g = Generator(machine, size + -size % machine.lanes)
    for define in (
        *(
            _define_index_keys,
            _define_measure_keys,
            _define_set_aside,
            _define_choose_grids,
            _define_pack_keys,
            _define_pack_values,
        ),
        *(_define_fetch_query, _define_fetch_queries, _define_score_groups, _define_find_offsets),
    ):
        define(g)
    for gate in (False, True):
        _define_inhibit(g, gate)
        for width in sorted({min(2, g.groups), 2 - g.groups % 2}):
            _define_sum_values(g, gate, width)
    for define in (_define_run_tile, _define_prefetch, _define_run_item, _define_entry):
        define(g)
    return g.module.text()
