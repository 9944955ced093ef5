"""Few cases for many options: a list in which every pair of values of any two options occurs together."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any

_Choice = tuple[str, int]  # an option and the index of one of its values


def _pairs(row: Mapping[str, int]) -> set[frozenset[_Choice]]:
    return {frozenset(pair) for pair in combinations(row.items(), 2)}


def _extend(
    start: dict[str, int], options: Mapping[str, Sequence[Any]], missing: set[frozenset[_Choice]], used: Counter[_Choice]
) -> dict[str, int]:
    """`start` with a value for every other option, one after the other the one that brings the most missing pairs."""
    # Where gains are equal: the value with the most pairs still to come, then the one used least.
    rest = Counter(choice for pair in missing for choice in pair)
    row = dict(start)
    for name, values in options.items():
        if name not in row:
            gain = [sum(frozenset({(name, i), other}) in missing for other in row.items()) for i in range(len(values))]
            row[name] = max(range(len(values)), key=lambda i: (gain[i], rest[name, i], -used[name, i]))
    return row


def pairwise(options: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Rows of one value an option, such that each pair of values of two options is in at least one row.

    Greedy and without random numbers: every row starts from a missing pair, of the two options with the most values first.
    As a rule little longer than the product of these two.
    """
    options = dict(sorted(options.items(), key=lambda option: -len(option[1])))
    starts = [
        {a: i, b: j}
        for (a, first), (b, second) in combinations(options.items(), 2)
        for i, j in product(range(len(first)), range(len(second)))
    ]
    missing = set[frozenset[_Choice]]().union(*map(_pairs, starts))
    rows, used = [], Counter[_Choice]()
    for start in starts:
        if not _pairs(start).isdisjoint(missing):
            row = _extend(start, options, missing, used)
            missing -= _pairs(row)
            used.update(row.items())
            rows.append({name: values[row[name]] for name, values in options.items()})
    return rows
