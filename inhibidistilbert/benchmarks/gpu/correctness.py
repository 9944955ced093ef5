"""The kernels' checks of `testing.device_checks`, on the GPU: forward and gradients against float64, graphs, memory, bits.

In several processes: most of the time goes into compiling variants of the kernels.
"""

import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from functools import cache

from ...testing import device_checks
from .findings import Deadline, Finding

# Each has a context of its own on the GPU, of half a gigabyte, beside what its check needs.
_MOST_PROCESSES = 8

_checks = cache(device_checks.checks)


def _poison_memory() -> None:
    """Fresh memory is filled with NaN, as in the tests: a buffer read before it is written shows."""
    import torch

    # torch then fills it; "warn only", so that no operation is refused because of it.
    torch.use_deterministic_algorithms(True, warn_only=True)


def check(name: str) -> Finding:
    """One check: 1 where it holds, else why not."""
    start = time.monotonic()
    try:
        _checks()[name]()
    except Exception as error:
        return Finding.failure(name, "", error)
    return Finding(name, metric="passed", value=1, note=f"{time.monotonic() - start:.1f} s")


def measure(deadline: Deadline, names: list[str] | None = None) -> Iterator[Finding]:
    """All checks, or those named, as they are done."""
    names = list(_checks()) if names is None else names
    context = multiprocessing.get_context("spawn")
    workers = min(_MOST_PROCESSES, os.cpu_count() or 1)
    pool = ProcessPoolExecutor(workers, context, initializer=_poison_memory)
    futures = {pool.submit(check, name): name for name in names}
    try:
        for future in as_completed(futures, timeout=deadline.left):
            yield _result(future, futures.pop(future))
    except TimeoutError:
        for name in futures.values():
            yield Finding.skipped(name, "", deadline.reason)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _result(future: "Future[Finding]", name: str) -> Finding:
    try:
        return future.result()
    except Exception as error:  # the process died
        return Finding.failure(name, "", error)
