"""The forward pass of a few queries, as in decoding: each alone, on keys and values as they are stored.

A panel of queries pays for the packing of the keys. One query would pay for it alone, and leave most lanes idle. Here lanes
are channels, of rows of float32 without gaps that fill whole vectors.
"""

from .inhibitor_forms import NOTHING_PASSES
from .inhibitor_llvm_builder import F32, I8, I32, I64, PTR, Function, Value
from .inhibitor_cpu_code_fields import RUN, Fields
from .inhibitor_cpu_code_panels import Generator, call, head_of, is_gate, note_flaws
from .inhibitor_cpu_code_tiles import FULLY_INHIBITED

MOST_QUERIES = 4
_KEYS = 4  # measured together: their sums do not wait for one another
_VECTORS = 4  # of channels that pass together


def _row_of(block: Fields, state: Fields, tensor: str, source: Value, j: Value) -> Value:
    """The row of visible key j of a head at `source`."""
    return source.at(state.pointer("index").load(I32, j).convert("zext", I64) * block.integer(f"{tensor}_l"), I8)


def _visible(g: Generator, f: Function, j: Value, count: Value) -> Value:
    """Which lanes of the keys from j on are among the first `count`."""
    return f.lane_numbers(g.lanes) < g.splat(f, (count - j).convert("trunc", I32))


def _define_measure(g: Generator) -> None:
    """The distances of a query to the first `count` visible keys, one behind the other in `scores`."""
    with g.routine("few_measure", query=PTR, key=PTR, count=I64) as (f, block, state, query, key, count):
        last = count - 1
        with f.loop(0, count, _KEYS) as j:
            places = [((j + n) < last).where(j + n, last) for n in range(_KEYS)]
            rows = [_row_of(block, state, "key", key, place) for place in places]
            sums = [f.variable(g.zero(f)) for _ in rows]
            with f.loop(0, block.integer("size"), g.lanes) as k:
                x = query.load(g.vector, k)
                for row, total in zip(rows, sums, strict=True):
                    total.value = total.value + f.absolute(x - row.load(g.vector, k))
            for n, total in enumerate(sums):
                state.pointer("scores").store(f.sum_of_lanes(total.value), j + n)


def _define_center(g: Generator) -> None:
    """What the distances are centred by, to `row_sums`. A call with distances that are not finite is flawed."""
    with g.routine("few_center", count=I64) as (f, block, state, count):
        total, least = f.variable(g.zero(f)), f.variable(f.number(g.vector, FULLY_INHIBITED))
        with f.loop(0, count, g.lanes) as j:
            seen, x = _visible(g, f, j, count), state.pointer("scores").load(g.vector, j)
            total.value = total.value + seen.where(x, g.zero(f))
            least.value = f.smaller(least.value, seen.where(x, f.number(g.vector, FULLY_INHIBITED)))
        zero, numbers = f.number(F32, 0.0), f.larger(count.convert("sitofp", F32), f.number(F32, 1.0))
        whole = f.sum_of_lanes(total.value)
        note_flaws(f, block, whole * state.number("steepest"))
        nearest = (count > 0).where(f.smallest_lane(least.value), zero)
        by_kind = block.integer("center").equals(2).where(nearest, zero)
        state.pointer("row_sums").store(block.integer("center").equals(1).where(whole / numbers, by_kind))


def _define_shift(g: Generator) -> None:
    """From distances to Z, of a gate not rectified; what passes of a constant is added to `opened`."""
    with g.routine("few_shift", count=I64) as (f, block, state, count):
        gate, zero = is_gate(block), g.zero(f)
        lowest, start, most = (
            g.splat(f, gate.where(f.number(F32, of_gate), f.number(F32, other)))
            for of_gate, other in ((-FULLY_INHIBITED, 0.0), (0.5, 1.0), (1.0, FULLY_INHIBITED))
        )
        center = g.splat(f, state.pointer("row_sums").load(F32))
        slope, alpha, delta = (g.splat(f, state.number(name)) for name in ("slope", "alpha", "delta"))
        passed = f.variable(zero)
        with f.loop(0, count, g.lanes) as j:
            x = state.pointer("scores").load(g.vector, j) - center
            z = f.larger(lowest, f.fma(x, slope, alpha))
            state.pointer("shifts").store(z, j)
            opening = f.smaller(f.larger(zero, start - delta * z), most)
            passed.value = passed.value + _visible(g, f, j, count).where(opening, zero)
        opened = state.pointer("opened").load(F32)
        with f.when(block.flag("normalized")):
            weight = f.absolute(state.number("weight"))
            state.pointer("opened").store(f.fma(f.sum_of_lanes(passed.value), weight, opened))


def _define_drop(g: Generator) -> None:
    """Dropped keys let nothing pass."""
    with g.routine("few_drop", batch=I64, count=I64) as (f, block, state, batch, count), f.when(block.flag("dropout")):
        mask = block.pointer("dropout").at(batch * block.integer("dropout_b"), I8)
        with f.loop(0, count) as j:
            token = state.pointer("index").load(I32, j).convert("zext", I64)
            with f.when(mask.at(token * block.integer("dropout_l"), I8).load(I8).equals(0)):
                state.pointer("shifts").store(f.number(F32, FULLY_INHIBITED), j)


