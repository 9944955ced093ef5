"""The teacher: loading, and labelling texts with its logits."""

import uuid
from typing import Any

import torch
import transformers
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..support import models
from ..support.errors import UserError
from ..support.models import MODEL_INPUTS, load_model


@torch.inference_mode()
def add_teacher_logits(
    dataset: Dataset, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, bf16: bool
) -> Dataset:
    """Adds the column `teacher_logits` `(classes,)`, on the accelerator if there is one, `bf16` under autocast.

    The rows come back sorted by length, so that batches hold little padding.
    """
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    teacher.to(device).eval()  # type: ignore[arg-type]  # transformers' wrapper of `to` loses its signature

    def label(batch: dict) -> dict:
        inputs = tokenizer.pad({"input_ids": batch["input_ids"]}, return_tensors="pt").to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return {"teacher_logits": teacher(**inputs).logits.float().cpu().numpy()}

    # Hashing a model to name a cache file would take longer than it saves.
    fingerprint = uuid.uuid4().hex
    return dataset.sort("length").map(
        label, batched=True, batch_size=64, desc="Labelling with the teacher", new_fingerprint=fingerprint
    )


def load_teacher(
    source: str, head: str, trust_remote_code: bool, argument: str, device: str | None = None
) -> PreTrainedModel:
    """A frozen teacher in float32: with the head `"ForMaskedLM"` and the like, or bare, `"Model"`.

    device: `"meta"` for one without values, whose weights are looked for and not read.

    Raises:
        UserError: a source that does not load, or that has no trained head of this kind.
    """
    kind = getattr(transformers, f"AutoModel{head.removeprefix('Model')}")

    def unused(model: PreTrainedModel, name: str) -> bool:
        """A pooler is not run for hidden states; it is a part of BERT's sequence classifier."""
        return head != "ForSequenceClassification" and "pooler" in name

    where, remedy = f"{argument}: {source!r}", "give a fine-tuned model, or --fine-tune-teacher"
    options: dict[str, Any] = {"dtype": torch.float32, "device_map": device, "trust_remote_code": trust_remote_code}
    return load_model(kind, source, where, may_lack=unused, remedy=remedy, **options).model


def load_tokenizer(source: str, trust_remote_code: bool, argument: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, without segments, which students do not have. Raises a UserError where there is none."""
    options: dict[str, Any] = {"padding_side": "right", "trust_remote_code": trust_remote_code}
    return models.load_tokenizer(source, f"{argument}: {source!r}", model_input_names=MODEL_INPUTS, **options)


# Case, accents, punctuation and numbers, which tokenizers with the same words may treat differently.
_PROBE = "The Café's 2nd ÉTUDE (1999) isn't «naïve»: 3.50€, e-mail…"


def check_same_tokenizer(
    first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase, first_name: str, second_name: str
) -> None:
    """Raises a UserError where two tokenizers would not give the same ids."""
    ours, theirs = first.get_vocab(), second.get_vocab()
    different = f"{first_name} and {second_name} have different tokenizers"
    if len(ours) != len(theirs):
        raise UserError(f"{different}, of {len(ours)} and {len(theirs)} tokens: teacher and student must share one.")
    for token, index in ours.items():
        if theirs.get(token) != index:
            raise UserError(
                f"{different}: {token!r} is {index} in the one and {theirs.get(token)} in the other: teacher and student "
                "must share one."
            )
    if first(_PROBE)["input_ids"] != second(_PROBE)["input_ids"]:
        raise UserError(f"{different}: the words are the same, but texts are cut differently (case or accents).")
