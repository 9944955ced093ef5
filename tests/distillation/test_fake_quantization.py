"""Straight-through fake quantisation: int8's values to the bit, the exact form's gradients."""

import copy

import pytest
import torch

from inhibidistilbert import quantize
from inhibidistilbert.distillation.fake_quantization import fake_quantize, straight_through
from inhibidistilbert.distillation.run import run_recipe
from inhibidistilbert.support.errors import UserError
from tests.helpers.toy_recipe import curve, three_stages
from tests.helpers.toy_task import VOCABULARY, tiny_student, write_distilbert

INPUTS = {
    "input_ids": torch.randint(5, len(VOCABULARY), (3, 9), generator=torch.Generator().manual_seed(0)),
    "attention_mask": torch.tensor([[1] * 9, [1] * 6 + [0] * 3, [1] * 2 + [0] * 7]),
}


def student(**fields):
    return tiny_student(initializer_range=0.2, **fields).eval()


FORMS = [{"centered": centered, "signed": signed} for centered in (True, False) for signed in (True, False)]
FORMS += [{"center": "least"}, {"inhibition": "gate"}]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("normalization", ["none", "sqrt", "passed"])
def test_it_computes_what_the_int8_model_does(form, normalization):
    model = student(**form, length_normalization=normalization, scalars_per_head=True)
    fake = copy.deepcopy(model)
    fake_quantize(fake)
    exact, int8 = model(**INPUTS).logits, quantize(model)(**INPUTS).logits
    assert torch.equal(fake(**INPUTS).logits, int8)
    assert not torch.equal(int8, exact)


def test_a_rounding_has_the_gradient_of_the_identity():
    x = torch.randn(5, requires_grad=True)
    y = straight_through(3 * x, (3 * x).detach().round())
    y.sum().backward()
    assert torch.equal(y, (3 * x).round())
    assert x.grad.tolist() == [3.0] * 5


def test_every_parameter_of_the_encoder_learns():
    model = student()
    fake_quantize(model)
    model(**INPUTS).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        if ".layer." in name and not name.endswith("k_lin.bias"):
            assert parameter.grad.abs().sum() > 0, name


def test_dropped_keys_are_the_same_in_both_forms():
    """What is dropped for the one and not for the other would be a difference far beyond any rounding."""
    model = student(attention_dropout=0.5)
    fake = copy.deepcopy(model)
    fake_quantize(fake)
    layers = [m.distilbert.transformer.layer[0].attention for m in (model, fake)]
    states, outputs = torch.randn(2, 9, 32), []
    for layer in layers:
        torch.manual_seed(0)
        outputs.append(layer.train()(states)[0])
    error = (outputs[0] - outputs[1]).square().mean() / outputs[0].square().mean()
    assert 0 < error.sqrt() < 0.05


def test_a_form_without_int8_is_refused():
    with pytest.raises(UserError, match=r"model has no int8 form: .* and it has radii=2"):
        fake_quantize(student(radii=2))


def test_a_recipe_whose_student_has_no_int8_form_is_refused_before_it_trains(toy, tmp_path):
    teacher = write_distilbert(tmp_path / "teacher")
    recipe = three_stages(toy, teacher, "task.fake_quantization=true", "student.config.radii=2")
    with pytest.raises(UserError, match=r"task.fake_quantization: the student has no int8 form: .* and it has radii=2"):
        run_recipe(recipe, tmp_path / "out")
    assert not (tmp_path / "out" / "curves.jsonl").exists()


def test_a_stage_trains_for_int8(toy, tmp_path):
    teacher = write_distilbert(tmp_path / "teacher", initializer_range=0.3)
    run_recipe(
        three_stages(toy, teacher, "align.fake_quantization=true", "align.max_steps=24", stage="align"), tmp_path / "out"
    )
    losses = [record["loss"] for record in curve(tmp_path / "out")]
    assert losses[-1] < losses[0]
