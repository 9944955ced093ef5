"""The forward pass: scores of a panel of queries with all visible keys, then the values they let pass."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...forms import NOTHING_PASSES
from ...llvm.builder import F32, I8, I32, I64, PTR, Function, Value, Variable
from ...llvm.jit import Machine
from .few import define_few
from .fields import BUFFERS, FORWARD_FIELDS, RUN, STATE, Fields, each_item, thread_memory
from .panels import Generator, call, define_panels, gather, head_of, is_gate, note_flaws
from .tiles import FULLY_INHIBITED, Rows, call_tile, define_forward_tiles

# How large queries and keys may be, on the scale of the scores, against the mean size of the values: the relative error of
# the output is then below 5e-6 (measured: 2e-7 times that ratio).
_ROUNDING_BUDGET = 25.0


def define_entry(g: Generator, name: str) -> None:
    """What each thread runs, `void name(void *block)`: takes pieces of work until none is left.

    The pieces share nothing but the inputs, and each is done by one thread: who does which makes no difference.
    """
    with g.module.function(name, {"arguments": PTR}, exported=True) as (f, arguments):
        block = Fields(arguments, g.fields)
        memory = thread_memory(block)
        state, layout = Fields(memory, STATE), block.pointer("layout")
        for number, buffer in enumerate(BUFFERS):
            state.place(buffer).store(memory.at(layout.load(I64, number), I8))
        with f.loop(0, g.lanes) as r:
            state.pointer("opened").store(f.number(F32, 1.0), r)
        with f.loop(0, block.integer("padded_size")) as k:
            state.pointer("zeros").store(f.number(F32, 0.0), k)
            state.pointer("shift").store(f.number(F32, 0.0), k)  # what heads without visible keys find there
        with each_item(block) as item:
            call(f, block, state, f"{name}_item", item)


def _define_prefetch_rows(g: Generator) -> None:
    """The rows of a panel of a tensor's head."""
    with g.routine("prefetch_rows", source=PTR, stride=I64, first=I64, end=I64) as (f, block, _, source, stride, first, end):
        last = first + g.lanes
        with f.loop(first, (last < end).where(last, end)) as token, f.loop(0, block.integer("size"), 16) as k:
            f.prefetch(source.at(token * stride, I8).at(k))


