"""Makes an inhibitor student from a DistilBERT or BERT checkpoint: shared weights copied, attention scalars new.

A checkpoint of the inhibitor's authors is such a student already: its scalars are copied too (see `authors_format`).
"""

import dataclasses
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor
from transformers.utils import has_file

from . import authors_format
from .errors import UserError, reason
from .foreign import load_pretrained, plain_config, read_config
from .modeling import modeling_inhibidistilbert
from .modeling.configuration_inhibidistilbert import LENGTH_NORMALIZATIONS, InhibiDistilBertConfig
from .modeling.modeling_inhibidistilbert import InhibiDistilBertPreTrainedModel
from .quiet import quiet_transformers

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MODEL_INPUTS = ["input_ids", "attention_mask"]

# Heads that have a counterpart here, by model type. A source with another head is read as the bare encoder.
_SHARED_HEADS = (
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)
_HEADS = {"distilbert": _SHARED_HEADS, "bert": ("ForPreTraining", *_SHARED_HEADS)}
_CLASS_PREFIX = {"distilbert": "DistilBert", "bert": "Bert"}
_SCALAR_INITS = ("alpha_init", "beta_init", "gamma_init")

# What the distillation study recommends for a new student: sums that are not divided by the number of keys do not carry over
# from sentences to long texts.
RECOMMENDED_NORMALIZATION = "mean"
RECOMMENDED_BETA_INIT = 1.5
# At so many visible keys, a sentence, the fitting `beta_init` of every normalisation gives sums of the same size.
SENTENCE_KEYS = 25

# BERT's name of a configuration field: the name it has here. Fields of the same name are carried as well.
_BERT_FIELDS = {
    "hidden_size": "dim",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "classifier_dropout": "seq_classif_dropout",
}
_NOT_CARRIED = {"architectures", "dtype", "n_layers", "transformers_version"}

# Part of a parameter's name in BERT: in DistilBERT. The longer of two that overlap stands first.
_BERT_NAMES = {
    "encoder.layer.": "transformer.layer.",
    "attention.self.query.": "attention.q_lin.",
    "attention.self.key.": "attention.k_lin.",
    "attention.self.value.": "attention.v_lin.",
    "attention.output.dense.": "attention.out_lin.",
    "attention.output.LayerNorm.": "sa_layer_norm.",
    "intermediate.dense.": "ffn.lin1.",
    "output.dense.": "ffn.lin2.",
    "output.LayerNorm.": "output_layer_norm.",
    "cls.predictions.transform.dense.": "vocab_transform.",
    "cls.predictions.transform.LayerNorm.": "vocab_layer_norm.",
    # Where the two names of the bias are not tied, the later one is what the model computes with.
    "cls.predictions.bias": "vocab_projector.bias",
    "cls.predictions.decoder.": "vocab_projector.",
}
_POOLER = re.compile(r"^(bert\.)?pooler\.")
_DROPPED = re.compile(
    r"^((bert\.)?pooler\.|cls\.seq_relationship\.|(bert\.)?embeddings\.(token_type_embeddings\.|position_ids$))"
)
_LAYER = re.compile(r"^(.*\btransformer\.layer\.)(\d+)(\..*)$")
_LAYER_NORM_EPS = 1e-12

# What damaged weights, and values of config.json that torch refuses, have been seen to raise.
_LOADING_ERRORS = (
    AssertionError,
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
    ValueError,
    SafetensorError,
    UnpicklingError,
)


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


def student_names(source_names: Iterable[str], layers: Sequence[int]) -> dict[str, str]:
    """`{student's parameter: source's parameter}` for the names of a BERT or DistilBERT state dict.

    Layer `layers[i]` of the source becomes layer i. What the student does not have is absent: other layers, BERT's pooler
    and the classifier behind it, its segment embeddings and its next-sentence head.
    """
    source_names = list(source_names)
    pooled = any(_POOLER.match(name) for name in source_names)
    names = {}
    for source in source_names:
        if _DROPPED.match(source) or (pooled and source.startswith("classifier.")):
            continue
        student = re.sub(r"^bert\.", "distilbert.", source)
        for theirs, ours in _BERT_NAMES.items():
            student = student.replace(theirs, ours)
        in_layer = _LAYER.match(student)
        if in_layer is None:
            names[student] = source
            continue
        for place, layer in enumerate(layers):
            if layer == int(in_layer[2]):
                names[f"{in_layer[1]}{place}{in_layer[3]}"] = source
    return names


