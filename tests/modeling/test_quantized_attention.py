"""`config.quantized`: int8 attention inside the models."""

import pytest
import torch
from transformers import AutoModel

from inhibidistilbert.modeling import attention_interface
from tests.helpers.tiny import TASKS, first_output, tiny_model, tokens

pytestmark = pytest.mark.portable


def relative_rms(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got - want).square().mean() / want.square().mean()).sqrt().item()


@torch.no_grad()
def outputs(model, **options) -> torch.Tensor:
    input_ids = tokens(2, 2, 9) if "MultipleChoice" in type(model).__name__ else tokens(2, 9)
    mask = torch.ones_like(input_ids)
    mask[1, ..., 6:] = 0
    return first_output(model(input_ids, attention_mask=mask, **options))


@pytest.mark.parametrize("task", TASKS)
def test_outputs_are_close_to_the_exact_ones(task):
    model = tiny_model(task)
    exact = outputs(model)
    model.config.quantized = True
    quantized = outputs(model)
    assert not torch.equal(quantized, exact)
    assert relative_rms(quantized, exact) < 0.05


NEAREST = {"inhibition": "gate", "center": "least", "length_normalization": "passed", "alpha_init": -0.5}


@pytest.mark.parametrize("form", [{"inhibition": "gate"}, {"length_normalization": "passed"}, NEAREST], ids=str)
def test_forms_beyond_the_paper(form):
    exact, quantized = (outputs(tiny_model(quantized=switch, **form)) for switch in (False, True))
    assert not torch.equal(quantized, exact)
    assert relative_rms(quantized, exact) < 0.05


@pytest.mark.parametrize("implementation", ["inhibitor", "eager"])
def test_which_calls_are_quantized(implementation, monkeypatch):
    """Those that return no scores, under every name but "eager"."""
    calls = []
    attend, attend_packed = attention_interface.attend, attention_interface.attend_packed

    def recorded(*args):
        *_, quantized, return_scores, _ = args
        calls.append((quantized, return_scores))
        return attend(*args)

    def recorded_packed(*args):
        *_, quantized, _, _ = args
        calls.append((quantized, False))
        return attend_packed(*args)

    monkeypatch.setattr(attention_interface, "attend", recorded)
    monkeypatch.setattr(attention_interface, "attend_packed", recorded_packed)
    model = tiny_model(attn_implementation=implementation, quantized=True)
    outputs(model)
    outputs(model, output_attentions=True)
    exact = (False, True)
    assert calls == [exact if implementation == "eager" else (True, False)] * 2 + [exact] * 2


def test_calls_with_scores_are_exact():
    quantized, exact = tiny_model(quantized=True), tiny_model(attn_implementation="eager")
    assert torch.equal(outputs(quantized, output_attentions=True), outputs(exact, output_attentions=True))


def test_the_switch_is_saved_and_loaded(tmp_path):
    model = tiny_model(quantized=True)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert loaded.config.quantized is True
    assert torch.equal(outputs(loaded), outputs(model))
    exact = AutoModel.from_pretrained(tmp_path, quantized=False).eval()
    assert torch.equal(outputs(exact), outputs(tiny_model()))


def test_padding_changes_nothing():
    model = tiny_model(quantized=True)
    with torch.no_grad():
        alone = model(tokens(1, 6)).last_hidden_state
        row = torch.cat([tokens(1, 6), torch.zeros(1, 5, dtype=torch.long)], 1)
        together = torch.cat([row, tokens(1, 11, seed=3)])
        padded = model(together, attention_mask=together.ne(0)).last_hidden_state[:1, :6]
    # Not to the bit: the products of the projections are summed in another order in another batch.
    assert relative_rms(padded, alone) < 0.01


def test_training_is_refused():
    model = tiny_model(quantized=True)
    with pytest.raises(ValueError, match="quantized=True has no gradient"):
        model(tokens(2, 6))
