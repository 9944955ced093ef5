"""Inhibitor attention in models of transformers' own classes: GPT-2, Llama, ViT, BERT and all that call attention by name.

A student is an instance of its host's class, under a class made here that gives every self-attention scalars. Its
configuration is the host's with two fields more: `inhibitor`, the form of the attention, and `attn_implementation`, without
which transformers' own class would take the folder for a softmax model.
"""

import inspect
import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any, ClassVar

from transformers.utils.versions import require_version

# Before anything that an older transformers lacks. A student's code comes through here first.
require_version("transformers>=5.17,<6", "Inhibitor attention: pip install 'transformers>=5.17,<6'")

import torch  # noqa: E402
import transformers  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import PreTrainedConfig, PreTrainedModel  # noqa: E402
from transformers import initialization as init  # noqa: E402
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward  # noqa: E402
from transformers.models.auto import modeling_auto  # noqa: E402
from transformers.models.auto.auto_factory import _get_model_class  # noqa: E402

from ..kernels.checks import check_attn_mask, check_form, check_key_mask  # noqa: E402
from ..kernels.masks import KeyMasks  # noqa: E402
from .attention_interface import (  # noqa: E402
    ATTENTION_FORWARDS,
    INHIBITION,
    attention_with_scalars,
    divisor_of,
    split_mask,
)
from .scalars import WithScalars, initial_scalar  # noqa: E402
from .sources import push_saved, write_remote_code  # noqa: E402

NAMES = [name for name in ATTENTION_FORWARDS if name != "eager"]
# The fields of InhibiDistilBertConfig that say what the attention of a layer computes.
FORM = (
    *("inhibition", "center", "centered", "signed", "radii", "length_normalization", "scalars_per_head"),
    *("alpha_init", "beta_init", "gamma_init", "delta_init"),
)
# What a model may ask of its attention that inhibitor attention has no meaning for.
_NOT_HONOURED = {
    "position_bias": "a bias of the scores by position",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "softcap": "capped scores",
    "indices": "a choice of keys for each query",
    "block_indices": "a choice of keys for each query",
}
# Below this an additive mask hides a key; transformers takes the least number of the dtype, older code -10000.
_HIDDEN = -1000.0
_CROSS = re.compile(r"cross|encoder_att|encdec", re.IGNORECASE)


def visible_keys(
    module: Any,
    query: Tensor,
    key: Tensor,
    attention_mask: Tensor | None,
    is_causal: bool | None,
    sliding_window: int | None,
    boundaries: Tensor | None,
) -> tuple[int, Tensor | None, bool]:
    """What of the keys `(B, H, N, d)` a layer's queries `(B, H, M, d)` see: how many count, their mask, and whether
    causality comes on top.

    attention_mask: with 4 dimensions it says all. Otherwise, as flash attention has it, it is None or the real keys `(B, n)`
        of the first n, and is_causal, sliding_window and boundaries (`cu_seq_lens_q`) come on top; the last query stands at
        the last of them.
    """
    queries, keys = query.shape[2], key.shape[2]
    if attention_mask is not None and attention_mask.ndim == 4:
        return keys, attention_mask.expand(len(query), -1, -1, -1), False
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    causal = bool(is_causal) and queries > 1
    if attention_mask is not None:
        attention_mask = attention_mask.bool()[:, -keys:]
        keys = attention_mask.shape[1]  # fewer where a static cache has rows that hold nothing yet
    near: Tensor | None = None
    place = torch.arange(keys, device=query.device)
    if sliding_window is not None and keys > sliding_window:
        queries_at = torch.arange(keys - queries, keys, device=query.device)
        near = ((queries_at[:, None] - place).abs() < sliding_window)[None, None]
    if boundaries is not None and attention_mask is None:
        if len(query) != 1 or queries != keys:
            raise ValueError(
                f"cu_seq_lens_q must be of texts in one row, without a cache; got {len(query)} rows of {queries} queries "
                f"and {keys} keys."
            )
        text = torch.bucketize(place, boundaries, right=True)
        within = (text[:, None] == text)[None, None]
        near = within if near is None else near & within
    if near is None:
        return keys, attention_mask, causal
    return keys, KeyMasks(attention_mask, None, near, causal).visible(queries, keys, query.device), False


