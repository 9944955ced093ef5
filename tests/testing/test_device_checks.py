"""The checks of a model's sizes at small ones, and those that only a GPU can pass, where there is one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from inhibidistilbert import inhibitor_attention
from inhibidistilbert.kernels.triton import launch
from inhibidistilbert.support.errors import UserError
from inhibidistilbert.testing import device_checks
from inhibidistilbert.testing.device_checks import (
    DEVICE,
    LARGE,
    Large,
    check_large,
    checks,
    draw_large,
    gpu_checks,
    judge_large,
)
from inhibidistilbert.testing.reference import run, visible_keys

pytestmark = pytest.mark.skipif(launch.triton is None, reason="triton is not installed")

SMALL = {"batch": 1, "heads": 1, "length": 16, "size": 16}


@pytest.mark.parametrize(
    "large",
    [
        Large(**SMALL, half_real=True, dropout=True),
        Large(**SMALL, dtype=torch.bfloat16),
        pytest.param(Large(**SMALL | {"size": 64}, gate=True), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_agrees_with_float64(large: Large) -> None:
    check_large(large)


@pytest.mark.parametrize("large", [replace(large, batch=1, heads=1) for large in LARGE if large.on_grid], ids=str)
def test_scores_on_the_grid_are_exact_and_off_the_kinks(large: Large) -> None:
    """So that no gradient can differ because float32 falls on the other side of a kink."""
    inputs = draw_large(replace(large, length=min(large.length, 128)))
    query, key, value = (inputs.tensors[name].double() for name in ("query", "key", "value"))
    visible = visible_keys(query, key, **inputs.options)
    score = torch.cdist(query, key, p=1) * large.size**-0.5 * inputs.tensors["gamma"].double()
    if large.gate:
        score = score - score.masked_fill(~visible, torch.inf).amin(-1, keepdim=True)
    elif large.centered:
        score = score - (score * visible).sum(-1, keepdim=True) / visible.sum(-1, keepdim=True)
    score = score + inputs.tensors["alpha"].double()[:, None, None]
    assert torch.equal(score, score.float().double())
    assert score[visible].abs().min() > 1e-5
    if large.gate:
        assert ((inputs.tensors["delta"].double() * score).abs() - 0.5)[visible].abs().min() > 1e-5
    active = 0
    for c in range(large.size):
        gap = value[:, :, None, :, c].abs() / (2 if large.gate else 1) - (score.abs() if large.gate else score.relu())
        assert gap[visible & (value[:, :, None, :, c] != 0)].abs().min() > 1e-5
        active += (gap > 0)[visible].double().mean().item() / large.size
    assert 0.2 < active < 0.8


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the kernels the plain form in float32: what is tested is the check."""
    monkeypatch.setattr(device_checks, "run", lambda inputs, backend: run(inputs, "torch"))
    monkeypatch.setattr(
        device_checks, "inhibitor_attention", lambda *args, backend, **options: inhibitor_attention(*args, **options)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_gradient_is_found(plain, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    def judge(inputs):
        want = judge_large(inputs)
        want.gradients["key"][0, 0, 0, 0] += 0.01 * want.gradients["key"].abs().max()
        return want

    large = Large(batch=2, heads=2, length=64, dtype=dtype)
    check_large(large)
    monkeypatch.setattr(device_checks, "judge_large", judge)
    with pytest.raises(AssertionError, match=r"'key'|beyond one rounding"):
        check_large(large)


def test_a_wrong_output_of_inference_is_found(plain, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes other kernels for half types."""
    right = device_checks.inhibitor_attention
    monkeypatch.setattr(device_checks, "inhibitor_attention", lambda *args, **options: 1.001 * right(*args, **options))
    with pytest.raises(AssertionError, match="inference"):
        check_large(Large(batch=2, heads=2, length=64))


def test_the_list_is_whole() -> None:
    kinds = [name.split(",")[0].split(" ")[0] for name in checks()]
    assert {kind: kinds.count(kind) for kind in ("options", "not-finite", "model", "half", "single", "CUDA")} == {
        "options": len(device_checks.pairs()) + len(device_checks.BEYOND),
        "not-finite": len(device_checks.spoilt_pairs()) + len(device_checks.BEYOND_SPOILT) + len(device_checks.SPOILT) - 1,
        "model": len(LARGE),
        "half": 2 * len(device_checks.HALF_CASES),
        "single": 4,
        "CUDA": 5,
    }


def test_checks_without_assertions_are_refused() -> None:
    """They would all pass."""
    file = device_checks.__file__
    module = {"__name__": device_checks.__name__, "__package__": device_checks.__package__}
    exec(compile(Path(file).read_text(encoding="utf-8"), file, "exec", optimize=1), module)
    with pytest.raises(UserError, match="without -O"):
        module["checks"]()


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU")
@pytest.mark.parametrize("check", gpu_checks().values(), ids=gpu_checks().keys())
def test_on_a_gpu(check: Callable[[], None]) -> None:
    check()


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU")
@pytest.mark.parametrize("large", LARGE, ids=str)
def test_a_models_sizes(large: Large) -> None:
    check_large(large)
