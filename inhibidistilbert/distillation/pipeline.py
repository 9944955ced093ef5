"""Task-specific distillation of a sequence classifier, from files to a loadable folder."""

import dataclasses
import hashlib
import json
import math
import platform
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import datasets
import torch
import transformers
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from ..errors import UserError, reason
from ..modeling.modeling_inhibidistilbert import InhibiDistilBertForSequenceClassification
from .data import read_labelled, read_transfer, tokenize
from .student import build_student, student_config
from .teacher import add_teacher_logits, load_teacher, save_classifier
from .trainer import ClassifierTrainer, EpochOrder

_SHORTEST = 3  # tokens: [CLS], one of the text, [SEP]
_SAVE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class TrainingOptions:
    """Of one training, the teacher's or the student's. Lengths in tokens, warm-up as a share of the steps."""

    epochs: float
    learning_rate: float
    batch_size: int
    max_length: int
    warmup: float = 0.06
    weight_decay: float = 0.01


@dataclass
class Distillation:
    """A task-specific distillation; the options of `inhibidistilbert distill`, with its names and meanings.

    Raises:
        UserError: an option out of its range.
    """

    output_dir: Path
    teacher: str
    student: str
    train_files: list[Path]
    transfer_files: list[Path] = field(default_factory=list)
    eval_file: Path | None = None
    test_files: list[Path] = field(default_factory=list)
    text_column: str = "text"
    label_column: str = "label"
    labels: list[str] = field(default_factory=list)
    fine_tune_teacher: bool = False
    teacher_training: TrainingOptions = field(default_factory=lambda: TrainingOptions(3, 6e-5, 32, 128))
    student_training: TrainingOptions = field(default_factory=lambda: TrainingOptions(4, 5e-4, 64, 128))
    scalar_learning_rate: float = 5e-3
    temperature: float = 2.0
    hard_weight: float = 0.5
    position_offsets: bool = True
    seed: int = 0
    bf16: bool = False
    compile: bool = False
    save_dtype: str = "float32"
    save_steps: int = 500
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if not self.train_files:
            raise UserError("--train-file: at least one file of labelled texts is needed.")
        if self.save_dtype not in _SAVE_DTYPES:
            raise UserError(f"--save-dtype must be one of {', '.join(_SAVE_DTYPES)}, got {self.save_dtype!r}.")
        positive = {"--temperature": self.temperature, "--save-steps": self.save_steps}
        for prefix, options in (("--teacher-", self.teacher_training), ("--", self.student_training)):
            for name in ("epochs", "learning_rate", "batch_size"):
                positive[f"{prefix}{name.replace('_', '-')}"] = getattr(options, name)
            if options.max_length < _SHORTEST:
                raise UserError(f"{prefix}max-length must be at least {_SHORTEST} tokens, got {options.max_length}.")
        for name, value in positive.items():
            if not 0 < value < math.inf:
                raise UserError(f"{name} must be a number above 0, got {value}.")
        not_negative = {"--hard-weight": self.hard_weight, "--scalar-learning-rate": self.scalar_learning_rate}
        for name, value in not_negative.items():
            if not 0 <= value < math.inf:
                raise UserError(f"{name} must be a number from 0, got {value}.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed must be between 0 and {2**32 - 1}, got {self.seed}.")
        if len(set(self.labels)) < len(self.labels):
            raise UserError(f"--label: the names must differ, got {', '.join(self.labels)}.")

    @property
    def work_dir(self) -> Path:
        """Where a running distillation keeps what it needs to resume."""
        return self.output_dir.with_name(self.output_dir.name + ".work")

    def as_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))


@dataclass
class _Texts:
    """What the files hold. All of it is read before any training, so that a bad file is told at once."""

    train: Dataset
    transfer: Dataset | None
    evaluation: Dataset | None
    tests: dict[Path, Dataset]

    @classmethod
    def read(cls, options: Distillation) -> "_Texts":
        columns = options.text_column, options.label_column
        return cls(
            train=read_labelled(options.train_files, "--train-file", *columns),
            transfer=read_transfer(options.transfer_files, options.text_column) if options.transfer_files else None,
            evaluation=read_labelled([options.eval_file], "--eval-file", *columns) if options.eval_file else None,
            tests={path: read_labelled([path], "--test-file", *columns) for path in options.test_files},
        )

    @property
    def classes(self) -> int:
        """As many as the labels of the training texts need."""
        return max(self.train["label"][:]) + 1

    def check_classes(self, classes: int) -> None:
        """Raises a UserError where a label is not one of `classes`."""
        parts = {"--train-file": self.train, **{f"--test-file {str(path)!r}": data for path, data in self.tests.items()}}
        if self.evaluation is not None:
            parts["--eval-file"] = self.evaluation
        for argument, data in parts.items():
            if (largest := max(data["label"][:])) >= classes:
                raise UserError(f"{argument}: has class {largest}, but the classifier has classes 0 to {classes - 1} only.")


