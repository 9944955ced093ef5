"""`inhibidistilbert distill`: its options, what it prints, and how it refuses."""

import inspect
import json
import sys
from pathlib import Path

import pytest

from inhibidistilbert import cli
from inhibidistilbert.commands.distill import distill
from inhibidistilbert.distillation import run as run_module
from inhibidistilbert.distillation.recipe import Recipe, read_recipe
from tests.helpers.toy_task import write_distilbert

SCORES = {"accuracy": 0.875, "texts": 60}
LOG = {
    "recipe": {"student": {"attention": "inhibitor"}},
    "stages": {
        "align": {"steps": 5, "seconds": 1.0, "loss": 0.5, "alignment": [0.75, 0.5], "eval": None},
        "task": {"steps": 9, "seconds": 2.5, "loss": 0.25, "alignment": None, "eval": {"accuracy": 0.8125}},
    },
    "tests": {"teacher": {"test.csv": {**SCORES, "accuracy": 0.9375}}, "student": {"test.csv": SCORES}},
}
EVERY_OPTION = {
    "--teacher": ("my-teacher", "teacher"),
    "--student": ("small", "student.source"),
    "--text-column": ("sentence", "data.text_column"),
    "--label-column": ("stars", "data.label_column"),
    "--eval-file": ("eval.csv", "data.eval_file"),
    "--epochs": (2.5, "task.epochs"),
    "--learning-rate": (2e-4, "task.learning_rate"),
    "--scalar-learning-rate": (3e-3, "task.scalar_learning_rate"),
    "--batch-size": (16, "task.batch_size"),
    "--max-length": (96, "task.max_length"),
    "--temperature": (4.0, "task.temperature"),
    "--hard-weight": (0.25, "task.hard_weight"),
    "--seed": (7, "seed"),
    "--save-dtype": ("bfloat16", "save_dtype"),
    "--save-steps": (50, "trainer.save_steps"),
    "--no-position-offsets": (False, "task.position_offsets"),
    "--bf16": (True, "bf16"),
    "--compile": (True, "trainer.torch_compile"),
}
LISTS = {
    "--text-file": (["a.txt", "b.jsonl"], "data.text_files"),
    "--train-file": (["a.csv", "b.tsv"], "data.train_files"),
    "--transfer-file": (["c.txt", "d.jsonl"], "data.transfer_files"),
    "--test-file": (["e.csv", "f.csv"], "data.test_files"),
    "--label": (["BAD", "GOOD"], "data.labels"),
}
OF_TEACHER = {
    "--teacher-epochs": (1.5, "epochs"),
    "--teacher-learning-rate": (1e-5, "learning_rate"),
    "--teacher-batch-size": (8, "batch_size"),
    "--teacher-max-length": (64, "max_length"),
}


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
def calls(monkeypatch) -> list[tuple[Recipe, Path, bool]]:
    """The recipes that are run, which do nothing but print as the Trainer does."""
    seen = []

    def run_recipe(recipe: Recipe, output_dir: Path, trust_remote_code: bool) -> dict:
        seen.append((recipe, output_dir, trust_remote_code))
        print("{'loss': 0.5}")
        return LOG

    monkeypatch.setattr(run_module, "run_recipe", run_recipe)
    return seen


def setting(recipe: Recipe, path: str):
    """The value at a dotted path; stages by their name."""
    first, *rest = path.split(".")
    stages = {stage.name: stage for stage in recipe.stages}
    value = stages[first] if first in stages else getattr(recipe, first)
    for name in rest:
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    return value


def test_every_option_reaches_the_recipe(run, calls):
    flags = {name for name, (value, _) in EVERY_OPTION.items() if isinstance(value, bool)}
    words = [str(word) for name, (value, _) in EVERY_OPTION.items() for word in ([name] if name in flags else [name, value])]
    words += [word for name, (values, _) in LISTS.items() for value in values for word in (name, value)]
    assert run("out", *words, "--trust-remote-code")[0] == 0
    ((recipe, output, trusted),) = calls
    assert (output, trusted) == (Path("out"), True)
    plain = read_recipe("classifier")
    for value, path in (EVERY_OPTION | LISTS).values():
        assert setting(recipe, path) == value, path
        # Each differs from its default: it was not forgotten above.
        if not path.startswith("trainer."):
            assert setting(plain, path) != value, path


def test_no_option_is_left_out_of_these_tests():
    tested = {name.removeprefix("--no").strip("-") for name in EVERY_OPTION | LISTS | OF_TEACHER}
    elsewhere = {"output-dir", "recipe", "stage", "set-", "fine-tune-teacher", "compare", "trust-remote-code", "as-json"}
    assert {name.replace("_", "-") for name in inspect.signature(distill).parameters} == tested | elsewhere


