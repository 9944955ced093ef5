"""InhibiDistilBERT: DistilBERT with inhibitor attention in place of softmax attention.

Layout, module names and heads follow DistilBERT, so its checkpoints load here with only alpha, beta and gamma new.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import get_activation
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.modeling_utils import AttentionInterface, PreTrainedModel, load_state_dict
from transformers.pytorch_utils import apply_chunking_to_forward
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..kernels.notice import say_what_is_missing
from .attention_interface import (
    ATTENTION_FORWARDS,
    eager_attention_forward,
    length_divisor,
    packed_attention_forward,
)
from .checkpoint_weights import check_names, check_types, with_half_embeddings
from .compiled_encoder import Parts, refusal, refused, run_compiled
from .configuration_inhibidistilbert import InhibiDistilBertConfig
from .int8_linear import Int8Linear, encoder_linear
from .packing import Packing, is_traced, packed_texts, same_text, without_padding
from .scalars import SCALARS, WithScalars, initial_scalar
from .sources import AUTO_MAP, push_saved, write_remote_code

# This file's own view of the attention interface: its names mean the functions of this very code, even when another
# checkpoint with another version of it is loaded in the same process.
ALL_ATTENTION_FUNCTIONS = AttentionInterface()
ALL_ATTENTION_FUNCTIONS.update(ATTENTION_FORWARDS)


def sinusoidal_position_embeddings(positions: int, dim: int) -> Tensor:
    """Sine at even and cosine at odd channels of `positions / 10000^(2i/dim)`: `(positions, dim)`, float32."""
    channel = torch.arange(dim, dtype=torch.float64)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] / 10000 ** (2 * (channel // 2) / dim)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()


def first_token(
    hidden_states: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """The state of each text's first real token, `(B, L, dim)` -> `(texts, dim)`: behind padding it does not stand at 0."""
    if attention_mask is None:
        packing = packed_texts(hidden_states.shape[:2], position_ids, cu_seq_lens_q)
        return hidden_states[:, 0] if packing is None else hidden_states.flatten(0, 1)[packing.first_tokens()]
    if attention_mask.ndim != 2:
        return hidden_states[:, 0]
    first = attention_mask.bool().int().argmax(-1)
    return hidden_states[torch.arange(first.shape[0], device=first.device), first]


