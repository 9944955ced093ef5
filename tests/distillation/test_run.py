"""The default distillation from files to a loadable folder, on a toy task, whole and in pieces."""

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import accelerate
import datasets
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.integrations import integration_utils

from inhibidistilbert import InhibiDistilBertForSequenceClassification, cli
from inhibidistilbert.distillation import training
from inhibidistilbert.distillation.recipe import Recipe, read_recipe
from inhibidistilbert.distillation.run import run_recipe
from inhibidistilbert.distillation.trainer import StageTrainer
from inhibidistilbert.distillation.work_folder import finish
from inhibidistilbert.modeling.sources import source_files
from inhibidistilbert.support.distillation_log import DistillationLog
from inhibidistilbert.support.errors import UserError
from tests.helpers.toy_recipe import curve
from tests.helpers.toy_task import POSITIONS, VOCABULARY, sentences, tiny_student, write_bert, write_csv, write_distilbert

SAVE_STEPS = 20
TEACHER_STEPS = 5 * math.ceil(400 / 32)
STUDENT_STEPS = 5 * math.ceil(600 / 32)
TEACHER = {
    "student__source": "encoder",
    "data__train_files": ["train.csv"],
    "data__eval_file": "eval.csv",
    "data__test_files": ["test.csv"],
    "data__labels": ["BAD", "GOOD"],
    "task__epochs": 5,
    "task__learning_rate": 3e-3,
    "task__max_length": 16,
    "trainer__save_steps": SAVE_STEPS,
}
STUDENT = TEACHER | {
    "student__source": "start",
    "data__transfer_files": ["transfer.txt"],
    "task__batch_size": 32,
    "task__max_length": 12,
}


def given(toy: Path, settings: dict) -> dict:
    """The settings with the toy's files and folders in place of their names."""

    def placed(value):
        if isinstance(value, list):
            return [placed(entry) for entry in value]
        return str(toy / value) if isinstance(value, str) and (toy / value).exists() else value

    return {name: placed(value) for name, value in settings.items()}


def student_recipe(toy: Path, teacher: Path | str, recipe: str = "classifier", **changes) -> Recipe:
    """Five epochs of the default recipe, in which the student learns the task."""
    return read_recipe(recipe, teacher=str(teacher), **given(toy, STUDENT | changes))


def teacher_recipe(toy: Path, **changes) -> Recipe:
    return read_recipe("finetune", **given(toy, TEACHER | changes))


def as_arguments(toy: Path, output: Path) -> list[str]:
    """The command line of `student_recipe` and `teacher_recipe` without changes."""
    pairs = {
        "--teacher": toy / "encoder",
        "--student": toy / "start",
        "--train-file": toy / "train.csv",
        "--transfer-file": toy / "transfer.txt",
        "--eval-file": toy / "eval.csv",
        "--test-file": toy / "test.csv",
        "--teacher-epochs": 5,
        "--teacher-learning-rate": 3e-3,
        "--teacher-max-length": 16,
        "--epochs": 5,
        "--learning-rate": 3e-3,
        "--batch-size": 32,
        "--max-length": 12,
        "--save-steps": SAVE_STEPS,
    }
    flat = [str(word) for pair in pairs.items() for word in pair]
    return [str(output), *flat, "--label", "BAD", "--label", "GOOD", "--fine-tune-teacher", "--json"]


@dataclasses.dataclass
class Finished:
    """A distillation that has ended: its folder, and what it printed to stdout."""

    folder: Path
    stdout: str = ""

    @property
    def teacher(self) -> Path:
        return self.folder.with_name(self.folder.name + ".teacher")

    @property
    def log(self) -> dict:
        return json.loads((self.folder / "distillation.json").read_text())


