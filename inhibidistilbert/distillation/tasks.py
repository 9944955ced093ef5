"""The kinds of tasks: for each the head, the columns, the losses, what is predicted and how it is scored."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset, List, Value
from scipy.special import expit
from torch import Tensor
from torch.nn import functional as F
from transformers import EvalPrediction, PreTrainedTokenizerBase

from ..evaluation import metrics
from ..support.errors import UserError
from ..support.heads import (
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    class_names,
    describe_problem,
    fits_problem,
    is_renaming,
    other_head,
    problem_of,
)
from ..support.label_lists import multi_hot, read_label_lists
from ..support.text_columns import Column, read_columns, text_column, tokenize
from .data import NO_LABEL, Data, answers_column, class_column, classes_column, number_column, word_column
from .objectives import soft_labels, soft_targets

Batch = Mapping[str, Tensor]
LONGEST_ANSWER = 30  # tokens, as in the SQuAD scripts of BERT


class TaskKind:
    """One kind of task. Logits are those of `logits`, always one tensor; labels the batch's `labels`.

    name: in recipes. head: the suffix of the model's class. problem_type: of its configuration, None where the class says
    it all. no_label: what stands for the label of a text that has none. names: of the classes, as far as they are known.
    """

    name: ClassVar[str]
    problem_type: ClassVar[str | None] = None
    head: ClassVar[str]
    no_label: ClassVar[Any] = NO_LABEL
    metrics: ClassVar[Sequence[type]]

    def __init__(self, data: Data, names: Sequence[str] = ()):
        self.data = data
        self.names = list(names)

    def check_teacher(self, config: Any, argument: str) -> None:
        """Raises a UserError for a teacher whose answers are of another kind, or whose classes have one another's names."""
        wanted = f"data.kind {self.name!r} needs "
        other = other_head(config, self.head)
        if other:
            raise UserError(f"{argument} holds a {other}, but {wanted}a model …{self.head}.")
        # Without a problem type one number is told by the number of outputs, see `Regression`.
        says_nothing = config.problem_type is None and self.problem_type == REGRESSION
        if self.problem_type and not says_nothing and not fits_problem(config, self.problem_type):
            raise UserError(
                f"{argument} is {describe_problem(config)}, but {wanted}one of problem_type {self.problem_type!r}: set "
                f"data.kind={kind_of(config)}, leave it out, or give another teacher."
            )
        names = class_names(config)
        if self.problem_type != REGRESSION and len(names) == len(self.names) and not is_renaming(names, self.names):
            raise UserError(
                f"{argument} calls its classes {', '.join(names)}, in this order, but the student's are to be "
                f"{', '.join(self.names)} (--label, data.labels): give the same order."
            )

    def text_columns(self) -> list[Column]:
        pair = self.data.text_pair_column
        second = [text_column(pair, "text_pair", "data.text_pair_column")] if pair else []
        return [text_column(self.data.text_column), *second]

    def label_column(self) -> Column:
        return class_column(self.data.label_column)

    def read(self, files: Sequence[str], argument: str) -> Dataset:
        """Labelled texts. Raises a UserError for files that are not."""
        return read_columns(files, argument, [*self.text_columns(), self.label_column()])

    def read_unlabelled(self, files: Sequence[str], argument: str) -> Dataset:
        """Texts for the teacher to label."""
        texts = read_columns(files, argument, self.text_columns(), drop_empty=True)
        column = [self.no_label] * len(texts)
        return texts.add_column("label", column).cast_column("label", self.label_column().feature)

    def encode(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """Token ids and labels: columns `input_ids`, `label`, `length`, and what else `collate` needs."""
        return tokenize(dataset, tokenizer, max_length)

    def num_labels(self, dataset: Dataset) -> int:
        """As many classes as the labels need."""
        return max(dataset["label"][:]) + 1

    def check_labels(self, dataset: Dataset, argument: str, classes: int) -> None:
        """Raises a UserError where a label is not one of `classes`."""
        if (largest := self.num_labels(dataset) - 1) >= classes:
            raise UserError(f"{argument}: has class {largest}, but the classifier has classes 0 to {classes - 1} only.")

    def collate(self, rows: Sequence[Mapping[str, Any]], length: int) -> dict[str, Tensor]:
        """The labels of rows that are padded to `length`."""
        return {"labels": torch.tensor([row["label"] for row in rows])}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {}

    def logits(self, result: Any) -> Tensor:
        return result.logits

    def soft(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> tuple[Tensor, str]:
        """The soft targets' loss as a sum, and over what."""
        return soft_targets(student, teacher, temperature).sum(), "rows"

    def hard(self, student: Tensor, batch: Batch) -> tuple[Tensor, str]:
        """The labels' loss as a sum, and over what: all rows, so that one weighs the same in whatever batch it comes."""
        return F.cross_entropy(student.float(), batch["labels"], ignore_index=NO_LABEL, reduction="sum"), "rows"

    def predict(self, logits: Tensor, batch: Batch) -> Tensor:
        """What `score` takes, beside the batch's labels."""
        return logits

    def score(self, prediction: EvalPrediction) -> dict[str, float]:
        return metrics.compute(self.metrics, prediction.predictions, prediction.label_ids)


class Classification(TaskKind):
    name = "classification"
    problem_type = SINGLE_LABEL
    head = "ForSequenceClassification"
    metrics = (metrics.Accuracy, metrics.F1, metrics.MatthewsCorrelation)

    def score(self, prediction: EvalPrediction) -> dict[str, float]:
        """Two classes are ranked too."""
        logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        values = metrics.compute(self.metrics, logits.argmax(-1), labels)
        if logits.shape[-1] == 2:
            values |= metrics.compute([metrics.RocAuc], logits[:, 1] - logits[:, 0], labels)
        return values


class MultiLabelClassification(TaskKind):
    """Any number of labels a text, each there or not by itself; binary cross-entropies. Labels are 0 or 1 for each, or NaN.

    In the files they are lists, see `label_lists`.
    """

    name = "multi-label-classification"
    problem_type = MULTI_LABEL
    head = "ForSequenceClassification"
    metrics = (metrics.MicroF1, metrics.MacroF1, metrics.AveragePrecision)

    def read(self, files: Sequence[str], argument: str) -> Dataset:
        texts, labels = read_columns(files, argument, self.text_columns()), []
        for path in files:
            lists = read_label_lists(Path(path), argument, self.data.label_column, "--label-column") or []
            labels += multi_hot(lists, self._names(), f"{argument}: {path!r}, column {self.data.label_column!r},")
        return self._with_labels(texts, labels)

    def read_unlabelled(self, files: Sequence[str], argument: str) -> Dataset:
        texts = read_columns(files, argument, self.text_columns(), drop_empty=True)
        return self._with_labels(texts, [[float("nan")] * len(self._names())] * len(texts))

    def _names(self) -> list[str]:
        if not self.names:
            raise UserError(
                f"--label (data.labels): data.kind {self.name!r} needs the names of all labels, in order, where there is no "
                "teacher whose answers are learned."
            )
        return self.names

    def _with_labels(self, texts: Dataset, labels: list) -> Dataset:
        return texts.add_column("label", labels).cast_column("label", List(Value("float32")))

    def num_labels(self, dataset: Dataset) -> int:
        return len(self.names)

    def check_labels(self, dataset: Dataset, argument: str, classes: int) -> None:
        if classes != len(self.names):
            raise UserError(f"{argument}: has {len(self.names)} labels, but the classifier has {classes}.")

    def soft(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> tuple[Tensor, str]:
        return soft_labels(student, teacher, temperature).sum(), "rows"

    def hard(self, student: Tensor, batch: Batch) -> tuple[Tensor, str]:
        """The loss of a row is the mean over its labels, as in transformers."""
        labels = batch["labels"].float()
        known = ~labels.isnan().any(-1)
        losses = F.binary_cross_entropy_with_logits(student.float()[known], labels[known], reduction="none")
        return losses.mean(-1).sum(), "rows"

    def score(self, prediction: EvalPrediction) -> dict[str, float]:
        labels = np.asarray(prediction.label_ids).astype(np.int64)
        return metrics.compute(self.metrics, expit(np.asarray(prediction.predictions)), labels)


class Regression(TaskKind):
    """One number a text; squared errors."""

    name = "regression"
    problem_type = REGRESSION
    head = "ForSequenceClassification"
    no_label = float("nan")
    metrics = (metrics.Pearson, metrics.Spearman)

    def label_column(self) -> Column:
        return number_column(self.data.label_column)

    def num_labels(self, dataset: Dataset) -> int:
        return 1

    def check_labels(self, dataset: Dataset, argument: str, classes: int) -> None:
        if classes != 1:
            raise UserError(f"data.kind: regression needs a teacher with one output, this one has {classes}.")

    def soft(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> tuple[Tensor, str]:
        return F.mse_loss(student.float(), teacher.float(), reduction="sum"), "rows"

    def hard(self, student: Tensor, batch: Batch) -> tuple[Tensor, str]:
        labels = batch["labels"].float()
        known = ~labels.isnan()
        return F.mse_loss(student.float().squeeze(-1)[known], labels[known], reduction="sum"), "rows"

    def predict(self, logits: Tensor, batch: Batch) -> Tensor:
        return logits.float().squeeze(-1)


class TokenClassification(TaskKind):
    """A class for each word, at its first token. Words come as lists."""

    name = "token-classification"
    head = "ForTokenClassification"
    metrics = (metrics.TokenClassification,)

    def text_columns(self) -> list[Column]:
        return [word_column(self.data.text_column)]

    def label_column(self) -> Column:
        return classes_column(self.data.label_column)

    def read(self, files: Sequence[str], argument: str) -> Dataset:
        dataset = super().read(files, argument)
        for row, (words, labels) in enumerate(zip(dataset["text"][:], dataset["label"][:], strict=True)):
            if len(words) != len(labels):
                raise UserError(f"{argument}: row {row} has {len(words)} words but {len(labels)} labels.")
        return dataset

    def read_unlabelled(self, files: Sequence[str], argument: str) -> Dataset:
        texts = read_columns(files, argument, self.text_columns(), drop_empty=True)
        return texts.add_column("label", [[NO_LABEL] * len(words) for words in texts["text"][:]])

    def num_labels(self, dataset: Dataset) -> int:
        return max(max(labels) for labels in dataset["label"][:]) + 1

    def encode(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        def encode(batch: Mapping[str, list]) -> dict[str, list]:
            encoded = tokenizer(
                batch["text"],
                is_split_into_words=True,
                truncation=True,
                max_length=max_length,
                return_attention_mask=False,
            )
            labels = []
            for row, word_labels in enumerate(batch["label"]):
                words = encoded.word_ids(row)
                first = [word is not None and (place == 0 or words[place - 1] != word) for place, word in enumerate(words)]
                labels.append(
                    [word_labels[word] if is_first else NO_LABEL for word, is_first in zip(words, first, strict=True)]
                )
            ids = encoded["input_ids"]
            return {"input_ids": ids, "label": labels, "length": [len(row) for row in ids]}

        return dataset.map(encode, batched=True, remove_columns=["text"], desc="Tokenising")

    def collate(self, rows: Sequence[Mapping[str, Any]], length: int) -> dict[str, Tensor]:
        return {"labels": _padded([row["label"] for row in rows], length, NO_LABEL)}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"labelled": (batch["labels"] != NO_LABEL).sum()}

    def soft(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> tuple[Tensor, str]:
        divergence = soft_targets(student, teacher, temperature)
        return divergence.masked_fill(~batch["attention_mask"].bool(), 0).sum(), "tokens"

    def hard(self, student: Tensor, batch: Batch) -> tuple[Tensor, str]:
        total = F.cross_entropy(
            student.float().flatten(0, 1), batch["labels"].flatten(), ignore_index=NO_LABEL, reduction="sum"
        )
        return total, "labelled"

    def predict(self, logits: Tensor, batch: Batch) -> Tensor:
        return logits.argmax(-1)


class QuestionAnswering(TaskKind):
    """First and last token of the answer in a context; `[CLS]` for a question whose answer is not in what was kept of it.

    Logits are `(B, 2, L)`, those of the start and the end; labels `(B, 2)`.
    """

    name = "question-answering"
    head = "ForQuestionAnswering"
    no_label: ClassVar[Any] = {"text": [], "answer_start": [NO_LABEL]}
    metrics = (metrics.QuestionAnswering,)

    def text_columns(self) -> list[Column]:
        return [text_column(name, name, name) for name in ("question", "context")]

    def label_column(self) -> Column:
        return answers_column()

    def num_labels(self, dataset: Dataset) -> int:
        return 2

    def check_labels(self, dataset: Dataset, argument: str, classes: int) -> None:
        """Raises a UserError for an answer that does not stand where it is said to."""
        for row, (context, answers) in enumerate(zip(dataset["context"][:], dataset["label"][:], strict=True)):
            for start, text in zip(answers["answer_start"] or (), answers["text"] or (), strict=True):
                if context[start : start + len(text)] != text:
                    raise UserError(
                        f"{argument}: row {row}: the answer {text!r} does not stand at answer_start {start} of its context."
                    )

    def encode(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        def encode(batch: Mapping[str, list]) -> dict[str, list]:
            encoded = tokenizer(
                batch["question"],
                batch["context"],
                truncation=True,
                max_length=max_length,
                return_attention_mask=False,
                return_offsets_mapping=True,
            )
            ids, labels, contexts = encoded["input_ids"], [], []
            for row, answers in enumerate(batch["label"]):
                context = [part == 1 for part in encoded.sequence_ids(row)]
                contexts.append(context)
                labels.append(_answer_tokens(answers, encoded["offset_mapping"][row], context))
            return {"input_ids": ids, "label": labels, "context": contexts, "length": [len(row) for row in ids]}

        return dataset.map(encode, batched=True, remove_columns=["question", "context"], desc="Tokenising")

    def collate(self, rows: Sequence[Mapping[str, Any]], length: int) -> dict[str, Tensor]:
        context = _padded([row["context"] for row in rows], length, False)
        return {"labels": torch.tensor([row["label"] for row in rows]), "context": context}

    def logits(self, result: Any) -> Tensor:
        return torch.stack((result.start_logits, result.end_logits), dim=1)

    def _real(self, logits: Tensor, batch: Batch) -> Tensor:
        """Logits of real tokens; no probability at padding, and no infinity, whose difference is no number."""
        return logits.float().masked_fill(~batch["attention_mask"].bool()[:, None], -1e4)

    def soft(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> tuple[Tensor, str]:
        divergence = soft_targets(self._real(student, batch), self._real(teacher, batch), temperature)
        return divergence.mean(-1).sum(), "rows"

    def hard(self, student: Tensor, batch: Batch) -> tuple[Tensor, str]:
        logits, labels = self._real(student, batch).flatten(0, 1), batch["labels"].flatten()
        return F.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="sum") / 2, "rows"

    def predict(self, logits: Tensor, batch: Batch) -> Tensor:
        """The span `(B, 2)` of the largest sum of logits: within the context, or `[CLS]`."""
        allowed = batch["context"].bool().clone()
        allowed[:, 0] = True
        start, end = logits.float().masked_fill(~allowed[:, None], -torch.inf).unbind(1)
        length = start.shape[1]
        first = torch.arange(length, device=start.device)
        distance = first[None, :] - first[:, None]
        spans = (distance >= 0) & (distance < LONGEST_ANSWER)
        spans[0, 1:] = False  # [CLS] is an answer by itself only
        sums = (start[:, :, None] + end[:, None, :]).masked_fill(~spans, -torch.inf).flatten(1)
        best = sums.argmax(-1)
        return torch.stack((best // length, best % length), dim=-1)


def _answer_tokens(answers: Mapping[str, list], offsets: Sequence[tuple[int, int]], context: Sequence[bool]) -> list[int]:
    """First and last token of the first answer; `[CLS]`, 0, where there is none or it was cut off."""
    starts = answers["answer_start"] or []
    if not starts:
        return [0, 0]
    if starts[0] == NO_LABEL:
        return [NO_LABEL, NO_LABEL]
    begin, end = starts[0], starts[0] + len(answers["text"][0])
    tokens = [place for place, (first, last) in enumerate(offsets) if context[place] and first < end and last > begin]
    cut_off = not tokens or offsets[tokens[-1]][1] < end
    return [0, 0] if cut_off else [tokens[0], tokens[-1]]


def _padded(rows: Sequence[Sequence[Any]], length: int, filler: Any) -> Tensor:
    return torch.tensor([[*row, *[filler] * (length - len(row))] for row in rows])


KINDS: dict[str, type[TaskKind]] = {
    kind.name: kind
    for kind in (Classification, MultiLabelClassification, Regression, TokenClassification, QuestionAnswering)
}


def kind_of(config: Any) -> str:
    """The kind of task that a teacher was trained for: by its class, and of a sequence classifier by its problem type."""
    architectures = " ".join(getattr(config, "architectures", None) or ())
    for kind in KINDS.values():
        if kind.head in architectures and kind.problem_type in (None, problem_of(config)):
            return kind.name
    return next(kind.name for kind in KINDS.values() if kind.problem_type == problem_of(config))
