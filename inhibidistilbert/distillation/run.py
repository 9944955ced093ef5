"""Runs a recipe: every check first, then its stages, each from files to a folder, going on wherever it was stopped."""

import contextlib
import dataclasses
import hashlib
import json
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import datasets
import torch
import transformers
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed
from transformers.utils import has_file

from ..conversion import DTYPES
from ..errors import UserError, reason
from ..quiet import quiet_transformers
from .checkpoints import check_space, last_checkpoint
from .curves import FILE as CURVES
from .curves import CurveWriter, draw_curves, read_curves
from .fake_quantization import fake_quantize
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
from .recipe import Align, Pretrain, Recipe, Stage, Task, build_recipe
from .sizes import published_sizes, word_embeddings
from .student import build_student, student_class
from .tasks import KINDS, Collator, TaskKind
from .teacher import add_teacher_logits, check_same_tokenizer, load_teacher, load_tokenizer, save_model
from .text_stream import TextStream, open_texts
from .trainer import LogBeforeSaving, Masking, StageTrainer, TermProgress

LOG = "distillation.json"
# Files as errors name them: the option, and the recipe's key.
TRAIN, TRANSFER = "--train-file (data.train_files)", "--transfer-file (data.transfer_files)"
EVAL, TEST = "--eval-file (data.eval_file)", "--test-file (data.test_files)"
_CALIBRATION_TEXTS = 256  # whose targets' variance is the unit of an alignment's loss

# Fields of TrainingArguments that a stage sets, and where the recipe has them.
_MANAGED = {
    "output_dir": "OUTPUT_DIR",
    "max_steps": "<stage>.max_steps",
    "num_train_epochs": "<stage>.epochs",
    "learning_rate": "<stage>.learning_rate",
    "per_device_train_batch_size": "<stage>.batch_size",
    "weight_decay": "<stage>.weight_decay",
    "warmup_steps": "<stage>.warmup",
    "warmup_ratio": "<stage>.warmup",
    "lr_scheduler_type": "<stage>.schedule",
    "max_grad_norm": "<stage>.max_grad_norm",
    "bf16": "bf16",
    "seed": "seed",
    "data_seed": "seed",
    "train_sampling_strategy": "nothing: texts of similar length come together",
    "remove_unused_columns": "nothing",
    "resume_from_checkpoint": "nothing: the same command goes on by itself",
    "label_names": "data.label_column",
}


@dataclass
class Prepared:
    """What all stages share, read and checked before anything is trained."""

    recipe: Recipe
    work_dir: Path
    trust_remote_code: bool
    tokenizer: PreTrainedTokenizerBase
    task: TaskKind
    train: Dataset | None = None
    transfer: Dataset | None = None
    evaluation: Dataset | None = None
    tests: dict[str, Dataset] = dataclasses.field(default_factory=dict)
    texts: list[datasets.IterableDataset] = dataclasses.field(default_factory=list)

    def folder(self, stage: Stage) -> Path:
        return self.work_dir / stage.name


def run_recipe(recipe: Recipe, output_dir: Path, trust_remote_code: bool = False) -> dict[str, Any]:
    """Train all stages of `recipe` and write the student to `output_dir`, which appears when everything is finished.

    The work lies in `OUTPUT_DIR.work`: given the same recipe again, finished stages are taken from there and the others go
    on at their last checkpoint. An `output_dir` that this recipe has made already is left as it is.

    Returns the log that is also written as `distillation.json`.

    Raises:
        UserError: bad input, before any training; a full disk or a loss that is not finite, with the checkpoints intact.
    """
    done = finished_log(output_dir)
    if done is not None and not _changes(done.get("recipe"), recipe):
        return done
    state = PartialState()
    work_dir = output_dir.with_name(output_dir.name + ".work")
    with state.main_process_first():
        if state.is_main_process:
            _claim(output_dir, work_dir, recipe)
    if not state.is_main_process:
        datasets.disable_progress_bars()
    set_seed(recipe.seed)
    prepared = _prepare(recipe, work_dir, trust_remote_code)
    results: dict[str, Any] = {}
    source: str | None = None
    for stage in recipe.stages:
        results[stage.name] = _run_stage(prepared, stage, source)
        source = str(prepared.folder(stage) / "model")
    log = {
        "recipe": _plain(recipe),
        "stages": results,
        "tests": _tests(prepared, recipe.stages[-1], str(source)),
        "data": {path: _describe(Path(path)) for path in _data_files(recipe)},
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, datasets, accelerate)},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {state.num_processes} processes",
    }
    if state.is_main_process:
        _finish(prepared, Path(str(source)), output_dir, log)
    state.wait_for_everyone()
    return log


