"""`inhibidistilbert distill`."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer


def distill(
    context: typer.Context,
    output_dir: Annotated[Path, typer.Argument(help="Folder to write the student to; must not exist.")],
    recipe: Annotated[str | None, typer.Option(help="Recipe of the package, or a YAML file: stages and settings.")] = None,
    stage: Annotated[str | None, typer.Option(help="The one stage of the recipe to run, by its name.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting: align.max_steps=100. Repeatable."),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Teacher: a sequence classifier, or with --fine-tune-teacher any encoder.")
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
    student: Annotated[
        str, typer.Option(help="New student of this size (base, small, tiny), or a checkpoint folder.")
    ] = "tiny",
    text_column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column that holds the class index.")] = "label",
    label: Annotated[list[str] | None, typer.Option(help="Names of the classes, in order. Repeatable.")] = None,
    fine_tune_teacher: Annotated[bool, typer.Option(help="First fine-tune the teacher on the labelled texts.")] = False,
    teacher_epochs: Annotated[float, typer.Option(help="Epochs of the teacher's fine-tuning.")] = 3,
    teacher_learning_rate: Annotated[float, typer.Option(help="Peak learning rate of the teacher.")] = 6e-5,
    teacher_batch_size: Annotated[int, typer.Option(help="Texts in a batch of the teacher's.")] = 32,
    teacher_max_length: Annotated[int, typer.Option(help="Tokens the teacher is fine-tuned on at most.")] = 128,
    epochs: Annotated[float, typer.Option(help="Epochs of the student.")] = 4,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of the student.")] = 5e-4,
    scalar_learning_rate: Annotated[float, typer.Option(help="Peak learning rate of alpha, beta and gamma.")] = 5e-3,
    batch_size: Annotated[int, typer.Option(help="Texts in a batch of the student's.")] = 64,
    max_length: Annotated[int, typer.Option(help="Tokens the student is trained on at most.")] = 128,
    temperature: Annotated[float, typer.Option(help="Temperature of the soft targets.")] = 2.0,
    hard_weight: Annotated[float, typer.Option(help="Weight of the labels' cross-entropy beside the soft targets.")] = 0.5,
    position_offsets: Annotated[bool, typer.Option(help="Train all positions by moving texts about the table.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of initialisation, order and dropout.")] = 0,
    bf16: Annotated[bool, typer.Option(help="Train and label under bfloat16 autocast.")] = False,
    compile: Annotated[bool, typer.Option(help="torch.compile the models (needs a C++ compiler on CPU).")] = False,
    save_dtype: Annotated[str, typer.Option(help="Stored weights: float32, bfloat16 or float16.")] = "float32",
    save_steps: Annotated[int, typer.Option(help="Steps between two checkpoints to resume from.")] = 500,
    resume: Annotated[bool, typer.Option(help="Go on with the unfinished distillation in OUTPUT_DIR.work.")] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with the teacher.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the log as one JSON object.")] = False,
) -> None:
    """Distil a sequence classifier into an inhibitor student.

    Texts are labelled once by the teacher; the student learns its soft targets and the labels there are. Progress lies in
    OUTPUT_DIR.work, from where --resume continues; OUTPUT_DIR appears when everything is finished.
    """
    if recipe is not None:
        from ..distillation.recipe import read_recipe
        from ..distillation.run import run_recipe

        settings = read_recipe(
            recipe,
            set_ or [],
            stage,
            teacher=teacher,
            student__source=student if _given(context, "student") else None,
            data__text_files=_texts(text_file),
            data__train_files=_texts(train_file),
            data__transfer_files=_texts(transfer_file),
            data__eval_file=eval_file and str(eval_file),
            data__test_files=_texts(test_file),
            data__labels=label,
            seed=seed if _given(context, "seed") else None,
            bf16=bf16 if _given(context, "bf16") else None,
        )
        with contextlib.redirect_stdout(sys.stderr):
            log = run_recipe(settings, output_dir, trust_remote_code)
        print(json.dumps(log))
        return
    from ..distillation.pipeline import Distillation, TrainingOptions
    from ..distillation.pipeline import distill as run

    options = Distillation(
        output_dir=output_dir,
        teacher=teacher,
        student=student,
        train_files=train_file,
        transfer_files=transfer_file or [],
        eval_file=eval_file,
        test_files=test_file or [],
        text_column=text_column,
        label_column=label_column,
        labels=label or [],
        fine_tune_teacher=fine_tune_teacher,
        teacher_training=TrainingOptions(teacher_epochs, teacher_learning_rate, teacher_batch_size, teacher_max_length),
        student_training=TrainingOptions(epochs, learning_rate, batch_size, max_length),
        scalar_learning_rate=scalar_learning_rate,
        temperature=temperature,
        hard_weight=hard_weight,
        position_offsets=position_offsets,
        seed=seed,
        bf16=bf16,
        compile=compile,
        save_dtype=save_dtype,
        save_steps=save_steps,
        trust_remote_code=trust_remote_code,
    )
    # The Trainer prints its progress to stdout, which --json keeps for the one object.
    with contextlib.redirect_stdout(sys.stderr):
        log = run(options, resume)
    if as_json:
        print(json.dumps(log))
    else:
        for role, metrics in log["metrics"].items():
            print(f"{role}: " + (", ".join(f"{name} {value:.4f}" for name, value in metrics.items()) or "as given"))
            for file, result in log["tests"][role].items():
                print(f"{role}, {file}: accuracy {result['accuracy']:.4f} on {result['texts']} texts")
        print(f"Written to {output_dir}.")


def _given(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _texts(files: list[Path] | None) -> list[str] | None:
    return [str(file) for file in files] if files else None
