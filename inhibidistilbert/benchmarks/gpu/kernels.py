"""The operator beside softmax attention and torch's own operations, as `inhibidistilbert benchmark kernels` measures it."""

from collections.abc import Iterator, Mapping

from .. import kernels_gpu
from ..kernels_gpu import BASELINE, Device, Problem, Rival, Timing
from ..timing import Budget
from .findings import Deadline, Finding

# The shape of the goals first: what comes last is left out when time is short.
PROBLEMS = tuple(
    Problem(batch, 12, length, 64) for batch, length in ((8, 2048), (32, 128), (8, 512), (1, 128), (8, 4096), (8, 1024))
)
INHIBITOR, COMPOSED = "inhibitor fp32", "inhibitor fp32, composed with cdist"
_COMPILED = "inhibitor fp32, definition under torch.compile"
_BUDGET = Budget(seconds=1, least=3, most=15)
# What a problem takes at most, its compilations included; of torch.compile more.
_SECONDS, _COMPILED_SECONDS = 12, 30


def measure(
    deadline: Deadline, device: Device | None = None, rivals: Mapping[str, Rival] | None = None
) -> Iterator[Finding]:
    """Times, ratios, memory and the share of the floor at every problem, then torch.compile at the first."""
    device = kernels_gpu.find_gpu() if device is None else device
    rivals = kernels_gpu.rivals() if rivals is None else rivals
    plain = {name: rival for name, rival in rivals.items() if name != _COMPILED}
    for problem in PROBLEMS:
        if not deadline.leaves(_SECONDS):
            yield Finding.skipped("all rivals", setting(problem), deadline.reason)
            continue
        yield from _findings(kernels_gpu.run(device, [problem], plain, budget=_BUDGET))
    if _COMPILED not in rivals:
        return
    if not deadline.leaves(_COMPILED_SECONDS):
        yield Finding.skipped(_COMPILED, setting(PROBLEMS[1]), deadline.reason)
        return
    compiled = {name: rivals[name] for name in (BASELINE, _COMPILED)}
    timings = kernels_gpu.run(device, [PROBLEMS[1]], compiled, budget=_BUDGET)
    yield from _findings([timing for timing in timings if timing.rival == _COMPILED])


def setting(problem: Problem, pass_name: str = "") -> str:
    shape = f"{problem.batch}×{problem.heads}×{problem.length}×{problem.head_dim}"
    return f"{shape}, {pass_name}" if pass_name else shape


def _findings(timings: list[Timing]) -> Iterator[Finding]:
    medians = {
        (timing.rival, timing.pass_name): timing.milliseconds.median for timing in timings if timing.milliseconds is not None
    }
    for timing in timings:
        where = setting(timing.problem, timing.pass_name)
        if timing.milliseconds is None:
            yield Finding.skipped(timing.rival, where, "out of memory")
            continue
        yield Finding.of(timing.rival, where, "time", timing.milliseconds, "ms")
        if timing.ratio is not None:
            yield Finding.of(timing.rival, where, f"time / {BASELINE}", timing.ratio)
        if timing.share_of_floor is not None:
            yield Finding(timing.rival, where, "share of the floor", timing.share_of_floor)
        yield Finding(timing.rival, where, "extra memory", timing.peak_bytes, "B")
        slow = medians.get((COMPOSED, timing.pass_name))
        if timing.rival == INHIBITOR and slow is not None:
            yield Finding(timing.rival, where, "times faster than cdist", slow / timing.milliseconds.median)