def finished_log(folder: Path) -> dict[str, Any] | None:
    """The log of a finished distillation; None where there is none."""
    try:
        return json.loads((folder / LOG).read_text())
    except (OSError, ValueError):
        return None


def _plain(recipe: Recipe) -> dict[str, Any]:
    return json.loads(json.dumps(recipe.as_json()))


def _claim(output_dir: Path, work_dir: Path, recipe: Recipe) -> None:
    """Make the work folder, or see that the one there is of this recipe."""
    if output_dir.exists():
        raise UserError(f"OUTPUT_DIR: {str(output_dir)!r} exists already: give another name or remove it.")
    record = work_dir / "recipe.json"
    if record.is_file():
        # The record alone is left by one that stopped at its input: nothing is lost by starting anew.
        begun = any(path != record for path in work_dir.iterdir())
        if begun and (changes := _changes(json.loads(record.read_text()), recipe)):
            raise UserError(
                f"OUTPUT_DIR: {str(work_dir)!r} holds an unfinished distillation with other options: {changes}. Give the "
                "same command to go on with it, remove it, or give another OUTPUT_DIR."
            )
    elif work_dir.exists() and (not work_dir.is_dir() or any(work_dir.iterdir())):
        raise UserError(f"OUTPUT_DIR: {str(work_dir)!r} is in the way: it is no work folder of a distillation.")
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        _write(record, json.dumps(_plain(recipe), indent=2))
    except OSError as error:
        raise UserError(f"OUTPUT_DIR: {str(work_dir)!r} cannot be written: {reason(error)}") from error


