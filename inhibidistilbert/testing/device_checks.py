"""What the Triton kernels must hold to on a GPU, as functions by name that raise where they do not. No pytest needed.

The small cases have the triple loop as their judge. Those of a model's sizes have the plain torch form in float64, on inputs
on a grid: distances, their means and the scores are then exact in float32, and none of them lies at a kink, where float32
and float64 could fall on different sides.
"""

import copy
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ..kernels.attention import inhibitor_attention
from ..kernels.triton import launch
from ..modeling.configuration_inhibidistilbert import InhibiDistilBertConfig
from ..modeling.modeling_inhibidistilbert import InhibiDistilBertForSequenceClassification
from ..support.errors import UserError
from ..support.memory import peak_memory
from .matrix import (
    BEYOND,
    BEYOND_SPOILT,
    DEVICE,
    HALF_CASES,
    HALF_DTYPES,
    HALF_TOLERANCE,
    SCALARS,
    TENSORS,
    Row,
    assert_half_is_near,
    assert_row_agrees,
    check_spoilt_half,
    pairs,
    run_triton,
    spoilt_pairs,
)
from .reference import (
    SPOILT,
    Case,
    Inputs,
    Result,
    assert_agrees,
    assert_only_rounded,
    judged,
    relative_rms,
    run,
)

FIRST_CALL_SECONDS = 10
# Memory at 4096 tokens over that at 2048: linear growth, and a little for what is allocated in blocks.
MEMORY_RATIO = 2.1

_GRID, _VALUE_GRID = 1 / 4, 1 / 16


@dataclass(frozen=True)
class Large:
    """A self-attention of a model's size; `half_real`: every second key is padding; `dropout`: of values; `gate`: one that
    counts from the nearest key and is divided by what passes."""

    batch: int = 8
    heads: int = 12
    length: int = 512
    size: int = 64
    dtype: torch.dtype = torch.float32
    signed: bool = True
    centered: bool = True
    causal: bool = False
    half_real: bool = False
    dropout: bool = False
    gate: bool = False

    @property
    def on_grid(self) -> bool:
        """Whether scores on a grid are exact in float32: 1/√size and the number of keys must be powers of two."""
        even_mean = self.gate or not self.centered or (not self.causal and self.length & (self.length - 1) == 0)
        return self.size in (16, 64) and even_mean

    def __str__(self) -> str:
        shape = "x".join(map(str, (self.batch, self.heads, self.length, self.size)))
        flags = [name for name in ("causal", "half_real", "dropout", "gate") if getattr(self, name)]
        words = ["signed" if self.signed else "unsigned", "centered" if self.centered else "uncentered", *flags]
        return "-".join([shape, str(self.dtype).removeprefix("torch."), *words])


LARGE = (
    Large(length=128, batch=32),
    Large(length=128, batch=1, half_real=True),
    Large(),
    Large(signed=False),
    Large(centered=False, causal=True),
    Large(half_real=True, dropout=True),
    Large(size=16),
    Large(size=32),
    Large(size=128),
    Large(length=500),
    Large(batch=2, length=2048),
    Large(batch=2, length=2048, centered=False, causal=True, signed=False),
    Large(gate=True),
    Large(gate=True, causal=True, half_real=True, dropout=True, length=500),
    *(Large(dtype=dtype) for dtype in HALF_DTYPES),
    *(Large(dtype=dtype, half_real=True, signed=False) for dtype in HALF_DTYPES),
    Large(batch=2, length=2048, dtype=torch.bfloat16),
)


def draw_large(large: Large) -> Inputs:
    """The inputs, on the device."""
    torch.manual_seed(0)
    shape = (large.batch, large.length, large.heads, large.size)

    def on_grid(step: float) -> Tensor:
        # At most 4 in magnitude, so that bfloat16 holds it.
        rounded = (torch.randn(shape, device=DEVICE) / step).round().clamp(-4 / step, 4 / step) * step
        return rounded.to(large.dtype).transpose(1, 2)

    tensors = {"query": on_grid(_GRID), "key": on_grid(_GRID), "value": on_grid(_VALUE_GRID)}
    root, real = large.size**-0.5, large.length // 2 if large.half_real else large.length
    one = torch.ones(1, device=DEVICE)
    gamma = one / 4 if large.gate else one
    # Scores are whole multiples of this plus alpha, values too: half a step keeps both off the kinks.
    step = _GRID * root * gamma / (real if large.centered and not large.gate else 1)
    shift = 0.5 if large.centered else 0.5 - 1.125 / root  # the mean distance of two normal numbers is 1.128
    per_head = torch.arange(large.heads, device=DEVICE)
    alpha = (-shift if large.gate else shift) + step * (per_head + 0.5)
    tensors |= {"alpha": alpha, "beta": 1 + per_head / 10, "gamma": gamma} | ({"delta": one} if large.gate else {})
    visible = torch.arange(large.length, device=DEVICE).expand(large.batch, -1) % 2 == 0
    kept = torch.rand(large.batch, large.length, device=DEVICE) < 0.7
    options: dict[str, Any] = {"signed": large.signed, "centered": large.centered, "causal": large.causal}
    options |= {"center": "least", "inhibition": "gate"} if large.gate else {}
    options |= {"key_padding_mask": visible if large.half_real else None}
    options |= {"key_dropout_mask": kept if large.dropout else None}
    incoming = torch.randn(shape, device=DEVICE).transpose(1, 2).to(large.dtype).double()
    return Inputs(tensors, options, incoming, torch.empty(0))


