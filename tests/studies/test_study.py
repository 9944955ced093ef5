"""The study's plan, its runner with a stand-in for the command line, and its tables."""

import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib.font_manager  # noqa: F401 - looks for fonts by a subprocess, which a test replaces
import pytest
from typer.testing import CliRunner

from inhibidistilbert.cli import app
from inhibidistilbert.distillation.recipe import read_recipe
from inhibidistilbert.support.errors import UserError
from studies.distillation import study
from studies.distillation.plan import ALIGNMENT, CONTROLS, SEEDS, STUDENTS, TASKS, Settings, plan
from studies.distillation.study import COLUMNS, Results
from studies.distillation.summary import summary

SETTINGS = Settings("study", "study-authors", "encoder", "texts.txt", Path("data"), Path("work"))
RUNS = list(plan(SETTINGS))


def value(line: Sequence[str], option: str) -> str:
    return line[line.index(option) + 1]


# Plan


def test_every_task_has_a_teacher_the_controls_and_the_students_of_every_seed():
    names = [run.name for run in RUNS]
    assert len(set(names)) == len(names)
    models = ("teacher", *CONTROLS, *STUDENTS)
    wanted = {f"{task}/{model}/{seed}" for task in TASKS for model in models for seed in SEEDS}
    assert wanted <= set(names)
    assert names[0] == "rotten_tomatoes/teacher/0"


def test_the_softmax_control_differs_from_the_inhibitor_in_its_attention_alone():
    """And in what makes no difference: it starts as the encoder that the inhibitor is aligned and pretrained to equal."""
    by_name = {run.name: run.command for run in RUNS}
    for task in TASKS:
        softmax, inhibitor = by_name[f"{task}/softmax/1"], by_name[f"{task}/inhibitor/1"]
        pretrained, teacher = inhibitor.needs
        assert softmax.needs == (teacher,)
        line = " ".join(softmax.line).replace("--set student.attention=softmax ", "").replace("softmax", "inhibitor")
        assert line.replace("--student encoder", f"--student {pretrained.output}") == " ".join(inhibitor.line)


def test_the_second_control_goes_through_the_very_stages_of_the_inhibitor():
    def lines(command):
        return [" ".join(command.line), *(line for needed in command.needs for line in lines(needed))]

    by_name = {run.name: run.command for run in RUNS}
    for task in TASKS:
        for seed in SEEDS:
            control, inhibitor = lines(by_name[f"{task}/softmax_aligned/{seed}"]), lines(by_name[f"{task}/inhibitor/{seed}"])
            assert len(control) == (5 if task == "imdb" else 4)
            teacher = control[-1]
            assert control != inhibitor
            assert teacher == inhibitor[-1]
            as_inhibitor = [
                line.replace("softmax_aligned", "inhibitor").replace("--set student.attention=softmax ", "")
                for line in control[:-1]
            ]
            assert as_inhibitor == inhibitor[:-1]


def test_a_row_names_what_it_is_made_of():
    (run,) = (run for run in RUNS if run.name == "imdb/inhibitor/2")
    encoder, teacher = run.command.needs
    line = list(run.command.line)
    assert line[:3] == ["inhibidistilbert", "distill", str(run.command.output)]
    assert (value(line, "--stage"), value(line, "--seed")) == ("task", "2")
    assert value(line, "--teacher") == str(teacher.output)
    assert value(line, "--student") == str(encoder.output)
    assert value(line, "--test-file") == str(Path("data/imdb_test.csv"))
    assert {"task.max_length=256", "task.epochs=2"} <= set(line)
    assert "finetune.max_length=256" in teacher.line
    (pretrained,) = encoder.needs
    (aligned,) = pretrained.needs
    assert value(encoder.line, "--student") == str(pretrained.output)
    assert value(pretrained.line, "--student") == str(aligned.output)
    stages = [value(command.line, "--stage") for command in (aligned, pretrained, encoder)]
    assert stages == ["align", "pretrain", "pretrain_long"]


