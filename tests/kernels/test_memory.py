"""What memory does not show: lazy views, tensors without memory, storages freed or cut, and who else looks on.

Each gives what the definition gives in float64, or an error that says what is wrong.
"""

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from inhibidistilbert import inhibitor_attention
from inhibidistilbert.testing.reference import (
    GRADIENT_TOLERANCES,
    PLAIN_BACKENDS,
    Case,
    Inputs,
    assert_agrees,
    draw,
    judge,
    relative_rms,
    run,
)
from tests.helpers.matrix_backends import MATRIX_BACKENDS

every_backend = pytest.mark.parametrize("backend", MATRIX_BACKENDS)
compiled_backends = pytest.mark.parametrize(
    "backend", [each for each in MATRIX_BACKENDS if each.values[0] not in PLAIN_BACKENDS]
)
CASE = Case(padding="holes", dropout=True)
NAMES = tuple(GRADIENT_TOLERANCES)
MASKS = ("key_padding_mask", "key_dropout_mask")


def negated(x: Tensor) -> Tensor:
    """x, its memory that of -x."""
    return torch._neg_view(-x)


def imaginary(x: Tensor) -> Tensor:
    """x, as the imaginary part of a conjugated tensor."""
    return torch.complex(torch.zeros_like(x), -x).conj().imag


def zero(x: Tensor) -> Tensor:
    """Zeros without memory."""
    return torch._efficientzerotensor(x.shape, dtype=x.dtype)


def freed(x: Tensor) -> Tensor:
    """As FSDP frees it, a view into the middle."""
    x = torch.cat([x, x])[len(x) :]
    x.untyped_storage().resize_(0)
    return x


def cut(x: Tensor) -> Tensor:
    """One byte short."""
    x = x.clone()
    x.untyped_storage().resize_(x.untyped_storage().nbytes() - 1)
    return x


def changed(inputs: Inputs, change, *names: str) -> Inputs:
    """`inputs`, some of them changed; `grad_output` is in float32 then."""
    tensors = {name: change(x) if name in names else x for name, x in inputs.tensors.items()}
    options = {name: change(x) if name in names else x for name, x in inputs.options.items()}
    grad = inputs.grad_output.float()
    return Inputs(tensors, options, change(grad) if "grad_output" in names else grad, inputs.grad_scores)


@every_backend
@pytest.mark.parametrize("lazy", [negated, imaginary])
def test_lazy_views_count_by_their_values(lazy, backend: str) -> None:
    inputs = draw(CASE)
    want = judge(inputs)
    for names in (*((name,) for name in NAMES), ("grad_output",), (*NAMES, "grad_output")):
        assert_agrees(run(changed(inputs, lazy, *names), backend), want)


@every_backend
@pytest.mark.parametrize("name", [*NAMES, *MASKS, "grad_output"])
def test_zeros_without_memory(name: str, backend: str) -> None:
    inputs = draw(CASE)
    if name == "grad_output":
        assert not any(gradient.any() for gradient in run(changed(inputs, zero, name), backend).gradients.values())
        return
    want = run(changed(inputs, torch.zeros_like, name), backend)
    got = run(changed(inputs, zero, name), backend)
    torch.testing.assert_close(got.output, want.output)
    torch.testing.assert_close(got.gradients, want.gradients)
    assert relative_rms(got.output, run(changed(inputs, torch.zeros_like, name), "naive").output) < 1e-5


@every_backend
@pytest.mark.parametrize("change", [freed, cut])
def test_storages_that_do_not_hold_their_tensors(change, backend: str) -> None:
    inputs = draw(CASE)
    for name in (*NAMES, *MASKS):
        spoiled = changed(inputs, change, name)
        for quantized in (False, True) if backend in ("cpu", "torch") else (False,):
            with pytest.raises(ValueError, match=f"{name} has no memory for its elements: shape .* and its storage holds"):
                inhibitor_attention(**spoiled.tensors, **spoiled.options, quantized=quantized, backend=backend)
    half = {name: x.bfloat16() for name, x in inputs.tensors.items()}
    for name in ("query", "alpha"):
        with pytest.raises(ValueError, match=f"{name} has no memory"):
            inhibitor_attention(**half | {name: change(half[name])}, backend=backend)


