"""Inhibitor attention beside softmax attention on the CPU: the operator, a layer, and a model of DistilBERT-base's size.

Everything is measured in one run, rivals in turns and in alternating order; what counts are the ratios of their times.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import DistilBertConfig, DistilBertModel

from ..kernels.attention import inhibitor_attention
from ..modeling.configuration_inhibidistilbert import InhibiDistilBertConfig
from ..modeling.modeling_inhibidistilbert import InhibiDistilBertModel
from .timing import Budget, Quantiles, interleave, ratios, torch_threads

SEED = 0
BASELINE = "softmax fp32"


class Refused(Exception):
    """A rival that cannot take part, and why."""


@dataclass(frozen=True)
class Problem:
    """The shape of what is computed: queries, keys and values `(batch, heads, length, head_dim)`."""

    name: str
    batch: int
    length: int
    heads: int = 12
    head_dim: int = 64


Work = Callable[[], object]


@dataclass(frozen=True)
class Level:
    """What is compared at what shapes. A rival makes its work for a problem, or raises `Refused`.

    name: `operator`; `training`, the operator forward and backward; `fallback`, the operator in plain torch, as where
        nothing can be compiled; `layer` or `model`.
    """

    name: str
    problems: Sequence[Problem]
    rivals: Mapping[str, Callable[[Problem], Work]]
    budget: Budget


@dataclass(frozen=True)
class Timing:
    """One rival's times in milliseconds, and the ratios to two others' in the same rounds.

    Attributes:
        ratio: to softmax attention in float32.
        peer: softmax attention in the rival's own precision, where there is one, and `peer_ratio` the ratio to it.
    """

    level: str
    problem: Problem
    threads: int
    rival: str
    rounds: int
    milliseconds: Quantiles
    ratio: Quantiles
    peer: str | None
    peer_ratio: Quantiles | None

    def as_dict(self) -> dict:
        problem = self.problem
        shape = {"batch": problem.batch, "heads": problem.heads, "length": problem.length, "head_dim": problem.head_dim}
        row: dict[str, Any] = {"level": self.level, "problem": problem.name} | shape
        row |= {"threads": self.threads, "rival": self.rival, "rounds": self.rounds}
        row |= _columns("ms", self.milliseconds) | _columns("ratio", self.ratio) | {"peer": self.peer}
        return row | _columns("peer_ratio", self.peer_ratio)


def _columns(name: str, quantiles: Quantiles | None) -> dict[str, float | None]:
    values = (None,) * 3 if quantiles is None else (quantiles.median, quantiles.low, quantiles.high)
    rounded = (None if value is None else round(value, 4) for value in values)
    return dict(zip((name, f"{name}_p10", f"{name}_p90"), rounded, strict=True))


# The operator.


def _heads(problem: Problem, dtype: torch.dtype) -> list[Tensor]:
    """Query, key and value, the same for every rival and laid out as the model's projections leave them."""
    generator = torch.Generator().manual_seed(SEED)
    shape = (problem.batch, problem.length, problem.heads, problem.head_dim)
    return [torch.randn(shape, generator=generator).to(dtype).transpose(1, 2) for _ in range(3)]


def _operator(attention: Callable[..., Any], dtype: torch.dtype = torch.float32, **options: Any) -> Callable:
    def make(problem: Problem) -> Work:
        return functools.partial(attention, *_heads(problem, dtype), **options)

    return make


def _training_step(attention: Callable[..., Any], **options: Any) -> Callable[[Problem], Work]:
    def make(problem: Problem) -> Work:
        inputs = [x.requires_grad_() for x in _heads(problem, torch.float32)]
        grad_output = torch.randn_like(inputs[0])

        def work() -> object:
            with torch.enable_grad():
                return torch.autograd.grad(attention(*inputs, **options), inputs, grad_output)

        return work

    return make


def _no_int8_softmax(problem: Problem) -> Work:
    raise Refused("torch has no int8 scaled dot product attention for CPUs")


OPERATORS: Mapping[str, Callable[[Problem], Work]] = {
    "softmax fp32": _operator(scaled_dot_product_attention),
    "softmax bf16": _operator(scaled_dot_product_attention, torch.bfloat16),
    "softmax int8": _no_int8_softmax,
    "inhibitor fp32": _operator(inhibitor_attention, backend="cpu"),
    "inhibitor fp32, not centred": _operator(inhibitor_attention, backend="cpu", centered=False),
    "inhibitor bf16": _operator(inhibitor_attention, torch.bfloat16, backend="cpu"),
    "inhibitor int8": _operator(inhibitor_attention, backend="cpu", quantized=True),
}
FALLBACKS: Mapping[str, Callable[[Problem], Work]] = {
    "softmax fp32": _operator(scaled_dot_product_attention),
    "inhibitor fp32": _operator(inhibitor_attention, backend="torch"),
}
TRAINING_STEPS: Mapping[str, Callable[[Problem], Work]] = {
    "softmax fp32": _training_step(scaled_dot_product_attention),
    "inhibitor fp32": _training_step(inhibitor_attention, backend="cpu"),
    "inhibitor fp32, not centred": _training_step(inhibitor_attention, backend="cpu", centered=False),
}


# Layers and models: random weights, no padding.


