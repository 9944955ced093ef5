"""`inhibidistilbert distill`."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..support.errors import UserError


def distill(
    output_dir: Annotated[Path, typer.Argument(help="Folder to write the student to; must not exist.")],
    recipe: Annotated[str, typer.Option(help="Recipe of the package, or a YAML file: stages and settings.")] = "classifier",
    stage: Annotated[str | None, typer.Option(help="The one stage of the recipe to run, by its name.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting: align.max_steps=100. Repeatable.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Teacher: fine-tuned for the task, or with --fine-tune-teacher any encoder.")
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(help="New student of a size (base, small, tiny), a checkpoint folder, or 'teacher' to copy it."),
    ] = None,
    text_file: Annotated[
        list[Path] | None, typer.Option(help="Unlabelled texts to align and pretrain on; also .txt. Repeatable.")
    ] = None,
    train_file: Annotated[
        list[Path] | None, typer.Option(help="Labelled texts: CSV, TSV, JSON, JSONL or parquet. Repeatable.")
    ] = None,
    transfer_file: Annotated[
        list[Path] | None, typer.Option(help="Texts for the teacher to label; also .txt, one a line. Repeatable.")
    ] = None,
    eval_file: Annotated[Path | None, typer.Option(help="Labelled texts to evaluate on after each epoch.")] = None,
    test_file: Annotated[
        list[Path] | None, typer.Option(help="Labelled texts to test teacher and student on at the end. Repeatable.")
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="Column that holds the text.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the labels: a class index, number or list.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Names of the classes, in order. Repeatable.")] = None,
    fine_tune_teacher: Annotated[
        bool, typer.Option("--fine-tune-teacher", help="First fine-tune the teacher on the labelled texts.")
    ] = False,
    teacher_epochs: Annotated[float | None, typer.Option(help="Epochs of the teacher's fine-tuning.")] = None,
    teacher_learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate of the teacher.")] = None,
    teacher_batch_size: Annotated[int | None, typer.Option(help="Texts in a batch of the teacher's.")] = None,
    teacher_max_length: Annotated[int | None, typer.Option(help="Tokens the teacher is fine-tuned on at most.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Epochs of the stage task.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate of the stage task.")] = None,
    scalar_learning_rate: Annotated[float | None, typer.Option(help="The same of alpha, beta and gamma.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Texts in a step of the stage task, over all processes.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of a text in the stage task at most.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Temperature of the soft targets.")] = None,
    hard_weight: Annotated[float | None, typer.Option(help="Weight of the labels beside the soft targets.")] = None,
    position_offsets: Annotated[
        bool | None, typer.Option("--position-offsets/--no-position-offsets", help="Train all positions by moving texts.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of initialisation, order and dropout.")] = None,
    bf16: Annotated[bool | None, typer.Option("--bf16", help="Train and label under bfloat16 autocast.")] = None,
    compile: Annotated[bool | None, typer.Option("--compile", help="torch.compile (on a CPU needs a C++ compiler).")] = None,
    save_dtype: Annotated[str | None, typer.Option(help="Stored weights: float32, bfloat16 or float16.")] = None,
    save_steps: Annotated[int | None, typer.Option(help="Steps between two checkpoints.", show_default="500")] = None,
    compare: Annotated[
        list[Path] | None, typer.Option(help="A finished distillation to print beside this one. Repeatable.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the teacher.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the log as one JSON object.")] = False,
) -> None:
    """Distil an encoder into an inhibitor student, or into its softmax control.

    A recipe says in which stages: align (each layer on the teacher's hidden states), pretrain (end to end, on unlabelled
    text), task (from a fine-tuned teacher). Options change the recipe; what is not given is the recipe's. Progress lies in
    OUTPUT_DIR.work, and the same command goes on from there, where files and models hold what they held; OUTPUT_DIR appears
    when everything is finished.
    """
    from accelerate import PartialState

    from ..distillation.recipe import read_recipe
    from ..distillation.report import print_report, read_runs
    from ..distillation.run import run_recipe
    from ..support.distillation_log import DistillationLog

    shared: dict[str, Any] = {
        "data__train_files": _names(train_file),
        "data__eval_file": eval_file and str(eval_file),
        "data__test_files": _names(test_file),
        "data__text_column": text_column,
        "data__label_column": label_column,
        "data__labels": label or None,
        "seed": seed,
        "bf16": bf16,
        "trainer__torch_compile": compile,
        "trainer__save_steps": save_steps,
    }
    of_task: dict[str, Any] = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "scalar_learning_rate": scalar_learning_rate,
        "batch_size": batch_size,
        "max_length": max_length,
        "temperature": temperature,
        "hard_weight": hard_weight,
        "position_offsets": position_offsets,
    }
    of_teacher: dict[str, Any] = {
        "epochs": teacher_epochs,
        "learning_rate": teacher_learning_rate,
        "batch_size": teacher_batch_size,
        "max_length": teacher_max_length,
    }
    others = read_runs(compare or [])
    tuned = output_dir.with_name(output_dir.name + ".teacher")
    if fine_tune_teacher and teacher is None:
        raise UserError("--fine-tune-teacher: there is no --teacher to fine-tune.")
    settings = read_recipe(
        recipe,
        set_ or [],
        stage,
        teacher=str(tuned) if fine_tune_teacher else teacher,
        student__source=student,
        data__text_files=_names(text_file),
        data__transfer_files=_names(transfer_file),
        save_dtype=save_dtype,
        **shared,
        **{f"task__{name}": value for name, value in of_task.items()},
    )
    # The Trainer prints to stdout, which --json keeps for the one object.
    with contextlib.redirect_stdout(sys.stderr):
        if fine_tune_teacher:
            tuning = {f"task__{name}": value for name, value in of_teacher.items()} | {"data__kind": settings.data.kind}
            run_recipe(read_recipe("finetune", student__source=teacher, **shared, **tuning), tuned, trust_remote_code)
        log = run_recipe(settings, output_dir, trust_remote_code)
    if not PartialState().is_main_process:
        return
    if as_json:
        print(json.dumps(log))
    else:
        print_report({output_dir.name: DistillationLog.from_json(log)} | others)
        print(f"Written to {output_dir}.")


def _names(files: list[Path] | None) -> list[str] | None:
    return [str(file) for file in files] if files else None
