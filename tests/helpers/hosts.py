"""Tiny models of transformers' own classes, and students of them."""

import torch
import transformers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from inhibidistilbert import inhibit
from inhibidistilbert.modeling.modeling_inhibited import InhibitorNorm

# Wide weights: a good part of the values pass inhibition. Grouped key heads where the class has such.
COMMON = {"vocab_size": 60, "num_hidden_layers": 2, "initializer_range": 0.3, "eos_token_id": None}
ROTARY = COMMON | {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
HOSTS = {
    # The layer's index is part of its scaling.
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(**COMMON, n_embd=16, n_head=4, n_positions=64, bos_token_id=None, scale_attn_by_inverse_layer_idx=True)
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**ROTARY, max_position_embeddings=64)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**ROTARY, max_position_embeddings=64, sliding_window=5)),
    "bert": lambda: BertForMaskedLM(
        BertConfig(**COMMON, hidden_size=16, intermediate_size=24, num_attention_heads=4, max_position_embeddings=64)
    ),
    "vit": lambda: ViTForImageClassification(
        ViTConfig(
            **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4},
            **{"image_size": 12, "patch_size": 4, "initializer_range": 0.3},
        )
    ),
}
AUTO_CLASSES = {
    "bert": "AutoModelForMaskedLM",
    "vit": "AutoModelForImageClassification",
    **dict.fromkeys(("gpt2", "llama", "mistral"), "AutoModelForCausalLM"),
}
GENERATING = ("gpt2", "llama", "mistral")


def student(name: str, **options) -> transformers.PreTrainedModel:
    """In float64, with scalars that differ from head to head."""
    torch.manual_seed(0)
    model = inhibit(HOSTS[name](), **options).double().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, InhibitorNorm):
                for scalar in module.scalars().values():
                    scalar.add_(torch.randn_like(scalar), alpha=0.2)
    return model


def inputs_of(name: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return (
        {"pixel_values": torch.randn(2, 3, 12, 12).double()}
        if name == "vit"
        else {"input_ids": torch.randint(1, 60, (2, 9))}
    )