class Embeddings(nn.Module):
    """Word and position embeddings, summed and normalised: `(B, L)` token ids -> `(B, L, dim)`."""

    def __init__(self, config: InhibiDistilBertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.dim, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.dim)
        self.LayerNorm = nn.LayerNorm(config.dim, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)
        self.position_ids = nn.Buffer(torch.arange(config.max_position_embeddings).expand((1, -1)), persistent=False)

    def forward(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        if position_ids is None:
            length, limit = inputs_embeds.shape[1], self.position_embeddings.num_embeddings
            if length > limit:
                raise ValueError(
                    f"The input has {length} tokens but the position table holds {limit} (max_position_embeddings): "
                    "truncate the input, or enlarge the table with resize_position_embeddings."
                )
            position_ids = self.position_ids[:, :length]
        return self.dropout(self.LayerNorm(inputs_embeds + self.position_embeddings(position_ids)))


class InhibiDistilBertSelfAttention(WithScalars):
    """Multi-head inhibitor self-attention with learnable scalars."""

    def __init__(self, config: InhibiDistilBertConfig):
        super().__init__()
        self.config = config
        self.attention_head_size = config.dim // config.n_heads
        self.dropout_p = config.attention_dropout
        self.is_causal = False

        self.q_lin = encoder_linear(config.int8_weights, config.dim, config.dim)
        self.k_lin = encoder_linear(config.int8_weights, config.dim, config.dim)
        self.v_lin = encoder_linear(config.int8_weights, config.dim, config.dim)
        self.out_lin = encoder_linear(config.int8_weights, config.dim, config.dim)
        self.add_scalars(config)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        divisor: Tensor | float | None = None,
        packing: Packing | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """divisor: `length_divisor` of the mask, where it was counted once for all layers. packing: of the hidden states,
        which are `(1, tokens, dim)` then."""
        input_shape = hidden_states.shape[:-1]
        head_shape = (*input_shape, -1, self.attention_head_size)
        projected = [linear(hidden_states).view(head_shape) for linear in (self.q_lin, self.k_lin, self.v_lin)]
        dropout, scores = self.dropout_p if self.training else 0.0, None
        if packing is not None:
            query, key, value = (x[0] for x in projected)
            output = packed_attention_forward(self, query, key, value, packing.runs, dropout)
        else:
            query, key, value = (x.transpose(1, 2) for x in projected)
            implementation = self.config._attn_implementation
            attention_forward = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
            output, scores = attention_forward(self, query, key, value, attention_mask, dropout=dropout, **kwargs)
            if divisor is None:
                divisor = length_divisor(self.config.length_normalization, attention_mask, keys=key.shape[2])
        if divisor is not None:
            output = (output / divisor).to(output.dtype)
        return self.out_lin(output.reshape(*input_shape, -1)), scores


class FFN(nn.Module):
    def __init__(self, config: InhibiDistilBertConfig):
        super().__init__()
        self.chunk_size_feed_forward = config.chunk_size_feed_forward
        self.seq_len_dim = 1
        self.lin1 = encoder_linear(config.int8_weights, config.dim, config.hidden_dim)
        self.lin2 = encoder_linear(config.int8_weights, config.hidden_dim, config.dim)
        self.activation = get_activation(config.activation)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return apply_chunking_to_forward(self.ff_chunk, self.chunk_size_feed_forward, self.seq_len_dim, hidden_states)

    def ff_chunk(self, hidden_states: Tensor) -> Tensor:
        return self.dropout(self.lin2(self.activation(self.lin1(hidden_states))))


class TransformerBlock(GradientCheckpointingLayer):
    def __init__(self, config: InhibiDistilBertConfig):
        super().__init__()
        self.attention = InhibiDistilBertSelfAttention(config)
        self.sa_layer_norm = nn.LayerNorm(config.dim, eps=1e-12)
        self.ffn = FFN(config)
        self.output_layer_norm = nn.LayerNorm(config.dim, eps=1e-12)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
        attended, _ = self.attention(hidden_states, attention_mask=attention_mask, **kwargs)
        hidden_states = self.sa_layer_norm(attended + hidden_states)
        return self.output_layer_norm(self.ffn(hidden_states) + hidden_states)


class Transformer(nn.Module):
    def __init__(self, config: InhibiDistilBertConfig):
        super().__init__()
        self.layer = nn.ModuleList([TransformerBlock(config) for _ in range(config.n_layers)])
        self.gradient_checkpointing = False

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
        for layer in self.layer:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        return hidden_states


class InhibiDistilBertPreTrainedModel(PreTrainedModel):
    """What all InhibiDistilBERT models share: initialisation, loading, saving, the position table."""

    config: InhibiDistilBertConfig
    config_class = InhibiDistilBertConfig
    base_model_prefix = "distilbert"
    supports_gradient_checkpointing = True
    # The mean over the batch is the loss of every head, so the Trainer does the scaling for gradient accumulation.
    accepts_loss_kwargs = False
    _supports_attention_backend = True
    _no_split_modules = ["Embeddings", "TransformerBlock"]
    _keep_in_fp32_modules_strict: list[str] | set[str] | None = list(SCALARS[:3])  # those that every model has
    _can_record_outputs = {"hidden_states": TransformerBlock, "attentions": InhibiDistilBertSelfAttention}

    def __init__(self, config: InhibiDistilBertConfig, *inputs: Any, **kwargs: Any) -> None:
        InhibiDistilBertConfig.validate_fields(config)  # which may have been set since the configuration was made
        super().__init__(config, *inputs, **kwargs)

    def post_init(self) -> None:
        super().post_init()
        if self.config.length_normalization == "passed":
            self._keep_in_fp32_modules_strict = set(SCALARS)
        self._settle_int8()

    def _settle_int8(self) -> None:
        """Where the weights are int8: the model is for inference, so none asks for a gradient, and scales stay float32."""
        if self.config.int8_weights:
            self.requires_grad_(False)
            self._keep_in_fp32_modules_strict = {*SCALARS[:3], "weight_scale"}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Embeddings):
            init.copy_(module.position_ids, torch.arange(module.position_ids.shape[-1]).expand((1, -1)))
            if self.config.sinusoidal_pos_embds:
                init.copy_(
                    module.position_embeddings.weight,
                    sinusoidal_position_embeddings(*module.position_embeddings.weight.shape),
                )
        elif isinstance(module, InhibiDistilBertSelfAttention):
            # Loading builds on the meta device: a scalar missing from the checkpoint is raw memory until this.
            for name, scalar in module.scalars().items():
                init.copy_(scalar, initial_scalar(self.config, name))
        elif isinstance(module, Int8Linear):
            init.zeros_(module.weight_scale)  # no layer that was made of weights has such a scale

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """The name of the implementation to use: the default when none is asked for, an error for softmax kernels."""
        if requested_attention is None:
            return "eager" if self.config.output_attentions else "inhibitor"
        if requested_attention not in ATTENTION_FORWARDS and (
            requested_attention == "sdpa" or any(word in requested_attention for word in ("flash", "flex", "paged"))
        ):
            raise ValueError(
                f"attn_implementation={requested_attention!r} computes softmax attention, which this model does not have; "
                f"use one of {', '.join(map(repr, ATTENTION_FORWARDS))}."
            )
        try:
            return super().get_correct_attn_implementation(requested_attention, is_init_check)
        except ValueError as error:
            raise ValueError(f"{error} This model's own: {', '.join(map(repr, ATTENTION_FORWARDS))}.") from error

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        loaded: Any = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._check_scalars()
        model._check_int8_weights()
        model._settle_int8()  # transformers puts new parameters in the place of those that were built
        if model.config._attn_implementation == "inhibitor":
            say_what_is_missing()
        return loaded

    @staticmethod
    def _load_pretrained_model(model: Any, state_dict: Any, checkpoint_files: Any, load_config: Any, *args, **kwargs) -> Any:
        """Where transformers fills the model from the files: the last place that sees what they really hold."""
        load = PreTrainedModel._load_pretrained_model
        if load_config.hf_quantizer is not None:  # another library's weights, which it checks itself
            return load(model, state_dict, checkpoint_files, load_config, *args, **kwargs)
        stored = state_dict
        if stored is None:
            stored = {}
            for file in checkpoint_files or ():
                stored |= load_state_dict(file, map_location="meta", weights_only=load_config.weights_only)
        source = str(load_config.pretrained_model_name_or_path)
        check_types(model, stored, source)
        info, offload_index = load(model, state_dict, checkpoint_files, load_config, *args, **kwargs)
        check_names(model, info, state_dict is None, load_config.ignore_mismatched_sizes, source)
        return info, offload_index

    def _check_scalars(self) -> None:
        for name, parameter in self.named_parameters():
            if name.rpartition(".")[2] in SCALARS and not parameter.is_meta and not parameter.isfinite().all():
                raise ValueError(
                    f"{name} in {self.name_or_path!r} must be finite, got {parameter.tolist()}: the checkpoint is damaged."
                )

    def _check_int8_weights(self) -> None:
        for name, module in self.named_modules():
            if not isinstance(module, Int8Linear) or module.weight.is_meta:
                continue
            scale = module.weight_scale
            if not ((scale > 0) & scale.isfinite()).all() or (module.weight == -128).any():
                raise ValueError(
                    f"{name} in {self.name_or_path!r} must have weights of -127 to 127 and positive weight_scales: the "
                    "checkpoint is damaged."
                )

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoModel") -> None:
        """Nothing to note: `save_pretrained` writes the sources and the full map of Auto classes itself."""

    def save_pretrained(self, save_directory, *args, push_to_hub: bool = False, **kwargs):
        """Save weights, configuration and the source files, so that the folder loads without this package.

        Takes what `PreTrainedModel.save_pretrained` takes. `push_to_hub=True` uploads after the folder is complete.
        """
        self.config.auto_map = dict(AUTO_MAP)
        if self.config.int8_weights and kwargs.get("state_dict") is None and len(args) < 2:
            kwargs["state_dict"] = with_half_embeddings(self.state_dict())
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            write_remote_code(save_directory)
        if push_to_hub:
            push_saved(self, save_directory, kwargs)

    def get_position_embeddings(self) -> nn.Embedding:
        return cast(Embeddings, self.base_model.embeddings).position_embeddings

    def resize_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """Make the position table `new_num_position_embeddings` long: cut at its end, or lengthened by freshly
        initialised rows (by the formula's rows when the positions are sinusoidal)."""
        if new_num_position_embeddings < 1:
            raise ValueError(f"new_num_position_embeddings must be at least 1, got {new_num_position_embeddings}.")
        embeddings = cast(Embeddings, self.base_model.embeddings)
        old = embeddings.position_embeddings.weight
        kept = min(len(old), new_num_position_embeddings)
        new = nn.Embedding(new_num_position_embeddings, old.shape[1], device=old.device, dtype=old.dtype)
        with torch.no_grad():
            if self.config.sinusoidal_pos_embds:
                new.weight.copy_(sinusoidal_position_embeddings(*new.weight.shape))
            else:
                nn.init.normal_(new.weight, std=self.config.initializer_range)
            new.weight[:kept] = old[:kept]
        new.weight.requires_grad_(old.requires_grad)
        embeddings.position_embeddings = new
        embeddings.position_ids.data = torch.arange(new_num_position_embeddings, device=old.device).expand((1, -1))
        self.config.max_position_embeddings = new_num_position_embeddings


