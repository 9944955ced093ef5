"""The short list that stands for a full product really holds every pair."""

from itertools import combinations, product

import pytest

from inhibidistilbert.testing.covering import pairwise

OPTIONS = [
    {"a": (0, 1), "b": "xyz"},
    {"a": (0, 1), "b": (True, False), "c": (None,)},
    {"one": range(5), "two": range(4), "three": range(3), "four": range(2), "five": range(2), "six": "abcdefg"},
    {name: range(3) for name in "abcdefgh"},
    {name: range(size) for name, size in zip("abcdefghij", (2, 2, 2, 4, 2, 3, 5, 6, 3, 3), strict=True)},
    {"a": (1, 1.5, (2,)), "b": [[1], [2]], "c": ("x", "y")},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "x".join(str(len(values)) for values in options.values()))
def test_every_pair_occurs(options: dict) -> None:
    rows = pairwise(options)
    assert all(row.keys() == options.keys() for row in rows)
    for first, second in combinations(options, 2):
        found = [(row[first], row[second]) for row in rows]
        for pair in product(options[first], options[second]):
            assert pair in found, (first, second, pair)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "x".join(str(len(values)) for values in options.values()))
def test_the_list_is_short(options: dict) -> None:
    longest, second = sorted((len(values) for values in options.values()), reverse=True)[:2]
    assert longest * second <= len(pairwise(options)) < 2 * longest * second


def test_the_list_is_the_same_every_time() -> None:
    assert pairwise(OPTIONS[2]) == pairwise(OPTIONS[2])