def bert_to_distilbert(state_dict: Mapping[str, Tensor], layers: Sequence[int]) -> dict[str, Tensor]:
    """A BERT state dict, with or without a head, under DistilBERT's names and with the chosen `layers` only.

    Segment embedding 0 is added to every position embedding, so that single segments are embedded as before.

    Raises:
        KeyError: when position or segment embeddings are absent.
    """
    weights = {student: state_dict[source] for student, source in student_names(state_dict, layers).items()}
    prefix = "bert." if "bert.embeddings.position_embeddings.weight" in state_dict else ""
    positions = state_dict[f"{prefix}embeddings.position_embeddings.weight"]
    segment = state_dict[f"{prefix}embeddings.token_type_embeddings.weight"][0]
    folded = (positions.float() + segment.float()).to(positions.dtype)
    weights[f"{'distilbert.' if prefix else ''}embeddings.position_embeddings.weight"] = folded
    return weights


def student_from(
    source: str | os.PathLike, options: StudentOptions | None = None
) -> tuple[InhibiDistilBertPreTrainedModel, ConversionReport]:
    """An inhibitor student of a DistilBERT or BERT checkpoint, in evaluation mode, and the report. Writes nothing.

    The student's class follows the source's `architectures`; a head that the source lacks or has in another form is drawn
    from torch's random generator. Runs no code from the source.

    Raises:
        UserError: for a source that is missing, damaged or not supported, and for options that do not fit it.
    """
    options = options or StudentOptions()
    options.check()
    source = str(source)
    config = _read_config(source)
    layers = _check_layers(options.layers, config)
    has_scalars = authors_format.is_authors_format(config.to_dict())
    if has_scalars:
        options.check_with_scalars(source)
    source_class, student_class = _classes(config, options.head)
    teacher, missing, unexpected = _load_source(source, source_class, config)
    # Each tied parameter once. In float32, so that folding rounds once; what is cast back unchanged is exact.
    state = {name: parameter.detach().float() for name, parameter in teacher.named_parameters()}
    names = student_names(state, layers)
    _check_complete(source, missing, names)
    if config.model_type == "bert":
        weights = bert_to_distilbert(state, layers)
    else:
        weights = {ours: state[theirs] for ours, theirs in names.items()}
    warnings: list[str] = []
    if has_scalars:
        count = config.num_attention_heads if options.scalars_per_head else 1
        scalars, warnings = authors_format.student_scalars(source, weights, count)
        weights |= scalars
    student = _build(source, student_class, config, layers, options)
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


def convert_checkpoint(
    source: str | os.PathLike,
    output_dir: str | os.PathLike,
    options: StudentOptions | None = None,
    *,
    overwrite: bool = False,
) -> ConversionReport:
    """Write the student of `source` to `output_dir`: weights, configuration, source code and tokenizer.

    The tokenizer emits no `token_type_ids` and its `model_max_length` is the number of positions. The folder appears
    complete or not at all. An existing one that is not empty is replaced only with `overwrite`, and only if it holds a
    checkpoint (a `config.json`).

    Raises:
        UserError: as `student_from`, and for an output folder that cannot be used.
    """
    output = Path(output_dir).resolve()
    _check_output(source, output, overwrite)
    student, report = student_from(source, options)
    tokenizer = _load_tokenizer(str(source), student.config.max_position_embeddings)
    if tokenizer is None:
        report.warnings.append("The source has no tokenizer, so none was written: add one before using the model on text.")
    with _staged(output) as folder:
        student.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    return report


