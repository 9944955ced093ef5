"""Makes the student: shared weights copied, the rest new, and a report of both."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from ..modeling.modeling_inhibidistilbert import InhibiDistilBertPreTrainedModel
from ..support.errors import UserError, reason
from ..support.models import some
from . import authors_format
from .mapping import bert_to_distilbert, student_config, student_names
from .options import DTYPES, StudentOptions
from .source import load_source, model_classes, read_source_config

_LAYER_NORM_EPS = 1e-12


@dataclass(frozen=True)
class ConversionReport:
    """What became of every parameter.

    Args:
        source: the folder or Hub id read.
        source_class, student_class: names of the two model classes.
        source_layers: how many layers the source has; `layers`: which of them the student's are.
        copied, new: the student's parameters, tied ones once.
        left_out: the source's parameters that the student does not have.
        warnings: one sentence each.
        parameters_copied, parameters_new: counts of numbers, not of tensors.
    """

    source: str
    source_class: str
    student_class: str
    source_layers: int
    layers: list[int]
    copied: list[str]
    new: list[str]
    left_out: list[str]
    parameters_copied: int
    parameters_new: int
    warnings: list[str] = field(default_factory=list)


def student_from(
    source: str | os.PathLike, options: StudentOptions | None = None, device: str | None = None
) -> tuple[InhibiDistilBertPreTrainedModel, ConversionReport]:
    """An inhibitor student of a DistilBERT or BERT checkpoint, in evaluation mode, and the report. Writes nothing.

    The student's class follows the source's `architectures`; a head that the source lacks or has in another form is drawn
    from torch's random generator. Runs no code from the source.

    device: `"meta"` for one without values: the source's weights are looked for and not read.

    Raises:
        UserError: for a source that is missing, damaged or not supported, and for options that do not fit it.
    """
    options = options or StudentOptions()
    options.check()
    source = str(source)
    config = read_source_config(source)
    layers = _check_layers(options.layers, config)
    has_scalars = authors_format.is_authors_format(config.to_dict())
    if has_scalars:
        options.check_with_scalars(source)
    source_class, student_class = model_classes(config, options.head)
    teacher, missing, unexpected = load_source(source, source_class, config, device)
    # Each tied parameter once. In float32, so that folding rounds once; what is cast back unchanged is exact.
    state = {name: parameter.detach().float() for name, parameter in teacher.named_parameters()}
    names = student_names(state, layers)
    _check_complete(source, missing, names)
    if config.model_type == "bert":
        weights = bert_to_distilbert(state, layers)
    else:
        weights = {ours: state[theirs] for ours, theirs in names.items()}
    warnings: list[str] = []
    if has_scalars and device != "meta":
        count = config.num_attention_heads if options.scalars_per_head else 1
        scalars, warnings = authors_format.student_scalars(weights, count)
        weights |= scalars
    with torch.device(device or "cpu"):
        student = _build(source, student_class, config, layers, options)
    if device != "meta":
        student.load_state_dict(weights, strict=False)
    student.to(DTYPES[options.dtype] if options.dtype else teacher.dtype)  # type: ignore[arg-type]

    left_out = [name for name in state if name not in missing and name not in names.values()]
    # Old checkpoints store the position indices, which are no parameters.
    left_out += sorted(name for name in unexpected if not name.endswith("position_ids"))
    sizes = {name: parameter.numel() for name, parameter in student.named_parameters()}
    new = [name for name in sizes if name not in weights]
    report = ConversionReport(
        source=source,
        source_class=source_class.__name__,
        student_class=student_class.__name__,
        source_layers=config.num_hidden_layers,
        layers=layers,
        copied=[name for name in sizes if name in weights],
        new=new,
        left_out=left_out,
        parameters_copied=sum(size for name, size in sizes.items() if name in weights),
        parameters_new=sum(sizes[name] for name in new),
        warnings=warnings + _warnings(config, source_class.__name__, new),
    )
    return student.eval(), report


def _check_layers(layers: Sequence[int] | None, config: transformers.PreTrainedConfig) -> list[int]:
    count = config.num_hidden_layers
    if layers is None:
        return list(range(count))
    if not layers or not all(isinstance(layer, int) and 0 <= layer < count for layer in layers):
        raise UserError(
            f"--layers must be one or more integers from 0 to {count - 1}, the source's layers; got {list(layers)}."
        )
    return list(layers)


def _check_complete(source: str, missing: set[str], names: Mapping[str, str]) -> None:
    needed = set(names.values())
    lost = sorted(name for name in missing if name in needed or "token_type_embeddings" in name)
    if lost:
        raise UserError(f"SOURCE {source!r}: its weights lack {some(lost)}; give a complete checkpoint.")


def _build(
    source: str,
    student_class: type[InhibiDistilBertPreTrainedModel],
    config: transformers.PreTrainedConfig,
    layers: Sequence[int],
    options: StudentOptions,
) -> InhibiDistilBertPreTrainedModel:
    """The student before anything is copied."""
    try:
        return student_class(student_config(config, layers, options))
    except (StrictDataclassError, ValueError) as error:
        raise UserError(f"SOURCE {source!r}: {reason(error)}") from error


def _warnings(config: transformers.PreTrainedConfig, source_class: str, new: Sequence[str]) -> list[str]:
    warnings = []
    if authors_format.is_authors_format(config.to_dict()):
        warnings += authors_format.padding_warnings(config.to_dict())
    if config.model_type == "bert" and config.type_vocab_size > 1:
        warnings.append(
            "Pair inputs lose their segments: token_type_ids are not supported, every token gets segment embedding 0."
        )
    eps = getattr(config, "layer_norm_eps", _LAYER_NORM_EPS)
    if eps != _LAYER_NORM_EPS:
        warnings.append(f"The source's layer_norm_eps is {eps}; the student's is {_LAYER_NORM_EPS}, so activations differ.")
    if any("classifier." in name for name in new):
        warnings.append(
            f"The head of {source_class} stands on BERT's pooler, which the student has not: its classifier is left out and "
            "the student's is new, so train it before use."
        )
    return warnings
