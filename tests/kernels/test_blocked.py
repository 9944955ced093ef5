"""The blocked torch form: the same numbers for every block size, memory that stays within a block, and torch.compile."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inhibidistilbert import inhibitor_attention
from inhibidistilbert.kernels import blocked
from inhibidistilbert.testing.reference import Case, assert_agrees, draw, judged, relative_rms, run

BLOCK = 1 << 13  # elements of one (B, H, block, N, d) temporary in the memory tests
HEADS, SIZE = 2, 8


def set_block(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    monkeypatch.setattr(blocked, "_BLOCK_ELEMENTS", {"cpu": elements, "other": elements})


@pytest.mark.parametrize("rows", [1, 2, 3, 6, 7, 100])
@pytest.mark.parametrize(
    "case",
    [
        Case(),
        Case(signed=False, centered=False, causal=True),
        Case(padding="holes", dropout=True, attn_mask=(2, 1, 7, 9), scalars=(2,)),
        Case(attn_mask=(1, 2, 7, 9), causal=True),
    ],
    ids=str,
)
def test_block_size_does_not_matter(case: Case, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, want = judged(case, through_scores=True)
    set_block(monkeypatch, rows * case.B * case.H * case.N * case.D)
    lengths = [block.stop - block.start for block in blocked._query_blocks(inputs.tensors["query"], inputs.tensors["key"])]
    assert lengths == [rows] * (case.M // rows) + [case.M % rows] * (case.M % rows > 0)
    assert_agrees(run(inputs, "torch", return_scores=True), want)


def test_a_block_is_never_less_than_one_query(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, want = judged(Case())
    set_block(monkeypatch, 1)
    assert_agrees(run(inputs, "torch"), want)


def peak_memory(work: Callable[[], object], folder: Path) -> int:
    """Bytes that `work` held at its peak beyond what was there before, as the allocator saw them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = work()
    del result
    profile.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    changes = sorted((e["ts"], i, e["args"]["Bytes"]) for i, e in enumerate(events) if e.get("name") == "[memory]")
    held = peak = 0
    for _, _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def leaves(queries: int, keys: int) -> list[Tensor]:
    return [torch.randn(1, HEADS, length, SIZE, requires_grad=True) for length in (queries, keys, keys)]


def forward_and_backward(tensors: list[Tensor], folder: Path, backend: str, **options) -> tuple[int, int]:
    """Peaks of the forward and of the backward pass."""
    results = []
    forward = peak_memory(lambda: results.append(inhibitor_attention(*tensors, **options, backend=backend)), folder)
    incoming = torch.ones_like(results[0])
    return forward, peak_memory(lambda: torch.autograd.grad(results[0], tensors, incoming), folder)


def memory_bound(queries: int, keys: int) -> int:
    """A few temporaries of one block, and a few copies of inputs and gradients; nothing of size M x N."""
    return 4 * (6 * max(BLOCK, HEADS * keys * SIZE) + 4 * HEADS * (queries + 2 * keys) * SIZE)


OPTIONS = {
    "signed-centered": {},
    "unsigned-uncentered": {"signed": False, "centered": False},
    "causal": {"causal": True},
    "padding-dropout": {"masks": True},
}
# `make test` has each length and each options once.
FEW = [
    (256, 256, "causal"),
    (256, 256, "padding-dropout"),
    (1024, 128, "unsigned-uncentered"),
    (128, 1024, "signed-centered"),
]


@pytest.mark.parametrize(
    ("queries", "keys", "options"),
    [
        pytest.param(*lengths, OPTIONS[name], id=f"{lengths[0]}-{lengths[1]}-{name}", marks=() if few else pytest.mark.slow)
        for lengths in ((256, 256), (1024, 128), (128, 1024))
        for name in OPTIONS
        for few in [(*lengths, name) in FEW]
    ],
)
def test_peak_memory_is_a_block(
    queries: int, keys: int, options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_block(monkeypatch, BLOCK)
    if "masks" in options:
        real, kept = torch.rand(2, 1, keys) < 0.8
        options = {"key_padding_mask": real, "key_dropout_mask": kept}
    forward, backward = forward_and_backward(leaves(queries, keys), tmp_path, "torch", **options)
    assert memory_bound(queries, keys) < 4 * HEADS * queries * keys
    assert 0 < forward < memory_bound(queries, keys)
    assert 0 < backward < memory_bound(queries, keys)


def test_peak_memory_grows_with_the_length_not_its_square(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_block(monkeypatch, BLOCK)
    lengths = (128, 512)
    short, long = (forward_and_backward(leaves(n, n), tmp_path, "torch") for n in lengths)
    scores = HEADS * lengths[1] ** 2 * 4
    assert max(long) < scores / 4, "one (M, N) float matrix per head would not fit"
    assert long[0] < 4 * short[0]
    assert long[1] < 4 * short[1]


def test_the_measurement_sees_the_definition_hold_everything(tmp_path: Path) -> None:
    forward, _ = forward_and_backward(leaves(128, 128), tmp_path, "naive")
    assert forward > HEADS * 128 * 128 * SIZE * 4


@pytest.mark.parametrize("return_scores", [False, True], ids=["output", "output-and-scores"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_nothing_of_size_queries_by_keys_is_saved_but_the_scores_asked_for(causal: bool, return_scores: bool) -> None:
    tensors, saved = leaves(64, 96), []
    real = torch.rand(1, 96) < 0.8

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = inhibitor_attention(
            *tensors, key_padding_mask=real, causal=causal, return_scores=return_scores, backend="torch"
        )
    returned = [result[1].data_ptr()] if return_scores else []
    beyond = [tensor for tensor in saved if tensor.data_ptr() not in returned]
    assert beyond
    assert max(tensor.numel() for tensor in beyond) <= HEADS * 96 * SIZE < 64 * 96


# The default compiler takes 10 s or more for one graph: the scores go through the tracer alone.
@pytest.mark.parametrize(
    ("compiler", "return_scores"),
    [
        pytest.param("inductor", False, id="inductor-output", marks=pytest.mark.slow),
        pytest.param("aot_eager", True, id="aot_eager-scores"),
    ],
)
def test_compiled_equals_eager(compiler: str, return_scores: bool) -> None:
    inputs = draw(Case(padding="holes", dropout=True, causal=True, scalars=(2,)))
    tensors = {name: tensor.requires_grad_() for name, tensor in inputs.tensors.items()}
    incoming = [inputs.grad_output.float(), inputs.grad_scores.float()][: 1 + return_scores]

    def values_and_gradients(operator: Callable[..., Any]) -> list[Tensor]:
        result = operator(**tensors, **inputs.options, return_scores=return_scores, backend="torch")
        outputs = result if return_scores else (result,)
        return [*outputs, *torch.autograd.grad(outputs, list(tensors.values()), incoming)]

    eager = values_and_gradients(inhibitor_attention)
    compiled = values_and_gradients(torch.compile(inhibitor_attention, fullgraph=True, backend=compiler))
    for got, want in zip(compiled, eager, strict=True):
        assert relative_rms(got, want) < 1e-5
