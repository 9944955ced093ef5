"""Word embeddings for a new student of a published size."""

from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel


def word_embeddings(model: PreTrainedModel) -> nn.Embedding:
    return cast(nn.Embedding, model.get_input_embeddings())


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
