"""Makes a student of a model of transformers' own classes: the class and the weights stay, attention gets its scalars."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from ..modeling.attention_interface import INHIBITION
from ..modeling.configuration_inhibidistilbert import InhibiDistilBertConfig
from ..modeling.modeling_inhibited import FORM, NAMES, InhibitorNorm, attentions, inhibit_modules
from ..support.errors import UserError, reason
from ..support.files import is_regular, read_json
from ..support.foreign import GENERATION, choices
from ..support.models import Loaded, load_model
from .options import DTYPES, StudentOptions
from .source import read_fields
from .student import ConversionReport

_OPTIONS = {*FORM} - {"centered", "signed"}


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
    if unknown := options.keys() - _OPTIONS:
        raise TypeError(f"inhibit() has no argument {min(unknown)!r}.")
    chosen = StudentOptions(**options)
    fields = form_fields(chosen)
    if isinstance(model, PreTrainedModel):
        return _inhibited(model, fields, layers, "model", "layers")
    if not isinstance(model, str | os.PathLike):
        raise UserError(f"model must be a model of transformers, a folder or a Hub id, got {type(model).__name__}.")
    return _inhibited(load_host(str(model)).model, fields, layers, f"SOURCE {str(model)!r}", "layers")


def host_student(source: str, options: StudentOptions) -> tuple[PreTrainedModel, ConversionReport]:
    """As `student_from`, a student in the source's own class."""
    for name, value, default in (("--layers", options.layers, None), ("--no-head", options.head, True)):
        if value != default:
            raise UserError(f"{name} does not fit SOURCE {source!r}: its class is kept, and so is all of it; leave it out.")
    fields = form_fields(options)
    model, _, unexpected = load_host(source)
    copied = {name: parameter.numel() for name, parameter in model.named_parameters()}
    _inhibited(model, fields, options.inhibited_layers, f"SOURCE {source!r}", "--inhibited-layers")
    if options.dtype:
        model.to(DTYPES[options.dtype])
    new = {name: parameter.numel() for name, parameter in model.named_parameters() if name not in copied}
    within = [module for module, is_self in attentions(model) if is_self]
    report = ConversionReport(
        source=source,
        source_class=type(model).__name__,
        student_class=type(model).__name__,
        source_layers=len(within),
        layers=[place for place, module in enumerate(within) if isinstance(getattr(module, INHIBITION), InhibitorNorm)],
        copied=list(copied),
        new=list(new),
        left_out=sorted(unexpected),
        parameters_copied=sum(copied.values()),
        parameters_new=sum(new.values()),
    )
    return model.eval(), report


def form_fields(options: StudentOptions) -> dict[str, Any]:
    """The fields of `FORM` that these options mean. Raises `UserError`."""
    options.check()
    try:
        config = InhibiDistilBertConfig(**options.inhibitor_fields(has_scalars=False))
    except (StrictDataclassError, ValueError) as error:
        raise UserError(reason(error)) from error
    return {name: getattr(config, name) for name in FORM}


def _inhibited(
    model: PreTrainedModel, fields: dict[str, Any], layers: Sequence[int] | None, where: str, argument: str
) -> PreTrainedModel:
    _check_host(model, where)
    count = sum(within for _, within in attentions(model))
    if layers is not None and not (layers and all(type(layer) is int and 0 <= layer < count for layer in layers)):
        raise UserError(f"{argument} must be one or more of the model's self-attentions, 0 to {count - 1}, got {layers!r}.")
    config: Any = model.config
    config.inhibitor = fields | {"layers": None if layers is None else sorted(set(layers))}
    inhibit_modules(model)
    model.set_attn_implementation(NAMES[0])
    return model


def _check_host(model: PreTrainedModel, where: str) -> None:
    name = type(model).__name__
    if hasattr(model.config, "inhibitor"):
        raise UserError(f"{where} is a student already: its configuration has the field inhibitor.")
    if not type(model).__module__.startswith("transformers."):
        raise UserError(f"{where} must be of one of transformers' own classes, got {name} of {type(model).__module__}.")
    if not any(within for _, within in attentions(model)):
        raise UserError(
            f"{where} must have self-attention that goes through transformers' attention interface, as GPT-2, Llama, ViT "
            f"and BERT have; {name} has none."
        )


def load_host(source: str) -> Loaded:
    """The model of a folder or Hub id, in its own class and dtype. Runs no code from it. Raises `UserError`."""
    fields = read_fields(source)
    if "inhibitor" in fields:
        raise UserError(f"SOURCE {source!r} is a student already: its config.json has the field inhibitor.")
    kind = getattr(transformers, str((fields.get("architectures") or [""])[0]), None)
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        kind = transformers.AutoModel
    loaded = load_model(kind, source, f"SOURCE {source!r}: the checkpoint", dtype="auto")
    if loaded.model.can_generate() and is_regular(Path(source, GENERATION)):
        loaded.model.generation_config = _generation(source)
    return loaded


def _generation(source: str) -> transformers.GenerationConfig:
    for name, problem in choices(Path(source)):
        if name == GENERATION:
            raise UserError(f"SOURCE {source!r}: {name}: {problem}")
    try:
        return transformers.GenerationConfig.from_dict(read_json(Path(source, GENERATION)))
    except Exception as error:  # as the class stumbles over what it has no check for
        raise UserError(f"SOURCE {source!r}: its {GENERATION} does not load: {reason(error)}") from error