@functools.cache
def _encoder(family: str, precision: str, layers: int, dim: int, heads: int) -> nn.Module:
    """DistilBERT with `family` attention, for inference; all Linear layers int8 where that is the precision.

    Raises `Refused` for int8 inhibitor attention where there is none.
    """
    sizes: dict[str, Any] = {"n_layers": layers, "dim": dim, "n_heads": heads, "hidden_dim": 4 * dim}
    torch.manual_seed(SEED)
    model: nn.Module
    if family == "softmax":
        model = DistilBertModel(DistilBertConfig(**sizes | {"attn_implementation": "sdpa"}))
    else:
        config = InhibiDistilBertConfig(**sizes | {"attn_implementation": "inhibitor_cpu"})
        if precision == "int8":
            if not hasattr(config, "quantized"):
                raise Refused("this version has no int8 inhibitor attention")
            config.quantized = True
        model = InhibiDistilBertModel(config)
    model = model.eval()
    if precision == "bf16":
        return model.to(torch.bfloat16)
    return with_int8_linears(model) if precision == "int8" else model


def with_int8_linears(model: nn.Module) -> nn.Module:
    """The model with Linear layers that quantise their input on the fly and hold int8 weights."""
    with warnings.catch_warnings():
        # torch announces that torchao will take these over.
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def _layer(family: str, precision: str) -> Callable[[Problem], Work]:
    def make(problem: Problem) -> Work:
        dim = problem.heads * problem.head_dim
        encoder: Any = _encoder(family, precision, 1, dim, problem.heads)
        states = torch.randn(problem.batch, problem.length, dim, generator=torch.Generator().manual_seed(SEED))
        return functools.partial(
            encoder.transformer.layer[0], states.to(torch.bfloat16 if precision == "bf16" else torch.float32)
        )

    return make


def _model(family: str, precision: str, layers: int) -> Callable[[Problem], Work]:
    def make(problem: Problem) -> Work:
        encoder = _encoder(family, precision, layers, problem.heads * problem.head_dim, problem.heads)
        generator = torch.Generator().manual_seed(SEED)
        tokens = torch.randint(1000, 30000, (problem.batch, problem.length), generator=generator)
        return functools.partial(encoder, input_ids=tokens)

    return make


_ENCODERS = [(family, precision) for family in ("softmax", "inhibitor") for precision in ("fp32", "bf16", "int8")]


def levels(quick: bool = False) -> list[Level]:
    """Everything that is compared; `quick`: at toy sizes, to see that it runs."""
    shapes = [("A", 1, 128), ("B", 8, 128), ("C", 1, 512), ("D", 8, 512)]
    problems = [Problem(*shape) for shape in shapes]
    operators, depth, short, long = [*problems, Problem("E", 32, 64, head_dim=32)], 6, Budget(5), Budget(8)
    if quick:
        problems = operators = [Problem("tiny", 2, 16, heads=2, head_dim=16)]
        depth, short, long = 1, Budget(0, least=2), Budget(0, least=2)
    return [
        Level("operator", operators, OPERATORS, short),
        Level("training", operators, TRAINING_STEPS, short),
        Level("fallback", operators[:3], FALLBACKS, short),
        Level("layer", problems, {f"{family} {kind}": _layer(family, kind) for family, kind in _ENCODERS}, short),
        Level("model", problems, {f"{family} {kind}": _model(family, kind, depth) for family, kind in _ENCODERS}, long),
    ]


# Running it.


def _peer(rival: str, rivals: Mapping[str, object]) -> str | None:
    """Softmax attention in the precision of an inhibitor, if it takes part."""
    family, _, precision = rival.split(",")[0].partition(" ")
    name = f"softmax {precision}"
    return name if family == "inhibitor" and name in rivals else None


def _ready(level: Level, problem: Problem, refusals: dict[str, str]) -> dict[str, Work]:
    """Each rival's work, tried once; those that refuse are noted with their reason."""
    works = {}
    for name, make in level.rivals.items():
        try:
            work = make(problem)
            work()
        except (Refused, ValueError) as error:
            refusals.setdefault(f"{name} ({level.name})", str(error))
        else:
            works[name] = work
    return works


@torch.no_grad()
def run(
    chosen: Sequence[Level], threads: Sequence[int], progress: Callable[[], object] = lambda: None, **injected: Any
) -> tuple[list[Timing], dict[str, str]]:
    """Time every level at every number of threads; `progress` is called after each problem.

    Returns the timings, and for each rival that could not take part why. `injected` goes to `interleave`.
    """
    timings: list[Timing] = []
    refusals: dict[str, str] = {}
    for level in chosen:
        for number in threads:
            for problem in level.problems:
                with torch_threads(number):
                    seconds = interleave(_ready(level, problem, refusals), level.budget, **injected)
                timings += _timings(level, problem, number, seconds)
                progress()
    _encoder.cache_clear()
    return timings, refusals


def _timings(level: Level, problem: Problem, threads: int, seconds: dict[str, list[float]]) -> Iterator[Timing]:
    for rival, mine in seconds.items():
        peer = _peer(rival, seconds)
        yield Timing(
            level=level.name,
            problem=problem,
            threads=threads,
            rival=rival,
            rounds=len(mine),
            milliseconds=Quantiles.of([1000 * second for second in mine]),
            ratio=ratios(mine, seconds[BASELINE]),
            peer=peer,
            peer_ratio=None if peer is None else ratios(mine, seconds[peer]),
        )
