"""Puts together, in a new folder, what of a checkpoint belongs on the Hub."""

import os
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..modeling.sources import source_files, write_remote_code
from ..support.errors import UserError, reason
from ..support.files import write_text
from .card import CARD, dropped_sections, read_card, render_card, write_eval_results
from .measurements import RESULT_FILES
from .regular import copy_regular, refuse_others
from .source import check_source
from .tasks import architecture_of, has_pipeline

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json", "added_tokens.json")
# What is copied. The source files are written anew, and so is the card, from what the maintainer's says.
ALLOWED = ("config.json", "generation_config.json", "LICENSE", *WEIGHTS, *TOKENIZER, *RESULT_FILES)
HANDLER = "handler.py"  # what hosted inference endpoints look for


@dataclass(frozen=True)
class Candidate:
    """A folder that may go to the Hub.

    Attributes:
        folder: assembled afresh; all that is in it goes to the Hub.
        source: the maintainer's folder, which is only read.
        config: the content of `config.json`.
        left_out: files of `source` that stay there.
        left_out_sections: headings of its card whose text stays there.
    """

    folder: Path
    source: Path
    config: dict[str, Any]
    left_out: tuple[str, ...] = ()
    left_out_sections: tuple[str, ...] = ()

    @property
    def architecture(self) -> str:
        """`"InhibiDistilBertForSequenceClassification"`; empty where the configuration names none."""
        return architecture_of(self.config)

    @property
    def files(self) -> dict[str, Path]:
        """The files by their path in the repository."""
        return repository_files(self.folder)


def repository_files(folder: Path) -> dict[str, Path]:
    """The files below `folder` by their path in the repository."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def write_handler(folder: Path) -> None:
    """Write the file that answers the requests of hosted inference endpoints."""
    write_text(folder / HANDLER, Path(__file__).with_name(HANDLER).read_text(encoding="utf-8"))


def allowed_names() -> set[str]:
    """Names, with wildcards, that may stand in the root of a published checkpoint."""
    return {*ALLOWED, CARD, HANDLER, *source_files()}


def assemble(source: Path, target: Path, repo_id: str, revision: str | None) -> Candidate:
    """Copy what is allowed from `source` to the new folder `target`, and write source files, card and evaluation entries.

    Regular files in `source` alone are taken, and what becomes of them is made from the copies; `source` itself may be a
    link to the folder.

    revision: the tag that the card's examples are pinned to.

    Raises:
        UserError: `source` is not a checkpoint of this kind of model, holds a link or the like in place of a file, or its
            files of results cannot be read.
    """
    if not source.is_dir():
        raise UserError(f"CHECKPOINT_DIR: {str(source)!r} is not a folder; give one written by save_pretrained.")
    target.mkdir(parents=True)
    try:
        # Not `glob`, which passes over a link that leads nowhere.
        names = sorted(os.listdir(source))
    except OSError as error:
        raise UserError(f"CHECKPOINT_DIR: {str(source)!r} cannot be read: {reason(error)}.") from error
    wanted = [name for name in names if any(fnmatch(name, pattern) for pattern in (*ALLOWED, CARD))]
    refuse_others([source / name for name in wanted])
    for name in wanted:
        copy_regular(source / name, target / name)
    config = check_source(target)
    write_remote_code(target)
    if has_pipeline(architecture_of(config)):
        write_handler(target)
    left_out_sections = tuple(dropped_sections(read_card(target).text))
    render_card(target, config, repo_id, revision)
    write_eval_results(target)
    published = repository_files(target)
    below = (path for path in sorted(source.rglob("*")) if path.is_symlink() or not path.is_dir())
    left_out = tuple(name for path in below if (name := path.relative_to(source).as_posix()) not in published)
    return Candidate(target, source, config, left_out, left_out_sections)
