"""The files of a run: every figure as CSV, the same with verdicts as JSON, and pictures."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...support import files
from .. import pictures
from .findings import Finding
from .goals import GOALS, Findings
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
    files.write_csv(stem.with_suffix(".csv"), header, table)
    parts = [outcome.as_dict() for outcome in outcomes]
    files.write_json(stem.with_suffix(".json"), header, table, parts=parts, goals=verdicts(outcomes))
    pictures.draw(stem.with_suffix(".json"))
    return stem.with_suffix(".csv")
