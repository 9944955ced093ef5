"""Long lists of cases: `make test` runs the first of each kind."""

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import pytest


def slow_but_first(cases: Iterable[Any], kinds: Callable[[Any], Iterable[Hashable]]) -> list:
    """The cases as parameters; slow where every one of a case's `kinds` was in an earlier case."""
    seen, parameters = set[Hashable](), []
    for case in cases:
        new = {*kinds(case)} - seen
        parameters.append(pytest.param(case, marks=() if new else pytest.mark.slow))
        seen |= new
    return parameters