def judge_large(inputs: Inputs) -> Result:
    """The plain torch form in float64."""
    wide = {name: tensor.double() for name, tensor in inputs.tensors.items()}
    return run(Inputs(wide, inputs.options, inputs.grad_output, inputs.grad_scores), "torch")


def check_large(large: Large) -> None:
    """Output, and on the grid every gradient, with the half types rounded once; then inference on half types."""
    inputs = draw_large(large)
    want, got = judge_large(inputs), run(inputs, "triton")
    if not large.on_grid:
        error = relative_rms(got.output, want.output)
        assert error < 1e-5, f"output: relative RMS error {error:.2e}"
    elif large.dtype == torch.float32:
        assert_agrees(got, want)
    else:
        assert_only_rounded(got.output, want.output)
        for name in TENSORS:
            assert_only_rounded(got.gradients[name], want.gradients[name])
        for name in SCALARS:
            assert relative_rms(got.gradients[name], want.gradients[name]) < 3e-4, name
    arguments: dict[str, Any] = {**inputs.tensors, **inputs.options}
    with torch.no_grad():
        inferred: Any = inhibitor_attention(**arguments, backend="triton")
    error, tolerance = relative_rms(inferred, want.output), 1e-5 if large.dtype == torch.float32 else HALF_TOLERANCE
    assert error < tolerance, f"inference: relative RMS error {error:.2e}"


def check_row(row: Row) -> None:
    assert_row_agrees(row, *judged(row.case))


def check_single_key(queries: int, causal: bool) -> None:
    """Not centred: the centred score of an only key is 0, whatever the query."""
    inputs, want = judged(Case(B=2, H=1, M=queries, N=1, D=16, causal=causal, centered=False))
    assert_agrees(run_triton(inputs), want)


def check_half(case: Case) -> None:
    assert_half_is_near(*judged(case))


# What only a GPU can show


def check_same_bits(large: Large) -> None:
    """Two calls on the same inputs, forward and backward."""
    inputs = draw_large(large)
    first, second = run(inputs, "triton"), run(inputs, "triton")
    assert torch.equal(first.output, second.output)
    for name, gradient in first.gradients.items():
        assert torch.equal(gradient, second.gradients[name]), name


def check_memory(training: bool) -> None:
    """What a call allocates beyond its inputs grows with the length, not with its square."""
    needed: dict[int, Any] = {}
    for length in (2048, 4096):
        query, key, value = (torch.randn(2, 12, length, 64, device=DEVICE, requires_grad=training) for _ in range(3))

        def work(query: Tensor = query, key: Tensor = key, value: Tensor = value) -> None:
            output: Any = inhibitor_attention(query, key, value, backend="triton")
            if training:
                torch.autograd.grad(output, (query, key, value), torch.ones_like(output))

        work()
        needed[length] = peak_memory(DEVICE, work)
    assert needed[2048] > 0
    ratio = needed[4096] / needed[2048]
    assert ratio <= MEMORY_RATIO, f"4096 keys take {ratio:.2f} times the memory of 2048: {needed}"


_FIRST_CALL = """
import time
import torch
from inhibidistilbert import inhibitor_attention
query, key, value = (torch.randn(8, 12, 128, 64, device="cuda", requires_grad=True) for _ in range(3))
torch.cuda.synchronize()
start = time.perf_counter()
output = inhibitor_attention(query, key, value, backend="triton")
output.sum().backward()
torch.cuda.synchronize()
print(time.perf_counter() - start)
"""


def check_first_call() -> None:
    """Forward and backward compile in seconds, where nothing is cached."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.run(
            [sys.executable, "-c", _FIRST_CALL],
            env={**os.environ, "TRITON_CACHE_DIR": folder},
            capture_output=True,
            text=True,
            check=False,
        )
    assert process.returncode == 0, process.stderr
    seconds = float(process.stdout.split()[-1])
    assert seconds < FIRST_CALL_SECONDS, f"the first call took {seconds:.1f} s"


def _warm_up(work: Callable[[], object], times: int = 3) -> None:
    """Before a capture, on a stream of its own, as torch asks for: compiles, and sets up libraries."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(times):
            work()
    torch.cuda.current_stream().wait_stream(stream)


