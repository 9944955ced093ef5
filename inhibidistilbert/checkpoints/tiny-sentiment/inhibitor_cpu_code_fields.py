"""What the launchers hand to compiled code: one block of 64-bit words, read on the other side by the same names."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from math import ceil

from .inhibitor_llvm_builder import F32, I8, I64, PTR, Function, Value
from .inhibitor_llvm_jit import Machine

# A block is two parts: words that depend on shapes, strides and options alone, …
SHAPE_FIELDS = (
    *("items", "splits", "threads", "workspace_size", "layout"),  # how the threads share the work and their memory
    *("heads", "queries", "keys", "size", "dtype"),
    *("center", "inhibition", "causal"),  # the first two as `Form.numbers`
    "normalized",  # whether there is a delta
    "radii",
    "staged",  # whether scores are finished once all distances of a panel are known
    "few",  # whether the queries go one by one, see `few.py`
    *("padded_keys", "padded_size"),  # rounded up to whole vectors
    *("root", "one"),  # float32: 1 / sqrt(size), and 1, which the compiler must not know
)
# … and those of one call.
_CALL_FIELDS = (
    *("next", "arrived", "workspace"),  # counters, 0 in the beginning; memory for the threads
    "flawed",  # set to 1 where a number that counts is not finite
    # Each (B, H, M) float32: what a query's distances are centred by, what its sum is divided by (backward: times), and the
    # gradient of what passes of a constant.
    *("center_of", "opened", "grad_opened"),
    "sums",  # (items, 4 · radii + 1) float32, what each adds to the running sums in `totals`
)
# The first part holds the tensors' strides, the second their addresses. Strides are in bytes: `_r` radius to radius, `_b`
# sequence to sequence, `_h` head to head, `_l` token to token, `_d` channel to channel.
_SCALARS, _MASKS = ("alpha", "beta", "gamma", "delta"), ("padding", "dropout")
_INPUTS, _FORWARD_TENSORS = ("query", "key", "value"), ("output",)
_BACKWARD_TENSORS = ("grad_output", "grad_query", "grad_key", "grad_value")


def _fields(*tensors: str) -> tuple[str, ...]:
    strides = [(_SCALARS, ("_r", "_h")), (_MASKS, ("_b", "_l")), (tensors, ("_b", "_h", "_l", "_d"))]
    of_strides = [name + part for names, parts in strides for name in names for part in parts]
    return (*SHAPE_FIELDS, *of_strides, *_CALL_FIELDS, *_SCALARS, *_MASKS, *tensors)


FORWARD_FIELDS = _fields(*_INPUTS, *_FORWARD_TENSORS)
BACKWARD_FIELDS = _fields(*_INPUTS, *_BACKWARD_TENSORS)

# After so many keys the sum over values is taken off: within a run, values that are inhibited cancel exactly.
RUN = 64

# The state of one thread: pointers to its buffers, in the order of the layout, …
_SHARED_BUFFERS = (
    "rows",  # addresses of the rows at hand
    "fetched",  # those rows as float32, where they are not that already
    "zeros",  # a row of zeros
    "shift",  # what is subtracted from queries and keys before they meet
    "index",  # the visible keys of the sequence, in order
    "prefix",  # how many of the first j + 1 keys are visible
    "counts",  # how many visible keys each query of a panel sees
    "norms",  # sums of absolute values of what was packed last
    "keys",  # shifted; transposed panels: [panel][channel][lane = key]
    "key_halves",  # minus half the sum of each
    "plain_keys",  # as `keys`, not shifted
    "query",  # one panel: [channel][lane = query]
    "query_halves",
    "scores",  # of a panel with all keys: [key][lane = query], in the backward pass [panel of keys][query][lane = key]
    "row_sums",
    "opened",  # of a panel: what its sums are divided by, in the backward pass times
    "outputs",  # of a panel: [block of channels][query][lane = channel]
    # [block of channels][key][lane = channel], in the backward pass transposed; absolute where there are signs; halves for a
    # gate.
    "values",
    "value_signs",  # as `values`, 1 or -1; not in the forward pass with AVX-512
)
_FORWARD_BUFFERS = (
    "value_sums",  # of each run
    "shifts",  # as `scores`, which it is for one radius: Z, of which the values go down; `scores` are then distances
)
_BACKWARD_BUFFERS = (
    "value_grads",  # as `values`, for each radius
    "key_rows",  # [block of channels][key][lane = channel], not shifted
    "key_grads",  # as `key_rows`
    "query_rows",  # of a panel: [block of channels][query][lane = channel], not shifted
    "grads",  # of a panel: [channel][lane = query]
    "means",
    "grad_opened",
    "nearest_distances",  # of a panel: [query][lane], the least of every so many keys
    "nearest",  # which key that is
    "distances",  # as `scores`, centred
    "score_grads",  # as `distances`, which it is for one radius: gradients of the distances over `steepest`
    # Running sums: for each radius those of the gradients of alpha, beta and gamma; that of delta; for each radius what its
    # openings add to the gradient of its beta.
    "totals",
)
BUFFERS = (*_SHARED_BUFFERS, *_FORWARD_BUFFERS, *_BACKWARD_BUFFERS)
# … and what it knows of the head it works on.
_NUMBERS = ("visible", "shifted", "plain_ready", "most", "least", "beta", "delta")
# `steepest`: the slope of all radii that is furthest from 0. Of the radius at hand: `weight` and `share`, what it counts
# beside the first, and its slope over the steepest.
_RADIUS = ("steepest", "alpha", "slope", "weight", "share")
_SIZES = ("largest_key", "mean_key", "limit")
STATE = (*BUFFERS, *_NUMBERS, *_RADIUS, *_SIZES)


def panel_width(machine: Machine) -> int:
    """Rows of a panel, and lanes of a vector as the generated code knows it.

    Short vectors go in pairs: a number is then loaded once for two of them, and loads would else be the limit.
    """
    return machine.lanes if machine.lanes == 16 else 2 * machine.lanes


class Fields:
    """The words of a block in memory, by name, for code generators."""

    def __init__(self, pointer: Value, names: Sequence[str]) -> None:
        self.address = pointer
        self._places = {name: number for number, name in enumerate(names)}

    @property
    def function(self) -> Function:
        return self.address.function

    def place(self, name: str) -> Value:
        return self.address.at(self._places[name], I64)

    def integer(self, name: str) -> Value:
        return self.place(name).load(I64)

    def pointer(self, name: str) -> Value:
        return self.place(name).load(PTR)

    def number(self, name: str) -> Value:
        """A float32 in the first half of the word."""
        return self.place(name).load(F32)

    def flag(self, name: str) -> Value:
        """Whether the word is not 0."""
        return self.integer(name).differs(0)

    def set(self, name: str, value: Value) -> None:
        self.place(name).store(value)


def thread_memory(block: Fields) -> Value:
    """Where the memory of this thread begins, one more that has arrived at the block."""
    arrived = block.function.atomic_add(block.place("arrived"), 1)
    return block.pointer("workspace").at(arrived * block.integer("workspace_size"), I8)


@contextmanager
def each_item(block: Fields) -> Iterator[Value]:
    """Opens a loop over the numbers of the pieces of work, which the threads take from the block until none is left."""
    f, items = block.function, block.integer("items")
    left = f.variable(items - f.atomic_add(block.place("next"), 1))
    with f.while_positive(left):
        yield items - left.value
        left.value = items - f.atomic_add(block.place("next"), 1)


@lru_cache(maxsize=4096)
def workspace_layout(lanes: int, keys: int, size: int, backward: bool, radii: int = 1) -> tuple[tuple[int, ...], int]:
    """Where each of `BUFFERS` is in a thread's memory, in bytes, and how much memory that is.

    O((keys · radii + lanes) · size) of it, never queries · keys.
    """
    keys, size = ceil(keys / lanes) * lanes, ceil(size / lanes) * lanes
    panel, row = lanes * size, lanes
    words = {
        **{"rows": 2 * row, "fetched": panel, "zeros": size, "shift": size, "index": keys, "prefix": keys, "counts": row},
        **{"norms": row, "keys": keys * size, "key_halves": keys, "plain_keys": keys * size, "query": panel},
        **{"query_halves": row, "scores": keys * lanes, "row_sums": lanes * lanes, "opened": row, "outputs": panel},
        **{"values": keys * size, "value_sums": ceil(keys / RUN) * size, "value_signs": keys * size},
        **{
            "shifts": keys * lanes,
            "value_grads": radii * keys * size,
            "key_rows": keys * size,
            "key_grads": keys * size,
            "query_rows": panel,
        },
        **{"grads": panel, "means": row, "grad_opened": row, "nearest_distances": lanes * lanes, "nearest": lanes * lanes},
        **{"distances": keys * lanes, "score_grads": keys * lanes, "totals": (4 * radii + 1) * lanes},
    }
    unused = _FORWARD_BUFFERS if backward else _BACKWARD_BUFFERS
    same = {"shifts": "scores", "score_grads": "distances"} if radii == 1 else {}
    offsets: dict[str, int] = {}
    end = -(-len(STATE) * 8 // 64) * 64
    for name in BUFFERS:
        offsets[name] = offsets[same[name]] if name in same else end
        end += 0 if name in unused or name in same else -(-words[name] * 4 // 64) * 64
    return tuple(offsets.values()), end