def _passed(g: Generator, f: Function, gate: bool, signed: Value, value: Value, z: Value) -> Value:
    """What of a value passes under the shift z. NaN stays NaN."""
    size = f.absolute(value)
    if gate:
        opening = f.larger(g.zero(f), f.smaller(size * 0.5 - z, size))
    else:
        opening = g.relu(f, signed.where(size, value) - z)
        value = signed.where(value, size)
    return f.intrinsic(f"llvm.copysign.v{g.lanes}f32", g.vector, opening, value)


def _define_sum_values(g: Generator, gate: bool, vectors: int) -> None:
    """Adds what a radius lets pass of so many vectors of channels, from `first` on, to `outputs`."""
    name = f"few_{'gated_' * gate}values_{vectors}"
    with g.routine(name, value=PTR, count=I64, first=I64) as (f, block, state, source, count, first):
        outputs, weight = state.pointer("outputs").at(first), g.splat(f, state.number("weight"))
        signed = f.broadcast(block.flag("inhibition"), g.lanes)
        with f.loop(0, count, RUN) as run:  # short sums have small rounding errors
            sums, left = [f.variable(g.zero(f)) for _ in range(vectors)], count - run
            with f.loop(0, (left < RUN).where(left, f.integer(RUN))) as n:
                row = _row_of(block, state, "value", source, run + n).at(first)
                z = g.splat(f, state.pointer("shifts").load(F32, run + n))
                for number, total in enumerate(sums):
                    value = row.load(g.vector, number * g.lanes)
                    total.value = total.value + _passed(g, f, gate, signed, value, z)
            for number, total in enumerate(sums):
                place = outputs.at(number * g.lanes)
                place.store(f.fma(total.value, weight, place.load(g.vector)))


def _define_values(g: Generator) -> None:
    """The same of all channels."""
    for gate in (False, True):
        for vectors in (1, _VECTORS):
            _define_sum_values(g, gate, vectors)
    with g.routine("few_values", value=PTR, count=I64) as (f, block, state, source, count):
        size, step = block.integer("size"), _VECTORS * g.lanes
        for gate in (False, True):
            name = f"few_{'gated_' * gate}values"
            with f.when(is_gate(block).equals(int(gate))):
                with f.loop(0, size // step * step, step) as first:
                    call(f, block, state, f"{name}_{_VECTORS}", source, count, first)
                with f.loop(size // step * step, size, g.lanes) as first:
                    call(f, block, state, f"{name}_1", source, count, first)


def _define_query(g: Generator) -> None:
    parameters = {"batch": I64, "head": I64, "number": I64, "key": PTR, "value": PTR}
    with g.routine("few_query", **parameters) as (f, block, state, batch, head, number, key, value):
        queries, size, outputs = block.integer("queries"), block.integer("size"), state.pointer("outputs")
        count = f.variable(state.integer("visible"))
        with f.when(block.flag("causal")):
            last = number + block.integer("keys") - queries
            count.value = f.integer(0)
            with f.when(last >= 0):
                count.value = state.pointer("prefix").load(I32, last).convert("zext", I64)
        query = head_of(block, "query", batch, head).at(number * block.integer("query_l"), I8)
        position = (batch * block.integer("heads") + head) * queries + number
        call(f, block, state, "few_measure", query, key, count.value)
        call(f, block, state, "few_center", count.value)
        with f.when(block.flag("center")):
            block.pointer("center_of").store(state.pointer("row_sums").load(F32), position)
        opened = block.flag("normalized").where(f.number(F32, NOTHING_PASSES), f.number(F32, 1.0))
        state.pointer("opened").store(opened)
        with f.loop(0, size, g.lanes) as k:
            outputs.store(g.zero(f), k)
        with f.loop(0, block.integer("radii")) as radius:
            call(f, block, state, "begin_radius", head, radius)
            call(f, block, state, "few_shift", count.value)
            call(f, block, state, "few_drop", batch, count.value)
            call(f, block, state, "few_values", value, count.value)
        with f.when(block.flag("normalized")):
            block.pointer("opened").store(state.pointer("opened").load(F32), position)
        flaw = f.variable(g.zero(f))
        with f.loop(0, size, g.lanes) as k:
            flaw.value = f.fma(outputs.load(g.vector, k), g.zero(f), flaw.value)
        note_flaws(f, block, f.sum_of_lanes(flaw.value))
        row = head_of(block, "output", batch, head).at(number * block.integer("output_l"), I8)
        factor = state.number("beta") / state.pointer("opened").load(F32)
        call(f, block, state, "store_row", outputs, f.integer(g.lanes), factor, row)


def define_few(g: Generator) -> None:
    """`few`: all queries of a head that `begin_head` has begun."""
    for define in (_define_measure, _define_center, _define_shift, _define_drop, _define_values, _define_query):
        define(g)
    with g.routine("few", batch=I64, head=I64, key=PTR, value=PTR) as (f, block, state, batch, head, key, value):
        queries = block.integer("queries")
        with f.loop(0, queries) as number:
            call(f, block, state, "few_query", batch, head, number, key, value)