class InhibiDistilBertModel(InhibiDistilBertPreTrainedModel):
    """The encoder: token ids `(B, L)` -> hidden states `(B, L, dim)`."""

    def __init__(self, config: InhibiDistilBertConfig):
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.transformer = Transformer(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, new_embeddings: nn.Module) -> None:
        self.embeddings.word_embeddings = cast(nn.Embedding, new_embeddings)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutput | tuple[Tensor, ...]:
        """Encode `input_ids` `(B, L)` or `inputs_embeds` `(B, L, dim)`.

        attention_mask: `(B, L)`, 0 at padding, in any pattern; or `(B, 1 or H, L, L)`, bool with True for visible keys or
            additive with 0 for them.
        position_ids: `(B or 1, L)`, by default 0, 1, 2, … Without a mask, where they start again another text begins, which
            attends to itself alone; so does one at each of `cu_seq_lens_q`.

        The last hidden states are 0 at padding, which the layers leave out on CPUs.
        `output_attentions=True` returns the scores Z `(B, H, L, L)` of every layer as `attentions`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds.")
        embeddings = self.embeddings(input_ids, inputs_embeds, position_ids)
        if attention_mask is not None:
            (batch, length), heads = embeddings.shape[:2], self.config.n_heads
            full, shape = (batch, heads, length, length), tuple(attention_mask.shape)
            if shape != (batch, length) and not (
                len(shape) == 4
                and shape[0] == batch
                and shape[1] in (1, heads)
                and shape[2] in (1, length)
                and shape[3] == length
            ):
                raise ValueError(
                    f"attention_mask must have shape (batch, length) = {(batch, length)}, or (batch, heads, queries, keys) "
                    f"= {full}, with 1 for all heads or all queries; got {shape}."
                )
            if attention_mask.ndim == 4 and attention_mask.dtype != torch.bool and not attention_mask.is_floating_point():
                raise ValueError(
                    "attention_mask with 4 dimensions must be bool (True = visible) or floating (0 = visible, below 0 = "
                    f"hidden), got {attention_mask.dtype}."
                )
        states = self._compiled(embeddings, attention_mask, position_ids, kwargs)
        if states is not None:
            return BaseModelOutput(last_hidden_state=states)
        packing, attention_mask = self._packing(embeddings, attention_mask, position_ids, kwargs)
        divisor: Tensor | float | None
        if packing is not None:
            divisor = packing.divisor(self.config.length_normalization, embeddings.device)
            states = self.transformer(packing.pack(embeddings), packing=packing, divisor=divisor, **kwargs)
            return BaseModelOutput(last_hidden_state=packing.unpack(states, embeddings.shape[:2]))
        mask = self._mask(embeddings, attention_mask)
        divisor = length_divisor(self.config.length_normalization, mask, keys=embeddings.shape[1])
        states = self.transformer(embeddings, mask, divisor=divisor, **kwargs)
        if attention_mask is not None and attention_mask.ndim == 2:
            states = states.masked_fill(~attention_mask.to(states.device).bool()[..., None], 0)  # as without padding
        return BaseModelOutput(last_hidden_state=states)

    def _compiled(
        self, embeddings: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, kwargs: dict[str, Any]
    ) -> Tensor | None:
        """The states behind the last layer from one compiled call; None where the layers must be called."""
        if is_traced():
            return None
        problem = refusal(self.config, embeddings, attention_mask, self.training, not self._may_pack(kwargs))
        if problem is not None:
            refused(self.transformer, problem)
            return None
        packing = None
        if attention_mask is None:
            packing = packed_texts(embeddings.shape[:2], position_ids, kwargs.get("cu_seq_lens_q"))
        parts = Parts(TransformerBlock, InhibiDistilBertSelfAttention, FFN)
        return run_compiled(self.transformer, parts, self.config, embeddings, packing, attention_mask)

    def _packing(
        self, embeddings: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, kwargs: dict[str, Any]
    ) -> tuple[Packing | None, Tensor | None]:
        """The packing in which the layers get the texts, or None; and the mask for layers that get them as they are."""
        may_pack = self._may_pack(kwargs)
        if attention_mask is not None:
            return (without_padding(self.transformer, attention_mask) if may_pack else None), attention_mask
        texts = embeddings.shape[:2], position_ids, kwargs.get("cu_seq_lens_q")
        packing = packed_texts(*texts)
        if packing is not None and may_pack:
            return packing, None
        return None, same_text(*texts) if packing is not None or is_traced() else None

    def _may_pack(self, kwargs: dict[str, Any]) -> bool:
        """Whether nothing of the layers but their end is asked for, and the attention computes no scores."""
        asked = (kwargs.get(name, getattr(self.config, name)) for name in ("output_hidden_states", "output_attentions"))
        own = self.config._attn_implementation in ATTENTION_FORWARDS and self.config._attn_implementation != "eager"
        return own and not any(asked) and not self.config.chunk_size_feed_forward

    def _mask(self, embeddings: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """The mask in the form of the attention implementation."""
        implementation = self.config._attn_implementation
        if implementation == "eager" or implementation not in ATTENTION_FORWARDS:
            return create_bidirectional_mask(self.config, embeddings, attention_mask)
        # Not from transformers' table of mask functions: another version of this code in the process writes there too.
        if attention_mask is None or attention_mask.ndim == 4:
            return attention_mask
        return attention_mask.to(embeddings.device).bool()


class InhibiDistilBertForMaskedLM(InhibiDistilBertPreTrainedModel):
    """The encoder with DistilBERT's masked-language-modelling head, tied to the word embeddings."""

    _tied_weights_keys = {"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"}

    def __init__(self, config: InhibiDistilBertConfig):
        super().__init__(config)
        self.distilbert = InhibiDistilBertModel(config)
        self.activation = get_activation(config.activation)
        self.vocab_transform = nn.Linear(config.dim, config.dim)
        self.vocab_layer_norm = nn.LayerNorm(config.dim, eps=1e-12)
        self.vocab_projector = nn.Linear(config.dim, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.vocab_projector

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.vocab_projector = cast(nn.Linear, new_embeddings)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs,
    ) -> MaskedLMOutput | tuple[Tensor, ...]:
        """labels: `(B, L)` token ids, -100 where the loss looks away. Logits: `(B, L, vocab_size)`."""
        outputs = self.distilbert(input_ids, attention_mask, inputs_embeds, position_ids, return_dict=True, **kwargs)
        hidden_states = self.activation(self.vocab_transform(outputs.last_hidden_state))
        logits = self.vocab_projector(self.vocab_layer_norm(hidden_states))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size)
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions)