def test_all_students_but_the_authors_start_from_what_fine_tuning_changed_in_their_teacher():
    students = [run for run in RUNS if run.model != "teacher"]
    with_vector = {run.model for run in students if "task.teacher_base=encoder" in run.command.line}
    assert with_vector == {run.model for run in students} - {"inhibitor_authors_recipe"}


def test_encoders_are_shared_by_tasks_and_not_by_models_or_seeds():
    students = [run for run in RUNS if run.model not in ("teacher", "softmax")]
    encoders = {(run.model, run.seed): set() for run in students}
    for run in students:
        # Long texts have an encoder of their own, made of the same.
        encoder = run.command.needs[0]
        encoders[run.model, run.seed].add(encoder.needs[0] if run.task.stages else encoder)
    assert all(len(commands) == 1 for commands in encoders.values())
    outputs = [command.output for commands in encoders.values() for command in commands]
    assert len(set(outputs)) == len(outputs)


@pytest.mark.parametrize("recipes", [("study", "study-authors"), ("study-gpu", "authors")])
def test_the_recipes_take_every_override_of_the_plan(recipes):
    def stages(command):
        for needed in command.needs:
            yield from stages(needed)
        line = command.line
        overrides = [line[place + 1] for place, word in enumerate(line) if word == "--set"]
        (stage,) = read_recipe(value(line, "--recipe"), overrides, value(line, "--stage")).stages
        yield stage.name

    settings = dataclasses.replace(SETTINGS, recipe=recipes[0], authors_recipe=recipes[1])
    seen = [list(stages(run.command)) for run in plan(settings)]
    assert {tuple(names) for names in seen} == {
        ("finetune",),
        ("finetune", "task"),
        ("align", "pretrain", "finetune", "task"),
        ("align", "pretrain", "pretrain_long", "finetune", "task"),
        ("align_queries_keys", "align_layers", "pretrain", "finetune", "task"),
    }


