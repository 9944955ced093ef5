"""Configuration of InhibiDistilBERT: DistilBERT's fields and those of inhibitor attention."""

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from transformers.utils.versions import require_version

# Before anything that an older transformers lacks. A checkpoint's code comes through here first.
require_version("transformers>=5.17,<6", "InhibiDistilBERT: pip install 'transformers>=5.17,<6'")

from huggingface_hub.dataclasses import strict  # noqa: E402
from huggingface_hub.errors import StrictDataclassError  # noqa: E402
from transformers.activations import ACT2FN  # noqa: E402
from transformers.configuration_utils import PreTrainedConfig  # noqa: E402

from .inhibitor_forms import CENTERS, INHIBITIONS  # noqa: E402

if TYPE_CHECKING:
    # Never run, but read: by the text of all that is imported here transformers tells two folders of one name apart.
    from .modeling_inhibidistilbert import InhibiDistilBertModel  # noqa: F401

LENGTH_NORMALIZATIONS = ("none", "sqrt", "mean", "passed")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
# Far more than any model has. Layers and names of labels are built one by one, and sizes are multiplied.
MOST_LAYERS, MOST_LABELS, MOST = 1_000, 1_000_000, 100_000_000
_DTYPES = ("float64", "float32", "bfloat16", "float16")


@strict
class InhibiDistilBertConfig(PreTrainedConfig):
    r"""Configuration of the InhibiDistilBERT models. The defaults give a model of DistilBERT-base's size.

    Fields that DistilBERT has too keep its names, meaning and defaults. Those of inhibitor attention:

    Args:
        centered: subtract one of each query's scores, or their mean, over the visible keys.
        center: which one: their `"mean"`, as published, or the score of the nearest key (`"least"`).
        signed: let negative values pass inhibition as well.
        inhibition: `"threshold"`, as published, or `"gate"`, which keeps small values whole.
        radii: how many thresholds or gates take the same scores, each with an alpha, a beta and a gamma of its own.
        alpha_init: initial shift of the scores; a number, or a list of one for each radius.
        beta_init: initial scale of the attention output, likewise.
        gamma_init: initial scale of the scores, likewise.
        delta_init: initial slope of what `length_normalization="passed"` divides by.
        scalars_per_head: scalars of shape `(n_heads,)` in every layer instead of `(1,)`; `(radii, …)` of several radii.
        length_normalization: divides the sum over the visible keys by 1 (`"none"`, as published), by the square root of
            their number (`"sqrt"`), by their number (`"mean"`: new students) or by how much passes (`"passed"`), which
            has one more scalar, delta.
        quantized: compute attention on int8 grids, with one radius and for inference only; calls that return scores compute
            it exactly.
        int8_weights: the linear layers of the encoder have int8 weights, for inference only. `inhibidistilbert.quantize`
            makes such a model.

    Raises:
        huggingface_hub.errors.StrictDataclassError: a field of another type, out of its range, or one that contradicts
            another, such as an `n_heads` that does not divide `dim`. A ValueError where it stands in a file.
    """

    model_type = "inhibidistilbert"
    attribute_map = {
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
    }

    vocab_size: int = 30522
    max_position_embeddings: int = 512
    sinusoidal_pos_embds: bool = False
    n_layers: int = 6
    n_heads: int = 12
    dim: int = 768
    hidden_dim: int = 4 * 768
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    activation: str = "gelu"
    initializer_range: float = 0.02
    qa_dropout: float | int = 0.1
    seq_classif_dropout: float | int = 0.2
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = None
    bos_token_id: int | None = None
    tie_word_embeddings: bool = True

    centered: bool = True
    signed: bool = True
    center: str = "mean"
    inhibition: str = "threshold"
    radii: int = 1
    alpha_init: float | int | list[float | int] = 0.5
    beta_init: float | int | list[float | int] = 1.0
    gamma_init: float | int | list[float | int] = 1.0
    delta_init: float | int = 1.0
    scalars_per_head: bool = False
    length_normalization: str = "none"
    quantized: bool = False
    int8_weights: bool = False

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        fields, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not fields:
            raise OSError(f"{str(pretrained_model_name_or_path)!r} has no config.json.")
        return fields, kwargs

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        kind = config_dict.get("model_type", cls.model_type)
        if kind not in (cls.model_type, "distilbert"):
            raise ValueError(f"model_type must be {cls.model_type!r}, or 'distilbert' to start from one, got {kind!r}.")
        if config_dict.get("per_layer_config"):
            raise ValueError("per_layer_config must be left out: the layers of this model are alike.")
        # Only the file is checked: who gives num_labels on loading wants another head.
        names, number = config_dict.get("id2label"), config_dict.get("num_labels")
        if isinstance(names, dict) and _is_integer(number, least=1) and len(names) != number:
            raise ValueError(f"num_labels is {number}, but id2label names {len(names)} labels.")
        try:
            return super().from_dict(config_dict, **kwargs)
        except (StrictDataclassError, AttributeError, TypeError) as error:  # as transformers stumbles over a field
            raise ValueError(f"config.json: {error.__cause__ or error}") from error

    def __post_init__(self, **kwargs):
        # Before transformers makes something else of them.
        for name in ("dtype", "torch_dtype"):
            dtype = str(self.dtype if name == "dtype" else kwargs.get(name)).removeprefix("torch.")
            if dtype not in ("None", *_DTYPES):
                raise ValueError(f"{name} must be one of {', '.join(map(repr, _DTYPES))}, got {dtype!r}.")
        if self.id2label is not None:
            _check_labels(self.id2label, {})
        number = kwargs.get("num_labels")
        if number is not None and not _is_integer(number, least=1):
            raise ValueError(f"num_labels must be an integer of at least 1, got {number!r}.")
        if number is not None and number > MOST_LABELS:
            raise ValueError(f"num_labels must be at most {MOST_LABELS}, got {number}.")
        super().__post_init__(**kwargs)

    def validate_fields(self):
        """Run by `@strict` on every construction, and by every model: fields may be set later.

        Raises:
            ValueError: a field out of its range, or one that contradicts another.
        """
        for name in ("vocab_size", "max_position_embeddings", "n_layers", "n_heads", "dim", "hidden_dim", "radii"):
            value, most = getattr(self, name), MOST_LAYERS if name == "n_layers" else MOST
            if not isinstance(value, int):  # as it is where its other name was given
                raise ValueError(f"{name} must be an integer, got {value!r}.")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
            if value > most:
                raise ValueError(f"{name} must be at most {most}, got {value}.")
        if self.dim % self.n_heads:
            raise ValueError(f"n_heads must divide dim evenly, got n_heads={self.n_heads} and dim={self.dim}.")
        for name in ("dropout", "attention_dropout", "qa_dropout", "seq_classif_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}.")
        if not 0 <= self.initializer_range < math.inf:
            raise ValueError(f"initializer_range must be at least 0 and finite, got {self.initializer_range}.")
        _check_choice("length_normalization", self.length_normalization, LENGTH_NORMALIZATIONS)
        _check_choice("activation", self.activation, ACT2FN)
        if self.problem_type is not None:
            _check_choice("problem_type", self.problem_type, PROBLEM_TYPES)
        _check_form(self)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            ids = getattr(self, name)
            for token in ids if isinstance(ids, list) else [ids]:
                if token is not None and not 0 <= token < self.vocab_size:
                    raise ValueError(f"{name} must be a token of the vocabulary, 0 to {self.vocab_size - 1}, got {ids}.")
        _check_labels(self.id2label, self.label2id or {})
        _check_general_fields(self)


