"""The backward pass: panel by panel of queries the scores again, then the gradients of everything that made them.

Nothing is divided by beta or gamma. With dZ and dv before their factor beta: dbeta = sum v · dv + sum Z · dZ,
dalpha = sum dS, dgamma = sum dS · (D - mean) / sqrt(d), where dS, times beta already, has not been centred yet. Of several
radii each has such sums of its own.
"""

import math

from ...llvm.builder import F32, I8, I32, I64, PTR
from ...llvm.jit import Machine
from .fields import BACKWARD_FIELDS
from .forward import (
    HeadSizes,
    call_score_tile,
    define_begin_head,
    define_entry,
    define_prefetch,
    lowest_score,
    pack_key_panel,
    pack_query_panel,
    set_sizes,
)
from .panels import Generator, call, define_panels, gather, head_of, is_gate, note_flaws, transposed
from .tiles import FULLY_INHIBITED, SMALLEST_DIFFERENCE, Rows, define_backward_tiles


def _define_pack_head(g: Generator) -> None:
    with g.routine("pack_head", batch=I64, key=PTR, value=PTR) as (f, block, state, batch, key, source):
        padded_size, row_stride = block.integer("padded_size"), block.integer("padded_keys") * g.lanes
        sizes = HeadSizes.none(f, g)
        with f.loop(0, state.integer("visible"), g.lanes) as j:
            gather(f, block, state, "key", key, j)
            pack_key_panel(f, g, block, state, j, sizes)
            call(f, block, state, "pack_rows", state.pointer("key_rows").at(j * g.lanes), row_stride)
            gather(f, block, state, "value", source, j, zeros=True)
            call(f, block, state, "drop_rows", batch, j)
            panels = (state.pointer(name).at(j * padded_size) for name in ("values", "value_signs"))
            call(f, block, state, "pack_transposed_values", *panels)
            sizes.add_values(state.pointer("norms").load(g.vector))
        set_sizes(f, g, block, state, sizes)
        whole = block.integer("padded_keys") * padded_size
        for buffer, end in (("key_grads", whole), ("value_grads", whole * block.integer("radii"))):
            with f.loop(0, end, g.lanes) as k:
                state.pointer(buffer).store(g.zero(f), k)


def _define_pack_queries(g: Generator) -> None:
    """The panel at `first`, and its incoming gradients; rows beyond the last have none."""
    parameters = {"batch": I64, "head": I64, "first": I64}
    with g.routine("pack_queries", **parameters) as (f, block, state, batch, head, first):
        gather(f, block, state, "grad_output", head_of(block, "grad_output", batch, head), first, zeros=True)
        unused = state.pointer("query_halves")
        call(f, block, state, "pack_transposed", state.pointer("grads"), unused, state.pointer("zeros"))
        note_flaws(f, block, f.sum_of_lanes(state.pointer("norms").load(g.vector)))
        queries = block.integer("queries")
        state.pointer("means").store(g.zero(f))
        position = (batch * block.integer("heads") + head) * queries
        for name, buffer in (("center_of", "means"), ("opened", "opened"), ("grad_opened", "grad_opened")):
            used, place = block.flag("center" if name == "center_of" else "normalized"), state.pointer(buffer)
            with f.when(used), f.loop(0, g.lanes) as r:
                query = first + r
                x = block.pointer(name).at(position).load(F32, (query < queries).where(query, queries - 1))
                place.store((query < queries).where(x, f.number(F32, 0.0)) if name == "grad_opened" else x, r)
        with f.when(block.flag("normalized")), f.loop(0, block.integer("padded_size")) as k:
            place = state.pointer("grads").at(k * g.lanes)
            place.store(place.load(g.vector) * state.pointer("opened").load(g.vector))
        gather(f, block, state, "query", head_of(block, "query", batch, head), first)
        call(f, block, state, "pack_rows", state.pointer("query_rows"), f.integer(g.lanes * g.lanes))
        call(f, block, state, "count_keys", first)


