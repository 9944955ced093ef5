"""What a distillation is made from, by its content: whether what an earlier run has made still fits."""

import importlib.metadata
import json
import logging
import os
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import datasets
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import gather_object

from ..support.digests import Content, change, content_of
from ..support.distillation_log import DistillationLog
from ..support.errors import UserError
from ..support.files import read_json, write_text
from .data import EVAL, TEST, TEXTS, TRAIN, TRANSFER
from .recipe import Recipe, build_recipe
from .stages import Stage
from .work_folder import is_folder

logger = logging.getLogger(__name__)

_DATA = (TEXTS, TRAIN, TRANSFER, EVAL, TEST)
_SETTINGS = "trainer."  # files of the Trainer's settings
_BEFORE = "the student of the stage before"
RECORD = "inputs.json"
MODULES = (torch, transformers, datasets, accelerate)
# By what they are for, and then in order: `{"path": as it was given, **content}`.
Contents = dict[str, list[dict[str, Any]]]


def sources_of(recipe: Recipe, stage: Stage) -> dict[str, list[str]]:
    """The files and models that a stage reads, by what they are for, as errors name it."""
    student = [recipe.student.source] if is_folder(recipe.student.source) else []
    found: dict[str, Sequence[str | None]] = {
        "--teacher": [recipe.teacher_of(stage)],
        "tokenizer": [*recipe.models().values(), *student][:1],
        "--student (student.source)": student if stage is recipe.stages[0] else [],
    }
    found |= {setting: [source] for setting, source in stage.bases().items()}
    found |= stage.files(recipe.data)
    # Those of DeepSpeed and FSDP may be files.
    files = {name: value for name, value in recipe.trainer.items() if isinstance(value, str) and os.path.isfile(value)}
    found |= {f"{_SETTINGS}{name}": [file] for name, file in files.items()}
    return {argument: given for argument, sources in found.items() if (given := [source for source in sources if source])}


def _contents_now(sources: Mapping[str, bool]) -> dict[str, Content]:
    """As one process of each host finds them. Raises a UserError, in every process, where hosts find different ones.

    sources: whether each is a model.
    """
    alone = PartialState().is_local_main_process
    mine = {source: content_of(source, model) for source, model in sources.items()} if alone else None
    seen = [found for found in gather_object([mine]) if found is not None]
    for source, content in seen[0].items():
        if any(other[source] != content for other in seen):
            raise UserError(f"{source!r} is not the same on all hosts: give each the same file or model.")
    return seen[0]


def _difference(before: Contents, now: Contents) -> str | None:
    """The first source that is not what it was, named by its argument; None where there is none."""
    for argument in dict.fromkeys([*before, *now]):
        old, new = before.get(argument, []), now.get(argument, [])
        if len(old) != len(new):
            then, now_given = (", ".join(repr(entry["path"]) for entry in entries) or "none" for entries in (old, new))
            return f"{argument} is {now_given}, it was {then}"
        for former, latter in zip(old, new, strict=True):
            if what := change(_content(former), _content(latter)):
                renamed = "" if former["path"] == latter["path"] else f" ({former['path']!r} then)"
                return f"{argument}: {latter['path']!r} has changed, {what}{renamed}"
    return None


def _content(entry: Mapping[str, Any]) -> Content:
    return {name: value for name, value in entry.items() if name != "path"}


