"""What a student may differ in from its source, and what it is by default."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..kernels.forms import CENTERS, INHIBITIONS
from ..modeling.configuration_inhibidistilbert import LENGTH_NORMALIZATIONS
from ..support.errors import UserError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SCALAR_INITS = ("alpha_init", "beta_init", "gamma_init", "delta_init")
# What the paper has where one may choose.
_PUBLISHED = {"inhibition": "threshold", "center": "mean", "radii": 1}

# What the distillation study recommends for a new student: sums that are not divided by the number of keys do not carry over
# from sentences to long texts.
RECOMMENDED_NORMALIZATION = "mean"
RECOMMENDED_BETA_INIT = 1.5
# At so many visible keys, a sentence, the fitting `beta_init` of every normalisation gives sums of the same size.
SENTENCE_KEYS = 25


def fitting_beta_init(length_normalization: str, beta_of_mean: float = RECOMMENDED_BETA_INIT) -> float:
    """The `beta_init` with which a sentence gives sums of the size that `beta_of_mean` gives where they are divided by n.

    Sums that are divided by what passes are means of values already: 1.
    """
    if length_normalization == "passed":
        return 1.0
    return beta_of_mean / {"mean": 1, "sqrt": SENTENCE_KEYS**0.5, "none": SENTENCE_KEYS}[length_normalization]


def fitting_inits(fields: Mapping[str, Any], beta_of_mean: float = RECOMMENDED_BETA_INIT) -> dict[str, Any]:
    """The `alpha_init` and `beta_init` that fit the inhibition of these fields of `InhibiDistilBertConfig`.

    A gate stands half a value lower than a threshold; scores that count from the nearest key are not below 0. Each further
    radius starts 0.6 inside the one before.
    """
    first = 0.5 - 0.5 * (fields["inhibition"] == "gate") - 0.5 * (fields["center"] == "least")
    alphas = [round(first + 0.6 * radius, 6) for radius in range(fields["radii"])]
    return {
        "alpha_init": alphas if len(alphas) > 1 else first,
        "beta_init": fitting_beta_init(fields["length_normalization"], beta_of_mean),
    }


@dataclass(frozen=True)
class StudentOptions:
    """How the student differs from its source.

    Args:
        layers: the source's layers to keep, in this order, counted from 0; None keeps all.
        head: keep the source's head where the student has the same one; otherwise write the bare encoder.
        dtype: `"float32"`, `"float16"` or `"bfloat16"`; None keeps the source's. The attention's scalars are always float32.
        scalars_per_head: see `InhibiDistilBertConfig`; None means True, as in the distillation study.
        length_normalization: see `InhibiDistilBertConfig`; None means `"mean"`, as the distillation study recommends.
        inhibition, center, radii: see `InhibiDistilBertConfig`; None means the published form.
        alpha_init, beta_init: a number, or one for each radius; None means what fits the form, see `fitting_inits`.
        keep_class: keep the source's own class, as all but DistilBERT and BERT do anyway; see `hosts.inhibit`.
        inhibited_layers: the self-attentions of such a student that inhibit, counted from 0; the others keep softmax. None
            means all.
        gamma_init, delta_init: None means the default of `InhibiDistilBertConfig`; gamma_init may be one for each radius.

    A source that has alpha, beta and gamma itself keeps them, one of each a layer, its form, and its sums, which are not
    divided.
    """

    layers: Sequence[int] | None = None
    head: bool = True
    dtype: str | None = None
    scalars_per_head: bool | None = None
    length_normalization: str | None = None
    inhibition: str | None = None
    center: str | None = None
    radii: int | None = None
    alpha_init: float | Sequence[float] | None = None
    beta_init: float | Sequence[float] | None = None
    gamma_init: float | Sequence[float] | None = None
    delta_init: float | None = None
    keep_class: bool = False
    inhibited_layers: Sequence[int] | None = None

    def check(self) -> None:
        """Raise `UserError` for a value that no source could make right."""
        for name, known in (
            ("dtype", DTYPES),
            ("length_normalization", LENGTH_NORMALIZATIONS),
            ("inhibition", INHIBITIONS),
            ("center", CENTERS),
        ):
            value = getattr(self, name)
            if value is not None and value not in tuple(known):
                raise UserError(f"{_option(name)} must be one of {', '.join(known)}, got {value!r}.")
        if self.radii is not None and not (type(self.radii) is int and self.radii >= 1):
            raise UserError(f"--radii must be an integer of at least 1, got {self.radii!r}.")
        for name, value in self.given_inits().items():
            self._check_init(name, value)
        if self.delta_init is not None and self.length_normalization != "passed":
            raise UserError("--delta-init needs --length-normalization passed: nothing else has a delta; leave it out.")

    def _check_init(self, name: str, value: Any) -> None:
        numbers, radii = value if isinstance(value, list | tuple) else [value], self.radii or 1
        if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
            raise UserError(f"{_option(name)} must be a finite number, got {value}.")
        if numbers is value and (name == "delta_init" or len(numbers) != radii):
            wanted = "" if name == "delta_init" else f", or one for each of {radii} radii (--radii)"
            raise UserError(f"{_option(name)} must be a number{wanted}, got {list(numbers)}.")

    def check_with_scalars(self, source: str) -> None:
        """Raise `UserError` for what contradicts a source that has alpha, beta and gamma itself."""
        for name, published in _PUBLISHED.items():
            value = getattr(self, name)
            if value not in (None, published):
                raise UserError(
                    f"--{name} {value} does not fit SOURCE {source!r}: it has the form of the paper; leave it out."
                )
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
        fields = {
            "scalars_per_head": self.scalars_per_head is not False,
            "length_normalization": self.length_normalization or RECOMMENDED_NORMALIZATION,
        } | {name: getattr(self, name) or published for name, published in _PUBLISHED.items()}
        return fields | fitting_inits(fields) | self.given_inits()

    def given_inits(self) -> dict[str, Any]:
        """The initial scalars that are not None."""
        return {name: value for name in _SCALAR_INITS if (value := getattr(self, name)) is not None}


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