class InhibiDistilBertForSequenceClassification(InhibiDistilBertPreTrainedModel):
    """The encoder with a classification or regression head on the first token."""

    def __init__(self, config: InhibiDistilBertConfig):
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)
        self.distilbert = InhibiDistilBertModel(config)
        self.pre_classifier = nn.Linear(config.dim, config.dim)
        self.classifier = nn.Linear(config.dim, self.num_labels)
        self.dropout = nn.Dropout(config.seq_classif_dropout)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """labels: `(B,)` classes or values, or `(B, num_labels)`; `config.problem_type`, or else their type, decides."""
        outputs = self.distilbert(input_ids, attention_mask, inputs_embeds, position_ids, return_dict=True, **kwargs)
        first = first_token(outputs.last_hidden_state, attention_mask, position_ids, **kwargs)
        pooled = self.dropout(self.pre_classifier(first).relu())
        logits = self.classifier(pooled)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class InhibiDistilBertForTokenClassification(InhibiDistilBertPreTrainedModel):
    """The encoder with a classification head on every token."""

    def __init__(self, config: InhibiDistilBertConfig):
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)
        self.distilbert = InhibiDistilBertModel(config)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.dim, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs,
    ) -> TokenClassifierOutput | tuple[Tensor, ...]:
        """labels: `(B, L)` classes, -100 where the loss looks away. Logits: `(B, L, num_labels)`."""
        outputs = self.distilbert(input_ids, attention_mask, inputs_embeds, position_ids, return_dict=True, **kwargs)
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None if labels is None else self.loss_function(logits, labels, self.config)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class InhibiDistilBertForQuestionAnswering(InhibiDistilBertPreTrainedModel):
    """The encoder with a span head: start and end logits of every token."""

    def __init__(self, config: InhibiDistilBertConfig):
        super().__init__(config)
        if config.num_labels != 2:
            raise ValueError(f"num_labels must be 2 (start and end) for question answering, got {config.num_labels}.")
        self.distilbert = InhibiDistilBertModel(config)
        self.qa_outputs = nn.Linear(config.dim, 2)
        self.dropout = nn.Dropout(config.qa_dropout)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs,
    ) -> QuestionAnsweringModelOutput | tuple[Tensor, ...]:
        """start_positions, end_positions: `(B,)` token indices; those outside the input are left out of the loss."""
        outputs = self.distilbert(input_ids, attention_mask, inputs_embeds, position_ids, return_dict=True, **kwargs)
        start_logits, end_logits = self.qa_outputs(self.dropout(outputs.last_hidden_state)).unbind(-1)
        start_logits, end_logits = start_logits.contiguous(), end_logits.contiguous()
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class InhibiDistilBertForMultipleChoice(InhibiDistilBertPreTrainedModel):
    """The encoder with a head that scores each of several choices by its first token."""

    def __init__(self, config: InhibiDistilBertConfig):
        super().__init__(config)
        self.distilbert = InhibiDistilBertModel(config)
        self.pre_classifier = nn.Linear(config.dim, config.dim)
        self.classifier = nn.Linear(config.dim, 1)
        self.dropout = nn.Dropout(config.seq_classif_dropout)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs,
    ) -> MultipleChoiceModelOutput | tuple[Tensor, ...]:
        """Inputs `(B, choices, L)`, or `(B, choices, L, dim)` for `inputs_embeds`; labels `(B,)`: the right choice."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds.")
        choices = cast(Tensor, inputs_embeds if input_ids is None else input_ids).shape[1]
        input_ids, attention_mask, inputs_embeds, position_ids = (
            None if tensor is None else tensor.flatten(0, 1)
            for tensor in (input_ids, attention_mask, inputs_embeds, position_ids)
        )
        outputs = self.distilbert(input_ids, attention_mask, inputs_embeds, position_ids, return_dict=True, **kwargs)
        first = first_token(outputs.last_hidden_state, attention_mask, position_ids, **kwargs)
        pooled = self.dropout(self.pre_classifier(first).relu())
        logits = self.classifier(pooled).view(-1, choices)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return MultipleChoiceModelOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = [
    "InhibiDistilBertForMaskedLM",
    "InhibiDistilBertForMultipleChoice",
    "InhibiDistilBertForQuestionAnswering",
    "InhibiDistilBertForSequenceClassification",
    "InhibiDistilBertForTokenClassification",
    "InhibiDistilBertModel",
    "InhibiDistilBertPreTrainedModel",
]
