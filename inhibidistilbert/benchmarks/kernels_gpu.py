"""Times, memory and share of the possible of the Triton kernels on the GPU of this machine, beside softmax attention."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..kernels.attention import inhibitor_attention
from ..support.errors import UserError
from .composed import composed_attention
from .timing import Budget, Quantiles, interleave, ratios

SEED = 0
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
BASELINE = "softmax fp32"
# Inputs that take turns, so that none lies in a cache when it is used again.
_INPUTS = 4
_ROUNDS = Budget(seconds=3, least=3, most=25)


class Device(Protocol):
    """A GPU, or what stands in for it.

    Attributes:
        torch_device: where the tensors are.
        name: as its driver calls it.
        instruction_rate: float32 instructions a second, over all lanes of all processors.
    """

    torch_device: torch.device
    name: str
    instruction_rate: float

    def measure(self, function: Callable[[], object]) -> float:
        """Seconds of one call."""

    def peak_memory(self, function: Callable[[], object]) -> int:
        """The most bytes that are allocated during a call, beyond those before."""


class Gpu:
    """The current CUDA or ROCm device."""

    def __init__(self) -> None:
        import triton

        index = torch.cuda.current_device()
        properties = torch.cuda.get_device_properties(index)
        self.torch_device = torch.device("cuda", index)
        self.name = properties.name
        clock = triton.runtime.driver.active.utils.get_device_properties(index)["sm_clock_rate"] * 1000
        self.instruction_rate = properties.multi_processor_count * _fp32_lanes(properties) * clock

    def measure(self, function: Callable[[], object]) -> float:
        """Seconds of one call, the median of 0.1 s of calls; before each, the level-2 cache is overwritten."""
        from triton.testing import do_bench

        return do_bench(function, warmup=10, rep=100, return_mode="median") / 1000

    def peak_memory(self, function: Callable[[], object]) -> int:
        torch.cuda.synchronize(self.torch_device)
        torch.cuda.reset_peak_memory_stats(self.torch_device)
        before = torch.cuda.memory_allocated(self.torch_device)
        function()
        torch.cuda.synchronize(self.torch_device)
        return torch.cuda.max_memory_allocated(self.torch_device) - before


def _fp32_lanes(properties: Any) -> int:
    """Float32 lanes of a processor: 128, on sm_80 (A100) 64."""
    on_a100 = torch.version.hip is None and (properties.major, properties.minor) == (8, 0)
    return 64 if on_a100 else 128


def find_gpu() -> Gpu:
    """The GPU to measure. Raises `UserError` where there is none."""
    if not torch.cuda.is_available():
        raise UserError("benchmark kernels needs a GPU that torch can use; without one, --static counts instructions.")
    try:
        return Gpu()
    except ImportError:
        raise UserError("benchmark kernels needs the package triton, which is not installed: pip install triton.") from None


# The rivals.


@dataclass(frozen=True)
class Rival:
    """A way to compute attention.

    Attributes:
        attend: query, key and value `(B, H, N, d)` -> `(B, H, N, d)`.
        dtype: of the three.
        floor: float32 instructions that the operator's arithmetic takes for a triple of query, key and channel, forward
            and with the backward pass, on a machine that does nothing else; None for what is not these kernels.
        differentiable: whether its backward pass is measured as well.
    """

    attend: Callable[..., Any]
    dtype: torch.dtype = torch.float32
    floor: Mapping[str, float] | None = None
    differentiable: bool = True


FORWARD, TRAINING = "forward", "forward + backward"
# Subtract, add the absolute difference; clamp, add; centring not counted. In the backward pass 6 for the queries, 7 for the
# keys and values. Large inputs in half types are inferred two channels an instruction, and trained in float32.
_FP32_FLOOR = {FORWARD: 4.0, TRAINING: 17.0}
_HALF_FLOOR = {FORWARD: 2.0, TRAINING: 17.0}


def _triton(query: Tensor, key: Tensor, value: Tensor) -> Any:
    return inhibitor_attention(query, key, value, backend="triton")


def _naive(query: Tensor, key: Tensor, value: Tensor) -> Any:
    return inhibitor_attention(query, key, value, backend="naive")


def rivals() -> dict[str, Rival]:
    """What is measured, the baseline of the ratios first."""
    return {
        BASELINE: Rival(scaled_dot_product_attention),
        "softmax bf16": Rival(scaled_dot_product_attention, torch.bfloat16),
        "inhibitor fp32": Rival(_triton, floor=_FP32_FLOOR),
        "inhibitor bf16": Rival(_triton, torch.bfloat16, floor=_HALF_FLOOR),
        "inhibitor fp32, composed with cdist": Rival(composed_attention),
        "inhibitor fp32, definition under torch.compile": Rival(torch.compile(_naive, dynamic=False)),
        "distances fp32, torch.cdist": Rival(lambda query, key, value: torch.cdist(query, key, p=1), differentiable=False),
    }


# Running them.


@dataclass(frozen=True)
class Problem:
    """Shape of queries, keys and values, `(batch, heads, length, head_dim)`."""

    batch: int
    heads: int
    length: int
    head_dim: int

    @property
    def triples(self) -> int:
        return self.batch * self.heads * self.length**2 * self.head_dim


@dataclass(frozen=True)
class Timing:
    """One rival at one problem.

    Attributes:
        pass_name: `forward` or `forward + backward`.
        milliseconds: quantiles over the rounds; None where the memory did not suffice.
        ratio: to softmax attention in float32, in the same rounds.
        share_of_floor: what the operator's arithmetic alone would take, by what it took.
        peak_bytes: allocated beyond the inputs.
    """

    problem: Problem
    pass_name: str
    rival: str
    rounds: int = 0
    milliseconds: Quantiles | None = None
    ratio: Quantiles | None = None
    share_of_floor: float | None = None
    peak_bytes: int | None = None

    def as_dict(self) -> dict[str, Any]:
        problem, times, ratio = self.problem, self.milliseconds, self.ratio
        return {
            "pass": self.pass_name,
            "batch": problem.batch,
            "heads": problem.heads,
            "length": problem.length,
            "head_dim": problem.head_dim,
            "rival": self.rival,
            "rounds": self.rounds,
            "ms": None if times is None else times.median,
            "ms_p10": None if times is None else times.low,
            "ms_p90": None if times is None else times.high,
            "ratio": None if ratio is None else ratio.median,
            "ratio_p10": None if ratio is None else ratio.low,
            "ratio_p90": None if ratio is None else ratio.high,
            "share_of_floor": self.share_of_floor,
            "peak_bytes": self.peak_bytes,
            "note": "out of memory" if times is None else "",
        }


def _inputs(problem: Problem, dtype: torch.dtype, device: torch.device) -> list[list[Tensor]]:
    """Queries, keys and values that take turns, laid out as the model's projections leave them."""
    generator = torch.Generator(device).manual_seed(SEED)
    shape = (problem.batch, problem.length, problem.heads, problem.head_dim)

    def draw() -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype).transpose(1, 2)

    return [[draw() for _ in range(3)] for _ in range(_INPUTS)]


