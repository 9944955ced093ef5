"""Tiny random models and inputs, shared by the tests of `modeling/`."""

import pytest
import torch
import transformers
from torch import Tensor
from transformers import DistilBertConfig

import inhibidistilbert
from inhibidistilbert import InhibiDistilBertConfig

# Wide weights: a good part of the values pass inhibition, so that scores and scalars matter.
SIZES = {
    "vocab_size": 99,
    "max_position_embeddings": 24,
    "n_layers": 2,
    "n_heads": 4,
    "dim": 32,
    "hidden_dim": 40,
    "initializer_range": 0.25,
}
TASKS = (
    "Model",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)
# For what takes seconds a task: `make test` runs the body and the head with two outputs.
SLOW_TASKS = tuple(
    task if task in ("Model", "ForQuestionAnswering") else pytest.param(task, marks=pytest.mark.slow) for task in TASKS
)


def model_class(task: str) -> type:
    """`"ForMaskedLM"` -> `InhibiDistilBertForMaskedLM`."""
    return getattr(inhibidistilbert, f"InhibiDistilBert{task}")


def distilbert_class(task: str) -> type:
    """transformers' DistilBERT class of the same task."""
    return getattr(transformers, f"DistilBert{task}")


def tiny_config(**fields) -> InhibiDistilBertConfig:
    return InhibiDistilBertConfig(**SIZES | fields)


def tiny_model(task: str = "Model", *, attn_implementation: str = "inhibitor", seed: int = 0, **fields):
    """A random model of `task` in evaluation mode; every bias and norm is random too."""
    torch.manual_seed(seed)
    model = model_class(task)._from_config(tiny_config(**fields), attn_implementation=attn_implementation)
    _randomise_vectors(model)
    return model.eval()


def tiny_distilbert(task: str = "Model", *, seed: int = 0, **fields):
    """transformers' DistilBERT of the same size, with its plain softmax attention."""
    torch.manual_seed(seed)
    model = distilbert_class(task)._from_config(DistilBertConfig(**SIZES | fields), attn_implementation="eager")
    _randomise_vectors(model)
    return model.eval()


def _randomise_vectors(model: torch.nn.Module) -> None:
    """Shake biases and norms off their initial 0 and 1, so that a mix-up between them shows."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and name.endswith((".weight", ".bias")):
                parameter.add_(torch.randn_like(parameter), alpha=0.1)


def tokens(*shape: int, seed: int = 1) -> Tensor:
    """Random token ids, none of them the padding token 0."""
    return torch.randint(1, SIZES["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


def labels_for(task: str, input_ids: Tensor) -> dict[str, Tensor]:
    """The labels a head of `task` with two classes takes with `input_ids`."""
    batch, length = input_ids.shape[0], input_ids.shape[-1]
    match task:
        case "ForMaskedLM":
            return {"labels": input_ids.masked_fill(torch.arange(length) % 3 > 0, -100)}
        case "ForTokenClassification":
            return {"labels": (input_ids % 2).masked_fill(torch.arange(length) == 0, -100)}
        case "ForQuestionAnswering":
            return {"start_positions": torch.arange(batch), "end_positions": torch.arange(batch) + 2}
        case _:
            return {"labels": torch.arange(batch) % 2}


def first_output(outputs) -> Tensor:
    """What a model computes: hidden states, logits, or start and end logits `(B, L, 2)`."""
    if "start_logits" in outputs:
        return torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


# The attributes of a module that are no settings: where it is held, and what transformers notes while loading.
_NOT_SETTINGS = {"_modules", "_parameters", "_buffers", "config", "name_or_path"}
_NOT_SETTINGS |= {"forward", "_is_hf_initialized", "_use_kernels", "_weight_conversions"}


def state_of(model: torch.nn.Module) -> dict[str, object]:
    """All that a model is made of but the values: every setting, parameter, buffer and field of its configuration."""
    state: dict[str, object] = {}
    for owner, module in model.named_modules():
        state |= {f"{owner}.{name}": value for name, value in vars(module).items() if name not in _NOT_SETTINGS}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        state[name] = (type(tensor), tensor.dtype, tuple(tensor.shape), tensor.requires_grad)
    fields = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    return state | fields


def assert_saving_changes_nothing(model, folder) -> None:
    """What is loaded is what was saved, attribute by attribute, and saves to the same bytes."""
    model.save_pretrained(folder / "first")
    loaded = type(model).from_pretrained(folder / "first")
    assert state_of(loaded) == state_of(model)
    loaded.save_pretrained(folder / "second")
    files = [{file.name: file.read_bytes() for file in (folder / name).iterdir()} for name in ("first", "second")]
    assert files[0] == files[1]
