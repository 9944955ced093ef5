"""Runs compiled code on several threads: on those torch has started already, or else on threads of Python.

The code takes its share of the work from counters in its argument block, so it does not matter how many threads come.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

# Threads do not survive a fork, and an OpenMP runtime does not notice: it would wait for the lost ones for ever.
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@cache
def _openmp_parallel() -> Callable[..., None] | None:
    """`GOMP_parallel` of the OpenMP runtime that torch computes with, GNU's or LLVM's; None where there is no such symbol.

    One pool of threads for torch and these kernels: two would take the cores from each other.
    """
    if sys.platform == "win32":
        return None
    try:
        function = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    function.restype = None
    return function


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="inhibitor-cpu")


@cache
def _callable(entry: int) -> Callable[[int], None]:
    return _ENTRY(entry)


def run_on_threads(entry: int, block: int, threads: int) -> None:
    """Call `void entry(void *block)` once on each of up to `threads` threads, the caller's among them, and wait for all.

    entry: the address of compiled code that takes pieces of work from the block until none is left.
    block: the address of its arguments.

    The interpreter's lock is released meanwhile.
    """
    if threads <= 1:
        _callable(entry)(block)
        return
    parallel = None if _forked else _openmp_parallel()
    if parallel is not None:
        parallel(entry, block, threads, 0)
        return
    others = [_pool(threads - 1).submit(_callable(entry), block) for _ in range(threads - 1)]
    _callable(entry)(block)
    for other in others:
        other.result()
