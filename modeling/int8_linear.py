"""Linear layers of int8 weights, for inference."""

import torch
from torch import Tensor, nn

from ..kernels.cpu.int8_linear import int8_linear

LARGEST = 127


class Int8Linear(nn.Module):
    """`nn.Linear` with weights of 8 bits: `(..., in_features)` -> `(..., out_features)`, see `int8_linear`.

    Buffers, so that no optimiser takes them for parameters: `weight` `(out_features, in_features)` int8, `weight_scale`
    `(out_features,)` float32, what a step of each row stands for, and `bias` `(out_features,)`.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.zeros(out_features, dtype=torch.float32))
        self.register_buffer("bias", torch.zeros(out_features))

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> "Int8Linear":
        """The layer whose weights are `linear`'s, each row rounded to 255 steps between its largest magnitudes."""
        layer = cls(linear.in_features, linear.out_features)
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1) / LARGEST
        scale = torch.where(scale > 0, scale, 1.0)
        layer.weight = (weight / scale[:, None]).round().to(torch.int8)
        layer.weight_scale = scale
        layer.bias = linear.bias.detach().clone()
        return layer.train(linear.training)

    def _apply(self, fn, recurse=True):
        # `.half()` and `.to(torch.bfloat16)` come through here: the scale follows the device but stays in float32.
        scale = self.weight_scale
        super()._apply(fn, recurse)
        if self.weight_scale.dtype != torch.float32:
            self.weight_scale = scale.to(self.weight_scale.device)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return int8_linear(x, self.weight, self.weight_scale, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def encoder_linear(int8: bool, in_features: int, out_features: int) -> nn.Module:
    """A linear layer of the encoder, with int8 weights or as usual."""
    return Int8Linear(in_features, out_features) if int8 else nn.Linear(in_features, out_features)
