"""Straight-through fake quantisation: the student computes as its int8 form does, and learns as if it were exact.

Forward, embeddings, attention and linear layers give to the bit what `inhibidistilbert.quantize` makes of the weights as
they are.
Backward, rounding counts as the identity (Bengio et al. 2013, arXiv 1308.3432): gradients are those of the exact form.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from ..modeling.attention_interface import inhibitor_attention_forward, inhibitor_mask
from ..modeling.int8_linear import Int8Linear
from ..modeling.modeling_inhibidistilbert import ALL_ATTENTION_FUNCTIONS, TransformerBlock
from ..quantization import LINEARS, check_has_int8_form

NAME = "inhibitor_fake_quantized"


def straight_through(exact: Tensor, quantized: Tensor) -> Tensor:
    """The value of `quantized` with the gradient of `exact`."""
    return exact - exact.detach() + quantized.to(exact.dtype)


def _attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    form = {name: getattr(module.config, name) for name in ("inhibition", "center", "centered", "signed")}
    int8 = SimpleNamespace(**{"delta": None} | module.scalars(), config=SimpleNamespace(**form, quantized=True))
    # The same draw of dropped keys for both.
    with torch.no_grad(), torch.random.fork_rng(enabled=dropout > 0):
        quantized, _ = inhibitor_attention_forward(int8, query, key, value, attention_mask, dropout)
    exact, _ = inhibitor_attention_forward(module, query, key, value, attention_mask, dropout)
    return straight_through(exact, quantized), None


def _linear_hook(linear: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        quantized = Int8Linear.from_linear(linear)(*inputs)
    return straight_through(output, quantized)


def _embedding_hook(embedding: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return straight_through(output, output.detach().half())


def fake_quantize(model: PreTrainedModel) -> None:
    """From now on `model`, an InhibiDistilBERT, computes as `quantize(model)` would. What it saves is not changed.

    Raises:
        UserError: it has several radii, which have no int8 form.
    """
    check_has_int8_form(model, "model")
    AttentionInterface.register(NAME, _attention_forward)
    AttentionMaskInterface.register(NAME, inhibitor_mask)
    ALL_ATTENTION_FUNCTIONS[NAME] = _attention_forward
    model.set_attn_implementation(NAME)
    for block in model.modules():
        if isinstance(block, nn.Embedding):
            block.register_forward_hook(_embedding_hook)
        if isinstance(block, TransformerBlock):
            for owner, names in LINEARS.items():
                for name in names:
                    getattr(getattr(block, owner), name).register_forward_hook(_linear_hook)
