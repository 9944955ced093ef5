"""Inhibitor attention behind transformers' attention interface: one adapter and one mask function a name."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface
from transformers.utils import logging

from .inhibitor_attention import BACKENDS, attend
from .inhibitor_checks import check_tensors
from .inhibitor_forms import Form
from .inhibitor_packed import attend_packed

logger = logging.get_logger(__name__)


def split_mask(attention_mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """`(key_padding_mask, attn_mask)`, bool with True = visible, from a mask in one of transformers' forms.

    `(B, N)`: anything but 0 is a real key. Four dimensions: bool, or additive, where whatever is below 0 is hidden.
    """
    if attention_mask is None:
        return None, None
    if attention_mask.ndim == 2:
        return attention_mask.bool(), None
    if attention_mask.dtype != torch.bool:
        attention_mask = attention_mask >= 0
    return None, attention_mask


def length_divisor(normalization: str, attention_mask: Tensor | None, keys: int) -> Tensor | float | None:
    """What `length_normalization` divides each query's output by: a number, or a tensor that broadcasts to `(B, M, H, d)`.

    `"mean"`: its visible keys, at least 1; `"sqrt"`: the root of that; otherwise None.
    """
    if normalization not in ("mean", "sqrt"):
        return None
    count: Tensor | int = keys
    padding, attention = split_mask(attention_mask)
    if padding is not None:
        count = padding.sum(-1).clamp(min=1)[:, None, None, None]
    elif attention is not None:
        count = attention.sum(-1).clamp(min=1).transpose(1, 2)[..., None]
    return count**0.5 if normalization == "sqrt" else count


def _attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float,
    backend: str,
    return_scores: bool,
) -> tuple[Tensor, Tensor | None]:
    """The operator with a module's scalars, as transformers expects it: output `(B, M, H, d)` and the scores Z or None."""
    padding, attention = split_mask(attention_mask)
    kept = None
    if dropout:
        # Drawn here, outside the kernels: checkpointing recomputes it from the same random state.
        kept = torch.rand(key.shape[0], key.shape[2], device=key.device) >= dropout
    check_tensors(query, key, value)  # projections may have been replaced; masks and scalars are the model's own
    config, masks = module.config, (padding, kept, attention)
    scalars = module.alpha, module.beta, module.gamma, module.delta
    form = Form.of(config.inhibition, config.center, config.centered, config.signed)
    quantized = config.quantized and not return_scores  # the scores are those of the exact form
    causal = False
    output, scores = attend(query, key, value, *masks, *scalars, form, causal, quantized, return_scores, backend)
    return output.transpose(1, 2), scores


def eager_attention_forward(module, query, key, value, attention_mask, dropout=0.0, **kwargs):
    """`attn_implementation="eager"`: the torch form, with the scores Z `(B, H, M, N)` as attentions; never quantized."""
    return _attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, backend="torch", return_scores=True
    )


def inhibitor_attention_forward(module, query, key, value, attention_mask, dropout=0.0, backend="auto", **kwargs):
    """`attn_implementation="inhibitor"` and its variants: one backend, by default the best for the tensors' device.

    Scores exist only in the eager form, which takes over for calls that want them.
    """
    if kwargs.get("output_attentions"):
        if not torch.compiler.is_compiling():  # a compiled graph has no place for a message
            logger.warning_once(
                'output_attentions=True needs the scores in memory: attn_implementation="eager" is used for such calls.'
            )
        return eager_attention_forward(module, query, key, value, attention_mask, dropout)
    return _attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, backend=backend, return_scores=False
    )


def packed_attention_forward(module, query, key, value, runs, dropout=0.0) -> Tensor:
    """Attention within each text of `runs`, `(tokens, H, d)` each -> the same, by the implementation that the model has."""
    kept = torch.rand(key.shape[0], device=key.device) >= dropout if dropout else None
    config, scalars = module.config, (module.alpha, module.beta, module.gamma, module.delta)
    form = Form.of(config.inhibition, config.center, config.centered, config.signed)
    backend = config._attn_implementation.removeprefix("inhibitor").removeprefix("_") or "auto"
    return attend_packed(query, key, value, kept, *scalars, form, False, config.quantized, backend, runs)


def inhibitor_mask(attention_mask: Tensor | None = None, **kwargs) -> Tensor | None:
    """The padding mask `(B, N)` as bool, its values never looked at: no synchronisation, nothing to recompile for."""
    return None if attention_mask is None else attention_mask.bool()


ATTENTION_FORWARDS: dict[str, Callable[..., Any]] = {
    "eager": eager_attention_forward,
    "inhibitor": inhibitor_attention_forward,
    **{
        f"inhibitor_{name}": partial(inhibitor_attention_forward, backend=name)
        for name, backend in BACKENDS.items()
        if backend.refusal is not None
    },
}

# transformers checks names against, and takes masks from, these process-wide tables.
for _name, _forward in ATTENTION_FORWARDS.items():
    if _name != "eager":
        AttentionInterface.register(_name, _forward)
        AttentionMaskInterface.register(_name, inhibitor_mask)