def _work(rival: Rival, problem: Problem, pass_name: str, device: torch.device) -> Callable[[], object]:
    turns = cycle(_inputs(problem, rival.dtype, device))
    if pass_name == FORWARD:

        def forward() -> object:
            with torch.no_grad():
                return rival.attend(*next(turns))

        return forward

    def training_step() -> object:
        inputs = [x.detach().requires_grad_() for x in next(turns)]
        output = rival.attend(*inputs)
        # What the loss sends back has the layout of the outputs.
        return torch.autograd.grad(output, inputs, torch.ones_like(output))

    return training_step


def run(
    device: Device,
    problems: Sequence[Problem],
    chosen: Mapping[str, Rival],
    progress: Callable[[], object] = lambda: None,
    budget: Budget = _ROUNDS,
) -> list[Timing]:
    """Time the rivals, in turns, at every problem, forward and with the backward pass; `progress` after each of the two."""
    timings: list[Timing] = []
    for problem in problems:
        for pass_name in (FORWARD, TRAINING):
            taking_part = {name: rival for name, rival in chosen.items() if pass_name == FORWARD or rival.differentiable}
            timings += _compare(device, problem, pass_name, taking_part, budget)
            progress()
    return timings


def _compare(
    device: Device, problem: Problem, pass_name: str, chosen: Mapping[str, Rival], budget: Budget
) -> Iterator[Timing]:
    works, memory = {}, {}
    torch.compiler.reset()  # or after a few shapes it gives up and runs what it was to compile as it stands
    for name, rival in chosen.items():
        try:
            work = _work(rival, problem, pass_name, device.torch_device)
            work()  # compiles
            memory[name] = device.peak_memory(work)
        except torch.OutOfMemoryError:
            continue
        works[name] = work
    seconds = interleave(works, budget, device.measure)
    for name, rival in chosen.items():
        if name not in works:
            yield Timing(problem, pass_name, name)
            continue
        mine = seconds[name]
        times = Quantiles.of([1000 * second for second in mine])
        least = None if rival.floor is None else problem.triples * rival.floor[pass_name] / device.instruction_rate
        yield Timing(
            problem,
            pass_name,
            name,
            rounds=len(mine),
            milliseconds=times,
            ratio=ratios(mine, seconds[BASELINE]) if BASELINE in seconds else None,
            share_of_floor=None if least is None else 1000 * least / times.median,
            peak_bytes=memory[name],
        )
