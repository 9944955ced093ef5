"""Builds a recipe's student, an inhibitor or its softmax control, from a size, a folder or the teacher; and writes it."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import DistilBertConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..conversion import StudentOptions, fitting_inits, student_from
from ..modeling import modeling_inhibidistilbert
from ..modeling.configuration_inhibidistilbert import InhibiDistilBertConfig
from ..modeling.modeling_inhibidistilbert import SCALARS
from ..support.errors import UserError, reason
from ..support.files import replacing_folder
from ..support.foreign import read_config
from ..support.models import any_weight, load_config, load_model
from ..support.quiet import quiet_transformers
from ..support.sizes import published_sizes, size_config
from .networks import principal_axes, word_embeddings

_ARGUMENT = "--student (student.source)"
_CONFIGS: dict[str, type[PreTrainedConfig]] = {"inhibitor": InhibiDistilBertConfig, "softmax": DistilBertConfig}
_INHIBITOR_FIELDS = {item.name for item in dataclasses.fields(InhibiDistilBertConfig)} - {
    item.name for item in dataclasses.fields(DistilBertConfig)
}
# What `conversion` sets while it copies.
_CONVERSION_FIELDS = (
    *("scalars_per_head", "length_normalization", "inhibition", "center", "radii"),
    *("alpha_init", "beta_init", "gamma_init", "delta_init"),
)
# The model that weights are copied from has these fields too; the student's are its own, or the teacher's.
_NOT_CARRIED = {"architectures", "auto_map", "dtype", "model_type", "transformers_version", "id2label", "label2id"}


@strict
@dataclass
class Student:
    """What is trained.

    source: `"teacher"` (weights copied from the teacher), a published size (new, word embeddings projected from the
        teacher's), or a folder: an earlier output, or a DistilBERT or BERT to copy from.
    attention: `"inhibitor"`; `"softmax"` for transformers' DistilBERT, the control; `"own"` for the source's own class, to
        fine-tune any encoder.
    layers: the teacher's layers that the student's come from and learn from, from 0; None for all, or for evenly spaced
        ones where the teacher has more.
    fresh: projections of the attention, such as `q_lin`, that are drawn anew in place of copies.
    config: fields of the configuration. Those of inhibitor attention alone are ignored for a softmax student, so that one
        recipe serves both.
    """

    source: str = "teacher"
    attention: Literal["inhibitor", "softmax", "own"] = "inhibitor"
    layers: list[int] | None = None
    fresh: list[Literal["q_lin", "k_lin", "v_lin", "out_lin"]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)


def student_class(attention: str, head: str) -> Any:
    """head: `"Model"`, or `"ForMaskedLM"` and the like."""
    if attention == "inhibitor":
        return getattr(modeling_inhibidistilbert, f"InhibiDistilBert{head}")
    if attention == "own":
        return getattr(transformers, f"AutoModel{head.removeprefix('Model')}")
    return getattr(transformers, f"DistilBert{head}")


def build_student(
    student: Student,
    head: str,
    teacher: PreTrainedModel | None,
    teacher_source: str | None,
    device: str | None = None,
    **labels: Any,
) -> PreTrainedModel:
    """The student in float32, in evaluation mode. What no weights are found for is drawn from torch's random generator.

    teacher: gives the vocabulary and the word embeddings of a new student.
    device: `"meta"` for a copy without values, to see whether and in what shapes there could be one.
    labels: `id2label`, `label2id` or `num_labels` of its head.

    Raises:
        UserError: a source or configuration that does not fit.
    """
    kind = student_class(student.attention, head)
    fields = _config_fields(student, teacher_source) | labels
    if student.attention == "own":
        model = _pretrained(kind, _source(student, teacher_source), fields, device)
    elif student.source in published_sizes():
        model = _new(student, kind, teacher, fields)
    else:
        source = _source(student, teacher_source)
        model = _load(student, kind, source, fields, device) or _copy(student, kind, source, fields, device)
    if student.fresh:
        _renew(model, student.fresh)
    return model.float().eval()


def _config_fields(student: Student, teacher_source: str | None) -> dict[str, Any]:
    """The fields that are to differ from the source's, all known by name: others could make transformers run code."""
    kind, aliases = InhibiDistilBertConfig, {}
    if student.attention == "own":
        if student.source in published_sizes():
            raise UserError(f"student.attention: 'own' needs a folder to train, not the size {student.source!r}.")
        source = _source(student, teacher_source)
        kind = type(load_config(source, f"{_ARGUMENT}: {source!r}"))
        aliases = kind.attribute_map
    known = {item.name for item in dataclasses.fields(kind)} | aliases.keys()
    for name in student.config:
        if name not in known:
            raise UserError(f"student.config: unknown field {name!r}; see {kind.__name__}.")
    ignored = _INHIBITOR_FIELDS if student.attention == "softmax" else set()
    return {name: value for name, value in student.config.items() if name not in ignored}


def _make_config(kind: type[PreTrainedConfig], fields: dict[str, Any]) -> PreTrainedConfig:
    try:
        return kind(**fields)
    except Exception as error:  # of several libraries, for one wrong value
        raise UserError(f"student.config: {reason(error)}") from error


def _new(student: Student, kind: Any, teacher: PreTrainedModel | None, fields: dict[str, Any]) -> PreTrainedModel:
    if teacher is None:
        raise UserError(f"--teacher: a new student of size {student.source!r} needs one, for its vocabulary.")
    words = word_embeddings(teacher).weight
    size = _carried(size_config(student.source), student.attention)
    wanted = {**size, "vocab_size": len(words), "pad_token_id": teacher.config.pad_token_id, **fields}
    config = _make_config(_CONFIGS[student.attention], wanted)
    if isinstance(config, InhibiDistilBertConfig):
        fitting = fitting_inits(config.to_dict(), size["beta_init"])
        config = _make_config(type(config), {**wanted, **fitting, **fields})
    model: PreTrainedModel = kind(config)
    if config.hidden_size <= words.shape[1]:
        projected = project_embeddings(words, config.hidden_size, std=0.05)
        word_embeddings(model).weight.data.copy_(projected)
    return model


@torch.no_grad()
def project_embeddings(teacher: torch.Tensor, dim: int, std: float) -> torch.Tensor:
    """Word embeddings `(vocab, width)` on their first `dim` principal components, scaled to `std`: `(vocab, dim)`."""
    projected = (teacher.float() - teacher.float().mean(0)) @ principal_axes(teacher, dim)
    return projected * (std / projected.std())


def _carried(config: PreTrainedConfig, attention: str) -> dict[str, Any]:
    """The fields of an inhibitor's configuration that a student of this attention has too."""
    known = {item.name for item in dataclasses.fields(_CONFIGS[attention])} - _NOT_CARRIED
    return {name: value for name, value in config.to_dict().items() if name in known}


def _source(student: Student, teacher_source: str | None) -> str:
    if student.source != "teacher":
        if not (Path(student.source) / "config.json").is_file():
            sizes = ", ".join(published_sizes())
            raise UserError(
                f"{_ARGUMENT}: {student.source!r} is neither 'teacher', nor one of {sizes}, nor a folder with a config.json."
            )
        return student.source
    if teacher_source is None:
        raise UserError(f"{_ARGUMENT}: 'teacher' needs a --teacher, or give a folder.")
    return teacher_source


def _load(student: Student, kind: Any, source: str, fields: dict[str, Any], device: str | None) -> PreTrainedModel | None:
    """A folder of the student's own kind as it is; None for one to copy from."""
    try:
        raw = read_config(source)
    except Exception as error:
        raise UserError(f"{_ARGUMENT}: {source!r} does not load: {reason(error)}") from error
    if student.attention == "softmax" and raw.get("model_type") == "inhibidistilbert":
        raise UserError(f"{_ARGUMENT}: {source!r} has inhibitor attention, but student.attention is 'softmax'.")
    own_kind = raw.get("model_type") == kind.config_class.model_type and "distance_metric" not in raw
    selects = student.layers is not None and len(student.layers) != raw.get("n_layers")
    if not own_kind or (selects and student.attention == "softmax"):
        return None
    return _pretrained(kind, source, fields, device)


def _pretrained(kind: Any, source: str, fields: dict[str, Any], device: str | None) -> PreTrainedModel:
    def of_head(model: PreTrainedModel, name: str) -> bool:
        """A head for another number of classes is replaced by a new one; an encoder is not."""
        return not _in_encoder(name)

    where, shaped_by = f"{_ARGUMENT}: {source!r}", "its configuration and student.config"
    options = fields | {"dtype": torch.float32, "device_map": device}
    return load_model(kind, source, where, may_lack=any_weight, may_differ=of_head, shaped_by=shaped_by, **options).model


def _in_encoder(name: str) -> bool:
    return ".layer." in name or "embeddings." in name


def _copy(student: Student, kind: Any, source: str, fields: dict[str, Any], device: str | None) -> PreTrainedModel:
    """The weights of a DistilBERT or BERT, by way of an inhibitor student of it."""
    given = {name: fields[name] for name in _CONVERSION_FIELDS if name in fields}
    try:
        copied, _ = student_from(source, StudentOptions(layers=student.layers, dtype="float32", **given), device)
    except UserError as error:
        raise UserError(f"{_ARGUMENT}: {error}") from error
    config = _make_config(_CONFIGS[student.attention], {**_carried(copied.config, student.attention), **fields})
    with torch.device(device or "cpu"):
        model: PreTrainedModel = kind(config)
    weights = copied.state_dict()
    if student.attention == "softmax":
        weights = {name: weight for name, weight in weights.items() if not _is_scalar(name)}
    prefix, own = "distilbert.", model.state_dict()
    if isinstance(model, student_class(student.attention, "Model")):
        weights = {name.removeprefix(prefix): weight for name, weight in weights.items()}
    elif not any(name.startswith(prefix) for name in weights):
        weights = {prefix + name: weight for name, weight in weights.items()}
    # A head of another kind, or for other classes, stays as it was drawn.
    fitting = {name: weight for name, weight in weights.items() if name in own and own[name].shape == weight.shape}
    missing = model.load_state_dict(fitting, strict=False).missing_keys
    if encoder := list(filter(_in_encoder, missing)):
        raise UserError(f"{_ARGUMENT}: {source!r} does not fit student.config: {encoder[0]} has another shape.")
    return model


def _is_scalar(name: str) -> bool:
    """Of the inhibition: one dimension, or two where there are several radii."""
    return name.rpartition(".")[2] in SCALARS


def _renew(model: PreTrainedModel, projections: list[Any]) -> None:
    encoder: Any = model.base_model
    for layer in encoder.transformer.layer:
        for name in projections:
            linear = getattr(layer.attention, name)
            nn.init.normal_(linear.weight, std=model.config.initializer_range)
            nn.init.zeros_(linear.bias)


def save_student(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    dtype: torch.dtype,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a loadable folder, whole or not at all; weights of two or more dimensions are stored in `dtype`, but scalars.

    weights: in place of the model's, of which this process may hold a part only.

    It replaces a folder of that name, and the tokenizer is written without the truncation of the training.
    The configuration keeps the dtype to compute in, so a half-precision file still loads as float32.
    """
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() and tensor.ndim > 1 and not _is_scalar(name) else tensor
        for name, tensor in (model.state_dict() if weights is None else weights).items()
    }
    with replacing_folder(folder) as new:
        with quiet_transformers():
            model.save_pretrained(new, state_dict=state)
        if tokenizer.is_fast:
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()
        tokenizer.save_pretrained(new)
        if tokenizer.is_fast:
            # Without the line breaks the file is a third smaller.
            tokenizer.backend_tokenizer.save(str(new / "tokenizer.json"), pretty=False)