def _changes(recorded: Any, recipe: Recipe) -> str:
    """How a recipe differs from a recorded one, which may lack settings that are newer than it; empty where it does not."""
    # One that is no recipe any more tells by the names of its settings what is different.
    with contextlib.suppress(UserError, TypeError, AttributeError):
        recorded = _plain(build_recipe(recorded))
    before, now = _flat(recorded), _flat(_plain(recipe))
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return ", ".join(f"{name} {now.get(name)!r} (was {before.get(name)!r})" for name in names)


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by dotted path; stages by their name."""
    if isinstance(settings, list) and settings and all(isinstance(entry, dict) for entry in settings):
        settings = {str(entry.get("name")): entry for entry in settings}
    if not isinstance(settings, dict) or not settings:
        return {prefix: settings}
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        path = name if prefix in ("", "stages") else f"{prefix}.{name}"
        flat |= _flat(value, path)
    return flat


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _data_files(recipe: Recipe) -> list[str]:
    data, kinds = recipe.data, {type(stage) for stage in recipe.stages}
    files = list(data.text_files) if kinds & {Align, Pretrain} else []
    if Task in kinds:
        files += [*data.train_files, *data.transfer_files, *([data.eval_file] if data.eval_file else []), *data.test_files]
    return files


# Checks and reading


def _prepare(recipe: Recipe, work_dir: Path, trust_remote_code: bool) -> Prepared:
    tokenizer = _tokenizer(recipe, trust_remote_code)
    prepared = Prepared(recipe, work_dir, trust_remote_code, tokenizer, KINDS[recipe.data.kind](recipe.data))
    data = recipe.data
    for stage in recipe.stages:
        _training_arguments(prepared, stage)
        if isinstance(stage, Task):
            if not data.train_files and not (data.transfer_files and not stage.hard_weight):
                raise UserError(f"{TRAIN}: at least one file of labelled texts is needed.")
            if data.train_files:
                prepared.train = prepared.task.read(data.train_files, TRAIN)
            if data.transfer_files:
                prepared.transfer = prepared.task.read_unlabelled(data.transfer_files, TRANSFER)
            if data.eval_file:
                prepared.evaluation = prepared.task.read([data.eval_file], EVAL)
            prepared.tests = {path: prepared.task.read([path], TEST) for path in data.test_files}
        else:
            prepared.texts = open_texts(data.text_files, data.text_column)
        _check_stage(prepared, stage)
    return prepared


def _tokenizer(recipe: Recipe, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The one that the teachers and the student share."""
    sources = {"--teacher": recipe.teacher} | {f"{stage.name}.teacher": stage.teacher for stage in recipe.stages}
    if not all(_needs_teacher(stage) for stage in recipe.stages) and recipe.student.source not in published_sizes():
        sources = {name: source for name, source in sources.items() if source}
    for stage in recipe.stages:
        if _needs_teacher(stage) and recipe.teacher_of(stage) is None:
            raise UserError(f"--teacher: stage {stage.name} needs one (or {stage.name}.teacher in the recipe).")
    if recipe.student.source not in ("teacher", *published_sizes()):
        folder = recipe.student.source
        if any(has_file(folder, name) for name in ("tokenizer.json", "vocab.txt")):
            sources["--student"] = folder
    named = {name: source for name, source in sources.items() if source}
    if not named:
        raise UserError("--teacher: give a teacher, or a student.source folder with a tokenizer.")
    (first, source), *others = named.items()
    tokenizer = load_tokenizer(source, trust_remote_code, first)
    for name, other in others:
        if other != source:
            check_same_tokenizer(
                tokenizer, load_tokenizer(other, trust_remote_code, name), f"{first} {source!r}", f"{name} {other!r}"
            )
    return tokenizer


def _needs_teacher(stage: Stage) -> bool:
    return not isinstance(stage, Task) or bool(stage.soft_weight or stage.hidden_weight)


def _test_max_length(prepared: Prepared, stage: Stage) -> int:
    return prepared.recipe.data.test_max_length or stage.max_length


def _check_lengths(prepared: Prepared, stage: Stage, positions: int, model: str) -> None:
    lengths = {f"{stage.name}.max_length": stage.max_length, "data.test_max_length": _test_max_length(prepared, stage)}
    for name, length in lengths.items():
        if length > positions:
            raise UserError(f"{name} must be at most {positions}, the positions of {model}, got {length}.")


def _check_stage(prepared: Prepared, stage: Stage) -> None:
    """What can be known without weights: positions, masks, labels' range."""
    source = prepared.recipe.teacher_of(stage)
    if source and _needs_teacher(stage):
        try:
            config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=prepared.trust_remote_code)
        except Exception as error:
            raise UserError(f"--teacher: {source!r} does not load: {reason(error)}") from error
        _check_lengths(prepared, stage, config.max_position_embeddings, f"the teacher {source!r}")
        if isinstance(stage, Task) and stage.soft_weight:
            _check_labels(prepared, config.num_labels)
    if isinstance(stage, Pretrain) and stage.mlm_weight + stage.soft_mlm_weight and prepared.tokenizer.mask_token_id is None:
        raise UserError(f"{stage.name}.mlm_weight: the tokenizer has no mask token.")


