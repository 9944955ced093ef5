"""The operator's peers: ways to compute attention, forward and with the backward pass, on the same data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from ..support.benchmark_results import Shape
from .timing import SEED, Work

BASELINE = "softmax fp32"
FORWARD, TRAINING = "forward", "forward + backward"


@dataclass(frozen=True)
class Operator:
    """A way to compute attention.

    Attributes:
        attend: query, key and value `(B, H, N, d)` -> `(B, H, N, d)`.
        dtype: of the three.
        floor: float32 instructions that the operator's arithmetic takes for a triple of query, key and channel, by pass,
            on a machine that does nothing else; None for what is not the kernels of a GPU.
        differentiable: whether its backward pass is measured as well.
    """

    attend: Callable[..., Any]
    dtype: torch.dtype = torch.float32
    floor: Mapping[str, float] | None = None
    differentiable: bool = True

    def work(self, shape: Shape, pass_name: str = FORWARD, device: torch.device | str = "cpu", inputs: int = 1) -> Work:
        """What computes one pass. Several `inputs` take turns, so that none lies in a cache when it is used again."""
        generator = torch.Generator(device).manual_seed(SEED)
        training = pass_name == TRAINING

        def draw() -> Tensor:
            return torch.randn(shape.projected, generator=generator, device=device).to(self.dtype).transpose(1, 2)

        turns = cycle([[draw().requires_grad_(training) for _ in range(3)] for _ in range(inputs)])
        gradient = draw() if training else None

        def work() -> object:
            drawn = next(turns)
            with torch.set_grad_enabled(training):
                output = self.attend(*drawn)
                return torch.autograd.grad(output, drawn, gradient) if training else output

        return work
