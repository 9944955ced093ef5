"""Code that brings tensors into the layouts the tiles compute on, and results back: float32, packed, visible keys only.

A panel is as many rows (tokens) as a vector has lanes.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .inhibitor_llvm_builder import F32, I8, I16, I32, I64, PTR, Function, Module, Value, lanes, vector
from .inhibitor_llvm_jit import Machine
from .inhibitor_cpu_code_fields import STATE, Fields, panel_width

DTYPES = ("float32", "bfloat16", "float16")  # in the order of their numbers in the block

# Magnitudes beyond this are no shift: what is subtracted must stay far from overflow.
_LARGEST_SHIFT = 1e30


class Generator:
    """A module for one machine, with the fields of its blocks.

    `lanes`: the width of a panel and of a vector; `vector`, `integers`: the types of one of float32, and of int32;
    `wide`: whether there are the instructions of AVX-512. `tile_rows`, `gradient_rows`: rows of the tallest tile of the
    forward pass and of the tiles of the backward pass, as many as there are registers for.
    """

    def __init__(self, machine: Machine, fields: Sequence[str]) -> None:
        self.fields = fields
        self.machine = machine
        self.module = Module()
        self.lanes = panel_width(machine)
        self.vector = vector(self.lanes, F32)
        self.integers = vector(self.lanes, I32)
        self.wide = machine.has("avx512dq") and self.lanes == 16
        # One instruction clamps fastest on AMD's processors. On Intel's the smaller magnitude and a sign are faster.
        self.clamps = self.wide and machine.cpu.startswith("znver")
        plenty = machine.registers >= 32
        self.tile_rows, self.gradient_rows = (self.lanes, self.lanes // 2) if plenty else (4, 2)

    @contextmanager
    def routine(self, name: str, **parameters: str) -> Iterator[list[Any]]:
        """Opens a function of the block, the thread's state and `parameters`; see `Module.function`."""
        with self.module.function(name, {"block": PTR, "state": PTR} | parameters) as (f, block, state, *others):
            yield [f, Fields(block, self.fields), Fields(state, STATE), *others]

    def zero(self, f: Function) -> Value:
        return f.number(self.vector, 0.0)

    def splat(self, f: Function, scalar: Value) -> Value:
        return f.broadcast(scalar, self.lanes)

    def clamp(self, f: Function, x: Value, bound: Value) -> Value:
        """x limited to [-bound, bound]; `bound` is not negative."""
        if not self.wide:
            return f.larger(f.smaller(x, bound), f.number(self.vector, 0.0) - bound)
        # The smaller magnitude, with the sign of x.
        passed_through, mask, rounding = self.zero(f), f.number(I16, -1), f.number(I32, 4)
        name = "llvm.x86.avx512.mask.range.ps.512"
        return f.intrinsic(name, self.vector, x, bound, f.number(I32, 2), passed_through, mask, rounding)

    def relu(self, f: Function, x: Value) -> Value:
        """NaN stays NaN."""
        return f.larger(self.zero(f), x)


def call(f: Function, block: Fields, state: Fields, name: str, *arguments: Value) -> None:
    """A routine of the same module, on the same block and state."""
    f.call(name, block.address, state.address, *arguments)


def note_flaws(f: Function, block: Fields, *sizes: Value) -> None:
    """Sets `flawed` where one of these float32 numbers is not finite; such a call is done again in plain torch."""
    nothing = [size * 0.0 for size in sizes]
    with f.when(sum(nothing[1:], nothing[0]).is_nan()):
        block.set("flawed", f.integer(1))


# Half types


def _like(x: Value, one_lane: str) -> str:
    return vector(lanes(x.type), one_lane) if lanes(x.type) else one_lane


def _widened(x: Value, dtype: str) -> Value:
    """The float32 of a 16-bit pattern, or of a vector of them."""
    bits = x.convert("zext", _like(x, I32))
    if dtype == "bfloat16":
        return (bits << 16).convert("bitcast", _like(x, F32))
    scaled = ((bits & 0x7FFF) << 13).convert("bitcast", _like(x, F32)) * 2.0**112
    magnitude = scaled.convert("bitcast", _like(x, I32))
    magnitude = (bits & 0x7C00).equals(0x7C00).where(magnitude | 0x7F800000, magnitude)
    return (magnitude | ((bits & 0x8000) << 16)).convert("bitcast", _like(x, F32))


