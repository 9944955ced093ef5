"""Every form against the float64 triple loop: output, scores and all gradients."""

from itertools import product
from statistics import median

import pytest
import torch

from inhibidistilbert import inhibitor_attention
from inhibidistilbert.testing.reference import (
    BACKENDS,
    FORWARD_TOLERANCE,
    PLAIN_BACKENDS,
    Case,
    Inputs,
    assert_agrees,
    draw,
    judge,
    judged,
    relative_rms,
    run,
)
from tests.helpers.matrix_backends import FORM_BACKENDS, MATRIX_BACKENDS

pytestmark = pytest.mark.portable

FREE_GRADIENT_TOLERANCE = 3e-2
FREE_GRADIENT_MEDIAN = 3e-5

FLAGS = [{"signed": signed, "centered": centered} for signed in (True, False) for centered in (True, False)]
MASKS = [
    {"padding": padding, "causal": causal, "dropout": dropout}
    for padding, causal, dropout in product((None, "left", "right", "holes"), (False, True), (False, True))
]
LENGTHS = [(7, 9), (9, 7), (12, 3), (3, 12), (1, 1), (1, 7), (7, 1), (63, 63), (1, 63), (63, 7)]
ATTENTION_MASKS = [(1, 1, 7, 9), (2, 1, 1, 9), (2, 2, 7, 9), (1, 2, 7, 1), (2, 1, 7, 1), (1, 1, 1, 9)]
SCALARS = [
    {"gamma": -0.8},
    {"gamma": -0.8, "centered": False, "alpha": 3.0},
    {"gamma": 0.0},
    {"gamma": 0.0, "centered": False},
    {"beta": 0.0},
    {"beta": -1.3},
    {"alpha": -0.2},
    {"alpha": -2.0, "centered": False},
    {"alpha": 0.0},
]
# Beyond the paper, each option alone and all together; scalars that turn what they scale around.
NEW = {"inhibition": "gate", "center": "least", "delta": 0.9, "alpha": -0.3}
FORMS = [
    NEW,
    {**NEW, "scalars": (2, 2)},
    {**NEW, "scalars": (2, 1), "alpha": 0.2},
    {**NEW, "delta": None},
    {**NEW, "center": "mean", "scalars": (2,), "alpha": 0.2},
    {**NEW, "centered": False, "alpha": -1.5, "delta": 0.2},
    {"center": "least", "alpha": -0.3},
    {"center": "least", "delta": 0.7, "signed": False, "scalars": (3, 2), "alpha": -0.2},
    {"delta": 1.2, "scalars": (2,)},
    {"scalars": (2, 2), "alpha": 0.2},
    {**NEW, "gamma": -0.8, "alpha": 1.0},
    {**NEW, "gamma": 0.0, "alpha": 0.1},
    {**NEW, "delta": -0.6},
    {**NEW, "delta": 0.0},
    {**NEW, "beta": -1.3, "ties": True, "seed": 3},
]

every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_form_backend = pytest.mark.parametrize("backend", FORM_BACKENDS)
every_backend_many_cases = pytest.mark.parametrize("backend", MATRIX_BACKENDS)
plain_backends = pytest.mark.parametrize("backend", PLAIN_BACKENDS)
every_flag = pytest.mark.parametrize(
    "flags", FLAGS, ids=["signed-centered", "signed-uncentered", "unsigned-centered", "unsigned-uncentered"]
)


def assert_case_agrees(case: Case, backend: str) -> None:
    inputs, want = judged(case)
    assert_agrees(run(inputs, backend), want)


@every_backend_many_cases
@pytest.mark.parametrize("case", [Case(**f, **m) for f in FLAGS for m in MASKS], ids=str)
def test_flags_and_key_masks(case: Case, backend: str) -> None:
    assert_case_agrees(case, backend)


@every_form_backend
@pytest.mark.parametrize("masks", [MASKS[0], MASKS[7], MASKS[13]], ids=lambda masks: str(masks["padding"]))
@pytest.mark.parametrize("form", FORMS, ids=lambda form: str(Case(**form)))
def test_forms_beyond_the_paper(form: dict, masks: dict, backend: str) -> None:
    if backend in PLAIN_BACKENDS:
        inputs, want = judged(Case(**form, **masks), through_scores=True)
        assert_agrees(run(inputs, backend, return_scores=True), want)
    inputs, want = judged(Case(**form, **masks))
    assert_agrees(run(inputs, backend), want)