class InhibitorNorm(WithScalars):
    """What makes a host's self-attention inhibitor attention: by what its scores are centred, scaled and shifted.

    fields: those of `FORM`. heads: of the queries.
    """

    def __init__(self, fields: Mapping[str, Any], heads: int):
        super().__init__()
        check_form(fields["inhibition"], fields["center"], fields["signed"])
        self.config = SimpleNamespace(**{name: fields[name] for name in FORM}, n_heads=heads, quantized=False)
        self.add_scalars(self.config)
        self.knows_its_mask = False

    def attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        sliding_window: int | None = None,
        backend: str = "auto",
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """An attention function of transformers: query `(B, H, M, d)`, key and value `(B, H or fewer, N, d)` ->
        `(B, M, H, d)`, and with `output_attentions` the scores Z.

        scaling: takes the place of 1/√d. attention_mask and the other arguments: see `visible_keys`.

        Raises:
            ValueError: something is asked for that inhibitor attention does not do.
        """
        _refuse(kwargs, _NOT_HONOURED)
        size = query.shape[-1]
        if not size == key.shape[-1] == value.shape[-1]:
            sizes = [x.shape[-1] for x in (query, key, value)]
            raise ValueError(f"query, key and value must have one head size for inhibitor attention, got {sizes}.")
        self._check_mask(attention_mask)
        boundaries = kwargs.get("cu_seq_lens_q")
        keys, mask, causal = visible_keys(module, query, key, attention_mask, is_causal, sliding_window, boundaries)
        groups = query.shape[1] // key.shape[1]
        key, value = (repeat_kv(x[:, :, :keys], groups) for x in (key, value))
        padding, attention = split_mask(mask)
        check_key_mask("attention_mask", padding, key)
        check_attn_mask(attention, query, key)
        gamma = self.gamma
        if scaling is not None and not (isinstance(scaling, float) and math.isclose(scaling, size**-0.5)):
            gamma = gamma * (scaling * size**0.5)
        output, scores = attention_with_scalars(
            *(self, query, key, value, mask),
            dropout=dropout,
            backend="torch" if kwargs.get("output_attentions") else backend,
            return_scores=bool(kwargs.get("output_attentions")),
            causal=causal,
            gamma=gamma,
        )
        masks = KeyMasks(padding, None, attention, causal)
        divisor = divisor_of(self.config.length_normalization, masks, query.shape[2], keys, query.device)
        return output if divisor is None else (output / divisor).to(output.dtype), scores

    def _check_mask(self, mask: Tensor | None) -> None:
        """An additive mask may hide keys; a bias of the scores in it would be lost."""
        if mask is None or mask.ndim == 2 or mask.dtype == torch.bool or torch.compiler.is_compiling():
            return
        if not mask.is_floating_point():
            raise ValueError(f"attention_mask with 4 dimensions must be bool or floating, got {mask.dtype}.")
        if self.knows_its_mask and mask.device.type != "cpu":
            return  # looking again would wait for the device
        biases = mask[(mask != 0) & (mask > _HIDDEN)]
        if biases.numel():
            raise ValueError(
                f"attention_mask must hold 0 (visible) or at most {_HIDDEN} (hidden), got {biases[0].item()}: inhibitor "
                "attention does not honour a bias of the scores by position."
            )
        self.knows_its_mask = True


class SoftmaxAttention(nn.Module):
    """In the place of `InhibitorNorm`, where a layer keeps softmax attention."""

    def attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        is_causal: bool | None = None,
        sliding_window: int | None = None,
        backend: str = "auto",
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        _refuse(kwargs, _NOT_HONOURED.keys() - {"position_bias"})  # which that function honours
        boundaries = kwargs.get("cu_seq_lens_q")
        keys, mask, causal = visible_keys(module, query, key, attention_mask, is_causal, sliding_window, boundaries)
        if mask is None or mask.ndim == 2:
            mask = KeyMasks(mask, None, None, causal).visible(query.shape[2], keys, query.device)
        key, value = key[:, :, :keys], value[:, :, :keys]
        return sdpa_attention_forward(module, query, key, value, mask, is_causal=False, **kwargs)


def _refuse(kwargs: Mapping[str, Any], names: Any) -> None:
    for name in names:
        if kwargs.get(name) is not None:
            raise ValueError(f"{name} is not honoured by inhibitor attention: the model asks for {_NOT_HONOURED[name]}.")


@cache
def _calls_by_name(kind: Any) -> bool:
    """Whether modules of this class take their attention function from transformers' table."""
    functions = (inspect.unwrap(x) for base in kind.__mro__ for x in vars(base).values() if inspect.isfunction(x))
    return any("ALL_ATTENTION_FUNCTIONS" in function.__code__.co_names for function in functions)


