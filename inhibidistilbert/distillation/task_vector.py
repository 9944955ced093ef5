"""Gives a student what fine-tuning changed in its teacher, its task vector (Ilharco et al. 2023, arXiv 2212.04089)."""

import dataclasses
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..support.errors import UserError
from .student import Student, build_student

Weights = dict[str, Tensor]


def task_vector(
    student: Student, head: str, teacher: str, base: str, layers: list[int], device: str | None = None, **labels: Any
) -> tuple[Weights, Weights]:
    """What fine-tuning changed from `base` to `teacher` in the encoder, and the teacher's head, by the student's names.

    student: what both are copied as, by the same copying that makes a student of its teacher. layers: of both, those that
    the student's come from. device, labels: see `build_student`.

    Raises:
        UserError: models that cannot be copied.
    """
    # Heads that a source has not are drawn; later draws are as without.
    with torch.random.fork_rng(devices=[]):
        tuned, before = (_copied(student, head, source, layers, device, labels) for source in (teacher, base))
    old = before.base_model.state_dict()
    encoder = tuned.base_model.state_dict()
    for name, weight in encoder.items():
        if name not in old or old[name].shape != weight.shape:
            raise UserError(f"{base!r} has no {name} of shape {tuple(weight.shape)} as {teacher!r} has.")
    prefix = f"{tuned.base_model_prefix}."
    heads = {name: weight for name, weight in tuned.state_dict().items() if not name.startswith(prefix)}
    return {name: weight - old[name] for name, weight in encoder.items()}, heads


def _copied(
    student: Student, head: str, source: str, layers: list[int], device: str | None, labels: dict[str, Any]
) -> PreTrainedModel:
    settings = dataclasses.replace(student, source=source, layers=layers, fresh=[])
    try:
        return build_student(settings, head, None, None, device, **labels)
    except UserError as error:
        raise UserError(f"{source!r} cannot be copied as the student is: {error}") from error


def check_fit(model: PreTrainedModel, encoder: Weights) -> None:
    """Raises a UserError where an encoder's weights have other shapes than `model`'s."""
    own = model.base_model.state_dict()
    for name, change in encoder.items():
        if name not in own or own[name].shape != change.shape:
            ours = tuple(own[name].shape) if name in own else "none"
            raise UserError(f"{name} is {tuple(change.shape)} in the teacher and {ours} in the student.")


@torch.no_grad()
def add_task_vector(model: PreTrainedModel, encoder: Weights, head: Weights) -> None:
    """Add the changes to the encoder of `model` and put the head in place of its own. Raises as `check_fit`."""
    check_fit(model, encoder)
    own = model.base_model.state_dict()
    for name, change in encoder.items():
        own[name] += change
    model.load_state_dict(head, strict=False)
