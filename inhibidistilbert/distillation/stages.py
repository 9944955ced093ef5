"""Runs one stage of a recipe: from a source to a trained student in a folder, going on wherever it was stopped."""

import dataclasses
import json
import shutil
from typing import Any

import datasets
import torch
import transformers
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedModel, set_seed
from transformers.integrations import unset_hf_deepspeed_config

from ..conversion import DTYPES
from ..support.errors import UserError
from ..support.files import replacing_folder
from .arguments import training_arguments
from .checkpoints import check_space, last_checkpoint
from .curves import FILE as CURVES
from .curves import CurveWriter
from .fake_quantization import fake_quantize
from .inputs import TEXTS
from .networks import Learner, Teacher, layer_map
from .objectives import (
    AlignObjective,
    Objective,
    PretrainObjective,
    TaskObjective,
    measure_variances,
    set_dropout,
    trained_parameters,
)
from .prepare import Prepared, check_labels, check_lengths, labelled_sets, needs_teacher
from .recipe import Align, Pretrain, Stage, Student, Task
from .sizes import published_sizes, word_embeddings
from .student import build_student
from .task_vector import add_task_vector, check_fit, task_vector
from .tasks import Collator
from .teacher import add_teacher_logits, load_teacher, save_model
from .text_stream import TextStream
from .trainer import LogBeforeSaving, Masking, StageTrainer, TermProgress, scores
from .work_folder import write

_CALIBRATION_TEXTS = 256  # whose targets' variance is the unit of an alignment's loss


def run_stage(prepared: Prepared, stage: Stage, before: Stage | None) -> dict[str, Any]:
    """Train one stage, or go on with it; its result, and the student in the folder `model`.

    before: the stage whose student it trains; None for the recipe's.
    """
    folder, recipe = prepared.folder(stage), prepared.recipe
    record = folder / "result.json"
    if not record.is_file():
        set_seed(recipe.seed)
        teacher_model = teacher_of(prepared, stage)
        student = recipe.student
        if before is not None:
            student = dataclasses.replace(student, source=str(prepared.folder(before) / "model"), fresh=[])
        model = _student(prepared, stage, student, teacher_model)
        _start_from_teacher(prepared, stage, model, teacher_model)
        _check_models(prepared, stage, model, teacher_model)
        prepared.inputs.check_models(stage)
        prepared.inputs.bind(stage, before, prepared.trust_remote_code)
        result, weights = _train(prepared, stage, model, teacher_model)
        is_last = stage is recipe.stages[-1]
        if PartialState().is_main_process:
            prepared.tokenizer.model_max_length = model.config.max_position_embeddings
            dtype = DTYPES[recipe.save_dtype] if is_last else torch.float32
            save_model(model, prepared.tokenizer, folder / "model", dtype, weights)
            write(record, json.dumps(result))
        PartialState().wait_for_everyone()
    else:
        prepared.inputs.bind(stage, before, prepared.trust_remote_code)
    if PartialState().is_main_process:
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint, ignore_errors=True)
    return json.loads(record.read_text())


def teacher_of(prepared: Prepared, stage: Stage) -> PreTrainedModel | None:
    """With the head that the stage learns from."""
    source = prepared.recipe.teacher_of(stage)
    if source is None:
        return None
    argument = f"{stage.name}.teacher" if stage.teacher else "--teacher"
    head = "Model"
    if isinstance(stage, Task) and stage.soft_weight:
        head = prepared.task.head
    elif isinstance(stage, Pretrain) and (stage.mlm_weight or stage.soft_mlm_weight):
        head = "ForMaskedLM"
    elif not needs_teacher(stage) and prepared.recipe.student.source not in published_sizes():
        return None
    return load_teacher(source, head, prepared.trust_remote_code, argument)


def _head(prepared: Prepared, stage: Stage) -> str:
    if isinstance(stage, Task):
        return prepared.task.head
    masked = isinstance(stage, Pretrain) and (stage.mlm_weight or stage.soft_mlm_weight)
    return "ForMaskedLM" if masked else "Model"