@compiled_backends
def test_storages_freed_before_the_backward_pass(backend: str) -> None:
    inputs = draw(CASE)
    with pytest.raises(ValueError, match="the gradient of the output has no memory"):
        run(changed(inputs, freed, "grad_output"), backend)
    for name in NAMES:
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.tensors.items()}
        output = inhibitor_attention(**leaves, **inputs.options, backend=backend)
        leaves[name].untyped_storage().resize_(0)
        with pytest.raises(ValueError, match=f"{name} has no memory"):
            output.sum().backward()


@compiled_backends
@pytest.mark.parametrize("name", [*NAMES, *MASKS])
def test_inputs_changed_in_place_are_noticed(name: str, backend: str) -> None:
    inputs = draw(CASE)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.tensors.items()}
    output = inhibitor_attention(**leaves, **inputs.options, backend=backend)
    with torch.no_grad():
        (leaves | inputs.options)[name].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


NOT_RESTORED = {
    "half": (lambda x: x.half(), lambda x: x),
    "masks as numbers": (lambda x: x.float(), lambda x: x),
    "double": (lambda x: x.double() if x.is_floating_point() else x, lambda x: x),
    "elsewhere": (lambda x: x.to("meta"), lambda x: x),
    "flat": (lambda x: x, torch.flatten),
}


@compiled_backends
@pytest.mark.parametrize("hooks", NOT_RESTORED)
def test_saved_tensors_that_come_back_as_others(hooks: str, backend: str) -> None:
    with (
        pytest.raises(ValueError, match="came back with another shape, dtype or device"),
        saved_tensors_hooks(*NOT_RESTORED[hooks]),
    ):
        run(draw(CASE), backend)


@compiled_backends
def test_saved_tensors_that_come_back_as_lazy_views(backend: str) -> None:
    inputs = draw(CASE)
    pack, unpack = (
        (lambda x: -x if x.is_floating_point() else x),
        (lambda x: torch._neg_view(x) if x.is_floating_point() else x),
    )
    with saved_tensors_hooks(pack, unpack):
        got = run(inputs, backend)
    assert_agrees(got, judge(inputs))


@every_backend
def test_under_another_default_device(backend: str) -> None:
    """Also the memory that a backend needs for itself is where the tensors are."""
    inputs = draw(CASE)
    with torch.device("meta"):
        got = run(inputs, backend)
        inhibitor_attention(**inputs.tensors, quantized=True, backend="auto")
    assert_agrees(got, judge(inputs))


class _Seen(TorchDispatchMode):
    """Which operators pass by."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class _Doubled(TorchFunctionMode):
    """Doubles what operators return."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return tuple(2 * x for x in result) if "inhibitor" in str(func) else result


class _Subclass(Tensor):
    pass


@compiled_backends
def test_whoever_looks_on_sees_one_operator(backend: str) -> None:
    inputs = draw(CASE)
    want = judge(inputs)
    with _Seen() as seen:
        got = run(inputs, backend)
    assert_agrees(got, want)
    assert len([name for name in seen.names if "inhibitor" in name]) == 2, "one forward and one backward pass"
    with _Doubled():
        assert relative_rms(inhibitor_attention(**inputs.tensors, **inputs.options, backend=backend), 2 * want.output) < 1e-5
    assert_agrees(run(changed(inputs, lambda x: x.as_subclass(_Subclass), *NAMES, *MASKS, "grad_output"), backend), want)


