"""Where forms tend to break: half precision, strides, empty shapes, rows without keys, rubbish behind the padding."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from inhibidistilbert import inhibitor_attention
from inhibidistilbert.testing.covering import pairwise
from inhibidistilbert.testing.reference import (
    BACKENDS,
    NOT_FINITE,
    PLAIN_BACKENDS,
    SPOILT,
    Case,
    Inputs,
    Result,
    assert_agrees,
    assert_only_rounded,
    draw,
    judge,
    judged,
    relative_rms,
    run,
    spoilt,
)
from tests.helpers.matrix_backends import FORM_BACKENDS, MATRIX_BACKENDS

pytestmark = pytest.mark.portable

HALF_TYPES = (torch.bfloat16, torch.float16)
HALF_CASES = [
    Case(dtype=dtype, scalars=scalars, **flags)
    for dtype in HALF_TYPES
    for scalars in ((1,), (2,))
    for flags in (
        {},
        {"signed": False},
        {"centered": False},
        {"padding": "left", "causal": True, "dropout": True},
        {"M": 63, "N": 63, "B": 1},
    )
]

every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_form_backend = pytest.mark.parametrize("backend", FORM_BACKENDS)
every_backend_many_cases = pytest.mark.parametrize("backend", MATRIX_BACKENDS)


@every_backend_many_cases
@pytest.mark.parametrize("case", HALF_CASES, ids=lambda case: f"{case}-scalars{case.scalars[0]}")
def test_half_types_are_computed_in_float32(case: Case, backend: str) -> None:
    inputs, want = judged(case, through_scores=backend in PLAIN_BACKENDS)
    got = run(inputs, backend, return_scores=backend in PLAIN_BACKENDS)
    assert got.output.dtype == case.dtype
    assert_only_rounded(got.output, want.output)
    if got.scores is not None:
        assert got.scores.dtype == case.dtype
        assert_only_rounded(got.scores, want.scores)
    for name in ("query", "key", "value"):
        assert got.gradients[name].dtype == case.dtype
        assert_only_rounded(got.gradients[name], want.gradients[name])
    for name in ("alpha", "beta", "gamma"):
        assert got.gradients[name].dtype == torch.float32
        assert relative_rms(got.gradients[name], want.gradients[name]) < 3e-4, name


@every_backend_many_cases
@pytest.mark.parametrize("dtype", HALF_TYPES, ids=["bf16", "fp16"])
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_large_values_stay_finite_in_half_types(signed: bool, dtype: torch.dtype, backend: str) -> None:
    """512 values of size 30 sum to 15 360: within fp16, where a half-precision sum or a factor too many would not be."""
    query, key = torch.randn(2, 1, 2, 512, 8).to(dtype).unbind()
    value = torch.full((1, 2, 512, 8), 30.0, dtype=dtype)
    leaves = [tensor.requires_grad_() for tensor in (query, key, value)]
    output = inhibitor_attention(*leaves, signed=signed, backend=backend)
    assert output.isfinite().all()
    assert output.max() > 14_000
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(output.float().mean(), leaves))


def _strided(tensor: Tensor) -> Tensor:
    """The layout the model makes: `(B, L, H, d)` in memory."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def _every_second(tensor: Tensor) -> Tensor:
    return tensor.repeat_interleave(2, dim=-1)[..., ::2]


@every_backend_many_cases
@pytest.mark.parametrize("layout", [_strided, _every_second], ids=["transposed", "every_second"])
@pytest.mark.parametrize("masks", [{}, {"padding": "holes", "dropout": True}], ids=["full", "holes-dropout"])
def test_strides(masks: dict, layout, backend: str) -> None:
    inputs, want = judged(Case(**masks))
    tensors = {n: layout(t) if n in ("query", "key", "value") else t for n, t in inputs.tensors.items()}
    assert not any(tensors[name].is_contiguous() for name in ("query", "key", "value"))
    got = run(Inputs(tensors, inputs.options, inputs.grad_output, inputs.grad_scores), backend)
    assert_agrees(got, want)