def _narrowed(x: Value, dtype: str) -> Value:
    """The 16-bit pattern nearest to a float32, ties to even; NaN stays NaN."""
    bits = x.convert("bitcast", _like(x, I32))
    magnitude = bits & 0x7FFFFFFF
    if dtype == "bfloat16":
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        nan = bits >> 16 | 0x40
        return (magnitude > 0x7F800000).where(nan, rounded).convert("trunc", _like(x, I16))
    normal = (magnitude + ((magnitude >> 13) & 1) - (0x38000000 - 0xFFF)) >> 13
    # The addition rounds to a multiple of the smallest float16.
    small = (magnitude.convert("bitcast", _like(x, F32)) + 0.5).convert("bitcast", _like(x, I32)) - 0x3F000000
    number = (magnitude < 0x38800000).where(small, normal)
    infinite = (magnitude >= 0x47800000).where(x.function.number(bits.type, 0x7C00), number)
    nan = (magnitude > 0x7F800000).where(x.function.number(bits.type, 0x7E00), infinite)
    return (nan | ((bits >> 16) & 0x8000)).convert("trunc", _like(x, I16))


def _load_as_float(place: Value, type_: str, dtype: str) -> Value:
    """`type_`: float32, or a vector of them."""
    if dtype == "float32":
        return place.load(type_)
    return _widened(place.load(vector(lanes(type_), I16) if lanes(type_) else I16), dtype)


def _define_fetch_row(g: Generator) -> None:
    """One row of any dtype and stride as float32, zeros up to the padded size."""
    with g.routine("fetch_row", source=PTR, stride=I64, row=PTR) as (f, block, _, source, stride, row):
        size = block.integer("size")
        for number, dtype in enumerate(DTYPES):
            with f.when(block.integer("dtype").equals(number)):
                item = 4 if dtype == "float32" else 2
                whole = stride.equals(item).where(size - size % g.lanes, f.integer(0))
                with f.loop(0, whole, g.lanes) as k:
                    row.store(_load_as_float(source.at(k * stride, I8), g.vector, dtype), k)
                with f.loop(whole, size) as k:
                    row.store(_load_as_float(source.at(k * stride, I8), F32, dtype), k)
        with f.loop(size, block.integer("padded_size")) as k:
            row.store(f.number(F32, 0.0), k)


