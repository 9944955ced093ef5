"""What a student may differ in from its source, and what it is by default."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..modeling.configuration_inhibidistilbert import LENGTH_NORMALIZATIONS
from ..support.errors import UserError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SCALAR_INITS = ("alpha_init", "beta_init", "gamma_init")

# What the distillation study recommends for a new student: sums that are not divided by the number of keys do not carry over
# from sentences to long texts.
RECOMMENDED_NORMALIZATION = "mean"
RECOMMENDED_BETA_INIT = 1.5
# At so many visible keys, a sentence, the fitting `beta_init` of every normalisation gives sums of the same size.
SENTENCE_KEYS = 25


def fitting_beta_init(length_normalization: str, beta_of_mean: float = RECOMMENDED_BETA_INIT) -> float:
    """The `beta_init` with which a sentence gives sums of the size that `beta_of_mean` gives where they are divided by n."""
    return beta_of_mean / {"mean": 1, "sqrt": SENTENCE_KEYS**0.5, "none": SENTENCE_KEYS}[length_normalization]


@dataclass(frozen=True)
class StudentOptions:
    """How the student differs from its source.

    Args:
        layers: the source's layers to keep, in this order, counted from 0; None keeps all.
        head: keep the source's head where the student has the same one; otherwise write the bare encoder.
        dtype: `"float32"`, `"float16"` or `"bfloat16"`; None keeps the source's. alpha, beta, gamma are always float32.
        scalars_per_head: see `InhibiDistilBertConfig`; None means True, as in the distillation study.
        length_normalization: see `InhibiDistilBertConfig`; None means `"mean"`, as the distillation study recommends.
        alpha_init, gamma_init: None means the default of `InhibiDistilBertConfig`.
        beta_init: None means what fits the normalisation, see `fitting_beta_init`.

    A source that has alpha, beta and gamma itself keeps them, one of each a layer, and its sums, which are not divided.
    """

    layers: Sequence[int] | None = None
    head: bool = True
    dtype: str | None = None
    scalars_per_head: bool | None = None
    length_normalization: str | None = None
    alpha_init: float | None = None
    beta_init: float | None = None
    gamma_init: float | None = None

    def check(self) -> None:
        """Raise `UserError` for a value that no source could make right."""
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UserError(f"--dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}.")
        if self.length_normalization not in (None, *LENGTH_NORMALIZATIONS):
            known = ", ".join(LENGTH_NORMALIZATIONS)
            raise UserError(f"--length-normalization must be one of {known}, got {self.length_normalization!r}.")
        for name, value in self.given_inits().items():
            if not math.isfinite(value):
                raise UserError(f"--{name.replace('_', '-')} must be a finite number, got {value}.")

    def check_with_scalars(self, source: str) -> None:
        """Raise `UserError` for what contradicts a source that has alpha, beta and gamma itself."""
        for name in self.given_inits():
            scalar = name.removesuffix("_init")
            raise UserError(f"--{scalar}-init does not fit SOURCE {source!r}: its weights hold {scalar}; leave it out.")
        if self.length_normalization not in (None, "none"):
            raise UserError(
                f"--length-normalization {self.length_normalization} does not fit SOURCE {source!r}: its sums are not "
                "normalised; leave it out."
            )

    def inhibitor_fields(self, has_scalars: bool) -> dict[str, Any]:
        """The fields of `InhibiDistilBertConfig` for a source with or without scalars of its own."""
        if has_scalars:
            return {"scalars_per_head": bool(self.scalars_per_head), "length_normalization": "none"}
        normalization = self.length_normalization or RECOMMENDED_NORMALIZATION
        return {
            "scalars_per_head": self.scalars_per_head is not False,
            "length_normalization": normalization,
            "beta_init": fitting_beta_init(normalization),
        } | self.given_inits()

    def given_inits(self) -> dict[str, Any]:
        """The initial scalars that are not None."""
        return {name: value for name in _SCALAR_INITS if (value := getattr(self, name)) is not None}
