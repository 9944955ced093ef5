"""Compiles kernels for GPUs that are not there and counts their instructions; run by `static.py`, one process a share.

Reads `{"cases": [{"target": "sm_90", …}, …], "keep": null}` from standard input and prints for each case one line: a JSON
list of `Figures`, by column.
"""

import json
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import driver

from ..kernels.forms import Form
from ..kernels.triton import launch
from ..support.benchmark_results import Shape
from .disassembly import Loop, nvidia_spills, read_amd, read_nvidia, streaming_loops
from .static import FORWARD_KERNELS, KERNELS, TARGETS, Case, Figures, Target, Variant

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Large enough to fill any GPU, so that the launcher takes its largest tile; below AMD's limit for short addresses.
_BATCH, _HEADS, _LENGTH = 8, 12, 4096


@dataclass
class _Driver:
    """Stands in for the GPU driver: says for what to compile, and has nothing to launch on."""

    target: GPUTarget

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        return str(self.target)  # Triton keeps what it compiled by device

    def get_current_stream(self, device: str) -> int:
        return 0


@dataclass
class _Launch:
    """One launch, as Triton specialises it: what it would compile."""

    kernel: Any
    signature: dict
    constants: dict
    attributes: dict
    options: dict

    @property
    def name(self) -> str:
        return self.kernel.__name__

    def constant(self, name: str) -> int:
        return self.constants[(self.kernel.arg_names.index(name),)]

    def element_bytes(self, pointer: str) -> int:
        """Size of the elements behind a pointer, whose type is such as `*fp32`."""
        return int(re.sub(r"\D", "", self.signature[pointer])) // 8

    def compile(self, target: GPUTarget) -> Any:
        source = ASTSource(self.kernel, self.signature, self.constants, self.attributes)
        with warnings.catch_warnings():
            # The launcher leaves this to Triton's default, and so must its count.
            warnings.filterwarnings("ignore", "TRITON_DEFAULT_FP_FUSION")
            return triton.compile(source, target=target, options=self.options)


@contextmanager
def _pretended(target: Target, launches: list[_Launch]) -> Iterator[None]:
    """Inside, launching a kernel only notes it down, as for a GPU of this kind."""

    def note(*, fn, compile, **_) -> bool:
        options = {name: compile[name] for name in ("num_warps", "num_stages", "num_ctas")}
        launches.append(_Launch(fn.jit_function, compile["signature"], compile["constants"], compile["configs"][0], options))
        return True  # handled: nothing is compiled or launched

    major, minor = target.capability or (9, 4)
    properties = SimpleNamespace(major=major, minor=minor, warp_size=target.lanes, multi_processor_count=1)
    driver.set_active(_Driver(GPUTarget(target.backend, target.arch, target.lanes)))
    launch._device.cache_clear()
    with (
        mock.patch.object(torch.cuda, "get_device_properties", return_value=properties),
        mock.patch.object(torch.version, "hip", None if target.capability else "pretended"),
        mock.patch.object(triton.knobs.runtime, "jit_cache_hook", note),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "TRITON_DEFAULT_FP_FUSION")
        yield


def launches(case: Case) -> list[_Launch]:
    """The launches of a case: its forward and, where its kernels ask for it, its backward pass.

    Tensors are laid out as in the model. No masks; everything else as the launchers choose it for a large input.
    """
    shape = Shape(_BATCH, _HEADS, _LENGTH, case.head_dim)

    def heads() -> Tensor:
        return torch.empty(shape.projected, dtype=_DTYPES[case.dtype], device="meta").transpose(1, 2)

    alpha, beta, gamma = (torch.empty(1, device="meta") for _ in range(3))
    center, inhibition, delta = int(case.centered), int(case.signed), None
    if case.form == "gate":
        (center, inhibition), delta = Form(center="least", gate=True).numbers, torch.empty(1, device="meta")
    statistics = torch.empty((center + (delta is not None), _BATCH, _HEADS, _LENGTH), device="meta")
    noted: list[_Launch] = []
    query, key, value = heads(), heads(), heads()
    with _pretended(TARGETS[case.target], noted):
        half = launch._fits_half(query, key, value, alpha, beta, gamma)
        forward = launch._forward_half if half else launch._forward
        form = center, inhibition, case.causal
        forward(query, key, value, None, None, alpha, beta, gamma, delta, *form, heads(), statistics)
        if not set(case.kernels) <= set(FORWARD_KERNELS):
            launch._backward(
                heads(), query, key, value, None, None, alpha, beta, gamma, delta, heads(), statistics, *form,
                heads(), heads(), heads(),
            )  # fmt: skip
    return noted


def _tool(name: str, cubin: bytes, *options: str) -> str:
    """What one of NVIDIA's tools, which lie in Triton's wheel, prints about machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [getattr(triton.knobs.nvidia, name).path, *options, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True)
class _Disassembly:
    """A kernel's loops and registers. `text`: the disassembly that they were read from."""

    text: str
    loops: list[Loop]
    registers: int
    spills_total: int


