"""Every refusal of the operator names the argument, what it got and what would be right."""

import math
import re

import pytest
import torch
from torch import Tensor

from inhibidistilbert import inhibitor_attention

pytestmark = pytest.mark.portable

TENSORS = ("query", "key", "value")


def tensors(**changed: Tensor) -> dict[str, Tensor]:
    """Two sequences of two heads: 3 queries, 5 keys, head size 4."""
    return {"query": torch.randn(2, 2, 3, 4), "key": torch.randn(2, 2, 5, 4), "value": torch.randn(2, 2, 5, 4)} | changed


def assert_refused(error: type[Exception], *words: str, **arguments) -> None:
    """The call raises `error`, and its message has all of `words`."""
    with pytest.raises(error) as caught:
        inhibitor_attention(**(tensors() | arguments))
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 2, 2, 3, 4), ()], ids=str)
@pytest.mark.parametrize("name", TENSORS)
def test_number_of_dimensions(name: str, shape: tuple[int, ...]) -> None:
    assert_refused(ValueError, f"{name} must have 4 dimensions", str(shape), **{name: torch.zeros(shape)})


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize("name", TENSORS)
def test_dtypes_that_are_not_floating_point(name: str, dtype: torch.dtype) -> None:
    tensor = torch.zeros(2, 2, 3 if name == "query" else 5, 4, dtype=dtype)
    assert_refused(TypeError, f"{name} must be float64, float32, bfloat16 or float16", str(dtype), **{name: tensor})


@pytest.mark.parametrize("name", ["key", "value"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_mixed_dtypes(dtype: torch.dtype, name: str) -> None:
    changed = {name: torch.zeros(2, 2, 5, 4, dtype=dtype)}
    assert_refused(ValueError, "agree in dtype and device", f"{name} in {dtype}", "query in torch.float32", **changed)


@pytest.mark.parametrize("name", ["key", "value"])
def test_mixed_devices(name: str) -> None:
    changed = {name: torch.zeros(2, 2, 5, 4, device="meta")}
    assert_refused(ValueError, "agree in dtype and device", f"{name} in torch.float32 on meta", "on cpu", **changed)


@pytest.mark.parametrize("shape", [(2, 2, 6, 4), (2, 2, 5, 8), (1, 2, 5, 4), (2, 1, 5, 4)], ids=str)
def test_key_and_value_shapes_differ(shape: tuple[int, ...]) -> None:
    assert_refused(
        ValueError, "key and value must have the same shape", str((2, 2, 5, 4)), str(shape), value=torch.zeros(shape)
    )


@pytest.mark.parametrize("shape", [(2, 4, 5, 2), (2, 1, 5, 4), (1, 2, 5, 4), (2, 2, 5, 8)], ids=str)
def test_wrong_head_split(shape: tuple[int, ...]) -> None:
    changed = {"key": torch.zeros(shape), "value": torch.zeros(shape)}
    words = ("query and key must agree in batch, heads and head size", str((2, 2, 3, 4)), str(shape))
    assert_refused(ValueError, *words, **changed)


@pytest.mark.parametrize("name", ["key_padding_mask", "key_dropout_mask"])
@pytest.mark.parametrize("shape", [(2, 3), (5,), (1, 5), (2, 5, 1), (5, 2)], ids=str)
def test_key_mask_shapes(shape: tuple[int, ...], name: str) -> None:
    mask = torch.ones(shape, dtype=torch.bool)
    assert_refused(ValueError, f"{name} must be a bool tensor of shape", "(2, 5)", f"of shape {shape}", **{name: mask})


@pytest.mark.parametrize("name", ["key_padding_mask", "key_dropout_mask"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.uint8], ids=str)
def test_key_mask_dtypes(dtype: torch.dtype, name: str) -> None:
    mask = torch.ones(2, 5, dtype=dtype)
    assert_refused(ValueError, f"{name} must be a bool tensor", str(dtype), **{name: mask})


@pytest.mark.parametrize("shape", [(3, 5), (2, 5), (2, 2, 5, 3), (3, 1, 1, 1), (2, 2, 3, 5, 1), (1, 4, 3, 5)], ids=str)
def test_attention_mask_shapes(shape: tuple[int, ...]) -> None:
    mask = torch.ones(shape, dtype=torch.bool)
    assert_refused(ValueError, "attn_mask must be a 4-D bool tensor", "(2, 2, 3, 5)", f"of shape {shape}", attn_mask=mask)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32], ids=str)
