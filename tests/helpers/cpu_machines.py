"""Processors to generate code for in the tests: the one at hand, others it can also run, and foreign ones."""

import platform
from dataclasses import replace

import pytest

from inhibidistilbert.kernels.llvm.jit import CompilerUnavailable, Machine, host_machine

ARM = Machine("aarch64-unknown-linux-gnu", "cortex-a72", "+neon", 4, 32)
AVX512 = Machine("x86_64-unknown-linux-gnu", "x86-64-v4", "+avx512f,+avx512bw,+avx512dq,+avx512vl", 16, 32)
ZEN4 = Machine(
    "x86_64-unknown-linux-gnu",
    "znver4",
    "+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512vnni,+avx512vbmi2,+avx512bf16,+gfni",
    16,
    32,
)


def runnable_machines() -> dict[str, Machine]:
    """By name; empty where nothing can be compiled."""
    try:
        host = host_machine()
    except CompilerUnavailable:
        return {}
    machines = {"host": host}
    if platform.machine().lower() in ("x86_64", "amd64"):
        if host.has("avx2") and host.has("fma"):
            machines["avx2"] = Machine(host.triple, "x86-64-v3", "+avx2,+fma", 8, 16)
            # Panels and tiles as with AVX-512, without its instructions.
            machines["tall"] = Machine(host.triple, "x86-64-v3", "+avx2,+fma", 16, 32)
        if all(host.has(feature) for feature in ZEN4.features.replace("+", "").split(",")):
            machines["zen4"] = replace(ZEN4, triple=host.triple)  # which clamps by one instruction
        machines["sse2"] = Machine(host.triple, "x86-64", "", 4, 16)
        machines["pairs"] = Machine(host.triple, "x86-64", "", 4, 32)  # as for ARM, with more registers than there are
    else:
        machines["narrow"] = Machine(host.triple, host.cpu, host.features, 4, 16)
    return machines


MACHINES = runnable_machines()

# Vectors of 128, 256 and 512 bits, without and with the instruction that adds four products of bytes; tiles of bytes.
PROCESSORS = {
    "sse2": ("x86-64", "+sse2", 4, 16),
    "avx2": ("x86-64-v3", "+sse2,+avx2,+fma", 8, 16),
    "avx2-vnni": ("x86-64-v3", "+avx2,+fma,+avxvnni", 8, 16),
    "avx512": ("x86-64-v4", "+avx512f,+avx512bw,+avx512dq,+avx512vl", 16, 32),
    "avx512-vnni": ("x86-64-v4", "+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512vnni", 16, 32),
    "amx": ("x86-64-v4", "+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512vnni,+amx-tile,+amx-int8", 16, 32),
}


def named_machine(name: str) -> Machine:
    """One of `PROCESSORS` under Linux, which need not be at hand."""
    return Machine("x86_64-unknown-linux-gnu", *PROCESSORS[name])


def processor(name: str) -> Machine:
    """`host`, or one of `PROCESSORS`; the test is skipped where this processor lacks something of it."""
    host = host_machine()
    if name == "host":
        return host
    cpu, features, lanes, registers = PROCESSORS[name]
    if not all(host.has(feature[1:]) for feature in features.split(",")):
        pytest.skip(f"this processor is no {name}")
    return replace(host, cpu=cpu, features=features, lanes=lanes, registers=registers)