def _read_config(source: str) -> transformers.PreTrainedConfig:
    """The source's configuration, known to be of a supported model."""
    folder = Path(source)
    if folder.is_file():
        raise UserError(f"SOURCE {source!r} is a file; give the folder written by save_pretrained, or a Hub id.")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(
            f"SOURCE {source!r}: the folder has no config.json; give a folder written by save_pretrained, or a Hub id."
        )
    try:
        raw = read_config(source)
    except (OSError, ValueError) as error:
        kind = "cannot be read" if folder.is_dir() else "is not a folder, and could not be read from the Hub as a model id"
        raise UserError(f"SOURCE {source!r} {kind}: {reason(error)}") from error
    _check_supported(source, raw)
    config_class = transformers.BertConfig if raw["model_type"] == "bert" else transformers.DistilBertConfig
    try:
        config = config_class.from_dict(plain_config(raw))
    except (StrictDataclassError, ValueError) as error:
        raise UserError(f"SOURCE {source!r}: its config.json is not valid: {reason(error)}") from error
    if config.hidden_size % config.num_attention_heads:
        raise UserError(
            f"SOURCE {source!r}: the number of attention heads must divide the hidden size evenly, but its config.json says "
            f"{config.num_attention_heads} heads and hidden size {config.hidden_size}."
        )
    return config


def _check_supported(source: str, raw: Mapping[str, Any]) -> None:
    model_type = raw.get("model_type")
    if model_type not in _HEADS:
        raise UserError(f"SOURCE {source!r} has model_type {model_type!r}; supported are {', '.join(_HEADS)}.")
    if authors_format.is_authors_format(raw):
        authors_format.check_fields(source, raw)
    positions = raw.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        raise UserError(f"SOURCE {source!r} has position_embedding_type {positions!r}; only 'absolute' is supported.")
    if raw.get("is_decoder") or raw.get("add_cross_attention") or "BertLMHeadModel" in (raw.get("architectures") or ()):
        raise UserError(f"SOURCE {source!r} is a BERT decoder; only encoders (is_decoder: false) are supported.")


def _check_layers(layers: Sequence[int] | None, config: transformers.PreTrainedConfig) -> list[int]:
    count = config.num_hidden_layers
    if layers is None:
        return list(range(count))
    if not layers or not all(isinstance(layer, int) and 0 <= layer < count for layer in layers):
        raise UserError(
            f"--layers must be one or more integers from 0 to {count - 1}, the source's layers; got {list(layers)}."
        )
    return list(layers)


def _classes(
    config: transformers.PreTrainedConfig, head: bool
) -> tuple[type[transformers.PreTrainedModel], type[InhibiDistilBertPreTrainedModel]]:
    """The class to load the source with, so that its head is loaded too, and the student's."""
    prefix = _CLASS_PREFIX[config.model_type]
    has_scalars = authors_format.is_authors_format(config.to_dict())
    architecture = (config.architectures or [""])[0]
    if has_scalars and architecture.startswith(authors_format.CLASS_PREFIX):
        architecture = prefix + architecture.removeprefix(authors_format.CLASS_PREFIX)
    suffix = architecture.removeprefix(prefix) if architecture.startswith(prefix) else ""
    if not head or suffix not in _HEADS[config.model_type]:
        suffix = "Model"
    student = "ForMaskedLM" if suffix == "ForPreTraining" else suffix
    source_class = getattr(transformers, prefix + suffix)
    if has_scalars:
        source_class = authors_format.with_scalars(source_class)
    return source_class, getattr(modeling_inhibidistilbert, f"InhibiDistilBert{student}")


def _load_source(
    source: str, source_class: type[transformers.PreTrainedModel], config: transformers.PreTrainedConfig
) -> tuple[transformers.PreTrainedModel, set[str], set[str]]:
    """The source in its own dtype, the names of its parameters that no file holds, and those in the file it has not."""
    with quiet_transformers():
        try:
            # Mismatched shapes are let through here to be named below.
            loaded = load_pretrained(
                source_class, source, config=config, dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True
            )
        except _LOADING_ERRORS as error:
            raise UserError(f"SOURCE {source!r}: the checkpoint does not load: {reason(error)}") from error
    model, info = loaded
    if info["mismatched_keys"]:
        name, in_file, in_config = min(info["mismatched_keys"])
        raise UserError(
            f"SOURCE {source!r}: {name} has shape {tuple(in_file)} in the weights but {tuple(in_config)} by config.json "
            f"({len(info['mismatched_keys'])} such tensors)."
        )
    return model, set(info["missing_keys"]), set(info["unexpected_keys"])