def attentions(model: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    """The modules that take their attention from transformers' table, in order, and whether it is self-attention."""
    for name, module in model.named_modules():
        kind: Any = type(module)
        if not isinstance(module, PreTrainedModel) and _calls_by_name(kind):
            yield module, not _CROSS.search(f"{name.rpartition('.')[2]} {kind.__name__}")


def _heads(module: Any) -> int:
    for name in ("num_heads", "num_attention_heads", "n_heads", "n_head"):
        if isinstance(getattr(module, name, None), int):
            return getattr(module, name)
    return module.config.num_attention_heads


def inhibit_modules(model: PreTrainedModel) -> None:
    """Give the self-attentions that `config.inhibitor` names their scalars; the others keep softmax."""
    fields = getattr(model.config, "inhibitor", None)
    if not isinstance(fields, dict) or fields.keys() != {*FORM, "layers"}:
        raise ValueError(
            f"config.inhibitor must have the fields layers, {', '.join(FORM)}, got {fields!r}: `inhibidistilbert.inhibit` "
            "makes a student of a model, `inhibidistilbert convert` of a folder."
        )
    layers, place, added = fields["layers"], 0, []
    for module, within in attentions(model):
        chosen = within and (layers is None or place in layers)
        place += within
        added.append((module, InhibitorNorm(fields, _heads(module)) if chosen else SoftmaxAttention()))
    for module, addition in added:
        device = next(module.parameters(), next(model.parameters())).device
        setattr(module, INHIBITION, addition.to(device).train(module.training))
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            # Parts initialise, and choose the attention of, their own modules. They may have been built for softmax.
            kind: Any = type(part)
            part.__class__ = inhibited_class(kind)
            part._keep_in_fp32_modules_strict = {*(part._keep_in_fp32_modules_strict or ()), INHIBITION}
            if part.config._attn_implementation not in NAMES:
                part.config._attn_implementation_internal = NAMES[0]


class Inhibited(PreTrainedModel):
    """What the class of every student has before its host's."""

    def __init__(self, config: PreTrainedConfig, *inputs: Any, **kwargs: Any) -> None:
        super().__init__(config, *inputs, **kwargs)
        inhibit_modules(self)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, InhibitorNorm):
            for name, scalar in module.scalars().items():
                init.copy_(scalar, initial_scalar(module.config, name))
        else:
            super()._init_weights(module)

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        if requested_attention not in (None, *NAMES):
            raise ValueError(
                f"attn_implementation={requested_attention!r} would compute softmax attention in the place of the inhibitor "
                f"attention of this model; use one of {', '.join(map(repr, NAMES))}."
            )
        return requested_attention or NAMES[0]

    def save_pretrained(self, save_directory, *args, push_to_hub: bool = False, **kwargs):
        """Save weights, configuration and source files, so that the folder loads with `trust_remote_code=True` and without
        this package. Takes what the host's `save_pretrained` takes."""
        config: Any = self.config
        if not hasattr(config, "inhibitor"):
            raise ValueError(f"This {type(self).__name__} is a part of a student: save the whole student.")
        config.auto_map = auto_map(config)
        config.attn_implementation = NAMES[0]
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            write_remote_code(save_directory, "modeling_inhibited.py")
        if push_to_hub:
            push_saved(self, save_directory, kwargs)

    def __reduce_ex__(self, protocol):
        # Classes that are made cannot be found by their names.
        return _without_values, (type(self).__bases__[1],), self.__dict__


def _without_values(host: Any) -> PreTrainedModel:
    kind = inhibited_class(host)
    return kind.__new__(kind)


@cache
def inhibited_class(host: Any) -> Any:
    """The class of students of `host`. It has its name, by which pipelines and the Trainer know what it can do."""
    if issubclass(host, Inhibited):
        return host
    members = {"__module__": host.__module__, "__doc__": host.__doc__, "config_class": host.config_class}
    return type(host.__name__, (Inhibited, host), members)


class _Builder:
    """What `auto_map` of a student names for an Auto class: it finds the host's class and makes the student's."""

    auto_class: ClassVar[str]

    @classmethod
    def _of(cls, config: PreTrainedConfig) -> Any:
        return inhibited_class(_get_model_class(config, getattr(transformers, cls.auto_class)._model_mapping))

    @classmethod
    def from_pretrained(cls, source: Any, *args: Any, config: PreTrainedConfig, **kwargs: Any) -> Any:
        return cls._of(config).from_pretrained(source, *args, config=config, **kwargs)

    @classmethod
    def _from_config(cls, config: PreTrainedConfig, **kwargs: Any) -> PreTrainedModel:
        return cls._of(config)._from_config(config, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Nothing to note: `save_pretrained` writes the map of Auto classes itself."""


_AUTO_CLASSES = [
    name
    for name, kind in vars(modeling_auto).items()
    if name.startswith("AutoModel") and getattr(kind, "_model_mapping", None)
]


def auto_map(config: PreTrainedConfig) -> dict[str, str]:
    """The Auto classes that have a model for this configuration, each with its builder."""
    fitting = (name for name in _AUTO_CLASSES if type(config) in getattr(transformers, name)._model_mapping)
    return {name: f"modeling_inhibited.Inhibited{name}" for name in fitting}


for _name in _AUTO_CLASSES:
    globals()[f"Inhibited{_name}"] = type(f"Inhibited{_name}", (_Builder,), {"auto_class": _name})
