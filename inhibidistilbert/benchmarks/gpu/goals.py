"""What a run hands over: every figure, how its parts went, and the verdicts on the goals."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ...support.benchmark_results import Shape
from ..operators import FORWARD
from ..peers import INHIBITOR
from . import kernels, matrix_rate, models
from .execution import MODES
from .findings import Finding, GpuResults, Verdict
from .models import FULL, PEER, SENTENCES, Place
from .run import Outcome

Findings = Mapping[str, Sequence[Finding]]  # by the name of their part
Figure = Callable[[Findings], float | None]


@dataclass(frozen=True)
class Goal:
    """A figure, and what it should be; neither bound: only of interest."""

    text: str
    figure: Figure
    at_least: float | None = None
    at_most: float | None = None

    def judge(self, findings: Findings) -> Verdict:
        value, met = self.figure(findings), None
        bound = ""
        if self.at_least is not None:
            bound, met = f"≥ {self.at_least:g}", None if value is None else value >= self.at_least
        elif self.at_most is not None:
            bound, met = f"≤ {self.at_most:g}", None if value is None else value <= self.at_most
        return Verdict(self.text, bound, value, met)


def _find(findings: Iterable[Finding], case: str, setting: str, metric: str) -> float | None:
    for finding in findings:
        if (finding.case, finding.setting, finding.metric) == (case, setting, metric):
            return finding.value
    return None


def _checks_not_passed(findings: Findings) -> float | None:
    checks = findings.get("correctness", ())
    return float(sum(finding.value != 1 for finding in checks)) if checks else None


_GOAL_SHAPE = kernels.SHAPES[0]


def _kernel(metric: str, shape: Shape = _GOAL_SHAPE) -> Figure:
    def figure(findings: Findings) -> float | None:
        return _find(findings.get("kernels", ()), kernels.INHIBITOR, kernels.setting(shape, FORWARD), metric)

    return figure


def _memory_growth(findings: Findings) -> float | None:
    longer = replace(_GOAL_SHAPE, length=2 * _GOAL_SHAPE.length)
    less, more = (_kernel("extra memory", shape)(findings) for shape in (_GOAL_SHAPE, longer))
    return None if not less or more is None else more / less


def _model_ratios(findings: Sequence[Finding], texts: str, batch: int) -> tuple[float | None, float | None]:
    """Throughput and energy of the inhibitor by softmax in bfloat16, each run in the way that is fastest for it."""
    place = str(Place("bfloat16", texts, batch))
    best, energy = {}, {}
    for name in (INHIBITOR, PEER):
        speeds = {mode: _find(findings, f"{name}, {mode}", place, "throughput") for mode in MODES}
        known = {mode: speed for mode, speed in speeds.items() if speed is not None}
        if not known:
            return None, None
        mode = max(known, key=lambda mode: known[mode])
        best[name], energy[name] = known[mode], _find(findings, f"{name}, {mode}", place, "energy")
    mine, other = energy[INHIBITOR], energy[PEER]
    return best[INHIBITOR] / best[PEER], None if mine is None or not other else mine / other


def _worst(which: int, choose: Callable[[list[float]], float], texts: str, batches: Sequence[int]) -> Figure:
    """Of the ratios of `_model_ratios`; None where one is missing."""

    def figure(findings: Findings) -> float | None:
        ratios = [_model_ratios(findings.get("models", ()), texts, batch)[which] for batch in batches]
        known = [ratio for ratio in ratios if ratio is not None]
        return choose(known) if len(known) == len(batches) else None

    return figure


def _bit_rate(name: str) -> Figure:
    return lambda findings: _find(findings.get("one-bit", ()), name, "", matrix_rate.RELATIVE)


_BATCHES = sorted({place.batch for place in models.PLACES})
GOALS = (
    Goal("checks of the kernels that did not pass", _checks_not_passed, at_most=0),
    Goal(f"kernel forward, share of the fp32 floor at {_GOAL_SHAPE}", _kernel("share of the floor"), at_least=0.75),
    Goal(f"kernel forward, times faster than cdist at {_GOAL_SHAPE}", _kernel("times faster than cdist"), at_least=30),
    Goal("kernel forward, extra memory at twice the length", _memory_growth, at_most=2.1),
    Goal("model / softmax bf16, sentences, worst batch", _worst(0, min, SENTENCES, _BATCHES), at_least=0.95),
    Goal("energy / softmax bf16, sentences, worst batch", _worst(1, max, SENTENCES, _BATCHES), at_most=1.1),
    Goal("model / softmax bf16, 128 tokens, batch 1", _worst(0, min, FULL, [1]), at_least=1.0),
    Goal("model / softmax bf16, 128 tokens, batch 32", _worst(0, min, FULL, [32]), at_least=0.8),
    Goal("one-bit / bf16 instruction rate, mma", _bit_rate("mma")),
    Goal("one-bit / bf16 instruction rate, wgmma", _bit_rate("wgmma")),
)


def file_stem(device: str) -> str:
    """`gpu_nvidia_h200`"""
    return "gpu_" + re.sub(r"\W+", "_", device.lower()).strip("_")


def results(machine: Mapping[str, str], outcomes: Sequence[Outcome]) -> GpuResults:
    """A row of every finding; before those of a part, how long it took and what was wrong."""
    found = []
    for outcome in outcomes:
        overall = Finding("the part", metric="time", value=round(outcome.seconds, 1), unit="s", note=outcome.summary)
        found += [replace(finding, part=outcome.part.name) for finding in (overall, *outcome.findings)]
    by_part = {outcome.part.name: outcome.findings for outcome in outcomes}
    return GpuResults(machine, found, [outcome.state() for outcome in outcomes], [goal.judge(by_part) for goal in GOALS])