def _check_complete(source: str, missing: set[str], names: Mapping[str, str]) -> None:
    needed = set(names.values())
    lost = sorted(name for name in missing if name in needed or "token_type_embeddings" in name)
    if lost:
        shown = ", ".join(lost[:4]) + (f" and {len(lost) - 4} more" if len(lost) > 4 else "")
        raise UserError(f"SOURCE {source!r}: its weights lack {shown}; give a complete checkpoint.")


def _build(
    source: str,
    student_class: type[InhibiDistilBertPreTrainedModel],
    config: transformers.PreTrainedConfig,
    layers: Sequence[int],
    options: StudentOptions,
) -> InhibiDistilBertPreTrainedModel:
    """The student before anything is copied."""
    try:
        return student_class(_student_config(config, layers, options))
    except (StrictDataclassError, ValueError) as error:
        raise UserError(f"SOURCE {source!r}: {reason(error)}") from error


def _student_config(
    config: transformers.PreTrainedConfig, layers: Sequence[int], options: StudentOptions
) -> InhibiDistilBertConfig:
    """The source's configuration in the student's terms: sizes, dropouts, labels, token ids."""
    known = {item.name for item in dataclasses.fields(InhibiDistilBertConfig)} - _NOT_CARRIED
    renamed = {_BERT_FIELDS.get(name, name): value for name, value in config.to_dict().items()}
    carried = {name: value for name, value in renamed.items() if name in known}
    if carried.get("seq_classif_dropout") is None:
        # BERT's classifier_dropout None means its hidden dropout.
        carried["seq_classif_dropout"] = carried["dropout"]
    has_scalars = authors_format.is_authors_format(config.to_dict())
    if has_scalars:
        carried |= authors_format.student_fields(config.to_dict())
    return InhibiDistilBertConfig(**carried, n_layers=len(layers), **options.inhibitor_fields(has_scalars))


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


def _load_tokenizer(source: str, positions: int) -> transformers.PreTrainedTokenizerBase | None:
    """The source's tokenizer for a model with `positions` positions and no segments; None when it has none."""
    # Without this test transformers makes up a tokenizer of five special tokens.
    if not any(has_file(source, name) for name in ("tokenizer.json", "vocab.txt")):
        return None
    with quiet_transformers():
        try:
            # Passed here and not set afterwards, because save_pretrained writes what the tokenizer was made with.
            return load_pretrained(
                transformers.AutoTokenizer, source, model_max_length=positions, model_input_names=MODEL_INPUTS
            )
        except Exception as error:  # the tokenizers library raises nothing more special for damaged files
            raise UserError(f"SOURCE {source!r}: its tokenizer cannot be read: {reason(error)}") from error


def _check_output(source: str | os.PathLike, output: Path, overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise UserError(f"OUTPUT_DIR {str(output)!r} is a file; give a folder.")
    if Path(source).is_dir() and Path(source).resolve().is_relative_to(output):
        raise UserError(f"OUTPUT_DIR {str(output)!r} holds the source; give another folder.")
    if not output.exists() or not any(output.iterdir()):
        return
    if not overwrite:
        raise UserError(f"OUTPUT_DIR {str(output)!r} is not empty; give another folder, or --overwrite to replace it.")
    if not (output / "config.json").is_file():
        raise UserError(
            f"OUTPUT_DIR {str(output)!r} is not empty and holds no config.json; --overwrite replaces checkpoints only."
        )


@contextmanager
def _staged(output: Path) -> Iterator[Path]:
    """A new folder beside `output` that takes its place when the block ends well, and vanishes when it does not."""
    staging = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    old = staging.with_suffix(".old")
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"OUTPUT_DIR {str(output)!r} cannot be made: {reason(error)}") from error
    try:
        yield staging
        if output.exists():
            output.rename(old)
        staging.rename(output)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        if old.exists() and not output.exists():
            old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)
