"""The teacher: loading, and labelling texts with its logits."""

import uuid
from typing import Any

import torch
import transformers
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..support import models
from ..support.models import MODEL_INPUTS, load_model


@torch.inference_mode()
def add_teacher_logits(
    dataset: Dataset, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, bf16: bool, read: Dataset | None = None
) -> Dataset:
    """Adds the column `teacher_logits` `(classes,)`, on the accelerator if there is one, `bf16` under autocast.

    tokenizer: the teacher's. read: the same rows as that tokenizer cuts them; None where it is the student's too.

    The rows come back sorted by the length that the teacher reads, so that its batches hold little padding.
    """
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    teacher.to(device).eval()  # type: ignore[arg-type]  # transformers' wrapper of `to` loses its signature

    def label(batch: dict) -> dict:
        inputs = tokenizer.pad({"input_ids": batch["input_ids"]}, return_tensors="pt").to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return {"teacher_logits": teacher(**inputs).logits.float().cpu().numpy()}

    # Hashing a model to name a cache file would take longer than it saves.
    fingerprint = uuid.uuid4().hex
    read = dataset if read is None else read
    ordered = read.add_column("row", list(range(len(read)))).sort("length")
    labelled = ordered.map(
        label, batched=True, batch_size=64, desc="Labelling with the teacher", new_fingerprint=fingerprint
    )
    return concatenate_datasets([dataset.select(labelled["row"]), labelled.select_columns("teacher_logits")], axis=1)


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


def token_difference(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> str | None:
    """Why two tokenizers would not give the same ids, as a sentence; None where they would."""
    ours, theirs = first.get_vocab(), second.get_vocab()
    if len(ours) != len(theirs):
        return f"they have {len(ours)} and {len(theirs)} tokens"
    for token, index in ours.items():
        if theirs.get(token) != index:
            return f"{token!r} is {index} in the one and {theirs.get(token)} in the other"
    if first(_PROBE)["input_ids"] != second(_PROBE)["input_ids"]:
        return "the words are the same, but texts are cut differently (case or accents)"
    return None
