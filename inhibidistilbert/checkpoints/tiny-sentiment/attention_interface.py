"""Inhibitor attention behind transformers' attention interface: one adapter and one mask function a name.

InhibiDistilBERT calls `ATTENTION_FORWARDS`. The names in transformers' own tables are for models of other classes, which
`modeling_inhibited.py` gives scalars; `call_inhibition` finds those of a layer.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface, bidirectional_mask_function, causal_mask_function, sdpa_mask
from transformers.modeling_utils import AttentionInterface
from transformers.utils import logging

from .inhibitor_attention import BACKENDS, attend
from .inhibitor_checks import check_tensors
from .inhibitor_forms import Form
from .inhibitor_masks import KeyMasks
from .inhibitor_packed import attend_packed

logger = logging.get_logger(__name__)

# What holds the scalars of a layer in a model of another class. The Trainer decays no weight below a name that ends so.
INHIBITION = "inhibitor_norm"


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
    if attention_mask.shape[1:3] == (1, 1):  # the same for all queries: compiled backends take it so
        return attention_mask[:, 0, 0], None
    return None, attention_mask


def length_divisor(normalization: str, attention_mask: Tensor | None, keys: int) -> Tensor | float | None:
    """What `length_normalization` divides each query's output by: a number, or a tensor that broadcasts to `(B, M, H, d)`.

    `"mean"`: its visible keys, at least 1; `"sqrt"`: the root of that; otherwise None.
    """
    padding, attention = split_mask(attention_mask)
    return divisor_of(normalization, KeyMasks(padding, None, attention, causal=False), 1, keys, None)


def divisor_of(
    normalization: str, masks: KeyMasks, queries: int, keys: int, device: torch.device | None
) -> Tensor | float | None:
    """`length_divisor` of masks that may be causal."""
    if normalization not in ("mean", "sqrt"):
        return None
    count: Tensor | int = keys
    if masks.attention is not None:
        visible = cast(Tensor, masks.visible(queries, keys, masks.attention.device))
        count = visible.sum(-1).clamp(min=1).transpose(1, 2)[..., None]
    elif masks.causal:
        # Running sums of the key mask, not a matrix of queries and keys.
        real = torch.ones(1, keys, dtype=torch.bool, device=device) if masks.padding is None else masks.padding
        past = torch.arange(keys - queries, keys, device=real.device)
        count = real.cumsum(-1)[:, past.clamp(min=0)].masked_fill(past < 0, 0).clamp(min=1)[:, :, None, None]
    elif masks.padding is not None:
        count = masks.padding.sum(-1).clamp(min=1)[:, None, None, None]
    return count**0.5 if normalization == "sqrt" else count


def attention_with_scalars(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float,
    backend: str,
    return_scores: bool,
    causal: bool = False,
    gamma: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The operator with a module's scalars, as transformers expects it: output `(B, M, H, d)` and the scores Z or None.

    gamma: takes the place of the module's.
    """
    padding, attention = split_mask(attention_mask)
    kept = None
    if dropout:
        # Drawn here, outside the kernels: checkpointing recomputes it from the same random state.
        kept = torch.rand(key.shape[0], key.shape[2], device=key.device) >= dropout
    check_tensors(query, key, value)  # projections may have been replaced; masks and scalars are the model's own
    config, masks = module.config, (padding, kept, attention)
    scalars = module.alpha, module.beta, module.gamma if gamma is None else gamma, module.delta
    form = Form.of(config.inhibition, config.center, config.centered, config.signed)
    quantized = config.quantized and not return_scores  # the scores are those of the exact form
    output, scores = attend(query, key, value, *masks, *scalars, form, causal, quantized, return_scores, backend)
    return output.transpose(1, 2), scores


def eager_attention_forward(module, query, key, value, attention_mask, dropout=0.0, **kwargs):
    """`attn_implementation="eager"`: the torch form, with the scores Z `(B, H, M, N)` as attentions; never quantized."""
    return attention_with_scalars(
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
    return attention_with_scalars(
        module, query, key, value, attention_mask, dropout=dropout, backend=backend, return_scores=False
    )


def packed_attention_forward(module, query, key, value, runs, dropout=0.0) -> Tensor:
    """Attention within each text of `runs`, `(tokens, H, d)` each -> the same, by the implementation that the model has."""
    kept = torch.rand(key.shape[0], device=key.device) >= dropout if dropout else None
    config, scalars = module.config, (module.alpha, module.beta, module.gamma, module.delta)
    form = Form.of(config.inhibition, config.center, config.centered, config.signed)
    backend = config._attn_implementation.removeprefix("inhibitor").removeprefix("_") or "auto"
    return attend_packed(query, key, value, kept, *scalars, form, False, config.quantized, backend, runs)


def call_inhibition(module, query, key, value, attention_mask, **kwargs):
    """What a name means to a layer of another class: the scalars that the layer was given compute it.

    Raises:
        ValueError: it was given none.
    """
    inhibition = getattr(module, INHIBITION, None)
    if inhibition is None:
        raise ValueError(
            f'attn_implementation="inhibitor" needs a model with inhibitor attention, and {type(module).__name__} has no '
            "alpha, beta and gamma. Make a student of the model, `model = inhibidistilbert.inhibit(model)` or "
            "`inhibidistilbert convert MODEL STUDENT`; load a student's folder with trust_remote_code=True."
        )
    return inhibition.attend(module, query, key, value, attention_mask, **kwargs)


def inhibitor_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    **kwargs,
) -> Tensor | None:
    """The visible keys, of `sdpa_mask`'s arguments, in the least form that says them.

    None where all keys are visible, or by causality alone. `(B, N)`, real keys, where causality comes on top; then the last
    query stands at the last key. `(B, 1, 1, N)` where queries see the same keys, otherwise `(B, 1, M, N)`: those say all.
    The values of `attention_mask` are not looked at: no synchronisation, nothing to recompile for.
    """
    arguments = {"attention_mask": attention_mask, "kv_offset": kv_offset, **kwargs}
    if local_size is None or kv_length < local_size:
        real = None
        if attention_mask is not None:
            real = nn.functional.pad(attention_mask.bool(), (0, max(0, kv_offset + kv_length - attention_mask.shape[-1])))
            real = real[:, kv_offset : kv_offset + kv_length]
        if allow_is_bidirectional_skip and mask_function is bidirectional_mask_function:
            return None if real is None else real[:, None, None, :]
        # An offset that is a tensor is a static cache's, which has rows that hold nothing yet.
        ends_together = isinstance(q_offset, int) and q_offset + q_length == kv_offset + kv_length
        if allow_is_causal_skip and ends_together:
            return real
    return sdpa_mask(
        batch_size,
        q_length,
        kv_length,
        q_offset,  # type: ignore[arg-type]
        mask_function=mask_function,
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=False,
        **arguments,
    )


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
for _name in ATTENTION_FORWARDS:
    if _name != "eager":
        _backend = _name.removeprefix("inhibitor").removeprefix("_") or "auto"
        AttentionInterface.register(_name, partial(call_inhibition, backend=_backend))
        AttentionMaskInterface.register(_name, inhibitor_mask)
