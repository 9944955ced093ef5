"""Writes the source files that make a checkpoint folder loadable with `trust_remote_code=True`."""

import ast
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

_HEADS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")
AUTO_MAP = {
    "AutoConfig": "configuration_inhibidistilbert.InhibiDistilBertConfig",
    "AutoModel": "modeling_inhibidistilbert.InhibiDistilBertModel",
    **{f"AutoModel{head}": f"modeling_inhibidistilbert.InhibiDistilBert{head}" for head in _HEADS},
}


def source_files(entry: str = "modeling_inhibidistilbert.py") -> dict[str, Path]:
    """A model's and the operator's source files, by their names in a checkpoint, whose files lie flat: the file `entry`
    beside this one, and what it imports.

    In the package `kernels/cpu/code/forward.py` is the one of `inhibitor_cpu_code_forward.py`.
    """
    here = Path(__file__).parent
    kernels = here.parent / "kernels"
    files: dict[str, Path] = {}
    waiting = [here / entry]
    while waiting:
        file = waiting.pop()
        nested = file.relative_to(kernels).parts if file.is_relative_to(kernels) else ()
        name = "_".join(("inhibitor", *nested)) if nested else file.name
        if name not in files:
            files[name] = file
            imports = _relative_imports(file.read_text(encoding="utf-8"))
            waiting += [_imported(file, level, module) for _, level, module in imports]
    return dict(sorted(files.items()))


@cache
def _relative_imports(text: str) -> list[tuple[int, int, str]]:
    """Line, level and module of each. Parsing takes a quarter of a second for all files: once a process is enough."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.level]
    return [(node.lineno - 1, node.level, str(node.module)) for node in nodes]


def _imported(file: Path, level: int, module: str) -> Path:
    return file.parents[level - 1].joinpath(*module.split(".")).with_suffix(".py")


def flat_source(file: Path, names: dict[Path, str]) -> str:
    """The text of `file`, one of `names`, whose relative imports name its siblings in a checkpoint."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    for place, level, module in _relative_imports(text):
        target = names[_imported(file, level, module)].removesuffix(".py")
        lines[place] = lines[place].replace("." * level + module, "." + target, 1)
    return "".join(lines)


def write_remote_code(folder: str | os.PathLike, entry: str = "modeling_inhibidistilbert.py") -> None:
    """Write the source files of `entry` into `folder`, flat; the relative imports are all that changes.

    Each file is written under a temporary name and renamed, so that an interrupted save leaves no half file. Neither name
    is written through: a link of that name is replaced.
    """
    files = source_files(entry)
    names = {file: name for name, file in files.items()}
    for name, source in files.items():
        target = Path(folder, name)
        temporary = target.with_suffix(".py.tmp")
        temporary.unlink(missing_ok=True)
        with temporary.open("x", encoding="utf-8") as file:
            file.write(flat_source(source, names))
        temporary.replace(target)


def push_saved(model: Any, folder: str | os.PathLike, options: Mapping[str, Any]) -> None:
    """What `save_pretrained(folder, push_to_hub=True, **options)` does when the folder is complete."""
    names = ("commit_message", "create_pr", "max_shard_size", "private", "revision", "token")
    repo_id = options.get("repo_id") or Path(folder).name
    model.push_to_hub(repo_id, **{name: options[name] for name in names if name in options})
