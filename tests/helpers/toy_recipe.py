"""The three stages on the toy task, in seconds; a killed run of them."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file

from inhibidistilbert.distillation import checkpoints
from inhibidistilbert.distillation.recipe import Recipe, read_recipe
from inhibidistilbert.distillation.run import run_recipe

STAGES = ["align", "pretrain", "task"]


def three_stages(toy: Path, teacher: Path | str, *changes: str, **given) -> Recipe:
    """A dozen steps a stage, a log and a checkpoint every four."""
    steps = ["align.max_steps=12", "pretrain.max_steps=12", "task.max_steps=12", "task.learning_rate=1e-3"]
    lengths = [f"{stage}.max_length=12" for stage in STAGES] + [f"{stage}.batch_size=16" for stage in STAGES]
    saving = ["trainer.logging_steps=4", "trainer.save_steps=4"]
    texts = {"text_files": "transfer.txt", "train_files": "train.csv", "test_files": "test.csv"}
    files = [f"data.{name}=[{toy / file}]" for name, file in texts.items()]
    return read_recipe("distill", [*steps, *lengths, *saving, *files, *changes], teacher=str(teacher), **given)


def curve(folder: Path) -> list[dict]:
    """The logged losses, without the time they took."""
    records = map(json.loads, (folder / "curves.jsonl").read_text().splitlines())
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records if "loss" in record]


def run_until_killed_at(recipe: Recipe, output: Path, checkpoint: int, half_written: bool) -> None:
    """A run that gets SIGKILL while it writes its `checkpoint`-th checkpoint: within the weights, or before the renaming."""
    count = 0

    def killing(step: Callable) -> Callable:
        def counted(*args, **kwargs):
            nonlocal count
            count += 1
            if count == checkpoint:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*args, **kwargs)

        return counted

    def half(state: dict, path: str, **kwargs) -> None:
        nonlocal count
        count += 1
        save_file(state, path, **kwargs)
        if count == checkpoint:
            os.truncate(path, Path(path).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    if half_written:
        checkpoints.save_file = half
    else:
        checkpoints.CheckpointTrainer._place = killing(checkpoints.CheckpointTrainer._place)
    run_recipe(recipe, output)


def run_quietly(recipe: Recipe, output: Path) -> None:
    run_recipe(recipe, output)