def _define_hide_unseen(g: Generator) -> None:
    """At the keys of the panel at `first` that a query does not see it is fully inhibited: no gradient passes."""
    with g.routine("hide_unseen", first=I64) as (f, _, state, first):
        lanes = f.lane_numbers(g.lanes) + g.splat(f, first.convert("trunc", I32))
        with f.loop(0, g.lanes) as r:
            seen = lanes < g.splat(f, state.pointer("counts").load(I32, r))
            place = state.pointer("scores").at((first + r) * g.lanes)
            place.store(seen.where(place.load(g.vector), f.number(g.vector, FULLY_INHIBITED)))


def _define_score_gradients(g: Generator) -> None:
    """Scores of a panel, then the gradients of its values and, in `score_grads`, of its distances before the centring."""
    parameters = {"head": I64, "direct": I64, "keys": PTR, "rows": I64}
    with g.routine("score_gradients", **parameters) as (f, block, state, head, direct, keys, rows):
        padded_size, size = block.integer("padded_size"), block.integer("size")
        call(f, block, state, "begin_radius", head, f.integer(0))
        with f.loop(0, g.lanes) as r:
            state.pointer("row_sums").store(g.zero(f), r * g.lanes)
            state.pointer("nearest_distances").store(f.number(g.vector, FULLY_INHIBITED), r * g.lanes)
        with f.loop(0, state.integer("most"), g.lanes) as j:
            scores, distances = (state.pointer(name).at(j * g.lanes) for name in ("scores", "distances"))
            arguments = (
                *(Rows(state.pointer("query"), 1), keys.at(j * padded_size)),
                *(Rows(state.pointer("query_halves"), 1), state.pointer("key_halves").at(j)),
                *(Rows(state.pointer("means"), 1), Rows(scores, g.lanes), Rows(distances, g.lanes)),
                *(size, block.number("one"), state.number("slope"), state.number("alpha"), lowest_score(f, block)),
            )
            # Queries beyond the last repeat it, and have no gradients.
            call_score_tile(f, g, "centered_scores", direct.differs(0), f.integer(g.lanes), *arguments)
            with f.when(block.integer("center").equals(2)):
                call(f, block, state, "note_nearest", j)
            call(f, block, state, "value_gradients", j, f.integer(0), rows)
            with f.loop(1, block.integer("radii")) as radius:
                call(f, block, state, "begin_radius", head, radius)
                call(f, block, state, "scores_again", j)
                call(f, block, state, "value_gradients", j, radius, rows)
            with f.when(block.integer("radii") > 1):
                call(f, block, state, "begin_radius", head, f.integer(0))


def _define_scores_again(g: Generator) -> None:
    """Z of the panel of keys at `first` by the radius at hand."""
    with g.routine("scores_again", first=I64) as (f, block, state, first), f.loop(0, g.lanes) as r:
        place, lowest = (first + r) * g.lanes, g.splat(f, lowest_score(f, block))
        slope, alpha = g.splat(f, state.number("slope")), g.splat(f, state.number("alpha"))
        x = f.fma(state.pointer("distances").load(g.vector, place), slope, alpha)
        state.pointer("scores").store(f.larger(lowest, x), place)


