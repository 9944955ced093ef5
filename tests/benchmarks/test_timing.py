"""Peers in turns, and what is made of their times."""

import pytest

from inhibidistilbert.benchmarks.timing import Budget, interleave, ratios
from inhibidistilbert.support.results import Quantiles


def calls(name: str, log: list[str]):
    return lambda: log.append(name)


def test_order_alternates():
    log: list[str] = []
    works = {name: calls(name, log) for name in "ABC"}
    seconds = interleave(works, Budget(0, least=3))
    assert "".join(log) == "ABC" + "CBA" + "ABC"
    assert all(len(each) == 3 and min(each) > 0 for each in seconds.values())


def test_rounds_end_with_the_time():
    ticks = iter([0.0, 1.0, 2.0, 3.0])  # the start, then after each round beyond the least
    seconds = interleave({"A": int}, Budget(2.5, least=1), measure=lambda function: 1.0, clock=lambda: next(ticks))
    assert len(seconds["A"]) == 3


def test_rounds_end_with_the_most():
    assert len(interleave({"A": int}, Budget(60, most=4), clock=lambda: 0.0)["A"]) == 4


def test_the_measure_takes_the_work_itself():
    seen = []

    def measure(function):
        seen.append(function())
        return 2.0

    seconds = interleave({"A": lambda: "a", "B": lambda: "b"}, Budget(0, least=2), measure)
    assert seen == ["a", "b", "b", "a"]
    assert seconds == {"A": [2.0, 2.0], "B": [2.0, 2.0]}


def test_quantiles():
    assert Quantiles.of([float(x) for x in range(11)]) == Quantiles(1.0, 5.0, 9.0)


def test_ratios_are_taken_round_by_round():
    # The machine was ten times slower in the second round, for both.
    assert ratios([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == Quantiles(2.0, 2.0, 2.0)


def test_ratios_of_unequal_rounds_are_refused():
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0, 2.0], [1.0])
