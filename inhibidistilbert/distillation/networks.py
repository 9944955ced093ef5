"""What a training step runs: the frozen teacher, and the student with projections to the teacher's width."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask

from ..support.errors import UserError

# The module of a layer that gives the attention's output, before it is added to the layer's input.
_ATTENTION_OUTPUTS = {
    "distilbert": "transformer.layer.{}.attention.out_lin",
    "inhibidistilbert": "transformer.layer.{}.attention.out_lin",
    "mpnet": "encoder.layer.{}.attention.attn.o",
    **dict.fromkeys(("bert", "electra", "roberta", "xlm-roberta"), "encoder.layer.{}.attention.output.dense"),
}


def layer_map(teacher_layers: int, student_layers: int, chosen: Sequence[int] | None) -> list[int]:
    """The teacher's layer that each student layer learns from: `chosen`, or evenly spaced ones that end with the last.

    Raises:
        UserError: not one layer of the teacher for each of the student's.
    """
    if chosen is None:
        return [round((layer + 1) * teacher_layers / student_layers) - 1 for layer in range(student_layers)]
    if len(chosen) != student_layers or not all(0 <= layer < teacher_layers for layer in chosen):
        raise UserError(
            f"student.layers must be {student_layers} integers from 0 to {teacher_layers - 1}, a layer of the teacher for "
            f"each of the student's; got {list(chosen)}."
        )
    return list(chosen)


class TeacherStates(NamedTuple):
    """What the teacher computes for a batch. Lists have an entry for each student layer.

    inputs, outputs: hidden states `(B, L, D)` before and after the layer. attention: its attention's output, if recorded.
    result: what the model returns, with its logits.
    """

    inputs: list[Tensor]
    outputs: list[Tensor]
    attention: list[Tensor]
    result: Any


class Teacher:
    """A frozen teacher. Not a module, so that no wrapper for training takes it for a part of the student."""

    def __init__(self, model: PreTrainedModel, layers: Sequence[int]):
        self.model = model.requires_grad_(False).eval()
        self.layers = list(layers)

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Tensor], attention: bool = False) -> TeacherStates:
        recording: AbstractContextManager[list[Tensor]] = self._recorded() if attention else nullcontext([])
        with recording as recorded:
            result = self.model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
            )
        states = result.hidden_states
        return TeacherStates(
            [states[layer] for layer in self.layers], [states[layer + 1] for layer in self.layers], recorded, result
        )

    @contextmanager
    def _recorded(self) -> Iterator[list[Tensor]]:
        path = _ATTENTION_OUTPUTS[str(self.model.config.model_type)]
        outputs: dict[int, Tensor] = {}
        recorded: list[Tensor] = []
        hooks = [
            self.model.base_model.get_submodule(path.format(layer)).register_forward_hook(
                lambda _, __, output, layer=layer: outputs.__setitem__(layer, output)
            )
            for layer in set(self.layers)
        ]
        try:
            yield recorded
            recorded += [outputs[layer] for layer in self.layers]
        finally:
            for hook in hooks:
                hook.remove()


def check_attention(model_type: str, argument: str) -> None:
    """Raises a UserError where the attention's output of such a teacher is not known."""
    if model_type not in _ATTENTION_OUTPUTS:
        raise UserError(
            f"{argument}: a teacher of model_type {model_type!r} cannot be aligned with; known are "
            f"{', '.join(sorted(_ATTENTION_OUTPUTS))}."
        )


def _attention_output(layer: nn.Module, state: Tensor, mask: Tensor | None) -> Tensor:
    """The attention output of a layer, which may be sharded.

    FSDP gathers a layer's weights where the layer is called, and where its output has a gradient.
    """
    attention: Any = layer.attention
    if not isinstance(layer, FSDPModule):
        return attention(state, attention_mask=mask)[0]
    outputs: list[Tensor] = []
    hook = attention.register_forward_hook(lambda _, __, output: outputs.append(output[0]))
    try:
        whole = layer(state, mask)
    finally:
        hook.remove()
    return outputs[0] + 0 * whole


def word_embeddings(model: PreTrainedModel) -> nn.Embedding:
    return cast(nn.Embedding, model.get_input_embeddings())


@torch.no_grad()
def principal_axes(embeddings: torch.Tensor, dim: int) -> torch.Tensor:
    """The first `dim` principal axes of `(vocab, width)`, orthonormal columns `(width, dim)`."""
    centered = embeddings.float() - embeddings.float().mean(0)
    # From the small (width, width) covariance.
    _, axes = torch.linalg.eigh(centered.T @ centered)
    return axes.flip(1)[:, :dim]


class Learner(nn.Module):
    """The student as it is trained: with linear maps to and from the teacher's width, which are dropped afterwards.

    The maps are shared by all layers, so that the layers agree on a basis. They start as the principal axes of the
    teacher's word embeddings, on which those of a new student are; there are none where the widths are equal.
    """

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel | None):
        super().__init__()
        self.student = student
        self.config = student.config
        self.to_student: nn.Linear | None = None
        self.to_teacher: nn.Linear | None = None
        width, student_width = (int(model.config.hidden_size) for model in (teacher or student, student))
        if width != student_width:
            self.to_student = nn.Linear(width, student_width, bias=False)
            self.to_teacher = nn.Linear(student_width, width, bias=False)
            if student_width < width:
                axes = principal_axes(word_embeddings(cast(PreTrainedModel, teacher)).weight, student_width)
                with torch.no_grad():
                    self.to_student.weight.copy_(axes.T)
                    self.to_teacher.weight.copy_(axes)
            else:
                nn.init.orthogonal_(self.to_student.weight)
                nn.init.orthogonal_(self.to_teacher.weight)

    # What the Trainer and its wrappers ask a model of transformers for.

    @property
    def _no_split_modules(self) -> list[str]:
        return list(self.student._no_split_modules or [])

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        self.student.gradient_checkpointing_enable(**options)

    def forward(self, layer_inputs: list[Tensor] | None = None, whole_layers: bool = False, **inputs: Any) -> Any:
        """The student's output, its hidden states in the teacher's width.

        layer_inputs: run each layer by itself on these `(B, L, D)` instead, and return a list of `(B, L, D)`: of the
            attention's outputs, or those of the `whole_layers`.
        """
        if layer_inputs is not None:
            return self._layers(layer_inputs, inputs["attention_mask"], whole_layers)
        result = self.student(**inputs)
        if result.hidden_states is not None and self.to_teacher is not None:
            result["hidden_states"] = tuple(self.to_teacher(state) for state in result.hidden_states)
        return result

    def _layers(self, layer_inputs: list[Tensor], attention_mask: Tensor, whole: bool) -> list[Tensor]:
        outputs = []
        encoder: Any = self.student.base_model
        for layer, state in zip(encoder.transformer.layer, layer_inputs, strict=True):
            if self.to_student is not None:
                state = self.to_student(state)
            mask = create_bidirectional_mask(config=encoder.config, inputs_embeds=state, attention_mask=attention_mask)
            output = layer(state, mask) if whole else _attention_output(layer, state, mask)
            outputs.append(output if self.to_teacher is None else self.to_teacher(output))
        return outputs