def _define_value_gradients(g: Generator) -> None:
    """What the panel of keys at `first` gets by one radius, and gives to the gradients of the distances."""
    with g.routine("value_gradients", first=I64, radius=I64, rows=I64) as (f, block, state, first, radius, rows):
        with f.when((block.flag("causal") | block.flag("normalized")) & (first + g.lanes > state.integer("least"))):
            call(f, block, state, "hide_unseen", first)
        padded_size, radii, totals = block.integer("padded_size"), block.integer("radii"), state.pointer("totals")
        values, signs = (state.pointer(name).at(first * padded_size) for name in ("values", "value_signs"))
        value_grads = state.pointer("value_grads").at((radius * block.integer("padded_keys") + first) * padded_size)
        of_radius, of_delta = totals.at(radius * 3 * g.lanes), totals.at(radii * 3 * g.lanes)
        of_openings = of_delta.at((radius + 1) * g.lanes)
        weight = state.number("weight")
        with f.loop(0, rows, g.gradient_rows) as row:
            panels, skipped = (first + row) * g.lanes, row * g.lanes
            scores, distances, score_grads = (
                state.pointer(name).at(panels) for name in ("scores", "distances", "score_grads")
            )
            arguments = (
                *(state.pointer("grads").at(row), state.pointer("grads").at(row), values, signs, value_grads),
                *(scores, distances, score_grads, state.pointer("row_sums").at(skipped)),
                *(of_radius, of_delta, of_openings, state.pointer("grad_opened").at(row)),
                *(block.integer("size"), block.integer("normalized"), radius.equals(0).convert("zext", I64)),
                *(state.number("beta") * weight, state.number("delta"), f.absolute(weight), state.number("share")),
            )
            with f.when(is_gate(block)):
                f.call(f"gated_value_gradients_{g.gradient_rows}", *arguments)
            with f.when(is_gate(block).equals(0)):
                f.call(f"value_gradients_{g.gradient_rows}", *arguments)


def _define_note_nearest(g: Generator) -> None:
    """Of the panel of keys at `first` the nearest that each query sees, lane by lane: the first of several."""
    with g.routine("note_nearest", first=I64) as (f, _, state, first), f.loop(0, g.lanes) as r:
        numbers = f.lane_numbers(g.lanes) + g.splat(f, first.convert("trunc", I32))
        seen = numbers < g.splat(f, state.pointer("counts").load(I32, r))
        least, which = (state.pointer(name).at(r * g.lanes) for name in ("nearest_distances", "nearest"))
        x = state.pointer("distances").load(g.vector, (first + r) * g.lanes)
        nearer = seen & (x < least.load(g.vector))
        least.store(nearer.where(x, least.load(g.vector)))
        which.store(nearer.where(numbers, which.load(g.integers)))


