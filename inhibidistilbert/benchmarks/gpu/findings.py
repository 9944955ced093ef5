"""What a part of the GPU run hands over, one figure or one verdict at a time, and the time it has."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ..timing import Quantiles


@dataclass(frozen=True)
class Finding:
    """One figure, or what stands in its place.

    Attributes:
        case: what was measured, such as a contender or a check.
        setting: at what, such as a shape.
        metric: what was measured of it.
        value: None where there is no figure; `note` then says why.
        low, high: 10 % and 90 % quantiles, where there were several rounds.
        failed: something is wrong, not only missing.
    """

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
    def of(cls, case: str, setting: str, metric: str, quantiles: Quantiles, unit: str = "") -> "Finding":
        return cls(case, setting, metric, quantiles.median, unit, quantiles.low, quantiles.high)

    @classmethod
    def failure(cls, case: str, setting: str, error: BaseException) -> "Finding":
        lines = str(error).strip().splitlines()
        return cls(case, setting, note=f"{type(error).__name__}: {' '.join(lines[:2])[:300]}", failed=True)

    @classmethod
    def skipped(cls, case: str, setting: str, reason: str) -> "Finding":
        return cls(case, setting, note=f"skipped: {reason}")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


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
