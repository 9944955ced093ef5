"""From a trained model to an int8 one."""

import copy
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .modeling.int8_linear import Int8Linear
from .modeling.modeling_inhibidistilbert import InhibiDistilBertPreTrainedModel, TransformerBlock
from .support.errors import UserError

LINEARS = {"attention": ("q_lin", "k_lin", "v_lin", "out_lin"), "ffn": ("lin1", "lin2")}


def check_has_int8_form(model: PreTrainedModel, argument: str) -> None:
    """Raise `UserError`, which starts with `argument`, for an inhibition that has no int8 form."""
    config: Any = model.config
    if config.radii > 1:
        raise UserError(f"{argument} has no int8 form: that takes one radius, and it has radii={config.radii}.")


def quantize(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of an InhibiDistilBERT model for int8 inference: attention and every linear layer of the encoder.

    Weights are rounded to 8 bits with a scale for each output, activations as they come, with a scale for each token;
    nothing is calibrated. Embeddings are rounded to float16, and so stored; norms and heads stay as they are. It is saved,
    loaded and published as any other:

        quantize(model).save_pretrained("folder")
        AutoModelForSequenceClassification.from_pretrained("folder", trust_remote_code=True)

    `config.quantized = False` on it, or on a model that is not quantized `= True`, switches attention alone.

    The layers are our own, see `int8_linear`: the packed weights of torch's dynamic quantization do not go into safetensors,
    and torchao, which whoever loads the checkpoint would have to install, is slower.

    Raises:
        UserError: the model is no InhibiDistilBERT, quantized already, or has several radii.
    """
    if not any(isinstance(module, TransformerBlock) for module in model.modules()):
        raise UserError(f"model must be an InhibiDistilBERT model, got {type(model).__name__}.")
    if model.config.int8_weights:
        raise UserError("model has int8 weights already.")
    check_has_int8_form(model, "model")
    model = copy.deepcopy(model).eval()
    model.config.quantized = model.config.int8_weights = True
    for block in model.modules():
        if isinstance(block, TransformerBlock):
            for owner, names in LINEARS.items():
                for name in names:
                    module = getattr(block, owner)
                    setattr(module, name, Int8Linear.from_linear(getattr(module, name)))
    for part in model.modules():
        if isinstance(part, nn.Embedding) and bool(part.weight.half().isfinite().all()):
            part.weight.data = part.weight.detach().half().to(part.weight.dtype)
        if isinstance(part, InhibiDistilBertPreTrainedModel):
            part._settle_int8()
    return model
