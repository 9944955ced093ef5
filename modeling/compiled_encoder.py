"""Runs all layers in one compiled call, where nothing looks at what happens between them.

That is inference on a CPU in float32, or with int8 attention and int8 weights, with the layers as this package makes them.
Everything else takes the layers one by one, as their modules say.
"""

import logging
from collections.abc import Sequence
from functools import cache
from itertools import repeat
from operator import is_
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation

from ..kernels.cpu.encoder import Encoder, Layer, Sizes
from ..kernels.cpu.packed import Run
from ..kernels.forms import Form
from ..kernels.memory import untraced
from .int8_linear import Int8Linear
from .packing import HOOKS, Packing, is_watched

logger = logging.getLogger(__name__)

_LINEARS = ("attention.out_lin", "ffn.lin1", "ffn.lin2", "attention.q_lin", "attention.k_lin", "attention.v_lin")
_NORMS = ("sa_layer_norm", "output_layer_norm")
_CHANGES = ("training", "forward", "_compiled_call_impl")  # attributes of a module that are its own
# float32 on so many tokens: for more, torch's own products are faster.
_MOST_FLOAT32_TOKENS = 512


class Parts(NamedTuple):
    """The classes whose modules are known."""

    block: type[nn.Module]
    attention: type[nn.Module]
    ffn: type[nn.Module]


class _Options(NamedTuple):
    """What of the configuration decides, by its names there."""

    int8_weights: bool
    n_heads: int
    radii: int
    inhibition: str
    center: str
    centered: bool
    signed: bool


class _Prepared:
    """The layers of a model as they were found.

    problem: why they are not run in one call; None where they are.
    """

    def __init__(self, transformer: nn.Module, parts: Parts, options: tuple) -> None:
        modules = list(transformer.modules())
        self._options = options
        # Whatever is put in the place of a module, a parameter or a buffer, or moved, is noticed.
        owners = [m for module in modules for m in (module._modules, module._parameters, module._buffers)]
        named = [(owner, name, member) for owner in owners for name, member in owner.items()]
        self._owners: list[dict[str, Any]] = [owner for owner, _, _ in named]
        self._names, self._members = [name for _, name, _ in named], [member for _, _, member in named]
        self._tensors = [member for member in self._members if isinstance(member, Tensor)]
        self._places = [x.data_ptr() for x in self._tensors]
        self._of_norms = [module.__dict__ for module in modules if isinstance(module, nn.LayerNorm)]
        self._epsilons = [a["eps"] for a in self._of_norms]
        self._attributes = [module.__dict__ for module in modules]
        self._hooks = [getattr(module, name) for module in modules for name in HOOKS]
        self.problem: str | None = "its layers are not as this package makes them"
        blocks = _blocks(transformer)
        if len(blocks) and all(_is_known(block, parts, options) for block in blocks):
            sizes = _sizes(blocks[0], options)
            self.encoder = Encoder(sizes, [_layer(block) for block in blocks])
            alike = all(_sizes(block, options) == sizes for block in blocks)
            self.problem = self.encoder.refusal() if alike else "its layers differ in size"

    def holds(self, options: tuple) -> bool:
        return (
            options == self._options
            and all(map(is_, map(dict.get, self._owners, self._names), self._members))
            and list(map(Tensor.data_ptr, self._tensors)) == self._places
            and [a["eps"] for a in self._of_norms] == self._epsilons
        )

    def is_changed(self) -> bool:
        """Whether a module does something else than its class."""
        return any(any(map(dict.get, self._attributes, repeat(name))) for name in _CHANGES)

    def is_watched(self, transformer: nn.Module) -> bool:
        return (any(self._hooks) or nn.modules.module._has_any_global_hook()) and is_watched(transformer)


_prepared: WeakKeyDictionary[nn.Module, _Prepared] = WeakKeyDictionary()


def _blocks(transformer: Any) -> Sequence[Any]:
    return transformer.layer


def _is_known(block: Any, parts: Parts, options: tuple) -> bool:
    linear = Int8Linear if _Options(*options).int8_weights else nn.Linear
    wanted = {"": parts.block, "attention": parts.attention, "ffn": parts.ffn, "ffn.dropout": nn.Dropout}
    wanted |= dict.fromkeys(_LINEARS, linear) | dict.fromkeys(_NORMS, nn.LayerNorm) | {"ffn.activation": GELUActivation}
    found = dict(block.named_modules())
    if found.keys() != wanted.keys() or any(type(found[name]) is not kind for name, kind in wanted.items()):
        return False
    if found["ffn.activation"].act is not nn.functional.gelu:
        return False
    dim, hidden = block.attention.q_lin.in_features, block.ffn.lin1.out_features
    shapes = ((dim, dim), (hidden, dim), (dim, hidden), *[(dim, dim)] * 3)
    linears = [found[name] for name in _LINEARS]
    fits = all(x.weight.shape == shape and x.bias is not None for x, shape in zip(linears, shapes, strict=True))
    norms = [found[name] for name in _NORMS]
    return fits and all(x.normalized_shape == (dim,) and x.bias is not None and x.eps == norms[0].eps for x in norms)


