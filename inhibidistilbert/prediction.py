"""Sequence classification of many texts with a checkpoint folder: loading with checks, batches by length, windows."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .modeling.configuration_inhibidistilbert import InhibiDistilBertConfig
from .modeling.modeling_inhibidistilbert import InhibiDistilBertForSequenceClassification
from .support.errors import UserError
from .support.files import is_regular, read_json
from .support.heads import MULTI_LABEL, REGRESSION, THRESHOLD, class_names, describe_problem, has_its_outputs, problem_of
from .support.models import TOKENIZER_FILES, check_model_type, check_vocabulary, load_model, load_tokenizer

# Texts read ahead: enough to find batches of equal length, few enough that memory stays small and output starts early.
CHUNK_TEXTS = 2048

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")

Track = Callable[[Sequence[list[int]]], Iterable[list[int]]]


def default_checkpoint() -> Path:
    """The folder of the sentiment model that ships with the package."""
    return Path(str(files("inhibidistilbert") / "checkpoints" / "tiny-sentiment"))


@dataclass(frozen=True)
class Prediction:
    """What the model says of one text.

    Attributes:
        text: the text.
        label: name of the label with the highest score.
        score: its probability; for a regression model the value itself.
        tokens: length of the whole text in tokens, special tokens included.
        labels: of a multi-label model, the names of all labels from its threshold on, the likeliest first; may be empty.
            None for other models.
        scores: the probability of each label by its name, in the model's order; for a regression model the value.
    """

    text: str
    label: str
    score: float
    tokens: int
    labels: list[str] | None = None
    scores: dict[str, float] | None = None


@dataclass(frozen=True)
class Window:
    """A stretch of a text that fits the model: `owner` is the text's index, `ids` the tokens with the special ones."""

    owner: int
    ids: list[int]


