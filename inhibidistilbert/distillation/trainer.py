"""The Trainer of all stages: any objective, in steps whose loss does not depend on how many processes share them."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import ProgressCallback, TrainerCallback, TrainerState

from ..support.errors import UserError
from .batches import LengthGrouped, Masking
from .checkpoints import STATE_FILE, CheckpointTrainer
from .networks import Learner
from .objectives import Objective, Term
from .tasks import TaskKind

TIMINGS = ("_runtime", "_per_second", "_time", "seconds")  # how names of what the Trainer measures of itself end
_NO_TERMS = ("epoch", "grad_norm", "learning_rate", "total_flos", "train_")


class StageTrainer(CheckpointTrainer):
    """Trains a `Learner` on an objective.

    Args:
        stage: its name, for errors.
        objective: None for evaluation alone.
        task: scores evaluations; None for stages without labels.
        scalar_learning_rate: see `FineTuner`.
        masking: masks tokens for an MLM objective.
        check_texts: see `CheckpointTrainer`.
    """

    def __init__(
        self,
        *,
        stage: str,
        objective: Objective | None = None,
        task: TaskKind | None = None,
        scalar_learning_rate: float | None = None,
        masking: Masking | None = None,
        check_texts: Callable[[], None] | None = None,
        **kwargs: Any,
    ):
        super().__init__(compute_metrics=task.score if task else None, **kwargs)
        self.stage = stage
        self.objective: Objective | None = objective
        self.task = task
        self.scalar_learning_rate = scalar_learning_rate
        self.masking = masking
        if check_texts is not None:
            self.check_texts = check_texts
        # The loss is divided by the counts of the whole step here, so the Trainer must not divide it again.
        self.model_accepts_loss_kwargs = True
        self._watched: dict[str, Tensor] = {}
        self._last_terms, self._seconds_before, self._started = 0, 0.0, time.monotonic()

    # Batches

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        if not hasattr(dataset, "column_names"):  # a stream comes in batches of similar length already
            return None
        arguments = self.args
        step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        return LengthGrouped(dataset["length"][:], step, arguments.seed, lambda: self.state.epoch or 0.0)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Any]:
        """The batches of a step, masked if the objective wants it, and their counts over all processes."""
        if self.state.global_step >= self.state.max_steps:
            # Resumed from its last checkpoint, because the student was not written: transformers would take a step more.
            self.control.should_training_stop = True
            return [], None
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.masking is not None:
            batches = [self.masking(batch, self.state.global_step) for batch in batches]
        if not batches or self.objective is None:
            return batches, None
        each = [self.objective.counts(batch) for batch in batches]
        names = list(each[0])
        counts = torch.stack([torch.stack([count[name] for count in each]).sum() for name in names]).to(device)
        counts = self.accelerator.reduce(counts, reduction="sum")
        # A step without, say, a masked token has no loss of them.
        return batches, dict(zip(names, counts.clamp(min=1).float(), strict=True))

    # Losses

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Tensor:
        assert self.objective is not None
        terms = self.objective.terms(model, inputs)
        loss = torch.zeros((), device=self.args.device)
        for term in terms:
            value = term.total / num_items_in_batch[term.per]
            if term.weight:
                loss = loss + term.weight * value
            seen = self._watched.get(term.name)
            self._watched[term.name] = value.detach() if seen is None else seen + value.detach()
        if not loss.isfinite():
            self._refuse(inputs, terms)
        # Gradients are averaged over processes, but the terms are to be summed.
        return loss * self.args.world_size

    def _refuse(self, inputs: Any, terms: list[Term]) -> None:
        """Stops at a loss that is no number, after a look for the first layer that is to blame."""
        names = ", ".join(term.name for term in terms if not term.total.isfinite())
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            layer = "its layer is not looked for where each process holds a part of the model"
        else:
            layer = first_bad_layer(self.accelerator.unwrap_model(self.model), inputs)
        raise UserError(
            f"stage {self.stage}, step {self.state.global_step + 1}: the loss ({names}) is not finite; {layer}. Checkpoints "
            f"before it are intact. Try a lower {self.stage}.learning_rate or scalar_learning_rate."
        )

    @property
    def seconds(self) -> float:
        """The time spent on this training, summed over all its runs."""
        return self._seconds_before + time.monotonic() - self._started

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With the mean of each term of the loss since the last time, and the seconds trained."""
        if "loss" in logs:
            logs["seconds"] = round(self.seconds, 1)
        steps = self.state.global_step - self._last_terms
        if "loss" in logs and self._watched and steps:
            names = sorted(self._watched)
            totals = self.accelerator.reduce(torch.stack([self._watched[name] for name in names]), reduction="sum")
            logs |= {name: value / steps for name, value in zip(names, totals.tolist(), strict=True)}
            self._watched.clear()
            self._last_terms = self.state.global_step
        super().log(logs, start_time)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        self._watched.clear()
        self._last_terms, self._seconds_before, self._started = 0, 0.0, time.monotonic()
        if resume_from_checkpoint is not None:
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint, STATE_FILE)))
            self._last_terms = state.global_step
            self._seconds_before = max((record.get("seconds", 0.0) for record in state.log_history), default=0.0)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def student_weights(self) -> dict[str, Tensor]:
        """The weights of the student alone, without maps. The main process gets them whole, also where each holds a part.

        All processes call it.
        """
        state = self.accelerator.get_state_dict(self.model_wrapped) or {}
        return {name.removeprefix("student."): weight for name, weight in state.items() if name.startswith("student.")}

    # Evaluation

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, Tensor, Tensor]:
        """What the task predicts; its labels."""
        assert self.task is not None
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            result = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        return None, self.task.predict(self.task.logits(result), inputs), inputs["labels"]


@torch.no_grad()
def first_bad_layer(learner: Learner, batch: dict[str, Tensor]) -> str:
    """Which part of the student is the first whose output is not finite, as a sentence."""
    encoder: Any = learner.student.base_model
    parts = [("the embeddings", encoder.embeddings)]
    parts += [(f"layer {number}", layer) for number, layer in enumerate(encoder.transformer.layer)]
    bad: list[str] = []

    def watch(name: str) -> Callable:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            # At padding anything may stand.
            if not output[batch["attention_mask"].bool()].isfinite().all():
                bad.append(name)

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in parts]
    was_training = learner.training
    try:
        learner.student.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    finally:
        learner.train(was_training)
        for hook in hooks:
            hook.remove()
    weights = [name for name, parameter in learner.named_parameters() if not parameter.isfinite().all()]
    if bad:
        return f"the first output that is not finite is that of {bad[0]}" + (f" (weights: {weights[0]})" if weights else "")
    return "every layer's output is finite, so it comes from the head, the labels or the teacher"


class TermProgress(ProgressCallback):
    """The progress bar, with the terms of the loss behind it instead of a line for each log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None:
            shown = {
                name: f"{value:.4g}"
                for name, value in (logs or {}).items()
                if not name.startswith(_NO_TERMS) and not name.endswith(TIMINGS)
            }
            if shown:
                self.training_bar.set_postfix(shown)


class LogBeforeSaving(TrainerCallback):
    """Ends the window of a log at each checkpoint, so that a resumed run logs what an uninterrupted one does."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_save:
            control.should_log = True


def scores(metrics: dict[str, Any]) -> dict[str, float]:
    """What an evaluation measured, without the time it took."""
    return {name.removeprefix("eval_"): value for name, value in metrics.items() if not name.endswith((*TIMINGS, "epoch"))}
