"""Learning curves: a JSON line for each log, and a picture of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

FILE = "curves.jsonl"


class CurveWriter(TrainerCallback):
    """Writes each log to a file as it comes: `{"stage": …, "step": …, "loss": …, …}`.

    A resumed training first takes back what was logged after its checkpoint.
    """

    def __init__(self, file: Path, stage: str):
        self.file = file
        self.stage = stage

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.file.write_text("".join(self._line(record) for record in state.log_history))

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and state.log_history:
            with self.file.open("a") as file:
                file.write(self._line(state.log_history[-1]))

    def _line(self, record: dict[str, Any]) -> str:
        return json.dumps({"stage": self.stage, **record}) + "\n"


def read_curves(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def draw_curves(records: Sequence[dict[str, Any]], file: Path) -> None:
    """A panel a stage: its loss, the terms of it, and the scores of evaluations on an axis of their own."""
    from matplotlib.figure import Figure

    stages = list(dict.fromkeys(record["stage"] for record in records))
    figure = Figure(figsize=(5 * len(stages), 3.6), layout="constrained")
    for axes, stage in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
        logs = [record for record in records if record["stage"] == stage]
        losses = [record for record in logs if "loss" in record]
        ignored = {"stage", "step", "epoch", "grad_norm", "learning_rate", "seconds"}
        for name in losses[0].keys() - ignored if losses else ():
            style = {"color": "black", "linewidth": 2} if name == "loss" else {"alpha": 0.7}
            points = [(record["step"], record[name]) for record in losses if name in record]
            axes.plot(*zip(*points, strict=True), label=name, **style)
        evaluations = [record for record in logs if any(name.startswith("eval_") for name in record)]
        if evaluations:
            right = axes.twinx()
            timing = ("_runtime", "_per_second", "_time")
            for name in sorted(evaluations[0]):
                if name.startswith("eval_") and not name.endswith(timing):
                    points = [(record["step"], record[name]) for record in evaluations]
                    right.plot(*zip(*points, strict=True), "o--", markersize=4, label=name)
            right.legend(loc="lower right", fontsize="x-small")
        axes.set(title=stage, xlabel="step", ylabel="loss")
        if losses:
            axes.legend(loc="upper right", fontsize="x-small")
    figure.savefig(file, dpi=120)
