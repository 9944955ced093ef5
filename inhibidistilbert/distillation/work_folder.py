"""The folders of a distillation: where the work of a running one lies, and what a finished one says of itself."""

import contextlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from ..support.distillation_log import FILE as LOG
from ..support.distillation_log import DistillationLog
from ..support.errors import UserError, reason
from ..support.files import read_json, replacing_folder, write_text
from ..support.sizes import published_sizes
from .curves import FILE as CURVES
from .curves import draw_curves, read_curves
from .recipe import Recipe, build_recipe

_FILES = ("text_files", "train_files", "transfer_files", "eval_file", "test_files")


def finished_log(folder: Path) -> DistillationLog | None:
    """The log of a finished distillation; None where there is none."""
    try:
        return DistillationLog.read(folder)
    except UserError:
        return None


def plain(recipe: Recipe) -> dict[str, Any]:
    """As JSON has it."""
    return json.loads(json.dumps(recipe.as_json()))


def check_free(output_dir: Path, work_dir: Path, recipe: Recipe) -> None:
    """Raises a UserError where a folder is in the way, or is of another recipe."""
    if output_dir.exists():
        raise UserError(f"OUTPUT_DIR: {str(output_dir)!r} exists already: give another name or remove it.")
    record = work_dir / "recipe.json"
    if not os.path.lexists(work_dir):
        return
    others = [path.name for path in work_dir.iterdir() if path != record] if work_dir.is_dir() else None
    stages = {stage.name for stage in recipe.stages}
    if others is None or (others and not record.exists() and not stages.intersection(others)):
        raise UserError(f"OUTPUT_DIR: {str(work_dir)!r} is in the way: it is no work folder of a distillation.")
    # The record alone is left by one that stopped at its input: nothing is lost by starting anew.
    if not others:
        return
    try:
        recorded = read_json(record, finite=False)
    except UserError as error:
        raise UserError(
            f"OUTPUT_DIR: {error}. It tells the options that the work beside it was begun with: put it back (the same "
            f"command with another OUTPUT_DIR writes the same file), or remove {str(work_dir)!r} to begin anew."
        ) from error
    if different := changes(recorded, recipe):
        raise UserError(
            f"OUTPUT_DIR: {str(work_dir)!r} holds an unfinished distillation with other options: {different}. Give the "
            "same command to go on with it, remove it, or give another OUTPUT_DIR."
        )


def claim(work_dir: Path, recipe: Recipe) -> None:
    """Make the work folder, or renew the record in it. Raises a UserError where it cannot be written."""
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        write_text(work_dir / "recipe.json", json.dumps(plain(recipe), indent=2))
    except OSError as error:
        raise UserError(f"OUTPUT_DIR: {str(work_dir)!r} cannot be written: {reason(error)}") from error


def check_shared(work_dir: Path) -> None:
    """Raises a UserError, in every process, where one of another host does not see what the main process writes."""
    state = PartialState()
    (name,) = broadcast_object_list([f".{uuid.uuid4()}"])
    probe = work_dir / name  # A new name: network disks remember for a while that an old one was missing.
    if state.is_main_process:
        probe.touch()
    state.wait_for_everyone()
    seen = gather_object([probe.exists()])
    if state.is_main_process:
        probe.unlink()
    if not all(seen):
        raise UserError(
            f"OUTPUT_DIR: {str(work_dir)!r} is not one folder to all hosts: process {seen.index(False)} does not see what "
            "the main process writes there. Give one on a disk that they share."
        )


def changes(recorded: Any, recipe: Recipe) -> str:
    """How a recipe differs from a recorded one, which may lack settings that are newer than it; empty where it does not.

    The names of files and models may differ: what they hold is compared by `inputs.py`.
    """
    # One that is no recipe any more tells by the names of its settings what is different.
    with contextlib.suppress(UserError, TypeError, AttributeError, LookupError, ValueError):
        recorded = plain(build_recipe(recorded))
    before, now = _flat(recorded), _flat(plain(recipe))
    before, now = _without_names(before), _without_names(now)
    # The default, before it was the teacher's kind: no other teacher fits the record.
    if now["data.kind"] is None and before.get("data.kind") == "classification":
        del now["data.kind"], before["data.kind"]
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return ", ".join(f"{name} {now.get(name)!r} (was {before.get(name)!r})" for name in names)


def is_folder(source: str) -> bool:
    """Whether a student's source is a folder: neither a published size nor the teacher."""
    return source not in ("teacher", *published_sizes())


def _without_names(flat: dict[str, Any]) -> dict[str, Any]:
    """Flat settings without the names of files and models."""
    names = {"teacher", *(f"data.{name}" for name in _FILES)}
    kept = {name: value for name, value in flat.items() if name not in names and not name.endswith(".teacher")}
    for name, source in kept.items():
        if name.endswith(".teacher_base") or (name == "student.source" and is_folder(source)):
            kept[name] = source and "a model"
    return kept


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by dotted path; stages by their name."""
    order: dict[str, Any] = {}
    if isinstance(settings, list) and settings and all(isinstance(entry, dict) for entry in settings):
        settings = {str(entry.get("name")): entry for entry in settings}
        order = {f"order of {prefix}": list(settings)}
    if not isinstance(settings, dict) or not settings:
        return {prefix: settings}
    flat = order
    for name, value in settings.items():
        path = name if prefix in ("", "stages") else f"{prefix}.{name}"
        flat |= _flat(value, path)
    return flat


def finish(work_dir: Path, stages: list[str], output_dir: Path, log: DistillationLog) -> None:
    """The last stage's student with its log and all curves, whole and at once, in its place.

    Raises a UserError where that cannot be written, or has come to be in the meantime.
    """
    try:
        with replacing_folder(output_dir, "OUTPUT_DIR") as new:
            shutil.copytree(work_dir / stages[-1] / "model", new, dirs_exist_ok=True)
            records = [record for stage in stages for record in read_curves(work_dir / stage / CURVES)]
            write_text(new / CURVES, "".join(json.dumps(record) + "\n" for record in records))
            draw_curves(records, new / "curves.png")
            write_text(new / LOG, json.dumps(log.as_json(), indent=2) + "\n")
            if os.path.lexists(output_dir):
                raise FileExistsError("it exists by now")
    except OSError as error:
        raise UserError(f"OUTPUT_DIR: {str(output_dir)!r} cannot be written: {reason(error)}; the work is kept.") from error
