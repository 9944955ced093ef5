"""What every test gets: uninitialised memory that shows, the same random numbers on every run, little garbage to search."""

import gc
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

# Until all tests are imported and listed: of the millions of objects that this makes, nearly all stay.
gc.disable()

if not torch.cuda.is_available():
    # Read when the kernels are imported: they then run on CPU tensors, one operation at a time.
    os.environ["TRITON_INTERPRET"] = "1"

    # Without one of these, `torch.manual_seed` notes for when it comes who has called it, and each test does several times.
    for _device in (torch.cuda, torch.xpu, torch.mtia):
        if not _device.is_available():
            _device.manual_seed_all = lambda seed: None


if "PYTEST_XDIST_WORKER" in os.environ:
    # Its share of the cores: threads of several workers on one core would wait for each other.
    torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))


def _round_in_the_interpreter() -> None:
    """Let Triton's interpreter round float32 to the nearest bfloat16, as every GPU does; by itself it truncates."""
    try:
        from triton.runtime.interpreter import InterpreterBuilder, TensorHandle
    except ImportError:
        return

    truncate = InterpreterBuilder.create_fp_trunc

    def create_fp_trunc(self, source, target):
        if source.dtype.scalar.name != "fp32" or target.scalar.name != "bf16":
            return truncate(self, source, target)
        bits = np.ascontiguousarray(source.data).view(np.uint32)
        nearest_even = bits + np.where(np.isnan(source.data), 0, 0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)
        return TensorHandle((nearest_even >> 16).astype(np.uint16), target.scalar)

    InterpreterBuilder.create_fp_trunc = create_fp_trunc


def _patch_the_language_once_a_launch() -> None:
    """Spare Triton's interpreter most of its work: it patches `triton.language` anew at every call of a device function.

    Nothing takes those patches back before the launch ends, so that the first call of each function does for all.
    """
    try:
        from triton.runtime import interpreter
    except ImportError:
        return

    launch, patch, patched = interpreter.GridExecutor.__call__, interpreter._patch_lang, set()

    def launch_afresh(self, *arguments, **options):
        patched.clear()
        try:
            return launch(self, *arguments, **options)
        finally:
            patched.clear()

    def patch_once(function):
        if function in patched:
            return None
        patched.add(function)
        return patch(function)

    interpreter.GridExecutor.__call__, interpreter._patch_lang = launch_afresh, patch_once


_round_in_the_interpreter()
_patch_the_language_once_a_launch()


# The files that take longest, however few tests they have; see `make test`.
LONGEST = (
    "modeling/test_remote_code.py",
    "publishing/test_publish_command.py",
    "distillation/test_stages.py",
    "evaluation/test_evaluate.py",
    "conformance/test_export.py",
    "conformance/test_compile.py",
    "kernels/test_triton.py",
    "distillation/test_processes.py",
    "examples/test_examples.py",
    "kernels/test_edges.py",
    "distillation/test_run.py",
    "test_prediction.py",
    "test_quantization.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files: a worker that begins one last is alone at the end."""
    places = {Path(__file__).parent / file: place for place, file in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))


def pytest_collection_finish() -> None:
    """Keep what the tests imported out of every full garbage collection, which takes half a second with it.

    Each training and each measured peak of memory begins with one.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fill the memory of `torch.empty` and its kin with NaN (integers: the largest value).

    A buffer that is read before it is written then fails a test every time, not only when the allocator is dirty.
    """
    # The filling is part of the deterministic mode; "warn only", so that no operation is refused because of it.
    enabled, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """The same draws for a test, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
