"""The teacher: loading, and labelling texts with its logits."""

import shutil
import uuid
from pathlib import Path

import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..conversion import MODEL_INPUTS
from ..errors import UserError, reason


def load_teacher(
    source: str, num_labels: int | None, trust_remote_code: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The sequence classifier and tokenizer in `source`, a folder or a Hub id.

    num_labels: classes of a teacher that is to be fine-tuned, whose head is new unless it has as many; None demands a
    trained head.

    Raises:
        UserError: a source that does not load, without a tokenizer, or without a trained head where one is needed.
    """
    options = {} if num_labels is None else {"num_labels": num_labels, "ignore_mismatched_sizes": True}
    try:
        # Without segments: the student has none, and a BERT teacher takes single texts as segment 0 by itself.
        tokenizer = AutoTokenizer.from_pretrained(
            source, model_input_names=MODEL_INPUTS, trust_remote_code=trust_remote_code
        )
        model, info = AutoModelForSequenceClassification.from_pretrained(
            source, output_loading_info=True, dtype=torch.float32, trust_remote_code=trust_remote_code, **options
        )
    except Exception as error:  # the libraries raise nothing more special for damaged files
        raise UserError(f"--teacher: {source!r} does not load as a sequence classifier: {reason(error)}") from error
    # transformers makes up a tokenizer of a few special tokens where there is none.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise UserError(f"--teacher: {source!r} has no tokenizer.")
    if num_labels is None and info["missing_keys"]:
        raise UserError(
            f"--teacher: {source!r} has no trained classification head (missing {', '.join(sorted(info['missing_keys']))}): "
            "give a fine-tuned classifier, or --fine-tune-teacher."
        )
    return model, tokenizer


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


def save_classifier(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype) -> None:
    """Write a loadable folder, whole or not at all; weights of two or more dimensions are stored in `dtype`.

    It replaces a folder of that name, and the tokenizer is written without the truncation of the training.
    The configuration keeps the dtype to compute in, so a half-precision file still loads as float32.
    """
    temporary = folder.with_name(folder.name + ".tmp")
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() and tensor.ndim > 1 else tensor
        for name, tensor in model.state_dict().items()
    }
    model.save_pretrained(temporary, state_dict=state)
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(temporary)
    if tokenizer.is_fast:
        # Without the line breaks the file is a third smaller.
        tokenizer.backend_tokenizer.save(str(temporary / "tokenizer.json"), pretty=False)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
