"""Processors to generate code for in the tests: the one at hand, others it can also run, and foreign ones."""

import platform

from inhibidistilbert.kernels.inhibitor_cpu_jit import CompilerUnavailable, Machine, host_machine

ARM = Machine("aarch64-unknown-linux-gnu", "cortex-a72", "+neon", 4, 32)
AVX512 = Machine("x86_64-unknown-linux-gnu", "x86-64-v4", "+avx512f,+avx512bw,+avx512dq,+avx512vl", 16, 32)


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
        machines["sse2"] = Machine(host.triple, "x86-64", "", 4, 16)
        machines["pairs"] = Machine(host.triple, "x86-64", "", 4, 32)  # as for ARM, with more registers than there are
    else:
        machines["narrow"] = Machine(host.triple, host.cpu, host.features, 4, 16)
    return machines


MACHINES = runnable_machines()