def _define_center_gradients(g: Generator) -> None:
    """The gradients of the distances after the centring, times what the tile of the keys expects; 0 at invisible keys."""
    with g.routine("center_gradients", rows=I64) as (f, block, state, rows), f.loop(0, rows) as r:
        count = state.pointer("counts").load(I32, r)
        total = f.sum_of_lanes(state.pointer("row_sums").load(g.vector, r * g.lanes))
        some = (count > 0).where(count, f.number(I32, 1)).convert("sitofp", F32)
        mean = g.splat(f, block.integer("center").equals(1).where(total / some, f.number(F32, 0.0)))
        counts, lanes = g.splat(f, count), f.lane_numbers(g.lanes)
        with f.loop(0, state.integer("most"), g.lanes) as j:
            place = state.pointer("score_grads").at((j + r) * g.lanes)
            seen = lanes + g.splat(f, j.convert("trunc", I32)) < counts
            x = (place.load(g.vector) - mean) * (1 / SMALLEST_DIFFERENCE)
            place.store(seen.where(x, g.zero(f)))
        with f.when(block.integer("center").equals(2) & (count > 0)):
            distances, numbers = (state.pointer(name).at(r * g.lanes) for name in ("nearest_distances", "nearest"))
            x, which = distances.load(g.vector), numbers.load(g.integers)
            least = g.splat(f, f.smallest_lane(x))
            # As numbers of 32 bits, which hold any place exactly.
            first = f.smallest_lane((x <= least).where(which.convert("sitofp", g.vector), f.number(g.vector, math.inf)))
            j = first.convert("fptosi", I64)
            place = state.pointer("score_grads").at((j // g.lanes * g.lanes + r) * g.lanes + j % g.lanes)
            place.store(place.load(F32) - total * (1 / SMALLEST_DIFFERENCE))


def _define_query_gradients(g: Generator) -> None:
    """Adds to the gradients of the keys, and gathers those of the panel's queries in `outputs`."""
    with g.routine("query_gradients", rows=I64) as (f, block, state, rows):
        gradients = state.pointer("score_grads")
        with f.loop(0, block.integer("padded_size"), g.lanes) as k:
            keys, key_grads = (state.pointer(n).at(k * block.integer("padded_keys")) for n in ("key_rows", "key_grads"))
            with f.loop(0, rows, g.gradient_rows) as first:
                skipped = first * g.lanes
                queries, outputs = (state.pointer(n).at(k * g.lanes + skipped) for n in ("query_rows", "outputs"))
                mine = gradients.at(skipped)
                arguments = (queries, keys, key_grads, mine, mine, outputs, state.integer("most"))
                f.call(f"key_gradients_{g.gradient_rows}", *arguments)


def _define_panel(g: Generator) -> None:
    """One panel of queries, from `first` on."""
    parameters = {"batch": I64, "head": I64, "first": I64, "key": PTR}
    with g.routine("backward_panel", **parameters) as (f, block, state, batch, head, first, key):
        left = block.integer("queries") - first
        rows = (left < g.lanes).where(left, f.integer(g.lanes))
        call(f, block, state, "pack_queries", batch, head, first)
        direct, keys = pack_query_panel(f, block, state, key, g)
        call(f, block, state, "score_gradients", head, direct.convert("zext", I64), keys, rows)
        call(f, block, state, "center_gradients", rows)
        call(f, block, state, "query_gradients", rows)
        destination = head_of(block, "grad_query", batch, head)
        with f.loop(0, rows) as r:
            row = destination.at((first + r) * block.integer("grad_query_l"), I8)
            source = state.pointer("outputs").at(r * g.lanes)
            call(f, block, state, "store_row", source, f.integer(g.lanes * g.lanes), state.number("steepest"), row)


def _define_store_keys(g: Generator) -> None:
    """The gradients of keys and values; zeros where a key is not visible."""
    parameters = {"batch": I64, "head": I64, "grad_key": PTR, "grad_value": PTR}
    with g.routine("store_keys", **parameters) as (f, block, state, batch, head, grad_key, grad_value):
        padded_size, beta = block.integer("padded_size"), state.number("beta")
        with f.when(block.flag("padding")):
            mask = block.pointer("padding").at(batch * block.integer("padding_b"), I8)
            with f.loop(0, block.integer("keys")) as token:
                hidden = mask.at(token * block.integer("padding_l"), I8).load(I8).equals(0)
                with f.when(hidden):
                    for tensor, place in (("grad_key", grad_key), ("grad_value", grad_value)):
                        row = place.at(token * block.integer(f"{tensor}_l"), I8)
                        zeros, zero = state.pointer("zeros"), f.number(F32, 0.0)
                        call(f, block, state, "store_row", zeros, f.integer(g.lanes), zero, row)
        minus_slope = f.number(F32, 0.0) - state.number("steepest")
        with f.loop(0, state.integer("visible")) as j:
            token = state.pointer("index").load(I32, j).convert("zext", I64)
            row = grad_key.at(token * block.integer("grad_key_l"), I8)
            source = state.pointer("key_grads").at(j * g.lanes)
            call(f, block, state, "store_row", source, block.integer("padded_keys") * g.lanes, minus_slope, row)
            with f.when((j % g.lanes).equals(0)):
                call(f, block, state, "turn_value_grads", head, j)
            row = grad_value.at(token * block.integer("grad_value_l"), I8)
            source, factor = state.pointer("fetched").at(j % g.lanes * padded_size), f.variable(beta)
            with f.when(block.flag("dropout")):  # an open gate passes on gradients whatever the value
                skipped = batch * block.integer("dropout_b") + token * block.integer("dropout_l")
                kept = block.pointer("dropout").at(skipped, I8)
                factor.value = kept.load(I8).differs(0).where(beta, f.number(F32, 0.0))
            call(f, block, state, "store_row", source, f.integer(g.lanes), factor.value, row)


def _define_turn_value_grads(g: Generator) -> None:
    """The panel at `first`, as rows into `fetched`; what it adds to the gradients of beta."""
    with g.routine("turn_value_grads", head=I64, first=I64) as (f, block, state, head, first):
        padded_size, fetched = block.integer("padded_size"), state.pointer("fetched")
        values, signs = (state.pointer(name).at(first * padded_size) for name in ("values", "value_signs"))
        whole = g.splat(f, is_gate(block).where(f.number(F32, 2.0), f.number(F32, 1.0)))  # of what the gate has halves
        with f.loop(0, block.integer("radii")) as radius:
            call(f, block, state, "begin_radius", head, radius)
            skipped = (radius * block.integer("padded_keys") + first) * padded_size
            value_grads, weight = state.pointer("value_grads").at(skipped), g.splat(f, state.number("weight"))
            total = f.variable(g.zero(f))
            with f.loop(0, padded_size, g.lanes) as k:
                columns = []
                for channel in range(g.lanes):
                    grad, size, sign = (x.load(g.vector, (k + channel) * g.lanes) for x in (value_grads, values, signs))
                    total.value = f.fma(grad, size * sign, total.value)
                    columns.append(grad * weight)
                for r, row in enumerate(transposed(f, columns)):
                    place = fetched.at(k).at(padded_size * r)
                    place.store(radius.equals(0).where(row, place.load(g.vector) + row))
            place = state.pointer("totals").at((radius * 3 + 1) * g.lanes)
            place.store(f.fma(total.value, whole, place.load(g.vector)))


def _define_item(g: Generator) -> None:
    """A whole head: what its keys get comes from all its queries."""
    with g.routine("backward_item", item=I64) as (f, block, state, item):
        batch, head = item // block.integer("heads"), item % block.integer("heads")
        names = ("key", "value", "grad_key", "grad_value")
        key, value, grad_key, grad_value = (head_of(block, name, batch, head) for name in names)
        totals, radii = state.pointer("totals"), block.integer("radii")
        count = radii * 4 + 1
        with f.loop(0, count) as number:
            totals.store(g.zero(f), number * g.lanes)
        call(f, block, state, "begin_head", batch, head, key)
        with f.when(state.integer("visible") > 0):
            call(f, block, state, "pack_head", batch, key, value)
        with f.loop(0, block.integer("queries"), g.lanes) as first:
            call(f, block, state, "prefetch", item, first)
            call(f, block, state, "backward_panel", batch, head, first, key)
        call(f, block, state, "store_keys", batch, head, grad_key, grad_value)
        sums = block.pointer("sums").at(item * count)
        with f.loop(0, count) as number:
            sums.store(f.sum_of_lanes(totals.load(g.vector, number * g.lanes)), number)
        with f.loop(0, radii) as radius:  # what distances gave to gamma is over the root of the size
            place = sums.at(radius * 3 + 2)
            place.store(place.load(F32) * block.number("root"))


def backward_ir(machine: Machine) -> str:
    """The module that exports `backward`."""
    g = Generator(machine, BACKWARD_FIELDS)
    define_panels(g)
    define_backward_tiles(g)
    define_begin_head(g)
    define_prefetch(g, reads=("query", "key", "value", "grad_output"), writes=("grad_query", "grad_key", "grad_value"))
    for define in (
        *(_define_pack_head, _define_pack_queries, _define_hide_unseen, _define_note_nearest, _define_scores_again),
        *(_define_value_gradients, _define_score_gradients, _define_center_gradients, _define_query_gradients),
        *(_define_panel, _define_turn_value_grads, _define_store_keys, _define_item),
    ):
        define(g)
    define_entry(g, "backward")
    return g.module.text()
