"""The kinds of stages: what each is set by, what it reads and trains, what it minimises, and what must fit it."""

import dataclasses
import logging
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import datasets
from accelerate import PartialState
from datasets import Dataset
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..quantization import check_has_int8_form
from ..support.digests import damage, seal
from ..support.errors import UserError
from ..support.files import replacing_folder
from ..support.sizes import published_sizes
from .batches import Collator, Masking
from .data import EVAL, SHORTEST, TEST, TEXTS, TRAIN, TRANSFER, Data
from .networks import Learner, Teacher, check_attention, layer_map, word_embeddings
from .objectives import AlignObjective, Objective, PretrainObjective, TaskObjective, measure_variances
from .task_vector import add_task_vector, check_fit, task_vector
from .tasks import TaskKind
from .teacher import add_teacher_logits, load_teacher
from .text_stream import TextStream, open_texts

logger = logging.getLogger(__name__)

_CALIBRATION_TEXTS = 256  # whose targets' variance is the unit of an alignment's loss


@dataclass
class Prepared:
    """What stages share, read and checked before any is trained.

    recipe, inputs: a `Recipe` and its `Inputs`. tests: by the names of their files. texts: unlabelled.
    """

    recipe: Any
    work_dir: Path
    trust_remote_code: bool
    inputs: Any
    tokenizer: PreTrainedTokenizerBase
    task: TaskKind
    # Those of teachers that read texts in their own way, by their source.
    own_tokenizers: dict[str, PreTrainedTokenizerBase] = field(default_factory=dict)
    train: Dataset | None = None
    transfer: Dataset | None = None
    evaluation: Dataset | None = None
    tests: dict[str, Dataset] = field(default_factory=dict)
    texts: list[datasets.IterableDataset] = field(default_factory=list)
    # The last teacher that was loaded, by its source and head: stages in a row often have the same.
    _last: tuple[tuple[str, str], PreTrainedModel] | None = None

    def folder(self, stage: "Stage") -> Path:
        return self.work_dir / stage.name

    def teacher(self, stage: "Stage", device: str | None = None) -> PreTrainedModel | None:
        """With the head that the stage learns from; None for a stage that needs none. device: see `load_teacher`."""
        source = self.recipe.teacher_of(stage)
        if source is None or not (stage.needs_teacher or self.recipe.student.source in published_sizes()):
            return None
        key = source, stage.teacher_head(self.task)
        if device is not None:
            return load_teacher(*key, self.trust_remote_code, stage.teacher_argument, device)
        if self._last is None or self._last[0] != key:
            self._last = None  # so that two are never in memory
            self._last = key, load_teacher(*key, self.trust_remote_code, stage.teacher_argument)
        return self._last[1].to("cpu")  # type: ignore[arg-type]  # as it was loaded

    def teacher_tokenizer(self, stage: "Stage") -> PreTrainedTokenizerBase:
        """The one that the stage's teacher reads with."""
        return self.own_tokenizers.get(self.recipe.teacher_of(stage), self.tokenizer)

    def labelled(self) -> dict[str, Dataset]:
        """The labelled sets, by the argument that gave them."""
        sets = {TRAIN: self.train, EVAL: self.evaluation}
        named = {name: dataset for name, dataset in sets.items() if dataset is not None}
        return named | {f"{TEST} {path!r}": dataset for path, dataset in self.tests.items()}

    def check_labels(self, classes: int) -> None:
        """Raises a UserError where labels, or their names, do not fit so many classes."""
        for argument, dataset in self.labelled().items():
            self.task.check_labels(dataset, argument, classes)
        names = self.recipe.data.labels
        if names and len(names) != classes:
            raise UserError(f"--label (data.labels): {len(names)} names for {classes} classes: give one for each, in order.")