@pytest.mark.skipif(not any(each.values[0] == "cpu" for each in MATRIX_BACKENDS), reason="nothing can be compiled here")
def test_a_batch_of_gradients() -> None:
    inputs = draw(CASE)
    many = torch.randn(3, *inputs.grad_output.shape)

    def gradients(backend: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = {name: tensor.to(dtype).requires_grad_() for name, tensor in inputs.tensors.items()}
        output = inhibitor_attention(**leaves, **inputs.options, backend=backend)
        return torch.autograd.grad(output, list(leaves.values()), many.to(dtype), is_grads_batched=True)

    for name, got, want in zip(NAMES, gradients("cpu", torch.float32), gradients("naive", torch.float64), strict=True):
        assert relative_rms(got, want) < GRADIENT_TOLERANCES[name]


def tangent_of(inputs: Inputs, name: str, tangent: Tensor, **options) -> Tensor | None:
    with forward_ad.dual_level():
        tensors = inputs.tensors | {name: forward_ad.make_dual(inputs.tensors[name], tangent)}
        return forward_ad.unpack_dual(inhibitor_attention(**tensors, **inputs.options, **options)).tangent


@every_backend
@pytest.mark.parametrize("name", NAMES)
def test_forward_mode(name: str, backend: str) -> None:
    inputs = draw(CASE)
    exact = Inputs(
        {n: x.double() for n, x in inputs.tensors.items()}, inputs.options, inputs.grad_output, inputs.grad_scores
    )
    tangent = torch.randn(inputs.tensors[name].shape)
    want = tangent_of(exact, name, tangent.double(), backend="naive")
    assert relative_rms(tangent_of(inputs, name, tangent, backend=backend), want) < 1e-5
    # What it is: the gradient with respect to this input alone, times the tangent.
    slope = (run(exact, "naive").gradients[name] * tangent).sum()
    torch.testing.assert_close((want * inputs.grad_output).sum(), slope)

    def function(x: Tensor) -> Tensor:
        return inhibitor_attention(**inputs.tensors | {name: x}, **inputs.options, backend=backend)

    assert relative_rms(torch.func.jvp(function, (inputs.tensors[name],), (tangent,))[1], want) < 1e-5
    nothing = tangent_of(inputs, name, torch._efficientzerotensor(tangent.shape), backend=backend)
    assert nothing is None or not nothing.any()


@every_backend
def test_forward_mode_over_the_gradients(backend: str) -> None:
    inputs = draw(CASE)
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.tensors.items()}
    output = inhibitor_attention(**leaves, **inputs.options, backend=backend)
    tangent = torch.randn(output.shape)
    with forward_ad.dual_level():
        incoming = forward_ad.make_dual(inputs.grad_output.float(), tangent)
        if backend not in PLAIN_BACKENDS:
            with pytest.raises(RuntimeError, match="have no forward-mode derivative"):
                torch.autograd.grad(output, leaves["value"], incoming)
            return
        (got,) = torch.autograd.grad(output, leaves["value"], incoming, retain_graph=True)
        got = forward_ad.unpack_dual(got).tangent
    # A gradient is linear in what comes in.
    (want,) = torch.autograd.grad(output, leaves["value"], tangent)
    assert relative_rms(got, want) < 1e-5


def test_quantized_attention_has_no_derivative_in_any_mode() -> None:
    inputs = draw(CASE)

    def function(x: Tensor) -> Tensor:
        return inhibitor_attention(**inputs.tensors | {"query": x}, quantized=True)

    query, tangent = inputs.tensors["query"], torch.randn(inputs.tensors["query"].shape)
    for refused in (
        lambda: tangent_of(inputs, "query", tangent, quantized=True),
        lambda: torch.func.jvp(function, (query,), (tangent,)),
        lambda: torch.func.jvp(torch.func.vmap(function), (query[None],), (tangent[None],)),
        lambda: torch.func.grad(lambda x: torch.func.vmap(function)(x).sum())(query[None]),
    ):
        with pytest.raises(ValueError, match="quantized=True has no gradient, and query requires one"):
            refused()
    assert torch.equal(torch.func.vmap(function)(query[None])[0], function(query))


@pytest.mark.parametrize("backend", ["auto", *PLAIN_BACKENDS])
def test_shapes_alone(backend: str) -> None:
    """Tensors that never have memory."""
    inputs = changed(draw(CASE), lambda x: x.to("meta"), *NAMES, *MASKS)
    for quantized in (False, True):
        output = inhibitor_attention(**inputs.tensors, **inputs.options, quantized=quantized, backend=backend)
        assert output.is_meta
        assert output.shape == inputs.grad_output.shape
