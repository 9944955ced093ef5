"""Peak memory of a piece of work, on GPUs and on Linux."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory(device: torch.device, work: Callable[[], object]) -> int | None:
    """The most bytes that a call of `work` holds beyond those before; None where the system does not tell.

    On GPUs what torch's allocator gives out, on processors the resident set of the process.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return _peak_resident_set(work) if device.type == "cpu" else None


def resident_bytes() -> int | None:
    """What the process holds, without what was freed; None where the system does not tell."""
    gc.collect()
    try:
        # What was freed goes back to the system, or it would count, and be used again unseen.
        ctypes.CDLL(None).malloc_trim(0)
        return 1024 * _kilobytes("VmRSS")
    except (OSError, AttributeError, KeyError):
        return None


def _peak_resident_set(work: Callable[[], object]) -> int | None:
    before = resident_bytes()
    try:
        _CLEAR.write_text("5")  # Linux: the peak starts anew
    except OSError:
        return None
    if before is None:
        return None
    work()
    return max(0, 1024 * _kilobytes("VmHWM") - before)


def _kilobytes(field: str) -> int:
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
    return int(lines[field].split()[0])
