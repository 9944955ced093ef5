"""Linear layers of int8 weights: the product is exact in whole numbers, on every kind of processor."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from inhibidistilbert.kernels.cpu import int8_linear as int8
from inhibidistilbert.kernels.cpu.code import linear
from inhibidistilbert.kernels.cpu.int8_linear import int8_linear, plain_int8_linear
from inhibidistilbert.kernels.llvm.jit import host_machine, object_code
from tests.helpers.cpu_machines import PROCESSORS, named_machine, processor

REFUSAL = int8._refusal(torch.empty(1, 4), torch.empty(1, 4, dtype=torch.int8))
pytestmark = pytest.mark.skipif(REFUSAL is not None, reason=str(REFUSAL))


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
SHAPES = [(7, 64, 32), (33, 768, 96), (1, 3072, 64), (5, 31, 7), (300, 128, 40), (64, 192, 64)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["host", *PROCESSORS])
def test_the_product_is_exact(name: str, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    machine = processor(name)
    monkeypatch.setattr(int8, "machine", lambda: machine)
    count, inputs, outputs = shape
    x, parameters = rows(count, inputs), layer(inputs, outputs)
    assert torch.equal(int8_linear(x, *parameters), exactly(x, *parameters))


@pytest.mark.parametrize("item", [1, 2])
def test_words_of_four_inputs_and_of_two(item: int, monkeypatch: pytest.MonkeyPatch) -> None:
    host = host_machine()
    machine = replace(host, features=",".join([host.features, *host.features.split(",")[:item]]))  # not yet compiled for
    monkeypatch.setattr(int8, "machine", lambda: machine)
    monkeypatch.setattr(linear, "item_size", lambda _: item)
    for count, inputs, outputs in SHAPES:
        x, parameters = rows(count, inputs), layer(inputs, outputs)
        assert torch.equal(int8_linear(x, *parameters), exactly(x, *parameters))


def test_tiles_are_used_where_they_are() -> None:
    ir = {name: linear.int8_linear_ir(named_machine(name)) for name in ("avx512-vnni", "amx")}
    assert "tdpbssd" in ir["amx"]
    assert "tdpbssd" not in ir["avx512-vnni"]
    assert object_code(ir["amx"], named_machine("amx")).startswith(b"\x7fELF")  # on any processor


def test_other_users_of_tiles_find_them_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN keeps its setup of the registers between products."""
    machine = processor("amx")
    monkeypatch.setattr(int8, "machine", lambda: machine)
    a, b = torch.randn(2, 96, 96).bfloat16()
    x, parameters = rows(40, 192), layer(192, 64)
    want = a @ b
    for _ in range(3):
        assert torch.equal(int8_linear(x, *parameters), exactly(x, *parameters))
        assert torch.equal(a @ b, want)


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


FORMS = pytest.mark.parametrize("form", ["compiled", "plain"])


def test_no_inputs_so_many_that_a_sum_wraps() -> None:
    """The widest layer that 32 bits hold, and one more input, which is left to plain torch."""
    for depth in (int8.LARGEST_DEPTH, int8.LARGEST_DEPTH + 1):
        x = torch.ones(2, depth)
        x[1] *= -1
        parameters = (torch.full((1, depth), 127, dtype=torch.int8), torch.ones(1), torch.zeros(1))
        want = exactly(x, *parameters)
        assert torch.equal(int8_linear(x, *parameters), want)
        torch.testing.assert_close(want.abs(), torch.full((2, 1), 127.0 * depth))


@FORMS
def test_memory_is_not_value(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lazy views, zeros without memory, storages freed or cut, another default device, and who looks on."""
    if form == "plain":
        monkeypatch.setattr(int8, "_problem", lambda *_: "as if")
    x, parameters = rows(3, 64), layer(64, 32)
    want = exactly(x, *parameters)
    arguments = [x, *parameters]
    for place, name in enumerate(("x", "weight", "weight_scale", "bias")):
        lazy = [torch._neg_view(-y) if n == place else y for n, y in enumerate(arguments)]
        torch.testing.assert_close(int8_linear(*lazy), want)
        zero = [torch._efficientzerotensor(y.shape, dtype=y.dtype) if n == place else y for n, y in enumerate(arguments)]
        plain = [torch.zeros_like(y) if n == place else y for n, y in enumerate(arguments)]
        torch.testing.assert_close(int8_linear(*zero), int8_linear(*plain))
        for left in (0, arguments[place].nbytes - 1):
            short = [y.clone() for y in arguments]
            short[place].untyped_storage().resize_(left)
            with pytest.raises(ValueError, match=f"{name} has no memory for its elements"):
                int8_linear(*short)
    with torch.device("meta"):
        torch.testing.assert_close(int8_linear(x, *parameters), want)
    torch.testing.assert_close(torch.func.vmap(lambda row: int8_linear(row, *parameters))(x), want)


@FORMS
def test_what_it_cannot_take(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if form == "plain":
        monkeypatch.setattr(int8, "_problem", lambda *_: "as if")
    x, (weight, scale, bias) = rows(3, 64), layer(64, 32)
    for arguments, words in (
        ((x, weight.float(), scale, bias), r"weight must be \(outputs, inputs\) int8, got torch.float32"),
        ((x[:, :60], weight, scale, bias), r"x must end in the 64 inputs of weight, got shape \(3, 60\)"),
        ((x, weight, scale[:1], bias), r"weight_scale must have shape \(outputs,\) = \(32,\), got \(1,\)"),
        ((x, weight, scale, bias[:, None]), r"bias must have shape"),
        ((x, weight.to("meta"), scale, bias), "weight must be on the device of x, cpu; it is on meta"),
    ):
        with pytest.raises(ValueError, match=words):
            int8_linear(*arguments)
    with pytest.raises(ValueError, match="no derivative, and an input has a forward-mode tangent"):
        torch.func.jvp(lambda y: int8_linear(y, weight, scale, bias), (x,), (x,))