def define_prefetch(g: Generator, reads: Sequence[str], writes: Sequence[str]) -> None:
    """`prefetch`, of the panel at `first` of each tensor: of those written, and of those that this thread will most likely
    read at the next item, one panel of them with each panel of this item. Where memory is far this is a third of the time.
    """
    _define_prefetch_rows(g)
    with g.routine("prefetch", item=I64, first=I64) as (f, block, state, item, first):

        def panel(tensor: str, item: Value) -> None:
            source = head_of(block, tensor, item // block.integer("heads"), item % block.integer("heads"))
            end = block.integer("keys" if tensor.endswith(("key", "value")) else "queries")
            call(f, block, state, "prefetch_rows", source, block.integer(f"{tensor}_l"), first, end)

        for tensor in writes:
            panel(tensor, item // block.integer("splits"))
        following = item + block.integer("threads")
        with f.when((following < block.integer("items")) & block.integer("splits").equals(1)):
            for tensor in reads:
                panel(tensor, following)


def _scalar_of(block: Fields, name: str, head: Value, radius: Value) -> Value:
    return block.pointer(name).at(radius * block.integer(f"{name}_r") + head * block.integer(f"{name}_h"), I8).load(F32)


def _define_begin_radius(g: Generator) -> None:
    """The scalars of a radius. The first one's beta is a factor of all, and what weighs the others."""
    with g.routine("begin_radius", head=I64, radius=I64) as (f, block, state, head, radius):
        alpha, beta, gamma = (_scalar_of(block, name, head, radius) for name in ("alpha", "beta", "gamma"))
        slope, one = gamma * block.number("root"), f.number(F32, 1.0)
        state.set("alpha", alpha)
        state.set("slope", slope)
        state.set("weight", radius.equals(0).where(one, beta))
        steepest = state.number("steepest")
        state.set("share", steepest.equals(0.0).where(one, slope / steepest))


def define_begin_head(g: Generator) -> None:
    """What forward and backward pass first do with a head: its scalars, its visible keys, and the shift."""
    _define_begin_radius(g)
    with g.routine("begin_head", batch=I64, head=I64, key=PTR) as (f, block, state, batch, head, key):
        zero = f.integer(0)
        state.set("beta", _scalar_of(block, "beta", head, zero))
        state.set("delta", f.number(F32, 0.0))
        with f.when(block.flag("normalized")):
            state.set("delta", _scalar_of(block, "delta", head, zero))
        note_flaws(f, block, state.number("beta"), state.number("delta"))
        state.set("steepest", f.number(F32, 0.0))
        with f.loop(0, block.integer("radii")) as radius:
            call(f, block, state, "begin_radius", head, radius)
            note_flaws(f, block, *(state.number(name) for name in ("alpha", "slope", "weight")))
            slope, steepest = state.number("slope"), state.number("steepest")
            state.set("steepest", (f.absolute(slope) > f.absolute(steepest)).where(slope, steepest))
        call(f, block, state, "begin_radius", head, zero)
        call(f, block, state, "index_keys", batch)
        state.set("shifted", f.integer(0))
        state.set("plain_ready", f.integer(0))
        for name in ("largest_key", "mean_key", "limit"):
            state.set(name, f.number(F32, 0.0))
        with f.when((state.integer("visible") > 0) & block.flag("few").equals(0)):
            call(f, block, state, "choose_shift", key)


@dataclass
class HeadSizes:
    """Running sizes of a head's keys and values while they are packed, lane by lane."""

    largest_key: Variable
    keys: Variable
    values: Variable

    @classmethod
    def none(cls, f: Function, g: Generator) -> "HeadSizes":
        return cls(*(f.variable(g.zero(f)) for _ in range(3)))

    def add_keys(self, f: Function, norms: Value) -> None:
        self.largest_key.value = f.larger(norms, self.largest_key.value)
        self.keys.value = self.keys.value + norms

    def add_values(self, norms: Value) -> None:
        self.values.value = self.values.value + norms


def pack_key_panel(f: Function, g: Generator, block: Fields, state: Fields, j: Value, sizes: HeadSizes) -> None:
    """The gathered keys at j, shifted."""
    panel = state.pointer("keys").at(j * block.integer("padded_size"))
    call(f, block, state, "pack_transposed", panel, state.pointer("key_halves").at(j), state.pointer("shift"))
    sizes.add_keys(f, state.pointer("norms").load(g.vector))


def set_sizes(f: Function, g: Generator, block: Fields, state: Fields, sizes: HeadSizes) -> None:
    """What `pack_query_panel` must know of a head's keys and values."""
    visible = state.integer("visible")
    in_panels = ((visible + g.lanes - 1) // g.lanes * g.lanes).convert("sitofp", F32)
    state.set("largest_key", f.largest_lane(sizes.largest_key.value))
    keys, values = f.sum_of_lanes(sizes.keys.value), f.sum_of_lanes(sizes.values.value)
    note_flaws(f, block, keys, values)
    state.set("mean_key", keys / in_panels)
    count = (visible * block.integer("size")).convert("sitofp", F32)
    # What passes of a constant of 1 / delta is a share of it: an error of the scores is one of that too.
    budget = f.smaller(values / count, f.number(F32, 1.0) / f.absolute(state.number("delta"))) * _ROUNDING_BUDGET
    state.set("limit", budget / f.absolute(state.number("steepest")))


def _fast_form_is_exact(f: Function, g: Generator, block: Fields, state: Fields, norms: Value) -> Value:
    """For each query of a panel whether 2 sum max - sum - sum is as good as sum |q - k|; `norms`: their absolute sums.

    Its rounding errors are those of the sizes of query and key, not of their distance. They are nothing to the values if
    the sizes are within the limit. And they are no larger than the direct form's where query and key are far apart; with
    a threshold and scores centred by their mean, near keys (nearer than an eighth of the sizes) are not inhibited at all,
    whatever their error, if alpha is small. The mean distance is bounded from below by the triangle inequality, on both
    sides.
    """
    largest, mean = (g.splat(f, state.number(name)) for name in ("largest_key", "mean_key"))
    sizes = norms + largest
    small = sizes <= g.splat(f, state.number("limit"))
    mean_distance = f.larger(norms - mean * 0.25, mean - norms)
    far = (mean_distance - sizes * 0.125) * g.splat(f, state.number("slope")) >= g.splat(f, state.number("alpha"))
    relevant = block.integer("center").equals(1) & (state.number("slope") > 0.0)
    relevant = relevant & block.integer("radii").equals(1) & block.flag("normalized").equals(0) & is_gate(block).equals(0)
    return small | (far & f.broadcast(relevant, g.lanes))


def pack_query_panel(f: Function, block: Fields, state: Fields, key: Value, g: Generator) -> tuple[Value, Value]:
    """The gathered queries, in the form in which they meet the keys; returns whether that is the direct one, and keys."""
    query, halves, zeros = state.pointer("query"), state.pointer("query_halves"), state.pointer("zeros")
    call(f, block, state, "pack_transposed", query, halves, state.pointer("shift"))
    norms = state.pointer("norms").load(g.vector)
    # Scores beyond float32 as well.
    note_flaws(f, block, (f.sum_of_lanes(norms) + state.number("largest_key")) * state.number("steepest"))
    exact = _fast_form_is_exact(f, g, block, state, norms).convert("uitofp", g.vector)
    direct = f.sum_of_lanes(exact) < float(g.lanes)
    replace = direct & state.flag("shifted")
    with f.when(replace):
        call(f, block, state, "pack_transposed", query, halves, zeros)
        with f.when(state.flag("plain_ready").equals(0)):
            call(f, block, state, "pack_plain_keys", key)
    return direct, replace.where(state.pointer("plain_keys"), state.pointer("keys"))


def call_score_tile(f: Function, g: Generator, kind: str, direct: Value, rows: Value, *arguments: Value | Rows) -> None:
    with f.when(direct):
        call_tile(f, g, f"{kind}_plain", rows, *arguments)
    with f.when(direct.equals(0)):
        call_tile(f, g, f"{kind}_shifted", rows, *arguments)


def _define_pack_head(g: Generator) -> None:
    with g.routine("pack_head", batch=I64, key=PTR, value=PTR) as (f, block, state, batch, key, source):
        visible, padded_size = state.integer("visible"), block.integer("padded_size")
        sums = state.pointer("value_sums")
        with f.loop(0, (visible + RUN - 1) // RUN * padded_size) as k:
            sums.store(f.number(F32, 0.0), k)
        sizes = HeadSizes.none(f, g)
        with f.loop(0, visible, g.lanes) as j:
            gather(f, block, state, "key", key, j)
            pack_key_panel(f, g, block, state, j, sizes)
            gather(f, block, state, "value", source, j, zeros=True)
            call(f, block, state, "drop_rows", batch, j)
            run = sums.at(j // RUN * padded_size)
            stride = block.integer("padded_keys") * g.lanes
            blocks, signs = (state.pointer(name).at(j * g.lanes) for name in ("values", "value_signs"))
            call(f, block, state, "pack_values", blocks, signs, stride, run)
            sizes.add_values(state.pointer("norms").load(g.vector))
        set_sizes(f, g, block, state, sizes)


def _define_sum_partly(g: Generator) -> None:
    """Adds to `row_sums` the visible ones of the scores of the keys from `first` to `last`."""
    with g.routine("sum_partly", first=I64, last=I64) as (f, _, state, first, last):
        counts, total = state.pointer("counts").load(g.integers), f.variable(state.pointer("row_sums").load(g.vector))
        with f.loop(first, last) as j:
            seen = counts > g.splat(f, j.convert("trunc", I32))
            x = state.pointer("scores").load(g.vector, j * g.lanes)
            total.value = total.value + seen.where(x, g.zero(f))
        state.pointer("row_sums").store(total.value)


def _define_panel_scores(g: Generator) -> None:
    """The scores of a panel of queries: Z, or the distances and their sums, of which `finish_scores` makes Z."""
    with g.routine("panel_scores", direct=I64, keys=PTR) as (f, block, state, direct, keys):
        most, least, size = state.integer("most"), state.integer("least"), block.integer("size")
        zeros, row_sums = g.zero(f), state.pointer("row_sums")
        total = f.variable(zeros)  # of panels, each summed by itself: short sums have small rounding errors
        with f.loop(0, most, g.lanes) as j:
            arguments = (
                *(Rows(keys.at(j * block.integer("padded_size")), 1), state.pointer("query")),
                *(Rows(state.pointer("key_halves").at(j), 1), state.pointer("query_halves")),
                *(row_sums, Rows(state.pointer("scores").at(j * g.lanes), g.lanes), row_sums),
                *(size, block.number("one"), state.number("slope"), state.number("alpha"), f.number(F32, 0.0)),
            )
            with f.when(block.flag("staged")):
                row_sums.store(zeros)
                call_score_tile(f, g, "sums", direct.differs(0), most - j, *arguments)
                with f.when(j + g.lanes > least):  # the tile's sum has more in it than every row sees
                    row_sums.store(zeros)
                    end = j + g.lanes
                    call(f, block, state, "sum_partly", j, (end < most).where(end, most))
                total.value = total.value + row_sums.load(g.vector)
            with f.when(block.flag("staged").equals(0)):
                call_score_tile(f, g, "scores", direct.differs(0), most - j, *arguments)
        row_sums.store(total.value)


def lowest_score(f: Function, block: Fields) -> Value:
    return is_gate(block).where(f.number(F32, -math.inf), f.number(F32, 0.0))


def _define_find_center(g: Generator) -> None:
    """What the distances of a panel's queries are centred by, plain ones: their mean or the least, 0 where they are not."""
    with g.routine("find_center", direct=I64) as (f, block, state, direct):
        counts, zero, one = state.pointer("counts").load(g.integers), g.zero(f), f.number(g.vector, 1.0)
        seen, center = counts.convert("sitofp", g.vector), f.variable(zero)
        with f.when(block.integer("center").equals(1)):
            center.value = state.pointer("row_sums").load(g.vector) / f.larger(seen, one)
        with f.when(block.integer("center").equals(2)):
            nothing = f.number(g.vector, FULLY_INHIBITED)
            center.value = nothing
            with f.loop(0, state.integer("most")) as j:
                x = state.pointer("scores").load(g.vector, j * g.lanes)
                visible = counts > g.splat(f, j.convert("trunc", I32))
                center.value = f.smaller(center.value, visible.where(x, nothing))
            center.value = (seen > 0.0).where(center.value, zero)
        scale = direct.differs(0).where(one, f.number(g.vector, 2.0))
        state.pointer("row_sums").store(center.value * scale)


def _define_finish_scores(g: Generator) -> None:
    """From distances to Z, of a gate not rectified."""
    with g.routine("finish_scores", direct=I64) as (f, block, state, direct):
        scale = direct.differs(0).where(f.number(g.vector, 1.0), f.number(g.vector, 2.0))
        lowest = g.splat(f, lowest_score(f, block))
        less = g.zero(f) - state.pointer("row_sums").load(g.vector)
        slope, alpha = g.splat(f, state.number("slope")), g.splat(f, state.number("alpha"))
        with f.loop(0, state.integer("most")) as j:
            x = f.fma(state.pointer("scores").load(g.vector, j * g.lanes), scale, less)
            state.pointer("shifts").store(f.larger(lowest, f.fma(x, slope, alpha)), j * g.lanes)


def _define_sum_openings(g: Generator) -> None:
    """Adds to `opened` how much passes of a constant, over the keys that each query of a panel sees."""
    with g.routine("sum_openings") as (f, block, state):
        counts, zero, delta = state.pointer("counts").load(g.integers), g.zero(f), g.splat(f, state.number("delta"))
        gate = is_gate(block)
        start, most = (gate.where(f.number(F32, a), f.number(F32, b)) for a, b in ((0.5, 1.0), (1.0, math.inf)))
        start, most = g.splat(f, start), g.splat(f, most)
        weight = g.splat(f, f.absolute(state.number("weight")))
        total = f.variable(state.pointer("opened").load(g.vector))
        with f.loop(0, state.integer("most"), g.lanes) as panel:  # short sums have small rounding errors
            some, left = f.variable(zero), state.integer("most") - panel
            with f.loop(0, (left < g.lanes).where(left, f.integer(g.lanes))) as j:
                ramp = start - delta * state.pointer("shifts").load(g.vector, (panel + j) * g.lanes)
                visible = counts > g.splat(f, (panel + j).convert("trunc", I32))
                some.value = some.value + visible.where(f.smaller(f.larger(zero, ramp), most), zero)
            total.value = f.fma(some.value, weight, total.value)
        state.pointer("opened").store(total.value)


def _define_hide_future(g: Generator) -> None:
    """At the keys that only some of a panel's queries see the others are fully inhibited, to the end of the run."""
    with g.routine("hide_future") as (f, _, state):
        counts, most, visible = state.pointer("counts").load(g.integers), state.integer("most"), state.integer("visible")
        end = (most + RUN - 1) // RUN * RUN
        end = (end < visible).where(end, visible)
        with f.loop(state.integer("least"), end) as j:
            seen = counts > g.splat(f, j.convert("trunc", I32))
            place = state.pointer("shifts").at(j * g.lanes)
            place.store(seen.where(place.load(g.vector), f.number(g.vector, FULLY_INHIBITED)))
        state.set("most", end)


def _define_panel_values(g: Generator) -> None:
    """Adds what a radius lets pass to the outputs of a panel, not yet times beta."""
    with g.routine("panel_values", rows=I64) as (f, block, state, rows):
        most, padded_size, outputs = state.integer("most"), block.integer("padded_size"), state.pointer("outputs")
        with f.loop(0, most, RUN) as j:
            count = most - j
            count = (count < RUN).where(count, f.integer(RUN))
            with f.loop(0, padded_size, g.lanes) as k:
                skipped = k * block.integer("padded_keys") + j * g.lanes
                values, signs = (state.pointer(name).at(skipped) for name in ("values", "value_signs"))
                sums = state.pointer("value_sums").at(j // RUN * padded_size + k)
                shifts, results = Rows(state.pointer("shifts").at(j * g.lanes), 1), Rows(outputs.at(k * g.lanes), g.lanes)
                arguments = (shifts, values, signs, sums, results, count, block.number("one"), state.number("weight"))
                with f.when(is_gate(block)):
                    call_tile(f, g, "gated_values", rows, *arguments)
                with f.when(is_gate(block).equals(0)):
                    call_tile(f, g, "values", rows, *arguments)


def _define_keep(g: Generator) -> None:
    """The first `rows` numbers at `source`, for the backward pass."""
    with g.routine("keep", destination=PTR, source=PTR, rows=I64) as (f, _, _, *pointers, rows), f.loop(0, rows) as r:
        destination, source = pointers
        destination.store(source.load(F32, r), r)


def _define_panel(g: Generator) -> None:
    """One panel of queries, from `first` on."""
    parameters = {"batch": I64, "head": I64, "first": I64, "key": PTR}
    with g.routine("forward_panel", **parameters) as (f, block, state, batch, head, first, key):
        queries = block.integer("queries")
        left = queries - first
        rows = (left < g.lanes).where(left, f.integer(g.lanes))
        gather(f, block, state, "query", head_of(block, "query", batch, head), first)
        call(f, block, state, "count_keys", first)
        direct, keys = pack_query_panel(f, block, state, key, g)
        call(f, block, state, "panel_scores", direct.convert("zext", I64), keys)
        position = (batch * block.integer("heads") + head) * queries + first
        with f.when(block.flag("staged")):
            call(f, block, state, "find_center", direct.convert("zext", I64))
        with f.when(block.flag("center")):
            call(f, block, state, "keep", block.pointer("center_of").at(position), state.pointer("row_sums"), rows)
        with f.when(block.flag("normalized")):
            state.pointer("opened").store(f.number(g.vector, NOTHING_PASSES))
        with f.loop(0, block.integer("padded_size")) as k:
            state.pointer("outputs").store(g.zero(f), k * g.lanes)
        with f.loop(0, block.integer("radii")) as radius:
            call(f, block, state, "begin_radius", head, radius)
            with f.when(block.flag("staged")):
                call(f, block, state, "finish_scores", direct.convert("zext", I64))
            with f.when(block.flag("normalized")):
                call(f, block, state, "sum_openings")
            with f.when(block.flag("causal")):
                call(f, block, state, "hide_future")
            call(f, block, state, "panel_values", rows)
        with f.when(block.flag("normalized")):
            call(f, block, state, "keep", block.pointer("opened").at(position), state.pointer("opened"), rows)
        destination = head_of(block, "output", batch, head)
        with f.loop(0, rows) as r:
            row = destination.at((first + r) * block.integer("output_l"), I8)
            source = state.pointer("outputs").at(r * g.lanes)
            factor = state.number("beta") / state.pointer("opened").load(F32, r)
            call(f, block, state, "store_row", source, f.integer(g.lanes * g.lanes), factor, row)


def _define_item(g: Generator) -> None:
    """One share of the panels of a head."""
    with g.routine("forward_item", item=I64) as (f, block, state, item):
        splits, heads = block.integer("splits"), block.integer("heads")
        share, batch, head = item % splits, item // splits // heads, item // splits % heads
        key, value = (head_of(block, name, batch, head) for name in ("key", "value"))
        call(f, block, state, "begin_head", batch, head, key)
        few = block.flag("few")
        with f.when(few):
            call(f, block, state, "few", batch, head, key, value)
        with f.when((state.integer("visible") > 0) & few.equals(0)):
            call(f, block, state, "pack_head", batch, key, value)
        panels = few.where(f.integer(0), (block.integer("queries") + g.lanes - 1) // g.lanes)
        with f.loop(share * panels // splits, (share + 1) * panels // splits) as panel:
            call(f, block, state, "prefetch", item, panel * g.lanes)
            call(f, block, state, "forward_panel", batch, head, panel * g.lanes, key)


def forward_ir(machine: Machine) -> str:
    """The module that exports `forward`."""
    g = Generator(machine, FORWARD_FIELDS)
    define_panels(g)
    define_forward_tiles(g)
    define_begin_head(g)
    define_prefetch(g, reads=("query", "key", "value"), writes=("output",))
    define_few(g)
    for define in (
        *(_define_pack_head, _define_sum_partly, _define_panel_scores, _define_find_center, _define_finish_scores),
        *(_define_sum_openings, _define_hide_future, _define_panel_values, _define_keep, _define_panel, _define_item),
    ):
        define(g)
    define_entry(g, "forward")
    return g.module.text()