@every_backend_many_cases
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(("queries", "keys"), LENGTHS, ids=lambda n: str(n))
def test_lengths(queries: int, keys: int, causal: bool, backend: str) -> None:
    # One visible key has a centred score of 0 whatever the query is: without centring short rows test more.
    case = Case(B=1, M=queries, N=keys, causal=causal, centered=min(queries, keys) > 1)
    assert_case_agrees(case, backend)


@plain_backends
@pytest.mark.parametrize("mask", ATTENTION_MASKS, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("others", [{}, {"padding": "holes", "causal": True, "dropout": True}], ids=["alone", "with-others"])
@every_flag
def test_attention_masks(flags: dict, others: dict, mask: tuple[int, int, int, int], backend: str) -> None:
    # With seed 0 the terms of one gradient of gamma cancel to a thousandth, beyond what any fp32 sum can resolve.
    assert_case_agrees(Case(attn_mask=mask, seed=1, **others, **flags), backend)


@every_backend_many_cases
@pytest.mark.parametrize("shape", [(), (1,), (2,)], ids=str)
@every_flag
def test_scalar_shapes(flags: dict, shape: tuple[int, ...], backend: str) -> None:
    assert_case_agrees(Case(scalars=shape, padding="left", **flags), backend)


@every_backend
@pytest.mark.parametrize("case", [Case(B=1, scalars=(2,), **s) for s in SCALARS], ids=str)
def test_scalar_values(case: Case, backend: str) -> None:
    assert_case_agrees(case, backend)


@every_backend
def test_float_scalars_equal_tensor_scalars(backend: str) -> None:
    inputs = draw(Case())
    tensors = [inputs.tensors[name] for name in ("query", "key", "value")]
    scalars = {name: inputs.tensors[name] for name in ("alpha", "beta", "gamma")}
    floats = {name: scalar.item() for name, scalar in scalars.items()}
    got = inhibitor_attention(*tensors, **floats, backend=backend)
    assert torch.equal(got, inhibitor_attention(*tensors, **scalars, backend=backend))


@every_backend
@pytest.mark.parametrize(
    "case",
    [Case(B=1, H=1, offset=100.0, **flags) for flags in FLAGS]
    + [Case(B=1, H=1, offset=-100.0, padding="holes", causal=True)],
    ids=str,
)
def test_common_offset_of_queries_and_keys(case: Case, backend: str) -> None:
    assert_case_agrees(case, backend)


@every_backend
@pytest.mark.parametrize("case", [Case(B=1, H=1, ties=True, seed=3, **flags) for flags in FLAGS], ids=str)
def test_query_equal_to_a_key(case: Case, backend: str) -> None:
    inputs, _ = judged(case)
    assert torch.equal(inputs.tensors["query"][:, :, 0], inputs.tensors["key"][:, :, 0])
    assert_case_agrees(case, backend)


@every_backend
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_derivative_is_zero_at_every_kink(signed: bool, backend: str) -> None:
    """On a grid of exact numbers S = -alpha, |v| = Z, v = Z = 0 and q = k all happen, and every form takes the zero side."""
    tensors = {name: torch.randint(-2, 3, (2, 2, 6, 4)).float() for name in ("query", "key")}
    tensors["value"] = torch.randint(-3, 4, (2, 2, 6, 4)).float()
    scalars = {"alpha": torch.tensor([-2.0]), "beta": torch.ones(1), "gamma": torch.ones(1)}
    inputs = Inputs(
        tensors | scalars,
        {"centered": False, "signed": signed},
        grad_output=torch.randint(-3, 4, (2, 2, 6, 4)).double(),
        grad_scores=torch.zeros(2, 2, 6, 6, dtype=torch.float64),
    )
    want = judge(inputs)
    shifted = torch.cdist(tensors["query"], tensors["key"], p=1) / 2 - 2
    assert (shifted == 0).any()
    assert (tensors["value"].abs()[..., None, :, :] == shifted.relu()[..., None]).any()
    assert 0.2 <= want.active <= 0.8
    assert_agrees(run(inputs, backend), want)


@every_form_backend
@pytest.mark.parametrize("delta", [None, 0.5], ids=["sum", "divided"])
@pytest.mark.parametrize(
    "form", [{"inhibition": "gate", "center": "least"}, {"inhibition": "gate"}, {"center": "least"}], ids=str
)
def test_derivatives_at_every_kink_beyond_the_paper(form: dict, delta: float | None, backend: str) -> None:
    """Also where several keys are the nearest, of which the first is meant."""
    tensors = {name: torch.randint(-2, 3, (2, 2, 6, 4)).float() for name in ("query", "key")}
    tensors["value"] = torch.randint(-3, 4, (2, 2, 6, 4)).float()
    tensors["key"][:, :, 3] = tensors["key"][:, :, 1]
    alpha = torch.tensor([-1.0 if form["center" if "center" in form else "inhibition"] == "least" else -3.0])
    tensors |= {"alpha": alpha, "beta": torch.ones(1), "gamma": torch.ones(1)}
    tensors |= {} if delta is None else {"delta": torch.tensor([delta])}
    inputs = Inputs(
        tensors,
        form | {"centered": "center" in form},
        grad_output=torch.randint(-3, 4, (2, 2, 6, 4)).double(),
        grad_scores=torch.zeros(2, 2, 6, 6, dtype=torch.float64),
    )
    want = judge(inputs)
    distance = torch.cdist(tensors["query"], tensors["key"], p=1)
    nearest = distance.amin(-1, keepdim=True)
    assert ((distance == nearest).sum(-1) > 1).any()
    shift = (distance - (nearest if "center" in form else 0)) / 2 + alpha
    if "inhibition" in form:
        ends = tensors["value"].abs()[..., None, :, :] / 2
        assert (shift[..., None] == ends).any()
        assert (shift[..., None] == -ends).any()
        assert (shift == 1).any()
        assert (shift == -1).any()
    assert 0.2 <= want.active <= 0.8
    assert_agrees(run(inputs, backend), want)


@plain_backends
@pytest.mark.parametrize(
    ("z", "value", "of_value", "of_z"),
    [
        *((1.0, 2.0, 0.0, 0.0), (1.0, -2.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0), (0.0, 2.0, 0.5, -1.0), (0.0, -2.0, 0.5, 1.0)),
        *(
            (-1.0, 2.0, 1.0, 0.0),
            (-1.0, -2.0, 1.0, 0.0),
            (-1.0, 0.0, 1.0, 0.0),
            (-0.5, 2.0, 0.5, -1.0),
            (-1.5, -2.0, 1.0, 0.0),
        ),
    ],
)
def test_the_gate_by_hand(z: float, value: float, of_value: float, of_z: float, backend: str) -> None:
    """One pair, whose distance is 0: at both ends of the ramp the derivative is that beside it."""
    at_once = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    v, alpha = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (value, z))
    output = inhibitor_attention(at_once, at_once, v.expand(1, 1, 1, 1), alpha=alpha, inhibition="gate", backend=backend)
    assert output.item() == max(value / 2 - z, 0) - max(-value / 2 - z, 0)
    assert [x.item() for x in torch.autograd.grad(output, (v, alpha))] == [of_value, of_z]


