"""What distinguishes one call of the Triton kernels from another, and one such call against the judge; without pytest.

On the GPU where there is one, else in Triton's interpreter.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ..kernels.attention import inhibitor_attention
from ..kernels.triton import launch as triton_launch
from .covering import pairwise
from .reference import (
    NOT_FINITE,
    SPOILT,
    Case,
    Inputs,
    Result,
    assert_agrees,
    assert_only_rounded,
    relative_rms,
    spoilt,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TENSORS = ("query", "key", "value")
SCALARS = ("alpha", "beta", "gamma")
_ALL_SCALARS = (*SCALARS, "delta")


def _transposed(tensor: Tensor) -> Tensor:
    """The layout the model makes: `(B, L, H, d)` in memory."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def _every_second(tensor: Tensor) -> Tensor:
    return tensor.repeat_interleave(2, dim=-1)[..., ::2]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "transposed": _transposed,
    "every_second": _every_second,
}
FLAGS = {"signed": (True, False), "centered": (True, False), "causal": (False, True)}
MASKS = {"padding": (None, "left", "right", "holes"), "dropout": (False, True)}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEAD_SIZES = (16, 32, 64, 80, 128)
# Below, at and beyond blocks of 32 keys and tiles of 32 rows and more, as many queries as keys, fewer, and more.
LENGTHS = ((17, 17), (63, 63), (1, 129), (17, 64), (129, 17), (64, 17))
SCALAR_FORMS = ("float", "layer", "head")
OPTIONS = {
    **FLAGS,
    **MASKS,
    "dtype": DTYPES,
    "D": HEAD_SIZES,
    "lengths": LENGTHS,
    "scalars": SCALAR_FORMS,
    "layout": tuple(LAYOUTS),
}


# With numbers that are not finite. What they reach does not depend on sizes, so that these are small.
SPOILT_OPTIONS = {
    **FLAGS,
    "padding": (None, "holes"),
    "dropout": MASKS["dropout"],
    "place": SPOILT,
    "number": NOT_FINITE,
    "dtype": DTYPES,
    "lengths": ((4, 5), (5, 4)),
    "scalars": ("layer", "head"),
    "layout": tuple(LAYOUTS),
}


@dataclass(frozen=True)
class Row:
    """A case, and what a case does not know: whether its scalars are floats, and how its tensors lie in memory."""

    case: Case
    scalars: str
    layout: str

    @classmethod
    def of(cls, lengths: tuple[int, int], scalars: str, layout: str, **options: Any) -> "Row":
        heads = 2 if scalars == "head" else 1
        return cls(Case(B=1, H=heads, M=lengths[0], N=lengths[1], scalars=(heads,), **options), scalars, layout)

    def __str__(self) -> str:
        return f"{self.case}-{self.scalars}-{self.layout}"


def on_device(named: Mapping[str, Any]) -> dict[str, Any]:
    return {name: x.to(DEVICE) if isinstance(x, Tensor) else x for name, x in named.items()}


def run_triton(inputs: Inputs, layout: str = "contiguous", float_scalars: bool = False, operator: Any = None) -> Result:
    """One call with gradients, by default of `inhibitor_attention`; scalars given as floats have none."""
    lay_out, tensors, scalars = LAYOUTS[layout], on_device(inputs.tensors), {}
    leaves = {name: lay_out(tensors[name]) for name in TENSORS}
    given = [name for name in _ALL_SCALARS if name in tensors]
    if float_scalars:
        scalars = {name: tensors[name].item() for name in given}
    else:
        leaves |= {name: tensors[name] for name in given}
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in leaves.items()}
    operator = inhibitor_attention if operator is None else operator
    output = operator(**leaves, **scalars, **on_device(inputs.options), backend="triton")
    incoming = lay_out(inputs.grad_output.to(DEVICE, output.dtype))
    gradients = torch.autograd.grad(output, list(leaves.values()), incoming)
    return Result(output.detach().cpu(), None, {n: g.cpu() for n, g in zip(leaves, gradients, strict=True)})


def assert_row_agrees(row: Row, inputs: Inputs, want: Result) -> None:
    """To float32 accuracy, half types rounded once."""
    got = run_triton(inputs, row.layout, row.scalars == "float")
    assert got.output.dtype == row.case.dtype
    if row.case.dtype == torch.float32:
        assert_agrees(Result(got.output, None, want.gradients | got.gradients), want)
        return
    assert_only_rounded(got.output, want.output)
    for name in TENSORS:
        assert got.gradients[name].dtype == row.case.dtype
        assert_only_rounded(got.gradients[name], want.gradients[name])
    for name in SCALARS if row.scalars != "float" else ():
        assert got.gradients[name].dtype == torch.float32
        assert relative_rms(got.gradients[name], want.gradients[name]) < 3e-4, name


