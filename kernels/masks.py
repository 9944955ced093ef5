"""Which keys each query may see: one rule for every backend."""

from typing import NamedTuple

import torch
from torch import Tensor


class KeyMasks(NamedTuple):
    """The masks of one call; a bool mask is True where a key is kept, None keeps everything.

    padding: `(B, N)`, real tokens.
    dropout: `(B, N)`, keys that survive attention dropout.
    attention: broadcastable to `(B, H, M, N)`, any further restriction.
    causal: query i sees the keys j <= i + N - M (aligned at the bottom right).
    """

    padding: Tensor | None
    dropout: Tensor | None
    attention: Tensor | None
    causal: bool

    def visible(self, queries: int, keys: int, device: torch.device, rows: slice = slice(None)) -> Tensor | None:
        """Visible keys of the queries in `rows`: bool `(1 or B, 1 or H, 1 or len(rows), N)`, or None for all.

        Dropped keys stay visible: dropout removes a key's value, not its part in the row mean.
        """
        visible = None if self.padding is None else self.padding[:, None, None, :]
        if self.attention is not None:
            attention = self.attention if self.attention.shape[-2] == 1 else self.attention[..., rows, :]
            # The keys are counted along the last dimension, so that one must not be left to broadcasting.
            attention = attention.expand(-1, -1, -1, keys)
            visible = attention if visible is None else visible & attention
        if self.causal:
            last = torch.arange(queries, device=device)[rows] + (keys - queries)
            past = torch.arange(keys, device=device) <= last[:, None]
            visible = past[None, None] if visible is None else visible & past
        return visible

    def aggregated(self, visible: Tensor | None) -> Tensor | None:
        """The `visible` keys whose values enter the sum."""
        if self.dropout is None:
            return visible
        dropout = self.dropout[:, None, None, :]
        return dropout if visible is None else visible & dropout
