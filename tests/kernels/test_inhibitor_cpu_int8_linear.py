"""Linear layers of int8 weights: the product is exact in whole numbers, on every kind of processor."""

import pytest
import torch
from test_inhibitor_cpu_int8 import PROCESSORS, processor
from torch import Tensor

from inhibidistilbert.kernels import inhibitor_cpu_int8_linear as int8
from inhibidistilbert.kernels.inhibitor_cpu_int8_linear import int8_linear, plain_int8_linear

pytestmark = pytest.mark.skipif(int8._unavailable() is not None, reason=str(int8._unavailable()))


def layer(inputs: int, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights over the whole range, scales and biases."""
    return torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8), torch.rand(outputs), torch.randn(outputs)


def rows(*shape: int) -> Tensor:
    """Each of another size."""
    return torch.randn(shape) * 10 ** torch.randn(*shape[:-1], 1)


def exactly(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> Tensor:
    """The definition, its product in 64 bits."""
    reach = x.abs().amax(-1, keepdim=True)
    x8 = (x * (reach.reciprocal() * 127)).round().long()
    return (x8 @ weight.long().T).float() * (reach * (1 / 127)) * weight_scale + bias


# Rows, inputs, outputs: blocks and tiles that are not full, no whole vectors, more rows than a block, the longest sums.
SHAPES = [(7, 64, 32), (33, 768, 96), (1, 3072, 64), (5, 31, 7), (300, 128, 40)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["host", *PROCESSORS])
def test_the_product_is_exact(name: str, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    machine = processor(name)
    monkeypatch.setattr(int8, "machine", lambda: machine)
    count, inputs, outputs = shape
    x, parameters = rows(count, inputs), layer(inputs, outputs)
    assert torch.equal(int8_linear(x, *parameters), exactly(x, *parameters))


def test_the_largest_sums() -> None:
    x = torch.ones(3, 4096)
    x[1] *= -1
    weight = torch.full((32, 4096), 127, dtype=torch.int8)
    weight[::2] *= -1
    parameters = (weight, torch.ones(32), torch.zeros(32))
    assert torch.equal(int8_linear(x, *parameters), exactly(x, *parameters))


@pytest.mark.parametrize("form", [int8_linear, plain_int8_linear], ids=["compiled", "plain"])
def test_error_against_the_float_layer(form) -> None:
    weight, scale, bias = layer(768, 96)
    x = torch.randn(20, 768)
    want = torch.nn.functional.linear(x, weight * scale[:, None], bias)
    error = (form(x, weight, scale, bias) - want).square().mean().sqrt() / want.square().mean().sqrt()
    assert error < 0.01


def test_the_plain_form_agrees() -> None:
    x, parameters = rows(9, 1040), layer(1040, 64)
    assert torch.equal(plain_int8_linear(x, *parameters), int8_linear(x, *parameters))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads(threads: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for count, inputs, outputs in ((600, 768, 64), (3, 768, 3072), (1, 64, 32)):
            x, parameters = rows(count, inputs), layer(inputs, outputs)
            assert torch.equal(int8_linear(x, *parameters), exactly(x, *parameters))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("form", [int8_linear, plain_int8_linear], ids=["compiled", "plain"])
def test_rows_of_zeros_and_rows_that_are_not_finite(form) -> None:
    weight, scale, bias = layer(64, 32)
    x = torch.randn(6, 64)
    fine = form(x, weight, scale, bias)
    x[1] = 0
    x[2] = 1e-38
    x[3, 5], x[4, 6] = torch.nan, -torch.inf
    got = form(x, weight, scale, bias)
    assert torch.equal(got[1], bias)
    assert (got[2] - bias).abs().max() < 1e-30
    assert got[3:5].isnan().all()
    assert torch.equal(got[::5], fine[::5])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    x, parameters = torch.randn(4, 64).to(dtype), layer(64, 32)
    got = int8_linear(x, *parameters)
    assert got.dtype == dtype
    assert torch.equal(got, int8_linear(x.float(), *parameters).to(dtype))


def test_shapes_and_strides() -> None:
    parameters = layer(64, 32)
    x = torch.randn(2, 5, 64)
    got = int8_linear(x, *parameters)
    assert got.shape == (2, 5, 32)
    assert torch.equal(int8_linear(x.transpose(0, 1), *parameters), got.transpose(0, 1))
    assert torch.equal(int8_linear(x.mT.contiguous().mT, *parameters), got)
    assert torch.equal(int8_linear(x[:, ::2], *parameters), got[:, ::2])
    assert torch.equal(int8_linear(x[0, 0], *parameters), got[0, 0])
    assert int8_linear(x[:0], *parameters).shape == (0, 5, 32)


def test_as_an_operator_of_torch() -> None:
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for dtype in (torch.float32, torch.bfloat16):
        torch.library.opcheck(int8._compiled_int8_linear, (torch.randn(3, 40).to(dtype), *layer(40, 10)), test_utils=tests)
