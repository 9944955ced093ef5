"""Writes a student: a folder that appears complete or not at all."""

import json
import os
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from ..support.errors import UserError
from ..support.files import is_regular, read_json, replacing_folder, write_text
from ..support.models import has_tokenizer, load_tokenizer
from .hosts import host_student
from .options import StudentOptions
from .source import HEADS, read_fields, student_tokenizer
from .student import ConversionReport, student_from

_IMAGES = "preprocessor_config.json"  # how images become a model's input


def convert_checkpoint(
    source: str | os.PathLike,
    output_dir: str | os.PathLike,
    options: StudentOptions | None = None,
    *,
    overwrite: bool = False,
) -> ConversionReport:
    """Write the student of `source` to `output_dir`: weights, configuration, source code and tokenizer.

    A source that is no DistilBERT or BERT, or is told to keep its class, keeps tokenizer or image processor as they are. The
    tokenizer of others emits no `token_type_ids` and its `model_max_length` is the number of positions. The folder appears
    complete or not at all. An existing one that is not empty is replaced only with `overwrite`, and only if it holds a
    checkpoint (a `config.json`).

    Raises:
        UserError: as `student_from`, and for an output folder that cannot be used.
    """
    output = Path(output_dir).resolve()
    _check_output(source, output, overwrite)
    options, source = options or StudentOptions(), str(source)
    student: Any
    if options.keep_class or read_fields(source).get("model_type") not in HEADS:
        student, report = host_student(source, options)
        tokenizer = load_tokenizer(source, f"SOURCE {source!r}") if has_tokenizer(source) else None
        images = _image_fields(source)
    else:
        if options.inhibited_layers is not None:
            raise UserError(f"--inhibited-layers needs --keep-class for SOURCE {source!r}; give that too, or leave it out.")
        student, report = student_from(source, options)
        tokenizer, images = student_tokenizer(source, student.config.max_position_embeddings), None
    if tokenizer is None and images is None:
        report.warnings.append("The source has no tokenizer, so none was written: add one before using the model on text.")
    with replacing_folder(output, "OUTPUT_DIR") as folder:
        student.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        if images is not None:
            write_text(folder / _IMAGES, json.dumps(images, indent=2) + "\n")
    return report


def _image_fields(source: str) -> dict[str, Any] | None:
    """The source's settings for images, without code that they may name."""
    file = cached_file(source, _IMAGES, _raise_exceptions_for_missing_entries=False)
    if file is None or not is_regular(Path(file)):
        return None
    return {name: value for name, value in read_json(Path(file)).items() if name != "auto_map"}


def _check_output(source: str | os.PathLike, output: Path, overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise UserError(f"OUTPUT_DIR {str(output)!r} is a file; give a folder.")
    if Path(source).is_dir() and Path(source).resolve().is_relative_to(output):
        raise UserError(f"OUTPUT_DIR {str(output)!r} holds the source; give another folder.")
    if not output.exists() or not any(output.iterdir()):
        return
    if not overwrite:
        raise UserError(f"OUTPUT_DIR {str(output)!r} is not empty; give another folder, or --overwrite to replace it.")
    if not (output / "config.json").is_file():
        raise UserError(
            f"OUTPUT_DIR {str(output)!r} is not empty and holds no config.json; --overwrite replaces checkpoints only."
        )
