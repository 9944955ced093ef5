"""Writes a checkpoint for other engines: ONNX files that are checked against the model, timed, and kept where they agree."""

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .support.errors import UserError, reason
from .support.files import replacing_folder, telling_of_disk
from .support.heads import SINGLE_LABEL, problem_of
from .support.models import MODEL_INPUTS
from .support.onnx_files import PACKAGES, quiet_exporters, session_of, write_float, write_quantized
from .support.packages import check_packages

OUTPUTS = {
    "Model": ("last_hidden_state",),
    "ForMaskedLM": ("logits",),
    "ForSequenceClassification": ("logits",),
    "ForTokenClassification": ("logits",),
    "ForQuestionAnswering": ("start_logits", "end_logits"),
}
# What an earlier export has: whatever else stands in a folder is not for an export to remove.
_OWN_FILES = {"onnx", "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"}
_TIMED, _ROUNDS = (128, 512), 5
# By how much an output may differ from the model's, as a share of the largest one, or of 1 where that is less.
TOLERANCES = {"model.onnx": 1e-5, "model_fp16.onnx": 1e-2, "model_quantized.onnx": 0.1}
_MOST_LOST = 0.002  # of the accuracy
_SENTENCES = (
    "A warm, funny film with two leads you could watch for hours.",
    "It broke after two days, and nobody answered my letters.",
    "Fine.",
    "The parcel was to come on Monday; it came on Thursday, wet, and without the book that I had paid for.",
    "I had feared that the second part would be long-winded, yet it is better than the first in every way. " * 9,
)


@dataclass(frozen=True)
class Exported:
    """One file: whether it was kept, and what was found of it.

    Attributes:
        file: its name in the folder.
        kept: whether it is there.
        bytes: its size.
        difference: the largest of an output to the model's, as a share of the largest output, or of 1 where that is less.
        milliseconds: of the processor, by tokens of a single text, on one thread; the median.
        accuracy: a share of the labelled texts; None without them.
        problem: why it was not kept.
    """

    file: str
    kept: bool
    bytes: int
    difference: float
    milliseconds: dict[int, float]
    accuracy: float | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Labelled:
    """Texts, and the number of the class of each."""

    texts: list[str]
    labels: list[int]


def check_output(folder: Path, argument: str) -> None:
    """Raises `UserError` where something stands there that is no earlier export."""
    if folder.is_dir():
        others = sorted(file.name for file in folder.iterdir() if file.name not in _OWN_FILES)
        if not others:
            return
        raise UserError(f"{argument} {str(folder)!r} holds {others[0]!r}, which no export wrote; give another folder.")
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{argument} {str(folder)!r} is no folder; give another name.")


def head_of(model: PreTrainedModel) -> str:
    """The key of `OUTPUTS`. Raises `UserError` for a model that cannot be exported."""
    name, config = type(model).__name__, model.config
    head = name.removeprefix("InhibiDistilBert")
    if head not in OUTPUTS:
        raise UserError(f"CHECKPOINT must have one of the heads {', '.join(OUTPUTS)} to be exported, got {name}.")
    if config.int8_weights or config.quantized:
        raise UserError(
            "CHECKPOINT is an int8 model: give the float one that it comes from; the export makes its own int8 form."
        )
    return head


class _Plain(nn.Module):
    """A model as a function of its two inputs that returns its outputs, in float32."""

    def __init__(self, model: PreTrainedModel, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.outputs = model, outputs

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        found = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return tuple(found[name].float() for name in self.outputs)


def _run(session: Any, inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
    return session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})


def _difference(session: Any, model: _Plain, batches: list[dict[str, Tensor]]) -> float:
    """See `Exported`. NaN is infinitely far. What stands at padding is of no account."""
    largest = 0.0
    for inputs in batches:
        with torch.inference_mode():
            wanted = [output.numpy() for output in model(**inputs)]
        for got, want in zip(_run(session, inputs), wanted, strict=True):
            if got.ndim == 3 or model.outputs[0] == "start_logits":
                real = inputs["attention_mask"].numpy().astype(bool)
                got, want = got[real], want[real]
            found = float(np.abs(got - want).max()) / max(1.0, float(np.abs(want).max()))
            largest = max(largest, found if np.isfinite(found) else float("inf"))
    return largest


def _milliseconds(session: Any, lengths: list[int]) -> dict[int, float]:
    found = {}
    for length in lengths:
        ids = torch.ones(1, length, dtype=torch.int64)
        inputs, times = {"input_ids": ids, "attention_mask": ids}, []
        for _ in range(1 + _ROUNDS):
            start = time.process_time()
            _run(session, inputs)
            times.append(time.process_time() - start)
        found[length] = 1e3 * statistics.median(times[1:])
    return found