@dataclass
class TextClassifier:
    """A sequence classifier with its tokenizer.

    Attributes:
        model: put into evaluation mode.
        tokenizer: a fast tokenizer, the model's own.
        batch_size: windows a forward pass.
        stride: None cuts texts longer than `max_tokens`; a number averages the probabilities of windows of `max_tokens`
            that overlap by so many tokens.
        threshold: the probability from which on a multi-label model's label is given; None means 0.5, and for other models
            there is none.

    Raises:
        UserError: `batch_size`, `stride` or `threshold` out of range, a tokenizer that does not fit the model, or a head
            whose outputs have no meaning here.
    """

    model: InhibiDistilBertForSequenceClassification
    tokenizer: PreTrainedTokenizerBase
    batch_size: int = 32
    stride: int | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        self.model.eval()
        self._check_head()
        if self.batch_size < 1:
            raise UserError(f"batch size must be at least 1, got {self.batch_size}.")
        room = self.max_tokens - self.tokenizer.num_special_tokens_to_add()
        if self.stride is not None and not 0 <= self.stride < room:
            raise UserError(
                f"stride must be at least 0 and below {room} (the model's {self.max_tokens} positions less the special "
                f"tokens), got {self.stride}."
            )
        if not self.tokenizer.is_fast:
            raise UserError(f"the tokenizer must be a fast one, got {type(self.tokenizer).__name__}.")
        check_vocabulary(self.tokenizer, self.model.config)

    def _check_head(self) -> None:
        config, names = self.model.config, self.labels
        if not has_its_outputs(config):
            raise UserError(
                f"the model in {self.model.name_or_path!r} is {describe_problem(config)}: predicting needs a single number, "
                "two or more classes to choose from, or labels that are each there or not."
            )
        if self.multi_label and len(set(names)) < len(names):
            raise UserError(f"the model in {self.model.name_or_path!r} has labels of the same name: {', '.join(names)}.")
        if self.threshold is None:
            return
        if not self.multi_label:
            raise UserError(
                f"threshold is for multi-label models, but the one in {self.model.name_or_path!r} is "
                f"{describe_problem(config)}."
            )
        if not 0 <= self.threshold <= 1:
            raise UserError(f"threshold must be a probability from 0 to 1, got {self.threshold}.")

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        device: str = "auto",
        batch_size: int = 32,
        stride: int | None = None,
        threshold: float | None = None,
    ) -> "TextClassifier":
        """Load a folder written by `save_pretrained` of model and tokenizer. No code in the folder is run.

        Raises:
            UserError: files missing or damaged, another kind of model, weights missing, or an unknown device.
        """
        where = find_device(device)
        check_folder(folder)
        called, remedy = f"model folder {str(folder)!r}", "predicting needs a trained sequence classifier"
        kind = InhibiDistilBertForSequenceClassification
        model = load_model(kind, folder, called, use_safetensors=True, remedy=remedy).model
        return cls(model.to(where), load_tokenizer(folder, called), batch_size, stride, threshold)

    @property
    def max_tokens(self) -> int:
        """The longest input of the model, special tokens included."""
        return self.model.config.max_position_embeddings

    @property
    def labels(self) -> list[str]:
        """Names of the labels, in the order of the model's outputs."""
        return class_names(self.model.config)

    @property
    def multi_label(self) -> bool:
        """Whether each label is there or not by itself, so that a text has any number of them."""
        return problem_of(self.model.config) == MULTI_LABEL

    def predict(self, texts: Iterable[str], track: Track | None = None) -> Iterator[Prediction]:
        """Predictions in the order of `texts`, which are read `CHUNK_TEXTS` at a time.

        track: wraps the batches of a chunk, say in a progress bar.

        Raises:
            UserError: when the model's scores are not finite.
        """
        remaining = iter(texts)
        while chunk := list(islice(remaining, CHUNK_TEXTS)):
            yield from self._predict_chunk(chunk, track)

    def _predict_chunk(self, texts: list[str], track: Track | None) -> list[Prediction]:
        windows = self._windows(texts)
        lengths = self._text_lengths(windows, len(texts))
        if self.stride is None:
            windows = [window for i, window in enumerate(windows) if i == 0 or windows[i - 1].owner != window.owner]
        scores = self._text_scores(windows, len(texts), track)
        if not scores.isfinite().all():
            raise UserError(f"the model in {self.model.name_or_path!r} gives scores that are not finite: it is damaged.")
        names = self.labels
        values, labels = scores.max(-1)
        named = [dict(zip(names, row, strict=True)) for row in scores.tolist()]
        given = [self._given(row) if self.multi_label else None for row in named]
        columns = texts, [names[label] for label in labels.tolist()], values.tolist(), lengths, given, named
        return [Prediction(*row) for row in zip(*columns, strict=True)]

    def _given(self, scores: dict[str, float]) -> list[str]:
        """The labels from the threshold on, the likeliest first."""
        threshold = THRESHOLD if self.threshold is None else self.threshold
        return sorted((name for name, score in scores.items() if score >= threshold), key=lambda name: -scores[name])

    def _windows(self, texts: list[str]) -> list[Window]:
        """The windows of all texts, those of a text together and in order. Without a stride they do not overlap."""
        encoded = self.tokenizer(
            texts,
            truncation=True,
            max_length=self.max_tokens,
            stride=self.stride or 0,
            return_overflowing_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        owners = encoded["overflow_to_sample_mapping"]
        return [Window(owner, ids) for owner, ids in zip(owners, encoded["input_ids"], strict=True)]

    def _text_lengths(self, windows: list[Window], texts: int) -> list[int]:
        """Tokens of each text: those of its windows, less what every window but the first repeats."""
        repeated = self.tokenizer.num_special_tokens_to_add() + (self.stride or 0)
        lengths = [repeated] * texts
        for window in windows:
            lengths[window.owner] += len(window.ids) - repeated
        return lengths

    def _text_scores(self, windows: list[Window], texts: int, track: Track | None) -> Tensor:
        """`(texts, labels)`: the mean of the scores of each text's windows."""
        owners = torch.tensor([window.owner for window in windows])
        scores = self._window_scores(windows, track)
        summed = scores.new_zeros(texts, scores.shape[1]).index_add_(0, owners, scores)
        return summed / owners.bincount(minlength=texts)[:, None]

    def _window_scores(self, windows: list[Window], track: Track | None) -> Tensor:
        """`(windows, labels)`, float32 on the CPU. Batches hold windows of similar length, the longest first."""
        order = sorted(range(len(windows)), key=lambda index: len(windows[index].ids), reverse=True)
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        scores = torch.empty(len(windows), len(self.labels))
        for batch in track(batches) if track else batches:
            scores[batch] = self._batch_scores([windows[index].ids for index in batch]).cpu()
        return scores

    @torch.inference_mode()
    def _batch_scores(self, batch: list[list[int]]) -> Tensor:
        """`(B, labels)`. The id at padded places is of no account: the mask hides them."""
        ids = nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in batch], batch_first=True)
        lengths = torch.tensor([len(ids) for ids in batch])
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        device = self.model.device
        logits = self.model(ids.to(device), attention_mask=mask.to(device)).logits
        return to_scores(logits.float(), self.model.config)


def to_scores(logits: Tensor, config: InhibiDistilBertConfig) -> Tensor:
    """Probabilities `(B, labels)` as the problem type asks (see `problem_of`); the logits themselves for regression."""
    problem = problem_of(config)
    if problem == REGRESSION:
        return logits
    return logits.sigmoid() if problem == MULTI_LABEL else logits.softmax(-1)


def find_device(name: str) -> torch.device:
    """The device of that name; `"auto"` is the accelerator when there is one, otherwise the CPU.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device {name!r} is not available here; use auto, cpu, or an accelerator such as cuda.") from error
    return device


def check_folder(folder: Path) -> None:
    """Look at the files of a checkpoint before anything is loaded.

    Raises:
        UserError: not a folder, files missing, or a config.json of another kind of model.
    """
    if not folder.is_dir():
        raise UserError(f"model {str(folder)!r} is not a folder; give one written by save_pretrained.")
    for names in (("config.json",), WEIGHT_FILES, TOKENIZER_FILES):
        if not any(is_regular(folder / name) for name in names):
            raise UserError(
                f"model folder {str(folder)!r} lacks {' or '.join(names)}; give one written by save_pretrained of model and "
                "tokenizer."
            )
    config, where = read_json(folder / "config.json"), f"model folder {str(folder)!r}"
    check_model_type(config, where)
    architectures, head = config.get("architectures"), InhibiDistilBertForSequenceClassification.__name__
    if architectures and head not in architectures:
        raise UserError(f"{where} must hold a {head}, got {', '.join(map(str, architectures))}.")
