"""Processors to generate code for in the tests: the one at hand, narrower ones it can also run, and a foreign one."""

import platform

from inhibidistilbert.kernels.inhibitor_cpu_jit import CompilerUnavailable, Machine, host_machine

ARM = Machine("aarch64-unknown-linux-gnu", "cortex-a72", "+neon", 4, 32)


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
        machines["sse2"] = Machine(host.triple, "x86-64", "", 4, 16)
        machines["pairs"] = Machine(host.triple, "x86-64", "", 4, 32)  # as for ARM, with more registers than there are
    else:
        machines["narrow"] = Machine(host.triple, host.cpu, host.features, 4, 16)
    return machines


MACHINES = runnable_machines()