@every_backend
def test_expanded_inputs_and_masks(backend: str) -> None:
    """One key and value head, and one mask row, shown to all by `expand`; gradients flow back to what was expanded."""
    inputs = draw(Case(H=1))
    heads = 3
    inputs.tensors |= {n: inputs.tensors[n].expand(-1, heads, -1, -1) for n in ("query", "key", "value")}
    inputs.options["key_padding_mask"] = torch.tensor([[True] * 6 + [False] * 3]).expand(2, -1)
    inputs.grad_output = torch.randn(1, heads, 1, 5).double().expand(2, -1, 7, -1)
    inputs.grad_scores = torch.zeros(2, heads, 7, 9).double()
    want = judge(inputs)
    assert_agrees(run(inputs, backend), want)

    key = inputs.tensors["key"][:, :1].clone().requires_grad_()
    tensors = inputs.tensors | {"key": key.expand(-1, heads, -1, -1)}
    output = inhibitor_attention(**tensors, **inputs.options, backend=backend)
    output.backward(inputs.grad_output.float())
    assert relative_rms(key.grad, want.gradients["key"].sum(1, keepdim=True)) < 1e-5


@every_backend
def test_inputs_are_not_written_to(backend: str) -> None:
    inputs = draw(Case(padding="holes", causal=True, dropout=True, attn_mask=(2, 1, 7, 9)))
    kept = {name: tensor.clone() for name, tensor in (inputs.tensors | inputs.options).items() if isinstance(tensor, Tensor)}
    run(inputs, backend, return_scores=True)
    for name, tensor in kept.items():
        assert torch.equal(tensor, (inputs.tensors | inputs.options)[name]), name


# Beyond the paper: a gate that counts from the nearest key, and what its sum is divided by.
GATE = {"inhibition": "gate", "center": "least"}
FORMS = [GATE | {"delta": 0.9}, GATE, {"center": "least", "delta": 0.7, "signed": False}, {"delta": 1.1}]
forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))
plain_backends = pytest.mark.parametrize("backend", PLAIN_BACKENDS)
EMPTY = [(0, 4, 5), (2, 0, 5), (2, 4, 0), (2, 0, 0), (0, 0, 0)]


@plain_backends
@forms
@pytest.mark.parametrize(("batch", "queries", "keys"), EMPTY, ids=lambda n: str(n))
def test_empty_shapes_of_forms_beyond_the_paper(batch: int, queries: int, keys: int, form: dict, backend: str) -> None:
    tensors = {"query": torch.randn(batch, 3, queries, 4), "key": torch.randn(batch, 3, keys, 4)}
    tensors |= {"value": torch.randn(batch, 3, keys, 4), "alpha": torch.tensor([[-0.5], [0.1]])}
    tensors |= {"delta": torch.tensor([form["delta"]])} if "delta" in form else {}
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    output, scores = inhibitor_attention(**(form | leaves), return_scores=True, backend=backend)
    assert output.shape == tensors["query"].shape
    assert scores.shape == (batch, 3, queries, keys)
    assert not output.any()
    loss = output.sum() + scores.sum() + inhibitor_attention(**(form | leaves), backend=backend).sum()
    for leaf, gradient in zip(leaves.values(), torch.autograd.grad(loss, list(leaves.values())), strict=True):
        assert gradient.shape == leaf.shape
        assert not gradient.any()


@every_backend
@pytest.mark.parametrize("masks", [False, True], ids=["full", "masked"])
@pytest.mark.parametrize(("batch", "queries", "keys"), EMPTY, ids=lambda n: str(n))
def test_empty_shapes(batch: int, queries: int, keys: int, masks: bool, backend: str) -> None:
    query = torch.randn(batch, 3, queries, 4, requires_grad=True)
    key, value = (torch.randn(batch, 3, keys, 4, requires_grad=True) for _ in range(2))
    alpha = torch.tensor([0.5], requires_grad=True)
    options = {}
    if masks:
        every = torch.ones(batch, keys, dtype=torch.bool)
        options = {"key_padding_mask": every, "key_dropout_mask": every, "causal": True}
    leaves = (query, key, value, alpha)
    output = inhibitor_attention(query, key, value, alpha=alpha, **options, backend=backend)
    again, scores = inhibitor_attention(query, key, value, alpha=alpha, **options, return_scores=True, backend=backend)
    assert output.shape == again.shape == query.shape
    assert scores.shape == (batch, 3, queries, keys)
    assert not output.any()
    loss = output.sum() + again.sum() + scores.sum()
    for leaf, gradient in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
        assert gradient.shape == leaf.shape
        assert not gradient.any()


