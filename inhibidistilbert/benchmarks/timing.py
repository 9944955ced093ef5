"""Times of peers side by side: round after round, in alternating order, so that what else the machine does hits all."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from ..support.results import Quantiles

SEED = 0  # of everything that is drawn
Work = Callable[[], object]
SomeWork = TypeVar("SomeWork", bound=Work)


class Refused(Exception):
    """A peer that cannot take part, and why."""


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


def wall_time(work: Work, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that one call takes."""
    start = clock()
    work()
    return clock() - start


def warm_up(
    makers: Mapping[str, Callable[[], SomeWork]],
    refusals: type[Exception] | tuple[type[Exception], ...],
    peak_memory: Callable[[Work], int | None] | None = None,
) -> tuple[dict[str, SomeWork], dict[str, int | None], dict[str, Exception]]:
    """Make each peer's work and call it, which compiles and fills caches; then measure the memory of another call.

    Returns the works and their memory, and of each peer that cannot take part its error, one of `refusals`.
    """
    works: dict[str, SomeWork] = {}
    peaks: dict[str, int | None] = {}
    refused: dict[str, Exception] = {}
    for name, make in makers.items():
        try:
            work = make()
            work()
            peaks[name] = None if peak_memory is None else peak_memory(work)
        except refusals as error:
            refused[name] = error.with_traceback(None)  # whose frames would keep what it has allocated
        else:
            works[name] = work
    return works, peaks, refused


def interleave(
    works: Mapping[str, Work],
    budget: Budget,
    measure: Callable[[Work], float] = wall_time,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, list[float]]:
    """Seconds of every peer's work, called before so that it is warm, in every round: A B C, C B A, …"""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    order, start, rounds = list(works), clock(), 0
    while rounds < budget.least or (rounds < budget.most and clock() - start < budget.seconds):
        for name in order:
            seconds[name].append(measure(works[name]))
        order.reverse()
        rounds += 1
    return seconds


def ratios(seconds: Sequence[float], baseline: Sequence[float]) -> Quantiles:
    """Quantiles over the rounds of the ratio of two peers' times."""
    return Quantiles.of([mine / other for mine, other in zip(seconds, baseline, strict=True)])
