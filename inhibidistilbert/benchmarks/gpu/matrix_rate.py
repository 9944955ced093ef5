"""The rate of one-bit matrix instructions against bfloat16 ones: what thermometer codes on them could gain.

A channel in 16 thresholds takes as many bytes, and as many instructions, as in bfloat16. So distances of 16 levels cost what
softmax's products cost where the two instructions run at the same rate, and less where the one-bit ones are faster.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...support.results import Quantiles
from ..timing import Budget, interleave, ratios
from .findings import Deadline, Finding
from .matrix_source import THREADS, Instruction

ONE_BIT, BFLOAT16 = "one-bit", "bfloat16"
RELATIVE = "instruction rate / bfloat16"
# One block of `wgmma` fills the registers of a processor; of `mma` four give every scheduler eight warps.
_BLOCKS_A_PROCESSOR = {"mma": 4, "wgmma": 1}
_LAUNCH_SECONDS = 0.02
_SECONDS = 6
_BUDGET = Budget(seconds=2, least=5, most=50)

Kernel = Callable[[Tensor, Tensor, int], object]


class CudaDevice:
    """The current CUDA device."""

    def __init__(self) -> None:
        self.torch_device = torch.device("cuda", torch.cuda.current_device())
        properties = torch.cuda.get_device_properties(self.torch_device)
        self.capability, self.processors = (properties.major, properties.minor), properties.multi_processor_count

    def compile(self, instruction: Instruction, blocks: int) -> Kernel:
        """A function of operands, sums and rounds that launches the instruction's kernel."""
        # The sources include nothing, but torch wants to know a folder of headers and refuses without one.
        os.environ.setdefault("CUDA_HOME", os.devnull)
        target = "".join(map(str, self.capability)) + ("a" if instruction.name == "wgmma" else "")
        kernel: Any = torch.cuda._compile_kernel(instruction.source(), "rate", compute_capability=target)
        return lambda operands, sums, rounds: kernel((blocks, 1, 1), (THREADS, 1, 1), [operands, sums, rounds])

    def measure(self, work: Callable[[], object]) -> float:
        """Seconds of one call."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000


def measure(deadline: Deadline, device: CudaDevice | None = None) -> Iterator[Finding]:
    """Operations a second of both kinds, and the ratio of the rates of their instructions, for `mma` and `wgmma`."""
    if device is None:
        if torch.version.hip is not None:
            yield Finding.skipped("one-bit matrix instructions", "", "these are NVIDIA's")
            return
        device = CudaDevice()
    for name in ("mma", "wgmma"):
        if name == "wgmma" and device.capability != (9, 0):
            yield Finding.skipped(name, "", f"sm_90a only, here is sm_{device.capability[0]}{device.capability[1]}")
        elif name == "mma" and device.capability < (8, 0):
            yield Finding.skipped(name, "", "from sm_80")
        elif not deadline.leaves(_SECONDS):
            yield Finding.skipped(name, "", deadline.reason)
        else:
            try:
                yield from _compare(device, name)
            except Exception as error:
                yield Finding.failure(name, "", error)


def _compare(device: CudaDevice, name: str) -> Iterator[Finding]:
    instructions = {ONE_BIT: Instruction(name, bits=1), BFLOAT16: Instruction(name, bits=16)}
    blocks = device.processors * _BLOCKS_A_PROCESSOR[name]
    kernels = {kind: device.compile(instruction, blocks) for kind, instruction in instructions.items()}
    for kind, kernel in kernels.items():
        _check_sums(device, instructions[kind], kernel, blocks)
    work = {kind: _work(device, instructions[kind], kernel, blocks) for kind, kernel in kernels.items()}
    rounds = _rounds(device, work)
    calls = {kind: partial(each, rounds) for kind, each in work.items()}
    seconds = interleave(calls, _BUDGET, device.measure)
    for kind, instruction in instructions.items():
        operations = instruction.instructions(blocks, rounds) * instruction.operations
        yield Finding.of(
            f"{name}, {kind}", "", "rate", Quantiles.of([operations / s / 1e12 for s in seconds[kind]]), "TOP/s"
        )
    yield Finding.of(name, "", RELATIVE, ratios(seconds[BFLOAT16], seconds[ONE_BIT]))


def _operands(device: CudaDevice, instruction: Instruction, ones: bool) -> Tensor:
    """32-bit words: elements that are all 1, or random ones, which take more power than zeros do."""
    words = instruction.operand_words
    if instruction.bits == 16:
        draw = torch.ones if ones else torch.randn
        return draw(2 * words, device=device.torch_device).to(torch.bfloat16).view(torch.int32)
    if ones:
        return torch.full((words,), -1, dtype=torch.int32, device=device.torch_device)
    return torch.randint(-(2**31), 2**31, (words,), device=device.torch_device).to(torch.int32)


def _sums(device: CudaDevice, instruction: Instruction, blocks: int) -> Tensor:
    dtype = torch.int32 if instruction.bits == 1 else torch.float32
    return torch.zeros(blocks * THREADS, dtype=dtype, device=device.torch_device)


def _check_sums(device: CudaDevice, instruction: Instruction, kernel: Kernel, blocks: int) -> None:
    """That the instructions did what they are named for: or their time says nothing."""
    rounds, sums = 5, _sums(device, instruction, blocks)
    kernel(_operands(device, instruction, ones=True), sums, rounds)
    wrong = sums[sums != instruction.total(rounds)]
    if wrong.numel():
        raise RuntimeError(f"{wrong.numel()} sums are wrong: {wrong[0].item()} instead of {instruction.total(rounds)}")


def _work(device: CudaDevice, instruction: Instruction, kernel: Kernel, blocks: int) -> Callable[[int], object]:
    operands, sums = _operands(device, instruction, ones=False), _sums(device, instruction, blocks)
    return lambda rounds: kernel(operands, sums, rounds)


def _rounds(device: CudaDevice, work: Mapping[str, Callable[[int], object]]) -> int:
    """As many as the faster kernel needs for a launch long enough to measure."""
    rounds = 256
    while min(device.measure(partial(each, rounds)) for each in work.values()) < _LAUNCH_SECONDS:
        rounds *= 2
    return rounds
