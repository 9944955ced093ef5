"""The files of a run: every figure as CSV, the same with verdicts as JSON, and pictures."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import plots, results
from ..contenders import SUBJECT
from ..kernels_gpu import FORWARD, TRAINING
from ..plots import Panel
from . import kernels
from .execution import MODES
from .findings import Finding
from .goals import GOALS, Findings
from .models import FULL, PEER, PLACES, SENTENCES, Place
from .run import Outcome


def file_stem(device: str) -> str:
    """`gpu_nvidia_h200`"""
    return "gpu_" + re.sub(r"\W+", "_", device.lower()).strip("_")


def by_part(outcomes: Sequence[Outcome]) -> Findings:
    return {outcome.part.name: outcome.findings for outcome in outcomes}


def rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One of every finding; before them, of every part how long it took and what was wrong."""
    found = []
    for outcome in outcomes:
        overall = Finding("the part", metric="time", value=round(outcome.seconds, 1), unit="s", note=outcome.summary)
        found += [{"part": outcome.part.name} | finding.as_dict() for finding in (overall, *outcome.findings)]
    return found


def verdicts(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    return [goal.judge(by_part(outcomes)) for goal in GOALS]


def write(folder: Path, device: str, header: Mapping[str, str], outcomes: Sequence[Outcome]) -> Path:
    """CSV, JSON and PNG; the last only where there is something to draw. Returns the CSV file."""
    stem = folder / file_stem(device)
    table = rows(outcomes)
    results.write_csv(stem.with_suffix(".csv"), header, table)
    parts = [outcome.as_dict() for outcome in outcomes]
    results.write_json(stem.with_suffix(".json"), header, table, parts=parts, goals=verdicts(outcomes))
    drawn = panels(by_part(outcomes))
    if drawn:
        plots.lines(stem.with_suffix(".png"), drawn, "", columns=2)
    return stem.with_suffix(".csv")


def panels(findings: Findings) -> list[Panel]:
    """Times of the kernels by shape, and throughput of the models by batch; those of which there is something."""
    found = [_kernel_panel(findings.get("kernels", ()), pass_name) for pass_name in (FORWARD, TRAINING)]
    found += [_model_panel(findings.get("models", ()), texts) for texts in (SENTENCES, FULL)]
    return [panel for panel in found if any(any(x is not None for x in line) for line in panel.series.values())]


def _kernel_panel(findings: Sequence[Finding], pass_name: str) -> Panel:
    times = {(each.case, each.setting): each.value for each in findings if each.metric == "time"}
    problems = sorted(kernels.PROBLEMS, key=lambda problem: problem.triples)
    names = dict.fromkeys(case for case, _ in times)
    series = {name: [times.get((name, kernels.setting(problem, pass_name))) for problem in problems] for name in names}
    return Panel(f"{pass_name}, ms, by batch×length", [f"{each.batch}×{each.length}" for each in problems], series)


def _model_panel(findings: Sequence[Finding], texts: str) -> Panel:
    speeds = {(each.case, each.setting): each.value for each in findings if each.metric == "throughput"}
    batches = sorted({place.batch for place in PLACES})
    places = [str(Place("bfloat16", texts, batch)) for batch in batches]
    cases = [f"{name}, {mode}" for mode in MODES for name in (SUBJECT, PEER)]
    series = {case: [speeds.get((case, place)) for place in places] for case in cases}
    return Panel(f"bfloat16, {texts}, texts a second, by batch", [str(batch) for batch in batches], series)
