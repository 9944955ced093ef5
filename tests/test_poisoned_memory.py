"""The autouse fixture of `conftest.py` truly poisons fresh memory, and leaves initialised memory alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

FRESH: dict[str, Callable[[Tensor], Tensor]] = {
    "empty": lambda like: torch.empty(like.shape, dtype=like.dtype),
    "empty_like": torch.empty_like,
    "empty_like-contiguous": lambda like: torch.empty_like(like.mT, memory_format=torch.contiguous_format),
    "new_empty": lambda like: like.new_empty(like.shape),
    "empty_strided": lambda like: torch.empty_strided(like.shape, (1, 3), dtype=like.dtype),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("make", FRESH.values(), ids=FRESH.keys())
def test_fresh_memory_is_nan(make: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    assert make(torch.ones(3, 4, dtype=dtype)).isnan().all()


def test_a_forgotten_write_shows() -> None:
    buffer = torch.empty(4)
    buffer[:3] = 1.0
    assert buffer.sum().isnan()


def test_initialised_memory_is_left_alone() -> None:
    assert torch.zeros(4).tolist() == [0.0] * 4
    assert torch.ones(3).clone().tolist() == [1.0] * 3


@pytest.mark.parametrize("_", range(2), ids=["first", "second"])
def test_every_test_starts_from_the_same_seed(_: int) -> None:
    assert torch.initial_seed() == 0
    assert torch.rand(1).item() == pytest.approx(0.4962566)