# Runner


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder to run in, where a stand-in for `inhibidistilbert distill` notes its calls and writes its log.

    It fails where the folder to write to is named in `failing`.
    """
    monkeypatch.chdir(tmp_path)
    workplace = type("Workplace", (), {"calls": [], "failing": set(), "results": Results(tmp_path / "results", "study")})()

    def distill(command, **_):
        assert command[:4] == [sys.executable, "-m", "inhibidistilbert", "distill"]
        output, line = Path(command[4]), command[4:]
        workplace.calls.append(output.name)
        if output.name in workplace.failing:
            return subprocess.CompletedProcess(command, 2)
        tests = [line[place + 1] for place, word in enumerate(line) if word == "--test-file"]
        metric = "pearson" if "data.kind=regression" in line else "accuracy"
        scores = {metric: 0.1 + 0.01 * len(workplace.calls), "roc_auc": 0.7 + 0.01 * len(workplace.calls)}
        log = {
            "recipe": {},
            "stages": {value(line, "--stage"): {"eval": {metric: 0.5}, "alignment": [0.75, 0.85]}},
            "tests": {"student": dict.fromkeys(tests, scores)},
        }
        output.mkdir(exist_ok=True)
        (output / "distillation.json").write_text(json.dumps(log))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(study.subprocess, "run", distill)
    return workplace


def test_a_row_runs_what_it_needs_once_and_writes_its_values(workplace):
    assert study.study(SETTINGS, workplace.results, "rotten_tomatoes/inhibitor/0") == []
    assert workplace.calls == [
        "align-inhibitor-0",
        "pretrain-inhibitor-0",
        "rotten_tomatoes-teacher-0",
        "rotten_tomatoes-inhibitor-0",
    ]
    rows = workplace.results.rows()
    assert [(row["task"], row["metric"], round(row["value"], 2)) for row in rows] == [
        ("rotten_tomatoes", "validation_accuracy", 0.5),
        ("rotten_tomatoes", "accuracy", 0.14),
        ("imdb_long", "roc_auc", 0.74),
        ("alignment", "explained_variance", 0.8),
    ]
    assert {tuple(row) for row in rows} == {COLUMNS}
    made_by = [shlex.split(row["command"])[2] for row in rows]
    assert made_by == [str(Path("work") / name) for name in (*["rotten_tomatoes-inhibitor-0"] * 3, "align-inhibitor-0")]
    commands = json.loads(workplace.results.machine.read_text())
    assert commands["machine"]["torch"]
    assert [record["command"] for record in commands["results"]][-1] == rows[0]["command"]
    assert len(commands["results"]) == 4
    assert "rotten_tomatoes" in workplace.results.markdown.read_text()


def test_what_is_finished_is_not_run_again(workplace, capsys):
    study.study(SETTINGS, workplace.results, "rotten_tomatoes/teacher/0")
    study.study(SETTINGS, workplace.results, "rotten_tomatoes/teacher/0")
    assert f"1 of 1 runs stand in {workplace.results.csv}." in capsys.readouterr().out
    assert workplace.calls == ["rotten_tomatoes-teacher-0"]
    study.study(SETTINGS, workplace.results, "*/inhibitor/0")
    assert workplace.calls.count("rotten_tomatoes-teacher-0") == workplace.calls.count("pretrain-inhibitor-0") == 1
    # Rows count even where the models are gone, as after a clone.
    before = workplace.results.csv.read_bytes()
    for file in Path("work").glob("*/distillation.json"):
        file.unlink()
    calls = len(workplace.calls)
    study.study(SETTINGS, workplace.results, "*/inhibitor/0")
    assert len(workplace.calls) == calls
    assert workplace.results.csv.read_bytes() == before


def test_what_another_process_has_finished_must_be_what_the_command_makes(workplace, tmp_path, capsys):
    """The command itself says so, by its recipe and the content of its files."""
    study.study(SETTINGS, workplace.results, "sarcasm/teacher/0")
    again = Results(tmp_path / "others", "study")
    workplace.failing = {"sarcasm-teacher-0"}
    assert study.study(SETTINGS, again, "sarcasm/softmax/0") == ["sarcasm/softmax/0"]
    assert "exit code 2: inhibidistilbert distill work/sarcasm-teacher-0" in capsys.readouterr().err
    assert again.rows() == []
    workplace.failing.clear()
    assert study.study(SETTINGS, again, "sarcasm/softmax/0") == []
    # What was trained before is no command of this study.
    (record,) = json.loads(again.machine.read_text())["results"]
    assert shlex.split(record["command"])[2] == str(Path("work/sarcasm-softmax-0"))


def test_rows_of_another_command_do_not_stand(workplace):
    study.study(SETTINGS, workplace.results, "sarcasm/teacher/0")
    other = dataclasses.replace(SETTINGS, encoder="another")
    with pytest.raises(UserError, match=r"rows of sarcasm/teacher/0 are of another command, .*encoder.*, not of .*another"):
        study.study(other, workplace.results, "sarcasm/teacher/0")
    assert workplace.calls == ["sarcasm-teacher-0"]


def test_the_rows_that_are_published_are_of_the_commands_of_the_plan():
    settings = Settings(
        "study",
        "study-authors",
        ".cache/data/minilm",
        ".cache/data/study/unlabelled.txt",
        Path(".cache/data/study"),
        Path("runs/study"),
    )
    results = Results(Path(__file__).parents[2] / "benchmarks/results", "study")
    runs = list(plan(settings))
    published = {(row["task"], row["model"], row["seed"]) for row in results.rows()} if results.csv.is_file() else set()
    elsewhere = {task for run in runs for task in run.task.also_tested} | {ALIGNMENT[0]}
    done = {(run.task.name, run.model, run.seed) for run in runs if results.has(run)}
    assert {row for row in published if row[0] not in elsewhere} == done


def test_the_first_study_stands_whole():
    rows = Results(Path(__file__).parents[2] / "benchmarks/results", "study_bf16").rows()
    tests = {
        (row["task"], row["seed"]) for row in rows if row["model"] == "inhibitor" and row["metric"] != "explained_variance"
    }
    assert tests == {
        (task, seed) for task in (*[name for name in TASKS if not TASKS[name].pair], "imdb_long") for seed in SEEDS
    }


def test_alignment_has_one_row_however_many_tasks_build_on_it(workplace):
    """And only what is aligned with the attention output, as `align` does, has one."""
    for only in ("*/inhibitor/1", "*/softmax*/1", "*/teacher/1", "*/inhibitor_authors_recipe/0"):
        study.study(SETTINGS, workplace.results, only)
    rows = [row for row in workplace.results.rows() if row["task"] == "alignment"]
    assert [(row["model"], row["seed"]) for row in rows] == [("inhibitor", 1), ("softmax_aligned", 1)]


def test_a_failure_is_told_and_the_other_rows_go_on(workplace, capsys):
    workplace.failing = {"sarcasm-teacher-0"}
    assert study.study(SETTINGS, workplace.results, "*/teacher/0") == ["sarcasm/teacher/0"]
    error = capsys.readouterr().err
    assert "exit code 2: inhibidistilbert distill " in error
    assert {row["task"] for row in workplace.results.rows()} == (TASKS.keys() | {"imdb_long"}) - {"sarcasm"}


def test_a_pattern_that_matches_nothing_is_refused(workplace):
    with pytest.raises(UserError, match=r"--only must match a task/model/seed of the study, .* it is 'sarcasme/\*/0'"):
        study.study(SETTINGS, workplace.results, "sarcasme/*/0")
    assert workplace.calls == []


def test_a_foreign_file_of_results_is_refused_and_kept(workplace):
    workplace.results.csv.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="must have the columns task, model"):
        study.study(SETTINGS, workplace.results, "sarcasm/teacher/0")
    assert workplace.results.csv.read_text() == "a,b\n1,2\n"
    assert workplace.calls == []


TOY_RECIPE = """
student: {config: {scalars_per_head: true, length_normalization: sqrt, beta_init: 0.3}}
stages:
  - {stage: task, name: finetune, max_steps: 2, max_length: 16, soft_weight: 0, hard_weight: 1}
  - {stage: align, max_steps: 2, max_length: 16}
  - {stage: pretrain, max_steps: 2, max_length: 16, train_embeddings: false}
  - {stage: task, max_steps: 2, max_length: 16, hidden_weight: 1}