def _define_store_row(g: Generator) -> None:
    """`source`, blocks of lanes `block_stride` floats apart, times `factor` into one row of a tensor of any dtype."""
    parameters = {"source": PTR, "block_stride": I64, "factor": F32, "destination": PTR}
    with g.routine("store_row", **parameters) as (f, block, _, source, block_stride, factor, destination):
        size = block.integer("size")
        whole = size - size % g.lanes
        for number, dtype in enumerate(DTYPES):
            with f.when(block.integer("dtype").equals(number)):

                def stored(x: Value, dtype: str = dtype) -> Value:
                    return x if dtype == "float32" else _narrowed(x, dtype)

                with f.loop(0, whole, g.lanes) as k:
                    x = source.at(k // g.lanes * block_stride).load(g.vector)
                    destination.store(stored(x * g.splat(f, factor)), k)
                with f.loop(whole, size) as k:
                    x = source.at(whole // g.lanes * block_stride).load(F32, k - whole)
                    destination.store(stored(x * factor), k)


# Which keys, and where


def _define_index_keys(g: Generator) -> None:
    """The visible keys of a sequence."""
    with g.routine("index_keys", batch=I64) as (f, block, state, batch):
        index, prefix, keys = state.pointer("index"), state.pointer("prefix"), block.integer("keys")
        visible = f.variable(keys)
        padded = block.flag("padding")
        with f.when(padded.equals(0)), f.loop(0, keys) as j:
            index.store(j.convert("trunc", I32), j)
            prefix.store((j + 1).convert("trunc", I32), j)
        with f.when(padded):
            visible.value = f.integer(0)
            mask = block.pointer("padding").at(batch * block.integer("padding_b"), I8)
            with f.loop(0, keys) as j:
                index.store(j.convert("trunc", I32), visible.value)
                kept = mask.at(j * block.integer("padding_l"), I8).load(I8).differs(0)
                visible.value = visible.value + kept.convert("zext", I64)
                prefix.store(visible.value.convert("trunc", I32), j)
        state.set("visible", visible.value)


def _define_count_keys(g: Generator) -> None:
    """How many visible keys each query of the panel at `first` sees: `counts`, `least` and `most` of them."""
    with g.routine("count_keys", first=I64) as (f, block, state, first):
        counts, queries, keys = state.pointer("counts"), block.integer("queries"), block.integer("keys")
        with f.loop(0, g.lanes) as r:
            counts.store(state.integer("visible").convert("trunc", I32), r)
        with f.when(block.flag("causal")), f.loop(0, g.lanes) as r:
            query = first + r
            last = (query < queries).where(query, queries - 1) + keys - queries
            counts.store(f.number(I32, 0), r)
            with f.when(last >= 0):
                counts.store(state.pointer("prefix").load(I32, last), r)
        state.set("least", counts.load(I32).convert("zext", I64))
        state.set("most", counts.load(I32, g.lanes - 1).convert("zext", I64))


def _define_gather_rows(g: Generator) -> None:
    """Addresses of the rows at `first`, `first + step`, … of a tensor's head, as float32 without gaps.

    `indexed`: the rows of visible keys. From `limit` on the last one repeats, or with `end_in_zeros` is a row of zeros.
    """
    parameters = dict.fromkeys(("first", "step", "limit", "stride", "channel_stride", "indexed", "end_in_zeros"), I64)
    with g.routine("gather_rows", source=PTR, **parameters) as (f, block, state, source, first, step, limit, *others):
        stride, channel_stride, indexed, end_in_zeros = others
        rows, fetched, size = state.pointer("rows"), state.pointer("fetched"), block.integer("size")
        foreign = block.flag("dtype") | channel_stride.differs(4) | (size % g.lanes).differs(0)
        with f.loop(0, g.lanes) as r:
            position = first + r * step
            beyond = position >= limit
            token = f.variable(beyond.where(limit - 1, position))
            with f.when(indexed.differs(0)):
                token.value = state.pointer("index").load(I32, token.value).convert("zext", I64)
            place = source.at(token.value * stride, I8)
            rows.store(place, r)
            with f.when(foreign):
                row = fetched.at(r * block.integer("padded_size"))
                call(f, block, state, "fetch_row", place, channel_stride, row)
                rows.store(row, r)
            with f.when(beyond & end_in_zeros.differs(0)):
                rows.store(state.pointer("zeros"), r)


def gather(
    f: Function,
    block: Fields,
    state: Fields,
    tensor: str,
    source: Value,
    first: Value,
    *,
    zeros: bool = False,
    step: Any = 1,
) -> None:
    """The panel of `tensor`'s head at `source` that begins at row `first`; see `_define_gather_rows`."""
    is_key = tensor in ("key", "value")
    limit = state.integer("visible") if is_key else block.integer("queries")
    strides = block.integer(f"{tensor}_l"), block.integer(f"{tensor}_d")
    step = step if isinstance(step, Value) else f.integer(step)
    flags = f.integer(int(is_key)), f.integer(int(zeros))
    call(f, block, state, "gather_rows", source, first, step, limit, *strides, *flags)


def head_of(block: Fields, tensor: str, batch: Value, head: Value) -> Value:
    """The address of a head of a sequence."""
    offset = batch * block.integer(f"{tensor}_b") + head * block.integer(f"{tensor}_h")
    return block.pointer(tensor).at(offset, I8)


def _define_drop_rows(g: Generator) -> None:
    """Values of dropped keys, gathered at `first`, become zeros: they add nothing then, and take no gradient."""
    with g.routine("drop_rows", batch=I64, first=I64) as (f, block, state, batch, first), f.when(block.flag("dropout")):
        mask = block.pointer("dropout").at(batch * block.integer("dropout_b"), I8)
        left = state.integer("visible") - first
        with f.loop(0, (left < g.lanes).where(left, f.integer(g.lanes))) as r:
            token = state.pointer("index").load(I32, first + r).convert("zext", I64)
            dropped = mask.at(token * block.integer("dropout_l"), I8).load(I8).equals(0)
            with f.when(dropped):
                state.pointer("rows").store(state.pointer("zeros"), r)


# Packing the gathered rows


def transposed(f: Function, vectors: list[Value]) -> list[Value]:
    """A square of vectors turned: exchange halves of pairs, then quarters, …"""
    width, step = len(vectors), 1
    vectors = list(vectors)
    while step < width:
        for i in range(width):
            if not i & step:
                a, b = vectors[i], vectors[i + step]
                first = [lane if not lane & step else width + lane - step for lane in range(width)]
                second = [lane + step if not lane & step else width + lane for lane in range(width)]
                vectors[i], vectors[i + step] = f.shuffle(a, b, first), f.shuffle(a, b, second)
        step *= 2
    return vectors


def _define_pack_transposed(g: Generator) -> None:
    """`panel[channel][lane = row]` minus `shift`; minus half of each row's sum, and its sum of absolute values."""
    with g.routine("pack_transposed", panel=PTR, halves=PTR, shift=PTR) as (f, block, state, panel, halves, shift):
        half, norm = f.variable(g.zero(f)), f.variable(g.zero(f))
        with f.loop(0, block.integer("padded_size"), g.lanes) as k:
            offset = shift.load(g.vector, k)
            rows = [state.pointer("rows").load(PTR, r).load(g.vector, k) - offset for r in range(g.lanes)]
            columns = transposed(f, rows)
            for channel, x in enumerate(columns):
                panel.store(x, (k + channel) * g.lanes)
            half.value = half.value + tree_sum(columns)
            norm.value = norm.value + tree_sum([f.absolute(x) for x in columns])
        halves.store(half.value * -0.5)
        state.pointer("norms").store(norm.value)


def _define_pack_rows(g: Generator) -> None:
    """`blocks[block of channels][row][lane = channel]`; blocks are `block_stride` floats apart."""
    with g.routine("pack_rows", blocks=PTR, block_stride=I64) as (f, block, state, blocks, block_stride):
        rows = state.pointer("rows")
        with f.loop(0, block.integer("padded_size"), g.lanes) as k:
            place = blocks.at(k // g.lanes * block_stride)
            for r in range(g.lanes):
                place.store(rows.load(PTR, r).load(g.vector, k), r * g.lanes)


def is_gate(block: Fields) -> Value:
    return block.integer("inhibition").equals(2)


def _counted_values(g: Generator, f: Function, block: Fields, state: Fields, k: Value) -> list[Value]:
    """The gathered values of the channels from k on: their positive parts where inhibition is unsigned, of a gate halves."""
    lowest = block.flag("inhibition").where(f.number(F32, -math.inf), f.number(F32, 0.0))
    part = is_gate(block).where(f.number(F32, 0.5), f.number(F32, 1.0))
    lowest, part = g.splat(f, lowest), g.splat(f, part)
    return [f.larger(lowest, state.pointer("rows").load(PTR, r).load(g.vector, k)) * part for r in range(g.lanes)]


def tree_sum(values: list[Value]) -> Value:
    """The sum in pairs: short chains, and small rounding errors."""
    while len(values) > 1:
        pairs = zip(values[::2], values[1::2], strict=False)
        values = [a + b for a, b in pairs] + ([values[-1]] if len(values) % 2 else [])
    return values[0]


def _sign(g: Generator, x: Value) -> Value:
    """1 or -1."""
    return (x.convert("bitcast", g.integers) & -0x80000000 | 0x3F800000).convert("bitcast", g.vector)


def _define_pack_values(g: Generator) -> None:
    """As `pack_rows`, of values, their magnitudes and signs apart unless one instruction is to clamp them; added to the sums
    of their run in the order in which a tile will, and to `norms`."""
    parameters = {"blocks": PTR, "signs": PTR, "block_stride": I64, "sums": PTR}
    with g.routine("pack_values", **parameters) as (f, block, state, blocks, signs, block_stride, sums):
        norm = f.variable(g.zero(f))
        with f.loop(0, block.integer("padded_size"), g.lanes) as k:
            skipped, total = k // g.lanes * block_stride, sums.load(g.vector, k)
            rows = _counted_values(g, f, block, state, k)
            for r, x in enumerate(rows):
                if not g.clamps:
                    signs.at(skipped).store(_sign(g, x), r * g.lanes)
                    blocks.at(skipped).store(f.absolute(x), r * g.lanes)
                else:
                    with f.when(is_gate(block)):
                        signs.at(skipped).store(_sign(g, x), r * g.lanes)
                    blocks.at(skipped).store(is_gate(block).where(f.absolute(x), x), r * g.lanes)
                total = total + x
            sums.store(total, k)
            norm.value = norm.value + tree_sum([f.absolute(x) for x in rows])
        state.pointer("norms").store(norm.value)


def _define_pack_transposed_values(g: Generator) -> None:
    """Absolute values and signs, each `[channel][lane = key]`."""
    with g.routine("pack_transposed_values", panel=PTR, signs=PTR) as (f, block, state, panel, signs):
        norm = f.variable(g.zero(f))
        with f.loop(0, block.integer("padded_size"), g.lanes) as k:
            columns = transposed(f, _counted_values(g, f, block, state, k))
            for channel, x in enumerate(columns):
                panel.store(f.absolute(x), (k + channel) * g.lanes)
                signs.store(_sign(g, x), (k + channel) * g.lanes)
            norm.value = norm.value + tree_sum([f.absolute(x) for x in columns])
        state.pointer("norms").store(norm.value)


# The keys of a head


def _define_choose_shift(g: Generator) -> None:
    """A point near the keys, channel by channel: sum |q - k| is computed as 2 sum max(q, k) - sum q - sum k,
    which loses what q and k have in common.

    The mean of a few keys, rounded to an eighth of how far they spread or finer: numbers on a coarse grid stay exact,
    and where the keys lie around 0 the shift is 0.
    """
    with g.routine("choose_shift", source=PTR) as (f, block, state, source):
        visible, shift, size = state.integer("visible"), state.pointer("shift"), block.integer("padded_size")
        step = visible // g.lanes
        gather(f, block, state, "key", source, f.integer(0), step=(step < 1).where(f.integer(1), step))
        spread = f.variable(g.zero(f))
        with f.loop(0, size, g.lanes) as k:
            rows = [state.pointer("rows").load(PTR, r).load(g.vector, k) for r in range(g.lanes)]
            mean = sum(rows[1:], rows[0]) * (1 / g.lanes)
            shift.store(mean, k)
            for x in rows:
                spread.value = f.larger(f.absolute(x - mean), spread.value)
        widest = f.smaller(f.largest_lane(spread.value), f.number(F32, _LARGEST_SHIFT))
        power = (widest.convert("bitcast", I32) & 0x7F800000).convert("bitcast", F32)
        # Adding and taking off 1.5 · 2^23 units rounds to whole units.
        rounder, moved = g.splat(f, power * (1.5 * 2**20)), f.variable(g.zero(f))
        with f.loop(0, size, g.lanes) as k:
            offset = shift.load(g.vector, k) + rounder - rounder
            offset = (f.absolute(offset) < _LARGEST_SHIFT).where(offset, g.zero(f))
            shift.store(offset, k)
            moved.value = moved.value + f.absolute(offset)
        state.set("shifted", (f.sum_of_lanes(moved.value) > 0.0).convert("zext", I64))


def _define_pack_plain_keys(g: Generator) -> None:
    """The keys as they came, once, where a panel of queries needs them."""
    with g.routine("pack_plain_keys", source=PTR) as (f, block, state, source):
        with f.loop(0, state.integer("visible"), g.lanes) as j:
            gather(f, block, state, "key", source, j)
            panel = state.pointer("plain_keys").at(j * block.integer("padded_size"))
            call(f, block, state, "pack_transposed", panel, state.pointer("row_sums"), state.pointer("zeros"))
        state.set("plain_ready", f.integer(1))


def define_panels(g: Generator) -> None:
    """Everything of this file that the passes call by name."""
    for define in (
        *(_define_fetch_row, _define_store_row, _define_index_keys, _define_count_keys, _define_gather_rows),
        *(_define_drop_rows, _define_pack_transposed, _define_pack_rows, _define_pack_values),
        *(_define_pack_transposed_values, _define_choose_shift, _define_pack_plain_keys),
    ):
        define(g)