def distill(options: Distillation, resume: bool = False) -> dict[str, Any]:
    """Fine-tune the teacher if asked to, label all texts with it, train the student and write `options.output_dir`.

    Everything in progress lies in `options.work_dir`: the teacher, the labelled data and the Trainer's checkpoints.
    With `resume` each finished step is taken from there and the student's training goes on at its last checkpoint.

    Returns the log that is also written as `distillation.json`: options, data, versions and metrics.

    Raises:
        UserError: bad options or files, a work folder in the way, or one of another distillation to resume.
    """
    _claim_work_dir(options, resume)
    set_seed(options.seed)
    texts = _Texts.read(options)
    positions = student_config(options.student).max_position_embeddings
    _check_length("--max-length", options.student_training, f"--student {options.student!r}", positions)
    teacher, tokenizer, teacher_metrics = _teacher(options, texts)
    labelled = _labelled(options, texts, teacher, tokenizer)

    set_seed(options.seed)
    student = build_student(options.student, teacher)
    tokenizer.model_max_length = student.config.max_position_embeddings
    student_metrics = _train(
        options,
        options.student_training,
        student,
        tokenizer,
        labelled,
        texts.evaluation,
        folder=options.work_dir / "student",
        scalar_learning_rate=options.scalar_learning_rate,
        temperature=options.temperature,
        hard_weight=options.hard_weight,
        position_offsets=options.position_offsets,
    )
    finished = options.work_dir / "finished"
    save_classifier(student, tokenizer, finished, _SAVE_DTYPES[options.save_dtype])
    log = {
        "options": options.as_json(),
        "data": {str(path): _describe(path) for path in _data_files(options)},
        "texts": {"labelled": len(texts.train), "all": len(labelled)},
        "metrics": {"teacher": teacher_metrics, "student": student_metrics},
        "tests": {
            "teacher": _test(options, texts, teacher, tokenizer),
            # As stored, so with its rounding.
            "student": _test(options, texts, InhibiDistilBertForSequenceClassification.from_pretrained(finished), tokenizer),
        },
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, datasets)},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    (finished / "distillation.json").write_text(json.dumps(log, indent=2) + "\n")
    finished.rename(options.output_dir)
    return log


def _claim_work_dir(options: Distillation, resume: bool) -> None:
    if options.output_dir.exists():
        raise UserError(f"OUTPUT_DIR: {str(options.output_dir)!r} exists already: give another name or remove it.")
    record = options.work_dir / "options.json"
    if not resume:
        # The record alone is left by one that stopped at its input: nothing is lost by starting anew.
        if options.work_dir.is_file() or any(path != record for path in options.work_dir.glob("*")):
            raise UserError(f"{str(options.work_dir)!r} holds an unfinished distillation: give --resume, or remove it.")
        try:
            options.work_dir.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps(options.as_json(), indent=2))
        except OSError as error:
            raise UserError(f"OUTPUT_DIR: {str(options.work_dir)!r} cannot be written: {reason(error)}") from error
    elif not record.is_file():
        raise UserError(f"--resume: there is no unfinished distillation in {str(options.work_dir)!r}.")
    else:
        before, now = _flat(json.loads(record.read_text())), _flat(options.as_json())
        # The tests come at the end and change nothing.
        names = sorted(name for name in now.keys() - {"test_files"} if before.get(name) != now[name])
        if names:
            changes = ", ".join(f"{name} {now[name]!r} (was {before.get(name)!r})" for name in names)
            raise UserError(f"--resume: not the options of the distillation in {str(options.work_dir)!r}: {changes}.")


def _flat(options: dict[str, Any]) -> dict[str, Any]:
    """The same with the fields of `TrainingOptions` as `teacher_training.epochs`, …"""
    flat = {}
    for name, value in options.items():
        if isinstance(value, dict):
            flat.update({f"{name}.{part}": entry for part, entry in value.items()})
        else:
            flat[name] = value
    return flat


def _check_length(argument: str, settings: TrainingOptions, model: str, positions: int) -> None:
    if settings.max_length > positions:
        raise UserError(f"{argument} must be at most {positions}, the positions of {model}, got {settings.max_length}.")