@pytest.fixture(scope="module")
def finished(toy, tmp_path_factory) -> Finished:
    """The whole distillation in one go, from the command line."""
    folder, stdout = tmp_path_factory.mktemp("finished") / "out", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(stdout):
        patch.setattr(sys, "argv", ["inhibidistilbert", "distill", *as_arguments(toy, folder)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
    assert not exit_.value.code
    return Finished(folder, stdout.getvalue())


# The result


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_teacher_and_student_learn_the_task(finished, role):
    (test,) = finished.log["tests"][role].values()
    assert test["accuracy"] > 0.9
    assert test["texts"] == 60


def test_test_texts_are_cut_at_a_length_of_their_own(toy, finished, tmp_path):
    # The first word alone says little; the student is that of above, which the smallest of steps leaves as it is.
    changes = {"student__source": str(finished.folder), "task__max_steps": 1, "task__learning_rate": 1e-9}
    recipe = student_recipe(toy, finished.teacher, data__transfer_files=None, data__test_max_length=3, **changes)
    (test,) = run_recipe(recipe, tmp_path / "out")["tests"]["student"].values()
    assert test["accuracy"] < 0.8


def test_evaluations_and_losses_are_logged(finished):
    result = finished.log["stages"]["task"]
    assert result["eval"]["accuracy"] > 0.9
    assert result["steps"] == STUDENT_STEPS
    assert math.isfinite(result["loss"])


def test_the_folder_loads_and_answers(finished, toy):
    model = InhibiDistilBertForSequenceClassification.from_pretrained(finished.folder)
    tokenizer = AutoTokenizer.from_pretrained(finished.folder)
    texts, labels = zip(*sentences(60, seed=60), strict=True)
    inputs = tokenizer(list(texts), padding=True, return_tensors="pt")
    answers = model.eval()(**inputs).logits.argmax(-1)
    accuracy = (answers == torch.tensor(labels)).double().mean().item()
    assert accuracy == pytest.approx(finished.log["tests"]["student"][str(toy / "test.csv")]["accuracy"])
    assert isinstance(AutoModelForSequenceClassification.from_pretrained(finished.folder), type(model))


def test_the_folder_has_the_labels_names(finished):
    config = json.loads((finished.folder / "config.json").read_text())
    assert config["id2label"] == {"0": "BAD", "1": "GOOD"}
    assert config["label2id"] == {"BAD": 0, "GOOD": 1}


def test_the_folder_has_the_tokenizer_of_the_students_positions(finished):
    tokenizer = AutoTokenizer.from_pretrained(finished.folder)
    assert tokenizer.model_max_length == POSITIONS
    assert set(tokenizer("a good film")) == {"input_ids", "attention_mask"}
    assert len(tokenizer("a good film " * 5)["input_ids"]) == 17


def test_the_folder_holds_the_model_and_nothing_of_the_work(finished):
    names = {path.name for path in finished.folder.iterdir()}
    sources = set(source_files())
    model = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert names == {"distillation.json", "curves.jsonl", "curves.png"} | sources | model


def test_the_log_says_how_it_was_made(finished, toy):
    log = finished.log
    assert log["recipe"] == json.loads(json.dumps(student_recipe(toy, finished.teacher).as_json()))
    files = [toy / name for name in ("train.csv", "transfer.txt", "eval.csv", "test.csv")]
    assert log["data"] == {
        str(path): {"bytes": len(path.read_bytes()), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in files
    }
    modules = (torch, transformers, datasets, accelerate)
    assert log["versions"] == {module.__name__: module.__version__ for module in modules}


def test_json_prints_the_log_alone(finished):
    """Not the Trainer's progress, which it prints to stdout."""
    assert json.loads(finished.stdout) == finished.log
    assert finished.stdout.count("\n") == 1


def test_the_student_has_trained_its_scalars(finished):
    scalars = {
        name: weight
        for name, weight in load_file(finished.folder / "model.safetensors").items()
        if name.endswith((".alpha", ".beta", ".gamma"))
    }
    started = tiny_student().state_dict()
    assert len(scalars) == 6
    assert all(not torch.equal(weight, started[name]) for name, weight in scalars.items())


# Interrupted and resumed


@dataclasses.dataclass
class Steps:
    """Which steps a Trainer took, by the name of its stage; it stops before `stop`, a stage and a step."""

    taken: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    trainers: dict[str, StageTrainer] = dataclasses.field(default_factory=dict)
    stop: tuple[str, int] | None = None


@contextlib.contextmanager
def watched_steps(stop: tuple[str, int] | None = None) -> Iterator[Steps]:
    steps = Steps(stop=stop)

    class Watched(StageTrainer):
        def training_step(self, *args, **kwargs):
            place = self.stage, self.state.global_step
            if place == steps.stop:
                raise KeyboardInterrupt
            steps.taken.setdefault(place[0], []).append(place[1])
            steps.trainers[place[0]] = self
            return super().training_step(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "StageTrainer", Watched)
        yield steps


@dataclasses.dataclass
class Resumed(Finished):
    """The student of `finished`, interrupted three times: the steps of its four runs."""

    runs: list[dict[str, list[int]]] = dataclasses.field(default_factory=list)


@pytest.fixture(scope="module")
def resumed(toy, finished, tmp_path_factory) -> Resumed:
    output = tmp_path_factory.mktemp("resumed") / "out"
    recipe, work_dir, runs = student_recipe(toy, finished.teacher), output.with_name("out.work"), []

    def run(stop: tuple[str, int] | None) -> None:
        with watched_steps(stop) as steps:
            runs.append(steps.taken)
            run_recipe(recipe, output)

    def half_written(_: datasets.Dataset, folder: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, "data-00000-of-00001.arrow").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.Dataset, "save_to_disk", half_written)
        with pytest.raises(KeyboardInterrupt):
            run(stop=None)
    with pytest.raises(KeyboardInterrupt):
        run(stop=("task", 33))
    with pytest.raises(KeyboardInterrupt):
        run(stop=("task", 50))
    assert not output.exists()
    # As if stopped while a checkpoint was written by something that does not rename.
    (work_dir / "task" / "checkpoint-60").mkdir()
    run(stop=None)
    return Resumed(output, runs=runs)


def test_the_training_goes_on_from_its_last_checkpoint(resumed):
    assert resumed.runs == [
        {},  # stopped while the labelled texts were written
        {"task": list(range(33))},
        {"task": list(range(20, 50))},
        {"task": list(range(40, STUDENT_STEPS))},
    ]


def test_interruptions_change_nothing(finished, resumed):
    whole, pieces = (load_file(run.folder / "model.safetensors") for run in (finished, resumed))
    assert whole.keys() == pieces.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(pieces[name], weight, rtol=0, atol=1e-6, msg=name)


def test_interruptions_leave_no_trace_in_the_curve(finished, resumed):
    whole, pieces = curve(finished.folder), curve(resumed.folder)
    assert [record["step"] for record in whole] == [20, 40, 50, 60, 80, STUDENT_STEPS]
    assert [record["step"] for record in pieces] == [record["step"] for record in whole]
    for before, after in zip(whole, pieces, strict=True):
        assert after == {name: pytest.approx(value, abs=1e-5) for name, value in before.items() if name != "stage"} | {
            "stage": "task"
        }


def test_an_end_that_was_interrupted_is_made_up_for(resumed, toy, finished, tmp_path):
    """All is trained, but the folder was not yet in its place."""
    output, work_dir = tmp_path / "out", tmp_path / "out.work"
    shutil.copytree(resumed.folder.with_name("out.work"), work_dir)
    (work_dir / "finished").mkdir()
    (work_dir / "finished" / "half.safetensors").touch()
    with watched_steps() as steps:
        run_recipe(student_recipe(toy, finished.teacher), output)
    assert steps.taken == {}
    assert (output / "model.safetensors").read_bytes() == (resumed.folder / "model.safetensors").read_bytes()
    assert not (output / "half.safetensors").exists()


def test_a_finished_distillation_is_not_made_again(toy, finished):
    with watched_steps() as steps:
        log = run_recipe(student_recipe(toy, finished.teacher), finished.folder)
    assert (steps.taken, log) == ({}, finished.log)


def test_another_distillation_does_not_take_a_finished_ones_place(toy, finished):
    with pytest.raises(UserError, match=r"OUTPUT_DIR: '.*out' exists already"):
        run_recipe(student_recipe(toy, finished.teacher, seed=3), finished.folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 7}, r"seed 7 \(was 0\)"),
        ({"task__epochs": 9}, r"task\.epochs 9 \(was 5\.0\)"),
        (
            {"task__hard_weight": 1.0, "data__labels": ["NO", "YES"]},
            r"data\.labels.*\['NO', 'YES'\].*task\.hard_weight 1\.0",
        ),
    ],
    ids=["seed", "epochs", "two"],
)
def test_going_on_with_other_options_is_refused(toy, finished, tmp_path, changes, message):
    work_dir = tmp_path / "out.work"
    (work_dir / "task").mkdir(parents=True)
    shutil.copy(finished.folder.with_name("out.work") / "recipe.json", work_dir)
    with pytest.raises(UserError, match=rf"OUTPUT_DIR: .*out\.work.*other options: .*{message}"):
        run_recipe(student_recipe(toy, finished.teacher, **changes), tmp_path / "out")


