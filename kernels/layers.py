"""Layers of the Hub kernel: what `kernels.kernelize` puts in place of a module's own `forward`."""

from typing import Any

from torch import Tensor, nn

from .attention import inhibitor_attention


class InhibitorAttention(nn.Module):
    """Inhibitor attention with the adopting module's scalars and switches, by the best backend for the tensors' device.

    The library `kernels` wants layers without state of their own: the adopting module holds the five attributes. It may also
    have `delta`, `center` and `inhibition`, see `inhibitor_attention`.
    """

    can_torch_compile = True

    alpha: Tensor
    beta: Tensor
    gamma: Tensor
    centered: bool
    signed: bool

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        key_dropout_mask: Tensor | None = None,
    ) -> Tensor:
        """Query `(B, H, M, d)`, key and value `(B, H, N, d)`, masks `(B, N)` bool, True = kept; returns `(B, H, M, d)`."""
        beyond = {name: getattr(self, name) for name in ("delta", "center", "inhibition") if hasattr(self, name)}
        output: Any = inhibitor_attention(
            query,
            key,
            value,
            key_padding_mask=key_padding_mask,
            key_dropout_mask=key_dropout_mask,
            alpha=self.alpha,
            beta=self.beta,
            gamma=self.gamma,
            centered=self.centered,
            signed=self.signed,
            **beyond,
        )
        return output