@plain_backends
@pytest.mark.parametrize(
    ("z", "share", "slope"), [(1.0, 0.0, -0.5), (1.5, 0.0, 0.0), (0.5, 0.25, -0.5), (-1.0, 1.0, -0.5), (-1.5, 1.0, 0.0)]
)
def test_what_a_gates_sum_is_divided_by_by_hand(z: float, share: float, slope: float, backend: str) -> None:
    """What passes of 8, divided by 0.001 and the share of a constant 2: a ramp, whose slope holds at both its ends."""
    at_once = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    alpha = torch.tensor(z, dtype=torch.float64, requires_grad=True)
    output = inhibitor_attention(at_once, at_once, at_once + 8, alpha=alpha, delta=0.5, inhibition="gate", backend=backend)
    passed = 4 - z
    assert output.item() == pytest.approx(passed / (share + 1e-3))
    (of_z,) = torch.autograd.grad(output, alpha)
    assert of_z.item() == pytest.approx(-1 / (share + 1e-3) - passed * slope / (share + 1e-3) ** 2)


@every_backend_many_cases
@every_flag
def test_free_inputs(flags: dict, backend: str) -> None:
    """Indicators flip at the kinks, so single gradients may be off; the median over 20 seeds may not."""
    errors: dict[str, list[float]] = {}
    for seed in range(20):
        inputs, want = judged(Case(B=1, M=16, N=17, D=8, off_kinks=False, seed=seed, **flags))
        got = run(inputs, backend)
        assert relative_rms(got.output, want.output) < FORWARD_TOLERANCE
        for name, gradient in want.gradients.items():
            errors.setdefault(name, []).append(relative_rms(got.gradients[name], gradient))
    for name, error in errors.items():
        assert max(error) < FREE_GRADIENT_TOLERANCE, (name, max(error))
        assert median(error) < FREE_GRADIENT_MEDIAN, (name, median(error))