def check_captured_operator(dtype: torch.dtype, training: bool) -> None:
    """A CUDA graph of a call, with its backward pass or in half precision, replayed on other inputs, has the call's bits."""
    large = Large(batch=2, dtype=dtype, half_real=True)
    inputs = draw_large(large)
    leaves: dict[str, Any] = {name: tensor.detach().requires_grad_(training) for name, tensor in inputs.tensors.items()}
    incoming = inputs.grad_output.to(dtype)

    def call() -> list[Tensor]:
        output: Any = inhibitor_attention(**leaves, **inputs.options, backend="triton")
        gradients = torch.autograd.grad(output, list(leaves.values()), incoming) if training else ()
        return [output.detach(), *gradients]

    with mock.patch.object(launch, "HALF_FROM", 0):
        _warm_up(call)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = call()
        for seed in (1, 2):
            torch.manual_seed(seed)
            with torch.no_grad():
                for name in TENSORS:
                    leaves[name].copy_(torch.randn(leaves[name].shape, device=DEVICE))
            graph.replay()
            for got, want in zip(captured, call(), strict=True):
                assert torch.equal(got, want)


def check_captured_training_step() -> None:
    """A CUDA graph of a model's training step, replayed on other batches, trains the model as the steps themselves do."""
    config = InhibiDistilBertConfig(
        vocab_size=100, dim=64, n_heads=2, n_layers=2, hidden_dim=128, dropout=0.0, attention_dropout=0.0,
        seq_classif_dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = InhibiDistilBertForSequenceClassification(config)
    model.to(DEVICE)  # type: ignore[arg-type]  # transformers' wrapper of `to` loses its signature
    batch = {
        "input_ids": torch.randint(1, 100, (4, 32), device=DEVICE),
        "attention_mask": torch.arange(32, device=DEVICE) < torch.tensor([[32], [20], [7], [1]], device=DEVICE),
        "labels": torch.randint(0, 2, (4,), device=DEVICE),
    }

    def stepper(model: torch.nn.Module) -> Callable[[], None]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            model(**batch).loss.backward()
            optimizer.step()

        return step

    other = copy.deepcopy(model)
    step, other_step = stepper(model), stepper(other)
    _warm_up(step)
    _warm_up(other_step)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for seed in range(3):
        torch.manual_seed(seed)
        batch["input_ids"].copy_(torch.randint(1, 100, (4, 32), device=DEVICE))
        graph.replay()
        other_step()
    assert not all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)), "nothing was trained"
    for got, want in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)


def gpu_checks() -> dict[str, Callable[[], None]]:
    """Those that need a GPU, by name."""
    named: dict[str, Callable[[], None]] = {
        f"first call in less than {FIRST_CALL_SECONDS} s": check_first_call,
        "memory linear in the length, forward": partial(check_memory, training=False),
        "memory linear in the length, training": partial(check_memory, training=True),
        "CUDA graph of a training step": check_captured_training_step,
    }
    for dtype in (torch.float32, torch.bfloat16):
        named[f"same bits on every run, {dtype}"] = partial(check_same_bits, Large(dtype=dtype, half_real=True))
        for training in (False, True):
            work = "forward and backward" if training else "inference"
            named[f"CUDA graph of the operator, {dtype}, {work}"] = partial(check_captured_operator, dtype, training)
    return named


def checks() -> dict[str, Callable[[], None]]:
    """All of them, by name; those that take longest first. Raises `UserError` where Python leaves assertions out."""
    if not __debug__:
        raise UserError("The checks are assertions: run Python without -O and PYTHONOPTIMIZE, or each would pass.")
    named: dict[str, Callable[[], None]] = gpu_checks()
    named |= {f"model size {large}": partial(check_large, large) for large in LARGE}
    named |= {f"options {row}": partial(check_row, row) for row in (*pairs(), *BEYOND)}
    named |= {f"not-finite {row}": row.check for row in (*spoilt_pairs(), *BEYOND_SPOILT)}
    named |= {
        f"not-finite half pairs, {place}": partial(check_spoilt_half, place) for place in SPOILT if place != "gradient"
    }
    for queries in (1, 129):
        for causal in (False, True):
            name = f"single key, {queries} queries{', causal' if causal else ''}"
            named[name] = partial(check_single_key, queries, causal)
    halves = [replace(case, dtype=dtype) for case in HALF_CASES for dtype in HALF_DTYPES]
    return named | {f"half pairs {case}": partial(check_half, case) for case in halves}
