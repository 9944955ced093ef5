"""Times of rivals side by side: round after round, in alternating order, so that what else the machine does hits all."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Quantiles:
    """The 10 %, 50 % and 90 % quantiles."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quantiles":
        ordered = torch.tensor(values, dtype=torch.float64)
        low, median, high = ordered.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist()
        return cls(low, median, high)


@dataclass(frozen=True)
class Budget:
    """How long to go on with one comparison: at least `least` rounds, then until `seconds` are over or `most` are done."""

    seconds: float
    least: int = 3
    most: int = 1000


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch use so many threads on the CPU within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def wall_time(function: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def interleave(
    rivals: Mapping[str, Callable[[], object]],
    budget: Budget,
    measure: Callable[[Callable[[], object]], float] = wall_time,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, list[float]]:
    """Seconds of every rival, called before so that it is warm, in every round: A B C, C B A, …"""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    order, start, rounds = list(rivals), clock(), 0
    while rounds < budget.least or (rounds < budget.most and clock() - start < budget.seconds):
        for name in order:
            seconds[name].append(measure(rivals[name]))
        order.reverse()
        rounds += 1
    return seconds


def ratios(seconds: Sequence[float], baseline: Sequence[float]) -> Quantiles:
    """Quantiles over the rounds of the ratio of two rivals' times."""
    return Quantiles.of([mine / other for mine, other in zip(seconds, baseline, strict=True)])
