"""Learning curves: a JSON line for each log, and a picture of them."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

FILE = "curves.jsonl"
_NOT_DRAWN = {"stage", "step", "epoch", "grad_norm", "learning_rate", "seconds"}
_TIMES = ("_runtime", "_per_second", "_time")


class CurveWriter(TrainerCallback):
    """Writes each log to a file as it comes: `{"stage": …, "step": …, "loss": …, …}`.

    A resumed training first takes back what was logged after its checkpoint. One too short for the interval between logs is
    logged more often, for else its picture would be blank.
    """

    def __init__(self, file: Path, stage: str):
        self.file = file
        self.stage = stage

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.max_steps < state.logging_steps:
            state.logging_steps = max(1, state.max_steps // 10)
        if state.is_world_process_zero:
            self.file.write_text("".join(self._line(record) for record in state.log_history))

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and state.log_history:
            with self.file.open("a") as file:
                file.write(self._line(state.log_history[-1]))

    def _line(self, record: dict[str, Any]) -> str:
        return json.dumps({"stage": self.stage, **record}) + "\n"


def read_curves(file: Path) -> list[dict[str, Any]]:
    """The logs that can be read. A warning tells of others: a model is not held back for its curve."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        logger.warning("The learning curve cannot be read: %s", error)
        return []
    logs = [log for log in map(_read_log, lines) if log is not None]
    if len(logs) < len(lines):
        logger.warning("%d lines of the learning curve %s cannot be read.", len(lines) - len(logs), file)
    return logs


def _read_log(line: str) -> dict[str, Any] | None:
    try:
        log = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return log if isinstance(log, dict) and {"stage", "step"} <= log.keys() else None


def draw_curves(records: Sequence[dict[str, Any]], file: Path) -> None:
    from ..support import plots

    plots.save(curves_figure(records), file)


def curves_figure(records: Sequence[dict[str, Any]]) -> "Figure":
    """Panels of each stage: its losses and their terms, and the scores of evaluations where there are any."""
    from ..support import plots

    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for record in records:
        evaluation = any(name.startswith("eval_") for name in record)
        names = sorted(record.keys() - _NOT_DRAWN, key=lambda name: (name != "loss", name))
        for name in names if evaluation or "loss" in record else ():
            if not name.endswith(_TIMES) and isinstance(record[name], int | float):
                kind = "scores" if evaluation and name != "eval_loss" else "losses"
                points.setdefault((f"{record['stage']}, {kind}", name), []).append((record["step"], record[name]))
    return plots.curves("Learning curves: losses, and scores of evaluations, by step", points)
