"""Which inhibition an operator computes: how scores are centred, how they inhibit, and what the sum is divided by.

The gate, counting from the nearest key, dividing by what passes, and several radii are this project's own. All else:
Zhang and Brännvall, arXiv 2503.15983.
"""

from typing import NamedTuple

import torch
from torch import Tensor

CENTERS = ("mean", "least")
INHIBITIONS = ("threshold", "gate")
_CENTER_NUMBERS = {None: 0, "mean": 1, "least": 2}
# Added to what passes before the sum is divided by it: a query that lets nothing pass gets 0.
NOTHING_PASSES = 1e-3


class Form(NamedTuple):
    """A form of inhibition.

    center: which of a query's distances is subtracted from all of them, `"mean"` or `"least"`; None for none of them.
    signed: let negative values pass as well.
    gate: a gate in the place of the threshold: small values do not shrink first, and scores below 0 open it wider.
    """

    center: str | None = "mean"
    signed: bool = True
    gate: bool = False

    @classmethod
    def of(cls, inhibition: str, center: str, centered: bool, signed: bool) -> "Form":
        """From the options of the operator and of the configuration."""
        if centered and signed and center == "mean" and inhibition == "threshold":
            return PUBLISHED
        return cls(center if centered else None, signed, inhibition == "gate")

    @property
    def numbers(self) -> tuple[int, int]:
        """Center and inhibition as compiled code takes them; of the published forms False and True mean the same."""
        return _CENTER_NUMBERS[self.center], 2 if self.gate else int(self.signed)

    @classmethod
    def of_numbers(cls, center: int, inhibition: int) -> "Form":
        return cls((None, *CENTERS)[center], inhibition > 0, inhibition == 2)

    @property
    def published(self) -> bool:
        return not self.gate and self.center != "least"

    @property
    def centered(self) -> bool:
        return self.center is not None

    def shift(self, scores: Tensor) -> Tensor:
        """Scores before their relu -> what inhibits: Z, which a gate takes as it comes."""
        return scores if self.gate else scores.relu()

    def ramp(self, shift: Tensor, delta: Tensor) -> Tensor:
        """How much of a constant value of 1 / delta passes, as a share, before it is limited to where something does."""
        return (0.5 if self.gate else 1.0) - delta * shift

    def opening(self, shift: Tensor, delta: Tensor) -> Tensor:
        """How much of a constant value of 1 / delta passes, as a share."""
        ramp = self.ramp(shift, delta)
        return ramp.clamp(0, 1) if self.gate else ramp.relu()


PUBLISHED = Form()  # made once: a call of the operator has microseconds to spare for little else


def nearest_key(distance: Tensor, visible: Tensor | None) -> Tensor:
    """The first of the nearest visible keys of each query, `(B, H, M, N)` -> `(B, H, M, 1)`; NaN is nearest of all.

    A query without a visible key has the first key.
    """
    if visible is not None:
        # An infinite distance still is less than that of an invisible key.
        distance = distance.clamp(max=torch.finfo(distance.dtype).max).masked_fill(~visible, torch.inf)
    return distance.argmin(-1, keepdim=True)