def _labelled_sets(prepared: Prepared) -> dict[str, Dataset]:
    sets = {TRAIN: prepared.train, EVAL: prepared.evaluation}
    named = {name: dataset for name, dataset in sets.items() if dataset is not None}
    return named | {f"{TEST} {path!r}": dataset for path, dataset in prepared.tests.items()}


def _check_labels(prepared: Prepared, classes: int) -> None:
    for argument, dataset in _labelled_sets(prepared).items():
        prepared.task.check_labels(dataset, argument, classes)
    names = prepared.recipe.data.labels
    if names and len(names) != classes:
        raise UserError(f"--label (data.labels): {len(names)} names for {classes} classes: give one for each, in order.")


# Stages


def _run_stage(prepared: Prepared, stage: Stage, source: str | None) -> dict[str, Any]:
    """Train one stage, or go on with it; its result, and the student in the folder `model`."""
    folder, recipe = prepared.folder(stage), prepared.recipe
    record = folder / "result.json"
    if not record.is_file():
        set_seed(recipe.seed)
        teacher_model = _teacher(prepared, stage)
        student = recipe.student if source is None else dataclasses.replace(recipe.student, source=source, fresh=[])
        model = build_student(
            student,
            _head(prepared, stage),
            teacher_model,
            recipe.teacher_of(stage),
            **_labels(prepared, stage, teacher_model),
        )
        result, weights = _train(prepared, stage, model, teacher_model)
        is_last = stage is recipe.stages[-1]
        if PartialState().is_main_process:
            prepared.tokenizer.model_max_length = model.config.max_position_embeddings
            dtype = DTYPES[recipe.save_dtype] if is_last else torch.float32
            save_model(model, prepared.tokenizer, folder / "model", dtype, weights)
            _write(record, json.dumps(result))
        PartialState().wait_for_everyone()
    if PartialState().is_main_process:
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint, ignore_errors=True)
    return json.loads(record.read_text())


def _teacher(prepared: Prepared, stage: Stage) -> PreTrainedModel | None:
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
    elif not _needs_teacher(stage) and prepared.recipe.student.source not in published_sizes():
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
        labels = {"num_labels": max(prepared.task.num_labels(dataset) for dataset in _labelled_sets(prepared).values())}
    _check_labels(prepared, len(labels["id2label"]) if "id2label" in labels else labels["num_labels"])
    kinds = {"classification": "single_label_classification", "regression": "regression"}
    if prepared.recipe.data.kind in kinds:
        labels["problem_type"] = kinds[prepared.recipe.data.kind]
    return labels