@strict
@dataclass
class Stage:
    """What all stages have. Lengths in tokens, warm-up as a share of the steps.

    batch_size: texts in a step, over all processes and accumulated batches: the same command trains the same on any number.
    scalar_learning_rate: of the attention's scalars, such as alpha; None for that of the other parameters.
    teacher: in place of the recipe's.
    dropout: of the student while this stage trains, everywhere; None for its configuration's.
    fake_quantization: compute as the int8 form will (see `fake_quantization`); a softmax student has none, trains as ever.
    """

    kind: ClassVar[str]
    labelled: ClassVar[bool] = False  # reads files with labels, once an epoch, instead of a stream of texts
    name: str = ""
    teacher: str | None = None
    max_steps: int | None = None
    batch_size: int = 32
    max_length: int = 128
    learning_rate: float | int = 5e-5
    scalar_learning_rate: float | int | None = None
    warmup: float | int = 0.06
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float | int = 0.01
    max_grad_norm: float | int = 1.0
    dropout: float | int | None = None
    fake_quantization: bool = False

    def __post_init__(self) -> None:
        self.name = self.name or self.kind
        self.check()

    def check(self) -> None:
        """Raises a UserError for a value out of its range."""
        if self.max_steps is None and not self.labelled:
            raise UserError(f"{self.name}.max_steps: give the number of steps; the texts are a stream without an end.")
        if self.max_length < SHORTEST:
            raise UserError(f"{self.name}.max_length must be at least {SHORTEST} tokens, got {self.max_length}.")
        for name in ("max_steps", "batch_size", "learning_rate", "epochs", "temperature"):
            value = getattr(self, name, None)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{self.name}.{name} must be a number above 0, got {value}.")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UserError(f"{self.name}.dropout must be from 0 to below 1, got {self.dropout}.")
        weights = [item.name for item in dataclasses.fields(self) if item.name.endswith("_weight")]
        for name in ("scalar_learning_rate", "weight_decay", "max_grad_norm", "warmup", *weights):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UserError(f"{self.name}.{name} must be a number from 0, got {value}.")
        if weights and not any(getattr(self, name) for name in weights):
            raise UserError(f"{self.name}: one of {', '.join(weights)} must be above 0.")

    @property
    def needs_teacher(self) -> bool:
        return True

    @property
    def answers(self) -> bool:
        """Whether it learns what the teacher says of the task."""
        return False

    def shares_tokens(self, task: TaskKind) -> bool:
        """Whether teacher and student must read the same tokens."""
        return self.needs_teacher

    @property
    def teacher_argument(self) -> str:
        return f"{self.name}.teacher" if self.teacher else "--teacher"

    def bases(self) -> dict[str, str | None]:
        """Further models that it reads, by their setting."""
        return {}

    def head(self, task: TaskKind) -> str:
        """That of the student: `"Model"` for none, or `"ForMaskedLM"` and the like."""
        return "Model"

    def teacher_head(self, task: TaskKind) -> str:
        return self.head(task)

    def labels(self, prepared: Prepared, teacher: PreTrainedModel | None) -> dict[str, Any]:
        """Fields of the student's configuration that name its classes. Raises a UserError where labels do not fit."""
        return {}

    # What it reads

    def files(self, data: Data) -> dict[str, list[str]]:
        """By the argument that errors name."""
        return {TEXTS: data.text_files}

    def read(self, prepared: Prepared) -> None:
        data = prepared.recipe.data
        prepared.texts = open_texts(data.text_files, data.text_column)

    def rows(self, prepared: Prepared, teacher: PreTrainedModel | None) -> Dataset | TextStream:
        """What is trained on."""
        return self._stream(prepared)

    def _stream(self, prepared: Prepared, blocks: bool = False) -> TextStream:
        seed = prepared.recipe.seed
        return TextStream(prepared.texts, prepared.tokenizer, self.max_length, self.batch_size, seed, blocks)

    def masking(self, prepared: Prepared) -> Masking | None:
        return None

    # What must fit

    def _check_positions(self, data: Data, positions: int, model: str) -> None:
        lengths = {f"{self.name}.max_length": self.max_length, "data.test_max_length": self.test_max_length(data)}
        for name, length in lengths.items():
            if length > positions:
                raise UserError(f"{name} must be at most {positions}, the positions of {model}, got {length}.")

    def test_max_length(self, data: Data) -> int:
        return data.test_max_length or self.max_length

    def check_prepared(self, prepared: Prepared, teacher: Any, source: str | None) -> None:
        """Raises a UserError where texts, settings and the configuration of the teacher (in `source`) do not fit."""
        if teacher is not None:
            self._check_positions(prepared.recipe.data, teacher.max_position_embeddings, f"the teacher {source!r}")

    def check_models(self, prepared: Prepared, model: PreTrainedModel, teacher: PreTrainedModel | None) -> None:
        """Raises a UserError where student and teacher do not fit each other, or the settings."""
        config, recipe = model.config, prepared.recipe
        self._check_positions(recipe.data, config.max_position_embeddings, "the student")
        if self.fake_quantization and recipe.student.attention == "inhibitor":
            check_has_int8_form(model, f"{self.name}.fake_quantization: the student")
        if teacher is not None:
            ours, theirs = (word_embeddings(each).num_embeddings for each in (model, teacher))
            if ours != theirs and prepared.teacher_tokenizer(self) is prepared.tokenizer:
                raise UserError(
                    f"--student: {model.name_or_path!r} has {ours} word embeddings, the teacher {theirs}: they must share a "
                    "tokenizer."
                )
            layer_map(teacher.config.num_hidden_layers, config.num_hidden_layers, recipe.student.layers)

    # What it trains

    def start(self, prepared: Prepared, model: PreTrainedModel, teacher: PreTrainedModel | None) -> None:
        """Change the student before it is trained; with a `teacher` on the meta device, check that this could be done."""

    def freeze(self, learner: Learner) -> None:
        """Freeze what the stage does not train."""
        raise NotImplementedError

    def objective(self, learner: Learner, teacher: Teacher | None, rows: Any, collator: Collator) -> Objective:
        """What it minimises on batches that `collator` makes of `rows`."""
        raise NotImplementedError


