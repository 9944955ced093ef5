"""Reads loops out of the disassembly of a GPU kernel: `nvdisasm -c` for NVIDIA, LLVM's assembly for AMD."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_NVIDIA_LABEL = re.compile(r"^\s*(\.L_\S+):")
_NVIDIA_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([^;]*?)\s*;")
_NVIDIA_TARGET = re.compile(r"`\((\.L_\S+)\)")
_AMD_LABEL = re.compile(r"^(\.LBB\S+):")
_AMD_INSTRUCTION = re.compile(r"^\s+([a-z]\w*[^;/]*)")
_AMD_TARGET = re.compile(r"^s_c?branch\S*\s+(\.LBB\S+)")

# Bytes that one lane gets by a load, from its modifiers or from the end of its name; 4 without any of them.
_NVIDIA_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
_AMD_WIDTHS = {"ubyte": 1, "sbyte": 1, "ushort": 2, "sshort": 2, "short": 2, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}

_NVIDIA_CLAMP = re.compile(r"^(FMNMX|HMNMX2)|\.RELU\b")
_AMD_CLAMP = re.compile(r"^v_(pk_)?(min|max|med)\w*_f(16|32)")


@dataclass(frozen=True)
class Loop:
    """The instructions of a loop, without predicates and addresses, from its first to the branch back.

    Attributes:
        loaded: bytes a lane reads from global memory in one iteration.
        stores: whether it writes to global memory.
        clamps: how many floating-point minima and maxima it takes.
        spills: its accesses to registers that were spilled.
    """

    instructions: tuple[str, ...]
    loaded: int
    stores: bool
    clamps: int
    spills: int


@dataclass(frozen=True)
class Listing:
    """A kernel's instructions in order, and where its backward branches lead, as (first, last) instruction."""

    instructions: tuple[str, ...]
    backward: tuple[tuple[int, int], ...]


def _read(text: str, label: re.Pattern, instruction: re.Pattern, target: re.Pattern) -> Listing:
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in text.splitlines():
        if found := label.match(line):
            labels[found[1]] = len(instructions)
        elif found := instruction.match(line):
            instructions.append(found[1].strip())
    branches = ((target.search(text), last) for last, text in enumerate(instructions))
    jumps = ((labels[found[1]], last) for found, last in branches if found and found[1] in labels)
    return Listing(tuple(instructions), tuple((first, last) for first, last in jumps if first < last))


def read_nvidia(text: str) -> Listing:
    """What `nvdisasm -c` prints of a kernel."""
    return _read(text, _NVIDIA_LABEL, _NVIDIA_INSTRUCTION, _NVIDIA_TARGET)


def read_amd(text: str) -> Listing:
    """The assembly that LLVM writes of a kernel."""
    return _read(text, _AMD_LABEL, _AMD_INSTRUCTION, _AMD_TARGET)


def nvidia_spills(instructions: tuple[str, ...]) -> int:
    """Loads and stores of registers that did not fit."""
    return sum(instruction.startswith(("LDL", "STL")) for instruction in instructions)


def nvidia_loop(instructions: tuple[str, ...]) -> Loop:
    names = [instruction.split()[0].split(".") for instruction in instructions]
    widths = (next((_NVIDIA_WIDTHS[x] for x in name if x in _NVIDIA_WIDTHS), 4) for name in names if name[0] == "LDG")
    return Loop(
        instructions,
        loaded=sum(widths),
        stores=any(name[0] in ("STG", "RED", "REDG", "ATOMG") for name in names),
        clamps=sum(_NVIDIA_CLAMP.search(instruction) is not None for instruction in instructions),
        spills=nvidia_spills(instructions),
    )


def amd_loop(instructions: tuple[str, ...]) -> Loop:
    names = [instruction.split()[0] for instruction in instructions]
    loads = (name.split("_") for name in names if re.match(r"(global|buffer|flat)_load_", name))
    return Loop(
        instructions,
        loaded=sum(next((_AMD_WIDTHS[x] for x in load if x in _AMD_WIDTHS), 4) for load in loads),
        stores=any(re.match(r"(global|buffer|flat)_(store|atomic)_", name) for name in names),
        clamps=sum(_AMD_CLAMP.match(name) is not None for name in names),
        # To memory, or of scalar registers into the lanes of a vector register.
        spills=sum(re.match(r"scratch_|v_(read|write)lane_", name) is not None for name in names),
    )


def streaming_loops(listing: Listing, nvidia: bool) -> list[Loop]:
    """The loops that read tensors and hold no smaller such loop, in the order of the program."""
    describe = nvidia_loop if nvidia else amd_loop
    found = [(first, last, describe(listing.instructions[first : last + 1])) for first, last in listing.backward]
    reading = [(first, last, loop) for first, last, loop in found if loop.loaded]

    def innermost() -> Iterator[tuple[int, Loop]]:
        for first, last, loop in reading:
            inside = (first <= a and b <= last and (a, b) != (first, last) for a, b, _ in reading)
            if not loop.stores and not any(inside):
                yield first, loop

    return [loop for _, loop in sorted(innermost(), key=lambda placed: placed[0])]
