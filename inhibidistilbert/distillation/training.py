"""Runs one stage of a recipe: from a source to a trained student in a folder, going on wherever it was stopped."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedModel, set_seed
from transformers.integrations import unset_hf_deepspeed_config

from ..conversion import DTYPES
from ..support.digests import change, content_of
from ..support.errors import UserError
from ..support.files import read_json, remove, write_text
from .arguments import training_arguments
from .batches import Collator
from .checkpoints import check_space, last_checkpoint
from .curves import FILE as CURVES
from .curves import CurveWriter
from .data import TEXTS
from .fake_quantization import fake_quantize
from .networks import Learner, Teacher, layer_map
from .objectives import set_dropout
from .stages import Prepared, Stage
from .student import build_student, save_student
from .trainer import LogBeforeSaving, StageTrainer, TermProgress, scores

logger = logging.getLogger(__name__)


def run_stage(prepared: Prepared, stage: Stage, before: Stage | None) -> dict[str, Any]:
    """Train one stage, or go on with it; its result, and the student in the folder `model`.

    before: the stage whose student it trains; None for the recipe's.
    """
    folder, recipe = prepared.folder(stage), prepared.recipe
    result = _finished(folder)
    if result is None:
        set_seed(recipe.seed)
        teacher_model = prepared.teacher(stage)
        student = recipe.student
        if before is not None:
            student = dataclasses.replace(student, source=str(prepared.folder(before) / "model"), fresh=[])
        head, source, labels = stage.head(prepared.task), recipe.teacher_of(stage), stage.labels(prepared, teacher_model)
        model = build_student(student, head, teacher_model, source, **labels)
        stage.check_models(prepared, model, teacher_model)
        stage.start(prepared, model, teacher_model)
        _check_later(prepared, stage, model)
        prepared.inputs.check_models(stage)
        prepared.inputs.bind(stage, before, prepared.trust_remote_code)
        result, weights = _train(prepared, stage, model, teacher_model)
        is_last = stage is recipe.stages[-1]
        if PartialState().is_main_process:
            prepared.tokenizer.model_max_length = model.config.max_position_embeddings
            dtype = DTYPES[recipe.save_dtype] if is_last else torch.float32
            save_student(model, prepared.tokenizer, folder / "model", dtype, weights)
            record = {**result, "model": content_of(str(folder / "model"), model=True)}
            write_text(folder / "result.json", json.dumps(record))
        PartialState().wait_for_everyone()
    else:
        prepared.inputs.bind(stage, before, prepared.trust_remote_code)
    if PartialState().is_main_process:
        for checkpoint in folder.glob("checkpoint-*"):
            remove(checkpoint)
    return result


def _finished(folder: Path) -> dict[str, Any] | None:
    """What a finished stage came to; None where it is to be trained.

    Raises:
        UserError: its model is not what it has written; its checkpoints are gone, so that would be trained from the start.
    """
    record: dict[str, Any] = {}
    try:
        record = read_json(folder / "result.json", finite=False)
    except UserError as error:
        if not (folder / "model").is_dir() or any(folder.glob("checkpoint-*")):
            return None
        logger.warning("%s. The stage is finished, but the log will lack what it came to.", error)
    before, now = record.get("model"), content_of(str(folder / "model"), model=True)
    what = change(before, now) if isinstance(before, dict) and now else None
    if what or not now:
        raise UserError(
            f"OUTPUT_DIR: the model in {str(folder / 'model')!r} is not as its training wrote it, "
            f"{what or 'it is gone'}: put it back, or remove {str(folder)!r} to train this stage again."
        )
    return {name: record[name] for name in ("steps", "seconds", "loss", "alignment", "eval") if name in record}


def _check_later(prepared: Prepared, stage: Stage, model: PreTrainedModel) -> None:
    """Raises a UserError where what a later stage reads does not fit its teacher, or this student. No weights are read."""
    stages = prepared.recipe.stages
    with torch.random.fork_rng(devices=[]):  # so that the training draws as it would without
        for later in stages[stages.index(stage) + 1 :]:
            teacher = prepared.teacher(later, "meta")
            later.labels(prepared, teacher)
            later.check_models(prepared, model, teacher)
            later.start(prepared, model, teacher)


def _train(
    prepared: Prepared, stage: Stage, model: PreTrainedModel, teacher_model: PreTrainedModel | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Train `model`, from the last checkpoint if there is one; what it came to, and its whole weights."""
    recipe, folder = prepared.recipe, prepared.folder(stage)
    arguments = training_arguments(recipe, stage, folder)
    if stage.fake_quantization and recipe.student.attention == "inhibitor":
        fake_quantize(model)
    short = stage.max_length <= 128
    if short and recipe.bf16 and arguments.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        # The backward pass of torch's fused softmax attention takes half of such a step there: a call for every few keys.
        model.set_attn_implementation("eager")
    learner = Learner(model, teacher_model)
    stage.freeze(learner)
    if stage.dropout is not None:
        set_dropout(learner, stage.dropout)
    teacher = None
    if teacher_model is not None:
        layers = layer_map(teacher_model.config.num_hidden_layers, model.config.num_hidden_layers, recipe.student.layers)
        teacher = Teacher(teacher_model.to(arguments.device), layers)  # type: ignore[arg-type]
    task = prepared.task if stage.labelled else None
    rows = stage.rows(prepared, teacher_model)
    collator = Collator(prepared.tokenizer, task)
    evaluation = None
    if task is not None and prepared.evaluation is not None:
        evaluation = task.encode(prepared.evaluation, prepared.tokenizer, stage.max_length)
    with PartialState().main_process_first():
        if PartialState().is_main_process:
            check_space(folder, learner, checkpoints=(arguments.save_total_limit or 1) + 1)
    trainer = StageTrainer(
        stage=stage.name,
        objective=stage.objective(learner, teacher, rows, collator),
        task=task,
        masking=stage.masking(prepared),
        scalar_learning_rate=stage.scalar_learning_rate,
        # They are read all the time; the files of a task were read at once.
        check_texts=lambda: prepared.inputs.check_unchanged(stage, (TEXTS,)),
        model=learner,
        args=arguments,
        data_collator=collator,
        train_dataset=rows,
        eval_dataset=evaluation,
        callbacks=[CurveWriter(folder / CURVES, stage.name), LogBeforeSaving()],
    )
    if not arguments.disable_tqdm:
        trainer.remove_callback(transformers.ProgressCallback)
        trainer.add_callback(TermProgress)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    trainer.check_texts()
    history = [record for record in trainer.state.log_history if "loss" in record]
    last: dict[str, Any] = history[-1] if history else {}
    terms = (f"unexplained_{layer}" for layer in range(model.config.num_hidden_layers))
    alignment = [1 - last[term] for term in terms if term in last]
    result = {
        "steps": trainer.state.global_step,
        "seconds": round(trainer.seconds, 1),
        "loss": last.get("loss"),
        "alignment": alignment or None,
        "eval": scores(trainer.evaluate()) if evaluation is not None else None,
    }
    weights = trainer.student_weights()
    # Or models would from now on be loaded as the shards of DeepSpeed's ZeRO stage 3, frozen teachers too.
    unset_hf_deepspeed_config()
    return result, weights
