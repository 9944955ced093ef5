"""`inhibidistilbert distill`: its options, what it prints, and how it refuses."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from toy_task import write_distilbert

from inhibidistilbert import cli
from inhibidistilbert.distillation import pipeline
from inhibidistilbert.distillation.pipeline import Distillation, TrainingOptions

LOG = {
    "metrics": {"teacher": {}, "student": {"loss": 0.25, "accuracy": 0.875}},
    "tests": {
        "teacher": {"test.csv": {"accuracy": 0.9, "texts": 60}},
        "student": {"test.csv": {"accuracy": 0.8, "texts": 60}},
    },
}
EVERY_OPTION = {
    "--teacher": "my-teacher",
    "--student": "small",
    "--text-column": "sentence",
    "--label-column": "stars",
    "--eval-file": "eval.csv",
    "--teacher-epochs": "1.5",
    "--teacher-learning-rate": "1e-5",
    "--teacher-batch-size": "8",
    "--teacher-max-length": "64",
    "--epochs": "2.5",
    "--learning-rate": "2e-4",
    "--scalar-learning-rate": "3e-3",
    "--batch-size": "16",
    "--max-length": "96",
    "--temperature": "4",
    "--hard-weight": "0.25",
    "--seed": "7",
    "--save-dtype": "bfloat16",
    "--save-steps": "50",
}
REPEATED = [
    *("--train-file", "a.csv", "--train-file", "b.tsv"),
    *("--transfer-file", "c.txt", "--transfer-file", "d.jsonl"),
    *("--test-file", "e.csv", "--test-file", "f.csv"),
    *("--label", "BAD", "--label", "GOOD"),
]
FLAGS = ["--fine-tune-teacher", "--no-position-offsets", "--bf16", "--compile", "--trust-remote-code"]


@pytest.fixture
def run(monkeypatch, capsys):
    """`run(arguments)`: exit code, stdout and stderr of `inhibidistilbert distill`."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["inhibidistilbert", "distill", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return exit_.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def calls(monkeypatch) -> list[tuple[Distillation, bool]]:
    """The calls of the pipeline, which does nothing but print as the Trainer does."""
    seen = []

    def distill(options: Distillation, resume: bool) -> dict:
        seen.append((options, resume))
        print("{'loss': 0.5}")
        return LOG

    monkeypatch.setattr(pipeline, "distill", distill)
    return seen


def test_every_option_reaches_the_pipeline(run, calls):
    pairs = [word for pair in EVERY_OPTION.items() for word in pair]
    assert run("out", *pairs, *REPEATED, *FLAGS, "--resume")[0] == 0
    ((options, resume),) = calls
    assert resume
    assert options == Distillation(
        output_dir=Path("out"),
        teacher="my-teacher",
        student="small",
        train_files=[Path("a.csv"), Path("b.tsv")],
        transfer_files=[Path("c.txt"), Path("d.jsonl")],
        eval_file=Path("eval.csv"),
        test_files=[Path("e.csv"), Path("f.csv")],
        text_column="sentence",
        label_column="stars",
        labels=["BAD", "GOOD"],
        fine_tune_teacher=True,
        teacher_training=TrainingOptions(1.5, 1e-5, 8, 64),
        student_training=TrainingOptions(2.5, 2e-4, 16, 96),
        scalar_learning_rate=3e-3,
        temperature=4.0,
        hard_weight=0.25,
        position_offsets=False,
        seed=7,
        bf16=True,
        compile=True,
        save_dtype="bfloat16",
        save_steps=50,
        trust_remote_code=True,
    )
    # No option was forgotten above: each differs from its default.
    plain = Distillation(Path("plain"), "", "tiny", [Path("plain")])
    for field in dataclasses.fields(Distillation):
        assert getattr(options, field.name) != getattr(plain, field.name), field.name


def test_the_command_and_the_pipeline_have_the_same_defaults(run, calls):
    assert run("out", "--teacher", "my-teacher", "--train-file", "a.csv")[0] == 0
    assert calls == [(Distillation(Path("out"), "my-teacher", "tiny", [Path("a.csv")]), False)]


def test_the_results_are_printed(run, calls):
    code, out, err = run("out", "--teacher", "my-teacher", "--train-file", "a.csv")
    assert code == 0
    assert out.splitlines() == [
        "teacher: as given",
        "teacher, test.csv: accuracy 0.9000 on 60 texts",
        "student: loss 0.2500, accuracy 0.8750",
        "student, test.csv: accuracy 0.8000 on 60 texts",
        "Written to out.",
    ]
    assert "'loss': 0.5" in err


def test_json_prints_one_object_and_progress_goes_to_stderr(run, calls):
    code, out, err = run("out", "--teacher", "my-teacher", "--train-file", "a.csv", "--json")
    assert code == 0
    assert json.loads(out) == LOG
    assert out.count("\n") == 1
    assert "'loss': 0.5" in err


# Bad input: exit code 2, one line


@pytest.fixture
def quick(toy, tmp_path) -> list[str]:
    """The arguments of a distillation that would start."""
    teacher = write_distilbert(tmp_path / "teacher")
    return [str(tmp_path / "out"), "--teacher", str(teacher), "--train-file", str(toy / "train.csv"), "--max-length", "16"]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (["--train-file", "missing.csv"], ["--train-file", "'missing.csv' is not a file"]),
        (["--eval-file", "missing.csv"], ["--eval-file", "'missing.csv' is not a file"]),
        (["--transfer-file", "missing.csv"], ["--transfer-file", "'missing.csv' is not a file"]),
        (["--text-column", "words"], ["--train-file", "'words'", "--text-column"]),
        (["--student", "huge"], ["--student", "'huge'", "base, small, tiny"]),
        (["--teacher", "/no/such/teacher"], ["--teacher", "'/no/such/teacher'"]),
        (["--label", "ONE"], ["--label", "1 names for 2 classes"]),
        (["--epochs", "0"], ["--epochs", "above 0", "0"]),
        (["--max-length", "33"], ["--max-length", "at most 32", "33"]),
        (["--save-dtype", "float8"], ["--save-dtype", "'float8'", "float16"]),
        (["--resume"], ["--resume", "no unfinished distillation"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else "",
)
def test_bad_input_is_one_line_on_stderr(run, quick, changes, parts):
    code, out, err = run(*quick, *changes, "--json")
    assert (code, out) == (2, "")
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    for part in parts:
        assert part in line
    assert "Traceback" not in err
    assert not Path(quick[0]).exists()


@pytest.mark.parametrize("arguments", [["out"], ["out", "--teacher", "t"], ["out", "--teacher", "t", "--epochs", "many"]])
def test_missing_or_malformed_arguments_show_the_usage(run, calls, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Usage" in err
    assert calls == []
