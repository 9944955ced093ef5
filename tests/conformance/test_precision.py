"""bfloat16, float16 and autocast: finite at full length with large hidden values, and near float32.

The bounds are relative root mean squares in units of the type's machine epsilon (2^-7 for bfloat16, 2^-10 for float16).
"""

import pytest
import torch

from inhibidistilbert import inhibitor_attention
from inhibidistilbert.testing.reference import relative_rms
from tests.helpers.tiny import TASKS, first_output, tiny_model, tokens
from tests.helpers.tiny_batches import NO_DROPOUT, batch, gradients, padding_mask

LENGTH, SIZE = 512, 30.0
HALF_TYPES = [pytest.param(torch.bfloat16, id="bf16"), pytest.param(torch.float16, id="fp16")]
SCALARS = ("alpha", "beta", "gamma")

half_types = pytest.mark.parametrize("dtype", HALF_TYPES)


def epsilon(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def large_model(task: str = "ForMaskedLM", **fields) -> torch.nn.Module:
    """A float32 model whose hidden states and values have a standard deviation of about 30 in every layer."""
    model = tiny_model(
        task, max_position_embeddings=LENGTH, dim=64, hidden_dim=128, initializer_range=0.125, **NO_DROPOUT, **fields
    )
    encoder = getattr(model, "distilbert", model)
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.mul_(SIZE)
    return model


def full_length_batch() -> dict[str, torch.Tensor]:
    """Three rows of 512: padded at the end, padded at the front, and one token over and over, the largest sum of all."""
    input_ids = tokens(3, LENGTH)
    input_ids[0] = 7
    return {"input_ids": input_ids, "attention_mask": padding_mask(3, LENGTH)}


def assert_scalars_are_float32(model: torch.nn.Module) -> None:
    found = {name: p.dtype for name, p in model.named_parameters() if name.rpartition(".")[2] in SCALARS}
    assert len(found) == len(SCALARS) * model.config.n_layers
    assert set(found.values()) == {torch.float32}


@half_types
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_the_operator_rounds_once(dtype, signed):
    """It computes in float32, so that half a unit in the last place of its output is all that is lost."""
    query, key, value = (
        (SIZE * torch.randn(1, 2, LENGTH, 64)).to(dtype),
        *(SIZE * torch.randn(2, 1, 2, LENGTH, 64)).to(dtype),
    )
    output = inhibitor_attention(query, key, value, signed=signed)
    assert output.dtype == dtype
    assert output.isfinite().all()
    exact = inhibitor_attention(query.float(), key.float(), value.float(), signed=signed)
    assert relative_rms(output, exact) < epsilon(dtype) / 2


@half_types
def test_the_operators_largest_sum_is_finite(dtype):
    """512 equal values of 30 that nothing inhibits: 15 360, and finite gradients."""
    tensors = [torch.full((1, 2, LENGTH, 64), SIZE, dtype=dtype, requires_grad=True) for _ in range(3)]
    output = inhibitor_attention(*tensors, alpha=0.0)
    assert torch.equal(output, torch.full_like(output, LENGTH * SIZE))
    output.float().mean().backward()
    assert all(tensor.grad.isfinite().all() for tensor in tensors)


@torch.no_grad()
@half_types
@pytest.mark.parametrize("implementation", ["inhibitor", "eager"])
@pytest.mark.parametrize("normalization", ["none", "sqrt"])
def test_models_are_finite_and_near_float32(normalization, implementation, dtype):
    model = large_model(attn_implementation=implementation, length_normalization=normalization)
    inputs = full_length_batch()
    exact = model(**inputs, output_hidden_states=True)
    assert all(20 < states.std() < 45 for states in exact.hidden_states)
    half = model.to(dtype)(**inputs, output_hidden_states=True)

    assert_scalars_are_float32(model)
    assert half.logits.dtype == dtype
    for got, want in zip((*half.hidden_states, half.logits), (*exact.hidden_states, exact.logits), strict=True):
        assert got.isfinite().all()
        assert relative_rms(got, want) < 4 * epsilon(dtype)


@half_types
def test_models_train_at_full_length(dtype):
    model = large_model("ForTokenClassification").to(dtype).train()
    found = gradients(model, model(**full_length_batch(), labels=tokens(3, LENGTH) % 2).loss)
    for name, gradient in found.items():
        assert gradient.isfinite().all(), name
        assert gradient.dtype == (torch.float32 if name.rpartition(".")[2] in SCALARS else dtype), name


@pytest.mark.parametrize("implementation", ["inhibitor", "eager"])
@pytest.mark.parametrize("task", TASKS)
def test_autocast_trains_near_float32(task, implementation):
    """Gradients are as near as the kinks allow: in float32, noise of this size in the projections alone gives 0.1."""
    model = tiny_model(task, attn_implementation=implementation, **NO_DROPOUT, length_normalization="sqrt").train()
    inputs = batch(task, 3, 13, labelled=task != "Model")
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(**inputs)
    exact = model(**inputs)
    assert relative_rms(first_output(mixed), first_output(exact)) < 4 * epsilon(torch.bfloat16)

    got, want = (gradients(model, outputs.get("loss", first_output(outputs).square().mean())) for outputs in (mixed, exact))
    for name, gradient in got.items():
        assert gradient.dtype == torch.float32, name
        assert gradient.isfinite().all(), name
    flat_got, flat_want = (torch.cat([gradient.flatten() for gradient in found.values()]) for found in (got, want))
    assert relative_rms(flat_got, flat_want) < 0.25