def _train(
    prepared: Prepared, stage: Stage, model: PreTrainedModel, teacher_model: PreTrainedModel | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Train `model`, from the last checkpoint if there is one; what it came to, and its whole weights."""
    recipe, folder = prepared.recipe, prepared.folder(stage)
    _check_lengths(prepared, stage, model.config.max_position_embeddings, "the student")
    arguments = _training_arguments(prepared, stage)
    if teacher_model is not None:
        _check_vocabulary(model, teacher_model)
    if stage.fake_quantization and recipe.student.attention == "inhibitor":
        fake_quantize(model)
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
    history = [record for record in trainer.state.log_history if "loss" in record]
    last: dict[str, Any] = history[-1] if history else {}
    alignment = [1 - value for name, value in sorted(last.items(), key=_layer_number) if name.startswith("unexplained_")]
    result = {
        "steps": trainer.state.global_step,
        "seconds": round(trainer.seconds, 1),
        "loss": last.get("loss"),
        "alignment": alignment or None,
        "eval": _scores(trainer.evaluate()) if evaluation is not None else None,
    }
    return result, trainer.student_weights()


def _check_vocabulary(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    ours, theirs = (word_embeddings(model).num_embeddings for model in (student, teacher))
    if ours != theirs:
        raise UserError(
            f"--student: {student.name_or_path!r} has {ours} word embeddings, the teacher {theirs}: they must share a "
            "tokenizer."
        )


def _layer_number(entry: tuple[str, Any]) -> int:
    number = entry[0].rpartition("_")[2]
    return int(number) if number.isdigit() else -1


def _scores(metrics: dict[str, Any]) -> dict[str, float]:
    timing = ("_runtime", "_per_second", "_time", "epoch")
    return {name.removeprefix("eval_"): value for name, value in metrics.items() if not name.endswith(timing)}


def _training_arguments(prepared: Prepared, stage: Stage) -> TrainingArguments:
    recipe, given = prepared.recipe, dict(prepared.recipe.trainer)
    known = {item.name for item in dataclasses.fields(TrainingArguments)}
    for name in given:
        if name not in known:
            raise UserError(f"trainer: {name!r} is no field of transformers.TrainingArguments.")
        if name in _MANAGED:
            raise UserError(f"trainer: {name!r} is set by {_MANAGED[name]}.")
    accumulated = int(given.get("gradient_accumulation_steps", 1))
    share, rest = divmod(stage.batch_size, accumulated * PartialState().num_processes)
    if rest or not share:
        raise UserError(
            f"{stage.name}.batch_size must be a multiple of {accumulated * PartialState().num_processes} (processes × "
            f"gradient_accumulation_steps), got {stage.batch_size}."
        )
    settings: dict[str, Any] = {
        "output_dir": str(prepared.folder(stage)),
        "max_steps": -1 if stage.max_steps is None else stage.max_steps,
        "num_train_epochs": getattr(stage, "epochs", 1),
        "learning_rate": stage.learning_rate,
        "per_device_train_batch_size": share,
        "per_device_eval_batch_size": 64,
        "weight_decay": stage.weight_decay,
        "warmup_steps": stage.warmup,
        "lr_scheduler_type": {"constant": "constant_with_warmup"}.get(stage.schedule, stage.schedule),
        "max_grad_norm": stage.max_grad_norm,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "bf16": recipe.bf16,
        "seed": recipe.seed,
        "use_cpu": not torch.accelerator.is_available(),
        "eval_strategy": "epoch" if isinstance(stage, Task) and recipe.data.eval_file else "no",
        "save_steps": 500,
        "save_total_limit": 2,
        "logging_steps": 50,
        # A loss that is not finite stops the run; it is not to be left out of the mean.
        "logging_nan_inf_filter": False,
        "report_to": "none",
        # Each process reads the stream and takes its share of every batch.
        "accelerator_config": {"dispatch_batches": False},
    }
    try:
        arguments = TrainingArguments(**{**settings, **given})
    except Exception as error:  # of transformers, accelerate and their configuration files
        raise UserError(f"trainer: {reason(error)}") from error
    if arguments.n_gpu > 1:
        # Several GPUs in one process would be slower, and not this training: torchrun uses them.
        arguments._n_gpu = 1
    if not isinstance(stage, Task) and arguments.dataloader_num_workers > 1:
        raise UserError("trainer: dataloader_num_workers must be 0 or 1 for a stream: each worker would read all of it.")
    return arguments


def _dataset(prepared: Prepared, stage: Stage, teacher: PreTrainedModel | None) -> Dataset | IterableDataset:
    recipe = prepared.recipe
    if not isinstance(stage, Task):
        blocks = isinstance(stage, Pretrain) and stage.blocks
        return TextStream(prepared.texts, prepared.tokenizer, stage.max_length, stage.batch_size, recipe.seed, blocks)
    # Without hidden states to learn from, the teacher answers each text once, for all epochs.
    fixed_size = recipe.data.kind in ("classification", "regression")
    once = fixed_size and bool(stage.soft_weight) and not stage.hidden_weight
    folder = prepared.folder(stage) / "labelled"
    if not folder.is_dir():
        with PartialState().main_process_first():
            if PartialState().is_main_process:
                parts = [part for part in (prepared.train, prepared.transfer) if part is not None]
                data = prepared.task.encode(datasets.concatenate_datasets(parts), prepared.tokenizer, stage.max_length)
                if once and teacher is not None:
                    data = add_teacher_logits(data, teacher, prepared.tokenizer, recipe.bf16)
                temporary = folder.with_name("labelled.tmp")
                shutil.rmtree(temporary, ignore_errors=True)
                data.save_to_disk(str(temporary))
                temporary.rename(folder)
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
        teacher.check_attention(f"{stage.name}.teacher" if stage.teacher else "--teacher")
        device = teacher.model.device
        rows = [row for row, _ in zip(dataset, range(_CALIBRATION_TEXTS), strict=False)]
        batches = [collator(rows[start : start + 32]) for start in range(0, len(rows), 32)]
        moved = [{name: tensor.to(device) for name, tensor in batch.items()} for batch in batches]
        return AlignObjective(stage, teacher, measure_variances(stage, teacher, moved))
    layers = learner.config.num_hidden_layers
    weights = getattr(stage, "hidden_layer_weights", None)
    if weights is not None and (len(weights) != layers or not sum(weights) > 0 or min(weights) < 0):
        raise UserError(
            f"{stage.name}.hidden_layer_weights must be {layers} numbers from 0, one for each layer of the student, not all "
            f"0; got {weights}."
        )
    if isinstance(stage, Pretrain):
        assert teacher is not None
        return PretrainObjective(stage, teacher)
    assert isinstance(stage, Task)
    positions = learner.config.max_position_embeddings if stage.position_offsets else None
    return TaskObjective(stage, prepared.task, teacher if _needs_teacher(stage) else None, positions)


# The end


def _tests(prepared: Prepared, stage: Stage, student: str) -> dict[str, dict[str, dict[str, float]]]:
    """Scores of teacher and student, as stored, on each test file."""
    if not isinstance(stage, Task) or not prepared.tests:
        return {}
    models: dict[str, PreTrainedModel | None] = {"teacher": _teacher(prepared, stage) if stage.soft_weight else None}
    kind = student_class(prepared.recipe.student.attention, prepared.task.head)
    with quiet_transformers():
        models["student"] = kind.from_pretrained(student, dtype=torch.float32)
    arguments = TrainingArguments(
        output_dir=str(prepared.work_dir / "test"),
        per_device_eval_batch_size=32,
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=not torch.accelerator.is_available(),
        report_to="none",
    )
    results: dict[str, dict[str, dict[str, float]]] = {}
    for role, model in models.items():
        if model is None:
            continue
        for path, rows in prepared.tests.items():
            data = prepared.task.encode(rows, prepared.tokenizer, _test_max_length(prepared, stage)).sort("length")
            collator = Collator(prepared.tokenizer, prepared.task)
            trainer = StageTrainer(
                stage=stage.name, task=prepared.task, model=model, args=arguments, data_collator=collator, eval_dataset=data
            )
            results.setdefault(role, {})[path] = {**_scores(trainer.evaluate()), "texts": len(data)}
    return results


def _finish(prepared: Prepared, model: Path, output_dir: Path, log: dict[str, Any]) -> None:
    """The student with its log and curves, whole and at once, in its place."""
    finished = prepared.work_dir / "finished"
    shutil.rmtree(finished, ignore_errors=True)
    try:
        shutil.copytree(model, finished)
        records = [record for stage in prepared.recipe.stages for record in read_curves(prepared.folder(stage) / CURVES)]
        _write(finished / CURVES, "".join(json.dumps(record) + "\n" for record in records))
        draw_curves(records, finished / "curves.png")
        _write(finished / LOG, json.dumps(log, indent=2) + "\n")
    except OSError as error:
        with contextlib.suppress(OSError):
            shutil.rmtree(finished)
        raise UserError(f"OUTPUT_DIR: {str(finished)!r} cannot be written: {reason(error)}; the work is kept.") from error
    finished.rename(output_dir)