def test_without_options_it_is_the_default_recipe(run, calls):
    assert run("out")[0] == 0
    assert calls == [(read_recipe("classifier"), Path("out"), False)]


def test_a_recipe_can_be_chosen_and_changed(run, calls):
    changes = ("--set", "align.max_steps=7", "--set", "student.config.signed=false", "--learning-rate", "1e-4")
    assert run("out", "--recipe", "distill", *changes)[0] == 0
    ((recipe, *_),) = calls
    assert [stage.name for stage in recipe.stages] == ["align", "pretrain", "task"]
    assert (recipe.stages[0].max_steps, recipe.stages[2].learning_rate) == (7, 1e-4)
    assert recipe.student.config["signed"] is False


def test_one_stage_can_be_run_alone(run, calls):
    assert run("out", "--recipe", "distill", "--stage", "pretrain")[0] == 0
    assert [stage.name for stage in calls[0][0].stages] == ["pretrain"]


def test_the_teacher_is_fine_tuned_first(run, calls):
    words = [str(word) for name, (value, _) in OF_TEACHER.items() for word in (name, value)]
    shared = ("--train-file", "a.csv", "--seed", "3", "--label", "BAD", "--label", "GOOD")
    shared += ("--set", "data.kind=multi-label-classification")
    assert run("runs/out", "--teacher", "encoder", "--fine-tune-teacher", "--epochs", "9", *words, *shared)[0] == 0
    (teacher, folder, _), (student, output, _) = calls
    assert (folder, output) == (Path("runs/out.teacher"), Path("runs/out"))
    assert (teacher.student.source, teacher.student.attention) == ("encoder", "own")
    assert student.teacher == str(folder)
    for value, name in OF_TEACHER.values():
        assert getattr(teacher.stages[0], name) == value
    assert student.stages[0].epochs == 9
    assert teacher.data.train_files == student.data.train_files == ["a.csv"]
    assert teacher.seed == student.seed == 3
    assert teacher.data.labels == ["BAD", "GOOD"]
    assert teacher.data.kind == student.data.kind == "multi-label-classification"


def test_the_results_are_printed_beside_those_of_other_runs(run, calls, tmp_path):
    control = tmp_path / "control"
    control.mkdir()
    scores = {"test.csv": {"accuracy": 0.84375, "texts": 60}}
    log = LOG | {"recipe": {"student": {"attention": "softmax"}}, "tests": {"student": scores}}
    (control / "distillation.json").write_text(json.dumps(log))
    code, out, err = run("out", "--compare", control)
    assert code == 0
    lines = out.splitlines()
    assert "align: 5 steps in 1.0 s, loss 0.5000" in lines
    assert "task: 9 steps in 2.5 s, loss 0.2500; evaluation: accuracy 0.8125" in lines
    assert any("0" in line and "75.0 %" in line for line in lines)
    assert any("teacher" in line and "out (inhibitor)" in line and "control (softmax control)" in line for line in lines)
    (row,) = [line for line in lines if "accuracy" in line and "test" in line]
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["test", "accuracy", "0.9375", "0.8750", "0.8438"]
    assert lines[-1] == "Written to out."
    assert "'loss': 0.5" in err


def test_json_prints_one_object_and_progress_goes_to_stderr(run, calls):
    code, out, err = run("out", "--json")
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
        (["--student", "a\nb"], ["--student", r"'a\nb'", "base, small, tiny"]),
        (["--teacher", "/no/such/teacher"], ["--teacher", "'/no/such/teacher'"]),
        (["--label", "ONE"], ["--label", "1 names for 2 classes"]),
        (["--epochs", "0"], ["task.epochs", "above 0", "0"]),
        (["--max-length", "33"], ["task.max_length", "at most 32", "33"]),
        (["--save-dtype", "float8"], ["save_dtype", "'float8'", "float16"]),
        (["--seed", "-1"], ["seed", "-1"]),
        (["--recipe", "unheard-of"], ["--recipe", "'unheard-of'", "classifier"]),
        (["--set", "task.epoch=3"], ["unknown key task.epoch", "did you mean task.epochs?"]),
        (["--set", "align.max_steps=3"], ["unknown key align", "task"]),
        (["--stage", "align"], ["--stage", "task", "'align'"]),
        (["--compare", "."], ["--compare", "no finished distillation"]),
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


@pytest.mark.parametrize("arguments", [[], ["out", "--epochs", "many"]])
def test_missing_or_malformed_arguments_show_the_usage(run, calls, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Usage" in err
    assert calls == []


def test_fine_tuning_needs_a_teacher(run, calls):
    code, _, err = run("out", "--fine-tune-teacher")
    assert code == 2
    assert "error: --fine-tune-teacher: there is no --teacher to fine-tune." in err
    assert calls == []
