"""The operator beside softmax attention and torch's own operations, as `inhibidistilbert benchmark kernels` measures it."""

from collections.abc import Iterator, Mapping

from ...support.benchmark_results import KernelRow, Shape
from .. import kernels_gpu
from ..kernels_gpu import Gpu
from ..operators import BASELINE, Operator
from ..timing import Budget
from .findings import Deadline, Finding

# The shape of the goals first: what comes last is left out when time is short.
SHAPES = tuple(
    Shape(batch, 12, length, 64) for batch, length in ((8, 2048), (32, 128), (8, 512), (1, 128), (8, 4096), (8, 1024))
)
INHIBITOR, COMPOSED = "inhibitor fp32", "inhibitor fp32, composed with cdist"
_COMPILED = "inhibitor fp32, definition under torch.compile"
_FIGURES = (
    ("time", "milliseconds", "ms"),
    (f"time / {BASELINE}", "ratio", ""),
    ("share of the floor", "share_of_floor", ""),
    ("extra memory", "peak_bytes", "B"),
)
_BUDGET = Budget(seconds=1, least=3, most=15)
# What a shape takes at most, its compilations included; of torch.compile more.
_SECONDS, _COMPILED_SECONDS = 14, 30


def measure(deadline: Deadline, device: Gpu | None = None, peers: Mapping[str, Operator] | None = None) -> Iterator[Finding]:
    """Times, ratios, memory and the share of the floor at every shape, then torch.compile at the second."""
    device = kernels_gpu.find_gpu() if device is None else device
    peers = kernels_gpu.peers() if peers is None else peers
    plain = {name: peer for name, peer in peers.items() if name != _COMPILED}
    for shape in SHAPES:
        if not deadline.leaves(_SECONDS):
            yield Finding.skipped("all peers", str(shape), deadline.reason)
            continue
        yield from _findings(kernels_gpu.run(device, [shape], plain, budget=_BUDGET))
    if _COMPILED not in peers:
        return
    if not deadline.leaves(_COMPILED_SECONDS):
        yield Finding.skipped(_COMPILED, str(SHAPES[1]), deadline.reason)
        return
    compiled = {name: peers[name] for name in (BASELINE, _COMPILED)}
    rows = kernels_gpu.run(device, [SHAPES[1]], compiled, budget=_BUDGET)
    yield from _findings([row for row in rows if row.peer == _COMPILED])


def setting(shape: Shape, pass_name: str) -> str:
    return f"{shape}, {pass_name}"


def _findings(rows: list[KernelRow]) -> Iterator[Finding]:
    medians = {(row.peer, row.pass_name): row.milliseconds.median for row in rows if row.milliseconds is not None}
    for row in rows:
        where = setting(row.shape, row.pass_name)
        if row.milliseconds is None:
            yield Finding.skipped(row.peer, where, row.note)
            continue
        yield from Finding.of_row(row.peer, where, row, _FIGURES)
        slow = medians.get((COMPOSED, row.pass_name))
        if row.peer == INHIBITOR and slow is not None:
            yield Finding(row.peer, where, "times faster than cdist", slow / row.milliseconds.median)
