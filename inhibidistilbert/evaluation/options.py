"""The options of an evaluation, checked."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..support.errors import UserError
from ..support.text_columns import check_different
from .fine_tuning import Recipe
from .tasks import TEXT_OPTIONS, Task, find_task

SHORTEST = 4  # tokens: [CLS], one of each text, [SEP]


@dataclass
class Evaluation:
    """The options of `inhibidistilbert evaluate`, with its names and meanings.

    Raises:
        UserError: an option out of its range, or two that exclude each other.
    """

    checkpoints: list[str]
    task: str
    data: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    text_column: str | None = None
    text_pair_column: str | None = None
    label_column: str | None = None
    fine_tune: bool = False
    seeds: list[int] = field(default_factory=lambda: [0])
    recipe: Recipe = field(default_factory=Recipe)
    max_length: int | None = None
    batch_size: int = 32
    device: str = "auto"
    output: Path | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if len(set(self.checkpoints)) < len(self.checkpoints):
            raise UserError(f"CHECKPOINT: each may be given once, got {', '.join(self.checkpoints)}.")
        if not self.fine_tune and len(self.seeds) > 1:
            raise UserError("--seed: several seeds are for --fine-tune; an evaluation alone has no chance in it.")
        if len(set(self.seeds)) < len(self.seeds) or any(not 0 <= seed < 2**32 for seed in self.seeds):
            raise UserError(f"--seed must be different numbers from 0 to {2**32 - 1}, got {self.seeds}.")
        recipe = self.recipe
        numbers = {"--epochs": recipe.epochs, "--learning-rate": recipe.learning_rate}
        numbers |= {"--train-batch-size": recipe.batch_size, "--batch-size": self.batch_size}
        for name, value in numbers.items():
            if not 0 < value < math.inf:
                raise UserError(f"{name} must be a number above 0, got {value}.")
        if self.max_length is not None and self.max_length < SHORTEST:
            raise UserError(f"--max-length must be at least {SHORTEST} tokens, got {self.max_length}.")
        if self.fine_tune and self.output is None:
            raise UserError("--fine-tune needs --output, the folder to write the trained models to.")

    def find_task(self) -> Task:
        """The task, with the columns that were named."""
        task = find_task(self.task)
        columns = list(task.text_columns)
        if self.text_column is not None:
            columns[0] = self.text_column
        if self.text_pair_column is not None:
            columns[1:] = [self.text_pair_column]
        label_column = task.label_column if self.label_column is None else self.label_column
        check_different(dict(zip(TEXT_OPTIONS, columns, strict=False)) | {"--label-column": label_column})
        changes: dict[str, Any] = {"text_columns": tuple(columns), "label_column": label_column}
        if self.splits:
            changes["splits"] = tuple(dict.fromkeys(self.splits))
        return dataclasses.replace(task, **changes)
