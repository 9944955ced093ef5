"""The learnable scalars of inhibitor attention, of a layer."""

from typing import Any

import torch
from torch import Tensor, nn

SCALARS = ("alpha", "beta", "gamma", "delta")


def initial_scalar(config: Any, name: str) -> Tensor:
    """`(1,)` or `(n_heads,)`, of several radii `(radii, …)`, in float32 or what `_apply` makes of it in a wider model."""
    dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
    value = torch.tensor(getattr(config, f"{name}_init"), dtype=dtype)
    heads = config.n_heads if config.scalars_per_head else 1
    return value[..., None].expand((config.radii, heads) if config.radii > 1 and name != "delta" else (heads,)).clone()


class WithScalars(nn.Module):
    """A module with alpha (shift), beta (output scale) and gamma (score scale), and delta (slope of what the sum is divided
    by) where there is such."""

    def add_scalars(self, config: Any) -> None:
        self.alpha, self.beta, self.gamma = (nn.Parameter(initial_scalar(config, name)) for name in SCALARS[:3])
        has_delta = config.length_normalization == "passed"
        self.delta = nn.Parameter(initial_scalar(config, "delta")) if has_delta else None

    def scalars(self) -> dict[str, nn.Parameter]:
        return {name: getattr(self, name) for name in SCALARS if getattr(self, name) is not None}

    def _apply(self, fn, recurse=True):
        # `.half()` and `.to(torch.bfloat16)` come through here: the scalars follow the device but stay in float32.
        before = {name: scalar.detach() for name, scalar in self.scalars().items()}
        super()._apply(fn, recurse)
        for name, value in before.items():
            scalar = getattr(self, name)
            if scalar.dtype in (torch.float16, torch.bfloat16):
                scalar.data = value.to(device=scalar.device, dtype=torch.float32)
        return self
