"""Writes the source files that make a checkpoint folder loadable with `trust_remote_code=True`."""

import os
import re
from pathlib import Path

# Where this package keeps the operator; in a checkpoint, whose files lie flat, the same files are siblings.
_KERNEL_IMPORT = re.compile(r"^(\s*from )\.\.kernels\.", flags=re.MULTILINE)

AUTO_MAP = {
    "AutoConfig": "configuration_inhibidistilbert.InhibiDistilBertConfig",
    "AutoModel": "modeling_inhibidistilbert.InhibiDistilBertModel",
    "AutoModelForMaskedLM": "modeling_inhibidistilbert.InhibiDistilBertForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_inhibidistilbert.InhibiDistilBertForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_inhibidistilbert.InhibiDistilBertForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_inhibidistilbert.InhibiDistilBertForQuestionAnswering",
    "AutoModelForMultipleChoice": "modeling_inhibidistilbert.InhibiDistilBertForMultipleChoice",
}


def source_files() -> list[Path]:
    """The model's and the operator's source files: beside this one, and in a checkout or installed package in `kernels/`."""
    here = Path(__file__).parent
    folders = [here, here.parent / "kernels"] if here.name == "modeling" else [here]
    return sorted(file for folder in folders for file in folder.glob("*.py") if file.name != "__init__.py")


def write_remote_code(folder: str | os.PathLike) -> None:
    """Copy the source files into `folder`, flat; the import prefix of the operator is all that changes.

    Each file is written under a temporary name and renamed, so that an interrupted save leaves no half file. Neither name
    is written through: a link of that name is replaced.
    """
    for source in source_files():
        text = _KERNEL_IMPORT.sub(r"\1.", source.read_text(encoding="utf-8"))
        target = Path(folder, source.name)
        temporary = target.with_suffix(".py.tmp")
        temporary.unlink(missing_ok=True)
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
        temporary.replace(target)
