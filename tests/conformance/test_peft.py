"""PEFT: low-rank adapters on the query, key and value projections."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from inhibidistilbert.testing.reference import FORWARD_TOLERANCE, relative_rms
from tests.helpers.tiny import TASKS, first_output, model_class, tiny_model
from tests.helpers.tiny_batches import NO_DROPOUT, batch

PROJECTIONS = ["q_lin", "k_lin", "v_lin"]


def adapted(task: str, **options) -> PeftModel:
    """A model of `task` with adapters that have left their initial zero."""
    model = get_peft_model(tiny_model(task, **NO_DROPOUT), LoraConfig(r=4, target_modules=PROJECTIONS, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.2)
    return model.eval()


def train(model: torch.nn.Module, inputs: dict, steps: int = 20) -> list[float]:
    """The loss before each of some steps on one batch, and after the last."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(steps):
        loss = model(**inputs).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [*losses, model(**inputs).loss.item()]


@pytest.mark.parametrize("task", TASKS[1:])
def test_only_the_adapters_learn_and_the_loss_falls(task):
    model = adapted(task)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    losses = train(model, batch(task, 4, 9, labelled=True))
    assert losses[-1] < 0.8 * losses[0]

    layers = model.config.n_layers
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert len(learning) == layers * len(PROJECTIONS) * 2
    assert all(".lora_A." in name or ".lora_B." in name for name in learning)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == learning


def assert_same_weights(model, other):
    """Bit for bit. Outputs need not be: a matrix product rounds by how a file's bytes happen to lie in memory."""
    weights, others = model.state_dict(), other.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


@torch.no_grad()
@pytest.mark.parametrize("task", TASKS)
def test_adapters_are_saved_loaded_and_merged(tmp_path, task):
    inputs = batch(task, 3, 9)
    model = adapted(task)
    expected = first_output(model(**inputs))
    assert relative_rms(first_output(tiny_model(task)(**inputs)), expected) > 0.01

    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny_model(task), tmp_path / "adapter").eval()
    assert_same_weights(loaded, model)
    assert relative_rms(first_output(loaded(**inputs)), expected) < FORWARD_TOLERANCE

    merged = loaded.merge_and_unload()
    assert type(merged) is model_class(task)
    assert relative_rms(first_output(merged(**inputs)), expected) < FORWARD_TOLERANCE
    merged.save_pretrained(tmp_path / "merged")
    again = model_class(task).from_pretrained(tmp_path / "merged")
    assert_same_weights(again, merged)
    assert relative_rms(first_output(again(**inputs)), expected) < FORWARD_TOLERANCE


def test_a_new_head_learns_beside_the_adapters():
    """`task_type` makes PEFT train and save the head as well, found by the names DistilBERT gives it."""
    model = adapted("ForSequenceClassification", task_type="SEQ_CLS")
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad and ".lora_" not in name}
    head = "base_model.model.{}.modules_to_save.default.{}"
    assert learning == {head.format(m, p) for m in ("pre_classifier", "classifier") for p in ("weight", "bias")}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_on_a_half_precision_model(dtype):
    """The base stays in half precision and its scalars in float32."""
    model = get_peft_model(tiny_model("ForSequenceClassification").to(dtype), LoraConfig(target_modules=PROJECTIONS))
    inputs = batch("ForSequenceClassification", 4, 9, labelled=True)
    losses = train(model, inputs, steps=3)
    assert all(torch.isfinite(torch.tensor(losses)))
    scalars = {p.dtype for name, p in model.named_parameters() if name.rpartition(".")[2] in ("alpha", "beta", "gamma")}
    assert scalars == {torch.float32}


def test_without_target_modules_the_error_names_them():
    with pytest.raises(ValueError, match="target_modules"):
        get_peft_model(tiny_model(), LoraConfig())
