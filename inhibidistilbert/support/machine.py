"""On what, with what and how something was measured: the header of every file of results."""

import datetime
import os
import platform
import re
import shlex
import sys
from importlib import metadata
from pathlib import Path

# Instruction sets that the kernels can use, as Linux names them.
_CPU_FLAGS = (
    "avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "bf16", "i8mm", "sve",
)  # fmt: skip
# Kinds of processor, by the instruction set that decides about speed, the best first. VNNI and its like multiply int8.
KINDS = {
    "amx": "amx_int8",
    "avx512_vnni": "avx512_vnni",
    "avx512": "avx512f",
    "avx2_vnni": "avx_vnni",
    "avx2": "avx2",
    "neon_i8mm": "i8mm",
    "neon_dotprod": "asimddp",
    "neon": "asimd",
    "other": "",
}
_PACKAGES = ("inhibidistilbert", "torch", "transformers", "triton", "llvmlite", "numba")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide about speed, where they are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_description() -> dict[str, str]:
    """Model, usable instruction sets and number of processors; from `/proc/cpuinfo` where there is one."""
    fields: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags", fields.get("Features", "")).split()
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cpu flags": " ".join(flag for flag in _CPU_FLAGS if flag in flags),
        "cpus": str(os.cpu_count()),
    }


def cpu_kind(flags: str | None = None) -> str:
    """The kind of processor, of `KINDS`, that has these instruction sets: the one at hand unless they are given."""
    if flags is None:
        # Where nothing lists them, as on macOS: every 64-bit ARM processor has this one.
        flags = cpu_description()["cpu flags"] or ("asimd" if platform.machine() in ("arm64", "aarch64") else "")
    return next(kind for kind, flag in KINDS.items() if not flag or flag in flags.split())


def without_place(argument: str) -> str:
    """An argument, or a path, that does not tell where something lies on this machine: of an absolute path the last name."""
    return re.sub(r"(^|=)(?:[~/]|[A-Za-z]:[\\/])[^=]*[\\/](?=[^\\/])", r"\1", argument)


def header(**more: object) -> dict[str, str]:
    """The command line without places, the time (UTC), the system, the processor, the versions and the seed; then `more`."""
    command = shlex.join([Path(sys.argv[0]).name, *map(without_place, sys.argv[1:])])
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    system = {"command": command, "date": now, "system": f"{platform.system()} {platform.machine()}"}
    seed = {"seed": "none, nothing is drawn"}
    return system | cpu_description() | versions() | seed | {key: str(value) for key, value in more.items()}