def _labels(prepared: Prepared, stage: Stage, teacher: PreTrainedModel | None) -> dict[str, Any]:
    """Names and number of the classes of a task's student: the recipe's, the teacher's, or as many as the labels need."""
    if not isinstance(stage, Task):
        return {}
    names = prepared.recipe.data.labels
    if names:
        labels: dict[str, Any] = {
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
        }
    elif teacher is not None and stage.soft_weight:
        labels = {"id2label": teacher.config.id2label, "label2id": teacher.config.label2id}
    else:
        labels = {"num_labels": max(prepared.task.num_labels(dataset) for dataset in labelled_sets(prepared).values())}
    check_labels(prepared, len(labels["id2label"]) if "id2label" in labels else labels["num_labels"])
    if prepared.task.problem_type is not None:
        labels["problem_type"] = prepared.task.problem_type
    return labels


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
    trained_parameters(learner, stage)  # type: ignore[arg-type]
    if stage.dropout is not None:
        set_dropout(learner, stage.dropout)
    teacher = None
    if teacher_model is not None:
        layers = layer_map(teacher_model.config.num_hidden_layers, model.config.num_hidden_layers, recipe.student.layers)
        teacher = Teacher(teacher_model.to(arguments.device), layers)  # type: ignore[arg-type]
    dataset = _dataset(prepared, stage, teacher_model)
    collator = Collator(prepared.tokenizer, prepared.task if isinstance(stage, Task) else None)
    masking = None
    if isinstance(stage, Pretrain) and (stage.mlm_weight or stage.soft_mlm_weight):
        masking = Masking(prepared.tokenizer, stage.mlm_probability, recipe.seed)
    evaluation = None
    if isinstance(stage, Task) and prepared.evaluation is not None:
        evaluation = prepared.task.encode(prepared.evaluation, prepared.tokenizer, stage.max_length)
    with PartialState().main_process_first():
        if PartialState().is_main_process:
            check_space(folder, learner, checkpoints=(arguments.save_total_limit or 1) + 1)
    trainer = StageTrainer(
        stage=stage.name,
        objective=_objective(prepared, stage, learner, teacher, dataset, collator),
        task=prepared.task if isinstance(stage, Task) else None,
        masking=masking,
        scalar_learning_rate=stage.scalar_learning_rate,
        # They are read all the time; the files of a task were read at once.
        check_texts=lambda: prepared.inputs.check_unchanged(stage, (TEXTS,)),
        model=learner,
        args=arguments,
        data_collator=collator,
        train_dataset=dataset,
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
    alignment = [1 - value for name, value in sorted(last.items(), key=_layer_number) if name.startswith("unexplained_")]
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


def check_models(prepared: Prepared) -> None:
    """Raises a UserError where a teacher or the student does not fit a later stage, before the first is trained."""
    first, *others = prepared.recipe.stages
    if not others:
        return  # the stage checks itself
    model = _student(prepared, first, prepared.recipe.student, teacher_of(prepared, first))
    for stage in others:
        teacher = teacher_of(prepared, stage)
        _labels(prepared, stage, teacher)
        _check_models(prepared, stage, model, teacher)
        _start_from_teacher(prepared, stage, model, teacher, check_only=True)


def _student(prepared: Prepared, stage: Stage, student: Student, teacher: PreTrainedModel | None) -> PreTrainedModel:
    labels = _labels(prepared, stage, teacher)
    return build_student(student, _head(prepared, stage), teacher, prepared.recipe.teacher_of(stage), **labels)


def _start_from_teacher(
    prepared: Prepared, stage: Stage, model: PreTrainedModel, teacher: PreTrainedModel | None, check_only: bool = False
) -> None:
    """Give a task's student what fine-tuning changed in its teacher, where the stage says from what (`teacher_base`)."""
    source = prepared.recipe.teacher_of(stage)
    if not isinstance(stage, Task) or stage.teacher_base is None or teacher is None or source is None:
        return
    student = prepared.recipe.student
    layers = layer_map(teacher.config.num_hidden_layers, model.config.num_hidden_layers, student.layers)
    labels = _labels(prepared, stage, teacher)
    argument = f"{stage.name}.teacher_base"
    load_teacher(stage.teacher_base, "Model", prepared.trust_remote_code, argument)  # or says what it lacks
    try:
        encoder, head = task_vector(student, prepared.task.head, source, stage.teacher_base, layers, **labels)
        if check_only:
            check_fit(model, encoder)
        else:
            add_task_vector(model, encoder, head)
    except UserError as error:
        raise UserError(f"{argument}: {error}") from error


def _check_models(prepared: Prepared, stage: Stage, student: PreTrainedModel, teacher: PreTrainedModel | None) -> None:
    check_lengths(prepared, stage, student.config.max_position_embeddings, "the student")
    depth = student.config.num_hidden_layers
    if teacher is not None:
        ours, theirs = (word_embeddings(model).num_embeddings for model in (student, teacher))
        if ours != theirs:
            raise UserError(
                f"--student: {student.name_or_path!r} has {ours} word embeddings, the teacher {theirs}: they must share a "
                "tokenizer."
            )
        layers = layer_map(teacher.config.num_hidden_layers, depth, prepared.recipe.student.layers)
        if isinstance(stage, Align):
            Teacher(teacher, layers).check_attention(f"{stage.name}.teacher" if stage.teacher else "--teacher")
    weights = getattr(stage, "hidden_layer_weights", None)
    if weights is not None and (len(weights) != depth or not sum(weights) > 0 or min(weights) < 0):
        raise UserError(
            f"{stage.name}.hidden_layer_weights must be {depth} numbers from 0, one for each layer of the student, not all "
            f"0; got {weights}."
        )


def _layer_number(entry: tuple[str, Any]) -> int:
    number = entry[0].rpartition("_")[2]
    return int(number) if number.isdigit() else -1


def _dataset(prepared: Prepared, stage: Stage, teacher: PreTrainedModel | None) -> Dataset | IterableDataset:
    recipe = prepared.recipe
    if not isinstance(stage, Task):
        blocks = isinstance(stage, Pretrain) and stage.blocks
        return TextStream(prepared.texts, prepared.tokenizer, stage.max_length, stage.batch_size, recipe.seed, blocks)
    # Without hidden states to learn from, the teacher answers each text once, for all epochs.
    fixed_size = prepared.task.head == "ForSequenceClassification"
    once = fixed_size and bool(stage.soft_weight) and not stage.hidden_weight
    folder = prepared.folder(stage) / "labelled"
    # Every process meets here whether the folder is there or not: a late one would else go by, and the others wait for it.
    with PartialState().main_process_first():
        if PartialState().is_main_process and not folder.is_dir():
            parts = [part for part in (prepared.train, prepared.transfer) if part is not None]
            data = prepared.task.encode(datasets.concatenate_datasets(parts), prepared.tokenizer, stage.max_length)
            if once and teacher is not None:
                data = add_teacher_logits(data, teacher, prepared.tokenizer, recipe.bf16)
            with replacing_folder(folder) as new:
                data.save_to_disk(str(new))
    return datasets.load_from_disk(str(folder))


def _objective(
    prepared: Prepared,
    stage: Stage,
    learner: Learner,
    teacher: Teacher | None,
    dataset: Any,
    collator: Collator,
) -> Objective:
    if isinstance(stage, Align):
        assert teacher is not None
        device = teacher.model.device
        rows = [row for row, _ in zip(dataset, range(_CALIBRATION_TEXTS), strict=False)]
        batches = [collator(rows[start : start + 32]) for start in range(0, len(rows), 32)]
        moved = [{name: tensor.to(device) for name, tensor in batch.items()} for batch in batches]
        return AlignObjective(stage, teacher, measure_variances(stage, teacher, moved))
    if isinstance(stage, Pretrain):
        assert teacher is not None
        return PretrainObjective(stage, teacher)
    assert isinstance(stage, Task)
    positions = learner.config.max_position_embeddings if stage.position_offsets else None
    return TaskObjective(stage, prepared.task, teacher if needs_teacher(stage) else None, positions)
