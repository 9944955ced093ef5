"""Makes a student of a model of transformers' own classes: the class and the weights stay, attention gets its scalars."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from ..modeling.configuration_inhibidistilbert import InhibiDistilBertConfig
from ..modeling.modeling_inhibited import NAMES, attentions, inhibit_modules
from ..support.errors import UserError, reason
from ..support.foreign import read_config
from ..support.models import load_model
from .options import StudentOptions

# The fields of InhibiDistilBertConfig that a layer's attention is made of.
_FORM = (
    *("inhibition", "center", "centered", "signed", "radii", "length_normalization", "scalars_per_head"),
    *("alpha_init", "beta_init", "gamma_init", "delta_init"),
)


def inhibit(
    model: PreTrainedModel | str | os.PathLike, *, layers: Sequence[int] | None = None, **options: Any
) -> PreTrainedModel:
    """Make a student of a model that takes its attention from transformers' table, such as GPT-2, Llama, ViT or BERT.

        student = inhibit("gpt2")
        student.save_pretrained("student")
        AutoModelForCausalLM.from_pretrained("student", trust_remote_code=True)

    The student is an instance of the model's own class, with alpha, beta and gamma in each self-attention; cross-attention
    keeps softmax. Train it before use.

    Args:
        model: it is changed itself, and returned; or a folder or Hub id, whose code is not run.
        layers: the self-attentions to change, in the model's order from 0; the others keep softmax. None: all.
        options: `inhibition`, `center`, `radii`, `length_normalization`, `scalars_per_head`, `alpha_init`, `beta_init`,
            `gamma_init` and `delta_init` of `StudentOptions`.

    Raises:
        UserError: the model is not of a class of transformers that has such attention, or is a student already; the folder
            does not load; an option is out of its range.
    """
    fields = _form(options)
    if not isinstance(model, PreTrainedModel):
        model = load_host(str(model))
    _check_host(model)
    count = sum(within for _, within in attentions(model))
    if layers is not None and not (layers and all(type(layer) is int and 0 <= layer < count for layer in layers)):
        raise UserError(f"layers must be one or more of the model's self-attentions, 0 to {count - 1}, got {layers!r}.")
    config: Any = model.config
    config.inhibitor = fields | {"layers": None if layers is None else sorted(set(layers))}
    inhibit_modules(model)
    model.set_attn_implementation(NAMES[0])
    return model


def _form(options: dict[str, Any]) -> dict[str, Any]:
    """The fields of `_FORM` that these options mean."""
    if unknown := options.keys() - set(_FORM) | options.keys() & {"centered", "signed"}:
        raise TypeError(f"inhibit() has no argument {min(unknown)!r}.")
    chosen = StudentOptions(**options)
    chosen.check()
    try:
        config = InhibiDistilBertConfig(**chosen.inhibitor_fields(has_scalars=False))
    except (StrictDataclassError, ValueError) as error:
        raise UserError(reason(error)) from error
    return {name: getattr(config, name) for name in _FORM}


def _check_host(model: PreTrainedModel) -> None:
    name = type(model).__name__
    if hasattr(model.config, "inhibitor"):
        raise UserError(f"model is a student already: its {name} has config.inhibitor {model.config.inhibitor}.")
    if not type(model).__module__.startswith("transformers."):
        raise UserError(f"model must be of one of transformers' own classes, got {name} of {type(model).__module__}.")
    if not any(within for _, within in attentions(model)):
        raise UserError(
            f"model has no self-attention that goes through transformers' attention interface, got {name}; those that take "
            "attn_implementation='sdpa' through it do."
        )


def load_host(source: str) -> PreTrainedModel:
    """The model of a folder or Hub id, in its own class and dtype. Runs no code from it. Raises `UserError`."""
    try:
        raw = read_config(source)
    except (OSError, ValueError, UserError) as error:
        raise UserError(f"SOURCE {source!r} cannot be read: {reason(error)}") from error
    if "inhibitor" in raw:
        raise UserError(f"SOURCE {source!r} is a student already: its config.json has inhibitor {raw['inhibitor']!r}.")
    architecture = str((raw.get("architectures") or [""])[0])
    kind = getattr(transformers, architecture, None)
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        kind = transformers.AutoModel
    model = load_model(kind, source, f"SOURCE {source!r}: the checkpoint", dtype="auto").model
    if model.can_generate() and Path(source, "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(source)
    return model
