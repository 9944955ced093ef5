"""The operator's peers: ways to compute attention, forward and with the backward pass, on the same data.

Among them inhibitor attention composed of torch's own operations, as the paper's authors formulate it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from ..modeling.attention_interface import inhibitor_mask, split_mask
from ..support.benchmark_results import Shape
from .timing import SEED, Work

BASELINE = "softmax fp32"
FORWARD, TRAINING = "forward", "forward + backward"
AUTHORS = "authors_cdist"

Scalar = float | Tensor


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


def composed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    alpha: Scalar = 0.5,
    beta: Scalar = 1.0,
    gamma: Scalar = 1.0,
    centered: bool = True,
    signed: bool = True,
) -> Tensor:
    """Inhibitor attention over all keys: Σ relu(v − Z) is an L1 distance, of the rows of Z and the columns of v.

    The fastest that torch offers without a kernel of one's own; three matrices of all scores are in memory. Inexact where
    most keys are inhibited, see Zhang and Brännvall (arXiv 2503.15983), whose formulation it is.

    query, key, value: `(B, H, N, d)`; scalars: floats or what broadcasts to `(B, H, N, N)`. Returns `(B, H, N, d)`.
    """
    scores = torch.cdist(query, key, p=1) * (gamma * query.shape[-1] ** -0.5)
    if centered:
        scores = scores - scores.mean(-1, keepdim=True)
    z = (scores + alpha).relu()
    total = value.sum(-2, keepdim=True)
    if signed:
        positive, negative = value.relu().mT.contiguous(), (-value).relu().mT.contiguous()
        return (total + torch.cdist(z, positive, p=1) - torch.cdist(z, negative, p=1)) * (0.5 * beta)
    return (total - z.sum(-1, keepdim=True) + torch.cdist(z, value.mT.contiguous(), p=1)) * (0.5 * beta)


def _forward(module, query, key, value, attention_mask, **kwargs):
    """The same behind transformers' interface, in float32 as torch has no other distances; inference only."""
    padding, _ = split_mask(attention_mask)
    if padding is not None:
        # A value of 0 adds nothing. The mean runs over padding too, as the authors' does.
        value = value * padding[:, None, :, None]
    alpha, beta, gamma = (scalar[:, None, None] for scalar in (module.alpha, module.beta, module.gamma))
    query32, key32, value32 = (x.float() for x in (query, key, value))
    output = composed_attention(
        query32, key32, value32, alpha, beta, gamma, centered=module.config.centered, signed=module.config.signed
    )
    return output.to(query.dtype).transpose(1, 2), None


AttentionInterface.register(AUTHORS, _forward)
AttentionMaskInterface.register(AUTHORS, inhibitor_mask)