def test_going_on_with_stages_in_another_order_is_refused(toy, tmp_path):
    recipe = read_recipe("distill", teacher="teacher")
    work_dir = tmp_path / "out.work"
    (work_dir / "align").mkdir(parents=True)
    (work_dir / "recipe.json").write_text(json.dumps(recipe.as_json()))
    recipe = dataclasses.replace(recipe, stages=[recipe.stages[place] for place in (1, 0, 2)])
    with pytest.raises(UserError, match=r"other options: order of stages \['pretrain', 'align', 'task'\] \(was \['align', "):
        run_recipe(recipe, tmp_path / "out")


def test_a_record_from_before_a_setting_existed_is_taken_up(toy, finished, tmp_path):
    work_dir = tmp_path / "out.work"
    shutil.copytree(finished.folder.with_name("out.work"), work_dir)
    record = json.loads((work_dir / "recipe.json").read_text())
    assert record["stages"][0].pop("dropout", "absent") is None
    assert record["data"]["kind"] is None
    record["data"]["kind"] = "classification"  # the default, before it was the teacher's kind
    (work_dir / "recipe.json").write_text(json.dumps(record))
    with watched_steps() as steps:
        run_recipe(student_recipe(toy, finished.teacher), tmp_path / "out")
    assert steps.taken == {}