@strict
@dataclass
class Align(Stage):
    """Each student layer is fed the teacher's hidden state and learns the teacher's layer, all layers at once.

    target: `"attention"`, the output of the attention; or `"layer"`, the hidden state after the whole layer.
    loss: `"variance"`, the share of the target's variance that is not explained; `"cosine"` distance; `"mse"`.
    trained: `"attention"`, `"layer"` for the whole layer, or `"queries_keys"` for q_lin, k_lin and the scalars.
    """

    kind = "align"
    learning_rate: float | int = 1e-3
    scalar_learning_rate: float | int | None = 2e-2
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    weight_decay: float | int = 0.0
    target: Literal["attention", "layer"] = "attention"
    loss: Literal["variance", "cosine", "mse"] = "variance"
    trained: Literal["attention", "layer", "queries_keys"] = "attention"

    def check_models(self, prepared: Prepared, model: PreTrainedModel, teacher: PreTrainedModel | None) -> None:
        super().check_models(prepared, model, teacher)
        if teacher is not None:
            check_attention(teacher.config.model_type, self.teacher_argument)

    def freeze(self, learner: Learner) -> None:
        encoder: Any = learner.student.base_model
        learner.student.requires_grad_(False)
        for layer in encoder.transformer.layer:
            attention = layer.attention
            if self.trained == "queries_keys":
                scalars = attention.parameters(recurse=False)
                parts = [attention.q_lin, attention.k_lin, *scalars]
            else:
                parts = [layer if self.trained == "layer" else attention]
            for part in parts:
                part.requires_grad_(True)

    def objective(self, learner: Learner, teacher: Teacher | None, rows: Any, collator: Collator) -> Objective:
        assert teacher is not None
        device = teacher.model.device
        first = [row for row, _ in zip(rows, range(_CALIBRATION_TEXTS), strict=False)]
        batches = [collator(first[start : start + 32]) for start in range(0, len(first), 32)]
        moved = [{name: tensor.to(device) for name, tensor in batch.items()} for batch in batches]
        return AlignObjective(self, teacher, measure_variances(self, teacher, moved))


class _EndToEnd(Stage):
    """What stages share whose student runs as a whole, and may learn the teacher's hidden states."""

    hidden_weight: float | int
    hidden_layer_weights: list[float | int] | None

    def check_models(self, prepared: Prepared, model: PreTrainedModel, teacher: PreTrainedModel | None) -> None:
        super().check_models(prepared, model, teacher)
        depth, weights = model.config.num_hidden_layers, self.hidden_layer_weights
        if weights is not None and (len(weights) != depth or not sum(weights) > 0 or min(weights) < 0):
            raise UserError(
                f"{self.name}.hidden_layer_weights must be {depth} numbers from 0, one for each layer of the student, not "
                f"all 0; got {weights}."
            )

    def freeze(self, learner: Learner) -> None:
        # Only alignment goes into the student's width.
        if learner.to_student is not None:
            learner.to_student.requires_grad_(False)
        if learner.to_teacher is not None and not self.hidden_weight:
            learner.to_teacher.requires_grad_(False)