def _data_files(options: Distillation) -> list[Path]:
    return [
        *options.train_files,
        *options.transfer_files,
        *([options.eval_file] if options.eval_file else []),
        *options.test_files,
    ]


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _teacher(options: Distillation, texts: _Texts) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, float]]:
    """The teacher, fine-tuned if asked to, its tokenizer and the metrics of its training."""
    folder = options.work_dir / "teacher"
    metrics_file = folder / "metrics.json"
    if metrics_file.is_file():
        model, tokenizer = load_teacher(str(folder), None, options.trust_remote_code)
        return model, tokenizer, json.loads(metrics_file.read_text())
    classes = max(texts.classes, len(options.labels)) if options.fine_tune_teacher else None
    model, tokenizer = load_teacher(options.teacher, classes, options.trust_remote_code)
    texts.check_classes(cast(int, model.config.num_labels))
    _name_labels(model, options.labels)
    positions = model.config.max_position_embeddings
    _check_length("--max-length", options.student_training, f"--teacher {options.teacher!r}", positions)
    if not options.fine_tune_teacher:
        return model, tokenizer, {}
    settings = options.teacher_training
    _check_length("--teacher-max-length", settings, f"--teacher {options.teacher!r}", positions)
    tokenizer.model_max_length = positions
    data = tokenize(texts.train, tokenizer, settings.max_length)
    training = options.work_dir / "teacher_training"
    metrics = _train(options, settings, model, tokenizer, data, texts.evaluation, folder=training)
    save_classifier(model, tokenizer, folder, torch.float32)
    metrics_file.write_text(json.dumps(metrics))
    return model, tokenizer, metrics


def _name_labels(model: PreTrainedModel, names: list[str]) -> None:
    """Give the classes these names; without any they keep theirs."""
    if not names:
        return
    if len(names) != model.config.num_labels:
        raise UserError(f"--label: {len(names)} names for {model.config.num_labels} classes: give one for each, in order.")
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}


def _labelled(options: Distillation, texts: _Texts, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """All texts with token ids, label and the teacher's logits, kept in the work folder."""
    folder = options.work_dir / "labelled"
    if folder.is_dir():
        return datasets.load_from_disk(str(folder))
    parts = [texts.train] if texts.transfer is None else [texts.train, texts.transfer]
    data = tokenize(datasets.concatenate_datasets(parts), tokenizer, options.student_training.max_length)
    data = add_teacher_logits(data, teacher, tokenizer, options.bf16)
    temporary = folder.with_name("labelled.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    data.save_to_disk(str(temporary))
    temporary.rename(folder)
    return data


def _train(
    options: Distillation,
    settings: TrainingOptions,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Dataset,
    evaluation: Dataset | None,
    folder: Path,
    **losses: Any,
) -> dict[str, float]:
    """Train in place, resuming from the last checkpoint in `folder`; returns the metrics of the last evaluation."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=64,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup,
        max_grad_norm=1.0,
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        bf16=options.bf16,
        use_cpu=not torch.accelerator.is_available(),
        torch_compile=options.compile,
        seed=options.seed,
        eval_strategy="epoch" if evaluation is not None else "no",
        save_steps=options.save_steps,
        save_total_limit=2,
        logging_steps=50,
        report_to="none",
    )
    last = _last_checkpoint(folder)
    trainer = ClassifierTrainer(
        model=model,
        args=arguments,
        callbacks=[EpochOrder(last)],
        train_dataset=data,
        eval_dataset=None if evaluation is None else tokenize(evaluation, tokenizer, settings.max_length),
        processing_class=tokenizer,
        **losses,
    )
    result = trainer.train(resume_from_checkpoint=last)
    metrics = {"loss": result.training_loss}
    if evaluation is not None:
        metrics["accuracy"] = trainer.evaluate()["eval_accuracy"]
    return metrics


def _last_checkpoint(folder: Path) -> str | None:
    """The last whole checkpoint of a training: one that has the Trainer's state, which is written last."""
    whole = [file.parent for file in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


def _test(
    options: Distillation, texts: _Texts, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, dict[str, float]]:
    """Accuracy on each test file, its texts cut at the model's positions."""
    arguments = TrainingArguments(
        output_dir=str(options.work_dir / "test"),
        per_device_eval_batch_size=32,
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        use_cpu=not torch.accelerator.is_available(),
        report_to="none",
    )
    results = {}
    for path, rows in texts.tests.items():
        data = tokenize(rows, tokenizer, model.config.max_position_embeddings)
        trainer = ClassifierTrainer(model=model, args=arguments, eval_dataset=data, processing_class=tokenizer)
        results[str(path)] = {"accuracy": trainer.evaluate()["eval_accuracy"], "texts": len(data)}
    return results
