"""From names and fields of BERT and DistilBERT to those of the student."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

import transformers
from torch import Tensor

from ..modeling.configuration_inhibidistilbert import InhibiDistilBertConfig
from . import authors_format
from .options import StudentOptions

# BERT's name of a configuration field: the name it has here. Fields of the same name are carried as well.
_BERT_FIELDS = {
    "hidden_size": "dim",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "classifier_dropout": "seq_classif_dropout",
}
_NOT_CARRIED = {"architectures", "dtype", "n_layers", "transformers_version"}

# Part of a parameter's name in BERT: in DistilBERT. The longer of two that overlap stands first.
_BERT_NAMES = {
    "encoder.layer.": "transformer.layer.",
    "attention.self.query.": "attention.q_lin.",
    "attention.self.key.": "attention.k_lin.",
    "attention.self.value.": "attention.v_lin.",
    "attention.output.dense.": "attention.out_lin.",
    "attention.output.LayerNorm.": "sa_layer_norm.",
    "intermediate.dense.": "ffn.lin1.",
    "output.dense.": "ffn.lin2.",
    "output.LayerNorm.": "output_layer_norm.",
    "cls.predictions.transform.dense.": "vocab_transform.",
    "cls.predictions.transform.LayerNorm.": "vocab_layer_norm.",
    # Where the two names of the bias are not tied, the later one is what the model computes with.
    "cls.predictions.bias": "vocab_projector.bias",
    "cls.predictions.decoder.": "vocab_projector.",
}
_POOLER = re.compile(r"^(bert\.)?pooler\.")
_DROPPED = re.compile(
    r"^((bert\.)?pooler\.|cls\.seq_relationship\.|(bert\.)?embeddings\.(token_type_embeddings\.|position_ids$))"
)
_LAYER = re.compile(r"^(.*\btransformer\.layer\.)(\d+)(\..*)$")


def student_names(source_names: Iterable[str], layers: Sequence[int]) -> dict[str, str]:
    """`{student's parameter: source's parameter}` for the names of a BERT or DistilBERT state dict.

    Layer `layers[i]` of the source becomes layer i. What the student does not have is absent: other layers, BERT's pooler
    and the classifier behind it, its segment embeddings and its next-sentence head.
    """
    source_names = list(source_names)
    pooled = any(_POOLER.match(name) for name in source_names)
    names = {}
    for source in source_names:
        if _DROPPED.match(source) or (pooled and source.startswith("classifier.")):
            continue
        student = re.sub(r"^bert\.", "distilbert.", source)
        for theirs, ours in _BERT_NAMES.items():
            student = student.replace(theirs, ours)
        in_layer = _LAYER.match(student)
        if in_layer is None:
            names[student] = source
            continue
        for place, layer in enumerate(layers):
            if layer == int(in_layer[2]):
                names[f"{in_layer[1]}{place}{in_layer[3]}"] = source
    return names


def bert_to_distilbert(state_dict: Mapping[str, Tensor], layers: Sequence[int]) -> dict[str, Tensor]:
    """A BERT state dict, with or without a head, under DistilBERT's names and with the chosen `layers` only.

    Segment embedding 0 is added to every position embedding, so that single segments are embedded as before.

    Raises:
        KeyError: when position or segment embeddings are absent.
    """
    weights = {student: state_dict[source] for student, source in student_names(state_dict, layers).items()}
    prefix = "bert." if "bert.embeddings.position_embeddings.weight" in state_dict else ""
    positions = state_dict[f"{prefix}embeddings.position_embeddings.weight"]
    segment = state_dict[f"{prefix}embeddings.token_type_embeddings.weight"][0]
    folded = (positions.float() + segment.float()).to(positions.dtype)
    weights[f"{'distilbert.' if prefix else ''}embeddings.position_embeddings.weight"] = folded
    return weights


def student_config(
    config: transformers.PreTrainedConfig, layers: Sequence[int], options: StudentOptions
) -> InhibiDistilBertConfig:
    """The source's configuration in the student's terms: sizes, dropouts, labels, token ids."""
    # DistilBERT's alone: a source has nothing to say of the fields of our attention, even where it has one of such a name.
    known = {item.name for item in dataclasses.fields(transformers.DistilBertConfig)} - _NOT_CARRIED
    renamed = {_BERT_FIELDS.get(name, name): value for name, value in config.to_dict().items()}
    carried = {name: value for name, value in renamed.items() if name in known}
    if carried.get("seq_classif_dropout") is None:
        # BERT's classifier_dropout None means its hidden dropout.
        carried["seq_classif_dropout"] = carried["dropout"]
    has_scalars = authors_format.is_authors_format(config.to_dict())
    if has_scalars:
        carried |= authors_format.student_fields(config.to_dict())
    return InhibiDistilBertConfig(**carried, n_layers=len(layers), **options.inhibitor_fields(has_scalars))