def export_onnx(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    labelled: Labelled | None = None,
    step: Callable[[], Any] = lambda: None,
) -> list[Exported]:
    """Write `onnx/model.onnx`, `model_fp16.onnx` and `model_quantized.onnx` (int8), configuration and tokenizer to `folder`.

    Each file is compared with the model on sentences and timed. It stays where it is within its tolerance, and where the
    accuracy on `labelled` is at most 0.2 points below the model's. The folder appears when it is complete; an earlier export
    of that name stays until then.

    step: called after each file.

    Raises:
        UserError: a head that cannot be exported, an int8 model, a package that is missing, a folder that cannot be written
            or holds something else, a model that the exporter refuses, or a float32 file that disagrees with the model.
    """
    check_packages(PACKAGES, "--to onnx")
    outputs = OUTPUTS[head_of(model)]
    check_output(folder, "OUTPUT_DIR")
    config: Any = model.config
    positions = config.max_position_embeddings
    plain = _Plain(model.float().cpu().eval(), outputs).eval()

    def encode(texts: list[str]) -> dict[str, Tensor]:
        encoded = tokenizer(texts, padding=True, truncation=True, max_length=positions, return_tensors="pt")
        return {name: encoded[name] for name in MODEL_INPUTS}

    batches = [encode(list(_SENTENCES)), encode([_SENTENCES[0]]), encode([" ".join(_SENTENCES) * 9])]
    lengths = sorted({min(length, positions) for length in _TIMED})
    right = None if labelled is None else _accuracy(lambda inputs: plain(**inputs)[0].numpy(), labelled, encode)

    def examined(file: Path) -> Exported:
        session = session_of(file, threads=1)
        difference, most = _difference(session, plain, batches), TOLERANCES[file.name]
        accuracy = None if labelled is None else _accuracy(lambda inputs: _run(session, inputs)[0], labelled, encode)
        problem = None
        if difference > most:
            problem = f"it differs from the model by {difference:.1e}, and may by {most:.0e}"
        elif accuracy is not None and right is not None and accuracy < right - _MOST_LOST:
            problem = f"its accuracy is {accuracy:.4f} and the model's {right:.4f}"
        found = difference, _milliseconds(session, lengths), accuracy, problem
        return Exported(f"onnx/{file.name}", problem is None, file.stat().st_size, *found)

    results = []
    with replacing_folder(folder, "OUTPUT_DIR") as new, telling_of_disk("OUTPUT_DIR", folder), quiet_exporters():
        (new / "onnx").mkdir()
        single, half, quantized = (new / "onnx" / name for name in TOLERANCES)
        traced = encode(list(_SENTENCES[:3]))  # the exporter takes a single row for a constant
        writers = {
            single: lambda: write_float(plain, traced, plain.outputs, single, positions),
            quantized: lambda: write_quantized(single, quantized),
            half: lambda: write_float(_Plain(copy.deepcopy(model).half(), outputs), traced, outputs, half, positions),
        }
        for file, write in writers.items():
            try:
                write()
            except Exception as error:  # the exporter has many ways to fail
                if file == single:
                    raise UserError(f"CHECKPOINT cannot be exported: {reason(error)}") from error
                results.append(Exported(f"onnx/{file.name}", False, 0, float("inf"), {}, None, reason(error)))
            else:
                results.append(examined(file))
            if not results[-1].kept:
                file.unlink(missing_ok=True)
                if file == single:
                    raise UserError(f"{results[0].file} is not as the model, so nothing is kept: {results[0].problem}.")
            step()
        config.save_pretrained(new)
        tokenizer.save_pretrained(new)
    return results


def _accuracy(
    outputs: Callable[[Mapping[str, Tensor]], np.ndarray],
    labelled: Labelled,
    encode: Callable[[list[str]], dict[str, Tensor]],
) -> float:
    """The share of the texts that get their label, one text at a time."""
    with torch.inference_mode():
        found = [int(outputs(encode([text]))[0].argmax()) for text in labelled.texts]
    return float(np.mean(np.array(found) == np.array(labelled.labels)))


def has_accuracy(model: PreTrainedModel) -> bool:
    """Whether its outputs are classes, of which a labelled text has one."""
    return head_of(model) == "ForSequenceClassification" and problem_of(model.config) == SINGLE_LABEL