def _layer(block: Any) -> Layer:
    linears = [block.get_submodule(name) for name in _LINEARS]
    norms = [block.get_submodule(name) for name in _NORMS]
    attention = block.attention
    return Layer(
        tuple([(x.weight, getattr(x, "weight_scale", None), x.bias) for x in linears]),
        tuple([(x.weight, x.bias) for x in norms]),
        (attention.alpha, attention.beta, attention.gamma, attention.delta),
    )


def _sizes(block: Any, options: tuple) -> Sizes:
    chosen = _Options(*options)
    form = Form.of(chosen.inhibition, chosen.center, chosen.centered, chosen.signed)
    dim, hidden = block.attention.q_lin.in_features, block.ffn.lin1.out_features
    epsilon = block.sa_layer_norm.eps
    return Sizes(bool(chosen.int8_weights), chosen.n_heads, dim, hidden, *form.numbers, chosen.radii, epsilon)


@cache
def _say(problem: str) -> None:
    logger.debug("The layers of an encoder are called one by one: %s.", problem)


def refusal(config: Any, embeddings: Tensor, mask: Tensor | None, training: bool, asked: bool) -> str | None:
    """Why no layers could be run in one call on this input; None where they may.

    asked: for more than the states behind the last layer.
    """
    settings = vars(config)  # its own lookup takes longer
    attention = config._attn_implementation
    if training or torch.is_grad_enabled():
        return "training" if training else "gradients are enabled"
    if asked or attention not in ("inhibitor", "inhibitor_cpu"):
        return "what is within them is asked for" if asked else f"the attention is {attention!r}"
    if settings["quantized"] != settings["int8_weights"]:
        return "either attention or weights are int8, and the other is not"
    if embeddings.device.type != "cpu" or embeddings.dtype != torch.float32:
        return f"the embeddings are {embeddings.dtype} on {embeddings.device}"
    if mask is not None and (mask.ndim != 2 or mask.device.type != "cpu"):
        return "the mask is not one of texts on the CPU"
    if torch.is_autocast_enabled("cpu") or not untraced(embeddings, mask):
        return "something changes, or looks at, what is computed"
    if not settings["int8_weights"] and embeddings.shape[:2].numel() > _MOST_FLOAT32_TOKENS:
        return "torch is faster at float32 products of so many tokens"
    return None


def refused(transformer: nn.Module, problem: str) -> None:
    """Say so once, and let go of what the model may have moved elsewhere."""
    _prepared.pop(transformer, None)
    _say(problem)


def _prepared_for(transformer: nn.Module, parts: Parts, config: Any) -> _Prepared:
    options = tuple(map(vars(config).get, _Options._fields))
    prepared = _prepared.get(transformer)
    if prepared is None or not prepared.holds(options):
        prepared = _prepared[transformer] = _Prepared(transformer, parts, options)
    return prepared


def run_compiled(
    transformer: nn.Module, parts: Parts, config: Any, embeddings: Tensor, packing: Packing | None, mask: Tensor | None
) -> Tensor | None:
    """The states behind the last layer, `(B, L, dim)`, 0 at padding; None where the layers must be called.

    packing: of texts that share a row. mask: `(B, L)`, 0 at padding.
    """
    shape = embeddings.shape[:2]
    prepared = _prepared_for(transformer, parts, config)
    problem = prepared.problem
    if problem is None and prepared.is_changed():
        problem = "a module is in training, or does something else than its class"
    if problem is None and prepared.is_watched(transformer):
        problem = "hooks look at them"
    if problem is not None:
        _say(problem)
        return None
    if packing is None and mask is not None and not mask.all():
        visible = mask.bool()
        packing = Packing([n for n in visible.sum(-1).tolist() if n], visible.flatten().nonzero()[:, 0])
    runs = (Run(0, *shape),) if packing is None else tuple(packing.runs)
    states = embeddings.flatten(0, 1) if packing is None else packing.pack(embeddings)[0]
    if not states.numel():
        return torch.zeros_like(embeddings)
    # In place, so not in the embeddings' own memory.
    states = states.clone(memory_format=torch.contiguous_format) if packing is None or packing.places is None else states
    if not prepared.encoder.run(states, runs, vars(config)["length_normalization"]):
        return None
    return states.view(embeddings.shape) if packing is None else packing.unpack(states[None], shape)
