"""The operator on texts one behind the other: each text as if it was alone."""

import itertools

import pytest
import torch

from inhibidistilbert import inhibitor_attention, packed_inhibitor_attention
from inhibidistilbert.kernels import attention as operator
from inhibidistilbert.kernels.cpu import packed as cpu

LENGTHS = {"one": [5], "a run": [7, 7, 3], "many": [1, 33, 33, 2, 64], "with an empty one": [4, 0, 4]}
OPTIONS = {
    "published": {},
    "plain": {"centered": False, "signed": False},
    "gate": {"center": "least", "inhibition": "gate", "delta": torch.tensor([1.0, 1.5])},
    "two radii": {"center": "least", "alpha": torch.tensor([[0.1], [0.7]]), "delta": 0.8},
}
ONE_RADIUS = {name: options for name, options in OPTIONS.items() if name != "two radii"}


def boundaries(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def inputs(lengths: list[int], dtype=torch.float32, size: int = 17) -> list[torch.Tensor]:
    """Queries, keys and values as slices of wider rows, so that nothing is contiguous."""
    torch.manual_seed(0)
    return [torch.randn(sum(lengths), 2 * size + 3).to(dtype)[:, : 2 * size].unflatten(1, (2, size)) for _ in range(3)]


def one_by_one(tensors, lengths, kept=None, **options) -> torch.Tensor:
    outputs, start = [], 0
    for length in lengths:
        text = [x[start : start + length].transpose(0, 1)[None] for x in tensors]
        mask = None if kept is None else kept[None, start : start + length]
        outputs.append(inhibitor_attention(*text, key_dropout_mask=mask, **options)[0].transpose(0, 1))
        start += length
    return torch.cat(outputs)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("form", OPTIONS)
def test_each_text_has_its_own_output_and_gradients(form, name, threads, monkeypatch):
    monkeypatch.setattr(cpu, "FLOAT32_WORTH_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    lengths, options = LENGTHS[name], OPTIONS[form]
    tensors = [x.requires_grad_() for x in inputs(lengths)]
    kept = torch.rand(sum(lengths)) > 0.2
    scalars = {name: torch.tensor([0.7, 1.3], requires_grad=True) for name in ("beta", "gamma")}
    output = packed_inhibitor_attention(*tensors, boundaries(lengths), key_dropout_mask=kept, **options, **scalars)
    expected = one_by_one(tensors, lengths, kept, **options, **scalars)
    assert torch.equal(output, expected)
    weights = torch.randn_like(output)
    found = torch.autograd.grad(output, [*tensors, *scalars.values()], weights)
    right = torch.autograd.grad(expected, [*tensors, *scalars.values()], weights)
    for gradient, other in zip(found[:3], right[:3], strict=True):
        assert torch.equal(gradient, other)
    for gradient, other in zip(found[3:], right[3:], strict=True):  # summed in another order
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quantized", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("form", ONE_RADIUS)
def test_one_call_gives_the_bits_of_a_call_for_each_text(form, quantized, dtype):
    lengths = LENGTHS["many"]
    tensors, options = inputs(lengths, dtype), {"quantized": quantized, **ONE_RADIUS[form]}
    with torch.no_grad():
        output = packed_inhibitor_attention(*tensors, boundaries(lengths), **options)
        assert torch.equal(output, one_by_one(tensors, lengths, **options))


def test_all_texts_are_one_compiled_call(monkeypatch):
    calls = []
    run = cpu.run_on_threads
    monkeypatch.setattr(cpu, "run_on_threads", lambda *arguments: calls.append(arguments) or run(*arguments))
    lengths = LENGTHS["many"]
    packed_inhibitor_attention(*inputs(lengths), boundaries(lengths))
    assert len(calls) == 1


@pytest.mark.parametrize("backend", ["torch", "naive"])
def test_other_backends_are_called_for_each_run(backend):
    lengths = LENGTHS["a run"]
    tensors = inputs(lengths, torch.float64)
    output = packed_inhibitor_attention(*tensors, boundaries(lengths), backend=backend)
    torch.testing.assert_close(output, one_by_one(tensors, lengths), rtol=0, atol=1e-12)


def test_causal():
    lengths = LENGTHS["many"]
    tensors = inputs(lengths)
    output = packed_inhibitor_attention(*tensors, boundaries(lengths), causal=True)
    assert torch.equal(output, one_by_one(tensors, lengths, causal=True))


@pytest.mark.parametrize("where", ["query", "key", "value"])
def test_numbers_that_are_not_finite_stay_in_their_text(where):
    lengths = [5, 5, 8]
    tensors = inputs(lengths)
    tensors[("query", "key", "value").index(where)][12, 1, 3] = float("inf")
    tensors = [x.requires_grad_() for x in tensors]
    output = packed_inhibitor_attention(*tensors, boundaries(lengths))
    expected = one_by_one(tensors, lengths)
    torch.testing.assert_close(output, expected, rtol=0, atol=0, equal_nan=True)
    found, right = (torch.autograd.grad(x[:10].sum(), tensors) for x in (output, expected))
    for gradient, other in zip(found, right, strict=True):
        torch.testing.assert_close(gradient[:10], other[:10], rtol=0, atol=0)


def test_no_tokens():
    assert packed_inhibitor_attention(*(torch.zeros(0, 2, 4) for _ in range(3)), torch.tensor([0, 0])).shape == (0, 2, 4)


def test_without_a_compiler_it_is_slower_and_the_same(monkeypatch):
    monkeypatch.setitem(operator.BACKENDS, "cpu", operator.BACKENDS["cpu"]._replace(refusal=lambda query: "a test"))
    lengths = LENGTHS["a run"]
    tensors = inputs(lengths)
    expected = one_by_one([x.double() for x in tensors], lengths).float()
    torch.testing.assert_close(packed_inhibitor_attention(*tensors, boundaries(lengths)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cu_seqlens": torch.tensor([0, 4])}, r"cu_seqlens must be integers that rise from 0 to 5, .*got \[0, 4\]"),
        ({"cu_seqlens": torch.tensor([0, 4, 2, 5])}, r"cu_seqlens must .*got \[0, 4, 2, 5\]"),
        ({"cu_seqlens": torch.tensor([0.0, 5.0])}, "cu_seqlens must be integers"),
        ({"cu_seqlens": torch.tensor(5)}, "cu_seqlens must be integers"),
        ({"key": torch.zeros(4, 2, 3)}, r"key must have the shape .*got \(4, 2, 3\)"),
        ({"query": torch.zeros(5, 6)}, r"query must have the shape .*got \(5, 6\)"),
        ({"key_dropout_mask": torch.ones(4) > 0}, r"key_dropout_mask must .*\(5,\).*got torch.bool of shape \(4,\)"),
        ({"backend": "gpu"}, "backend must be one of .*got 'gpu'"),
        ({"alpha": torch.zeros(3)}, "alpha must be a float or a tensor"),
        ({"inhibition": "door"}, "inhibition must be one of"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    arguments = {name: torch.zeros(5, 2, 3) for name in ("query", "key", "value")} | {"cu_seqlens": torch.tensor([0, 5])}
    with pytest.raises(ValueError, match=message):
        packed_inhibitor_attention(**arguments | changes)
