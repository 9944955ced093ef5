"""Times, memory and share of the possible of the Triton kernels on the GPU of this machine, beside softmax attention."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..kernels.attention import inhibitor_attention
from ..support.benchmark_results import KernelRow, Shape
from ..support.errors import UserError
from ..support.memory import peak_memory
from ..support.results import Quantiles
from .operators import BASELINE, FORWARD, TRAINING, Operator, composed_attention
from .timing import Budget, Work, interleave, ratios, warm_up

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
_INPUTS = 4
_ROUNDS = Budget(seconds=3, least=3, most=25)


class Gpu:
    """The current CUDA or ROCm device.

    Attributes:
        torch_device: where the tensors are.
        name: as its driver calls it.
        instruction_rate: float32 instructions a second, over all lanes of all processors.
    """

    def __init__(self) -> None:
        import triton

        index = torch.cuda.current_device()
        properties = torch.cuda.get_device_properties(index)
        self.torch_device = torch.device("cuda", index)
        self.name = properties.name
        clock = triton.runtime.driver.active.utils.get_device_properties(index)["sm_clock_rate"] * 1000
        self.instruction_rate = properties.multi_processor_count * _fp32_lanes(properties) * clock

    def measure(self, work: Work) -> float:
        """Seconds of one call, the median of 0.1 s of calls; before each, the level-2 cache is overwritten."""
        from triton.testing import do_bench

        return do_bench(work, warmup=10, rep=100, return_mode="median") / 1000

    def peak_memory(self, work: Work) -> int | None:
        """The most bytes that are allocated during a call, beyond those before."""
        return peak_memory(self.torch_device, work)


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


# Subtract, add the absolute difference; clamp, add; centring not counted. In the backward pass 6 for the queries, 7 for the
# keys and values, 8 of a gate. Large inputs in half types are inferred two channels an instruction, and trained in float32.
_FP32_FLOOR = {FORWARD: 4.0, TRAINING: 17.0}
_GATE_FLOOR = {FORWARD: 4.0, TRAINING: 18.0}
_GATE: dict[str, Any] = {"inhibition": "gate", "center": "least", "alpha": -0.5, "delta": 1.0}
_HALF_FLOOR = {FORWARD: 2.0, TRAINING: 17.0}


def _naive(query: Tensor, key: Tensor, value: Tensor) -> Any:
    return inhibitor_attention(query, key, value, backend="naive")


def peers() -> dict[str, Operator]:
    """What is measured, the baseline of the ratios first."""
    triton = partial(inhibitor_attention, backend="triton")
    return {
        BASELINE: Operator(scaled_dot_product_attention),
        "softmax bf16": Operator(scaled_dot_product_attention, torch.bfloat16),
        "inhibitor fp32": Operator(triton, floor=_FP32_FLOOR),
        "inhibitor bf16": Operator(triton, torch.bfloat16, floor=_HALF_FLOOR),
        "inhibitor fp32, gate": Operator(partial(triton, **_GATE), floor=_GATE_FLOOR),
        "inhibitor fp32, composed with cdist": Operator(composed_attention),
        "inhibitor fp32, definition under torch.compile": Operator(torch.compile(_naive, dynamic=False)),
        "distances fp32, torch.cdist": Operator(
            lambda query, key, value: torch.cdist(query, key, p=1), differentiable=False
        ),
    }


def run(
    device: Gpu,
    shapes: Sequence[Shape],
    chosen: Mapping[str, Operator],
    progress: Callable[[], object] = lambda: None,
    budget: Budget = _ROUNDS,
) -> list[KernelRow]:
    """Time the peers, in turns, at every shape, forward and with the backward pass; `progress` after each of the two."""
    rows: list[KernelRow] = []
    for shape in shapes:
        for pass_name in (FORWARD, TRAINING):
            taking_part = {name: peer for name, peer in chosen.items() if pass_name == FORWARD or peer.differentiable}
            rows += _compare(device, shape, pass_name, taking_part, budget)
            progress()
    return rows


def _compare(
    device: Gpu, shape: Shape, pass_name: str, chosen: Mapping[str, Operator], budget: Budget
) -> Iterator[KernelRow]:
    torch.compiler.reset()  # or after a few shapes it gives up and runs what it was to compile as it stands
    makers = {name: partial(peer.work, shape, pass_name, device.torch_device, _INPUTS) for name, peer in chosen.items()}
    works, memory, _ = warm_up(makers, torch.OutOfMemoryError, device.peak_memory)
    seconds = interleave(works, budget, device.measure)
    for name, peer in chosen.items():
        if name not in works:
            yield KernelRow(pass_name, shape, name, note="out of memory")
            continue
        mine = seconds[name]
        times = Quantiles.of([1000 * second for second in mine])
        least = None if peer.floor is None else shape.triples * peer.floor[pass_name] / device.instruction_rate
        yield KernelRow(
            pass_name,
            shape,
            name,
            rounds=len(mine),
            milliseconds=times,
            ratio=ratios(mine, seconds[BASELINE]) if BASELINE in seconds else None,
            share_of_floor=None if least is None else 1000 * least / times.median,
            peak_bytes=memory[name],
        )
