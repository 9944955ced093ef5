"""The judge is right: against a result worked out by hand, and against a closed form differentiated by autograd."""

import pytest
import torch

from inhibidistilbert.testing.reference import Case, Inputs, cdist_attention, draw, loop_attention, relative_rms

pytestmark = pytest.mark.portable

ORACLE_CASES = [
    Case(dtype=torch.float64, signed=signed, centered=centered, scalars=(2,), **masks)
    for signed in (True, False)
    for centered in (True, False)
    for masks in ({}, {"padding": "holes", "causal": True}, {"dropout": True, "attn_mask": (2, 1, 7, 9)})
] + [
    Case(dtype=torch.float64, padding="holes", dropout=True, **form)
    for form in (
        {"inhibition": "gate", "center": "least", "delta": 0.9, "alpha": -0.3, "scalars": (2, 2)},
        {"center": "least", "delta": 0.7, "alpha": -0.3},
        {"inhibition": "gate", "alpha": 0.2, "delta": -0.8},
        {"signed": False, "delta": 0.8, "scalars": (2, 1), "alpha": 0.2},
    )
]


@pytest.mark.parametrize("case", ORACLE_CASES, ids=str)
def test_loop_agrees_with_the_closed_form_and_autograd(case: Case) -> None:
    inputs = draw(case)
    got, want = loop_attention(inputs), cdist_attention(inputs)
    assert relative_rms(got.output, want.output) < 1e-12
    assert relative_rms(got.scores, want.scores) < 1e-12
    for name, gradient in want.gradients.items():
        assert relative_rms(got.gradients[name], gradient) < 1e-12, name


@pytest.mark.parametrize(
    ("signed", "centered", "output"),
    [
        # Distances 4 and 0, root d = 2, so S = (2, 0): Z = (2.5, 0.5) as it is, and (1.5, 0) centred.
        (True, False, [1.5, 0.0, -4.5, 0.5]),
        (False, False, [1.5, 0.0, 0.0, 0.5]),
        (True, True, [2.5 + 1.0, 0.5, -2.5 - 3.0, 1.0]),
        (False, True, [2.5 + 1.0, 0.5, 0.0, 1.0]),
    ],
    ids=["signed", "unsigned", "signed-centered", "unsigned-centered"],
)
def test_loop_agrees_with_paper_and_pencil(signed: bool, centered: bool, output: list[float]) -> None:
    query = torch.zeros(1, 1, 1, 4, dtype=torch.float64)
    key = torch.tensor([[1.0, -1.0, 1.0, -1.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)[None, None]
    value = torch.tensor([[4.0, -0.5, -4.0, 0.0], [0.5, 0.5, -3.5, 1.0]], dtype=torch.float64)[None, None]
    value[..., 1, 0] = 1.0 if centered else 0.0
    value[..., 1, 2] = -3.0 if centered else -3.5
    scalars = {"alpha": torch.tensor(0.5), "beta": torch.tensor(1.0), "gamma": torch.tensor(1.0)}
    inputs = Inputs(
        {"query": query, "key": key, "value": value, **scalars},
        {"signed": signed, "centered": centered},
        grad_output=torch.ones_like(query),
        grad_scores=torch.zeros(1, 1, 1, 2, dtype=torch.float64),
    )
    assert loop_attention(inputs).output.flatten().tolist() == output
