"""Runs a recipe: every check first, then its stages, then the tests of what came out."""

import platform
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from transformers import PreTrainedModel, set_seed

from ..evaluation.fine_tuning import trainer_arguments
from ..support.distillation_log import FILE, DistillationLog, StageResult
from ..support.files import form_of, telling_of_disk
from ..support.models import load_model
from .batches import Collator
from .inputs import MODULES, Inputs, check_finished
from .prepare import prepare
from .recipe import Recipe
from .stages import Prepared, Stage
from .student import student_class
from .trainer import StageTrainer, scores
from .training import run_stage
from .work_folder import changes, check_free, check_shared, claim, finish, finished_log, plain

_REMEDY = (
    "free some space, or put back what was there, and give the same command again: it goes on from the last whole checkpoint"
)


def run_recipe(recipe: Recipe, output_dir: Path, trust_remote_code: bool = False) -> dict[str, Any]:
    """Train all stages of `recipe` and write the student to `output_dir`, which appears when everything is finished.

    The work lies in `OUTPUT_DIR.work`: given the same recipe again, finished stages are taken from there and the others go
    on at their last checkpoint. An `output_dir` that this recipe has made already is left as it is. Both only where the
    files and models hold what they held then; under other names they may.

    Returns the log that is also written as `distillation.json`.

    Raises:
        UserError: bad input, before any training; a full disk or a loss that is not finite, with the checkpoints intact.
    """
    # Not told that there is no accelerator it would take each process for the only one.
    PartialState(cpu=not torch.accelerator.is_available())
    work_dir = output_dir.with_name(output_dir.name + ".work")
    with telling_of_disk("OUTPUT_DIR", work_dir, _REMEDY):
        return _go_on(recipe, output_dir, work_dir, trust_remote_code)


def _go_on(recipe: Recipe, output_dir: Path, work_dir: Path, trust_remote_code: bool) -> dict[str, Any]:
    state, inputs = PartialState(), Inputs.look(recipe, work_dir)
    done = finished_log(output_dir)
    if done is not None and not changes(done.recipe, recipe):
        with form_of(str(output_dir / FILE)):
            check_finished(done, inputs, output_dir)
        return done.as_json()
    check_free(output_dir, work_dir, recipe)
    inputs.check_work()
    state.wait_for_everyone()  # with the look at the folders, before the first changes them
    if state.is_main_process:
        claim(work_dir, recipe)
    else:
        datasets.disable_progress_bars()
    state.wait_for_everyone()
    check_shared(work_dir)
    set_seed(recipe.seed)
    return _run(prepare(recipe, work_dir, trust_remote_code, inputs), output_dir)


def _run(prepared: Prepared, output_dir: Path) -> dict[str, Any]:
    recipe, state, inputs = prepared.recipe, PartialState(), prepared.inputs
    results: dict[str, StageResult] = {}
    before: Stage | None = None
    for stage in recipe.stages:
        results[stage.name] = StageResult(**run_stage(prepared, stage, before), **inputs.recorded(stage))
        before = stage
    log = DistillationLog(
        recipe=plain(recipe),
        stages=results,
        tests=_tests(prepared, recipe.stages[-1]),
        data={path: inputs.content[path] for path in _data_files(recipe)},
        versions={module.__name__: module.__version__ for module in MODULES},
        machine=f"{platform.machine()}, {torch.get_num_threads()} threads, {state.num_processes} processes",
    )
    if state.is_main_process:
        finish(prepared.work_dir, [stage.name for stage in recipe.stages], output_dir, log)
    state.wait_for_everyone()
    return log.as_json()


def _data_files(recipe: Recipe) -> list[str]:
    """All files of texts, each once."""
    given = [path for stage in recipe.stages for paths in stage.files(recipe.data).values() for path in paths]
    return list(dict.fromkeys(given))


def _tests(prepared: Prepared, stage: Stage) -> dict[str, dict[str, dict[str, float]]]:
    """Scores of teacher and student, as stored, on each test file."""
    if not stage.labelled or not prepared.tests:
        return {}
    models: dict[str, PreTrainedModel | None] = {"teacher": prepared.teacher(stage) if stage.answers else None}
    prepared.inputs.check_models(stage)
    kind = student_class(prepared.recipe.student.attention, prepared.task.head)
    models["student"] = load_model(kind, prepared.folder(stage) / "model", "the student", dtype=torch.float32).model
    arguments = trainer_arguments(
        prepared.work_dir / "test", per_device_eval_batch_size=32, remove_unused_columns=False, label_names=["labels"]
    )
    arguments.deepspeed_plugin = None  # only one Trainer may bring its own
    results: dict[str, dict[str, dict[str, float]]] = {}
    for role, model in models.items():
        if model is None:
            continue
        tokenizer = prepared.teacher_tokenizer(stage) if role == "teacher" else prepared.tokenizer
        for path, rows in prepared.tests.items():
            data = prepared.task.encode(rows, tokenizer, stage.test_max_length(prepared.recipe.data)).sort("length")
            collator = Collator(tokenizer, prepared.task)
            trainer = StageTrainer(
                stage=stage.name, task=prepared.task, model=model, args=arguments, data_collator=collator, eval_dataset=data
            )
            # Under DeepSpeed or FSDP every Trainer of the run would shard its model, which evaluation does not need.
            trainer.is_deepspeed_enabled = trainer.is_fsdp_enabled = False
            # Under FSDP it would stay on the CPU.
            model.to(arguments.device)  # type: ignore[arg-type]
            results.setdefault(role, {})[path] = {**scores(trainer.evaluate()), "texts": len(data)}
    return results
