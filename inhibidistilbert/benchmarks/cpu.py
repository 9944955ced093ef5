"""Inhibitor attention beside softmax attention on the CPU: the operator, a layer, and a model of DistilBERT-base's size.

Everything is measured in one run, peers in turns and in alternating order; what counts are the ratios of their times.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from ..kernels.attention import inhibitor_attention
from ..modeling.configuration_inhibidistilbert import InhibiDistilBertConfig
from ..support.benchmark_results import CpuRow, Shape
from ..support.results import Quantiles
from .operators import BASELINE, TRAINING, Operator
from .peers import Checkpoint, with_int8_linears
from .timing import SEED, Budget, Refused, Work, interleave, ratios, torch_threads, warm_up

MakeWork = Callable[[Shape], Work]


@dataclass(frozen=True)
class Level:
    """What is compared at what shapes.

    Attributes:
        name: `operator`; `training`, the operator forward and backward; `fallback`, the operator in plain torch, as where
            nothing can be compiled; `layer` or `model`.
        shapes: by name.
        peers: what makes the work of each for a shape, or raises `Refused`.
    """

    name: str
    shapes: Mapping[str, Shape]
    peers: Mapping[str, MakeWork]
    budget: Budget


# The operator.


def _no_int8_softmax(shape: Shape) -> Work:
    raise Refused("torch has no int8 scaled dot product attention for CPUs")


_SOFTMAX = Operator(scaled_dot_product_attention)
_INHIBITOR = Operator(partial(inhibitor_attention, backend="cpu"))
# Other forms, by what they are called: those beyond the paper with the start values of a new student.
_GATE = partial(inhibitor_attention, backend="cpu", inhibition="gate", center="least", delta=1.0)
_RADII = {"alpha": torch.tensor([[-0.5], [0.1]]), "beta": torch.tensor([[1.0], [1.5]]), "gamma": torch.ones(2, 1)}
_OTHER_FORMS = {
    "not centred": Operator(partial(inhibitor_attention, backend="cpu", centered=False)),
    "gate": Operator(partial(_GATE, alpha=-0.5)),
    "gate of two radii": Operator(partial(_GATE, **_RADII)),
}
OPERATORS: Mapping[str, MakeWork] = {
    BASELINE: _SOFTMAX.work,
    "softmax bf16": Operator(scaled_dot_product_attention, torch.bfloat16).work,
    "softmax int8": _no_int8_softmax,
    "inhibitor fp32": _INHIBITOR.work,
    **{f"inhibitor fp32, {name}": form.work for name, form in _OTHER_FORMS.items()},
    "inhibitor bf16": Operator(_INHIBITOR.attend, torch.bfloat16).work,
    "inhibitor int8": Operator(partial(inhibitor_attention, backend="cpu", quantized=True)).work,
}
FALLBACKS: Mapping[str, MakeWork] = {
    BASELINE: _SOFTMAX.work,
    "inhibitor fp32": Operator(partial(inhibitor_attention, backend="torch")).work,
}
TRAINING_STEPS: Mapping[str, MakeWork] = {
    BASELINE: partial(_SOFTMAX.work, pass_name=TRAINING),
    "inhibitor fp32": partial(_INHIBITOR.work, pass_name=TRAINING),
    **{f"inhibitor fp32, {name}": partial(form.work, pass_name=TRAINING) for name, form in _OTHER_FORMS.items()},
}


# Layers and models: random weights, no padding.


@functools.cache
def _encoder(family: str, precision: str, layers: int, dim: int, heads: int) -> nn.Module:
    """DistilBERT with `family` attention, for inference; all Linear layers int8 where that is the precision."""
    quantized = precision == "int8"
    config = InhibiDistilBertConfig(n_layers=layers, dim=dim, n_heads=heads, hidden_dim=4 * dim, quantized=quantized)
    checkpoint = Checkpoint("random", config, "InhibiDistilBertModel")
    torch.manual_seed(SEED)
    model = (checkpoint.softmax("sdpa") if family == "softmax" else checkpoint.build("inhibitor_cpu")).eval()
    if precision == "bf16":
        return model.to(torch.bfloat16)
    return with_int8_linears(model) if quantized else model


def _layer(family: str, precision: str, shape: Shape) -> Work:
    dim = shape.heads * shape.head_dim
    encoder: Any = _encoder(family, precision, 1, dim, shape.heads)
    states = torch.randn(shape.batch, shape.length, dim, generator=torch.Generator().manual_seed(SEED))
    return partial(encoder.transformer.layer[0], states.to(torch.bfloat16 if precision == "bf16" else torch.float32))


def _model(family: str, precision: str, layers: int, shape: Shape) -> Work:
    encoder = _encoder(family, precision, layers, shape.heads * shape.head_dim, shape.heads)
    generator = torch.Generator().manual_seed(SEED)
    return partial(encoder, input_ids=torch.randint(1000, 30000, (shape.batch, shape.length), generator=generator))


_ENCODERS = [(family, precision) for family in ("softmax", "inhibitor") for precision in ("fp32", "bf16", "int8")]


def levels(quick: bool = False) -> list[Level]:
    """Everything that is compared; `quick`: at toy sizes, to see that it runs."""
    shapes = {"A": Shape(1, 12, 128, 64), "B": Shape(8, 12, 128, 64), "C": Shape(1, 12, 512, 64), "D": Shape(8, 12, 512, 64)}
    operators, fallbacks = shapes | {"E": Shape(32, 12, 64, 32)}, {name: shapes[name] for name in "ABC"}
    depth, short, long = 6, Budget(5), Budget(8)
    if quick:
        shapes = operators = fallbacks = {"tiny": Shape(2, 2, 16, 16)}
        depth, short, long = 1, Budget(0, least=2), Budget(0, least=2)
    layers = {f"{family} {kind}": partial(_layer, family, kind) for family, kind in _ENCODERS}
    models = {f"{family} {kind}": partial(_model, family, kind, depth) for family, kind in _ENCODERS}
    return [
        Level("operator", operators, OPERATORS, short),
        Level("training", operators, TRAINING_STEPS, short),
        Level("fallback", fallbacks, FALLBACKS, short),
        Level("layer", shapes, layers, short),
        Level("model", shapes, models, long),
    ]


# Running it.


@torch.no_grad()
def run(
    chosen: Sequence[Level], threads: Sequence[int], progress: Callable[[], object] = lambda: None, **injected: Any
) -> tuple[list[CpuRow], dict[str, str]]:
    """Time every level at every number of threads; `progress` is called after each shape.

    Returns the rows, and for each peer that could not take part why. `injected` goes to `interleave`.
    """
    rows: list[CpuRow] = []
    refusals: dict[str, str] = {}
    for level in chosen:
        for number in threads:
            for name, shape in level.shapes.items():
                with torch_threads(number):
                    makers = {peer: partial(make, shape) for peer, make in level.peers.items()}
                    works, _, refused = warm_up(makers, (Refused, ValueError))
                    seconds = interleave(works, level.budget, **injected)
                for peer, error in refused.items():
                    refusals.setdefault(f"{peer} ({level.name})", str(error))
                rows += _rows(level.name, name, shape, number, seconds)
                progress()
    _encoder.cache_clear()
    return rows, refusals


def _rows(level: str, name: str, shape: Shape, threads: int, seconds: Mapping[str, Sequence[float]]) -> Iterator[CpuRow]:
    for peer, mine in seconds.items():
        family, _, precision = peer.split(",")[0].partition(" ")
        softmax = f"softmax {precision}"
        known = family == "inhibitor" and softmax in seconds
        yield CpuRow(
            level=level,
            problem=name,
            shape=shape,
            threads=threads,
            peer=peer,
            rounds=len(mine),
            milliseconds=Quantiles.of([1000 * second for second in mine]),
            ratio=ratios(mine, seconds[BASELINE]),
            softmax=softmax if known else None,
            softmax_ratio=ratios(mine, seconds[softmax]) if known else None,
        )
