"""Instruction counts of the Triton kernels, compiled ahead of time: no GPU is needed.

The launchers of `kernels/triton/launch.py` run on tensors without data for a pretended device, so every kernel is
compiled exactly as it would be at run time. That happens in processes of its own (`static_worker.py`): Triton decides
when the kernels are imported whether it compiles or interprets them.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from subprocess import PIPE, Popen
from typing import IO, Annotated, NamedTuple, cast

from ..kernels.triton.launch import MAX_HEAD_SIZE
from ..support.errors import UserError
from ..support.results import Column, Results, Row


@dataclass(frozen=True)
class Kernel:
    """How to read a kernel's loops.

    Attributes:
        pass_name: `forward`, `row` (the gradient of the queries) or `column` (the gradients of keys and values).
        streamed: the arguments of which the innermost loop reads a row for each key (in the column pass for each query);
            where centred, a loop that reads only the first of them may come before.
        statistics: numbers of 4 bytes that it reads beside each row, where centred; twice as many for a gate.
        prepass: whether there is that loop.
    """

    pass_name: str
    streamed: tuple[str, str]
    statistics: int = 0
    prepass: bool = False


# One entry a kernel; those that are missing here are not counted.
KERNELS = {
    "_forward_kernel": Kernel("forward", ("k", "v"), prepass=True),
    "_forward_half_kernel": Kernel("forward", ("k_half", "v_half"), prepass=True),
    "_backward_query_kernel": Kernel("row", ("k", "v")),
    "_backward_key_kernel": Kernel("column", ("q", "g"), statistics=2),
}
FORWARD_KERNELS = tuple(name for name, kernel in KERNELS.items() if kernel.pass_name == "forward")


class Target(NamedTuple):
    """A kind of GPU: Triton's back end and name for it, threads a warp, and the compute capability of an NVIDIA one."""

    backend: str
    arch: int | str
    lanes: int
    capability: tuple[int, int] | None


TARGETS = {
    "sm_80": Target("cuda", 80, 32, (8, 0)),
    "sm_86": Target("cuda", 86, 32, (8, 6)),
    "sm_90": Target("cuda", 90, 32, (9, 0)),
    "sm_100": Target("cuda", 100, 32, (10, 0)),
    "sm_120": Target("cuda", 120, 32, (12, 0)),
    "gfx942": Target("hip", "gfx942", 64, None),
}
HEAD_DIMS = (64, 32)


@dataclass(frozen=True)
class Variant(Row):
    """One call of the operator for one kind of GPU.

    form: None for the published ones, or `"gate"`: one that counts from the nearest key and is divided by what passes.
    """

    target: str = "sm_90"
    head_dim: int = 64
    dtype: str = "fp32"
    signed: bool = True
    centered: bool = True
    causal: bool = False
    form: Annotated[str | None, Column("form", optional=True)] = None

    @property
    def words(self) -> list[str]:
        """`["signed", "centered"]`"""
        form = self.form or ("signed" if self.signed else "unsigned")
        return [form, *(x for x in ("centered", "causal") if getattr(self, x))]


@dataclass(frozen=True)
class Case(Variant):
    """A call, and the kernels to count of it."""

    kernels: tuple[str, ...] = tuple(KERNELS)


@dataclass(frozen=True)
class Figures(Row):
    """What the disassembly of one kernel says.

    Attributes:
        registers: of a lane.
        spills: accesses to spilled registers within the loops.
        spills_total: the same in the whole kernel; on AMD the number of spilled registers.
        shared_bytes: shared memory of a program.
        instructions_per_triple: all instructions of the innermost loop, of every lane, for one (query, key, channel).
        prepass_instructions_per_triple: those of the loop that finds what distances are centred by, where there is one.
        keys_per_iteration: of the innermost loop; more than 1 where the compiler unrolled it.
    """

    kernel: str
    pass_name: Annotated[str, Column("pass")]
    variant: Variant
    registers: int
    spills: int
    spills_total: int
    shared_bytes: int
    instructions_per_triple: float
    prepass_instructions_per_triple: float | None
    keys_per_iteration: int


@dataclass(frozen=True)
class StaticResults(Results):
    results: list[Figures]


def default_cases(targets: Sequence[str] = tuple(TARGETS), head_dims: Sequence[int] = HEAD_DIMS) -> list[Case]:
    """Every pass in float32 and the forward pass in the half types, in all eight variants of the published forms; and every
    pass of a gate in float32."""
    kinds = (("fp32", tuple(KERNELS)), ("bf16", FORWARD_KERNELS), ("fp16", FORWARD_KERNELS))
    both = (True, False)
    published = [
        Case(target, head_dim, dtype, signed, centered, causal, kernels=kernels)
        for target, head_dim, (dtype, kernels), signed, centered, causal in product(
            targets, head_dims, kinds, both, both, both
        )
    ]
    gates = product(targets, head_dims, both)
    return published + [Case(target, head_dim, causal=causal, form="gate") for target, head_dim, causal in gates]


def check_cases(targets: Sequence[str], head_dims: Sequence[int]) -> None:
    """Raises `UserError` for a target or a head size the kernels cannot be compiled for, or where Triton is missing."""
    for target in targets:
        if target not in TARGETS:
            raise UserError(f"--target must be one of {', '.join(TARGETS)}; got {target!r}.")
    for head_dim in head_dims:
        check_head_dim(head_dim)
    if find_spec("triton") is None:
        raise UserError("benchmark kernels needs the package triton, which is not installed: pip install triton, on Linux.")


def check_head_dim(head_dim: int) -> None:
    """Raises `UserError` for a head size that the kernels do not take."""
    if not 1 <= head_dim <= MAX_HEAD_SIZE:
        raise UserError(f"--head-dim must be from 1 to {MAX_HEAD_SIZE}; got {head_dim}.")


def count(
    cases: Sequence[Case], keep: Path | None = None, jobs: int | None = None, progress: Callable[[], object] = lambda: None
) -> list[Figures]:
    """Compile and disassemble every case, in the order given, in `jobs` processes (by default one a processor).

    keep: a folder for the assembly, machine code and disassembly of every kernel. progress: called after each case.
    """
    jobs = max(1, min(jobs or os.cpu_count() or 1, len(cases)))
    shares = [list(cases[first::jobs]) for first in range(jobs)]
    with ThreadPoolExecutor(jobs) as pool:
        counted = list(pool.map(lambda share: _count_in_process(share, keep, progress), shares))
    return [figures for number in range(len(cases)) for figures in counted[number % jobs][number // jobs]]


def _count_in_process(cases: list[Case], keep: Path | None, progress: Callable[[], object]) -> list[list[Figures]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    request = json.dumps({"cases": [asdict(case) for case in cases], "keep": None if keep is None else str(keep.resolve())})
    command = [sys.executable, "-m", f"{__package__}.static_worker"]
    results = []
    with (
        tempfile.TemporaryFile("w+") as errors,
        Popen(command, env=environment, stdin=PIPE, stdout=PIPE, stderr=errors, text=True) as worker,
    ):
        stdin, stdout = cast(IO[str], worker.stdin), cast(IO[str], worker.stdout)
        with stdin:
            stdin.write(request)
        for line in stdout:
            results.append([Figures.from_dict(row) for row in json.loads(line)])
            progress()
        if worker.wait() or len(results) != len(cases):
            errors.seek(0)
            raise RuntimeError(f"compiling {cases[len(results)]} failed:\n{errors.read()}")
    return results
