"""Configuration of InhibiDistilBERT: DistilBERT's fields and those of inhibitor attention."""

import math
from typing import TYPE_CHECKING

from transformers.utils.versions import require_version

# Before anything that an older transformers lacks. A checkpoint's code comes through here first.
require_version("transformers>=5.17,<6", "InhibiDistilBERT: pip install 'transformers>=5.17,<6'")

from huggingface_hub.dataclasses import strict  # noqa: E402
from transformers.configuration_utils import PreTrainedConfig  # noqa: E402

if TYPE_CHECKING:
    # Never run, but read: transformers takes two folders of one name for one model while this file and all that it imports
    # are alike, and finds the imports by their text. Through this line that is every source file of the folder.
    from .modeling_inhibidistilbert import InhibiDistilBertModel  # noqa: F401

LENGTH_NORMALIZATIONS = ("none", "sqrt", "mean")


@strict
class InhibiDistilBertConfig(PreTrainedConfig):
    r"""Configuration of the InhibiDistilBERT models. The defaults give a model of DistilBERT-base's size.

    Fields that DistilBERT has too keep its names, meaning and defaults. Those of inhibitor attention:

    Args:
        centered: subtract each query's mean score over the visible keys.
        signed: let negative values pass inhibition as well.
        alpha_init: initial shift of the scores.
        beta_init: initial scale of the attention output.
        gamma_init: initial scale of the scores.
        scalars_per_head: alpha, beta and gamma of shape `(n_heads,)` in every layer instead of `(1,)`.
        length_normalization: divides the sum over the visible keys by 1 (`"none"`, as published), by the square root of
            their number (`"sqrt"`) or by their number (`"mean"`).
        quantized: compute attention on int8 grids, for inference only; calls that return scores compute it exactly.
        int8_weights: the linear layers of the encoder have int8 weights, for inference only. `inhibidistilbert.quantize`
            makes such a model.

    Raises:
        ValueError: when `n_heads` does not divide `dim`, a size is not positive, `length_normalization` is unknown or an
            initial scalar is not finite.
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
    alpha_init: float | int = 0.5
    beta_init: float | int = 1.0
    gamma_init: float | int = 1.0
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

    def validate_sizes_and_scalars(self):
        """Run by `@strict` on every construction."""
        for name in ("vocab_size", "max_position_embeddings", "n_heads", "dim", "hidden_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.dim % self.n_heads:
            raise ValueError(f"n_heads must divide dim evenly, got n_heads={self.n_heads} and dim={self.dim}.")
        if self.length_normalization not in LENGTH_NORMALIZATIONS:
            raise ValueError(
                f"length_normalization must be one of {', '.join(map(repr, LENGTH_NORMALIZATIONS))}, "
                f"got {self.length_normalization!r}."
            )
        for name in ("alpha_init", "beta_init", "gamma_init"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}.")


__all__ = ["InhibiDistilBertConfig"]
