"""The inner loops: everything that is done queries · keys · channels times.

A tile is a column of vectors, `height` rows of accumulators in registers. Each step takes one number of a row's operand
from memory, where a processor with AVX-512 broadcasts it within the instruction, and one vector that all rows share.
What is packed for the tiles is at unit stride, `lanes` numbers a step.
"""

import math
from dataclasses import dataclass

from .inhibitor_llvm_builder import F32, I64, PTR, Function, Value
from .inhibitor_cpu_code_panels import Generator, tree_sum

# Stands at invisible keys: no value is larger, and 0 times it is 0.
FULLY_INHIBITED = 3.0e38

# Distances are summed over so many channels at a time, and then those sums: short sums have small rounding errors.
_CHANNELS = 128

# The slope by which signs are read off differences: differences below it count in part. A power of two.
SMALLEST_DIFFERENCE = 2.0**-80


def heights(g: Generator) -> tuple[int, ...]:
    """Heights of forward tiles, the tallest first."""
    return (g.lanes, g.lanes // 2, g.lanes // 4) if g.tile_rows == g.lanes else (g.tile_rows,)


@dataclass(frozen=True)
class Rows:
    """The address of something of a tile's first row, `each` floats a row."""

    first: Value
    each: int


def call_tile(f: Function, g: Generator, name: str, rows: Value, *arguments: Value | Rows) -> None:
    """The tile `name` of the smallest height that holds the rows of a panel, `rows` of them if they are so few, or the
    tallest as often as it takes; what is computed beyond the rows must do no harm."""
    with f.loop(0, (rows < g.lanes).where(rows, f.integer(g.lanes)), g.tile_rows) as row:
        here = [x.first.at(row * x.each) if isinstance(x, Rows) else x for x in arguments]
        left = rows - row
        for height, smaller in zip(heights(g), (*heights(g)[1:], 0), strict=True):
            fits = left > smaller
            if height < g.tile_rows:
                fits = fits & (left <= height)
            with f.when(fits):
                f.call(f"{name}_{height}", *here)


def _define_score_tile(g: Generator, kind: str, plain: bool, height: int) -> None:
    """Manhattan distances of `height` rows of panel a to the lanes of panel b, and what becomes of them.

    In the end 2 · sum max(a, b) - sum a - sum b, from which half is accumulated; `plain`: sum |a - b|. `kind`:
    - "sums": the accumulators, and added to `extra` their sum over the rows;
    - "scores": Z = relu(slope · distance + alpha);
    - "centered_scores": Z of the distance minus the row's `extra`, `lowest` at least, and to `distances` that difference.
    """
    pointers = ("a", "b", "a_halves", "b_halves", "extra", "out", "distances")
    parameters = dict.fromkeys(pointers, PTR) | {"depth": I64, "one": F32, "slope": F32, "alpha": F32, "lowest": F32}
    name = f"{kind}_{'plain' if plain else 'shifted'}_{height}"
    with g.module.function(name, parameters) as (f, a, b, a_halves, b_halves, extra, out, distances, depth, one, *rest):
        ones, lane_halves = g.splat(f, one), b_halves.load(g.vector)
        sums = []
        for r in range(height):
            start = g.zero(f) if plain else lane_halves + g.splat(f, a_halves.load(F32, r))
            sums.append(f.variable(start))

        def accumulate(first: Value, last: Value) -> None:
            with f.loop(first, (last < depth).where(last, depth)) as k:
                shared = b.load(g.vector, k * g.lanes)
                for r in range(height):
                    row = g.splat(f, a.load(F32, k * g.lanes + r))
                    step = f.absolute(shared - row) if plain else f.larger(shared, row)
                    sums[r].value = f.fma(step, ones, sums[r].value)

        accumulate(f.integer(0), f.integer(_CHANNELS))
        with f.when(depth > _CHANNELS):
            before = [f.variable(x.value) for x in sums]
            with f.loop(_CHANNELS, depth, _CHANNELS) as first:
                for x in sums:
                    x.value = g.zero(f)
                accumulate(first, first + _CHANNELS)
                for x, total in zip(sums, before, strict=True):
                    total.value = total.value + x.value
            for x, total in zip(sums, before, strict=True):
                x.value = total.value
        scale = f.number(g.vector, 1.0 if plain else 2.0)
        slope, alpha, lowest = (g.splat(f, x) for x in rest)
        done = [x.value for x in sums]
        if kind == "sums":
            total = tree_sum(done)
            extra.store(extra.load(g.vector) + total)
        for r, x in enumerate(done):
            if kind == "centered_scores":
                x = f.fma(x, scale, g.zero(f) - g.splat(f, extra.load(F32, r)))
                distances.store(x, r * g.lanes)
                x = f.larger(lowest, f.fma(x, slope, alpha))
            elif kind == "scores":
                x = g.relu(f, f.fma(x * scale, slope, alpha))
            out.store(x, r * g.lanes)


def _define_value_tile(g: Generator, gate: bool, height: int) -> None:
    """Adds to `height` rows of outputs `sums` minus sum over the keys of clamp(v, -Z, Z), the soft-thresholded values, times
    `weight`.

    Unless one instruction is to clamp, the smaller magnitude is taken, and added times the sign. `gate`: of half values,
    and minus sign(v) clamp(Z, -|v|, |v|).
    """
    name = f"{'gated_' if gate else ''}values_{height}"
    parameters = {"z": PTR, "values": PTR, "signs": PTR, "sums": PTR, "outputs": PTR, "count": I64}
    parameters |= {"one": F32, "weight": F32}
    with g.module.function(name, parameters) as (f, z, values, signs, sums, outputs, count, one, weight):
        ones = g.splat(f, one)
        inhibited = [f.variable(g.zero(f)) for _ in range(height)]
        with f.loop(0, count) as j:
            shared = values.load(g.vector, j * g.lanes)
            factor = ones if g.clamps and not gate else signs.load(g.vector, j * g.lanes)
            for r in range(height):
                bound = g.splat(f, z.load(F32, j * g.lanes + r))
                if gate:
                    clamped = g.clamp(f, bound, shared)
                else:
                    clamped = g.clamp(f, shared, bound) if g.clamps else f.smaller(shared, bound)
                inhibited[r].value = f.fma(clamped, factor, inhibited[r].value)
        everything, factor = sums.load(g.vector), g.splat(f, weight)
        for r in range(height):
            passed = f.fma(everything - inhibited[r].value, factor, outputs.load(g.vector, r * g.lanes))
            outputs.store(passed, r * g.lanes)


def _define_value_gradient_tile(g: Generator, gate: bool, height: int) -> None:
    """For `height` queries and one panel of keys, with passes = |v| > Z of one radius:

    - adds sum over the queries of g · passes to `value_grads[channel][lane = key]`;
    - dZ = -beta · sum over the channels of sign(v) · g · passes, and what comes through the openings, `grad_opened` for each
      query, where `normalized` is not 0. The gradients of the scores before the relu are added to `totals`, times `share` to
      `row_sums` and to `score_grads`, whose place it takes at the `first` radius: it may then be `distances` itself;
    - adds to `delta_total` and `opened_total` what the openings give to the gradients of delta and of the radius's weight.

    `gate`: passes = |v| > |Z| of half values; to `value_grads` goes g · passes · sign(Z) / 2 and, where Z < 0, g. `beta`:
    times the radius's weight; `weight`: the absolute of that.

    g: `grads[channel][query]`, given twice: a number that is used twice is then taken from memory twice, not kept.
    """
    names = (
        *("grads", "same_grads", "values", "signs", "value_grads", "z", "distances", "score_grads", "row_sums"),
        *("totals", "delta_total", "opened_total", "grad_opened"),
    )
    parameters = dict.fromkeys(names, PTR) | dict.fromkeys(("size", "normalized", "first"), I64)
    parameters |= dict.fromkeys(("beta", "delta", "weight", "share"), F32)
    name = f"{'gated_' if gate else ''}value_gradients_{height}"
    with g.module.function(name, parameters) as (f, *rest):
        grads, same_grads, values, signs, value_grads, z, distances, score_grads, row_sums, totals, *rest = rest
        delta_total, opened_total, grad_opened, size, normalized, first, by_beta, delta, weight, share = rest
        shifts = [z.load(g.vector, r * g.lanes) for r in range(height)]
        dz = [f.variable(g.zero(f)) for _ in range(height)]
        below = [x < 0.0 for x in shifts]
        bounds = [f.absolute(x) for x in shifts] if gate else shifts
        halves = [is_below.where(f.number(g.vector, -0.5), f.number(g.vector, 0.5)) for is_below in below]
        wholes = [is_below.where(f.number(g.vector, 1.0), g.zero(f)) for is_below in below]
        with f.loop(0, size) as k:
            magnitude, sign = values.load(g.vector, k * g.lanes), signs.load(g.vector, k * g.lanes)
            dv = value_grads.load(g.vector, k * g.lanes)
            for r in range(height):
                passes = magnitude > bounds[r]
                grad = g.splat(f, grads.load(F32, k * g.lanes + r))
                if gate:
                    passed = passes.where(grad, g.zero(f))
                    dv = f.fma(passed, halves[r], f.fma(grad, wholes[r], dv))
                    dz[r].value = f.fma(sign, passed, dz[r].value)
                elif g.wide:  # additions under a mask
                    dv = passes.where(dv + grad, dv)
                    again = g.splat(f, same_grads.load(F32, k * g.lanes + r))
                    dz[r].value = passes.where(f.fma(sign, again, dz[r].value), dz[r].value)
                else:
                    passed = passes.where(grad, g.zero(f))
                    dv = dv + passed
                    dz[r].value = f.fma(sign, passed, dz[r].value)
            value_grads.store(dv, k * g.lanes)
        alpha, beta, gamma = (g.zero(f) for _ in range(3))
        scale, slope, first = g.splat(f, by_beta), g.splat(f, delta), first.differs(0)
        through = [f.variable(g.zero(f)) for _ in range(height)]
        with f.when(normalized.differs(0)):
            start, most = (0.5, 1.0) if gate else (1.0, math.inf)
            for r in range(height):
                ramp = f.number(g.vector, start) - slope * shifts[r]
                on_ramp = (ramp >= 0.0) & (ramp <= most) if gate else ramp > 0.0
                # Keys that a query does not see do not count, whatever they make of the ramp.
                seen = shifts[r] < FULLY_INHIBITED
                counts, nothing = on_ramp & seen, g.zero(f)
                here = g.splat(f, grad_opened.load(F32, r))
                grad = counts.where(here * g.splat(f, weight), nothing)
                through[r].value = nothing - slope * grad
                delta_total.store(delta_total.load(g.vector) - counts.where(shifts[r], nothing) * grad)
                passed = seen.where(f.smaller(f.larger(nothing, ramp), f.number(g.vector, most)), nothing)
                opened_total.store(f.fma(passed, here, opened_total.load(g.vector)))
        for r in range(height):
            gradient = g.zero(f) - dz[r].value
            beta = f.fma(shifts[r], gradient, beta)
            gradient = f.fma(gradient, scale, through[r].value)
            if not gate:
                gradient = (shifts[r] > 0.0).where(gradient, g.zero(f))
            alpha = alpha + gradient
            gamma = f.fma(gradient, distances.load(g.vector, r * g.lanes), gamma)
            shared = gradient * g.splat(f, share)
            score_grads.store(first.where(shared, score_grads.load(g.vector, r * g.lanes) + shared), r * g.lanes)
            row_sums.store(row_sums.load(g.vector, r * g.lanes) + shared, r * g.lanes)
        for number, x in enumerate((alpha, beta, gamma)):
            totals.store(totals.load(g.vector, number * g.lanes) + x, number * g.lanes)


def _define_key_gradient_tile(g: Generator, height: int) -> None:
    """For `height` queries, one block of channels and `count` keys, with s = sign(q - k), 0 where they are equal:
    adds dS · s to `key_grads[key]`, and stores its sum over the keys in `outputs[query]`.

    `scores[panel of keys][query][lane = key]`, given twice as in `_define_value_gradient_tile`: dS divided by
    `SMALLEST_DIFFERENCE`, since that is what differences are clamped to instead of 1.
    """
    names = ("queries", "keys", "key_grads", "scores", "same_scores", "outputs")
    with g.module.function(f"key_gradients_{height}", dict.fromkeys(names, PTR) | {"count": I64}) as (f, *rest):
        queries, keys, key_grads, scores, same_scores, outputs, count = rest
        rows = [queries.load(g.vector, r * g.lanes) for r in range(height)]
        dq = [f.variable(g.zero(f)) for _ in range(height)]
        tiny = f.number(g.vector, SMALLEST_DIFFERENCE)
        with f.loop(0, count, g.lanes) as panel:
            left = count - panel
            with f.loop(0, (left < g.lanes).where(left, f.integer(g.lanes))) as lane:
                place, at = (panel + lane) * g.lanes, panel * g.lanes + lane
                key, dk = keys.load(g.vector, place), key_grads.load(g.vector, place)
                for r in range(height):
                    sign = g.clamp(f, rows[r] - key, tiny)
                    dk = f.fma(sign, g.splat(f, scores.load(F32, at + r * g.lanes)), dk)
                    again = g.splat(f, same_scores.load(F32, at + r * g.lanes))
                    dq[r].value = f.fma(sign, again, dq[r].value)
                key_grads.store(dk, place)
        for r in range(height):
            outputs.store(dq[r].value, r * g.lanes)


def define_forward_tiles(g: Generator) -> None:
    for height in heights(g):
        for plain in (False, True):
            _define_score_tile(g, "sums", plain, height)
            _define_score_tile(g, "scores", plain, height)
        for gate in (False, True):
            _define_value_tile(g, gate, height)


def define_backward_tiles(g: Generator) -> None:
    for height in heights(g):
        for plain in (False, True):
            _define_score_tile(g, "centered_scores", plain, height)
    for gate in (False, True):
        _define_value_gradient_tile(g, gate, g.gradient_rows)
    _define_key_gradient_tile(g, g.gradient_rows)
