"""What a part of the GPU run hands over, one figure or one verdict at a time, and the time it has."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ...support.results import Quantiles, Results, Row


@dataclass(frozen=True)
class Finding(Row):
    """One figure, or what stands in its place.

    Attributes:
        part: of the run, in its files.
        case: what was measured, such as a peer or a check.
        setting: at what, such as a shape.
        metric: what was measured of it.
        value: None where there is no figure; `note` then says why.
        low, high: 10 % and 90 % quantiles, where there were several rounds.
        failed: something is wrong, not only missing.
    """

    part: str = field(default="", kw_only=True)
    case: str
    setting: str = ""
    metric: str = ""
    value: float | None = None
    unit: str = ""
    low: float | None = None
    high: float | None = None
    note: str = ""
    failed: bool = False

    @classmethod
    def of(cls, case: str, setting: str, metric: str, value: Quantiles | float | None, unit: str = "") -> "Finding":
        if isinstance(value, Quantiles):
            return cls(case, setting, metric, value.median, unit, value.low, value.high)
        return cls(case, setting, metric, value, unit)

    @classmethod
    def of_row(cls, case: str, setting: str, row: Row, figures: Sequence[tuple[str, str, str]]) -> Iterator["Finding"]:
        """What there is of `figures`: the metric, the field of the row, and the unit."""
        known = ((metric, getattr(row, name), unit) for metric, name, unit in figures)
        return (cls.of(case, setting, metric, value, unit) for metric, value, unit in known if value is not None)

    @classmethod
    def failure(cls, case: str, setting: str, error: BaseException) -> "Finding":
        lines = str(error).strip().splitlines()
        return cls(case, setting, note=f"{type(error).__name__}: {' '.join(lines[:2])[:300]}", failed=True)

    @classmethod
    def skipped(cls, case: str, setting: str, reason: str) -> "Finding":
        return cls(case, setting, note=f"skipped: {reason}")


@dataclass(frozen=True)
class PartState(Row):
    """How a part went; `note` says what is wrong or missing."""

    part: str
    state: str
    seconds: float
    note: str


@dataclass(frozen=True)
class Verdict(Row):
    """A figure held against its bound. Without a figure `value` and `met` are None, without a bound `met`."""

    goal: str
    bound: str
    value: float | None
    met: bool | None


@dataclass(frozen=True)
class GpuResults(Results):
    results: list[Finding]
    parts: list[PartState]
    goals: list[Verdict]


class Deadline:
    """The seconds a part has, from now on."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        self.seconds, self._clock = seconds, clock
        self._end = clock() + seconds

    @property
    def left(self) -> float:
        return max(0.0, self._end - self._clock())

    def leaves(self, seconds: float) -> bool:
        """Whether there is time for what takes so long."""
        return self.left >= seconds

    @property
    def reason(self) -> str:
        return f"the {self.seconds:.0f} s of this part are used up"