def _check_form(config: InhibiDistilBertConfig) -> None:
    """The fields of the inhibition."""
    _check_choice("center", config.center, CENTERS)
    _check_choice("inhibition", config.inhibition, INHIBITIONS)
    if config.center != "mean" and not config.centered:
        raise ValueError(f"centered must be true for center={config.center!r}: without it nothing is subtracted.")
    if config.inhibition == "gate" and not config.signed:
        raise ValueError("signed must be true for inhibition='gate', which lets negative values pass as well.")
    for name in ("alpha_init", "beta_init", "gamma_init", "delta_init"):
        value = getattr(config, name)
        if not all(abs(x) < 1e38 for x in (value if isinstance(value, list) else [value])):  # of float32
            raise ValueError(f"{name} must be finite, got {value}.")
        if isinstance(value, list) and len(value) != config.radii:
            raise ValueError(f"{name} must be a number, or one for each of {config.radii} radii, got {value}.")
    if config.quantized and config.radii > 1:
        raise ValueError(f"quantized must be false for several radii, which have no int8 form, got radii={config.radii}.")


def _check_general_fields(config: PreTrainedConfig) -> None:
    """Those that transformers gives every model, and does not check."""
    chunk = config.chunk_size_feed_forward
    if not _is_integer(chunk, least=0):
        raise ValueError(f"chunk_size_feed_forward must be an integer of at least 0, got {chunk!r}.")
    for name in ("output_attentions", "output_hidden_states", "return_dict"):
        if getattr(config, name) not in (None, True, False):
            raise ValueError(f"{name} must be true or false, got {getattr(config, name)!r}.")
    for name in ("is_decoder", "is_encoder_decoder", "add_cross_attention"):
        if getattr(config, name, False):
            raise ValueError(f"{name} must be false, got {getattr(config, name)!r}: this model is an encoder.")
    names = config.architectures
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"architectures must be a list of names, got {names!r}.")


def _is_integer(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_choice(name: str, value: object, known: Collection[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}.")


def _check_labels(id2label: Any, label2id: Any) -> None:
    """One name for each of the labels 0, 1, 2, …, and no name given to another label by `label2id`."""
    try:
        names = {int(index): name for index, name in id2label.items()}
        indices = {name: int(index) for name, index in label2id.items()}
    except (AttributeError, TypeError, ValueError):
        wanted = "id2label must give numbers names, and label2id names numbers"
        raise ValueError(f"{wanted}, got {id2label!r} and {label2id!r}.") from None
    if not names or sorted(names) != list(range(len(id2label))):
        raise ValueError(f"id2label must name the labels 0, 1, 2, … without a gap, at least one, got {id2label!r}.")
    for name, index in indices.items():
        if name in names.values() and names.get(index) != name:
            raise ValueError(f"label2id gives {name!r} the label {index}, but id2label calls that {names.get(index)!r}.")


__all__ = ["InhibiDistilBertConfig"]
