"""What a run hands over: every figure, how its parts went, and the verdicts."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from .findings import Finding, GpuResults
from .goals import GOALS
from .run import Outcome


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