@strict
@dataclass
class Pretrain(_EndToEnd):
    """Task-agnostic, end to end.

    hidden_weight: of the cosine distance between hidden states; `hidden_layer_weights`: one for each student layer,
        None for equal ones.
    mlm_weight, soft_mlm_weight: of the masked tokens' cross-entropy, and of the divergence from the teacher's head at them
        with `temperature`; both need a teacher with such a head.
    blocks: run texts together and cut them into blocks of `max_length` tokens, instead of one text a row.
    """

    kind = "pretrain"
    learning_rate: float | int = 3e-4
    scalar_learning_rate: float | int | None = 5e-3
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    hidden_weight: float | int = 1.0
    hidden_layer_weights: list[float | int] | None = None
    mlm_weight: float | int = 0.0
    soft_mlm_weight: float | int = 0.0
    mlm_probability: float | int = 0.15
    temperature: float | int = 2.0
    train_embeddings: bool = True
    blocks: bool = False

    @property
    def _masked(self) -> bool:
        return bool(self.mlm_weight or self.soft_mlm_weight)

    def head(self, task: TaskKind) -> str:
        return "ForMaskedLM" if self._masked else "Model"

    def rows(self, prepared: Prepared, teacher: PreTrainedModel | None) -> Dataset | TextStream:
        return self._stream(prepared, self.blocks)

    def masking(self, prepared: Prepared) -> Masking | None:
        return Masking(prepared.tokenizer, self.mlm_probability, prepared.recipe.seed) if self._masked else None

    def check_prepared(self, prepared: Prepared, teacher: Any, source: str | None) -> None:
        super().check_prepared(prepared, teacher, source)
        if self._masked and prepared.tokenizer.mask_token_id is None:
            raise UserError(f"{self.name}.mlm_weight: the tokenizer has no mask token.")

    def freeze(self, learner: Learner) -> None:
        super().freeze(learner)
        if not self.train_embeddings:
            encoder: Any = learner.student.base_model
            encoder.embeddings.requires_grad_(False)

    def objective(self, learner: Learner, teacher: Teacher | None, rows: Any, collator: Collator) -> Objective:
        assert teacher is not None
        return PretrainObjective(self, teacher)