@dataclass
class Inputs:
    """The sources of a recipe, each with its content at the time it was first looked at."""

    recipe: Recipe
    work_dir: Path
    content: dict[str, Content]

    @classmethod
    def look(cls, recipe: Recipe, work_dir: Path) -> "Inputs":
        """All processes call it. Raises a UserError where hosts find different files."""
        return cls(recipe, work_dir, _contents_now(_kinds(sources_of(recipe, stage) for stage in recipe.stages)))

    def of(self, stage: Stage) -> Contents:
        sources = sources_of(self.recipe, stage)
        return {name: [{"path": source, **self.content[source]} for source in given] for name, given in sources.items()}

    def check_unchanged(self, stage: Stage, arguments: Collection[str]) -> None:
        """Raises a UserError where a source is not what it was at first. All processes call it."""
        sources = {name: given for name, given in sources_of(self.recipe, stage).items() if name in arguments}
        if not sources:
            return
        content = _contents_now(_kinds([sources]))
        for name, given in sources.items():
            for source in given:
                what = change(self.content[source], content[source])
                if what is None and not _is_model(name) and self.content[source] != content[source]:
                    what = "it cannot be read"
                if what:
                    raise UserError(
                        f"{name}: {source!r} has changed during the run, {what}. What is stored was made from what "
                        f"it held at first: put that back and give the same command again, or remove {str(self.work_dir)!r}."
                    )

    def check_models(self, stage: Stage) -> None:
        """Raises as `check_unchanged`, of what is neither texts nor labels."""
        self.check_unchanged(stage, [name for name in sources_of(self.recipe, stage) if name not in _DATA])

    def check_work(self) -> None:
        """Raises a UserError where a stage that an earlier run has begun was made from something else."""
        for stage in self.recipe.stages:
            folder = self.work_dir / stage.name
            if _begun(folder):
                self._check(folder, _read(folder), self.of(stage))

    def _check(self, folder: Path, record: Mapping[str, Any] | None, now: Contents) -> None:
        choice = f"remove {str(self.work_dir)!r}, or give another OUTPUT_DIR"
        if record is None:
            raise UserError(
                f"OUTPUT_DIR: {str(folder)!r} has no {RECORD} that tells what it was made from: put it back, go on with "
                f"the version that has begun it, {choice}."
            )
        # The student of the stage before is looked at when that stage is finished.
        before = {name: entries for name, entries in record["inputs"].items() if name != _BEFORE or name in now}
        if difference := _difference(before, {name: entries for name, entries in now.items() if name != TEST}):
            raise UserError(f"{difference} when {str(folder)!r} was made: put it back, {choice}.")

    def bind(self, stage: Stage, before: Stage | None, trust_remote_code: bool) -> None:
        """Record what a stage is made from, or see that what is there was made from the same. All processes call it.

        before: the stage whose student it trains. trust_remote_code: as it was given.

        Raises:
            UserError: something was trained already, from something else.
        """
        folder, now = self.work_dir / stage.name, self.of(stage)
        now.pop(TEST, None)  # read at the end
        if before is not None:
            student = f"{before.name}/model"
            now[_BEFORE] = [{"path": student, **next(iter(_contents_now({str(self.work_dir / student): True}).values()))}]
        record, begun = _read(folder), _begun(folder)
        if begun:
            self._check(folder, record, now)
        PartialState().wait_for_everyone()  # with the look at the folder, before the first changes it
        if PartialState().is_main_process and not (folder / "result.json").is_file():
            environment = _environment(trust_remote_code)
            if begun and record is not None:
                if record["environments"][-1] != environment:
                    logger.warning("Stage %s goes on with %s.", stage.name, _news(record["environments"][-1], environment))
                    record["environments"].append(environment)
            else:
                # Other texts, or by another teacher, or in another way.
                if record is None or _difference(record["inputs"], now) or record["environments"] != [environment]:
                    shutil.rmtree(folder / "labelled", ignore_errors=True)
                record = {"inputs": now, "environments": [environment]}
            folder.mkdir(exist_ok=True)
            write_text(folder / RECORD, json.dumps(record, indent=2))
        PartialState().wait_for_everyone()

    def recorded(self, stage: Stage) -> dict[str, Any]:
        """What a stage was made from, under the names of that time, and with what versions on how many processes."""
        return _read(self.work_dir / stage.name) or {}


def _kinds(all_sources: Iterable[Mapping[str, Iterable[str]]]) -> dict[str, bool]:
    """Every source, and whether it is a model."""
    named = [(source, _is_model(name)) for sources in all_sources for name, given in sources.items() for source in given]
    return dict(sorted(named))


def _is_model(argument: str) -> bool:
    return argument not in _DATA and not argument.startswith(_SETTINGS)


def check_finished(log: DistillationLog, inputs: Inputs, output_dir: Path) -> None:
    """Raises a UserError where a finished distillation was made from other files or models than are there now.

    log: of one with the settings of the recipe of `inputs`.
    """
    then = build_recipe(log.recipe)
    for stage, former in zip(inputs.recipe.stages, then.stages, strict=True):
        given = sources_of(then, former)
        before = {
            name: [{"path": source, **log.data.get(source, {})} for source in sources] for name, sources in given.items()
        }
        before |= log.stages[stage.name].inputs if stage.name in log.stages else {}
        before.pop(_BEFORE, None)
        if difference := _difference(before, inputs.of(stage)):
            raise UserError(
                f"{difference} when {str(output_dir)!r} was made: put it back, remove {str(output_dir)!r} and "
                f"{str(inputs.work_dir)!r}, or give another OUTPUT_DIR."
            )


def _begun(folder: Path) -> bool:
    """Whether something of a stage was trained and stored."""
    return any((folder / name).exists() for name in ("result.json", "model")) or any(folder.glob("checkpoint-*"))


def _read(folder: Path) -> dict[str, Any] | None:
    """None where there is none, or it is damaged."""
    try:
        record = read_json(folder / RECORD, finite=False)
        inputs = {name: [dict(entry) for entry in entries] for name, entries in record["inputs"].items()}
        environments = [dict(entry) for entry in record["environments"]]
    except (UserError, KeyError, TypeError, ValueError, AttributeError):
        return None
    whole = environments and all("path" in entry for entries in inputs.values() for entry in entries)
    return {"inputs": inputs, "environments": environments} if whole else None


def _environment(trust_remote_code: bool) -> dict[str, Any]:
    """What else the numbers may depend on."""
    versions = {module.__name__: module.__version__ for module in MODULES}
    versions["inhibidistilbert"] = importlib.metadata.version("inhibidistilbert")
    state = PartialState()
    return {
        **versions,
        "device": state.device.type,
        "processes": state.num_processes,
        "trust_remote_code": trust_remote_code,
    }


def _news(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {now[name]} (before: {before.get(name)})" for name in now if now[name] != before.get(name))
