"""Checkpoints of a running training that are whole or not there, whenever it is killed."""

import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers.trainer_utils import rotate_checkpoints
from transformers.utils import SAFE_WEIGHTS_NAME

from ..evaluation.fine_tuning import FineTuner
from ..support.digests import damage, read_seal, seal
from ..support.errors import UserError, reason
from ..support.files import remove

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
_UNFINISHED = "unfinished"
_NAME = re.compile(r"checkpoint-\d+")


def last_checkpoint(folder: Path) -> str | None:
    """The last checkpoint of a training that is whole; None where there is none yet. A line says what the others lack.

    Raises:
        UserError: none is whole: nothing is trained anew, and no checkpoint replaced, without a word.
    """
    found = {int(path.name.rpartition("-")[2]): path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name)}
    broken: list[str] = []
    for _, checkpoint in sorted(found.items(), reverse=True):
        broken_part = damage(checkpoint)
        if broken_part is None:
            _tell(checkpoint, broken)
            return str(checkpoint)
        broken.append(f"{checkpoint.name} {broken_part}")
    if broken:
        raise UserError(
            f"OUTPUT_DIR: no checkpoint in {str(folder)!r} is whole ({'; '.join(broken)}): put back what is missing, or "
            f"remove {str(folder)!r} to begin this stage again."
        )
    return None


def _tell(checkpoint: Path, broken: list[str]) -> None:
    if not PartialState().is_main_process:
        return
    if broken:
        logger.warning("%s: going on from %s instead.", "; ".join(broken), checkpoint)
    then, now = (read_seal(checkpoint) or {}).get("processes"), PartialState().num_processes
    if then != now:
        logger.warning("%s is of %s processes, this run has %d: dropout draws other numbers.", checkpoint, then, now)


def check_space(folder: Path, model: torch.nn.Module, checkpoints: int) -> None:
    """Raises a UserError where `checkpoints` of a training of `model` will not fit."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    # Weights in float32, and Adam's two moments of those that are trained.
    size = 4 * (sum(parameter.numel() for parameter in model.parameters()) + 2 * trained)
    needed, free = size * checkpoints, shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"OUTPUT_DIR: the disk of {str(folder)!r} has {free / 1e9:.2f} GB free, but {checkpoints} checkpoints need "
            f"{needed / 1e9:.2f} GB: free some, or give another folder."
        )


class CheckpointTrainer(FineTuner):
    """A fine-tuner whose checkpoints are written under another name and renamed when they are whole.

    check_texts: called before each is written, and raises a UserError where the texts are no more what they were.
    """

    check_texts: Callable[[], None] = staticmethod(lambda: None)
    _writing = False

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, _UNFINISHED) if self._writing else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        temporary = folder / _UNFINISHED
        self.check_texts()
        self._refuse_bad_weights(name)
        if self.args.should_save:
            remove(temporary)
        self.accelerator.wait_for_everyone()
        self._writing = True
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._place(temporary / name, folder / name)
        except (OSError, RuntimeError, SafetensorError) as error:
            # torch reports a full disk as a RuntimeError.
            remove(temporary)
            raise UserError(
                f"OUTPUT_DIR: {name} could not be written to {str(folder)!r}: {reason(error)}. Earlier checkpoints are "
                "intact: free some space and give the same command again."
            ) from error
        finally:
            self._writing = False
        self.accelerator.wait_for_everyone()

    def _place(self, written: Path, place: Path) -> None:
        """A whole checkpoint under its own name; then those that are too many are removed."""
        seal(written, processes=self.args.world_size)
        remove(place)  # one that was not whole
        written.rename(place)
        written.parent.rmdir()
        rotate_checkpoints(output_dir=str(place.parent), save_total_limit=self.args.save_total_limit, use_mtime=True)

    def _refuse_bad_weights(self, name: str) -> None:
        bad = [key for key, parameter in self.model.named_parameters() if not parameter.isfinite().all()]  # type: ignore[union-attr]
        if bad:
            raise UserError(
                f"{name} is not written: {bad[0]} is not finite. Lower the learning rates and start from an earlier one."
            )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """The weights alone: a checkpoint is read by this class only, and a tied weight is stored once."""
        if not self.args.should_save or output_dir is None:
            return
        state = self.model.state_dict() if state_dict is None else state_dict  # type: ignore[union-attr]
        once: dict[int, str] = {}
        for name, tensor in state.items():
            once.setdefault(tensor.data_ptr() if tensor.numel() else id(tensor), name)
        os.makedirs(output_dir, exist_ok=True)
        weights = {name: state[name].contiguous() for name in once.values()}
        save_file(weights, os.path.join(output_dir, SAFE_WEIGHTS_NAME), metadata={"format": "pt"})