@strict
@dataclass
class Task(_EndToEnd):
    """From a fine-tuned teacher, or from the labels alone where no weight asks for one.

    soft_weight: of the teacher's answers, at `temperature` for classes and labels, as squared error for numbers.
    hard_weight: of the labels. hidden_weight, hidden_layer_weights: see `Pretrain`.
    position_offsets: move each text to a random place of the position table, so that all of it is trained.
    teacher_base: the encoder that the teacher was fine-tuned from. What fine-tuning changed in it is added to the student
        before training, and the teacher's head is copied; None for neither. For a student of the teacher's width.
    """

    kind = "task"
    labelled = True
    epochs: float | int = 3
    scalar_learning_rate: float | int | None = 1e-3
    soft_weight: float | int = 1.0
    temperature: float | int = 2.0
    hidden_weight: float | int = 0.0
    hidden_layer_weights: list[float | int] | None = None
    hard_weight: float | int = 0.5
    position_offsets: bool = False
    teacher_base: str | None = None

    @property
    def needs_teacher(self) -> bool:
        return bool(self.soft_weight or self.hidden_weight)

    @property
    def answers(self) -> bool:
        return bool(self.soft_weight)

    def shares_tokens(self, task: TaskKind) -> bool:
        return self.needs_teacher and (self.teacher_base is not None or not self._answers_once(task))

    def _answers_once(self, task: TaskKind) -> bool:
        """Whether the teacher answers each text once, for all epochs: the stage does not learn its hidden states."""
        return task.head == "ForSequenceClassification" and self.answers and not self.hidden_weight

    def bases(self) -> dict[str, str | None]:
        return {f"{self.name}.teacher_base": self.teacher_base}

    def head(self, task: TaskKind) -> str:
        return task.head

    def teacher_head(self, task: TaskKind) -> str:
        return task.head if self.answers else "Model"

    def labels(self, prepared: Prepared, teacher: PreTrainedModel | None) -> dict[str, Any]:
        """Names and number of the classes: the recipe's, the teacher's, or as many as the labels need."""
        task = prepared.task
        if names := prepared.recipe.data.labels:
            labels: dict[str, Any] = {
                "id2label": dict(enumerate(names)),
                "label2id": {name: index for index, name in enumerate(names)},
            }
        elif teacher is not None and self.answers:
            labels = {"id2label": teacher.config.id2label, "label2id": teacher.config.label2id}
        else:
            labels = {"num_labels": max(map(task.num_labels, prepared.labelled().values()))}
        prepared.check_labels(len(labels["id2label"]) if "id2label" in labels else labels["num_labels"])
        return labels | ({"problem_type": task.problem_type} if task.problem_type is not None else {})

    def files(self, data: Data) -> dict[str, list[str]]:
        evaluation = [data.eval_file] if data.eval_file else []
        return {TRAIN: data.train_files, TRANSFER: data.transfer_files, EVAL: evaluation, TEST: data.test_files}

    def read(self, prepared: Prepared) -> None:
        data, task = prepared.recipe.data, prepared.task
        if not data.train_files and not (data.transfer_files and not self.hard_weight):
            raise UserError(f"{TRAIN}: at least one file of labelled texts is needed.")
        if data.train_files:
            prepared.train = task.read(data.train_files, TRAIN)
        if data.transfer_files:
            prepared.transfer = task.read_unlabelled(data.transfer_files, TRANSFER)
        if data.eval_file:
            prepared.evaluation = task.read([data.eval_file], EVAL)
        prepared.tests = {path: task.read([path], TEST) for path in data.test_files}

    def rows(self, prepared: Prepared, teacher: PreTrainedModel | None) -> Dataset | TextStream:
        stored = prepared.folder(self) / "labelled"
        # Every process meets here whether the folder is there or not: a late one would else go by, and the others wait.
        with PartialState().main_process_first():
            if PartialState().is_main_process and (broken := damage(stored)):
                if os.path.lexists(stored):
                    logger.warning("%s %s: the texts are prepared again.", stored, broken)
                texts = datasets.concatenate_datasets(
                    [part for part in (prepared.train, prepared.transfer) if part is not None]
                )
                rows = prepared.task.encode(texts, prepared.tokenizer, self.max_length)
                if teacher is not None and self._answers_once(prepared.task):
                    theirs = prepared.teacher_tokenizer(self)
                    read = None if theirs is prepared.tokenizer else prepared.task.encode(texts, theirs, self.max_length)
                    rows = add_teacher_logits(rows, teacher, theirs, prepared.recipe.bf16, read)
                with replacing_folder(stored) as new:
                    rows.save_to_disk(str(new))
                    seal(new)
        return datasets.load_from_disk(str(stored))

    def check_prepared(self, prepared: Prepared, teacher: Any, source: str | None) -> None:
        super().check_prepared(prepared, teacher, source)
        if self.answers and teacher is not None:
            prepared.check_labels(teacher.num_labels)
        if self.teacher_base and not self.answers:
            raise UserError(f"{self.name}.teacher_base needs a teacher with a head: give {self.name}.soft_weight above 0.")
        if self.teacher_base and prepared.recipe.student.attention == "own":
            raise UserError(f"{self.name}.teacher_base needs student.attention 'inhibitor' or 'softmax', got 'own'.")

    def start(self, prepared: Prepared, model: PreTrainedModel, teacher: PreTrainedModel | None) -> None:
        """Give the student what fine-tuning changed in its teacher, where the stage says from what (`teacher_base`)."""
        if self.teacher_base is None or teacher is None:
            return
        student, source = prepared.recipe.student, prepared.recipe.teacher_of(self)
        layers = layer_map(teacher.config.num_hidden_layers, model.config.num_hidden_layers, student.layers)
        argument, device = f"{self.name}.teacher_base", "meta" if teacher.device.type == "meta" else None
        load_teacher(self.teacher_base, "Model", prepared.trust_remote_code, argument, "meta")  # or says what it lacks
        try:
            labels = self.labels(prepared, teacher)
            encoder, head = task_vector(student, prepared.task.head, source, self.teacher_base, layers, device, **labels)
            if device == "meta":
                check_fit(model, encoder)
            else:
                add_task_vector(model, encoder, head)
        except UserError as error:
            raise UserError(f"{argument}: {error}") from error

    def objective(self, learner: Learner, teacher: Teacher | None, rows: Any, collator: Collator) -> Objective:
        positions = learner.config.max_position_embeddings if self.position_offsets else None
        return TaskObjective(self, collator.task, teacher if self.needs_teacher else None, positions)


STAGES: dict[str, type[Stage]] = {stage.kind: stage for stage in (Align, Pretrain, Task)}
