"""The format of the inhibitor's authors: a DistilBERT checkpoint with inhibitor attention.

Their config.json has `model_type: distilbert` and four fields more; their weights have alpha, beta and gamma of shape ()
beside `q_lin`; their classes are DistilBERT's with an i in front. Source: the published checkpoint and research code of
Zhang and Brännvall, "InhibiDistilbert" (arXiv 2503.15983).
"""

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ..modeling.modeling_inhibidistilbert import SCALARS as ALL_SCALARS
from ..support.errors import UserError

CLASS_PREFIX = "iDistilBert"
SCALARS = ALL_SCALARS[:3]  # those of the paper

# Their code knows other metrics and functions as well; these are the inhibitor's.
_INHIBITOR = {"distance_metric": "manhattan_distance", "activation_function": "relu"}
# Their name of a configuration field: the name it has here.
_SWITCHES = {"signed_inhibitor": "signed", "center": "centered"}

_PADDING_COUNTS = (
    "The source's code averages scores over padding too, the student over real tokens only: outputs agree without padding."
)


def is_authors_format(fields: Mapping[str, Any]) -> bool:
    """Whether the content of a config.json is of this format, supported or not."""
    return "distance_metric" in fields or "signed_inhibitor" in fields


def check_fields(source: str, fields: Mapping[str, Any]) -> None:
    """Raise `UserError` when the config.json of `source` asks for anything but the inhibitor."""
    if fields["model_type"] != "distilbert":
        raise UserError(
            f"SOURCE {source!r} has inhibitor fields and model_type {fields['model_type']!r}; they are supported with "
            "'distilbert' only."
        )
    for name, supported in _INHIBITOR.items():
        if fields.get(name) != supported:
            raise UserError(f"SOURCE {source!r} has {name} {fields.get(name)!r}; only {supported!r} is supported.")
    for name in _SWITCHES:
        if not isinstance(fields.get(name), bool):
            raise UserError(f"SOURCE {source!r}: {name} in its config.json must be true or false, got {fields.get(name)!r}.")


def student_fields(fields: Mapping[str, Any]) -> dict[str, bool]:
    """`signed` and `centered` of `InhibiDistilBertConfig`."""
    return {ours: fields[theirs] for theirs, ours in _SWITCHES.items()}


def with_scalars(source_class: type[transformers.PreTrainedModel]) -> type[transformers.PreTrainedModel]:
    """`source_class`, one of DistilBERT's, with alpha, beta and gamma in every layer, so that they are loaded too."""

    def init(self: Any, config: transformers.DistilBertConfig) -> None:
        source_class.__init__(self, config)
        for layer in self.base_model.transformer.layer:
            for name in SCALARS:
                layer.attention.register_parameter(name, nn.Parameter(torch.zeros(())))

    members = {"__init__": init, "_keep_in_fp32_modules_strict": list(SCALARS)}
    return type(source_class.__name__, (source_class,), members)


def student_scalars(weights: Mapping[str, Tensor], scalars: int) -> tuple[dict[str, Tensor], list[str]]:
    """alpha, beta and gamma among a student's `weights`, repeated to shape `(scalars,)`, and the warnings.

    Their code adds alpha to the scores only where it is positive, so any other alpha becomes 0.
    """
    converted, not_positive = {}, []
    for name, weight in weights.items():
        kind = name.rpartition(".")[2]
        if kind not in SCALARS:
            continue
        value = weight.item()
        if kind == "alpha" and value <= 0:
            not_positive.append(f"{name} ({value:.4g})")
            weight = torch.zeros_like(weight)
        converted[name] = weight.repeat(scalars)
    warnings = []
    if not_positive:
        warnings.append(f"The source's code adds no alpha that is not positive, so it is 0: {', '.join(not_positive)}.")
    return converted, warnings


def padding_warnings(fields: Mapping[str, Any]) -> list[str]:
    """Where the student's outputs differ from those of the source's own code."""
    return [_PADDING_COUNTS] if fields["center"] else []