def pairs() -> list[Row]:
    """Rows in which every pair of values of any two options occurs together."""
    return [Row.of(**options) for options in pairwise(OPTIONS)]


@dataclass(frozen=True)
class SpoiltRow:
    """A row whose inputs hold `number`, which is not finite, at `place`, as `reference.spoil` has it."""

    row: Row
    number: float
    place: str

    def __str__(self) -> str:
        return f"{self.row}-{self.number}-{self.place.replace(' ', '_')}"

    def check(self) -> None:
        assert_row_agrees(self.row, *spoilt(self.row.case, self.number, self.place))


def spoilt_pairs() -> list[SpoiltRow]:
    """As `pairs`, of options that say what is not finite as well."""
    return [
        SpoiltRow(number=options.pop("number"), place=options.pop("place"), row=Row.of(**options, D=16))
        for options in pairwise(SPOILT_OPTIONS)
    ]


# Forms beyond the paper: each kernel in every form that it tells apart, with each kind of mask
_GATE: dict[str, Any] = {"inhibition": "gate", "center": "least", "delta": 0.9, "alpha": -0.3}
BEYOND = (
    Row.of((6, 9), "layer", "contiguous", D=20, **_GATE),
    Row.of((9, 7), "head", "transposed", D=16, padding="left", causal=True, dropout=True, **_GATE | {"alpha": 0.1}),
    Row.of((5, 40), "float", "every_second", D=16, padding="holes", inhibition="gate", dtype=torch.bfloat16),
    Row.of((7, 9), "head", "contiguous", D=16, inhibition="gate", centered=False, delta=0.1, causal=True, alpha=-2.0),
    Row.of((8, 8), "layer", "transposed", D=48, signed=False, center="least", delta=0.7, padding="right", alpha=-0.2),
    Row.of((4, 9), "layer", "contiguous", D=16, center="least", dropout=True, alpha=-0.2),
    Row.of((9, 8), "head", "contiguous", D=16, delta=-0.6, causal=True, padding="holes", gamma=-0.8),
)
BEYOND_SPOILT = tuple(
    SpoiltRow(replace(row, case=replace(row.case, M=4, N=5, D=16, seed=1)), number, place)
    for row, number, place in zip(
        BEYOND + BEYOND[:2],
        NOT_FINITE * 3,
        ("key", "value", "last value", "last key", "query", "gradient", "delta", "alpha", "delta"),
        strict=True,
    )
)


# Inference in float16 pairs

HALF_TOLERANCE = 1e-2
HALF_DTYPES = (torch.float16, torch.bfloat16)
HALF_CASES = tuple(
    Case(off_kinks=False, **options)
    for options in (
        {},
        {"B": 1, "signed": False, "M": 3},
        {"B": 1, "centered": False, "padding": "left"},
        {"causal": True, "dropout": True, "padding": "holes", "scalars": (2,)},
        {"B": 1, "H": 1, "M": 17, "N": 65, "D": 32, "padding": "right"},
        {"B": 1, "H": 1, "M": 33, "N": 17, "D": 48, "causal": True},
        {"B": 1, "H": 1, "M": 5, "N": 129, "D": 64},
        {"B": 1, "offset": 100.0},
    )
)


HALF_SPOILT = Case(B=1, H=1, M=3, N=5, padding="holes", dropout=True, causal=True, dtype=torch.float16)


def run_half(inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
    """The output of one call without gradients, in float16 pairs whatever its size, and what its launches of the float32
    kernel were given last: of a call in half precision the marks of the tiles that it computes again."""
    last, launch = [], triton_launch._launch_forward

    def recorded(*arguments: Any) -> None:
        last.append(arguments[-1])
        launch(*arguments)

    with (
        torch.no_grad(),
        mock.patch.object(triton_launch, "HALF_FROM", 0),
        mock.patch.object(triton_launch, "_launch_forward", recorded),
    ):
        output: Any = inhibitor_attention(**on_device(inputs.tensors), **on_device(inputs.options), backend="triton")
    return output.cpu(), last


def assert_half_is_near(inputs: Inputs, want: Result) -> None:
    """Within the tolerance of float64, and not because float32 did the work."""
    got, (again,) = run_half(inputs)
    assert got.dtype == inputs.tensors["query"].dtype
    assert relative_rms(got, want.output) < HALF_TOLERANCE
    assert not again.any(), "float32 has done the work"


def check_spoilt_half(place: str) -> None:
    """What is not finite goes where it does in float64."""
    inputs, want = spoilt(HALF_SPOILT, NOT_FINITE[SPOILT.index(place) % len(NOT_FINITE)], place)
    assert relative_rms(run_half(inputs)[0], want.output) < HALF_TOLERANCE
