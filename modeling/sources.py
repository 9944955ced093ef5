"""Writes the source files that make a checkpoint folder loadable with `trust_remote_code=True`."""

import ast
import os
from functools import cache
from pathlib import Path

_HEADS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")
AUTO_MAP = {
    "AutoConfig": "configuration_inhibidistilbert.InhibiDistilBertConfig",
    "AutoModel": "modeling_inhibidistilbert.InhibiDistilBertModel",
    **{f"AutoModel{head}": f"modeling_inhibidistilbert.InhibiDistilBert{head}" for head in _HEADS},
}
# Not part of a model: the layers of the Hub kernel.
_LEFT_OUT = ("__init__.py", "layers.py")


def source_files() -> dict[str, Path]:
    """The model's and the operator's source files, by their names in a checkpoint, whose files lie flat.

    In the package `kernels/cpu/code/forward.py` is the one of `inhibitor_cpu_code_forward.py`.
    """
    here = Path(__file__).parent
    files = {file.name: file for file in sorted(here.glob("*.py")) if file.name not in _LEFT_OUT}
    if here.name == "modeling":
        kernels = here.parent / "kernels"
        nested = [file for file in sorted(kernels.rglob("*.py")) if file.name not in _LEFT_OUT]
        files |= {"_".join(("inhibitor", *file.relative_to(kernels).parts)): file for file in nested}
    return files


@cache
def _relative_imports(text: str) -> list[tuple[int, int, str]]:
    """Line, level and module of each. Parsing takes a quarter of a second for all files: once a process is enough."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.level]
    return [(node.lineno - 1, node.level, str(node.module)) for node in nodes]


def flat_source(file: Path, names: dict[Path, str]) -> str:
    """The text of `file`, one of `names`, whose relative imports name its siblings in a checkpoint."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    for place, level, module in _relative_imports(text):
        target = file.parents[level - 1].joinpath(*module.split(".")).with_suffix(".py")
        lines[place] = lines[place].replace("." * level + module, "." + names[target].removesuffix(".py"), 1)
    return "".join(lines)


def write_remote_code(folder: str | os.PathLike) -> None:
    """Write the source files into `folder`, flat; the relative imports are all that changes.

    Each file is written under a temporary name and renamed, so that an interrupted save leaves no half file. Neither name
    is written through: a link of that name is replaced.
    """
    files = source_files()
    names = {file: name for name, file in files.items()}
    for name, source in files.items():
        target = Path(folder, name)
        temporary = target.with_suffix(".py.tmp")
        temporary.unlink(missing_ok=True)
        with temporary.open("x", encoding="utf-8") as file:
            file.write(flat_source(source, names))
        temporary.replace(target)