@plain_backends
@every_flag
@pytest.mark.parametrize(
    "masks",
    [
        {},
        {"padding": "holes", "dropout": True},
        {"causal": True},
        {"attn_mask": (2, 1, 7, 9)},
        {"M": 9, "N": 5, "causal": True},
    ],
    ids=["full", "holes-dropout", "causal", "attn_mask", "causal-M9-N5"],
)
def test_scores_and_gradients_through_them(masks: dict, flags: dict, backend: str) -> None:
    inputs, want = judged(Case(scalars=(2,), **masks, **flags), through_scores=True)
    got = run(inputs, backend, return_scores=True)
    assert got.scores.shape == want.scores.shape
    assert_agrees(got, want)


@plain_backends
def test_gradient_through_the_scores_alone(backend: str) -> None:
    """Attention maps are a loss of their own in distillation; the output then takes no part."""
    inputs = draw(Case(padding="left"))
    inputs.grad_output.zero_()
    want = judge(inputs, through_scores=True)
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.tensors.items()}
    _, scores = inhibitor_attention(**leaves, **inputs.options, return_scores=True, backend=backend)
    names = ("query", "key", "alpha", "gamma")
    gradients = torch.autograd.grad(scores, [leaves[n] for n in names], inputs.grad_scores.to(scores.dtype))
    for name, gradient in zip(names, gradients, strict=True):
        assert relative_rms(gradient, want.gradients[name]) < 1e-5, name


@plain_backends
def test_scores_are_zero_at_invisible_keys(backend: str) -> None:
    """Also where alpha alone would lift them above 0."""
    query, key, value = torch.randn(3, 2, 2, 5, 4).unbind()
    real = torch.tensor([[True, True, False, True, False], [False, True, True, True, True]])
    _, scores = inhibitor_attention(
        query, key, value, key_padding_mask=real, causal=True, alpha=3.0, return_scores=True, backend=backend
    )
    visible = real[:, None, None] & torch.ones(5, 5, dtype=torch.bool).tril()
    assert not scores.masked_select(~visible).any()
    assert scores.masked_select(visible.expand_as(scores)).all()


@every_backend_many_cases
@every_flag
def test_padding_changes_nothing(flags: dict, backend: str) -> None:
    inputs = draw(Case(B=1, N=6, **flags))
    want = run(inputs, backend)
    for real in ([1, 1, 1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 0, 0, 1, 1, 1]):
        mask = torch.tensor([real], dtype=torch.bool)
        padded = {name: torch.randn(1, 2, 9, 5) for name in ("key", "value")}
        for name, tensor in padded.items():
            tensor[:, :, mask[0]] = inputs.tensors[name]
        options = inputs.options | {"key_padding_mask": mask}
        got = run(Inputs(inputs.tensors | padded, options, inputs.grad_output, inputs.grad_scores), backend)
        assert relative_rms(got.output, want.output) < 1e-6
        for name in ("key", "value"):
            assert relative_rms(got.gradients[name][:, :, mask[0]], want.gradients[name]) < 1e-6
            assert not got.gradients[name][:, :, ~mask[0]].any()


@every_backend
def test_dropped_keys_stay_in_the_mean(backend: str) -> None:
    """Dropping a key takes its value away; the scores of the others do not move."""
    query, key, value = torch.randn(3, 2, 2, 5, 4).unbind()
    kept = torch.tensor([[True, False, True, True, False], [True, True, True, False, True]])
    without_values = value.masked_fill(~kept[:, None, :, None], 0.0)
    want, want_scores = inhibitor_attention(query, key, without_values, return_scores=True, backend=backend)
    got = inhibitor_attention(query, key, value, key_dropout_mask=kept, backend=backend)
    torch.testing.assert_close(got, want)
    _, scores = inhibitor_attention(query, key, value, key_dropout_mask=kept, return_scores=True, backend=backend)
    assert torch.equal(scores, want_scores)