def test_an_output_folder_that_exists_is_left_alone(toy, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"OUTPUT_DIR: '.*out' exists already"):
        run_recipe(teacher_recipe(toy), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_output_folder_that_has_come_up_meanwhile_is_left_alone(tmp_path):
    work, output = tmp_path / "out.work", tmp_path / "out"
    (work / "task" / "model").mkdir(parents=True)
    (work / "task" / "curves.jsonl").write_text('{"stage": "task", "step": 1, "loss": 0.5}\n')
    output.mkdir()
    with pytest.raises(UserError, match=r"OUTPUT_DIR: '.*out' cannot be written: it exists by now; the work is kept"):
        finish(work, ["task"], output, DistillationLog({}, {}))
    assert sorted(tmp_path.iterdir()) == [output, work]
    assert not any(output.iterdir())


@pytest.mark.parametrize("make", [Path.touch, lambda path: (path / "mine").mkdir(parents=True)], ids=["file", "folder"])
def test_what_is_in_place_of_the_work_folder_is_left_alone(toy, tmp_path, make):
    make(tmp_path / "out.work")
    with pytest.raises(UserError, match=r"out\.work' is in the way"):
        run_recipe(teacher_recipe(toy), tmp_path / "out")
    assert (tmp_path / "out.work").is_file() or (tmp_path / "out.work" / "mine").is_dir()


def test_an_output_folder_that_cannot_be_made_is_named(toy, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"OUTPUT_DIR: '.*file/out\.work' cannot be written"):
        run_recipe(teacher_recipe(toy), tmp_path / "file" / "out")


# Other teachers, other folders


QUICK = {
    "data__eval_file": None,
    "data__test_files": None,
    "data__transfer_files": None,
    "data__labels": None,
    "task__epochs": 0.2,
    "task__learning_rate": 1e-3,
}


def test_a_given_bert_teacher_is_not_trained(toy, tmp_path):
    """Its tokenizer emits token_type_ids, and the folder's name is one that the work folder uses too."""
    teacher = write_bert(tmp_path / "bert")
    with watched_steps() as steps:
        changes = QUICK | {"save_dtype": "float16", "data__labels": ["NO", "YES"]}
        log = run_recipe(student_recipe(toy, teacher, **changes), tmp_path / "student")
    assert set(steps.taken) == {"task"}
    assert log["tests"] == {}
    stored = load_file(tmp_path / "student" / "model.safetensors")
    scalars = {name for name in stored if name.endswith((".alpha", ".beta", ".gamma"))}
    assert {stored[name].dtype for name in scalars} == {torch.float32}
    assert stored["distilbert.embeddings.word_embeddings.weight"].dtype == torch.float16
    student = InhibiDistilBertForSequenceClassification.from_pretrained(tmp_path / "student")
    assert student.dtype == torch.float32
    assert student.config.id2label == {0: "NO", 1: "YES"}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert set(tokenizer("a good film")) == {"input_ids", "attention_mask"}
    assert tokenizer.model_max_length == POSITIONS


@pytest.mark.parametrize("position_offsets", [False, True])
def test_the_options_reach_the_students_training(toy, finished, tmp_path, position_offsets):
    settings = {"temperature": 3.0, "hard_weight": 0.25, "scalar_learning_rate": 1e-2, "position_offsets": position_offsets}
    changes = QUICK | {f"task__{name}": value for name, value in settings.items()}
    with watched_steps(stop=("task", 1)) as steps, pytest.raises(KeyboardInterrupt):
        run_recipe(student_recipe(toy, finished.teacher, **changes), tmp_path / "out")
    trainer = steps.trainers["task"]
    assert {name: getattr(trainer.objective.settings, name) for name in settings} == settings
    assert trainer.objective.positions == (POSITIONS if position_offsets else None)
    assert trainer.args.learning_rate == 1e-3
    assert trainer.optimizer.param_groups[-1]["initial_lr"] == 1e-2


def test_a_new_student_of_a_published_size_is_distilled(toy, finished, tmp_path):
    log = run_recipe(student_recipe(toy, finished.teacher, **QUICK, student__source="tiny"), tmp_path / "out")
    student = InhibiDistilBertForSequenceClassification.from_pretrained(tmp_path / "out")
    assert (student.config.dim, student.config.vocab_size) == (128, len(VOCABULARY))
    assert math.isfinite(log["stages"]["task"]["loss"])


def test_a_teacher_that_answers_whole_texts_may_have_its_own_tokenizer(toy, finished, tmp_path, swapped):
    """Read with the student's, its answers would be the opposite."""
    changes = {"student__source": str(swapped), "task__hard_weight": 0.0}
    log = run_recipe(student_recipe(toy, finished.teacher, **changes), tmp_path / "out")
    scores = {role: next(iter(tests.values()))["accuracy"] for role, tests in log["tests"].items()}
    assert scores["teacher"] == next(iter(finished.log["tests"]["teacher"].values()))["accuracy"]
    assert scores["student"] > 0.9
    stored = AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()
    assert stored["good"] == VOCABULARY["bad"]


# Bad input: told before anything is trained, and mended without ado


def refused(recipe: Recipe, output: Path, message: str) -> None:
    with watched_steps() as steps, pytest.raises(UserError, match=message) as caught:
        run_recipe(recipe, output)
    assert "\n" not in str(caught.value)
    assert steps.taken == {}
    assert not output.exists()


FILES = {
    "data__train_files": "--train-file",
    "data__transfer_files": "--transfer-file",
    "data__eval_file": "--eval-file",
    "data__test_files": "--test-file",
}


@pytest.mark.parametrize("field", FILES)
def test_a_missing_file_is_told_before_any_training(toy, finished, tmp_path, field):
    missing = str(tmp_path / "missing.csv")
    recipe = student_recipe(toy, finished.teacher, **{field: missing if field == "data__eval_file" else [missing]})
    refused(recipe, tmp_path / "out", rf"{FILES[field]} \(.*\): '.*missing.csv' is not a file")


def test_after_bad_input_the_same_folder_can_be_used(toy, finished, tmp_path):
    refused(student_recipe(toy, finished.teacher, student__source="huge"), tmp_path / "out", "--student.*: 'huge'")
    run_recipe(student_recipe(toy, finished.teacher, **QUICK), tmp_path / "out")
    assert (tmp_path / "out").is_dir()


def test_a_teacher_without_a_head_is_refused(toy, tmp_path):
    refused(student_recipe(toy, toy / "encoder"), tmp_path / "out", "--teacher: .*no trained head")


def test_a_missing_teacher_is_asked_for(toy, tmp_path):
    refused(read_recipe("classifier", **given(toy, STUDENT)), tmp_path / "out", "--teacher: stage task needs one")


def test_no_training_texts_are_refused(toy, finished, tmp_path):
    refused(student_recipe(toy, finished.teacher, data__train_files=[]), tmp_path / "out", "--train-file .*at least one")


def test_a_student_with_another_vocabulary_is_refused(toy, finished, tmp_path):
    tiny_student(vocab_size=99).save_pretrained(tmp_path / "start")
    recipe = student_recipe(toy, finished.teacher, student__source=str(tmp_path / "start"))
    refused(recipe, tmp_path / "out", f"--student.*99 word embeddings.*{len(VOCABULARY)}")


@pytest.fixture
def swapped(tmp_path) -> Path:
    """A student whose tokenizer has two words the other way round than its teachers' has."""
    vocabulary = {**VOCABULARY, "good": VOCABULARY["bad"], "bad": VOCABULARY["good"]}
    tiny_student().save_pretrained(tmp_path / "swapped")
    transformers.DistilBertTokenizer(vocab=vocabulary).save_pretrained(tmp_path / "swapped")
    return tmp_path / "swapped"


def test_a_student_with_another_tokenizer_does_not_learn_hidden_states(toy, finished, tmp_path, swapped):
    recipe = student_recipe(toy, finished.teacher, student__source=str(swapped), task__hidden_weight=1.0)
    refused(recipe, tmp_path / "out", "--teacher .* and --student .* have different tokenizers")


@pytest.mark.parametrize("names", [["ONE"], ["ONE", "TWO", "THREE"]], ids=["too-few", "too-many"])
def test_the_names_must_be_as_many_as_the_classes(toy, finished, tmp_path, names):
    recipe = student_recipe(toy, finished.teacher, data__labels=names)
    refused(recipe, tmp_path / "out", rf"--label .*{len(names)} names for 2 classes")


def test_a_class_without_texts_may_have_a_name(toy, tmp_path):
    """Three names for the two classes of the training texts: the fine-tuned teacher gets three."""
    recipe = teacher_recipe(toy, **QUICK | {"data__labels": ["BAD", "GOOD", "EXCELLENT"]})
    run_recipe(recipe, tmp_path / "teacher")
    config = json.loads((tmp_path / "teacher" / "config.json").read_text())
    assert config["id2label"] == {"0": "BAD", "1": "GOOD", "2": "EXCELLENT"}


@pytest.mark.parametrize("field", [field for field in FILES if field != "data__transfer_files"])
def test_a_class_the_teacher_does_not_know_is_refused(toy, finished, tmp_path, field):
    three = str(write_csv(tmp_path / "three.csv", [("a good film", 1), ("a film", 2)]))
    recipe = student_recipe(toy, finished.teacher, **{field: three if field == "data__eval_file" else [three]})
    refused(recipe, tmp_path / "out", f"{FILES[field]}.*has class 2.*classes 0 to 1 only")


def test_lengths_beyond_the_students_positions_are_refused(toy, tmp_path):
    teacher = write_distilbert(tmp_path / "teacher", max_position_embeddings=64)
    recipe = student_recipe(toy, teacher, task__max_length=33)
    refused(recipe, tmp_path / "out", r"task\.max_length must be at most 32, the positions of the student, got 33")


def test_lengths_beyond_the_teachers_positions_are_refused(toy, finished, tmp_path):
    recipe = student_recipe(toy, finished.teacher, student__source="tiny", task__max_length=33)
    refused(recipe, tmp_path / "out", r"task\.max_length must be at most 32, the positions of the teacher.*got 33")


def test_tests_beyond_the_teachers_positions_are_refused(toy, finished, tmp_path):
    recipe = student_recipe(toy, finished.teacher, data__test_max_length=33)
    refused(recipe, tmp_path / "out", r"data\.test_max_length must be at most 32, the positions of the teacher.*got 33")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("learning_rat", 1, "is no field of transformers.TrainingArguments"),
        ("learning_rate", 1, r"is set by <stage>\.learning_rate"),
        ("save_only_model", True, "must be left out: the same command goes on from whole checkpoints"),
        ("push_to_hub", True, "must be left out: `publish` sends models"),
        ("hub_model_id", "some/one", "must be left out: `publish` sends models"),
        ("debug", "underflow_overflow", "'debug' must be left out"),
        ("gradient_accumulation_steps", "two", "gradient_accumulation_steps must be int, got 'two'"),
        ("gradient_accumulation_steps", True, "gradient_accumulation_steps must be int, got True"),
        ("gradient_accumulation_steps", 0, "gradient_accumulation_steps must be a number above 0, got 0"),
        ("logging_steps", math.nan, "logging_steps must be a number above 0, got nan"),
        ("eval_delay", -1, "eval_delay must be a number from 0, got -1"),
        ("include_for_metrics", "inputs", r"include_for_metrics must be list\[str\], got 'inputs'"),
        ("log_level", "loud", "log_level must be one of .*warning.*got 'loud'"),
        # What transformers and torch find when they build something.
        ("adam_beta1", 2, "Invalid beta parameter"),
        ("lr_scheduler_kwargs", {"num_cycles": 2}, "unexpected keyword argument 'num_cycles'"),
        ("optim", "adamw_bnb_8bit", "bitsandbytes"),
        ("dataloader_persistent_workers", True, "needs num_workers > 0"),
        ("torch_compile_mode", "quick", "torch.compile does not know backend 'inductor' or mode 'quick'"),
        ("gradient_accumulation_steps", 5, r"task\.batch_size must be a multiple of 5.*got 32"),
        ("eval_strategy", "sometimes", "trainer: .*sometimes"),
        ("report_to", "slates", "trainer: slates is not supported, only .*wandb"),
    ],
)
def test_bad_settings_of_the_trainer_are_refused(toy, finished, tmp_path, name, value, message):
    recipe = student_recipe(toy, finished.teacher, **{f"trainer__{name}": value})
    refused(recipe, tmp_path / "out", message)


def test_a_tracker_that_is_not_installed_is_told_before_any_training(toy, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: False)
    recipe = student_recipe(toy, finished.teacher, trainer__report_to="wandb")
    refused(recipe, tmp_path / "out", "trainer: .*requires wandb to be installed")


def test_no_as_yaml_reads_it_is_the_strategy_no(toy, finished, tmp_path):
    log = run_recipe(student_recipe(toy, finished.teacher, **QUICK, trainer__save_strategy=False), tmp_path / "out")
    assert log["recipe"]["trainer"]["save_strategy"] is False
    assert not list((tmp_path / "out.work").rglob("checkpoint-*"))
