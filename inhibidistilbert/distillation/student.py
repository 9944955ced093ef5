"""The student: loaded from a checkpoint, or new with embeddings projected from the teacher's."""

from importlib.resources import as_file, files
from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import UserError, reason
from ..modeling.configuration_inhibidistilbert import InhibiDistilBertConfig
from ..modeling.modeling_inhibidistilbert import InhibiDistilBertForSequenceClassification


def published_sizes() -> list[str]:
    """Names of the configurations in `hub_configs`."""
    root = files("inhibidistilbert") / "hub_configs"
    return sorted(entry.name for entry in root.iterdir() if (entry / "config.json").is_file())


def _size_config(name: str) -> InhibiDistilBertConfig:
    with as_file(files("inhibidistilbert") / "hub_configs" / name) as folder:
        return InhibiDistilBertConfig.from_pretrained(folder)


def student_config(source: str) -> InhibiDistilBertConfig:
    """The configuration of `build_student`'s source, without its weights.

    Raises:
        UserError: neither a published size nor a folder with a configuration.
    """
    if source in published_sizes():
        return _size_config(source)
    if not (Path(source) / "config.json").is_file():
        raise UserError(
            f"--student: {source!r} is neither a folder with a config.json nor one of {', '.join(published_sizes())}."
        )
    try:
        return InhibiDistilBertConfig.from_pretrained(source)
    except Exception as error:  # the libraries raise nothing more special for damaged files
        raise UserError(f"--student: {source!r} does not load: {reason(error)}") from error


@torch.no_grad()
def principal_axes(embeddings: torch.Tensor, dim: int) -> torch.Tensor:
    """The first `dim` principal axes of `(vocab, width)`, orthonormal columns `(width, dim)`."""
    centered = embeddings.float() - embeddings.float().mean(0)
    # From the small (width, width) covariance.
    _, axes = torch.linalg.eigh(centered.T @ centered)
    return axes.flip(1)[:, :dim]


@torch.no_grad()
def project_embeddings(teacher: torch.Tensor, dim: int, std: float) -> torch.Tensor:
    """Word embeddings `(vocab, width)` on their first `dim` principal components, scaled to `std`: `(vocab, dim)`."""
    projected = (teacher.float() - teacher.float().mean(0)) @ principal_axes(teacher, dim)
    return projected * (std / projected.std())


def build_student(source: str, teacher: PreTrainedModel) -> InhibiDistilBertForSequenceClassification:
    """An inhibitor student with the teacher's labels.

    source: one of `published_sizes()`, for a new student whose word embeddings are the teacher's on their principal
    components; or the folder of an InhibiDistilBERT checkpoint with the teacher's vocabulary, whose head is kept if it
    has the teacher's number of classes.

    Raises:
        UserError: neither of the two, or another vocabulary size than the teacher's.
    """
    labels = {"id2label": teacher.config.id2label, "label2id": teacher.config.label2id}
    embeddings = cast(nn.Embedding, teacher.get_input_embeddings()).weight
    config = student_config(source)
    if source in published_sizes():
        config.update({**labels, "vocab_size": len(embeddings), "pad_token_id": teacher.config.pad_token_id})
        student = InhibiDistilBertForSequenceClassification(config)
        if config.dim <= embeddings.shape[1]:
            projected = project_embeddings(embeddings, config.dim, std=0.05)
            student.distilbert.embeddings.word_embeddings.weight.data.copy_(projected)
        return student
    if config.vocab_size != len(embeddings):
        raise UserError(
            f"--student: {source!r} has {config.vocab_size} word embeddings, the teacher {len(embeddings)}: "
            "they must share a tokenizer."
        )
    try:
        return InhibiDistilBertForSequenceClassification.from_pretrained(
            source, dtype=torch.float32, ignore_mismatched_sizes=True, **labels
        )
    except Exception as error:  # the libraries raise nothing more special for damaged files
        raise UserError(f"--student: {source!r} does not load: {reason(error)}") from error
