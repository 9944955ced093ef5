"""Writes a student: a folder that appears complete or not at all."""

import os
from pathlib import Path

from ..support.errors import UserError
from ..support.files import replacing_folder
from .options import StudentOptions
from .source import student_tokenizer
from .student import ConversionReport, student_from


def convert_checkpoint(
    source: str | os.PathLike,
    output_dir: str | os.PathLike,
    options: StudentOptions | None = None,
    *,
    overwrite: bool = False,
) -> ConversionReport:
    """Write the student of `source` to `output_dir`: weights, configuration, source code and tokenizer.

    The tokenizer emits no `token_type_ids` and its `model_max_length` is the number of positions. The folder appears
    complete or not at all. An existing one that is not empty is replaced only with `overwrite`, and only if it holds a
    checkpoint (a `config.json`).

    Raises:
        UserError: as `student_from`, and for an output folder that cannot be used.
    """
    output = Path(output_dir).resolve()
    _check_output(source, output, overwrite)
    student, report = student_from(source, options)
    tokenizer = student_tokenizer(str(source), student.config.max_position_embeddings)
    if tokenizer is None:
        report.warnings.append("The source has no tokenizer, so none was written: add one before using the model on text.")
    with replacing_folder(output, "OUTPUT_DIR") as folder:
        student.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    return report


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