def _no_keys_for_one_sequence() -> dict:
    return {"key_padding_mask": torch.tensor([[True] * 5, [False] * 5])}


def _no_keys_for_one_query() -> dict:
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    mask[1, :, 2] = False
    return {"attn_mask": mask}


def _no_values_for_one_sequence() -> dict:
    return {"key_dropout_mask": torch.tensor([[True] * 5, [False] * 5])}


@every_backend
@pytest.mark.parametrize("centered", [True, False], ids=["centered", "uncentered"])
@pytest.mark.parametrize(
    ("masks", "rows"),
    [
        (_no_keys_for_one_sequence, (1, slice(None), slice(None))),
        (_no_keys_for_one_query, (1, slice(None), 2)),
        (_no_values_for_one_sequence, (1, slice(None), slice(None))),
    ],
    ids=["padding", "attn_mask", "dropout"],
)
def test_rows_without_keys_give_zero(masks, rows: tuple, centered: bool, backend: str) -> None:
    """Also with a negative alpha and values that nothing inhibits, and the rest of the batch is as the judge has it."""
    tensors = {name: torch.randn(2, 2, 5, 4) for name in ("query", "key", "value")}
    scalars = {"alpha": torch.tensor([-0.3]), "beta": torch.tensor([1.3]), "gamma": torch.tensor([0.8])}
    inputs = Inputs(
        tensors | scalars,
        masks() | {"centered": centered},
        grad_output=torch.randn(2, 2, 5, 4).double(),
        grad_scores=torch.zeros(2, 2, 5, 5, dtype=torch.float64),
    )
    got = run(inputs, backend)
    assert not got.output[rows].any()
    assert not got.gradients["query"][rows].any()
    assert_agrees(got, judge(inputs))


@plain_backends
@forms
@pytest.mark.parametrize("masks", [_no_keys_for_one_sequence, _no_keys_for_one_query, _no_values_for_one_sequence])
def test_rows_without_keys_give_zero_beyond_the_paper(masks, form: dict, backend: str) -> None:
    """A gate that is wide open lets nothing through where there is nothing, and nothing is divided by 0."""
    rows = (1, slice(None), 2 if masks is _no_keys_for_one_query else slice(None))
    form = dict(form)
    tensors = {name: torch.randn(2, 2, 5, 4) for name in ("query", "key", "value")}
    tensors |= {"alpha": torch.tensor([[-1.3], [-0.2]]), "beta": torch.tensor([[1.3], [0.7]]), "gamma": torch.tensor([0.8])}
    tensors |= {"delta": torch.tensor([form.pop("delta")])} if "delta" in form else {}
    inputs = Inputs(
        tensors,
        masks() | form,
        grad_output=torch.randn(2, 2, 5, 4).double(),
        grad_scores=torch.randn(2, 2, 5, 5).double(),
    )
    got = run(inputs, backend, return_scores=True)
    assert not got.output[rows].any()
    assert got.output[0].any()
    assert_agrees(got, judge(inputs, through_scores=True))
    assert_agrees(run(inputs, backend), judge(inputs))


