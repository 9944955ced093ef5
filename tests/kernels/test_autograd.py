"""Gradients by finite differences, by homogeneity, and what a second derivative does."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from inhibidistilbert import inhibitor_attention
from inhibidistilbert.testing.reference import PLAIN_BACKENDS, Case, draw, relative_rms
from tests.helpers.matrix_backends import MATRIX_BACKENDS

pytestmark = pytest.mark.portable

FLAGS = [{"signed": signed, "centered": centered} for signed in (True, False) for centered in (True, False)]
MASKS = [
    {},
    {"padding": "left", "causal": True},
    {"padding": "holes", "dropout": True},
    {"attn_mask": (2, 1, 5, 6)},
    {"M": 6, "N": 4, "causal": True},
]
SMALL = {"M": 5, "N": 6, "D": 3, "dtype": torch.float64}
CASES = [Case(**(SMALL | masks), scalars=(2,), **flags) for flags in FLAGS for masks in MASKS]
NAMES = ("query", "key", "value", "alpha", "beta", "gamma")

every_backend_many_cases = pytest.mark.parametrize("backend", MATRIX_BACKENDS)
plain_backends = pytest.mark.parametrize("backend", PLAIN_BACKENDS)
# Those whose gradients are written by hand.
first_order_backends = pytest.mark.parametrize("backend", [each for each in MATRIX_BACKENDS if each.values != ("naive",)])


def call(*tensors: Tensor, **options) -> Tensor | tuple[Tensor, Tensor]:
    names = NAMES if len(tensors) == len(NAMES) else (*NAMES, "delta")
    return inhibitor_attention(**dict(zip(names, tensors, strict=True)), **options)


def leaves(case: Case) -> tuple[list[Tensor], dict]:
    inputs = draw(case)
    names = NAMES if case.delta is None else (*NAMES, "delta")
    return [inputs.tensors[name].requires_grad_() for name in names], inputs.options


@plain_backends
@pytest.mark.parametrize("return_scores", [False, True], ids=["output", "output-and-scores"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradcheck(case: Case, return_scores: bool, backend: str) -> None:
    tensors, options = leaves(case)
    function = partial(call, **options, return_scores=return_scores, backend=backend)
    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)


@plain_backends
@pytest.mark.parametrize("scalars", [{"gamma": -0.8}, {"gamma": 0.0}, {"beta": 0.0}, {"alpha": -0.2}], ids=str)
def test_gradcheck_of_odd_scalars(scalars: dict, backend: str) -> None:
    tensors, options = leaves(Case(**SMALL, padding="holes", **scalars))
    assert torch.autograd.gradcheck(partial(call, **options, backend=backend), tensors, fast_mode=True)


GATE = Case(**SMALL, inhibition="gate", center="least", delta=0.9, alpha=-0.3, scalars=(2, 2))
BEYOND = [
    *(replace(GATE, **masks) for masks in MASKS),
    replace(GATE, center="mean", delta=-0.6, scalars=(2,)),
    Case(**SMALL, center="least", delta=0.7, alpha=-0.2, signed=False, padding="holes"),
    Case(**SMALL, delta=1.2, scalars=(3, 1), alpha=0.9, causal=True),
]


@plain_backends
@pytest.mark.parametrize("return_scores", [False, True], ids=["output", "output-and-scores"])
@pytest.mark.parametrize("case", BEYOND, ids=str)
def test_gradcheck_beyond_the_paper(case: Case, return_scores: bool, backend: str) -> None:
    tensors, options = leaves(case)
    function = partial(call, **options, return_scores=return_scores, backend=backend)
    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)


@plain_backends
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_output_has_a_gradient_in_the_scores_returned_with_it(signed: bool, backend: str) -> None:
    """What an explanation of a prediction asks for: dZ_ij = -beta · sum over k of the gradients whose value passes Z_ij."""
    inputs = draw(Case(padding="holes", dropout=True, causal=True, signed=signed, dtype=torch.float64))
    tensors = {name: tensor.requires_grad_() for name, tensor in inputs.tensors.items()}
    output, scores = inhibitor_attention(**tensors, **inputs.options, return_scores=True, backend=backend)
    (got,) = torch.autograd.grad(output, scores, inputs.grad_output)

    value = tensors["value"][:, :, None]  # (B, H, 1, N, D)
    passes = value.abs() > scores[..., None] if signed else value > scores[..., None]
    sign = value.sign() if signed else 1
    want = -tensors["beta"] * (inputs.grad_output[..., None, :] * sign * passes).sum(-1)
    counted = inputs.options["key_padding_mask"] & inputs.options["key_dropout_mask"]
    seen = torch.arange(9) <= torch.arange(7)[:, None] + 2
    want = want.masked_fill(~(counted[:, None, None] & seen), 0)
    assert want.any()
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("second", ["value", "query", "beta"])
def test_second_derivative_through_the_scores_is_refused(second: str) -> None:
    tensors, options = leaves(Case())
    output, scores = call(*tensors, **options, return_scores=True, backend="torch")
    (gradient,) = torch.autograd.grad(output.sum() + scores.sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"twice|second derivative"):
        torch.autograd.grad(gradient.square().sum(), dict(zip(NAMES, tensors, strict=True))[second])


@every_backend_many_cases
@pytest.mark.parametrize("wanted", NAMES)
def test_each_gradient_alone(wanted: str, backend: str) -> None:
    """An input that needs no gradient takes nothing from those that do."""
    inputs = draw(Case(padding="left"))
    every = {name: tensor.clone().requires_grad_() for name, tensor in inputs.tensors.items()}
    one = {name: tensor.clone().requires_grad_(name == wanted) for name, tensor in inputs.tensors.items()}
    for tensors in (every, one):
        output = inhibitor_attention(**tensors, **inputs.options, backend=backend)
        output.backward(inputs.grad_output.float())
    assert every[wanted].grad.any()
    assert relative_rms(one[wanted].grad, every[wanted].grad) < 1e-6
    assert all(tensor.grad is None for name, tensor in one.items() if name != wanted)


@plain_backends
@pytest.mark.parametrize("gamma", [0.8, -0.8])
@pytest.mark.parametrize("case", CASES[:5], ids=str)
def test_scores_are_homogeneous_in_queries_and_keys(case: Case, gamma: float, backend: str) -> None:
    """gamma · d/dgamma = sum q · dq + sum k · dk, head by head: no finite differences, no second implementation."""
    tensors, options = leaves(case)
    query, key, value, alpha, beta, _ = tensors
    scale = torch.tensor([gamma, 2 * gamma], dtype=torch.float64, requires_grad=True)
    output = call(query, key, value, alpha, beta, scale, **options, backend=backend)
    dq, dk, dscale = torch.autograd.grad(output, (query, key, scale), torch.randn_like(output))
    assert dscale.all()
    torch.testing.assert_close(
        scale * dscale, ((query * dq).sum((0, 2, 3)) + (key * dk).sum((0, 2, 3))), rtol=1e-9, atol=1e-9
    )


@first_order_backends
@pytest.mark.parametrize("second", NAMES)
@pytest.mark.parametrize("first", NAMES)
def test_second_derivative_is_refused(first: str, second: str, backend: str) -> None:
    """It would miss terms, or be a silent zero."""
    tensors, options = leaves(Case())
    named = dict(zip(NAMES, tensors, strict=True))
    output = call(*tensors, **options, backend=backend)
    (gradient,) = torch.autograd.grad(output.sum(), named[first], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(gradient.square().sum(), named[second])


@pytest.mark.parametrize(("first", "return_scores"), [("value", False), ("delta", False), ("value", True)])
def test_second_derivative_is_refused_beyond_the_paper(first: str, return_scores: bool) -> None:
    tensors, options = leaves(GATE)
    output = call(*tensors, **options, return_scores=return_scores, backend="torch")
    output = output[0] if return_scores else output
    (gradient,) = torch.autograd.grad(output.square().sum(), tensors[(*NAMES, "delta").index(first)], create_graph=True)
    for other in tensors:
        with pytest.raises(RuntimeError, match=r"twice|second derivative"):
            torch.autograd.grad(gradient.square().sum(), other, retain_graph=True)


@first_order_backends
@pytest.mark.parametrize("linear", [True, False], ids=["linear-loss", "square-loss"])
def test_gradient_penalty_is_refused(linear: bool, backend: str) -> None:
    """The usual way to a second derivative: a loss plus the size of its own gradient."""
    tensors, options = leaves(Case())
    output = call(*tensors, **options, backend=backend)
    loss = output.sum() if linear else output.square().sum()
    (gradient,) = torch.autograd.grad(loss, tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        (loss + gradient.square().sum()).backward()


def test_double_backward_of_the_definition() -> None:
    """d/dbeta of d output/dv counts the terms that pass: the naive form has it."""
    tensors, options = leaves(Case(dtype=torch.float64))
    output = call(*tensors, **options, backend="naive")
    (gradient,) = torch.autograd.grad(output.sum(), tensors[2], create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), tensors[4])
    beta = tensors[4].item()
    assert second.item() == pytest.approx(gradient.sum().item() / beta)
    assert second.item() == pytest.approx(round(second.item()))