def test_attention_mask_dtypes(dtype: torch.dtype) -> None:
    assert_refused(
        ValueError, "attn_mask must be a 4-D bool tensor", str(dtype), attn_mask=torch.ones(2, 2, 3, 5, dtype=dtype)
    )


@pytest.mark.parametrize("name", ["key_padding_mask", "key_dropout_mask", "attn_mask"])
def test_masks_on_another_device(name: str) -> None:
    mask = torch.ones((2, 2, 3, 5) if name == "attn_mask" else (2, 5), dtype=torch.bool, device="meta")
    assert_refused(ValueError, f"{name} must be on the device of query, key and value, cpu", "on meta", **{name: mask})


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("name", ["alpha", "beta", "gamma", "delta"])
def test_float_scalars_that_are_not_finite(name: str, number: float) -> None:
    assert_refused(ValueError, f"{name} must be finite", str(number), **{name: number})


@pytest.mark.parametrize("shape", [(3,), (2, 3), (0, 2), (1, 2, 1, 1), (0,)], ids=str)
@pytest.mark.parametrize("name", ["alpha", "beta", "gamma", "delta"])
def test_scalar_tensor_shapes(name: str, shape: tuple[int, ...]) -> None:
    words = (f"{name} must be a float or a tensor of shape (), (1,) or (2,)", str(shape))
    assert_refused(ValueError, *words, **{name: torch.ones(shape)})


def test_radii_that_disagree() -> None:
    scalars = {"alpha": torch.ones(2, 1), "beta": torch.ones(2), "gamma": torch.ones(3, 2)}
    assert_refused(
        ValueError, "alpha, beta and gamma must agree in the number of radii", "'alpha': 2, 'gamma': 3", **scalars
    )
    assert_refused(
        ValueError, "delta must be a float or a tensor of shape (), (1,) or (2,), got (2, 1)", delta=torch.ones(2, 1)
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"inhibition": "door"}, ("inhibition must be one of 'threshold', 'gate'", "got 'door'")),
        ({"center": "median"}, ("center must be one of 'mean', 'least'", "got 'median'")),
        ({"inhibition": "gate", "signed": False}, ("signed must be True for inhibition='gate'", "got False")),
    ],
    ids=lambda options: str(options) if isinstance(options, dict) else "",
)
def test_forms_that_there_are_not(options: dict, words: tuple[str, ...]) -> None:
    assert_refused(ValueError, *words, **options)


def test_quantized_with_several_radii() -> None:
    words = ("quantized=True cannot be used here", "it computes one radius")
    assert_refused(ValueError, *words, quantized=True, gamma=torch.ones(2, 1), inhibition="gate")


@pytest.mark.parametrize("backend", ["flash", "Torch", "", None], ids=repr)
def test_unknown_backend(backend: str | None) -> None:
    assert_refused(ValueError, "backend must be one of", "'auto'", "'naive'", "'torch'", f"got {backend!r}", backend=backend)


@pytest.mark.parametrize("backend", ["auto", "naive", "torch"])
def test_quantized_with_what_it_does_not_have(backend: str) -> None:
    chosen = {"quantized": True, "backend": backend}
    assert_refused(ValueError, "quantized=True returns no scores", "use quantized=False", return_scores=True, **chosen)
    differentiable = torch.randn(2, 2, 3, 4, requires_grad=True)
    assert_refused(ValueError, "quantized=True has no gradient", "query", "torch.no_grad()", query=differentiable, **chosen)


@pytest.mark.parametrize("options", [{}, {"inhibition": "gate"}, {"delta": 1.0}], ids=str)
def test_quantized_without_such_a_backend(options: dict) -> None:
    words = "backend='triton' cannot be used here: it has no int8 form"
    assert_refused(ValueError, words, quantized=True, backend="triton", **options)


def test_options_are_keyword_only() -> None:
    """Nine options in a row are not told apart by position."""
    with pytest.raises(TypeError, match=re.escape("takes 3 positional arguments but 4 were given")):
        inhibitor_attention(*tensors().values(), None)