@every_backend_many_cases
@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("centered", [True, False], ids=["centered", "uncentered"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("padding", ["left", "right", "holes"])
def test_rubbish_behind_the_padding_does_not_leak(
    padding: str, causal: bool, centered: bool, rubbish: float, backend: str
) -> None:
    plain = backend in PLAIN_BACKENDS
    inputs, want = judged(Case(padding=padding, causal=causal, centered=centered), through_scores=plain)
    padded = ~inputs.options["key_padding_mask"][:, None, :, None]
    tensors = {n: t.masked_fill(padded, rubbish) if n in ("key", "value") else t for n, t in inputs.tensors.items()}
    got = run(Inputs(tensors, inputs.options, inputs.grad_output, inputs.grad_scores), backend, return_scores=plain)
    assert_agrees(got, want)
    assert not got.gradients["key"].masked_select(padded).any()
    assert not got.gradients["value"].masked_select(padded).any()


SPOILT_OPTIONS = {
    "place": SPOILT,
    "number": NOT_FINITE,
    "signed": (True, False),
    "centered": (True, False),
    "causal": (False, True),
    "padding": (None, "left", "right", "holes"),
    "dropout": (False, True),
    "gamma": (0.8, -0.8, 0.0),
    "lengths": ((7, 9), (9, 7), (5, 5), (40, 33)),
    "scalars": ((1,), (2,)),
    "dtype": (torch.float32, torch.bfloat16, torch.float16),
}


@every_backend_many_cases
@pytest.mark.parametrize("options", pairwise(SPOILT_OPTIONS), ids=lambda options: f"{options['number']}-{options['place']}")
def test_numbers_that_are_not_finite(options: dict[str, Any], backend: str) -> None:
    """They go where the definition has them go, with their sign, in the output and in every gradient; else nothing changes.

    Whatever a query does not see is not finite in all of these.
    """
    (queries, keys), number, place = (options[name] for name in ("lengths", "number", "place"))
    options = {name: option for name, option in options.items() if name not in ("lengths", "number", "place")}
    inputs, want = spoilt(Case(M=queries, N=keys, seed=1, **options), number, place)
    got = run(inputs, backend)
    if options["dtype"] == torch.float32:
        assert_agrees(got, want)
        return
    assert_only_rounded(got.output, want.output)
    for name in ("query", "key", "value"):
        assert_only_rounded(got.gradients[name], want.gradients[name])


@pytest.mark.parametrize("place", SPOILT)
@pytest.mark.parametrize("number", NOT_FINITE, ids=str)
@pytest.mark.parametrize(
    "masks", [{"attn_mask": (2, 2, 7, 9)}, {"attn_mask": (2, 1, 7, 9), "causal": True, "padding": "holes"}]
)
@pytest.mark.parametrize("backend", PLAIN_BACKENDS)
def test_numbers_that_are_not_finite_behind_any_mask(backend: str, masks: dict, number: float, place: str) -> None:
    """Also through the scores."""
    inputs, want = spoilt(Case(dropout=True, centered="causal" in masks, **masks), number, place, through_scores=True)
    assert_agrees(run(inputs, backend, return_scores=True), want)


SPOILT_FORMS = {
    "place": (*SPOILT, "delta"),
    "number": NOT_FINITE,
    "form": FORMS,
    "masks": ({}, {"padding": "holes", "causal": True}, {"attn_mask": (2, 1, 7, 9), "dropout": True}),
    "scalars": ((1,), (2, 2)),
    "alpha": (-0.3, 0.4),
    "through_scores": (False, True),
}


@every_form_backend
@pytest.mark.parametrize("options", pairwise(SPOILT_FORMS), ids=lambda options: f"{options['number']}-{options['place']}")
def test_numbers_that_are_not_finite_beyond_the_paper(options: dict[str, Any], backend: str) -> None:
    case = Case(seed=1, alpha=options["alpha"], scalars=options["scalars"], **options["form"], **options["masks"])
    inputs, want = spoilt(case, options["number"], options["place"], options["through_scores"])
    assert_agrees(run(inputs, backend, return_scores=options["through_scores"]), want)


@every_backend
def test_one_sequence_does_not_depend_on_its_neighbour(backend: str) -> None:
    query, key, value = torch.randn(3, 2, 2, 5, 4).unbind()
    alone = inhibitor_attention(query[:1], key[:1], value[:1], backend=backend)
    value[1] = 1e6
    together = inhibitor_attention(query, key, value, backend=backend)
    torch.testing.assert_close(together[:1], alone, rtol=1e-6, atol=1e-6)


@every_backend
def test_zero_beta_still_learns(backend: str) -> None:
    inputs, want = judged(Case(beta=0.0))
    got: Result = run(inputs, backend)
    assert not got.output.any()
    assert want.gradients["beta"].any()
    assert relative_rms(got.gradients["beta"], want.gradients["beta"]) < 3e-4


@every_backend
def test_without_gradients_and_in_inference_mode(backend: str) -> None:
    inputs = draw(Case(padding="holes"))
    want = run(inputs, backend).output
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert torch.equal(inhibitor_attention(**inputs.tensors, **inputs.options, backend=backend), want)
