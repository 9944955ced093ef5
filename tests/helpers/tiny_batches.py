"""Inputs and comparisons shared by the tests of compiling, exporting and placing tiny models."""

import torch
from torch import Tensor

from inhibidistilbert.testing.reference import FORWARD_TOLERANCE, GRADIENT_TOLERANCES, relative_rms
from tests.helpers.tiny import first_output, labels_for, tokens

NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0, "qa_dropout": 0.0}


def padding_mask(*shape: int) -> Tensor:
    """`(..., L)`, int64: of three rows one is full, one padded at its end and one at its front."""
    rows = torch.ones(shape, dtype=torch.long).flatten(0, -2)
    padded = shape[-1] // 3
    rows[1::3, shape[-1] - padded :] = 0
    rows[2::3, :padded] = 0
    return rows.view(shape)


def batch(task: str, rows: int, length: int, *, masked: bool = True, labelled: bool = False) -> dict[str, Tensor]:
    """Keyword arguments for a model of `task`: `(rows, length)`, or two choices a row for multiple choice."""
    shape = (rows, 2, length) if task == "ForMultipleChoice" else (rows, length)
    inputs = {"input_ids": tokens(*shape, seed=length)}
    if masked:
        inputs["attention_mask"] = padding_mask(*shape)
    if labelled:
        inputs |= labels_for(task, inputs["input_ids"])
    return inputs


def assert_same_output(got, want) -> None:
    """Two models' outputs agree as two forms of the operator must."""
    assert relative_rms(first_output(got), first_output(want)) < FORWARD_TOLERANCE


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of every parameter of `model`, which has none left afterwards."""
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


def assert_same_gradients(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """Every parameter's gradient agrees; alpha, beta and gamma, whose sums cancel, to their own tolerance."""
    for name, gradient in want.items():
        tolerance = GRADIENT_TOLERANCES.get(name.rpartition(".")[2], GRADIENT_TOLERANCES["value"])
        error = relative_rms(got[name], gradient)
        assert error < tolerance or gradient.abs().max() < 1e-6, f"{name}: {error:.1e}"