"""


@pytest.mark.slow
def test_real_rows_of_a_toy_study(toy, tmp_path, monkeypatch):
    """The very commands, in this process."""
    monkeypatch.chdir(tmp_path)
    Path("toy.yaml").write_text(TOY_RECIPE)
    for part in ("train", "validation", "test"):
        for task in ("graded_sentiment", "rotten_tomatoes"):
            Path(f"{task}_{part}.csv").write_bytes((toy / f"{'eval' if part == 'validation' else part}.csv").read_bytes())
    Path("imdb_long_test.csv").write_bytes((toy / "test.csv").read_bytes())

    def run(command, **_):
        result = CliRunner().invoke(app, command[3:], catch_exceptions=False)
        return subprocess.CompletedProcess(command, result.exit_code)

    monkeypatch.setattr(study.subprocess, "run", run)
    # The toy has 32 positions.
    short = dataclasses.replace(TASKS["rotten_tomatoes"], test_max_length=32)
    monkeypatch.setitem(TASKS, "rotten_tomatoes", short)
    settings = Settings("toy.yaml", "toy.yaml", str(toy / "encoder"), str(toy / "transfer.txt"), Path(), Path("runs"))
    results = Results(tmp_path / "results", "toy")
    for run in ("rotten_tomatoes/softmax/0", "graded_sentiment/inhibitor/0", "graded_sentiment/softmax_aligned/0"):
        assert study.study(settings, results, run) == []
    values = {(row["task"], row["model"], row["metric"]): row["value"] for row in results.rows()}
    assert values.keys() == {
        ("rotten_tomatoes", "softmax", "validation_accuracy"),
        ("rotten_tomatoes", "softmax", "accuracy"),
        ("imdb_long", "softmax", "roc_auc"),
        ("graded_sentiment", "inhibitor", "validation_pearson"),
        ("graded_sentiment", "inhibitor", "pearson"),
        ("graded_sentiment", "softmax_aligned", "validation_pearson"),
        ("graded_sentiment", "softmax_aligned", "pearson"),
        ("alignment", "inhibitor", "explained_variance"),
        ("alignment", "softmax_aligned", "explained_variance"),
    }
    for model in ("inhibitor", "softmax_aligned"):
        layers = json.loads(Path(f"runs/align-{model}-0/distillation.json").read_text())["stages"]["align"]["alignment"]
        assert values["alignment", model, "explained_variance"] == pytest.approx(sum(layers) / len(layers))
    # The same texts under two names.
    tests = json.loads(Path("runs/rotten_tomatoes-softmax-0/distillation.json").read_text())["tests"]["student"]
    assert tests["imdb_long_test.csv"] == tests["rotten_tomatoes_test.csv"]
    for task, metric in (("rotten_tomatoes", "accuracy"), ("imdb_long", "roc_auc")):
        assert values[task, "softmax", metric] == tests[f"{task}_test.csv"][metric]


# Tables


def test_means_deviations_and_gaps():
    def row(task, model, seed, value, metric="accuracy"):
        return {"task": task, "model": model, "seed": seed, "metric": metric, "value": value, "command": "…"}

    table = summary(
        [
            row("rotten_tomatoes", "softmax", 0, 0.80),
            row("rotten_tomatoes", "softmax", 1, 0.82),
            row("rotten_tomatoes", "softmax_aligned", 1, 0.81),
            row("rotten_tomatoes", "inhibitor", 0, 0.79),
            row("rotten_tomatoes", "inhibitor", 1, 0.80),
            row("rotten_tomatoes", "inhibitor", 2, 0.10),
            row("rotten_tomatoes", "inhibitor", 0, 0.99, "validation_accuracy"),
            row("graded_sentiment", "softmax", 0, 0.70, "pearson"),
            row("graded_sentiment", "inhibitor", 0, 0.71, "pearson"),
            row("word_sense", "softmax", 2, 0.75),
            row("word_sense", "inhibitor", 2, 0.74),
            row("rotten_tomatoes", "gate_from_mean", 0, 0.60),
            row("imdb_long", "gate_from_mean", 0, 0.55, "roc_auc"),
            row("alignment", "gate_from_mean", 0, 0.70, "explained_variance"),
        ]
    )
    lines = table.splitlines()
    assert "| rotten_tomatoes | accuracy | – | 81.0 ± 1.4 | 81.0 | – | 56.3 ± 40.1 |" in lines
    # Only seeds 0 and 1 have both students: gaps 1 and 2; of the second control seed 1 alone.
    assert "| task | softmax − inhibitor | seeds | softmax_aligned − inhibitor | seeds |" in lines
    assert "| rotten_tomatoes | 1.5 ± 0.7 | 2 | 1.0 | 1 |" in lines
    assert "| graded_sentiment | -1.0 | 1 | – | 0 |" in lines
    assert "| mean of single texts | 0.2 | 2 of 4 tasks | 1.0 | 1 of 4 tasks |" in lines
    assert "| mean | 0.5 | 3 of 6 tasks | 1.0 | 1 of 6 tasks |" in lines
    assert "| gate_from_mean | 60.0 | 55.0 | 70.0 |" in lines
    assert "| inhibitor | 79.0 | – | – |" in lines
    assert not any("− gate " in line for line in lines)


def test_no_rows_give_empty_tables():
    assert "| rotten_tomatoes | accuracy | – | – | – | – | – |" in summary([])