def _disassemble_nvidia(compiled: Any) -> _Disassembly:
    cubin = compiled.asm["cubin"]
    text = _tool("nvdisasm", cubin, "-c")
    listing = read_nvidia(text)
    registers = int(re.findall(r"REG:(\d+)", _tool("cuobjdump", cubin, "-res-usage"))[0])
    return _Disassembly(text, streaming_loops(listing, nvidia=True), registers, nvidia_spills(listing.instructions))


def _disassemble_amd(compiled: Any) -> _Disassembly:
    text = compiled.asm["amdgcn"]

    def count(name: str) -> int:
        return int(re.findall(rf"\.{name}:\s*(\d+)", text)[0])

    spilled = count("vgpr_spill_count") + count("sgpr_spill_count")
    return _Disassembly(text, streaming_loops(read_amd(text), nvidia=False), count("vgpr_count"), spilled)


def _keys(loop: Loop, row_bytes: int, statistics: int) -> int:
    """How many keys (in the column pass queries) an iteration handles, from the bytes it reads of them."""
    keys, rest = divmod(loop.loaded, row_bytes)
    if keys == 0 or rest not in (0, 4 * statistics * keys):
        raise RuntimeError(f"a loop reads {loop.loaded} bytes, not a multiple of the {row_bytes} of a row: count by hand")
    return keys


def _costs(case: Case, launch: _Launch, loops: list[Loop]) -> tuple[int, float, float | None]:
    """Keys an iteration of the innermost loop, its instructions a triple, and those of the pre-pass, where there is one."""
    kernel, centered = KERNELS[launch.name], case.centered
    prepass = kernel.prepass and centered
    row_bytes = [launch.constant("C") * launch.element_bytes(name) for name in kernel.streamed]
    statistics = (kernel.statistics if centered else 0) * (1 if case.form is None else 2)
    # A pre-pass only adds, or takes a row's minimum, where the main loop clamps all channels.
    few = launch.constant("R")
    main = {_keys(loop, sum(row_bytes), statistics): loop for loop in loops if loop.clamps > few or not prepass}
    before = {_keys(loop, row_bytes[0], 0): loop for loop in loops if prepass and loop.clamps <= few}
    if not main or (prepass and not before):
        raise RuntimeError(f"{launch.name} has {len(loops)} loops that read tensors, not those expected of {case}")
    triples_of_key = launch.constant("R") * launch.constant("W") * launch.constant("A") * case.head_dim
    threads = launch.constant("W") * TARGETS[case.target].lanes

    def cost(found: dict[int, Loop]) -> float:
        keys = max(found)  # of an unrolled loop and its remainder the first
        return round(len(found[keys].instructions) * threads / (triples_of_key * keys), 3)

    return max(main), cost(main), cost(before) if before else None


def _figures(case: Case, launch: _Launch, keep: Path | None) -> Figures:
    target = TARGETS[case.target]
    compiled = launch.compile(GPUTarget(target.backend, target.arch, target.lanes))
    code = _disassemble_nvidia(compiled) if target.backend == "cuda" else _disassemble_amd(compiled)
    if keep is not None:
        _keep(keep, case, launch.name, compiled, code.text)
    keys, main, prepass = _costs(case, launch, code.loops)
    return Figures(
        kernel=launch.name,
        pass_name=KERNELS[launch.name].pass_name,
        variant=Variant.from_dict(asdict(case)),
        registers=code.registers,
        spills=sum(loop.spills for loop in code.loops),
        spills_total=code.spills_total,
        shared_bytes=compiled.metadata.shared,
        instructions_per_triple=main,
        prepass_instructions_per_triple=prepass,
        keys_per_iteration=keys,
    )


def _keep(folder: Path, case: Case, kernel: str, compiled: Any, disassembly: str) -> None:
    stem = "-".join([kernel.strip("_"), case.target, f"d{case.head_dim}", case.dtype, *case.words])
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("ptx", "cubin", "amdgcn", "hsaco"):
        if kind in compiled.asm:
            content = compiled.asm[kind]
            (folder / f"{stem}.{kind}").write_bytes(content.encode() if isinstance(content, str) else content)
    if "cubin" in compiled.asm:
        (folder / f"{stem}.sass").write_text(disassembly)


def main() -> None:
    request = json.load(sys.stdin)
    keep = None if request["keep"] is None else Path(request["keep"])
    for fields in request["cases"]:
        case = Case(**fields | {"kernels": tuple(fields["kernels"])})
        wanted = [launch for launch in launches(case) if launch.name in case.kernels]
        print(json.dumps([_figures(case, launch, keep).as_dict() for launch in wanted]), flush=True)


if __name__ == "__main__":
    main()
